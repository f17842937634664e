"""The summary that a run prints at its start."""

import jax

from bn_inception.experiment import Experiment
from bn_inception.kernels import native
from bn_inception.machine import accelerators
from bn_inception.optimizer import PAPER_BATCH_SIZE
from bn_inception.wording import count


def print_summary(experiment: Experiment, num_parameters: int) -> None:
  """Prints what a run trains, on what and how."""
  setup, config = experiment.setup, experiment.setup.config
  batch_size, num_steps = experiment.batch_size, experiment.num_steps
  device = jax.devices()[0].device_kind
  micro_batches = processes = ''
  if setup.optimizer.accumulate_steps > 1:
    micro_batches = f' in {setup.optimizer.accumulate_steps} micro-batches'
  if jax.process_count() > 1:
    processes = f', in {jax.process_count()} processes'
  lines = {
    'run': config['name'],
    'data': _in_lines(*_describe_data(config['source'], experiment)),
    'devices': _in_lines(
      f'{jax.device_count()} x {device}{processes}', *accelerators.remarks()
    ),
    'convolutions': native.describe(),
    'batch': f'{count(batch_size, "example")}{micro_batches}',
    'normalisation': _describe_normalisation(
      setup.norm_batch_size, config['model'].get('norm', '')
    ),
    'order': _describe_order(experiment),
    'learning rate': _describe_learning_rate(experiment),
    'L2': f'{config["optimizer"]["weight_decay"]:g} on kernels',
    'steps': (
      f'{num_steps} = '
      f'{count(num_steps / experiment.steps_per_epoch, "epoch", form="g")} '
      '= '
      f'{count(num_steps * batch_size / PAPER_BATCH_SIZE, "step", form="g")} '
      'of the paper '
      f'({PAPER_BATCH_SIZE} examples each)'
    ),
    'parameters': f'{num_parameters:,}',
  }
  for name, value in lines.items():
    print(f'{name:14} {value}')


def _describe_normalisation(size: int | None, norm: str = '') -> str:
  if not size:
    return norm or 'none'
  if size == 1:
    return 'statistics of each example by itself'
  return f'{count(size, "example")} share statistics'


def _describe_order(experiment: Experiment) -> str:
  options = experiment.setup.batches.options
  shards = ''
  if options.shuffle != 'global':
    shards = f', {count(options.num_shards, "shard", form="")}'
  return (
    f'{options.shuffle}{shards}: '
    f'{100 * experiment.repeated_pair_fraction:.3g} % of the pairs in a mini-batch '
    'meet again in the next epoch'
  )


def _describe_learning_rate(experiment: Experiment) -> str:
  options = experiment.setup.config['optimizer']
  rule = ''
  if options['learning_rate_per_32']:
    rule = f' ({options["learning_rate"]:g} per {PAPER_BATCH_SIZE} examples)'
  period = count(options['decay_epochs'], 'epoch', form='.3g')
  decay = f'x {options["decay_factor"]:g} every {period}'
  if options['schedule'] == 'cosine':
    decay = f'a cosine to 0 in {period}'
  if options['warmup_epochs']:
    warmup = count(options['warmup_epochs'], 'epoch', form='.3g')
    decay += f', {warmup} of warm-up'
  return (
    f'{experiment.setup.optimizer.learning_rate:g}{rule}, {decay}, '
    f'momentum {options["momentum"]:g}'
  )


def _in_lines(*texts: str) -> str:
  """Texts below each other, right of a name of the summary."""
  return f'\n{"":14} '.join(texts)


def _describe_data(names: dict, experiment: Experiment) -> list[str]:
  """What was found and what was left out, one line each."""
  train, evaluated = experiment.source, experiment.eval_source
  sources = {names['train_split']: train, names['eval_split']: evaluated}
  return [
    f'{train.name}: {count(len(train), "image")} of '
    f'{count(len(train.class_names), "class", "classes")} '
    f'({names["train_split"]}), {len(evaluated):,} ({names["eval_split"]})',
    *(
      f'{split}: {remark}'
      for split, source in sources.items()
      for remark in source.remarks()
    ),
  ]

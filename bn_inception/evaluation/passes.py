"""Accuracy of a network on a split, every example counted exactly once."""

import dataclasses
import os
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from bn_inception import config_keys, inception, mesh, metrics
from bn_inception.data import facts as data_facts
from bn_inception.data import imagenet
from bn_inception.data.crops import NUM_CROPS
from bn_inception.data.sources import Source
from bn_inception.errors import UserError
from bn_inception.evaluation import scores
from bn_inception.evaluation.predictions import Predictions, average
from bn_inception.experiment import (
  Evaluator,
  StatisticsPass,
  limit_workers,
  make_evaluator,
  make_statistics_pass,
  open_split,
)
from bn_inception.machine import accelerators
from bn_inception.runs import checkpoint, run_directory

MOVING, POPULATION, NONE = 'moving averages', 'population', 'none'


@dataclasses.dataclass(frozen=True)
class PopulationOptions:
  """Where population statistics come from.

  Attributes:
    num_batches: K, how many mini-batches to average. The paper says several;
      200 is the choice of Wu & Johnson (2021).
    seed: of their order and distortions.
    dataset, split: None: those of training.
  """

  num_batches: int = 200
  seed: int = 0
  dataset: str | None = None
  split: str | None = None

  def __post_init__(self):
    # Of a config, 0 means that none are taken.
    allowed = config_keys.KEYS['training.population_batches'].allowed._replace(
      low=1
    )
    problem = allowed.problem(self.num_batches)
    if problem:
      raise UserError(f'statistics_batches {problem}')
    config_keys.check_value('seed', self.seed, 'statistics_seed')


def evaluate(
  eval_step: Callable,
  variables: dict,
  batches: Iterable[dict],
  num_examples: int,
) -> dict[str, float]:
  """Loss and accuracies over all examples.

  Args:
    eval_step: (variables, batch) -> sums: see `steps.make_eval_step`.
    variables: params and batch_stats.
    batches: on the devices, padded and masked.
    num_examples: of the split.

  Returns:
    `loss`, `top1` and `top5` (percent) and `examples`. The loss of a network
    that diverged may not be finite.

  Raises:
    RuntimeError: if the examples counted are not `num_examples`.
  """
  sums = []
  for batch in batches:
    sums.append(eval_step(variables, batch))
    # Batches must not pile up on the devices, nor collectives of many steps:
    # XLA:CPU, with more devices than cores, can then wait for ever.
    jax.block_until_ready(sums[-2:][0])
  total = metrics.add_sums(jax.device_get(sums))
  counted = int(total['count'])
  if counted != num_examples:
    raise RuntimeError(
      f'evaluated {counted} examples of a split of {num_examples}'
    )
  return {**metrics.averages(total), 'examples': counted}


def predict(
  predict_step: Callable,
  variables: dict,
  batches: Iterable[dict],
  source: Source,
) -> tuple[np.ndarray, np.ndarray, float | None]:
  """Logarithms of class probabilities of every example of a source.

  Args:
    predict_step: see `steps.make_predict_step`.
    variables: params and batch_stats.
    batches: on the devices, padded and masked.
    source: what the batches are of.

  Returns:
    Logarithms float32 [N, classes] and labels int32 [N] in the order of the
    source, and images per second without the first batch, which compiles; None
    if there is no other.

  Raises:
    RuntimeError: if an example is missing, or comes twice.
  """
  num_examples = len(source)
  log_probabilities = np.empty(
    (num_examples, len(source.class_names)), np.float32
  )
  labels, times_seen = np.empty(num_examples, np.int32), np.zeros(num_examples)
  start = count = None
  for batch in batches:
    found = _fetch(predict_step(variables, batch))
    is_real = found['mask']
    index = found['index'][is_real]
    log_probabilities[index] = found['log_probabilities'][is_real]
    labels[index] = found['label'][is_real]
    times_seen[index] += 1
    if start is None:
      start, count = time.monotonic(), 0
    else:
      count += len(index)
  if not np.all(times_seen == 1):
    raise RuntimeError(
      f'{np.sum(times_seen != 1)} of {num_examples} examples were not evaluated '
      'once'
    )
  speed = count / (time.monotonic() - start) if count else None
  return log_probabilities, labels, speed


def _fetch(tree):
  """Arrays that are split over all devices of all processes, on the host."""
  if jax.process_count() == 1:
    return jax.device_get(tree)
  return multihost_utils.process_allgather(tree, tiled=True)


def statistics_name(config: dict) -> str:
  """Which statistics the batch-norm layers use while a run is tracked."""
  return MOVING if config['model']['use_batch_norm'] else NONE


def estimate_population_statistics(
  statistics_step: Callable,
  variables: dict,
  batches: Iterable[dict],
  rng: jax.Array,
) -> dict:
  """Mean and variance over training mini-batches (Algorithm 2, lines 8 to 10).

  E[x] = E_B[mean_B];  Var[x] = m / (m - 1) * E_B[var_B]

  All layers are estimated at once: a layer's statistics come from inputs that
  were normalised by their mini-batch, as the network saw them in training.

  Args:
    statistics_step: see `steps.make_statistics_step`.
    variables: params, frozen, and batch_stats, which have no influence.
    batches: on the devices; each counts the same.
    rng: key of the distortions, folded with the batch's number.

  Returns:
    A tree like batch_stats, with plain averages for moving ones.
  """
  add = jax.jit(partial(jax.tree.map, jnp.add))
  running_sum, count = None, 0
  for batch in batches:
    new = statistics_step(variables, batch, jax.random.fold_in(rng, count))
    jax.block_until_ready(new)  # as above
    running_sum = new if running_sum is None else add(running_sum, new)
    count += 1
  # `num_updates`, the one integer, has no meaning here and stays a sum.
  return jax.tree.map(
    lambda s: s / count if jnp.issubdtype(s.dtype, jnp.floating) else s,
    running_sum,
  )


def find_checkpoint(workdir: str, step: int | None) -> str:
  """The path of a run's checkpoint; step None: the newest that is intact.

  Names the newer ones that are damaged.

  Raises:
    UserError: if the folder does not exist or has no such checkpoint.
  """
  if not os.path.isdir(workdir):
    raise UserError(
      f'workdir {workdir} does not exist: train first, or give --workdir'
    )
  directory = os.path.join(workdir, run_directory.CHECKPOINTS_FOLDER)
  path = checkpoint.find(directory, step)
  if step is not None:
    return path
  chosen, wrong = checkpoint.newest_intact(directory)
  for path, damage in wrong.items():
    print(f'checkpoint {path} is damaged ({damage}): {chosen} is used')
  return chosen


@dataclasses.dataclass(frozen=True)
class EvaluationOptions:
  """What to evaluate checkpoints on, and how.

  Attributes:
    dataset, split: None: those of the run.
    data_dir: where the data are; None: TFDS's default.
    batch_size: network inputs at a time; None: the run's.
    crops: a rule of `crops.NUM_CROPS`; None: the run's.
    statistics: of the batch-norm layers: 'moving' averages, those of the
      'population', or 'both'.
    population: see `PopulationOptions`.
    fold: batch norm folded into the convolutions.
    dtype: of the computation; '': the run's.
    real: also the accuracy by the ReaL labels of ImageNet's validation set.
    is_named: whether predictions name their images, which reads these again.
  """

  dataset: str | None = None
  split: str | None = None
  data_dir: str | None = None
  batch_size: int | None = None
  crops: str | None = None
  statistics: str = 'moving'
  population: PopulationOptions = PopulationOptions()
  fold: bool = False
  dtype: str = ''
  real: bool = False
  is_named: bool = False

  def __post_init__(self):
    if self.batch_size is not None:
      config_keys.check_value('eval_batch_size', self.batch_size, 'batch_size')
    if self.crops not in (None, *NUM_CROPS):
      raise UserError(
        f"crops '{self.crops}' are unknown: use one of {', '.join(NUM_CROPS)}"
      )


@dataclasses.dataclass(frozen=True)
class Member:
  """A checkpoint, and what its evaluation needs: all checked, nothing run.

  Attributes:
    path: of the checkpoint.
    config: of its run, changed to the options.
    usual: `dataset`, `crops` and `dtype` of its run.
    evaluator: of the split to evaluate.
    facts: what the result says of it: `dataset`, `split`, `examples`, `data`
      (where they are), `crops`, `num_crops`, `folded` and `dtype`; the same for
      all of an ensemble.
    kinds: of statistics.
    population: with no None in it.
    statistics_pass: None if no population statistics are wanted.
    names: str [N], of the images; '' if they are not wanted.
    real_labels: of the images, if they are wanted.
  """

  path: str
  config: dict
  usual: dict
  evaluator: Evaluator
  facts: dict
  kinds: tuple[str, ...]
  population: PopulationOptions
  statistics_pass: StatisticsPass | None
  names: np.ndarray
  real_labels: list[frozenset[int]] | None


def evaluate_checkpoints(
  paths: Sequence[str], options: EvaluationOptions
) -> tuple[dict, dict[str, Predictions]]:
  """`prepare` and `evaluate_members` in one."""
  return evaluate_members(prepare(paths, options))


def prepare(paths: Sequence[str], options: EvaluationOptions) -> list[Member]:
  """Opens checkpoints and data, and checks whatever needs no result.

  Args:
    paths: of the checkpoints; several are an ensemble.
    options: see `EvaluationOptions`.

  Raises:
    UserError: if checkpoint or data are missing, or do not fit each other.
  """
  opened = {}
  members = [_prepare_member(path, options, opened) for path in paths]
  first = members[0]
  for other in members[1:]:
    if other.kinds != first.kinds:
      raise UserError(
        'networks with and without batch normalization have no statistics in '
        'common: save their predictions, then average those'
      )
    for name in ('dataset', 'split', 'examples', 'crops', 'dtype'):
      ours, theirs = first.facts[name], other.facts[name]
      if ours != theirs:
        raise UserError(
          f'an ensemble has one {name}, and {first.path} has {ours} and '
          f'{other.path} has {theirs}: choose with flags, or save the '
          'predictions of each and average those'
        )
  for remark in accelerators.remarks():
    print(remark)
  return members


def evaluate_members(
  members: Sequence[Member],
) -> tuple[dict, dict[str, Predictions]]:
  """Evaluates checkpoints on all devices; several as an ensemble.

  An ensemble's class probabilities are the mean of its members' (Section 4.2.3).

  Args:
    members: of `prepare`.

  Returns:
    The `facts` of a `Member`, `images_per_second` (of one network), `results`:
    for each kind of statistics what `scores.summary` returns, with what
    `scores.label_set_summary` returns as `real` if wanted, and `members`: for
    each checkpoint its path as `checkpoint`, its `name`, `trained_on`, `step`,
    and its own `results`, with what its statistics were taken from. And the
    predictions of all together, by kind.
  """
  evaluated = [_evaluate_member(member) for member in members]
  records = [one.record for one in evaluated]
  first = members[0]
  predictions = {
    kind: average([one.predictions[kind] for one in evaluated])
    for kind in first.kinds
  }
  results = records[0]['results']
  if len(members) > 1:
    results = {
      kind: scores.summary(mean.log_probabilities, mean.labels)
      for kind, mean in predictions.items()
    }
  if first.real_labels is not None:
    results = {
      kind: result
      | {
        'real': scores.label_set_summary(
          predictions[kind].log_probabilities, first.real_labels
        )
      }
      for kind, result in results.items()
    }
  speeds = [o.images_per_second for o in evaluated if o.images_per_second]
  return {
    **first.facts,
    'images_per_second': min(speeds, default=None),
    'results': results,
    'members': records,
  }, predictions


class _Evaluated(NamedTuple):
  """What came of a member.

  Attributes:
    record: what is reported of it: see `evaluate_members`.
    predictions: for each kind of statistics.
    images_per_second: None if it was not measured.
  """

  record: dict
  predictions: dict[str, Predictions]
  images_per_second: float | None


def _prepare_member(
  path: str, options: EvaluationOptions, opened: dict
) -> Member:
  """One of `prepare`; `opened` holds the splits that others opened."""
  description = checkpoint.read_description(path)
  config = description['config']
  usual = {
    'dataset': config['source']['dataset'],
    'crops': config['data']['eval_crop'],
    'dtype': config['model']['dtype'],
  }
  split = _apply(options, config)
  kinds = _statistics_kinds(config, options.statistics)
  if options.fold and config['architecture'] == 'perceptron':
    raise UserError('--fold is for convolutional networks: leave it out')
  names = config['source']
  key = names['dataset'], split, names['num_holdout'], names['keep_in_memory']
  if key not in opened:
    source = open_split(config, names['dataset'], split, options.data_dir)
    opened[key] = source, *_name_images(source, options)
    for remark in source.remarks():
      print(f'{split}: {remark}')
  source, image_names, real_labels = opened[key]
  evaluator = make_evaluator(
    config, source, mesh.make_evaluation_mesh(jax.devices())
  )
  _check_fit(path, description, source)
  limit_workers(config, source, evaluator.device_mesh)
  population = dataclasses.replace(
    options.population,
    dataset=options.population.dataset or usual['dataset'],
    split=options.population.split or names['train_split'],
  )
  statistics_pass = None
  if POPULATION in kinds:
    statistics_pass = make_statistics_pass(
      config,
      len(description['class_names']),
      description['num_channels'],
      options.data_dir,
      population.dataset,
      population.split,
      population.seed,
    )
  crops = config['data']['eval_crop']
  facts = {
    'dataset': source.name,
    'split': split,
    'examples': len(source),
    'data': source.origin(),
    'crops': crops,
    'num_crops': NUM_CROPS[crops],
    'folded': options.fold,
    'dtype': config['model']['dtype'],
  }
  return Member(
    path,
    config,
    usual,
    evaluator,
    facts,
    kinds,
    population,
    statistics_pass,
    image_names,
    real_labels,
  )


def _name_images(
  source: Source, options: EvaluationOptions
) -> tuple[np.ndarray, list[frozenset[int]] | None]:
  """The `names` and `real_labels` of a `Member`."""
  if not (options.is_named or options.real):
    return np.array([''] * len(source)), None
  names = np.array([source.file_name(i) for i in range(len(source))])
  if not options.real:
    return names, None
  return names, imagenet.real_labels(names, source.class_names)


def _evaluate_member(member: Member) -> _Evaluated:
  evaluator, config = member.evaluator, member.config
  state = checkpoint.restore_weights(
    member.path,
    evaluator.abstract_state,
    mesh.replicated(evaluator.device_mesh),
  )
  results, predictions = {}, {}
  for kind in member.kinds:
    variables, origin = state.evaluation_variables, {}
    if kind == POPULATION:
      variables, origin = _with_population_statistics(variables, member)
    values, labels, speed = _predict(
      evaluator, variables, member.facts['folded']
    )
    predictions[kind] = Predictions(
      values,
      labels,
      member.names,
      np.array(evaluator.source.class_names),
      f'{config["name"]} at step {int(state.step)} ({kind})',
    )
    results[kind] = scores.summary(values, labels) | origin
  record = {
    'checkpoint': os.path.abspath(member.path),
    'name': config['name'],
    'trained_on': member.usual['dataset'],
    'step': int(state.step),
    'results': results,
  }
  return _Evaluated(record, predictions, speed)


def _apply(options: EvaluationOptions, config: dict) -> str:
  """Changes a run's config to the options; returns the split to evaluate."""
  names = config['source']
  if options.dataset not in (None, names['dataset']):
    names.update(dataset=options.dataset, num_holdout=0)
  if options.batch_size is not None:
    config['eval_batch_size'] = options.batch_size
  if options.crops is not None:
    config['data']['eval_crop'] = options.crops
  if options.dtype:
    config['model']['dtype'] = options.dtype
  return options.split or names['eval_split']


def _statistics_kinds(config: dict, statistics: str) -> tuple[str, ...]:
  kinds = {
    'moving': (MOVING,),
    'population': (POPULATION,),
    'both': (MOVING, POPULATION),
  }
  if statistics not in kinds:
    raise UserError(
      f"statistics '{statistics}' are unknown: use one of {', '.join(kinds)}"
    )
  if config['model']['use_batch_norm']:
    return kinds[statistics]
  if statistics == 'population':
    raise UserError(
      'this network has no batch normalization, and so no statistics: leave '
      '--statistics out'
    )
  return (NONE,)


def _with_population_statistics(
  variables: dict, member: Member
) -> tuple[dict, dict]:
  """The variables with new batch_stats, and what these were taken from."""
  statistics, population = member.statistics_pass, member.population
  batch_stats = estimate_population_statistics(
    statistics.step,
    variables,
    statistics.batches(population.num_batches),
    statistics.rng,
  )
  norm_batch_size = member.config['norm_batch_size']
  origin = {
    **{f'statistics_{k}': v for k, v in dataclasses.asdict(population).items()},
    'statistics_batch_size': statistics.batch_size,
    'norm_batch_size': norm_batch_size or statistics.batch_size,
  }
  return {**variables, 'batch_stats': batch_stats}, origin


def _predict(evaluator: Evaluator, variables: dict, fold: bool):
  model = evaluator.model
  if fold:
    model, variables = inception.fold_batch_norm(model, variables)
  return predict(
    evaluator.make_predict_step(model),
    variables,
    evaluator.batches(),
    evaluator.source,
  )


def _check_fit(path: str, description: dict, source: Source) -> None:
  different = data_facts.first_difference(
    description, data_facts.describe_network(source)
  )
  if different:
    raise UserError(
      f'checkpoint {path} is of a network for other data than {source.name} '
      f'({different}): evaluate on the data set that it was trained for, with '
      '--dataset and --data_dir'
    )

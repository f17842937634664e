"""Accuracy of a network on a split, every example counted exactly once."""

import dataclasses
import math
import os
from collections.abc import Callable, Iterable

import jax
import jax.numpy as jnp

from bn_inception import checkpoint, inception, mesh, metrics, run_directory
from bn_inception.errors import UserError
from bn_inception.experiment import (
  Evaluator,
  make_evaluator,
  make_statistics_pass,
)

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
    if self.num_batches < 1:
      raise UserError(
        f'population statistics need at least 1 batch, got {self.num_batches}'
      )


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
  sums = [eval_step(variables, batch) for batch in batches]
  total = metrics.add_sums(jax.device_get(sums))
  counted = int(total['count'])
  if counted != num_examples:
    raise RuntimeError(
      f'evaluated {counted} examples of a split of {num_examples}'
    )
  return {**metrics.averages(total), 'examples': counted}


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
  running_sum, count = None, 0
  for batch in batches:
    new = statistics_step(variables, batch, jax.random.fold_in(rng, count))
    if running_sum is not None:
      new = jax.tree.map(jnp.add, running_sum, new)
    running_sum, count = new, count + 1
  # `num_updates`, the one integer, has no meaning here and stays a sum.
  return jax.tree.map(
    lambda s: s / count if jnp.issubdtype(s.dtype, jnp.floating) else s,
    running_sum,
  )


def find_checkpoint(workdir: str, step: int | None) -> str:
  """The path of a run's checkpoint; step None: the newest.

  Raises:
    UserError: if the folder does not exist or has no such checkpoint.
  """
  if not os.path.isdir(workdir):
    raise UserError(
      f'workdir {workdir} does not exist: train first, or give --workdir'
    )
  return checkpoint.find(
    os.path.join(workdir, run_directory.CHECKPOINTS_FOLDER), step
  )


def evaluate_checkpoint(
  path: str,
  dataset: str | None = None,
  split: str | None = None,
  batch_size: int | None = None,
  data_dir: str | None = None,
  statistics: str = 'moving',
  population: PopulationOptions | None = None,
  fold: bool = False,
) -> dict:
  """Evaluates one checkpoint on all devices.

  Args:
    path: of the checkpoint.
    dataset, split: default to those of the run.
    batch_size: examples at a time; None: the run's.
    data_dir: where TFDS data sets are; None: TFDS's default.
    statistics: of the batch-norm layers: 'moving' averages, those of the
      'population', or 'both'.
    population: see `PopulationOptions`.
    fold: evaluate the network with its batch norm folded into convolutions.

  Returns:
    `checkpoint`, `name`, `trained_on`, `step`, `dataset`, `split`, `examples`,
    `folded`, and `results`: for each kind of statistics `top1`, `top5`
    (percent), `loss` (None if it is not finite), and what the statistics were
    taken from.

  Raises:
    UserError: if checkpoint or data are missing, or do not fit each other.
  """
  description = checkpoint.read_description(path)
  config = description['config']
  names = config['source']
  trained_on = names['dataset']
  population = population or PopulationOptions()
  population = dataclasses.replace(
    population,
    dataset=population.dataset or trained_on,
    split=population.split or names['train_split'],
  )
  split = split or names['eval_split']
  if dataset not in (None, trained_on):
    names.update(dataset=dataset, num_holdout=0)
  if batch_size is not None:
    if batch_size < 1:
      raise UserError(f'batch_size must be positive, got {batch_size}')
    config['eval_batch_size'] = batch_size
  evaluator = make_evaluator(
    config, data_dir, mesh.make_evaluation_mesh(jax.devices()), split
  )
  _check_fit(path, description, evaluator)
  state = checkpoint.restore(
    path, evaluator.abstract_state, mesh.replicated(evaluator.device_mesh)
  )
  results = {}
  for name in _statistics_kinds(config, statistics):
    variables, origin = state.evaluation_variables, {}
    if name == POPULATION:
      variables, origin = _with_population_statistics(
        variables, config, data_dir, population
      )
    results[name] = _evaluate_variables(evaluator, variables, fold) | origin
  return {
    'checkpoint': os.path.abspath(path),
    'name': config['name'],
    'trained_on': trained_on,
    'step': int(state.step),
    'dataset': evaluator.source.name,
    'split': split,
    'examples': len(evaluator.source),
    'folded': fold,
    'results': results,
  }


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
  variables: dict,
  config: dict,
  data_dir: str | None,
  population: PopulationOptions,
) -> tuple[dict, dict]:
  """The variables with new batch_stats, and what these were taken from."""
  statistics = make_statistics_pass(
    config, data_dir, population.dataset, population.split, population.seed
  )
  batch_stats = estimate_population_statistics(
    statistics.step,
    variables,
    statistics.batches(population.num_batches),
    statistics.rng,
  )
  origin = {
    **{f'statistics_{k}': v for k, v in dataclasses.asdict(population).items()},
    'statistics_batch_size': statistics.batch_size,
    'norm_batch_size': config['norm_batch_size'] or statistics.batch_size,
  }
  return {**variables, 'batch_stats': batch_stats}, origin


def _evaluate_variables(
  evaluator: Evaluator, variables: dict, fold: bool
) -> dict:
  model = evaluator.model
  if fold:
    model, variables = inception.fold_batch_norm(model, variables)
  values = evaluate(
    evaluator.make_eval_step(model),
    variables,
    evaluator.batches(),
    len(evaluator.source),
  )
  loss = values['loss']
  return {**values, 'loss': loss if math.isfinite(loss) else None}


def _check_fit(path: str, description: dict, evaluator: Evaluator) -> None:
  source = evaluator.source
  for what, trained, given in (
    ('classes', description['num_classes'], len(source.class_names)),
    ('colour channels', description['num_channels'], source.num_channels),
  ):
    if trained != given:
      raise UserError(
        f'checkpoint {path} is for {trained} {what} and {source.name} has '
        f'{given}: evaluate on the data set that the network was trained for, '
        'with --dataset'
      )


def default_output(result: dict, folder: str) -> str:
  """evaluation_SPLIT_STEP.json in a folder, with what is not usual in between."""
  special = []
  if POPULATION in result['results']:
    origin = result['results'][POPULATION]
    special += [
      POPULATION, origin['statistics_dataset'], origin['statistics_split'],
    ]  # fmt: skip
  if result['dataset'] != result['trained_on']:
    special.append(result['dataset'])
  if result['folded']:
    special.append('folded')
  parts = ['evaluation', *special, result['split'], str(result['step'])]
  return os.path.join(folder, '_'.join(parts).replace('/', '-') + '.json')


def print_table(result: dict) -> None:
  """Prints what `evaluate_checkpoint` returns, a column for each statistics."""
  results = result['results'].values()
  folded = ', batch norm folded' if result['folded'] else ''
  rows = {
    'run': [f'{result["name"]}, step {result["step"]}{folded}'],
    'split': [f'{result["dataset"]} {result["split"]}'],
    'examples': [f'{result["examples"]:,}'],
    'statistics': list(result['results']),
    'batches': [str(r.get('statistics_num_batches', '-')) for r in results],
    'top-1': [f'{r["top1"]:.2f} %' for r in results],
    'top-5': [f'{r["top5"]:.2f} %' for r in results],
    'loss': [
      'not finite' if r['loss'] is None else f'{r["loss"]:.4f}' for r in results
    ],
  }
  for name, values in rows.items():
    columns = ''.join(f'{value:17}' for value in values)
    print(f'{name:12}{columns}'.rstrip())


def write_result(result: dict, path: str) -> None:
  """Writes what `evaluate_checkpoint` returns as JSON, and says where.

  Raises:
    UserError: if the file cannot be written.
  """
  try:
    run_directory.write_json(path, result)
  except OSError as error:
    raise UserError(
      f'{path} cannot be written ({error.strerror}): give another --output'
    ) from error
  print(f'written to {path}')

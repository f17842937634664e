"""Accuracy of a network on a split, every example counted exactly once."""

import os
from collections.abc import Callable, Iterable

import jax

from bn_inception import checkpoint, mesh, metrics, run_directory
from bn_inception.errors import UserError
from bn_inception.experiment import Evaluator, make_evaluator

MOVING_AVERAGES = 'moving averages'


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
    `loss`, `top1` and `top5` (percent) and `examples`.

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
  """Which statistics the batch-norm layers of an evaluated network use."""
  return MOVING_AVERAGES if config['model']['use_batch_norm'] else 'none'


def find_checkpoint(workdir: str, step: int | None) -> str:
  """The path of a run's checkpoint; step None: the newest.

  Raises:
    UserError: if the folder does not exist or has no such checkpoint.
  """
  if not os.path.isdir(workdir):
    raise UserError(
      f'workdir {workdir} does not exist: train first, or give --workdir'
    )
  return checkpoint.find(os.path.join(workdir, 'checkpoints'), step)


def evaluate_checkpoint(
  path: str,
  dataset: str | None = None,
  split: str | None = None,
  batch_size: int | None = None,
  data_dir: str | None = None,
) -> dict:
  """Evaluates one checkpoint on all devices.

  Args:
    path: of the checkpoint.
    dataset, split: default to those of the run.
    batch_size: examples at a time; None: the run's.
    data_dir: where TFDS data sets are; None: TFDS's default.

  Returns:
    `checkpoint`, `name`, `step`, `dataset`, `split`, `examples`, `statistics`,
    `top1`, `top5` (percent) and `loss`.

  Raises:
    UserError: if checkpoint or data are missing, or do not fit each other.
  """
  description = checkpoint.read_description(path)
  config = description['config']
  if dataset is not None:
    config['source']['dataset'] = dataset
  if batch_size is not None:
    if batch_size < 1:
      raise UserError(f'batch_size must be positive, got {batch_size}')
    config['eval_batch_size'] = batch_size
  split = split or config['source']['eval_split']
  evaluator = make_evaluator(
    config, data_dir, mesh.make_evaluation_mesh(jax.devices()), split
  )
  _check_classes(path, description['num_classes'], evaluator)
  state = checkpoint.restore(
    path, evaluator.abstract_state, mesh.replicated(evaluator.device_mesh)
  )
  values = evaluate(
    evaluator.eval_step,
    state.evaluation_variables,
    evaluator.batches(),
    len(evaluator.source),
  )
  return {
    'checkpoint': os.path.abspath(path),
    'name': config['name'],
    'step': int(state.step),
    'dataset': evaluator.source.name,
    'split': split,
    'statistics': statistics_name(config),
    **values,
  }


def _check_classes(path: str, num_classes: int, evaluator: Evaluator) -> None:
  source = evaluator.source
  if num_classes != len(source.class_names):
    raise UserError(
      f'checkpoint {path} tells {num_classes} classes apart and {source.name} '
      f'has {len(source.class_names)}: evaluate on the data set that the network '
      'was trained for, with --dataset'
    )


def print_table(result: dict) -> None:
  """Prints what `evaluate_checkpoint` returns."""
  rows = {
    'run': f'{result["name"]}, step {result["step"]}',
    'split': f'{result["dataset"]} {result["split"]}',
    'examples': f'{result["examples"]:,}',
    'statistics': result['statistics'],
    'top-1': f'{result["top1"]:.2f} %',
    'top-5': f'{result["top5"]:.2f} %',
    'loss': f'{result["loss"]:.4f}',
  }
  for name, value in rows.items():
    print(f'{name:11} {value}')


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

"""One process of test_distributed.py: steps and evaluation in a given layout.

  layout_steps.py FOLDER NUM_PROCESSES PROCESS_ID DEVICES_EACH PORT

In one process on one device it leaves in FOLDER the states of a run of twenty
steps; in other layouts it takes each of these steps from the same state, and all
of them in a row, and leaves how far the results are from those.
"""

import functools
import json
import sys

import jax
import numpy as np


def main(folder, num_processes, process_id, num_devices, port):
  jax.config.update('jax_platforms', 'cpu')
  jax.config.update('jax_num_cpu_devices', num_devices)
  from bn_inception import inception
  from bn_inception.machine import distributed

  distributed.initialize(f'127.0.0.1:{port}', num_processes, process_id, {})
  # Two modules of the ten: the same code, compiled sooner.
  inception.Inception = functools.partial(
    inception.Inception, rows=(inception.FIGURE_5[0], inception.FIGURE_5[2])
  )
  layout = f'{num_processes}x{num_devices}'
  result = take_steps(folder, layout)
  if distributed.is_first():
    with open(f'{folder}/{layout}.json', 'w') as file:
      json.dump(result, file)


def make_config() -> dict:
  from configs import compose

  config = compose.preset('bn_x5', 'digits').to_dict()
  config['batch_size'] = config['norm_batch_size'] = 16
  config['training']['num_epochs'] = 20 * 16 / 1442
  config['optimizer']['learning_rate'] = 1e-4
  config['model']['dropout_rate'] = 0.2
  return config


def take_steps(folder: str, layout: str) -> dict:
  from bn_inception.evaluation.passes import evaluate
  from bn_inception.experiment import make_experiment
  from bn_inception.runs import checkpoint

  experiment = make_experiment(make_config(), None)
  batches = list(experiment.batches(0))
  assert len(batches) == experiment.num_steps == 20
  state = experiment.create_state()
  is_reference, apart = layout == '1x1', []
  save_arrays = functools.partial(save, folder)
  if is_reference:
    save_arrays(0, state)
  for step, batch in enumerate(batches):
    if not is_reference:
      own, _ = experiment.train_step(
        load(folder, step, state), batch, experiment.rng
      )
      apart.append(distances(folder, step + 1, own))
    state, _ = experiment.train_step(state, batch, experiment.rng)
    if is_reference:
      save_arrays(step + 1, state)
  setup, eval_source = experiment.setup, experiment.eval_source
  last = load(folder, 20, state)
  values = evaluate(
    setup.eval_step,
    last.evaluation_variables,
    setup.batches.evaluation(eval_source),
    len(eval_source),
  )
  with checkpoint.open_checkpoints(f'{folder}/{layout}', 1, 0) as checkpoints:
    checkpoint.save(checkpoints, last, {'layout': layout}, top1=None)
  return {
    'devices': jax.device_count(),
    'each': apart,
    'all': distances(folder, 20, state),
    'evaluation': values,
  }


def save(folder: str, step: int, state) -> None:
  leaves = jax.tree.leaves(jax.device_get(state))
  np.savez(f'{folder}/{step}.npz', *leaves)


def saved_leaves(folder: str, step: int) -> list[np.ndarray]:
  with np.load(f'{folder}/{step}.npz') as file:
    return [file[f'arr_{i}'] for i in range(len(file.files))]


def load(folder: str, step: int, like):
  """A state of the reference, placed like another one."""
  leaves, structure = jax.tree.flatten(like)
  placed = [
    jax.make_array_from_callback(x.shape, leaf.sharding, x.__getitem__)
    for x, leaf in zip(saved_leaves(folder, step), leaves, strict=True)
  ]
  return jax.tree.unflatten(structure, placed)


def distances(folder: str, step: int, state) -> dict[str, float]:
  """The largest differences of arrays, relative to their largest values.

  Returns:
    'state': of all arrays; 'statistics': of those of batch normalisation.
  """
  largest = {'state': 0.0, 'statistics': 0.0}
  paths_and_leaves, _ = jax.tree_util.tree_flatten_with_path(
    jax.device_get(state)
  )
  for expected, (path, own) in zip(
    saved_leaves(folder, step), paths_and_leaves, strict=True
  ):
    scale = max(np.abs(expected).max(), 1e-6)
    difference = float(np.abs(own - expected).max() / scale)
    largest['state'] = max(largest['state'], difference)
    if 'batch_stats' in jax.tree_util.keystr(path):
      largest['statistics'] = max(largest['statistics'], difference)
  return largest


if __name__ == '__main__':
  main(sys.argv[1], *map(int, sys.argv[2:]))

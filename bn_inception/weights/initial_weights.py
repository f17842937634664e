"""The first weights of a run, from the checkpoint of another one."""

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict

from bn_inception import config_keys, mesh
from bn_inception.errors import UserError
from bn_inception.experiment import make_abstract_state
from bn_inception.runs import checkpoint
from bn_inception.runs.run_directory import flatten
from bn_inception.train_state import TrainState

_LAST_LAYER = 'logits/'
_COUNTER = 'num_updates'


def start_from_checkpoint(
  state: TrainState,
  path: str,
  config: dict,
  class_names: tuple[str, ...],
  num_channels: int,
  sharding: jax.sharding.Sharding,
) -> tuple[TrainState, str]:
  """A run's initial state with the weights and statistics of a checkpoint.

  The last layer stays as it is in `state` if the classes are others. Of a
  checkpoint with averaged parameters these are taken. The moving averages start
  from those of the checkpoint, but warm up again whatever its count of updates,
  since they are to be of this run.

  Args:
    state: before the first update.
    path: of the checkpoint.
    config: of the run, as JSON gives it back: lists, not tuples.
    class_names, num_channels: of the run's data.
    sharding: of every array.

  Returns:
    The state, and a line that says what was taken.

  Raises:
    UserError: if there is no such checkpoint, if it is of another network, or
      if its numbers are no weights: see `values.check_values`.
  """
  _check_same_network(path, config, num_channels)
  saved, description = _read(path, sharding)
  names = tuple(description['class_names'])
  is_same_task = names == class_names
  variables = saved.evaluation_variables
  params = _take(path, state.params, variables['params'], is_same_task)
  batch_stats = _take(path, state.batch_stats, variables['batch_stats'], True)
  batch_stats = jax.tree_util.tree_map_with_path(
    lambda keys, x: jnp.zeros_like(x) if keys[-1].key == _COUNTER else x,
    batch_stats,
  )
  started = state.replace(
    params=params,
    batch_stats=batch_stats,
    average_params=jax.tree.map(jnp.copy, params)
    if state.average_params
    else {},
  )
  started = jax.jit(lambda state: state, out_shardings=sharding)(started)
  what = f'step {int(saved.step)} of {description["config"]["name"]}'
  if not is_same_task:
    what += f'; a new last layer: {len(class_names)} classes for {len(names)}'
  return started, f'{path} ({what})'


def check_first_weights(path: str, config: dict, num_channels: int) -> None:
  """Refuses a checkpoint that `start_from_checkpoint` would, and reads it all.

  Args:
    path, config, num_channels: see `start_from_checkpoint`.

  Raises:
    UserError: as `start_from_checkpoint`.
  """
  _check_same_network(path, config, num_channels)
  _read(path, mesh.replicated(mesh.make_evaluation_mesh(jax.devices())))


def _read(
  path: str, sharding: jax.sharding.Sharding
) -> tuple[TrainState, dict]:
  """The state of a checkpoint, with weights that are numbers; its description."""
  description = checkpoint.read_description(path)
  saved = checkpoint.restore_weights(
    path,
    make_abstract_state(
      description['config'],
      len(description['class_names']),
      description['num_channels'],
    ),
    sharding,
  )
  return saved, description


def _check_same_network(path: str, config: dict, num_channels: int) -> None:
  """Compares what decides which function of the image the weights are of.

  Args:
    path: of the checkpoint.
    config: of the run.
    num_channels: of the run's images.

  Raises:
    UserError: if there is no such checkpoint, or it is of another network.
  """

  saved = checkpoint.read_description(path)
  theirs, ours = (
    config_keys.function(flatten(c)) for c in (saved['config'], config)
  )
  theirs['colour channels'] = saved['num_channels']
  ours['colour channels'] = num_channels
  different = [
    f'{key} is {theirs.get(key, "absent")} and not {ours.get(key, "absent")}'
    for key in sorted(theirs.keys() | ours.keys())
    if theirs.get(key) != ours.get(key)
  ]
  if different:
    raise UserError(
      f'{path} is of another network than the config ({"; ".join(different)}): '
      'give another --init_from, or --config=configs/of_run.py:WORKDIR, the '
      'config of its run'
    )


def _take(path: str, own: dict, saved: dict, with_last_layer: bool) -> dict:
  """The saved arrays, which must have the shapes of the run's own."""
  own, saved = (flatten_dict(tree, sep='/') for tree in (own, saved))
  taken, wrong = {}, []
  for name, value in own.items():
    if name.startswith(_LAST_LAYER) and not with_last_layer:
      taken[name] = value
      continue
    taken[name] = saved.get(name)
    shape = None if name not in saved else saved[name].shape
    if shape != value.shape:
      wrong.append(f'{name} is {shape or "absent"} and not {value.shape}')
  if wrong:
    more = f' and {len(wrong) - 3} more' if len(wrong) > 3 else ''
    raise UserError(
      f'{path} has arrays of other shapes than the run ({"; ".join(wrong[:3])}'
      f'{more}): give another --init_from'
    )
  return unflatten_dict(taken, sep='/')

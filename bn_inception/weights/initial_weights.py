"""Initial weights of a run from the checkpoint of another run."""

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict

from bn_inception import config_keys, mesh
from bn_inception.errors import UserError
from bn_inception.experiment import setup_of_checkpoint
from bn_inception.runs import checkpoint
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
  """Replaces a run's initial weights and statistics with those of a checkpoint.

  If the classes differ, `state` keeps its last layer. Averaged parameters are
  taken if the checkpoint has them. The moving averages start from the
  checkpoint's with a count of 0, so they soon follow this run.

  Args:
    state: before the first update.
    path: of the checkpoint.
    config: of the run, as read from JSON: with lists, not tuples.
    class_names, num_channels: of the run's data.
    sharding: of every array.

  Returns:
    The state, and a line that describes the checkpoint.

  Raises:
    UserError: if the checkpoint does not exist or has a different network; as
      `values.check_values`.
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
    what += f'; new last layer: {len(names)} -> {len(class_names)} classes'
  return started, f'{path} ({what})'


def check_initial_weights(path: str, config: dict, num_channels: int) -> None:
  """Raises what `start_from_checkpoint` would, before anything is written."""
  _check_same_network(path, config, num_channels)
  _read(path, mesh.replicated(mesh.make_evaluation_mesh(jax.devices())))


def _read(
  path: str, sharding: jax.sharding.Sharding
) -> tuple[TrainState, dict]:
  """The state of a checkpoint, its values checked, and its description."""
  description = checkpoint.read_description(path)
  abstract_state = setup_of_checkpoint(description).abstract_state()
  saved = checkpoint.restore_weights(path, abstract_state, sharding)
  return saved, description


def _check_same_network(path: str, config: dict, num_channels: int) -> None:
  """Raises a UserError if the checkpoint's network is a different function."""
  saved = checkpoint.read_description(path)
  (theirs, their_texts), (ours, our_texts) = (
    _function_and_texts(c, channels)
    for c, channels in (
      (saved['config'], saved['num_channels']),
      (config, num_channels),
    )
  )
  different = [
    f'{key} is {their_texts.get(key, "absent")}, not '
    f'{our_texts.get(key, "absent")}'
    for key in sorted(theirs.keys() | ours.keys())
    if theirs.get(key) != ours.get(key)
  ]
  if different:
    raise UserError(
      f'{path} is not the network of the config ({"; ".join(different)}): give '
      'another --init_from, or --config=configs/from_run.py:WORKDIR, the config of '
      'its run'
    )


def _function_and_texts(
  config: dict, num_channels: int
) -> tuple[dict, dict[str, str]]:
  """What the network computes, see `config_keys.network_identity`, and all as text."""
  flat = flatten_dict(config, sep='.')
  channels = {'colour channels': num_channels}
  texts = config_keys.add_missing(flat) | channels
  return (
    config_keys.network_identity(flat) | channels,
    {key: str(value) or "''" for key, value in texts.items()},
  )


def _take(path: str, own: dict, saved: dict, with_last_layer: bool) -> dict:
  """The saved arrays; a UserError unless they have the shapes of the run's."""
  own, saved = (flatten_dict(tree, sep='/') for tree in (own, saved))
  taken, wrong = {}, []
  for name, value in own.items():
    if name.startswith(_LAST_LAYER) and not with_last_layer:
      taken[name] = value
      continue
    taken[name] = saved.get(name)
    shape = None if name not in saved else saved[name].shape
    if shape != value.shape:
      wrong.append(f'{name} is {shape or "absent"}, not {value.shape}')
  if wrong:
    more = f' and {len(wrong) - 3} more' if len(wrong) > 3 else ''
    raise UserError(
      f'{path} does not have the shapes of the run ({"; ".join(wrong[:3])}'
      f'{more}): give another --init_from'
    )
  return unflatten_dict(taken, sep='/')

"""Checkpoints: the train state and the config that made it, through orbax.

A checkpoint is a folder named after its step; it restores on any number of
devices and can be evaluated without its run directory.
"""

import contextlib
import io
import logging
import os
import re
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

from bn_inception.errors import UserError
from bn_inception.train_state import TrainState

_STATE, _DESCRIPTION = 'state', 'description'


def open_checkpoints(
  directory: str, keep_last: int, keep_best: int
) -> ocp.CheckpointManager:
  """The checkpoints of a run, for asynchronous writing.

  Args:
    directory: made if absent.
    keep_last: how many of the newest to keep.
    keep_best: how many of those with the best top-1 accuracy to keep besides.
  """
  policies = checkpoint_managers
  preservation = policies.AnyPreservationPolicy(
    [
      policies.LatestN(keep_last),
      policies.BestN(
        get_metric_fn=lambda metrics: metrics['top1'],
        n=keep_best,
        keep_checkpoints_without_metrics=False,
      ),
    ]
  )
  return ocp.CheckpointManager(
    os.path.abspath(directory),
    options=ocp.CheckpointManagerOptions(
      preservation_policy=preservation,
      # Without it orbax does not write metrics, and a resumed run forgets them.
      best_fn=lambda metrics: metrics['top1'],
    ),
  )


def save(
  checkpoints: ocp.CheckpointManager,
  state: TrainState,
  description: dict,
  top1: float | None,
) -> None:
  """Writes `state` under its step, in the background.

  Args:
    checkpoints: see `open_checkpoints`.
    state: finite; the caller checks.
    description: JSON: what evaluation needs to know, such as the config.
    top1: accuracy at this step in percent, if it was evaluated.
  """
  # Orbax keeps views of host memory, which the next step's donation reuses.
  copy = jax.tree.map(jnp.copy, state)
  checkpoints.save(
    int(state.step),
    args=ocp.args.Composite(
      **{
        _STATE: ocp.args.StandardSave(copy),
        _DESCRIPTION: ocp.args.JsonSave(description),
      }
    ),
    # Orbax wants a number: one that is never the best.
    metrics={'top1': -1.0 if top1 is None else top1},
    force=True,
  )


def list_steps(directory: str) -> list[int]:
  """The steps of the finished checkpoints in a folder, which may be absent."""
  if not os.path.isdir(directory):
    return []
  return sorted(int(n) for n in os.listdir(directory) if n.isdecimal())


def find(directory: str, step: int | None = None) -> str:
  """The path of a checkpoint in a run's checkpoint folder; None: the newest.

  Raises:
    UserError: if there is none, or not this step; names those that there are.
  """
  steps = list_steps(directory)
  if not steps:
    raise UserError(
      f'no checkpoint in {directory}: train first, or give --checkpoint'
    )
  if step is not None and step not in steps:
    raise UserError(
      f'no checkpoint of step {step} in {directory}: there are '
      f'{", ".join(map(str, steps))}'
    )
  return os.path.join(directory, str(steps[-1] if step is None else step))


def read_description(path: str) -> dict:
  """The description saved with a checkpoint.

  Raises:
    UserError: if the folder is no checkpoint, or an unreadable one.
  """
  return _restore(path, {_DESCRIPTION: ocp.args.JsonRestore()})[_DESCRIPTION]


def restore(
  path: str, abstract_state: TrainState, sharding: jax.sharding.Sharding
) -> TrainState:
  """The state of a checkpoint, placed by `sharding` on the present devices.

  Args:
    path: of the checkpoint.
    abstract_state: shapes and dtypes, as of `jax.eval_shape`.
    sharding: of every array.

  Raises:
    UserError: if the folder is no checkpoint, an unreadable one, or one of
      another network.
  """
  target = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
    abstract_state,
  )
  return _restore(path, {_STATE: ocp.args.StandardRestore(target)})[_STATE]


def _restore(path: str, items: dict[str, Any]):
  path = os.path.abspath(path)
  if not os.path.isdir(path):
    raise UserError(f'checkpoint {path} does not exist')
  if not os.path.isdir(os.path.join(path, next(iter(items)))):
    raise UserError(
      f'{path} is not a checkpoint: give a folder such as '
      'runs/digits/checkpoints/450'
    )
  handler = ocp.Checkpointer(ocp.CompositeCheckpointHandler())
  said = io.StringIO()
  try:
    with contextlib.redirect_stderr(said):
      restored = _drained(handler.restore, path, ocp.args.Composite(**items))
  except _UNREADABLE as error:
    reason = re.sub(r'\s+', ' ', str(error))[:300]
    raise UserError(
      f'checkpoint {path} cannot be read ({type(error).__name__}: {reason}): '
      'evaluate another one with --step or --checkpoint; to train on, move it '
      'away, and the run resumes from the one before'
    ) from error
  finally:
    handler.close()
  sys.stderr.write(said.getvalue())
  return restored


# Orbax and TensorStore have no common type for damaged files.
_UNREADABLE = (ValueError, KeyError, TypeError, OSError)


def _drained(restore: Callable, path: str, args: ocp.args.Composite):
  """restore(path, args=args), whose other arrays are silent if one fails.

  The first array that fails ends orbax's event loop. TensorStore's threads go
  on reading the others and each prints that the loop is closed; asyncio logs
  the errors that nobody waits for any more, whenever it collects the garbage.
  """
  log = logging.getLogger('asyncio')
  log.addFilter(_is_retrieved)
  try:
    restored = restore(path, args=args)
  except _UNREADABLE:
    time.sleep(1.0)
    raise
  log.removeFilter(_is_retrieved)
  return restored


def _is_retrieved(record: logging.LogRecord) -> bool:
  return 'exception was never retrieved' not in record.getMessage()

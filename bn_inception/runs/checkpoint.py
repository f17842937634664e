"""Checkpoints: the train state and the config that made it, through Orbax.

A checkpoint restores on any number of devices and can be evaluated without its
run directory. It is read back and sealed after it has been written (see
`integrity`), and compared with its seal before it is used.
"""

import concurrent.futures
import contextlib
import functools
import glob
import io
import os
import re
import shutil
import sys
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from flax.traverse_util import flatten_dict
from orbax.checkpoint import checkpoint_managers

from bn_inception.errors import RERUN, UserError, one_line
from bn_inception.runs import integrity, quiet
from bn_inception.runs.checkpoint_folder import list_steps, set_aside
from bn_inception.runs.file_system import check_path
from bn_inception.runs.values import check_values
from bn_inception.train_state import TrainState

_STATE, _DESCRIPTION = 'state', 'description'

# Orbax and TensorStore have no common type for damaged files, nor for files that
# cannot be written.
_UNREADABLE = (ValueError, KeyError, TypeError, OSError)
_UNWRITABLE = (ValueError, KeyError, OSError)


# ---- writing ----


def open_checkpoints(
  directory: str, keep_last: int, keep_best: int
) -> 'Checkpoints':
  """The checkpoints of a run, for asynchronous writing.

  Args:
    directory: folder, made if absent.
    keep_last: number of the newest to keep.
    keep_best: number of those with the best top-1 accuracy to keep in addition.

  Raises:
    UserError: if the folder cannot be written, or holds checkpoints that cannot
      be read.
  """
  policies = checkpoint_managers
  preservation = _KeepUntilReadBack(
    policies.AnyPreservationPolicy(
      [
        policies.LatestN(keep_last),
        policies.BestN(
          get_metric_fn=lambda metrics: metrics['top1'],
          n=keep_best,
          keep_checkpoints_without_metrics=False,
        ),
      ]
    )
  )
  options = ocp.CheckpointManagerOptions(
    preservation_policy=preservation,
    # Without it Orbax does not store metrics, and a resumed run loses them.
    best_fn=lambda metrics: metrics['top1'],
    # Left by a run that was killed while saving.
    cleanup_tmp_directories=True,
    # Made in the background, a folder that cannot be made blocks Orbax's other
    # threads, which wait for it, and with them the end of the process.
    async_options=ocp.AsyncOptions(create_directories_asynchronously=False),
  )
  check_path(directory)
  path = _LiteralPath(os.path.abspath(directory))
  try:
    manager = ocp.CheckpointManager(path, options=options)
  except _UNREADABLE as error:
    raise UserError(
      f'the checkpoints in {directory} cannot be opened ({_reason(error)}): fix '
      'the folder, and move away those that eval.py --step cannot read'
    ) from error
  return Checkpoints(directory, manager, preservation)


class _LiteralPath(type(epath.Path())):
  """A local path without special characters.

  Orbax lists what it has written with `glob`. Etils's takes brackets in the
  folder's own name for a pattern, and /gs, /s3, /az and /hf for buckets.
  """

  _uri_scheme = None

  def glob(self, pattern: str) -> Iterator['_LiteralPath']:
    found = glob.iglob(os.path.join(glob.escape(os.fspath(self)), pattern))
    return map(type(self), found)


class _KeepUntilReadBack(checkpoint_managers.PreservationPolicy):
  """Makes Orbax keep every checkpoint, and notes which ones `policy` drops.

  Orbax would remove old checkpoints as soon as the newest is written; ours go
  only after the newest has been read back.

  Attributes:
    superfluous: the steps that `policy` dropped at the last save.
  """

  def __init__(self, policy: checkpoint_managers.PreservationPolicy):
    self._policy, self.superfluous = policy, []

  def should_preserve(self, checkpoints, *, context):
    is_kept = self._policy.should_preserve(checkpoints, context=context)
    pairs = zip(checkpoints, is_kept, strict=True)
    self.superfluous = [info.step for info, kept in pairs if not kept]
    return [True] * len(is_kept)


# After one failure Orbax raises up to this many errors when it is closed.
_MOST_ERRORS = 10


class Checkpoints:
  """Writes checkpoints in the background; a context manager.

  On exit the last checkpoint has been written. An error in the background is
  raised once, by the next call of any method.

  Args:
    directory: folder of the checkpoints.
    manager: Orbax's manager of this directory.
    preservation: the manager's policy.
  """

  def __init__(
    self,
    directory: str,
    manager: ocp.CheckpointManager,
    preservation: _KeepUntilReadBack,
  ):
    self._directory, self._manager = directory, manager
    self._preservation = preservation
    self._thread = concurrent.futures.ThreadPoolExecutor(1, 'seal')
    self._saving: concurrent.futures.Future | None = None
    self._step = None  # of the current save, or the last one
    self._has_failed = False
    quiet.silence_repeats()

  def save(self, step: int, args: ocp.args.Composite, top1: float) -> None:
    """Starts to write a checkpoint, once the previous one is finished.

    Raises:
      UserError: if the previous one, or this one, cannot be written.
    """
    self.wait()
    if jax.process_index() == 0 and not os.path.isdir(self._directory):
      # Orbax would make it again, and the run continue without its other files.
      raise UserError(_unwritten(step, self._directory, 'it was removed'))
    self._step = step
    with self._explained():
      self._manager.save(step, args=args, metrics={'top1': top1}, force=True)
    abstract_state = jax.eval_shape(lambda: args[_STATE].item)
    self._saving = self._thread.submit(self._finish, step, abstract_state)

  def check(self) -> None:
    """Raises the error of a failed save; does not wait."""
    if self._saving is not None and self._saving.done():
      self.wait()

  def wait(self) -> None:
    """Waits until the last save is finished and sealed.

    Raises:
      UserError: if it could not be written.
    """
    saving, self._saving = self._saving, None
    if saving is not None:
      with self._explained():
        saving.result()

  def close(self) -> None:
    """`wait`; nothing can be saved afterwards."""
    try:
      self.wait()
    finally:
      self._close_manager()
      self._thread.shutdown()

  def _close_manager(self) -> None:
    # One failure leaves several errors: from every part that wrote, and for
    # every thread that asks. `wait` has raised the first; drop the others.
    for _ in range(_MOST_ERRORS if self._has_failed else 0):
      with contextlib.suppress(*_UNWRITABLE):
        self._manager.close()
        return
    self._manager.close()

  def _finish(self, step: int, abstract_state: TrainState) -> None:
    # Not in Orbax's callback for the end of a save: it comes before the last two
    # files are written and the folder gets its name.
    self._manager.wait_until_finished()
    if jax.process_index() == 0:
      path = os.path.join(self._directory, str(step))
      _check_restorable(path, abstract_state)
      integrity.seal(path)
      self._remove_superfluous()

  def _remove_superfluous(self) -> None:
    for step in self._preservation.superfluous:
      path = os.path.join(self._directory, str(step))
      try:
        if os.path.isdir(path):  # Orbax still lists removed steps
          shutil.rmtree(path)
      except OSError as error:
        raise UserError(
          f'the older checkpoint {path} cannot be removed ({error.strerror}): '
          f'{RERUN}'
        ) from error

  @contextlib.contextmanager
  def _explained(self) -> Iterator[None]:
    try:
      yield
    except _UNWRITABLE as error:
      self._has_failed = True
      raise UserError(
        _unwritten(self._step, self._directory, _reason(error))
      ) from error

  def __enter__(self):
    return self

  def __exit__(self, exception_type, exception, traceback):
    try:
      self.close()
    except UserError as error:
      if exception is None:
        raise
      if isinstance(exception, UserError):
        # One line for both, in the order in which they happened.
        raise UserError(f'{exception}; and {error}') from exception
      print(f'error: {error}', file=sys.stderr)


def _unwritten(step: int, directory: str, reason: str) -> str:
  older = [old for old in list_steps(directory) if old != step]
  rest = (
    f'the older checkpoints ({", ".join(map(str, older))}) are intact'
    if older
    else 'there is no older one'
  )
  return (
    f'the checkpoint of step {step} could not be written to {directory} '
    f'({reason}); {rest}: {RERUN}'
  )


def _reason(error: BaseException) -> str:
  """The operating system's reason if there is one, else the error's message."""
  number = getattr(error, 'errno', None)
  if number is None:
    found = re.search(r"os_error_code='(\d+)'", str(error))  # TensorStore
    number = found and int(found[1])
  if number is not None:
    return os.strerror(number)
  return f'{type(error).__name__}: {one_line(error)}'


def save(
  checkpoints: Checkpoints,
  state: TrainState,
  description: dict,
  top1: float | None,
) -> None:
  """Writes `state` under its step, in the background.

  Args:
    checkpoints: see `open_checkpoints`.
    state: finite; the caller checks.
    description: JSON that evaluation needs, such as the config.
    top1: accuracy at this step in percent, if it was evaluated.

  Raises:
    UserError: if this checkpoint, or the previous one, cannot be written.
  """
  # Orbax keeps views of host memory, which the next step's donation reuses.
  copy = jax.tree.map(jnp.copy, state)
  checkpoints.save(
    int(state.step),
    ocp.args.Composite(
      **{
        _STATE: ocp.args.StandardSave(copy),
        _DESCRIPTION: ocp.args.JsonSave(description),
      }
    ),
    # Orbax needs a number: this one is never the best.
    -1.0 if top1 is None else top1,
  )


def _check_restorable(path: str, abstract_state: TrainState) -> None:
  """Reads a new checkpoint back, in this process alone.

  Args:
    path: of the checkpoint.
    abstract_state: shapes and dtypes of what was saved.

  Raises:
    UserError: if it cannot be read; it is set aside.
  """
  target = jax.tree.map(lambda x: np.empty(x.shape, x.dtype), abstract_state)
  items = ocp.args.Composite(
    **{
      _STATE: ocp.args.StandardRestore(target),
      _DESCRIPTION: ocp.args.JsonRestore(),
    }
  )
  # A Checkpointer would wait for the other processes.
  handler = ocp.CompositeCheckpointHandler()
  try:
    with quiet.draining(_UNREADABLE):
      handler.restore(_LiteralPath(os.path.abspath(path)), args=items)
  except _UNREADABLE as error:
    directory, step = os.path.split(path)
    reason = f'it cannot be read back, see {set_aside(path)}: {_reason(error)}'
    raise UserError(_unwritten(int(step), directory, reason)) from error
  finally:
    handler.close()


# ---- reading ----


def read_description(path: str) -> dict:
  """Reads the description saved with a checkpoint.

  Raises:
    UserError: if the folder is not a checkpoint, or a damaged one.
  """
  return _restore(path, {_DESCRIPTION: ocp.args.JsonRestore()})[_DESCRIPTION]


def restore(
  path: str, abstract_state: TrainState, sharding: jax.sharding.Sharding
) -> TrainState:
  """The state of a checkpoint.

  Args:
    path: folder of the checkpoint.
    abstract_state: shapes and dtypes, from `jax.eval_shape`.
    sharding: sharding of every array.

  Raises:
    UserError: if the folder is not a checkpoint, is damaged, or holds the state
      of another network.
  """
  target = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
    abstract_state,
  )
  return _restore(path, {_STATE: ocp.args.StandardRestore(target)})[_STATE]


def restore_weights(
  path: str, abstract_state: TrainState, sharding: jax.sharding.Sharding
) -> TrainState:
  """Like `restore`, but checks the values; for all uses except resuming a run.

  Raises:
    UserError: as `restore` and `values.check_values`.
  """
  state = restore(path, abstract_state, sharding)
  check_values(flatten_dict(state.evaluation_variables, sep='/'), path)
  return state


def _restore(path: str, items: dict[str, Any]):
  path = os.path.abspath(path)
  if os.path.isfile(path):
    raise UserError(
      f'{path} is a file, not a checkpoint: if it holds weights, import them '
      f'first, with python -m bn_inception.weights --from={path}'
    )
  if not os.path.isdir(path):
    steps = list_steps(os.path.dirname(path))
    there = f': there are {", ".join(map(str, steps))}' if steps else ''
    raise UserError(f'checkpoint {path} does not exist{there}')
  check_path(path)
  _verify(path)
  handler = ocp.Checkpointer(ocp.CompositeCheckpointHandler())
  said = io.StringIO()
  try:
    with contextlib.redirect_stderr(said), quiet.draining(_UNREADABLE):
      restored = handler.restore(
        _LiteralPath(path), args=ocp.args.Composite(**items)
      )
  except Exception as error:
    if isinstance(error.__cause__, KeyboardInterrupt):  # Orbax wraps it
      raise KeyboardInterrupt from error
    if not isinstance(error, _UNREADABLE):
      raise
    raise UserError(
      f'checkpoint {path} cannot be read ({type(error).__name__}: '
      f'{one_line(error)}): evaluate another one with --step or --checkpoint; to '
      'train on, move it away, and the run resumes from the previous one'
    ) from error
  finally:
    handler.close()
  sys.stderr.write(said.getvalue())
  return restored


def _verify(path: str) -> None:
  """Raises if a checkpoint differs from its seal."""
  if integrity.is_sealed(path):
    damage = integrity.find_damage(path)
    if damage is not None:
      raise UserError(
        f'checkpoint {path} is damaged: {damage}: use another checkpoint, or '
        'restore this one from a backup'
      )
  elif os.path.isdir(os.path.join(path, _STATE)):
    _print_unverified(path)
  else:
    raise UserError(
      f'{path} is not a checkpoint: give a folder such as '
      'runs/digits/checkpoints/1802'
    )


@functools.cache  # prints once
def _print_unverified(path: str) -> None:
  print(
    f'checkpoint {path} is not verified: it has no {integrity.MANIFEST_FILE}'
  )

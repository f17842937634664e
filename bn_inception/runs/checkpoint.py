"""Checkpoints: the train state and the config that made it, through orbax.

A checkpoint is a folder named after its step; it restores on any number of
devices and can be evaluated without its run directory. It is sealed when it has
been written (see `integrity`), and compared with its seal before it is read.
"""

import concurrent.futures
import contextlib
import functools
import glob
import io
import logging
import os
import re
import shutil
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import tensorstore
from etils import epath
from flax.traverse_util import flatten_dict
from orbax.checkpoint import checkpoint_managers

from bn_inception.errors import UserError
from bn_inception.runs import integrity
from bn_inception.runs.values import check_values
from bn_inception.train_state import TrainState

DAMAGED_FOLDER = 'damaged_checkpoints'
_STATE, _DESCRIPTION = 'state', 'description'

# Orbax and TensorStore have no common type for damaged files, nor for those
# that cannot be written.
_UNREADABLE = (ValueError, KeyError, TypeError, OSError)
_UNWRITABLE = (ValueError, KeyError, OSError)


def check_path(path: str) -> None:
  """Refuses a folder in which no checkpoint can be.

  Args:
    path: of a checkpoint, or of any folder above; may be absent.

  Raises:
    UserError: if TensorStore, which reads and writes the arrays, would take it
      for another folder, or for none.
  """
  place = os.path.join(os.path.abspath(path), '')
  try:
    spec = tensorstore.KvStore.Spec({'driver': 'file', 'path': place})
    # Orbax makes an address of the last.
    is_taken = spec.to_json()['path'] == place and 'gs:/' not in place
  except (ValueError, RuntimeError):  # the latter for what is not UTF-8
    is_taken = False
  if not is_taken:
    raise UserError(
      f'{path!r} cannot hold checkpoints: TensorStore takes no path with a '
      "backslash, with bytes that are not UTF-8, or with '.__lock' or 'gs:' at "
      'the end of a name: rename the folder, or give another'
    )


def check_file_system(folder: str) -> None:
  """Refuses a folder in which orbax could not write a checkpoint.

  Some network drives lack what it needs. Does the same, with a small file, in a
  folder that is removed again.

  Args:
    folder: exists; no other process uses it.

  Raises:
    UserError: with what cannot be done there.
  """
  trial = os.path.join(folder, '.trial')
  # Their paths are as long as those of a checkpoint's files.
  begun, ended = (
    os.path.join(trial, name.ljust(120, '.')) for name in ('begun', 'ended')
  )
  deed = 'remove a folder'
  try:
    if os.path.exists(trial):  # of a killed process
      shutil.rmtree(trial)
    deed = 'make a folder'
    os.makedirs(begun)
    deed = 'write and sync a file'
    for name in 'old', 'new':
      with open(os.path.join(begun, name), 'w') as file:
        file.write(name)
        file.flush()
        os.fsync(file.fileno())
    deed = 'replace a file'
    os.replace(os.path.join(begun, 'new'), os.path.join(begun, 'old'))
    deed = 'sync a folder'
    descriptor = os.open(begun, os.O_RDONLY | os.O_DIRECTORY)
    try:
      os.fsync(descriptor)
    finally:
      os.close(descriptor)
    deed = 'rename a folder'
    os.rename(begun, ended)
    deed = 'remove a folder'
    shutil.rmtree(trial)
  except OSError as error:
    shutil.rmtree(trial, ignore_errors=True)
    raise UserError(
      f'{folder} cannot hold checkpoints, since it is not possible to {deed} '
      f'there ({error.strerror}): mend the folder, or give another --workdir'
    ) from error


class _LiteralPath(type(epath.Path())):
  """A local path, none of whose characters mean anything else.

  Orbax looks with `glob` for what it has written. Etils's takes the brackets of
  the folder itself for a pattern, and /gs, /s3, /az and /hf for buckets.
  """

  _uri_scheme = None

  def glob(self, pattern: str) -> Iterator['_LiteralPath']:
    found = glob.iglob(os.path.join(glob.escape(os.fspath(self)), pattern))
    return map(type(self), found)


def open_checkpoints(
  directory: str, keep_last: int, keep_best: int
) -> 'Checkpoints':
  """The checkpoints of a run, for asynchronous writing.

  Args:
    directory: made if absent.
    keep_last: how many of the newest to keep.
    keep_best: how many of those with the best top-1 accuracy to keep besides.

  Raises:
    UserError: if it cannot be written, or holds checkpoints that cannot be read.
  """
  policies = checkpoint_managers
  preservation = _NoneYet(
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
    # Without it orbax does not write metrics, and a resumed run forgets them.
    best_fn=lambda metrics: metrics['top1'],
    # What a run that was killed while saving has left.
    cleanup_tmp_directories=True,
    # In the background it would be a failure that orbax's other threads do not
    # hear of: they wait for the folder, and so does the end of the process.
    async_options=ocp.AsyncOptions(create_directories_asynchronously=False),
  )
  check_path(directory)
  path = _LiteralPath(os.path.abspath(directory))
  try:
    manager = ocp.CheckpointManager(path, options=options)
  except _UNREADABLE as error:
    raise UserError(
      f'the checkpoints in {directory} cannot be opened ({_reason(error)}): mend '
      'the folder, and move those away that eval.py --step cannot read'
    ) from error
  return Checkpoints(directory, manager, preservation)


class _NoneYet(checkpoint_managers.PreservationPolicy):
  """Has orbax keep all; notes what is to go once the newest can be read back.

  Orbax removes the older ones as soon as the newest is written.

  Attributes:
    superfluous: the steps that `policy` does not keep, as of the last save.
  """

  def __init__(self, policy: checkpoint_managers.PreservationPolicy):
    self._policy, self.superfluous = policy, []

  def should_preserve(self, checkpoints, *, context):
    is_kept = self._policy.should_preserve(checkpoints, context=context)
    pairs = zip(checkpoints, is_kept, strict=True)
    self.superfluous = [info.step for info, kept in pairs if not kept]
    return [True] * len(is_kept)


class Checkpoints:
  """Writes checkpoints in the background; a context manager.

  At its end the last one has been written. What fails in the background is
  raised by the next call of any method, and never twice.

  Args:
    directory: of the checkpoints.
    manager: of orbax, for this directory.
    preservation: the policy that the manager has.
  """

  def __init__(
    self,
    directory: str,
    manager: ocp.CheckpointManager,
    preservation: _NoneYet,
  ):
    self._directory, self._manager = directory, manager
    self._preservation = preservation
    self._thread = concurrent.futures.ThreadPoolExecutor(1, 'seal')
    self._saving: concurrent.futures.Future | None = None
    self._step = None  # of the save that is under way, or was the last
    self._has_failed = False
    _hush()

  def save(self, step: int, args: ocp.args.Composite, top1: float) -> None:
    """Begins to write a checkpoint, after the one before is finished.

    Raises:
      UserError: if the one before, or this one, cannot be written.
    """
    self.wait()
    if jax.process_index() == 0 and not os.path.isdir(self._directory):
      # Orbax would make it again, and the run go on without its other files.
      raise UserError(_unwritten(step, self._directory, 'it was removed'))
    self._step = step
    with self._explained():
      self._manager.save(step, args=args, metrics={'top1': top1}, force=True)
    abstract_state = jax.eval_shape(lambda: args[_STATE].item)
    self._saving = self._thread.submit(self._finish, step, abstract_state)

  def check(self) -> None:
    """Raises the error of a save that has failed; waits for none."""
    if self._saving is not None and self._saving.done():
      self.wait()

  def wait(self) -> None:
    """Until the last save is finished, and sealed.

    Raises:
      UserError: if it could not be written.
    """
    saving, self._saving = self._saving, None
    if saving is not None:
      with self._explained():
        saving.result()

  def close(self) -> None:
    """As `wait`; nothing can be saved afterwards."""
    try:
      self.wait()
    finally:
      self._close_manager()
      self._thread.shutdown()

  def _close_manager(self) -> None:
    # One failure has several errors, of every part that wrote and for every
    # thread that asks. Each is raised once; the first one was ours.
    for _ in range(_MOST_ERRORS if self._has_failed else 0):
      with contextlib.suppress(*_UNWRITABLE):
        self._manager.close()
        return
    self._manager.close()

  def _finish(self, step: int, abstract_state: TrainState) -> None:
    # Orbax has a callback for the end of a save, but calls it before it writes
    # its last two files and gives the folder its name.
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
        if os.path.isdir(path):  # orbax goes on to count what is removed
          shutil.rmtree(path)
      except OSError as error:
        raise UserError(
          f'the older checkpoint {path} cannot be removed ({error.strerror}): '
          'mend the folder, and give the same command again to go on'
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
        # Both in one line; the other one came first.
        raise UserError(f'{exception}; and {error}') from exception
      print(f'error: {error}', file=sys.stderr)


# After a failure TensorStore's threads go on for a while; see `_drained`.
_DRAIN_SECONDS, _MOST_ERRORS = 1.0, 10
_ORBAX = os.path.dirname(ocp.__file__)


def _hush() -> None:
  """Keeps to one the reports of one failure, to the end of the program.

  Orbax raises the first error of a failed save or restore. Those of its other
  threads and coroutines come at any time until Python's very end: as records of
  asyncio and absl, as warnings, and as exceptions that nobody can catch.
  """
  for name in ('absl', 'asyncio'):
    logging.getLogger(name).addFilter(_is_news)  # once, however often called
  warnings.filterwarnings(
    'ignore', "coroutine 'async_.*was never awaited", RuntimeWarning
  )
  if not hasattr(sys.unraisablehook, 'before_hush'):
    sys.unraisablehook = _with_hush(sys.unraisablehook)


def _with_hush(hook: Callable) -> Callable:
  def filtered_hook(unraisable):
    if 'Event loop is closed' not in str(unraisable.exc_value):
      hook(unraisable)

  filtered_hook.before_hush = hook
  return filtered_hook


def _is_news(record: logging.LogRecord) -> bool:
  """Whether a record tells what no error that is raised, and no run, tells."""
  files = [record.pathname]
  if record.exc_info:
    _, error, frames = record.exc_info
    files += [frame.filename for frame in traceback.extract_tb(frames)]
    # TensorStore's own have at most asyncio's frames; OCDBT is the format of a
    # checkpoint.
    if record.name == 'asyncio' and 'ocdbt' in str(error).lower():
      return False
  elif 'preemption sync point' not in str(record.msg):
    return True
  return not any(file.startswith(_ORBAX) for file in files)


def _unwritten(step: int, directory: str, reason: str) -> str:
  older = [old for old in list_steps(directory) if old != step]
  rest = (
    f'the older checkpoints ({", ".join(map(str, older))}) are as they were'
    if older
    else 'there is no older one'
  )
  return (
    f'the checkpoint of step {step} could not be written to {directory} '
    f'({reason}); {rest}: make room or mend the folder, and give the same '
    'command again to go on'
  )


def _reason(error: BaseException) -> str:
  """What the system said, in one line."""
  number = getattr(error, 'errno', None)
  if number is None:
    found = re.search(r"os_error_code='(\d+)'", str(error))  # TensorStore
    number = found and int(found[1])
  if number is not None:
    return os.strerror(number)
  text = re.sub(r'\s+', ' ', str(error))[:300]
  return f'{type(error).__name__}: {text}'


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
    description: JSON: what evaluation needs to know, such as the config.
    top1: accuracy at this step in percent, if it was evaluated.

  Raises:
    UserError: if this checkpoint, or the one before, cannot be written.
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
    # Orbax wants a number: one that is never the best.
    -1.0 if top1 is None else top1,
  )


def _check_restorable(path: str, abstract_state: TrainState) -> None:
  """Reads a checkpoint that has just been written, on one process alone.

  Args:
    path: of the checkpoint.
    abstract_state: shapes and dtypes of what was saved.

  Raises:
    UserError: if it cannot be read; it is moved out of the way.
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
    _drained(handler.restore, _LiteralPath(os.path.abspath(path)), items)
  except _UNREADABLE as error:
    directory, step = os.path.split(path)
    reason = f'it cannot be read back, see {set_aside(path)}: {_reason(error)}'
    raise UserError(_unwritten(int(step), directory, reason)) from error
  finally:
    handler.close()


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


def newest_intact(directory: str) -> tuple[str, dict[str, str]]:
  """The newest checkpoint that is as it was written; reads, changes nothing.

  One that was never sealed, since its writing was interrupted or it is of an
  earlier version of this program, is taken only if there is no sealed one.

  Args:
    directory: with at least one checkpoint.

  Returns:
    Its path; and for each newer one, the newest first, its path and what is
    wrong with it.

  Raises:
    UserError: if all are damaged; names them.
  """
  wrong, unsealed = {}, []
  for step in reversed(list_steps(directory)):
    path = os.path.join(directory, str(step))
    damage = f'it was not finished: it has no {integrity.MANIFEST_FILE}'
    if integrity.is_sealed(path):
      damage = integrity.find_damage(path)
      if damage is None:
        return path, wrong
    else:
      unsealed.append(path)
    wrong[path] = damage
  if not unsealed:
    found = '; '.join(
      f'{os.path.basename(path)}: {damage}' for path, damage in wrong.items()
    )
    raise UserError(
      f'all checkpoints in {directory} are damaged ({found}): put copies of them '
      'there, or give another --workdir to train again'
    )
  newer = {
    path: wrong[path] for path in wrong if _step(path) > _step(unsealed[0])
  }
  return unsealed[0], newer


def _step(path: str) -> int:
  return int(os.path.basename(path))


def set_aside(path: str) -> str:
  """Moves a checkpoint out of the way of the next one of its step.

  Args:
    path: of the checkpoint, RUN/checkpoints/STEP.

  Returns:
    Where it is now: RUN/damaged_checkpoints/STEP, or, if there is one, STEP.1
    and so on.

  Raises:
    UserError: if it cannot be moved.
  """
  path = os.path.abspath(path)
  directory, name = os.path.split(path)
  folder = os.path.join(os.path.dirname(directory), DAMAGED_FOLDER)
  place, number = os.path.join(folder, name), 0
  while os.path.exists(place):
    number += 1
    place = os.path.join(folder, f'{name}.{number}')
  try:
    os.makedirs(folder, exist_ok=True)
    os.rename(path, place)
  except OSError as error:
    raise UserError(
      f'damaged checkpoint {path} cannot be moved to {folder} '
      f'({error.strerror}): move it away yourself'
    ) from error
  return place


def choose_to_resume(directory: str) -> str:
  """The checkpoint to go on from; the damaged ones are moved out of the way.

  Says what it found. For one process alone: it changes the folder.

  Args, raises: as of `newest_intact`.
  """
  chosen, wrong = newest_intact(directory)
  for step in list_steps(directory):
    path = os.path.join(directory, str(step))
    # Orbax reads the accuracies of older ones, to keep the best.
    if step < _step(chosen) and integrity.is_sealed(path):
      damage = integrity.find_damage(path)
      if damage is not None:
        wrong[path] = damage
  for path, damage in wrong.items():
    place = set_aside(path)
    print(f'checkpoint {path} is damaged ({damage}): moved to {place}')
  return chosen


def read_description(path: str) -> dict:
  """The description saved with a checkpoint.

  Raises:
    UserError: if the folder is no checkpoint, or a damaged one.
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
    UserError: if the folder is no checkpoint, a damaged one, or one of
      another network.
  """
  target = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
    abstract_state,
  )
  return _restore(path, {_STATE: ocp.args.StandardRestore(target)})[_STATE]


def restore_weights(
  path: str, abstract_state: TrainState, sharding: jax.sharding.Sharding
) -> TrainState:
  """As `restore`, for all that computes with the weights: they are numbers.

  Raises:
    UserError: as `restore`, or as `values.check_values`.
  """
  state = restore(path, abstract_state, sharding)
  check_values(flatten_dict(state.evaluation_variables, sep='/'), path)
  return state


def _restore(path: str, items: dict[str, Any]):
  path = os.path.abspath(path)
  if os.path.isfile(path):
    raise UserError(
      f'{path} is a file and no checkpoint: if it holds weights, import them '
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
    with contextlib.redirect_stderr(said):
      restored = _drained(
        handler.restore, _LiteralPath(path), ocp.args.Composite(**items)
      )
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


def _verify(path: str) -> None:
  """Compares a checkpoint with its seal, once for all that is read of it."""
  if integrity.is_sealed(path):
    damage = integrity.find_damage(path)
    if damage is not None:
      raise UserError(
        f'checkpoint {path} is damaged: {damage}: take another one, or a copy'
      )
  elif os.path.isdir(os.path.join(path, _STATE)):
    _say_unverified(path)
  else:
    raise UserError(
      f'{path} is not a checkpoint: give a folder such as '
      'runs/digits/checkpoints/450'
    )


@functools.cache
def _say_unverified(path: str) -> None:
  print(
    f'checkpoint {path} is not verified: it has no {integrity.MANIFEST_FILE}'
  )


def _drained(restore: Callable, path: epath.Path, args: ocp.args.Composite):
  """restore(path, args=args), whose other arrays are silent if one fails.

  The first array that fails ends orbax's event loop. TensorStore's threads go
  on reading the others and each prints that the loop is closed.
  """
  _hush()
  try:
    return restore(path, args=args)
  except _UNREADABLE:
    time.sleep(_DRAIN_SECONDS)
    raise

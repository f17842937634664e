"""A profile of some steps of a run, by JAX's own profiler."""

import contextlib
import glob
import os
import shutil
from collections.abc import Callable, Iterator

import jax

from bn_inception.errors import UserError, check_writable, one_line

# Steps before the profile, in which programs compile and buffers fill, and in it.
SKIPPED_STEPS, PROFILED_STEPS = 10, 10
_REMEDY = 'give another --profile'


def check_folder(folder: str) -> None:
  """Raises a UserError if a profile could not be written there."""
  check_writable(os.path.join(folder, 'plugins', 'profile', 'trace'), _REMEDY)


@contextlib.contextmanager
def _explained(folder: str) -> Iterator[None]:
  """Turns an error of JAX's profiler into one line."""
  try:
    yield
  except (OSError, RuntimeError) as error:
    raise UserError(
      f'there is no profile in {folder} ({one_line(error)}): {_REMEDY}, or leave '
      'it out'
    ) from error


class Profiler:
  """Profiles steps 11 to 20 of those that this process takes.

  A context manager: a profile that the end of the run cuts short is written, too.

  Args:
    folder: to write to; None: nothing is profiled.
    first_step: updates done before.
    tell: prints a line.
  """

  def __init__(
    self, folder: str | None, first_step: int, tell: Callable[[str], None]
  ):
    self._folder, self._tell = folder, tell
    self._begin = first_step + SKIPPED_STEPS
    self._end = self._begin + PROFILED_STEPS
    self._last = None  # newest step; None: the profile has not begun

  def __enter__(self) -> 'Profiler':
    return self

  def after(self, step: int, result) -> None:
    """Begins or ends the profile, if it is time.

    Args:
      step: updates done.
      result: arrays of the last one, which the devices may still compute.
    """
    if self._folder is None or not self._begin <= step <= self._end:
      return
    self._last = step
    if step == self._begin:
      jax.block_until_ready(result)
      with _explained(self._folder):
        jax.profiler.start_trace(self._folder)
    elif step == self._end:
      jax.block_until_ready(result)
      self._write()

  def __exit__(self, kind, error, traceback) -> None:
    if self._folder is None or self._last == self._end:
      return
    if self._last is None:
      self._tell(self._nothing())
      return
    try:
      self._write()
    except UserError as failure:
      if error is None:
        raise
      self._tell(str(failure))  # the run ends for its own reason

  def _nothing(self) -> str:
    return f'nothing was profiled: the run ended before step {self._begin + 1}'

  def _write(self) -> None:
    with _explained(self._folder):
      jax.profiler.stop_trace()
    pattern = os.path.join(self._folder, 'plugins/profile/*/*.trace.json.gz')
    newest = max(glob.glob(pattern), key=os.path.getmtime, default=self._folder)
    if self._last == self._begin:  # no step followed
      if newest != self._folder:  # another process may have removed it
        shutil.rmtree(os.path.dirname(newest), ignore_errors=True)
      self._tell(self._nothing())
      return
    self._tell(
      f'profile of steps {self._begin + 1} to {self._last}: open {newest} at '
      'https://ui.perfetto.dev, or the folder with XProf'
    )

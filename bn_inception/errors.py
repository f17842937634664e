"""The one exception that stands for bad input."""

import contextlib
import errno
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence


class UserError(Exception):
  """Something the caller can mend: one line that names the thing and the remedy.

  The programs print it without a traceback and exit non-zero; every other
  exception is a defect and keeps its traceback.
  """


def one_line(error: Exception) -> str:
  """What another library says went wrong, or at least its kind."""
  return re.sub(r'\s+', ' ', str(error))[:200] or type(error).__name__


def check_choice(name: str, value: str, valid: Sequence[str]) -> None:
  """Refuses what is none of the valid values of a config's key.

  Raises:
    UserError: with the valid ones.
  """
  if value not in valid:
    raise UserError(
      f"{name} '{value}' is unknown: use one of {', '.join(valid)}"
    )


_OF_A_RUN = (
  'make room or mend the folder, and give the same command again to go on'
)


@contextlib.contextmanager
def writing(path: str, remedy: str = _OF_A_RUN) -> Iterator[None]:
  """Turns the system's refusal to write a file into one line.

  Args:
    path: of the file.
    remedy: what to do then; the default is for the files of a run.

  Raises:
    UserError: for an OSError, such as a full disk.
  """
  try:
    yield
  except OSError as error:
    raise UserError(
      f'{path} cannot be written ({error.strerror}): {remedy}'
    ) from error


def check_writable(path: str, remedy: str) -> None:
  """Refuses a file that cannot be written, before the work that is to fill it.

  Changes nothing. Who writes the file makes the folders that are missing.

  Args:
    path: of the file.
    remedy: what to do then.

  Raises:
    UserError: for a missing permission, something else than a file in its
      place or on the way, or a name that is too long.
  """
  place = os.path.abspath(path)
  folder = os.path.dirname(place)
  with writing(path, remedy):
    # Files are written under a longer name first, and replace what was there.
    for name in (place, f'{place}.tmp'):
      with contextlib.suppress(FileNotFoundError):
        os.stat(name)
    if os.path.exists(place) and not os.path.isfile(place):
      raise OSError(errno.EEXIST, 'not a regular file')
    while not os.path.exists(folder):
      folder = os.path.dirname(folder)
    # Tried, since what the system says of permissions need not hold, as in /proc
    # and on network drives.
    try:
      with tempfile.TemporaryFile(dir=folder):
        pass
    except PermissionError as error:
      raise OSError(
        errno.EACCES, f'no permission to write in {folder}'
      ) from error


def check_room(path: str, num_bytes: int, remedy: str) -> None:
  """Refuses a file that is larger than the room on its disk.

  Args:
    path: of the file; its folder exists.
    num_bytes: that it may take.
    remedy: what to do then.

  Raises:
    UserError: with both sizes.
  """
  total, _, free = shutil.disk_usage(os.path.dirname(os.path.abspath(path)))
  # Some network drives do not say how large they are.
  if total > 0 and num_bytes > free:
    raise UserError(
      f'{path} may take {num_bytes / 1e6:,.1f} MB and {free / 1e6:,.1f} MB are '
      f'free: make room, or {remedy}'
    )

"""`UserError`, for bad input, and checks of output files that raise it."""

import contextlib
import errno
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from typing import IO


class UserError(Exception):
  """An error the user can fix: one line with the thing, the reason, the remedy.

  Programs print it without a traceback and exit with 2. Any other exception is
  a bug and keeps its traceback.
  """


def one_line(error: Exception) -> str:
  """An exception's message on one line of at most 200 characters, or its type."""
  return re.sub(r'\s+', ' ', str(error))[:200] or type(error).__name__


def check_choice(name: str, value: str, valid: Sequence[str]) -> None:
  """Raises a UserError, with the valid values, if `value` is not one of them."""
  if value not in valid:
    choices = ', '.join(choice or "''" for choice in valid)
    raise UserError(f"{name} '{value}' is unknown: use one of {choices}")


RERUN = 'free up space or fix the folder, then rerun the same command to resume'


@contextlib.contextmanager
def writing(path: str, remedy: str = RERUN) -> Iterator[None]:
  """Turns an OSError while writing `path`, such as a full disk, into a UserError.

  The default remedy suits the files of a run.

  Raises:
    UserError: with the path, the system's reason and the remedy.
  """
  try:
    yield
  except OSError as error:
    raise UserError(
      f'{path} cannot be written ({error.strerror}): {remedy}'
    ) from error


@contextlib.contextmanager
def replacing(path: str, mode: str = 'w', remedy: str = RERUN) -> Iterator[IO]:
  """Opens a file that replaces `path` on success; on an error, `path` stays as it was.

  Raises:
    UserError: as for `writing`.
  """
  with writing(path, remedy):
    with open(path + '.tmp', mode) as file:
      yield file
    os.replace(path + '.tmp', path)


def check_writable(path: str, remedy: str) -> None:
  """Raises if a file could not be written; call it before hours of work.

  Leaves no file behind. Missing folders are fine: the writer makes them.

  Raises:
    UserError: without permission, for a name that is too long, or if the path exists
      and is not a regular file.
  """
  place = os.path.abspath(path)
  folder = os.path.dirname(place)
  with writing(path, remedy):
    # Files are first written as NAME.tmp, then renamed.
    for name in (place, f'{place}.tmp'):
      with contextlib.suppress(FileNotFoundError):
        os.stat(name)
    if os.path.exists(place) and not os.path.isfile(place):
      raise OSError(errno.EEXIST, 'not a regular file')
    while not os.path.exists(folder):
      folder = os.path.dirname(folder)
    # Try it: os.access may be wrong, as in /proc and on network drives.
    try:
      with tempfile.TemporaryFile(dir=folder):
        pass
    except PermissionError as error:
      raise OSError(
        errno.EACCES, f'no permission to write in {folder}'
      ) from error


def make_parent_folder(path: str, remedy: str = RERUN) -> None:
  """Makes the folder of a file, with its parents; raises as `writing` does."""
  with writing(path, remedy):
    os.makedirs(os.path.dirname(path) or '.', exist_ok=True)


def check_free_space(path: str, num_bytes: int, remedy: str) -> None:
  """Raises if a file of `num_bytes` would not fit on its disk.

  The folder of `path` must exist.

  Raises:
    UserError: with the bytes needed and the bytes free.
  """
  total, _, free = shutil.disk_usage(os.path.dirname(os.path.abspath(path)))
  # Some network drives report a size of 0.
  if total > 0 and num_bytes > free:
    raise UserError(
      f'{path} may take {num_bytes / 1e6:,.1f} MB and {free / 1e6:,.1f} MB are '
      f'free: make room, or {remedy}'
    )

"""Makes programs survive a closed, full or broken stdin, stdout or stderr.

Output may go to `head`, which ends sooner, to a full disk, or to a closed terminal.
Programs whose results are files continue without it; a program that only prints
ends, as `ls` does.
"""

import io
import os
import select
import sys


class StdoutLostError(Exception):
  """Stdout failed in a program that only prints; `__cause__` is the OSError.

  Not an OSError itself: callers attribute those to the file being written.
  """


class _Stream(io.FileIO):
  """Writes to a file descriptor that Python opened, and never closes it.

  Attributes:
    is_needed: whether a failure raises `StdoutLostError`; otherwise it is dropped.
    has_failed: whether a write failed, which is reported once.
  """

  def __init__(self, descriptor: int, name: str, is_needed: bool):
    super().__init__(descriptor, 'w', closefd=False)
    self.name, self.is_needed, self.has_failed = name, is_needed, False

  def write(self, data) -> int:
    try:
      # None: it is full, and another program made it non-blocking.
      while (size := super().write(data)) is None:
        select.select([], [self], [])
      return size
    except OSError as error:
      is_first, self.has_failed = not self.has_failed, True
      if self.is_needed:
        raise StdoutLostError from error
      if self is _stdout and is_first:
        _say(error)
      return len(data)


_stdout: _Stream | None = None


def _say(error: OSError) -> None:
  print(
    f'stdout cannot be written ({error.strerror}): continuing without it',
    file=sys.stderr,
    flush=True,
  )


def protect() -> None:
  """Replaces stdout and stderr by streams that fail as described above.

  Call it before a program opens files: these would take the descriptors of streams
  that were closed from the start, and get what is printed. Streams that a notebook
  or test has replaced are left alone.
  """
  global _stdout
  for descriptor in range(3):
    try:
      os.fstat(descriptor)
    except OSError:
      os.open(os.devnull, os.O_RDWR)  # takes the lowest free one: this
      os.set_inheritable(descriptor, True)
  if sys.stdout is sys.__stdout__:
    _stdout = _Stream(1, '<stdout>', is_needed=True)
    sys.stdout = _as_text(_stdout, sys.stdout)
  if sys.stderr is sys.__stderr__:
    sys.stderr = _as_text(_Stream(2, '<stderr>', is_needed=False), sys.stderr)


def _as_text(stream: _Stream, former: io.TextIOWrapper | None):
  """Wraps a stream like `former`, which is None if it was closed."""
  if former is None:
    return io.TextIOWrapper(io.BufferedWriter(stream), 'utf-8')
  former.flush()
  return io.TextIOWrapper(
    stream if former.write_through else io.BufferedWriter(stream),
    encoding=former.encoding,
    errors=former.errors,
    line_buffering=former.line_buffering,
    write_through=former.write_through,
  )


def continue_without_stdout() -> None:
  """From now on the program continues if stdout fails."""
  if _stdout is not None:
    _stdout.is_needed = False


def flush() -> None:
  """Flushes stdout and stderr; output that cannot be written is lost.

  Raises:
    StdoutLostError: if the program did not call `continue_without_stdout`.
  """
  for stream in (sys.stdout, sys.stderr):
    if stream is not None:
      try:
        stream.flush()
      finally:
        continue_without_stdout()  # fail only once

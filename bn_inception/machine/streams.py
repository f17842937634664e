"""Stdin, stdout and stderr, each of which may be closed, full or gone.

What a program prints may go to `head`, which ends sooner, to a full disk or to a
terminal that was closed. Programs whose results are files go on without it; one
that only prints ends, as `ls` does.
"""

import io
import os
import select
import sys


class StdoutLostError(Exception):
  """Stdout takes no more, and nobody would have the program go on without it.

  Not an OSError, which would be taken for one of the file that is being written.
  The OSError is its cause.
  """


class _Stream(io.FileIO):
  """Of a file descriptor that Python has opened; it stays open.

  Attributes:
    is_needed: writing raises `StdoutLostError`; otherwise it is given up.
    has_failed: something could not be written, which is said once.
  """

  def __init__(self, descriptor: int, name: str, is_needed: bool):
    super().__init__(descriptor, 'w', closefd=False)
    self.name, self.is_needed, self.has_failed = name, is_needed, False

  def write(self, data) -> int:
    try:
      # None: it does not block, as another program may have set it, and is full.
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
    f'stdout cannot be written ({error.strerror}): going on without it',
    file=sys.stderr,
    flush=True,
  )


def protect() -> None:
  """Has stdout and stderr fail as the functions below say; the first thing to do.

  Else the first files that a program opens would take the places of streams that
  are closed from the start, and get what is printed. Streams that a notebook or a
  test has put in place of Python's stay.
  """
  global _stdout
  for descriptor in range(3):
    try:
      os.fstat(descriptor)
    except OSError:
      os.open(os.devnull, os.O_RDWR)  # the lowest number that is free: this one
      os.set_inheritable(descriptor, True)
  if sys.stdout is sys.__stdout__:
    _stdout = _Stream(1, '<stdout>', is_needed=True)
    sys.stdout = _as_text(_stdout, sys.stdout)
  if sys.stderr is sys.__stderr__:
    sys.stderr = _as_text(_Stream(2, '<stderr>', is_needed=False), sys.stderr)


def _as_text(stream: _Stream, former: io.TextIOWrapper | None):
  """As Python opens it; `former` is None if it was closed."""
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


def go_on_without_stdout() -> None:
  """From now on the program's work is worth doing if nobody sees what it prints."""
  if _stdout is not None:
    _stdout.is_needed = False


def flush() -> None:
  """Writes what was printed; a stdout that takes no more loses it, if it raises.

  Raises:
    StdoutLostError: where the program did not call `go_on_without_stdout`.
  """
  for stream in (sys.stdout, sys.stderr):
    if stream is not None:
      try:
        stream.flush()
      finally:
        go_on_without_stdout()  # nothing is asked twice

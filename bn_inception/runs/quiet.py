"""Silences the reports with which Orbax repeats a failure that it has raised.

Orbax raises the first error of a failed save or restore. Its other threads and
coroutines report theirs until Python exits: as log records of asyncio and absl,
as warnings, and as exceptions that nobody can catch.
"""

import contextlib
import logging
import os
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator

import orbax.checkpoint as ocp

_ORBAX = os.path.dirname(ocp.__file__)
_SECONDS_TO_DRAIN = 1.0


def silence_repeats() -> None:
  """Keeps Orbax's duplicate reports out of stderr until the program ends.

  May be called any number of times.
  """
  for name in ('absl', 'asyncio'):
    logging.getLogger(name).addFilter(is_news)
  warnings.filterwarnings(
    'ignore', "coroutine 'async_.*was never awaited", RuntimeWarning
  )
  if not hasattr(sys.unraisablehook, 'silences_orbax'):
    sys.unraisablehook = _without_closed_loops(sys.unraisablehook)


@contextlib.contextmanager
def draining(errors: tuple[type[Exception], ...]) -> Iterator[None]:
  """Around a restore: if it fails, waits until other threads have failed too.

  The first array that cannot be read closes Orbax's event loop. TensorStore's
  threads continue with the other arrays for a moment, and each prints that the
  loop is closed: redirect stderr around this to keep them out.
  """
  silence_repeats()
  try:
    yield
  except errors:
    time.sleep(_SECONDS_TO_DRAIN)
    raise


def is_news(record: logging.LogRecord) -> bool:
  """False for log records that only repeat an exception that Orbax raises."""
  files = [record.pathname]
  if record.exc_info:
    _, error, frames = record.exc_info
    files += [frame.filename for frame in traceback.extract_tb(frames)]
    # Errors of TensorStore have no frame of Orbax; OCDBT is the format of a
    # checkpoint.
    if record.name == 'asyncio' and 'ocdbt' in str(error).lower():
      return False
  elif 'preemption sync point' not in str(record.msg):
    return True
  return not any(file.startswith(_ORBAX) for file in files)


def _without_closed_loops(hook: Callable) -> Callable:
  def filtered_hook(unraisable):
    if 'Event loop is closed' not in str(unraisable.exc_value):
      hook(unraisable)

  filtered_hook.silences_orbax = True
  return filtered_hook

"""Prints progress lines of long jobs, for terminals and log files alike."""

import time
from collections.abc import Callable


class Progress:
  """Prints how much is done and an estimate of the time left.

  Args:
    name: name of the job.
    total: amount of work, more than 0.
    unit: unit of the amount, such as 'images'.
    interval: seconds between lines; a job that finishes sooner prints none.
    clock: returns seconds.
  """

  def __init__(
    self,
    name: str,
    total: int,
    unit: str,
    interval: float = 10.0,
    clock: Callable[[], float] = time.monotonic,
  ):
    self._name, self._total, self._unit = name, total, unit
    self._interval, self._clock = interval, clock
    self._done, self._start = 0, clock()
    self._last = self._start

  def advance(self, amount: int = 1) -> None:
    """Adds to the work done, and prints a line if the last one is old enough."""
    self._done += amount
    now = self._clock()
    if now - self._last < self._interval:
      return
    self._last = now
    seconds_left = (now - self._start) * (self._total / self._done - 1)
    print(
      f'  {self._name}: {self._done:,} of {self._total:,} {self._unit} '
      f'({self._done / self._total:.0%}), {seconds_left / 60:.1f} minutes left',
      flush=True,
    )

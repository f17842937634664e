"""Being asked to stop: the run saves a checkpoint and ends, losing no step."""

import contextlib
import signal
import threading

import jax
from jax.experimental import multihost_utils

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Interrupted(Exception):
  """A run has stopped as it was asked to, and can go on.

  Attributes:
    signal_number: of the signal that asked.
  """

  def __init__(self, message: str, signal_number: int):
    super().__init__(message)
    self.signal_number = signal_number


class StopRequests(contextlib.AbstractContextManager):
  """Notes SIGTERM and SIGINT, the second of which has its usual effect.

  Of several processes all stop at the same step when one gets SIGTERM, by
  JAX's preemption service, which has its own handler.
  """

  def __init__(self):
    self._received, self._previous = None, {}

  def __enter__(self):
    is_main = threading.current_thread() is threading.main_thread()
    if jax.process_count() == 1 and is_main:  # others cannot have handlers
      for number in _SIGNALS:
        self._previous[number] = signal.signal(number, self._note)
    return self

  def __exit__(self, *exception):
    self._restore()

  def _note(self, number: int, frame) -> None:
    del frame
    self._received = number
    self._restore()

  def _restore(self) -> None:
    while self._previous:
      signal.signal(*self._previous.popitem())

  def reached(self, step: int) -> int | None:
    """The signal after which to stop now; None to go on.

    Args:
      step: to be called with each of them, in all processes.
    """
    if jax.process_count() == 1:
      return self._received
    if multihost_utils.reached_preemption_sync_point(step):
      return signal.SIGTERM
    return None

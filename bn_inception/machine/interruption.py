"""Being asked to stop: the program says so at once, and a run saves first.

Python runs handlers of signals in the main thread, when that comes back to Python:
not while XLA compiles, nor while a process waits for others. So that Ctrl-C is
answered all the same, `watch` starts a thread that learns of it without the main
thread.

Nor is a thread of XLA stopped that compiles or computes. It would meet an interpreter
that takes itself down, and crash, so that the process ends before that.
"""

import atexit
import contextlib
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence

from bn_inception.machine import streams

# Those that ask for an end: of whoever is there, of the terminal, and of schedulers.
# SLURM, SGE and LSF announce theirs by the user's signals, and a shell's limit of
# processor time by the last one.
_REQUESTS = (
  signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGXCPU,
)  # fmt: skip
SIGNALS = (signal.SIGINT, *_REQUESTS)
# `timeout` sends its signal to a process and to its group: twice, to the process.
_SECONDS_OF_ONE_REQUEST = 0.1
# How long the main thread may take to come back to Python after Ctrl-C.
_PATIENCE_SECONDS = 1.0
_DROPPED, _SECONDS_BEFORE_REPEAT = 0, 0.02  # of an interrupt that got nowhere
_SHOW_CURSOR = b'\x1b[?25h'  # which a progress bar hides


class Interrupted(Exception):
  """A run has stopped as it was asked to, and can be resumed.

  Attributes:
    signal_number: of the signal that asked.
  """

  def __init__(self, message: str, signal_number: int):
    super().__init__(message)
    self.signal_number = signal_number


class _Watch:
  """The thread that answers, and what it has to know.

  Attributes:
    can_unwind: Ctrl-C raises KeyboardInterrupt; otherwise it ends the process.
    is_delivered: the first signal has come through to the main thread.
    has_answered: set when the first signal was answered.
    requests: the open `StopRequests`; None: there is none.
  """

  def __init__(self):
    self.can_unwind = self.is_delivered = False
    self.has_answered = threading.Event()
    self.requests: StopRequests | None = None
    # Only signals with a handler in Python are told to the thread; and asyncio
    # puts its own in the place of signal.default_int_handler.
    signal.signal(signal.SIGINT, self._raise)
    self._read_end, self._write_end = os.pipe()
    os.set_blocking(self._write_end, False)
    signal.set_wakeup_fd(self._write_end, warn_on_full_buffer=False)
    self._first: float | None = None  # when the first signal came
    self._num_repeats, self._hook = 0, sys.unraisablehook
    sys.unraisablehook = self._note_dropped
    threading.Thread(target=self._answer, daemon=True).start()

  def _raise(self, number: int, frame) -> None:
    del number, frame
    if self.can_unwind and not self.is_delivered:
      self.is_delivered = True
      raise KeyboardInterrupt

  def _note_dropped(self, unraisable) -> None:
    """JAX has code in Python's garbage collector, which can raise nothing."""
    if issubclass(unraisable.exc_type, KeyboardInterrupt):
      self.is_delivered = False
      os.write(self._write_end, bytes([_DROPPED]))
    else:
      self._hook(unraisable)

  def _answer(self) -> None:
    number, requests = self._wait(SIGNALS), self.requests
    self._first = time.monotonic()
    is_taken = requests is not None and requests.has_begun
    _say(requests.answer if requests is not None else 'interrupted')
    self.has_answered.set()
    again = None
    if not is_taken:
      if self.can_unwind:
        again = self._wait([signal.SIGINT], _PATIENCE_SECONDS)
      if again is None and not self.is_delivered:
        _end(number)
    again = again or self._wait([signal.SIGINT])
    _say('interrupted again: ended at once')
    _end(again)

  def _wait(
    self, numbers: Sequence[int], seconds: float | None = None
  ) -> int | None:
    """The next of these signals; None after so many seconds."""
    while select.select([self._read_end], [], [], seconds)[0]:
      number = os.read(self._read_end, 1)[0]
      if number == _DROPPED:
        time.sleep(_SECONDS_BEFORE_REPEAT)
        self._num_repeats += 1
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
      elif self._num_repeats > 0:
        self._num_repeats -= 1
      elif number in numbers and not self._is_of_first_request():
        return number
    return None

  def _is_of_first_request(self) -> bool:
    return (
      self._first is not None
      and time.monotonic() - self._first < _SECONDS_OF_ONE_REQUEST
    )


_watch: _Watch | None = None  # signals belong to the process, and so does this


def watch(can_unwind: bool = False) -> None:
  """Has Ctrl-C answered with one line at once, as long as the process lives.

  The first one raises KeyboardInterrupt in the main thread, and ends the process if
  that does not come back to Python within a second; a second one always ends it.
  `StopRequests` takes the first one, once it has begun. Nothing of this is so where
  SIGINT is ignored, as in a shell's background processes.

  It is to be called first in a program, and has more of what has to come first:
  `streams.protect`, and `end_with`.

  Args:
    can_unwind: from now on; until then Ctrl-C ends the process at once, as long as
      there is nothing to be left in order, such as while modules are imported.
  """
  global _watch
  if not _Ending.is_prepared:
    _Ending.is_prepared = True
    streams.protect()
    atexit.register(_leave)  # the first of them, which is called last
  if _watch is None:
    is_main = threading.current_thread() is threading.main_thread()
    if not is_main or signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
      return
    _watch = _Watch()
  _watch.can_unwind |= can_unwind


@contextlib.contextmanager
def shielding_children() -> Iterator[None]:
  """Processes and threads that start meanwhile do not get `SIGNALS`.

  Terminals and schedulers send them to a whole group of processes, of which this
  one alone knows what to do.
  """
  former = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
  try:
    yield
  finally:
    signal.pthread_sigmask(signal.SIG_SETMASK, former)


class _Ending:
  """Of this process: see `end_with`."""

  is_prepared, status = False, None


def end_with(status: int) -> None:
  """Sets the exit status of a program that has done all it had to do.

  When Python's functions for the exit have been called, such as JAX's, the process
  ends at once, and not after the interpreter has taken itself down: threads of XLA,
  which nothing stops, would crash it meanwhile.
  """
  _Ending.status = status
  if _watch is None:
    return
  _watch.can_unwind = False  # nothing is left to be put in order
  if status > 128:  # a limit of processor time asks again every second
    for number in _REQUESTS:
      signal.signal(number, signal.SIG_IGN)


def _leave() -> None:
  if _Ending.status is not None:
    streams.flush()
    os._exit(_Ending.status)


def await_answer() -> None:
  """For who has caught KeyboardInterrupt: until its line is printed."""
  if _watch is not None:
    _watch.has_answered.wait(_PATIENCE_SECONDS)


class StopRequests(contextlib.AbstractContextManager):
  """Notes the first of `SIGNALS`; later ones but SIGINT are of no effect.

  Before `begin` they have their usual effect: there is nothing to save. Where one
  of them is ignored, as SIGHUP is after `nohup`, it stays so, but for SIGINT.

  Of several processes all stop at the same step when one gets SIGTERM, by
  JAX's preemption service, which has its own handler; SIGINT is passed on to it.

  Args:
    promise: what is said at once when a signal comes after `begin`.
  """

  def __init__(self, promise: str):
    import jax

    self._promise, self.has_begun = promise, False
    self._is_one_of_several = jax.process_count() > 1
    self._received, self._previous = None, {}

  @property
  def answer(self) -> str:
    """One line to whoever sends a signal now."""
    return (
      self._promise if self.has_begun else 'interrupted: nothing to save yet'
    )

  def __enter__(self):
    if _watch is not None:
      _watch.requests = self
    return self

  def begin(self) -> None:
    """From now on signals are noted, for `reached`."""
    if threading.current_thread() is not threading.main_thread():
      return  # others cannot have handlers
    self.has_begun = True
    if self._is_one_of_several:
      for number in set(SIGNALS) - {signal.SIGTERM}:
        self._handle(number, self._pass_on)
      return
    for number in SIGNALS:
      self._handle(number, self._note)

  def __exit__(self, exception_type, exception, traceback):
    while self._previous:
      signal.signal(*self._previous.popitem())
    if exception_type is KeyboardInterrupt or self._received is not None:
      await_answer()  # which is this one's
    if _watch is not None:
      _watch.requests = None

  def _handle(self, number: int, handler) -> None:
    is_ignored = signal.getsignal(number) is signal.SIG_IGN
    if number == signal.SIGINT or not is_ignored:
      self._previous[number] = signal.signal(number, handler)

  def _note(self, number: int, frame) -> None:
    del frame
    if self._received is not None:
      return  # a terminal that closes, or `timeout`, says so twice
    self._received = number
    # That of the watch leaves the second one to it.
    signal.signal(signal.SIGINT, self._previous.pop(signal.SIGINT))
    if _watch is not None:
      _watch.is_delivered = True

  def _pass_on(self, number: int, frame) -> None:
    is_first = self._received is None
    self._note(number, frame)
    if is_first:
      signal.raise_signal(signal.SIGTERM)

  def reached(self, step: int) -> int | None:
    """The signal after which to stop now; None to go on.

    Args:
      step: to be called with each of them, in all processes.
    """
    if not self._is_one_of_several:
      return self._received
    from jax.experimental import multihost_utils

    if multihost_utils.reached_preemption_sync_point(step):
      return signal.SIGTERM
    return None


def _say(text: str) -> None:
  """One line on stderr."""
  print(text, file=sys.stderr, flush=True)


def _end(number: int) -> None:
  """Ends the process from whatever thread, without leaving anything in order.

  Stdout is not flushed: the main thread may hold it, in a write that waits.
  """
  with contextlib.suppress(OSError):  # of a terminal that is closed
    if os.isatty(1):
      os.write(1, _SHOW_CURSOR)
  os._exit(128 + number)

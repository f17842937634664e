"""Ctrl-C and other signals: the program answers at once, and a run saves first.

Python runs signal handlers in the main thread once it is back in Python code: not
while XLA compiles, nor while a process waits for others. `watch` therefore starts a
thread that answers Ctrl-C without the main thread.

XLA's threads cannot be stopped either. They would crash in an interpreter that shuts
down, so the process exits before that (`end_with`).
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

# Requests to stop, from users, terminals and schedulers. SLURM, SGE and LSF announce
# the end of a job by SIGUSR1 or SIGUSR2, a shell's CPU time limit by SIGXCPU.
_REQUESTS = (
  signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGXCPU,
)  # fmt: skip
SIGNALS = (signal.SIGINT, *_REQUESTS)
# `timeout` signals a process and its group, so the process gets the signal twice.
_SECONDS_OF_ONE_REQUEST = 0.1
# How long the main thread may take to return to Python after Ctrl-C.
_PATIENCE_SECONDS = 1.0
_DROPPED, _SECONDS_BEFORE_REPEAT = 0, 0.02  # for a dropped KeyboardInterrupt
_SHOW_CURSOR = b'\x1b[?25h'  # progress bars hide it


class Interrupted(Exception):
  """A run stopped on request and can be resumed.

  Attributes:
    signal_number: the signal that requested it.
  """

  def __init__(self, message: str, signal_number: int):
    super().__init__(message)
    self.signal_number = signal_number


class _Watch:
  """The thread that answers signals, and its state.

  Attributes:
    can_unwind: Ctrl-C raises KeyboardInterrupt; otherwise it ends the process.
    is_delivered: the first signal reached the main thread.
    has_answered: set when the first signal was answered.
    requests: the open `StopRequests`, or None.
  """

  def __init__(self):
    self.can_unwind = self.is_delivered = False
    self.has_answered = threading.Event()
    self.requests: StopRequests | None = None
    # The wakeup descriptor gets only signals with a Python handler, and asyncio
    # replaces signal.default_int_handler.
    signal.signal(signal.SIGINT, self._raise)
    self._read_end, self._write_end = os.pipe()
    os.set_blocking(self._write_end, False)
    signal.set_wakeup_fd(self._write_end, warn_on_full_buffer=False)
    self._first: float | None = None  # time of the first signal
    self._num_repeats, self._hook = 0, sys.unraisablehook
    sys.unraisablehook = self._note_dropped
    threading.Thread(target=self._answer, daemon=True).start()

  def _raise(self, number: int, frame) -> None:
    del number, frame
    if self.can_unwind and not self.is_delivered:
      self.is_delivered = True
      raise KeyboardInterrupt

  def _note_dropped(self, unraisable) -> None:
    """Repeats an interrupt that was dropped in JAX's garbage collector callback."""
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
    """The next one of these signals, or None after `seconds`."""
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


_watch: _Watch | None = None  # global, as signals are


def watch(can_unwind: bool = False) -> None:
  """Answers Ctrl-C with one line at once, until the process ends.

  The first Ctrl-C raises KeyboardInterrupt in the main thread, or ends the process
  if that does not return to Python within a second; a second one always ends it.
  After `StopRequests.begin` the first one is a request to stop instead. Does
  nothing if SIGINT is ignored, as in a shell's background processes.

  Call it first in a program: it also calls `streams.protect` and prepares
  `end_with`.

  Args:
    can_unwind: whether Ctrl-C may raise from now on. Until then it ends the process
      at once, such as during imports, where nothing needs cleaning up.
  """
  global _watch
  if not _Ending.is_prepared:
    _Ending.is_prepared = True
    streams.protect()
    atexit.register(_leave)  # registered first, so called last
  if _watch is None:
    is_main = threading.current_thread() is threading.main_thread()
    if not is_main or signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
      return
    _watch = _Watch()
  _watch.can_unwind |= can_unwind


@contextlib.contextmanager
def shielding_children() -> Iterator[None]:
  """Processes and threads started inside do not get `SIGNALS`.

  Terminals and schedulers send them to the whole process group, but only this
  process handles them.
  """
  former = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
  try:
    yield
  finally:
    signal.pthread_sigmask(signal.SIG_SETMASK, former)


class _Ending:
  """How this process ends: see `end_with`."""

  is_prepared, status = False, None


def end_with(status: int) -> None:
  """Sets the exit status of a program that has finished.

  The process exits right after the atexit functions, such as JAX's, and before the
  interpreter shuts down, during which XLA's threads could crash it.
  """
  _Ending.status = status
  if _watch is None:
    return
  _watch.can_unwind = False  # nothing is left to clean up
  if status > 128:  # a CPU time limit repeats its signal every second
    for number in _REQUESTS:
      signal.signal(number, signal.SIG_IGN)


def _leave() -> None:
  if _Ending.status is not None:
    streams.flush()
    os._exit(_Ending.status)


def await_answer() -> None:
  """Waits until the line about Ctrl-C is printed; call on KeyboardInterrupt."""
  if _watch is not None:
    _watch.has_answered.wait(_PATIENCE_SECONDS)


class StopRequests(contextlib.AbstractContextManager):
  """Records the first of `SIGNALS`; later ones except SIGINT have no effect.

  Before `begin` they have their usual effect, as there is nothing to save. Signals
  that are ignored, such as SIGHUP after `nohup`, stay ignored, except SIGINT.

  With several processes, all stop at the same step when one gets SIGTERM, through
  JAX's preemption service; other signals are passed on to it as SIGTERM.

  Args:
    promise: the answer to a signal after `begin`.
  """

  def __init__(self, promise: str):
    import jax

    self._promise, self.has_begun = promise, False
    self._is_one_of_several = jax.process_count() > 1
    self._received, self._previous = None, {}

  @property
  def answer(self) -> str:
    """The line that answers a signal."""
    return (
      self._promise if self.has_begun else 'interrupted: nothing to save yet'
    )

  def __enter__(self):
    if _watch is not None:
      _watch.requests = self
    return self

  def begin(self) -> None:
    """Records signals from now on, for `reached`."""
    if threading.current_thread() is not threading.main_thread():
      return  # other threads cannot set handlers
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
      await_answer()  # it is taken from self.requests
    if _watch is not None:
      _watch.requests = None

  def _handle(self, number: int, handler) -> None:
    is_ignored = signal.getsignal(number) is signal.SIG_IGN
    if number == signal.SIGINT or not is_ignored:
      self._previous[number] = signal.signal(number, handler)

  def _note(self, number: int, frame) -> None:
    del frame
    if self._received is not None:
      return  # closing terminals and `timeout` send signals twice
    self._received = number
    # Back to the watch's handler: a second Ctrl-C ends the process.
    signal.signal(signal.SIGINT, self._previous.pop(signal.SIGINT))
    if _watch is not None:
      _watch.is_delivered = True

  def _pass_on(self, number: int, frame) -> None:
    is_first = self._received is None
    self._note(number, frame)
    if is_first:
      signal.raise_signal(signal.SIGTERM)

  def reached(self, step: int) -> int | None:
    """The signal that requests a stop at this step, or None.

    Call it for each step, in all processes.
    """
    if not self._is_one_of_several:
      return self._received
    from jax.experimental import multihost_utils

    if multihost_utils.reached_preemption_sync_point(step):
      return signal.SIGTERM
    return None


def _say(text: str) -> None:
  """Prints a line to stderr, also while the main thread redirects it."""
  print(text, file=sys.__stderr__ or sys.stderr, flush=True)


def _end(number: int) -> None:
  """Ends the process from any thread, without cleaning up.

  Does not flush stdout: the main thread may hold its lock in a blocked write.
  """
  with contextlib.suppress(OSError):  # the terminal is closed
    if os.isatty(1):
      os.write(1, _SHOW_CURSOR)
  os._exit(128 + number)

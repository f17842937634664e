"""Faults that are done to runs, and what has become of the runs."""

import contextlib
import dataclasses
import os
import pathlib
import random
import subprocess
import threading
import time
from collections.abc import Callable, Iterator

from benchmarks.fault_runs import Process, Run, resumed_from
from bn_inception.errors import UserError

_COMPARING = threading.Lock()  # of threads, one at a time
# How the lines begin that tell of a fault, the most telling first.
TELLING = (
  'error: ', 'checkpoint ', 'stopped by ', 'workdir ', 'stdout ',
  'this process runs alone', 'resuming from ',
)  # fmt: skip


@dataclasses.dataclass
class Row:
  """A fault, and what has become of the runs that it was done to.

  Attributes:
    fault: in words.
    tried, survived: how often.
    steps_lost: most that had to be done again.
    differing_arrays: most, of all runs that came to their end.
    runtime_lines: most that XLA's runtime logged in one process.
    seconds: most between the fault and the end of the run's last process.
    said: the first line about it, of the first time.
    problems: why it was not survived.
    not_run: why it was not tried.
  """

  fault: str
  tried: int = 0
  survived: int = 0
  steps_lost: int = 0
  differing_arrays: int = 0
  orphans: int = 0
  runtime_lines: int = 0
  seconds: float = 0.0
  said: str = ''
  problems: list[str] = dataclasses.field(default_factory=list)
  not_run: str | None = None

  def note(
    self, processes: list[Process], expected: list[int | tuple[int, ...]]
  ) -> None:
    """What ended processes did wrong, and what they say."""
    self.orphans += sum(process.orphans for process in processes)
    counts = [len(process.of_runtime) for process in processes]
    self.runtime_lines = max(self.runtime_lines, *counts)
    for process, status in zip(processes, expected, strict=True):
      if process.status is None:
        self.problems.append('it hangs')
      elif process.status not in (
        status if isinstance(status, tuple) else (status,)
      ):
        said = (process.complained or process.said or [''])[-1]
        self.problems.append(
          f'exit status {process.status} and not {status}: {said}'
        )
      if process.orphans:
        self.problems.append(f'{process.orphans} processes left')
      if len(process.complained) > 1:
        lines = process.complained
        self.problems.append(f'{len(lines)} lines on stderr: {lines[-1]}')
    if not self.said:
      self.said = first_line(processes)


def first_line(processes: list[Process]) -> str:
  """What a user reads first of a fault."""
  lines = [line for p in processes for line in (*p.complained, *p.said)]
  for beginning in TELLING:
    for line in lines:
      if line.startswith(beginning):
        return line
  return ''


@dataclasses.dataclass(frozen=True)
class Fault:
  """Something done to a run while it runs.

  Attributes:
    when: it is true at the moment to do it.
    what: does it; returns other processes that this has started.
    expected: exit statuses of the run's processes and of those; a tuple where
      several are right.
    pause: seconds between the moment and the deed.
    afterwards: mends what is needed to go on; returns problems.
  """

  when: Callable[[Run], bool]
  what: Callable[[Run, list[Process]], list[Process] | None]
  expected: list[int | tuple[int, ...]]
  pause: float = 0.0
  afterwards: Callable[[Run], list[str]] = lambda run: []


def try_faults(row: Row, run: Run, faults: list[Fault]) -> None:
  """Disturbs one run by one fault after the other, and compares its end."""
  tried, num_problems, last_step = 0, len(row.problems), None
  for fault in [*faults, None]:
    processes = run.start()
    if fault is None or not run.wait_until(lambda f=fault: f.when(run)):
      fault = None  # the end came first
    else:
      time.sleep(fault.pause)
      start = time.monotonic()
      processes = [*processes, *(fault.what(run, processes) or [])]
      tried += 1
    for process in processes:
      process.wait()
    if last_step is not None:
      lost = last_step - resumed_from(processes[0])
      row.steps_lost = max(row.steps_lost, lost)
    if fault is None:
      row.note(processes, [0] * len(processes))
      break
    row.note(processes, fault.expected)
    end = max(process.end_time for process in processes)
    row.seconds = max(row.seconds, end - start)
    last_step = run.last_step()
    row.problems += fault.afterwards(run)
  if compare(row, run) and len(row.problems) == num_problems:
    row.survived += tried
  row.tried += tried


def try_refused(
  row: Row, run: Run, start: Callable[[], list[Process]], status: int = 2
) -> None:
  """Starts a run where it must be refused, and then as it should be.

  Args:
    row: for the result.
    run: that was stopped half-way.
    start: starts it where it cannot go on, and waits for it.
    status: exit status of the refusal.
  """
  row.tried += 1
  num_problems, last_step = len(row.problems), run.last_step()
  row.note(start(), [status])
  (process,) = run.start_and_wait()
  row.note([process], [0])
  row.steps_lost = max(row.steps_lost, last_step - resumed_from(process))
  if compare(row, run) and len(row.problems) == num_problems:
    row.survived += 1


def compare(row: Row, run: Run) -> bool:
  """Whether a run came to the end of an undisturbed one."""
  try:
    with _COMPARING:
      differing = run.differing_arrays(
        run.laboratory.reference(run.num_processes)
      )
  except UserError as error:
    row.problems.append(str(error))
    return False
  row.differing_arrays = max(row.differing_arrays, differing)
  return not differing


# When: moments of a run. What: deeds.


def at_step(step: int) -> Callable[[Run], bool]:
  return lambda run: run.last_step() >= step


def saving(step: int, is_named: bool) -> Callable[[Run], bool]:
  return lambda run: any(s > step for s in run.saves(is_named))


def send(number: int, index: int = 0) -> Callable:
  """A signal to one process."""
  return lambda run, processes: os.kill(processes[index].pid, number)


def send_to_group(number: int) -> Callable:
  """A signal to it and its workers, as from schedulers and terminals."""
  return lambda run, processes: os.killpg(processes[0].pid, number)


def spread_steps(rng: random.Random, count: int, last: int) -> list[int]:
  """Random steps in a row, one in each equal part of a run."""
  return [
    rng.randrange(i * last // count + 3, (i + 1) * last // count)
    for i in range(count)
  ]


@contextlib.contextmanager
def mounted(*arguments: str, at: pathlib.Path) -> Iterator[None]:
  """Raises OSError or CalledProcessError where that is refused."""
  at.mkdir(exist_ok=True)
  command = ['mount', *arguments, str(at)]
  subprocess.run(command, check=True, capture_output=True)
  try:
    yield
  finally:
    subprocess.run(['umount', '--lazy', str(at)], check=True)

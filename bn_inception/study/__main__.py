r"""Trains and evaluates the runs of studies, each in a process of its own.

  python -m bn_inception.study --study=figure2 --data_dir=/data/tfds
  python -m bn_inception.study --study=figure2 --task=imagenet --list

The studies are in configs/studies.py. Finished runs are skipped, interrupted ones
resume. `--list` prints one command per line instead, for any scheduler.
"""

from bn_inception.machine import interruption
from bn_inception.wording import count

if __name__ == '__main__':
  interruption.watch()  # the other imports take seconds

import contextlib
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from types import MappingProxyType

import jax
from absl import flags

from bn_inception.data.sources import make_source
from bn_inception.errors import UserError, check_writable, writing
from bn_inception.machine import streams
from bn_inception.machine.interruption import Interrupted, StopRequests
from bn_inception.programs import command_line
from bn_inception.programs.path_flags import define_path
from bn_inception.programs.presets import studies
from bn_inception.runs.display import format_seconds
from bn_inception.runs.logbook import open_at_end
from bn_inception.study import flags as study_flags
from bn_inception.study import runs as study_runs
from bn_inception.study.runs import (
  BEGUN,
  FINISHED,
  LOG_FILE,
  NOT_BEGUN,
  TRAINED,
  Run,
)

_SECONDS_BETWEEN_LOOKS = 0.2


class Worker:
  """The commands of one run, one after the other, as processes.

  Args:
    run: what to train and evaluate.
    cores: cores that it may use; None: all.
    data_dir: where TFDS data sets are; None: TFDS's default.
    environment: defaults for environment variables that this process does not
      set.

  Raises:
    UserError: if its folder cannot be written.
  """

  def __init__(
    self,
    run: Run,
    cores: list[int] | None,
    data_dir: str | None,
    environment: Mapping[str, str],
  ):
    self.run, self.cores = run, cores
    self._environment = {**environment, **os.environ}
    self._commands = [run.evaluate_command(data_dir)]
    if run.status() != TRAINED:
      self._commands.insert(0, run.train_command(data_dir))
    with writing(run.folder):
      os.makedirs(run.folder, exist_ok=True)
      self._log = open_at_end(os.path.join(run.folder, LOG_FILE))
    self._process = self._start()

  def _start(self) -> subprocess.Popen:
    command = [sys.executable, *self._commands.pop(0)]
    if self.cores is not None:
      cores = ','.join(map(str, self.cores))
      command = ['taskset', '--cpu-list', cores, *command]
    return subprocess.Popen(
      command,
      stdout=self._log,
      stderr=subprocess.STDOUT,
      env=self._environment,
      # Ctrl-C reaches this program, which asks its workers to stop.
      start_new_session=True,
    )

  def poll(self) -> int | None:
    """The exit status of the last command; None while there is more to do."""
    status = self._process.poll()
    if status is None:
      return None
    # After a divergence there is nothing to evaluate.
    if status == 0 and self._commands and self.run.status() == TRAINED:
      self._process = self._start()
      return None
    self._log.close()
    return status

  def stop(self) -> None:
    """Asks the run to save and stop."""
    self._commands.clear()
    self._process.send_signal(signal.SIGTERM)

  def last_line(self) -> str:
    """The last line of its log: after a failure, why."""
    with open(self._log.name) as file:
      lines = file.read().strip().splitlines()
    return lines[-1] if lines else 'it printed nothing'


class Progress:
  """Prints how many runs are done, and how long the rest will take."""

  def __init__(self, runs: Sequence[Run], jobs: int):
    self._total, self._jobs = len(runs), jobs
    self._done = sum(run.status() == FINISHED for run in runs)
    self._seconds: list[float] = []  # of the runs that ended here

  def begin(self, run: Run) -> None:
    print(f'begun  {run.folder}', flush=True)

  def end(self, run: Run, seconds: float) -> None:
    self._done += 1
    self._seconds.append(seconds)
    mean = sum(self._seconds) / len(self._seconds)
    left = (self._total - self._done) * mean / self._jobs
    print(
      f'[{self._done}/{self._total}] {run.arm}, {run.task}, seed {run.seed}: '
      f'{describe_result(run)} ({format_seconds(seconds)}); about '
      f'{format_seconds(left)} left',
      flush=True,
    )


def describe_result(run: Run) -> str:
  """'87.10 %', or that it diverged."""
  result = run.result()
  if result['diverged']:
    return f'diverged at step {result["first_nonfinite_step"]}'
  accuracies = [v['top1'] for v in run.evaluation()['results'].values()]
  return ' / '.join(f'{accuracy:.2f} %' for accuracy in accuracies)


def run_all(
  runs: Sequence[Run],
  jobs: int = 1,
  data_dir: str | None = None,
  minutes: float | None = None,
  environment: Mapping[str, str] = MappingProxyType({}),
) -> list[str]:
  """Trains and evaluates the runs that are not finished.

  Args:
    runs: the runs of any studies; a run that several share is trained once.
    jobs: number of runs at once, each with its share of the cores.
    data_dir: where TFDS data sets are; None: TFDS's default.
    minutes: time after which the runs must save and stop; None: no limit.
    environment: see `Worker`.

  Returns:
    One line for each run that failed.

  Raises:
    UserError: for more jobs than cores, or a folder that cannot be written.
    Interrupted: after a signal, once all runs have saved.
  """
  unique = list({run.folder: run for run in runs}.values())
  for run in unique:
    if run.status() != FINISHED:
      check_writable(run.path(LOG_FILE), 'give another --runs')
  cores = sorted(os.sched_getaffinity(0))
  if not 1 <= jobs <= len(cores):
    raise UserError(f'--jobs must be between 1 and {len(cores)}, got {jobs}')
  shares = [cores[i::jobs] if jobs > 1 else None for i in range(jobs)]
  progress = Progress(unique, jobs)
  waiting = [run for run in unique if run.status() != FINISHED]
  workers: dict[int, tuple[Worker, float]] = {}  # by share of the cores
  failures, deadline = [], None
  if minutes is not None:
    deadline = time.monotonic() + 60.0 * minutes
  promise = 'stopping: the runs save first; Ctrl-C again does not wait for them'
  with StopRequests(promise) as requests, contextlib.ExitStack() as stack:
    requests.begin()
    stack.callback(lambda: _stop_all([w for w, _ in workers.values()]))
    while waiting or workers:
      stop_signal = requests.reached(0)
      is_late = deadline is not None and time.monotonic() >= deadline
      if stop_signal is not None:
        raise Interrupted('stopped; the same command resumes', stop_signal)
      if is_late:
        left = count(len(waiting) + len(workers), 'run')
        print(f'time limit reached; {left} left')
        return failures
      for share in range(jobs):
        if share not in workers and waiting:
          run = waiting.pop(0)
          progress.begin(run)
          worker = Worker(run, shares[share], data_dir, environment)
          workers[share] = worker, time.monotonic()
      for share, (worker, start) in list(workers.items()):
        status = worker.poll()
        if status is None:
          continue
        del workers[share]
        if status == 0:
          progress.end(worker.run, time.monotonic() - start)
        else:
          failures.append(f'{worker.run.folder}: {worker.last_line()}')
          print(f'failed: {failures[-1]}', flush=True)
      time.sleep(_SECONDS_BETWEEN_LOOKS)
  return failures


def _stop_all(workers: Sequence[Worker]) -> None:
  for worker in workers:
    worker.stop()
  while any(worker.poll() is None for worker in workers):
    time.sleep(_SECONDS_BETWEEN_LOOKS)


def print_status(name: str, runs: Sequence[Run]) -> None:
  """Prints how many runs of a study are finished, trained, begun, not begun."""
  statuses = [run.status() for run in runs]
  counts = [
    f'{statuses.count(status)} {status}'
    for status in (FINISHED, TRAINED, BEGUN, NOT_BEGUN)
    if status in statuses
  ]
  print(f'{name:20} {count(len(runs), "run"):>8}: {", ".join(counts)}')


def check_data(runs: Sequence[Run], data_dir: str | None) -> None:
  """Opens the training data of all unfinished runs.

  Raises:
    UserError: if data are missing, once instead of in every run.
  """
  names = {
    (source['dataset'], source['train_split'])
    for source in (r.config['source'] for r in runs if r.status() != FINISHED)
  }
  for dataset, split in sorted(names):
    make_source(dataset, split, data_dir)


def define_flags() -> None:
  """The program's flags, in the program but not on import."""
  study_flags.define()
  define_path(
    'data_dir',
    None,
    'Folder of the data sets that TensorFlow Datasets prepared. Default: its '
    'own. Example: --data_dir=/data/tfds',
    may_be_bucket=True,
  )
  flags.DEFINE_bool(
    'list',
    False,
    'Only print the commands of unfinished runs, one run per line. '
    'Example: --list',
  )
  flags.DEFINE_bool(
    'status', False, 'Only say how far each study is. '
    'Example: --status',
  )  # fmt: skip
  flags.DEFINE_integer(
    'jobs',
    1,
    'Runs at once, each with its share of the cores; on CPUs at most one a core. '
    'Example: --jobs=2',
  )
  flags.DEFINE_float(
    'minutes',
    None,
    'Stop after this long; the same command resumes. Example: --minutes=90',
    lower_bound=0.0,
  )


def main() -> None:
  # Accelerators are for the runs.
  jax.config.update('jax_platforms', 'cpu')
  values = flags.FLAGS
  selection = study_flags.selection()
  runs_of = {
    name: study_runs.list_runs(name, selection) for name in study_flags.names()
  }
  runs = [run for found in runs_of.values() for run in found]
  if values.list:
    unique = {run.folder: run for run in runs if run.status() != FINISHED}
    for run in unique.values():
      print(run.shell_line(values.data_dir))
    return
  if not values.status:
    streams.continue_without_stdout()
  for name, found in runs_of.items():
    print_status(name, found)
  ignored = study_runs.others(runs, values.runs)
  if ignored:
    print(
      f'ignored: {count(len(ignored), "run")} in {values.runs} from other '
      'studies, settings or versions of this code'
    )
  if values.status:
    return
  if values.minutes is not None and not math.isfinite(values.minutes):
    raise UserError(f'--minutes must be a number, got {values.minutes}')
  if not values.study:
    raise UserError(
      'name the studies to train, such as --study=figure2; --study=all trains '
      f'all of these, {count(len({run.folder for run in runs}), "run")}'
    )
  check_data(runs, values.data_dir)
  failures = run_all(
    runs,
    values.jobs,
    values.data_dir,
    values.minutes,
    studies.QUICK_ENVIRONMENT if selection.is_quick else {},
  )
  if failures:
    raise UserError(
      f'{count(len(failures), "run")} failed; the same command tries again. '
      f'The first: {failures[0]}'
    )


if __name__ == '__main__':
  define_flags()
  command_line.run(main)

"""Runs of train.py for benchmarks/faults.py to disturb: real processes."""

import atexit
import contextlib
import dataclasses
import functools
import os
import pathlib
import pty
import re
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence

import jax

from bn_inception.experiment import setup_of_checkpoint
from bn_inception.runs import checkpoint, checkpoint_folder
from bn_inception.runs.integrity import MANIFEST_FILE
from bn_inception.runs.logbook import read_metrics
from bn_inception.runs.run_directory import CHECKPOINTS_FOLDER

ROOT = pathlib.Path(__file__).parent.parent
NUM_EXAMPLES, BATCH_SIZE = 1442, 8  # of the digits' training split
NUM_STEPS, SAVE_EVERY = 60, 10
NUM_STEPS_OF_TWO, SAVE_EVERY_OF_TWO = 12, 4  # several processes are slower
HANG_SECONDS = 180  # nothing takes nearly as long
ORPHAN_SECONDS = 10  # that the processes of an ended run have to end, too


def _processes_of_session(session: int) -> list[int]:
  """Ids of those that run; from /proc."""
  found = []
  for name in filter(str.isdecimal, os.listdir('/proc')):
    try:
      if os.getsid(int(name)) == session:
        stat = pathlib.Path('/proc', name, 'stat').read_text()
        if stat.rpartition(')')[2].split()[0] not in 'ZX':
          found.append(int(name))
    except OSError:  # it has ended meanwhile
      continue
  return found


def free_port() -> int:
  """Of this host; nobody listens there now."""
  with socket.socket() as s:
    s.bind(('127.0.0.1', 0))
    return s.getsockname()[1]


class Process:
  """A program in a session of its own, and what it says.

  Attributes:
    status: exit status, once `wait` has returned; None: it hung.
    said, complained: lines of stdout and stderr, then.
    of_runtime: those lines of stderr that are log records of XLA's runtime,
      which are not in `complained`.
    orphans: how many processes of the session outlived it, then.
    start_time, end_time: of it, as of time.monotonic().
  """

  def __init__(self, command: Sequence[str], environment: dict[str, str]):
    self._streams = [tempfile.TemporaryFile('w+') for _ in range(2)]
    self.start_time = time.monotonic()
    self._process = self._start(command, environment)
    self.pid = self._process.pid  # and that of its group and session
    self.status, self.orphans, self.end_time = None, 0, None
    self.said, self.complained, self.of_runtime = [], [], []
    atexit.register(lambda: self.is_running() and self.kill_all())

  def _collect(self) -> None:
    """Called when nobody writes to the streams any more."""

  def _start(self, command, environment) -> subprocess.Popen:
    return subprocess.Popen(
      command, cwd=ROOT, env=environment, start_new_session=True,
      stdout=self._streams[0], stderr=self._streams[1],
    )  # fmt: skip

  def is_running(self) -> bool:
    return self._process.poll() is None

  def workers(self) -> list[int]:
    """Ids of the worker processes of the input pipeline."""
    found = []
    for pid in _processes_of_session(self.pid):
      try:
        command = pathlib.Path(f'/proc/{pid}/cmdline').read_text()
      except OSError:
        continue
      if 'spawn_main' in command:
        found.append(pid)
    return found

  def kill_all(self) -> None:
    for pid in _processes_of_session(self.pid):
      with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)

  def wait(self, seconds: float = HANG_SECONDS) -> None:
    """Until it and all processes that it started have ended, or too long."""
    try:
      self.status = self._process.wait(seconds)
    except subprocess.TimeoutExpired:
      self.kill_all()
      self._process.wait()
    self.end_time = time.monotonic()
    while left := _processes_of_session(self.pid):
      if time.monotonic() > self.end_time + ORPHAN_SECONDS:
        self.orphans = len(left)
        self.kill_all()
        break
      time.sleep(0.05)
    self._collect()
    for stream, lines in zip(
      self._streams, (self.said, self.complained), strict=True
    ):
      stream.seek(0)
      lines += stream.read().splitlines()
      stream.close()
    self.complained, self.of_runtime = split_records(self.complained)


class Listened(Process):
  """A program that talks to somebody who may go away: `hang_up`.

  What it says until then is in `said`.
  """

  def _start(self, command, environment):
    self._reader, writer = self._open()
    self._has_hung_up = threading.Event()
    process = self._talk(command, environment, writer)
    os.close(writer)
    self._thread = threading.Thread(target=self._listen, daemon=True)
    self._thread.start()
    return process

  def _open(self) -> tuple[int, int]:
    return os.pipe()

  def _talk(self, command, environment, writer) -> subprocess.Popen:
    return subprocess.Popen(
      command, cwd=ROOT, env=environment, start_new_session=True,
      stdout=writer, stderr=self._streams[1],
    )  # fmt: skip

  def _listen(self) -> None:
    while not self._has_hung_up.is_set():
      if not select.select([self._reader], [], [], 0.05)[0]:
        continue
      try:
        said = os.read(self._reader, 2**16)
      except OSError:  # a terminal that nobody writes to any more
        break
      if not said:
        break
      self._streams[0].buffer.write(said)
    os.close(self._reader)

  def _collect(self):
    self._thread.join(ORPHAN_SECONDS)  # it ends with the last who writes

  def hang_up(self) -> None:
    """Has nobody read any more; returns when that is so."""
    self._has_hung_up.set()
    self._thread.join()


class InTerminal(Listened):
  """A program whose stdin, stdout and stderr are a terminal of its own."""

  def _open(self):
    return pty.openpty()

  def _talk(self, command, environment, writer):
    # Under nohup it would go on.
    before = ['setsid', '--ctty', 'env', '--default-signal=HUP']
    return subprocess.Popen(
      [*before, *command], cwd=ROOT, env=environment,
      stdin=writer, stdout=writer, stderr=writer,
    )  # fmt: skip


def split_records(lines: Sequence[str]) -> tuple[list[str], list[str]]:
  """Lines of a program, and those of log records of XLA's C++ runtime.

  A record may have several lines: the first one begins as glog's do, and the
  record ends where Python speaks again.
  """
  own, records, is_record = [], [], False
  for line in lines:
    if re.match(
      r'[IWEF]\d{4} \d\d:\d\d:\d\d\.\d+ +\d+ \S+\.(cc|h):\d+\] ', line
    ):
      is_record = True
    elif re.match(r'error: |Traceback |\S*\w+(Error|Warning)\b', line):
      is_record = False
    (records if is_record else own).append(line)
  return own, records


@dataclasses.dataclass(frozen=True)
class Laboratory:
  """Where runs are made.

  Attributes:
    folder: of all their files, and of compiled programs.
  """

  folder: pathlib.Path

  @functools.cached_property
  def environment(self) -> dict[str, str]:
    """One device, and programs that are compiled once."""
    return {
      **os.environ,
      'JAX_PLATFORMS': 'cpu',
      # Compiles sooner; of several processes on CPUs JAX's cache serves one.
      'XLA_FLAGS': '--xla_backend_optimization_level=0',
      'JAX_NUM_CPU_DEVICES': '1',
      'JAX_COMPILATION_CACHE_DIR': str(self.folder / 'cache'),
      'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
    }

  @functools.cache  # noqa: B019, it lives as long as the program
  def reference(self, num_processes: int = 1) -> 'Run':
    """A run that nothing has disturbed."""
    run = Run(self, f'reference_{num_processes}', num_processes=num_processes)
    for process in run.start_and_wait():
      if process.status != 0:
        raise RuntimeError('\n'.join(process.complained) or 'it hangs')
    return run

  @functools.cache  # noqa: B019
  def stopped(self) -> 'Run':
    """A run that was asked to stop about half-way."""
    run = Run(self, 'stopped')
    (process,) = run.start()
    run.wait_until(lambda: run.last_step() >= NUM_STEPS // 2)
    os.kill(process.pid, signal.SIGTERM)
    process.wait()
    return run


class Run:
  """A run directory, and the command that trains in it.

  Args:
    laboratory: where.
    name: of the folder.
    num_workers: of the input pipeline.
    num_processes: that train together.
    folder: in which the run directory is made; None: the laboratory's.
    variables: of the environment, more than the laboratory's.
    make_process: of a command and an environment.
  """

  def __init__(
    self, laboratory: Laboratory, name: str, num_workers: int = 0,
    num_processes: int = 1, folder: pathlib.Path | None = None,
    variables: Mapping[str, str] | None = None,
    make_process: Callable[..., Process] = Process,
  ):  # fmt: skip
    self.laboratory, self.num_processes = laboratory, num_processes
    self.workdir = (folder or laboratory.folder) / name
    self.num_steps, self.save_every = (
      (NUM_STEPS, SAVE_EVERY)
      if num_processes == 1
      else (NUM_STEPS_OF_TWO, SAVE_EVERY_OF_TWO)
    )
    self._num_workers, self._processes = num_workers, []
    self.environment = laboratory.environment | dict(variables or {})
    self._make_process = make_process

  def copy(self, name: str, folder: pathlib.Path | None = None) -> 'Run':
    other = Run(self.laboratory, name, folder=folder)
    shutil.copytree(self.workdir, other.workdir)
    return other

  @property
  def checkpoints(self) -> pathlib.Path:
    return self.workdir / CHECKPOINTS_FOLDER

  def command(self) -> list[str]:
    values = {
      'model.width': 0.0625,
      'batch_size': BATCH_SIZE,
      'norm_batch_size': BATCH_SIZE,
      'data.num_workers': self._num_workers,
      'training.num_epochs': self.num_steps * BATCH_SIZE / NUM_EXAMPLES,
      'training.log_every_steps': 1,
      'training.eval_every_steps': self.num_steps,
      'training.checkpoint_every_steps': self.save_every,
      'training.keep_last_checkpoints': 3,
    }
    return [
      sys.executable, 'train.py', '--config=configs/bn_x5.py:digits',
      f'--workdir={self.workdir}',
      *(f'--config.{name}={value}' for name, value in values.items()),
    ]  # fmt: skip

  def start(self) -> list[Process]:
    """The command, in all processes."""
    layouts = [[]]
    if self.num_processes > 1:
      address = f'127.0.0.1:{free_port()}'
      layouts = [
        [
          f'--coordinator_address={address}', f'--process_id={i}',
          f'--num_processes={self.num_processes}',
        ] for i in range(self.num_processes)
      ]  # fmt: skip
    self._processes = [
      self._make_process([*self.command(), *layout], self.environment)
      for layout in layouts
    ]
    return self._processes

  def start_and_wait(self) -> list[Process]:
    processes = self.start()
    for process in processes:
      process.wait()
    return processes

  def wait_until(self, condition: Callable[[], bool]) -> bool:
    """Whether it came true while all processes ran."""
    deadline = time.monotonic() + HANG_SECONDS
    while not condition():
      if time.monotonic() > deadline:
        return False
      if not all(process.is_running() for process in self._processes):
        return False
      time.sleep(0.005)  # a save takes longer
    return True

  def workers(self) -> list[int]:
    """Those of its processes that run now."""
    return [pid for process in self._processes for pid in process.workers()]

  def last_step(self) -> int:
    """The last one in the log."""
    steps = [r['step'] for r in read_metrics(str(self.workdir))]
    return max(steps, default=0)

  def saves(self, is_named: bool) -> list[int]:
    """The steps whose checkpoints are being written now.

    Args:
      is_named: those that have their names and not yet their seal; else those
        of which orbax writes the files.
    """
    pattern = r'(\d+)' if is_named else r'(\d+)\.orbax-checkpoint-tmp.*'
    try:
      names = os.listdir(self.checkpoints)
    except FileNotFoundError:
      return []
    steps = [int(m[1]) for m in (re.fullmatch(pattern, n) for n in names) if m]
    if is_named:
      return [
        step for step in steps
        if not (self.checkpoints / str(step) / MANIFEST_FILE).exists()
      ]  # fmt: skip
    return steps

  def differing_arrays(self, other: 'Run') -> int:
    """How many arrays of the last states do not have the same bits."""
    mine, others = (jax.tree.leaves(run._last_state()) for run in (self, other))
    assert len(mine) == len(others) > 100
    return sum(
      a.tobytes() != b.tobytes() for a, b in zip(mine, others, strict=True)
    )

  def _last_state(self):
    """Of the last step: parameters, statistics, momentum, step."""
    path = checkpoint_folder.find(str(self.checkpoints), self.num_steps)
    setup = setup_of_checkpoint(checkpoint.read_description(path))
    state = checkpoint.restore(path, setup.abstract_state(), setup.replicated)
    return jax.device_get(state)


def resumed_from(process: Process) -> int:
  """The step from which a process went on; 0: from the beginning."""
  for line in process.said:
    if line.startswith('resuming from '):
      return int(line.rpartition('/')[2])
  return 0

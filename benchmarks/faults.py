"""What becomes of runs that are killed, stopped or damaged, and on odd machines.

  python -m benchmarks.faults --output=results/faults.json

Each fault is done to real runs, of train.py on digits, with a checkpoint every
10 of 60 steps. Then the same command is given again until the run is at its
end, which is compared, bit by bit, with that of a run that nothing disturbed.
Prints the two tables of docs/runs.md. For Linux; faults that need mounts are not run
by others than root.

A fault is survived if the run ended with the exit status that docs/runs.md
promises, with at most one line on stderr, with no process of its own left 10
seconds later, and if the end came out the same. Where a process is lost, XLA's
runtime may log it as well; its lines are counted apart.
"""

import concurrent.futures
import contextlib
import dataclasses
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable

from absl import flags

from benchmarks import machine_faults
from benchmarks.fault_runs import (
  NUM_STEPS,
  SAVE_EVERY,
  Laboratory,
  Process,
  Run,
  resumed_from,
)
from benchmarks.fault_trials import (
  Fault,
  Row,
  at_step,
  compare,
  mounted,
  saving,
  send,
  send_to_group,
  spread_steps,
  try_faults,
  try_refused,
)
from benchmarks.results import check_output, machine, print_table, write_output
from bn_inception.errors import UserError
from bn_inception.programs import command_line
from bn_inception.programs.path_flags import define_path
from bn_inception.runs import checkpoint_folder, integrity

_QUICK = flags.DEFINE_bool('quick', False, 'Few repetitions of each.')
_ONLY = flags.DEFINE_list('only', [], 'Faults to try; default: all.')
_SEED = flags.DEFINE_integer('seed', 0, 'Of moments, files and bits.')
_OUTPUT = define_path(
  'output', None, 'JSON file to write. Example: results/faults.json'
)

DISK = 'size=12m'  # a checkpoint takes 1 to 1.8 MB; four fit, with the log


# The faults. Each gets a row, for its results, a laboratory, the random numbers
# and whether to be quick.


def kill_at_random(row, lab, rng, quick):
  for i in range(1 if quick else 3):
    steps = spread_steps(rng, 4, 57)
    kill = send(signal.SIGKILL)
    faults = [
      Fault(at_step(step), kill, [-signal.SIGKILL], rng.uniform(0, 0.1))
      for step in steps
    ]
    try_faults(row, Run(lab, f'killed_{i}'), faults)


def kill_while_saving(row, lab, rng, quick):
  for i in range(1 if quick else 2):
    faults = [
      Fault(
        saving(step, is_named=n % 2 == 1),
        send(signal.SIGKILL),
        [-signal.SIGKILL],
        rng.choice([0.0, rng.uniform(0, 0.02)]),
      )
      for n, step in enumerate([8, 18, 28, 38])
    ]
    try_faults(row, Run(lab, f'killed_saving_{i}'), faults)


def stop_with(name: str, deed: Callable, status: int, num_workers: int = 0):
  def stop(row, lab, rng, quick):
    steps = spread_steps(rng, 1 if quick else 2, 50)
    faults = [Fault(at_step(step), deed, [status]) for step in steps]
    try_faults(row, Run(lab, name, num_workers=num_workers), faults)

  return stop


def of_two(name: str, number: int, index: int, statuses: list):
  def lose(row, lab, rng, quick):
    del quick  # once takes minutes, since two processes start slowly
    fault = Fault(at_step(rng.randrange(5, 9)), send(number, index), statuses)
    try_faults(row, Run(lab, name, num_processes=2), [fault])

  return lose


def kill_worker(row, lab, rng, quick):
  def kill(run, processes):
    del run
    os.kill(rng.choice(processes[0].workers()), signal.SIGKILL)

  def has_workers_at(step):
    # The log may be further than the step that a run has gone back to, so that
    # it alone does not say that this start has come to its workers.
    return lambda run: at_step(step)(run) and run.workers()

  faults = [
    Fault(has_workers_at(step), kill, [2], rng.uniform(0, 0.1))
    for step in spread_steps(rng, 1 if quick else 4, 40)
  ]
  try_faults(row, Run(lab, 'worker', num_workers=2), faults)


def truncate(path: pathlib.Path, rng: random.Random) -> None:
  os.truncate(path, rng.randrange(path.stat().st_size))


def flip_bit(path: pathlib.Path, rng: random.Random) -> None:
  content = bytearray(path.read_bytes())
  content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
  path.write_bytes(content)


def damage_with(name: str, harm: Callable, only: str | None = None):
  """A file of the newest checkpoint, before the run goes on."""

  def damage(row, lab, rng, quick):
    del quick
    run = lab.stopped().copy(name)
    newest = checkpoint_folder.find(str(run.checkpoints))
    files = [
      path for path in sorted(pathlib.Path(newest).rglob(only or '*'))
      if path.is_file() and path.stat().st_size
      and (only or path.name != integrity.MANIFEST_FILE)
    ]  # fmt: skip
    harm(rng.choice(files), rng)
    try_damaged(row, run, pathlib.Path(newest).name)

  return damage


def try_damaged(row: Row, run: Run, step: str) -> None:
  """Lets a run with a damaged checkpoint go on to its end."""
  row.tried += 1
  num_problems = len(row.problems)
  (process,) = run.start_and_wait()
  row.steps_lost = max(row.steps_lost, int(step) - resumed_from(process))
  row.note([process], [0])
  said = [line for line in process.said if ' is damaged (' in line]
  if len(said) != 1 or f'checkpoints/{step} ' not in said[0]:
    row.problems.append(f'checkpoint {step} is not named once: {said}')
  if not (run.workdir / checkpoint_folder.DAMAGED_FOLDER / step).exists():
    row.problems.append(f'checkpoint {step} is gone')
  if compare(row, run) and len(row.problems) == num_problems:
    row.survived += 1


def fill_disk(row, lab, rng, quick):
  def fill(run, processes):
    free = os.statvfs(run.workdir)
    size = max(0, free.f_bavail * free.f_frsize - rng.randrange(600_000))
    with contextlib.suppress(OSError):  # the run may have saved meanwhile
      (run.workdir.parent / 'filler').write_bytes(bytes(size))

  def make_room(run):
    (run.workdir.parent / 'filler').unlink()
    return [
      f'checkpoint {step}: {damage}'
      for step in checkpoint_folder.list_steps(str(run.checkpoints))
      if integrity.is_sealed(run.checkpoints / str(step))
      and (damage := integrity.find_damage(run.checkpoints / str(step)))
    ]

  del quick
  disk = lab.folder / 'disk'
  fault = Fault(at_step(rng.randrange(12, 45)), fill, [2], 0.0, make_room)
  with mounted('-t', 'tmpfs', '-o', DISK, 'tmpfs', at=disk):
    try_faults(row, Run(lab, 'run', folder=disk), [fault])


def start_second(row, lab, rng, quick):
  del quick

  def start(run, processes):
    return [Process(run.command(), lab.environment)]

  fault = Fault(at_step(rng.randrange(1, 5)), start, [0, 2])
  try_faults(row, Run(lab, 'shared'), [fault])


def make_read_only(row, lab, rng, quick):
  del rng, quick
  run = lab.stopped().copy('run', folder=lab.folder / 'read_only')
  folder = run.workdir.parent

  def start():
    with mounted('--bind', str(folder), at=folder):
      options = 'remount,ro,bind'
      subprocess.run(['mount', '-o', options, str(folder)], check=True)
      return run.start_and_wait()

  try_refused(row, run, start)


def remove_workdir(row, lab, rng, quick):
  def remove(run, processes):
    # Moved first: meanwhile the run must find no part of it.
    gone = run.workdir.with_name('gone')
    run.workdir.rename(gone)
    shutil.rmtree(gone)

  del quick
  fault = Fault(at_step(rng.randrange(12, 45)), remove, [2])
  try_faults(row, Run(lab, 'removed'), [fault])


TERM, INT = 128 + signal.SIGTERM, 128 + signal.SIGINT
KILLED, ABORTED = -signal.SIGKILL, -signal.SIGABRT
RUN_FAULTS = {
  'kill': ('SIGKILL at a random moment', kill_at_random),
  'kill_saving': ('SIGKILL while a checkpoint is written', kill_while_saving),
  'term': ('SIGTERM', stop_with('term', send(signal.SIGTERM), TERM)),
  'ctrl_c': (
    'Ctrl-C: SIGINT to it and two workers',
    stop_with('ctrl_c', send_to_group(signal.SIGINT), INT, 2),
  ),
  'term_group': (
    'SIGTERM to it and two workers',
    stop_with('term_group', send_to_group(signal.SIGTERM), TERM, 2),
  ),
  'kill_worker': ('SIGKILL to one of two workers', kill_worker),
  'kill_first': (
    'SIGKILL to the first of two processes',
    # JAX's coordinator is in the first: its client aborts the others, if they
    # do not find out by themselves before.
    of_two('kill_first', signal.SIGKILL, 0, [KILLED, (1, ABORTED)]),
  ),
  'kill_second': (
    'SIGKILL to the second of two processes',
    of_two('kill_second', signal.SIGKILL, 1, [1, KILLED]),
  ),
  'term_second': (
    'SIGTERM to the second of two processes',
    of_two('term_second', signal.SIGTERM, 1, [TERM, TERM]),
  ),
  'truncated': (
    'newest checkpoint: a file cut short',
    damage_with('truncated', truncate),
  ),
  'emptied': (
    'newest checkpoint: a file emptied',
    damage_with('emptied', lambda path, rng: os.truncate(path, 0)),
  ),
  'deleted': (
    'newest checkpoint: a file deleted',
    damage_with('deleted', lambda path, rng: path.unlink()),
  ),
  'bit': (
    'newest checkpoint: one bit flipped',
    damage_with('bit', flip_bit),
  ),
  'unsealed': (
    f'newest checkpoint: {integrity.MANIFEST_FILE} deleted',
    damage_with(
      'unsealed', lambda path, rng: path.unlink(), integrity.MANIFEST_FILE
    ),
  ),
  'disk': ('disk full while saving', fill_disk),
  'second': ('another run in the same folder', start_second),
  'read_only': ('folder read-only', make_read_only),
  'removed': ('folder removed during the run', remove_workdir),
}
FAULTS = RUN_FAULTS | machine_faults.FAULTS
FAULTS_OF_TWO = 'kill_first', 'kill_second', 'term_second'  # processes


def try_fault(name: str, lab: Laboratory) -> Row:
  fault, function = FAULTS[name]
  row, rng = Row(fault), random.Random(f'{_SEED.value} {name}')
  try:
    function(row, lab, rng, _QUICK.value)
  except (subprocess.CalledProcessError, PermissionError) as error:
    said = getattr(error, 'stderr', None)
    row.not_run = said.decode().strip() if said else str(error)
  row.said = row.said.replace(f'{lab.folder}/', '')
  return row


def try_all(names: list[str], lab: Laboratory) -> dict[str, Row]:
  """Two faults at a time, since a run spends half of its life on one core."""
  rows = {}
  names_of_two = [name for name in names if name in FAULTS_OF_TWO]
  lab.reference(), lab.stopped()
  if names_of_two:
    lab.reference(num_processes=2)
  others = [name for name in names if name not in names_of_two]
  with concurrent.futures.ThreadPoolExecutor(2) as pool:
    jobs = {
      pool.submit(try_fault, name, lab): name for name in names_of_two + others
    }
    for job in concurrent.futures.as_completed(jobs):
      name = jobs[job]
      row = rows[name] = job.result()
      print(
        f'{row.fault}: {row.not_run or f"{row.survived} of {row.tried}"}',
        *row.problems, sep='\n  ', file=sys.stderr, flush=True,
      )  # fmt: skip
  return {name: rows[name] for name in names}


HEADER = ['fault', 'survived', 'most steps lost']


def print_rows(rows: dict[str, Row]) -> None:
  """A table of what is done to runs, and one of what machines lack."""
  of_machines = [rows[name] for name in rows if name in machine_faults.FAULTS]
  of_runs = [rows[name] for name in rows if name in RUN_FAULTS]
  for table in filter(None, (of_runs, of_machines)):
    _print_table(table)
    print()
  for row in rows.values():
    for problem in row.problems:
      print(f'\n{row.fault}: {problem[:1000]}')


def _print_table(rows: list[Row]) -> None:
  lines = []
  for row in rows:
    cells = [f'{row.survived} of {row.tried}', str(row.steps_lost)]
    if row.not_run is not None:
      cells = [f'not run: {row.not_run}', '']
    lines.append([row.fault, *cells])
  print_table(HEADER, lines)


def main() -> None:
  unknown = set(_ONLY.value) - set(FAULTS)
  if unknown:
    raise UserError(
      f"there is no fault '{min(unknown)}': use {', '.join(FAULTS)}"
    )
  if not sys.platform.startswith('linux'):
    raise UserError('faults are tried on Linux, whose /proc names processes')
  check_output(_OUTPUT.value)
  start = time.monotonic()
  with tempfile.TemporaryDirectory() as folder:
    rows = try_all(
      _ONLY.value or list(FAULTS), Laboratory(pathlib.Path(folder))
    )
  print_rows(rows)
  content = {
    'machine': machine(len(os.sched_getaffinity(0))),
    'seconds': round(time.monotonic() - start),
    'settings': {
      'quick': _QUICK.value, 'seed': _SEED.value, 'steps': NUM_STEPS,
      'checkpoint_every_steps': SAVE_EVERY,
    },
    'results': {
      name: dataclasses.asdict(row) | {'seconds': round(row.seconds, 1)}
      for name, row in rows.items()
    },
  }  # fmt: skip
  write_output(_OUTPUT.value, content)


if __name__ == '__main__':
  command_line.run(main)

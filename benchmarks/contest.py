"""Contenders that take turns on the same cores, and what that says of them.

The machine is not quiet, and its clock changes: what is worth reporting are the
ratios of what was measured side by side, in the same round.
"""

import dataclasses
import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence

from absl import flags

from benchmarks.contenders import Setup
from benchmarks.results import divide, machine, print_table, spread
from bn_inception.errors import UserError

ROOT = pathlib.Path(__file__).parent.parent


class Contender:
  """A process of contenders.py, stopped while it is not its turn.

  Attributes:
    ready: what it said of its first step.
    images_per_second: in each round.
    peak_bytes: most memory that was resident in its steps.
    not_run: why it could not be started.
  """

  def __init__(self, setup: Setup, cores: Sequence[int]):
    self.setup = setup
    self.images_per_second: list[float] = []
    self.peak_bytes = 0
    self.not_run: str | None = None
    self.ready: dict = {}
    self._complaints = tempfile.TemporaryFile('w+')  # a pipe could be full
    self._process = subprocess.Popen(
      [
        'taskset', '--cpu-list', ','.join(map(str, cores)),
        sys.executable, '-m', 'benchmarks.contenders', *setup.arguments(),
      ],
      cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
      stderr=self._complaints, text=True,
      # A cold start is what is reported as the time to compile.
      env={**os.environ, 'JAX_PLATFORMS': 'cpu', 'JAX_COMPILATION_CACHE_DIR': ''},
    )  # fmt: skip
    line = self._process.stdout.readline()
    if line:
      self.ready = json.loads(line)
      self._process.send_signal(signal.SIGSTOP)
    else:
      self.not_run = self._last_complaint()

  def take_turn(self, num_steps: int) -> None:
    self._process.send_signal(signal.SIGCONT)
    self._process.stdin.write(f'{num_steps}\n')
    self._process.stdin.flush()
    line = self._process.stdout.readline()
    if not line:
      raise RuntimeError(f'{self.setup.name}: {self._last_complaint()}')
    said = json.loads(line)
    self._process.send_signal(signal.SIGSTOP)
    self.images_per_second.append(
      num_steps * self.setup.batch_size / said['seconds']
    )
    self.peak_bytes = max(self.peak_bytes, said['peak_bytes'])

  def end(self) -> None:
    self._process.kill()
    self._process.wait()
    self._process.stdin.close()
    self._process.stdout.close()
    self._complaints.close()

  def _last_complaint(self) -> str:
    self._process.wait()
    self._complaints.seek(0)
    said = self._complaints.read().strip().splitlines()
    return said[-1] if said else f'exit status {self._process.returncode}'


def compete(
  setups: Sequence[Setup],
  cores: Sequence[int],
  num_rounds: int,
  seconds: float,
) -> list[Contender]:
  """Lets all take `num_rounds` turns of about so many seconds.

  Raises:
    UserError: if the first one cannot be started.
  """
  contenders = []
  try:
    for setup in setups:
      print(f'starting {setup.name}', file=sys.stderr, flush=True)
      contenders.append(Contender(setup, cores))
    running = [c for c in contenders if c.not_run is None]
    if contenders[0].not_run is not None:
      raise UserError(f'{setups[0].name}: {contenders[0].not_run}')
    num_steps = {}
    for contender in running:
      contender.take_turn(1)
      rate = contender.images_per_second.pop() / contender.setup.batch_size
      num_steps[contender] = max(1, round(seconds * rate))
    for i in range(num_rounds):
      # Every other round backwards, so that no one is always after the same.
      for contender in running[:: 1 if i % 2 else -1]:
        contender.take_turn(num_steps[contender])
  finally:
    for contender in contenders:
      contender.end()
  return contenders


def summarize(contenders: Sequence[Contender]) -> list[dict]:
  """What was measured, and the ratios to the first contender."""
  first, rows = contenders[0], []
  for contender in contenders:
    row = dataclasses.asdict(contender.setup)
    if contender.not_run is not None:
      rows.append(row | {'not_run': contender.not_run})
      continue
    row['images_per_second'] = spread(contender.images_per_second, 2)
    row['rounds'] = [round(rate, 2) for rate in contender.images_per_second]
    row['first_by_this'] = spread(
      divide(first.images_per_second, contender.images_per_second), 3
    )
    row['peak_bytes'] = contender.peak_bytes
    row |= contender.ready
    rows.append(row)
  return rows


def print_rows(rows: Sequence[dict]) -> None:
  lines = []
  for row in rows:
    if 'not_run' in row:
      cells = ['not run', '', '', '', '']
    else:
      rate, ratio = row['images_per_second'], row['first_by_this']
      cells = [
        f'{rate["median"]:.1f}',
        f'{ratio["median"]:.2f}',
        f'{ratio["lowest"]:.2f} - {ratio["highest"]:.2f}',
        f'{row["peak_bytes"] / 1e6:.0f}',
        f'{row["first_step_seconds"]:.1f}',
      ]
    lines.append([row['name'], *cells])
  header = [
    'contender', 'images/s', 'first by it', 'range', 'MB at most',
    'seconds to its first step',
  ]  # fmt: skip
  print_table(header, lines)
  for row in rows:
    if 'not_run' in row:
      print(f'not run: {row["name"]}: {row["not_run"]}')


def use_cores(count: int | None) -> list[int]:
  """So many of those that this process may use; None: all.

  Raises:
    UserError: if there are not so many.
  """
  cores = sorted(os.sched_getaffinity(0))
  if count is not None and not 1 <= count <= len(cores):
    raise UserError(f'--cores must be between 1 and {len(cores)}, got {count}')
  return cores[:count]


def define_flags(tables: dict[str, Sequence[str]]) -> None:
  flags.DEFINE_list('only', [], f'Tables: some of {", ".join(tables)}.')
  flags.DEFINE_list('skip', [], 'Contenders to leave out.')
  flags.DEFINE_integer('cores', None, 'How many to use; default: all.')
  flags.DEFINE_multi_integer('batch_size', 16, 'Given again: each its tables.')
  flags.DEFINE_integer(
    'image_size', 224, 'Height and width; fashion_mnist: 28.'
  )
  flags.DEFINE_integer('rounds', 5, 'Turns of each contender.')
  flags.DEFINE_float('seconds', 5.0, 'Of a turn, about.')
  flags.DEFINE_string('output', None, 'JSON file to write.')


def main(task: str, tables: dict[str, Sequence[str]]) -> None:
  """Lets the contenders of each table compete, prints and writes the results."""
  values = flags.FLAGS
  names = sorted({name for table in tables.values() for name in table})
  for kind, given, known in (
    ('table', values.only, tables), ('contender', values.skip, names)
  ):  # fmt: skip
    unknown = set(given) - set(known)
    if unknown:
      raise UserError(
        f"there is no {kind} '{min(unknown)}': use {', '.join(known)}"
      )
  check_output(values.output)
  cores, results = use_cores(values.cores), []
  for title in values.only or tables:
    names = [name for name in tables[title] if name not in values.skip]
    for batch_size in values.batch_size:
      image_size = 28 if title == 'fashion_mnist' else values.image_size
      setups = [Setup(name, task, batch_size, image_size) for name in names]
      rows = summarize(compete(setups, cores, values.rounds, values.seconds))
      print(
        f'\n{title}: {task}, batch {batch_size}, {image_size} x {image_size}, '
        f'{len(cores)} cores'
      )
      print_rows(rows)
      results.append({'table': title, 'rows': rows})
  write_json(
    values.output, {'machine': machine(len(cores)), 'results': results}
  )


def check_output(path: str | None) -> None:
  """Before minutes of work.

  Raises:
    UserError: if no file can be written there.
  """
  if path and not pathlib.Path(path).parent.is_dir():
    raise UserError(f'--output={path} is in a folder that is not there')


def write_json(path: str | None, content: dict) -> None:
  if path:
    pathlib.Path(path).write_text(json.dumps(content, indent=2) + '\n')

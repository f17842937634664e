"""Contenders that take turns on the same cores, and what that says of them.

The machine is not quiet, and its clock changes: what is worth reporting are the
ratios of what was measured side by side, in the same round.
"""

import dataclasses
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence

from absl import flags

from benchmarks.contenders import Setup
from benchmarks.results import (
  check_output,
  divide,
  machine,
  print_table,
  spread,
  write_output,
)
from bn_inception.errors import UserError
from bn_inception.programs.path_flags import define_path

ROOT = pathlib.Path(__file__).parent.parent
BEFORE = 'before: '  # of a contender's name: of the version in --before
_COPIES = re.compile(r'(?:(\d+) x )?(.*)')


class Contender:
  """Processes of contenders.py, stopped while it is not their turn.

  There is one, with all cores; of '2 x NAME' two, each with half of them.

  Attributes:
    ready: what the last of them said of its first step.
    images_per_second: in each round, of all together.
    peak_bytes: most memory that was resident in its steps, of all together.
    not_run: why it could not be started.
  """

  def __init__(self, setup: Setup, cores: Sequence[int], before: str | None):
    self.setup = setup
    self.images_per_second: list[float] = []
    self.peak_bytes = 0
    self.not_run: str | None = None
    self.ready: dict = {}
    self._processes: list[_Process] = []
    copies, name = _COPIES.fullmatch(setup.name).groups()
    copies = int(copies or 1)
    if copies > len(cores):
      self.not_run = f'it needs {copies} cores'
      return
    checkout = ROOT
    if name.startswith(BEFORE):
      name, checkout = name.removeprefix(BEFORE), pathlib.Path(before).resolve()
    setup = dataclasses.replace(setup, name=name)
    for i in range(copies):
      process = _Process(setup, cores[i::copies], checkout)
      self._processes.append(process)
      try:
        self.ready = process.listen()
      except EOFError:
        self.not_run = process.last_complaint()
        return

  def take_turn(self, num_steps: int) -> None:
    for process in self._processes:
      process.speak(num_steps)
    try:
      said = [process.listen() for process in self._processes]
    except EOFError as error:
      complaints = [process.last_complaint() for process in self._processes]
      raise RuntimeError(f'{self.setup.name}: {complaints}') from error
    num_images = len(said) * num_steps * self.setup.batch_size
    seconds = max(answer['seconds'] for answer in said)
    self.images_per_second.append(num_images / seconds)
    peak_bytes = sum(answer['peak_bytes'] for answer in said)
    self.peak_bytes = max(self.peak_bytes, peak_bytes)

  def end(self) -> None:
    for process in self._processes:
      process.end()


class _Process:
  """A process of contenders.py, which runs while it is listened to."""

  def __init__(
    self, setup: Setup, cores: Sequence[int], checkout: pathlib.Path
  ):
    self._complaints = tempfile.TemporaryFile('w+')  # a pipe could be full
    environment = {
      'JAX_PLATFORMS': 'cpu',
      # A cold start is what is reported as the time to compile.
      'JAX_COMPILATION_CACHE_DIR': '',
      # This folder's benchmarks, and the packages of the checkout.
      'PYTHONPATH': str(checkout),
      'PYTHONSAFEPATH': '1',
    }
    self._process = subprocess.Popen(
      [
        'taskset', '--cpu-list', ','.join(map(str, cores)),
        sys.executable, str(ROOT / 'benchmarks' / 'contenders.py'),
        *setup.arguments(),
      ],
      cwd=checkout, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
      stderr=self._complaints, text=True, env={**os.environ, **environment},
    )  # fmt: skip

  def speak(self, num_steps: int) -> None:
    self._process.send_signal(signal.SIGCONT)
    self._process.stdin.write(f'{num_steps}\n')
    self._process.stdin.flush()

  def listen(self) -> dict:
    """Its next line.

    Raises:
      EOFError: if it has ended.
    """
    line = self._process.stdout.readline()
    if not line:
      raise EOFError
    self._process.send_signal(signal.SIGSTOP)
    return json.loads(line)

  def last_complaint(self) -> str:
    self._process.kill()
    self._process.wait()
    self._complaints.seek(0)
    said = self._complaints.read().strip().splitlines()
    return said[-1] if said else f'exit status {self._process.returncode}'

  def end(self) -> None:
    self._process.kill()
    self._process.wait()
    self._process.stdin.close()
    self._process.stdout.close()
    self._complaints.close()


def compete(
  setups: Sequence[Setup],
  cores: Sequence[int],
  num_rounds: int,
  seconds: float,
  before: str | None = None,
) -> list[Contender]:
  """Lets all take `num_rounds` turns of about this many seconds.

  Args:
    setups: of the contenders.
    cores: of each, in its turn.
    num_rounds, seconds: as above.
    before: folder of another version, for names with `BEFORE`.

  Raises:
    UserError: if the first one cannot be started.
  """
  contenders = []
  try:
    for setup in setups:
      print(
        f'starting {setup.name}, batch {setup.batch_size}',
        file=sys.stderr,
        flush=True,
      )
      contenders.append(Contender(setup, cores, before))
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
    lines.append([row['name'], str(row['batch_size']), *cells])
  header = [
    'contender', 'batch', 'images/s', 'first by it', 'range', 'MB at most',
    'seconds to its first step',
  ]  # fmt: skip
  print_table(header, lines)
  for row in rows:
    if 'not_run' in row:
      print(f'not run: {row["name"]}: {row["not_run"]}')


def use_cores(count: int | None) -> list[int]:
  """So many of those that this process may use; None: all.

  Raises:
    UserError: if there are fewer.
  """
  cores = sorted(os.sched_getaffinity(0))
  if count is not None and not 1 <= count <= len(cores):
    raise UserError(f'--cores must be between 1 and {len(cores)}, got {count}')
  return cores[:count]


def define_flags(tables: dict[str, Sequence[str]]) -> None:
  flags.DEFINE_list('only', [], f'Tables: some of {", ".join(tables)}.')
  flags.DEFINE_list('skip', [], 'Contenders to leave out.')
  flags.DEFINE_integer('cores', None, 'How many to use; default: all.')
  flags.DEFINE_multi_integer('batch_size', 16, 'Given again: all take turns.')
  flags.DEFINE_integer(
    'image_size', 224, 'Height and width; fashion_mnist: 28.'
  )
  flags.DEFINE_integer('rounds', 5, 'Turns of each contender.')
  flags.DEFINE_float('seconds', 5.0, 'Of a turn, about.')
  define_path(
    'before',
    None,
    'A folder with another version of this repository, whose "ours" take turns.',
  )
  define_path('output', None, 'JSON file to write.')


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
  if values.before and not pathlib.Path(values.before, 'bn_inception').is_dir():
    raise UserError(
      f'--before={values.before} is not a version of this project'
    )
  cores, results = use_cores(values.cores), []
  for title in values.only or tables:
    names = [name for name in tables[title] if name not in values.skip]
    if values.before:
      # '2 x ours' becomes '2 x before: ours'.
      names += [
        name.replace('ours', f'{BEFORE}ours')
        for name in names
        if 'ours' in name
      ]
    image_size = 28 if title == 'fashion_mnist' else values.image_size
    setups = [
      Setup(name, task, batch_size, image_size)
      for batch_size in values.batch_size
      for name in names
    ]
    contenders = compete(
      setups, cores, values.rounds, values.seconds, values.before
    )
    rows = summarize(contenders)
    print(f'\n{title}: {task}, {image_size} x {image_size}, {len(cores)} cores')
    print_rows(rows)
    results.append({'table': title, 'rows': rows})
  write_output(
    values.output, {'machine': machine(len(cores)), 'results': results}
  )

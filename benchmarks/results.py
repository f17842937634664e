"""What benchmarks measured: ratios, tables, JSON files."""

import contextlib
import dataclasses
import datetime
import importlib.metadata
import os
import pathlib
import platform
import re
import statistics

from benchmarks import readers
from bn_inception.errors import check_writable, make_parent_folder
from bn_inception.programs import markdown
from bn_inception.runs import json_files

# Ours, and what it is compared with. tf.data reads records, too, torch files.
PAIRS = (
  ('ours, ArrayRecord', 'tf.data'),
  ('ours, files', 'torch'),
  ('ours, ArrayRecord', 'ours, files'),
  ('ours, ArrayRecord', 'decode crop'),
  ('ours, ArrayRecord', 'decode whole'),
)
PACKAGES = (
  'numpy', 'opencv-python-headless', 'nvidia-nvimgcodec-cu13', 'grain', 'jax',
  'tensorflow', 'torch', 'pillow',
)  # fmt: skip
_REMEDY = 'give another --output'


@dataclasses.dataclass
class Row:
  """A pipeline on one kind of photographs, and what was measured."""

  photographs: str
  setup: readers.Setup
  not_run: str | None = None
  images_per_second: list[float] = dataclasses.field(default_factory=list)
  cpu_ms_per_image: list[float] = dataclasses.field(default_factory=list)


def label(setup: readers.Setup) -> str:
  count = setup.workers
  plural = '' if count == 1 else 's'
  if setup.reader == 'tf.data' or setup.reader in readers.ONLY_DECODE:
    return f'{setup.reader}, {count} thread{plural}'
  return f'{setup.reader}, {count} worker{plural}'


def best(rows: list[Row], reader: str) -> Row | None:
  """The number of workers that has the highest median."""
  run = [r for r in rows if r.setup.reader == reader and r.not_run is None]
  return max(
    run, key=lambda row: statistics.median(row.images_per_second), default=None
  )


def spread(values: list[float], digits: int) -> dict[str, float]:
  """Median, lowest and highest."""
  return {
    name: round(function(values), digits)
    for name, function in (
      ('median', statistics.median), ('lowest', min), ('highest', max)
    )
  }  # fmt: skip


def divide(a: list[float], b: list[float]) -> list[float]:
  return [x / y for x, y in zip(a, b, strict=True)]


def ratios(rows: list[Row]) -> list[dict]:
  """The best of ours by the best of the others, in each round.

  Speeds, and CPU times: these hardly notice what else the machine does.
  """
  found = []
  for kind in dict.fromkeys(row.photographs for row in rows):
    of_kind = [row for row in rows if row.photographs == kind]
    for name, other_name in PAIRS:
      mine, other = best(of_kind, name), best(of_kind, other_name)
      if mine is None or other is None:
        continue
      speed = divide(mine.images_per_second, other.images_per_second)
      cpu = divide(mine.cpu_ms_per_image, other.cpu_ms_per_image)
      found.append(
        {
          'photographs': kind,
          'ours': label(mine.setup),
          'other': label(other.setup),
          'images_per_second': spread(speed, 3),
          'cpu_ms_per_image': spread(cpu, 3),
        }
      )
  return found


def print_table(header: list[str], lines: list[list[str]]) -> None:
  """Prints a table in Markdown with its numbers to the right."""
  numbers = [
    i
    for i in range(len(header))
    if all(re.match(r'[\d.]+( - |$)|not run$|$', line[i]) for line in lines)
  ]
  print()
  print(markdown.table(header, lines, align=True, right=numbers))


def show_spread(values: dict[str, float], digits: int) -> tuple[str, str]:
  median, lowest, highest = (f'{v:.{digits}f}' for v in values.values())
  return median, f'{lowest} - {highest}'


def print_results(rows: list[Row]) -> None:
  lines = []
  for row in rows:
    cells = ('not run', '', '', '')
    if row.not_run is None:
      cells = (
        *show_spread(spread(row.images_per_second, 1), 0),
        *show_spread(spread(row.cpu_ms_per_image, 3), 2),
      )
    lines.append([row.photographs, label(row.setup), *cells])
  print_table(
    ['photographs', 'reader', 'images/s', 'range', 'CPU ms/image', 'range'],
    lines,
  )
  for row in rows:
    if row.not_run is not None:
      print(f'not run: {row.photographs}, {label(row.setup)}: {row.not_run}')
  lines = [
    [
      ratio['photographs'],
      ratio['ours'],
      ratio['other'],
      *show_spread(ratio['images_per_second'], 2),
      *show_spread(ratio['cpu_ms_per_image'], 2),
    ]
    for ratio in ratios(rows)
  ]
  if lines:
    print_table(
      [
        'photographs',
        'best of',
        'by best of',
        'images/s',
        'range',
        'CPU',
        'range',
      ],
      lines,
    )


def version_of(package: str) -> str | None:
  try:
    return importlib.metadata.version(package)
  except importlib.metadata.PackageNotFoundError:
    return None


def machine(cores: int) -> dict:
  fields = {}
  with contextlib.suppress(OSError):
    for line in pathlib.Path('/proc/cpuinfo').read_text().splitlines():
      name, _, value = line.partition(':')
      fields.setdefault(name.strip(), value.strip())
  names = ('model name', 'cpu family', 'model')
  return {
    'date': datetime.datetime.now(datetime.UTC).date().isoformat(),
    'cpu': {name: fields[name] for name in names if name in fields},
    'cores': cores,
    'cores_of_machine': os.cpu_count(),
    'python': platform.python_version(),
    'versions': {name: version_of(name) for name in PACKAGES},
  }


def summarize(rows: list[Row]) -> dict:
  """`results`, with an entry for each row, and their `ratios`."""
  results = []
  for row in rows:
    setup = row.setup
    result = {
      'photographs': row.photographs,
      'reader': setup.reader,
      'workers': setup.workers,
    }
    if row.not_run is None:
      result['images_per_second'] = spread(row.images_per_second, 1)
      result['cpu_ms_per_image'] = spread(row.cpu_ms_per_image, 3)
      result['rounds'] = [round(value, 1) for value in row.images_per_second]
    else:
      result['not_run'] = row.not_run
    results.append(result)
  return {'results': results, 'ratios': ratios(rows)}


def check_output(path: str | None) -> None:
  """Raises if --output cannot be written; call it before minutes of work."""
  if path:
    check_writable(path, _REMEDY)


def write_output(path: str | None, content: dict) -> None:
  """Writes a JSON file, if one is wanted, and its folder."""
  if path:
    make_parent_folder(path, _REMEDY)
    json_files.write_json(path, content, _REMEDY)

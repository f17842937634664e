"""Images per second of input pipelines: ours, tf.data, PyTorch's DataLoader.

  python -m benchmarks.input_pipeline --output=results/input_pipeline.json

Prints the tables of results/input_pipeline.md. All make the same training batches
of 224x224 uint8 pixels from the same synthetic photographs; what only decodes
them is the limit. Each measurement is a new process, limited to the same cores.
A round measures every pipeline once; ratios are of one round.

TensorFlow and PyTorch are in requirements-bench.txt; what is not installed is
not run.
"""

import contextlib
import dataclasses
import importlib.util
import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import time

import psutil
from absl import flags

from benchmarks import photographs, readers
from benchmarks.results import (
  Row,
  check_output,
  label,
  machine,
  print_results,
  summarize,
  write_output,
)
from bn_inception.errors import UserError
from bn_inception.programs import command_line
from bn_inception.programs.path_flags import define_path

ROOT = pathlib.Path(__file__).parent.parent
INSTALL = 'pip install -r requirements-bench.txt'
START_SECONDS = 120  # that a process may take for all but measuring

_CORES = flags.DEFINE_integer(
  'cores', 0, 'Cores to use; 0: all that are available.', lower_bound=0
)
_ROUNDS = flags.DEFINE_integer('rounds', 7, 'Measurements of each.', 1)
_SECONDS = flags.DEFINE_float('seconds', 4.0, 'Of one measurement.', 0.0)
_WARM_UP = flags.DEFINE_float('warm_up', 1.5, 'Seconds before each.', 0.0)
_BATCH_SIZE = flags.DEFINE_integer('batch_size', 32, 'Of one host.', 1)
_WORKERS = flags.DEFINE_list(
  'workers',
  [],
  'Numbers of worker processes of ours and of PyTorch; 0: none. '
  'Default: 0, 1, 2, 4, ..., cores.',
)
_PREFETCH = flags.DEFINE_integer('prefetch', 4, 'data.prefetch of ours.', 1)
_READERS = flags.DEFINE_multi_enum(
  'reader',
  list(readers.READERS),
  list(readers.READERS),
  'What to measure; repeat it for several. Default: all.',
)
_NUM_PHOTOGRAPHS = flags.DEFINE_integer('num_photographs', 256, 'To make.', 1)
_SHORT_SIDE = flags.DEFINE_integer(
  'short_side', 0, 'Also measure photographs that were shrunk to it; 0: not.', 0
)
_INTERPOLATION = flags.DEFINE_enum(
  'interpolation', 'bilinear', ['bilinear', 'bicubic'], 'Of resizing.'
)
_TF_DTYPE = flags.DEFINE_enum(
  'tf_dtype',
  'uint8',
  ['uint8', 'float32'],
  "Of tf.data's images: uint8 as the others', or floats as flax leaves them.",
)
_OUTPUT = define_path(
  'output', None, 'JSON file to write. Example: results/input_pipeline.json'
)
_MEASURE = flags.DEFINE_string(
  'measure', None, 'Internal: what this process measures, as JSON.'
)
_SETTINGS = (
  _ROUNDS, _SECONDS, _WARM_UP, _BATCH_SIZE, _PREFETCH, _NUM_PHOTOGRAPHS,
  _INTERPOLATION, _TF_DTYPE,
)  # fmt: skip


# One measurement, in a process of its own.


def cpu_seconds() -> float:
  """Of this process and its workers, so far."""
  total = 0.0
  this = psutil.Process()
  for process in (this, *this.children(recursive=True)):
    with contextlib.suppress(psutil.NoSuchProcess):
      times = process.cpu_times()
      total += times.user + times.system
  return total


def check_batch(batch, setup: readers.Setup) -> None:
  size = readers.IMAGE_SIZE
  dtype = setup.tf_dtype if setup.reader == 'tf.data' else 'uint8'
  expected = (setup.batch_size, size, size, 3), dtype
  assert (batch.shape, batch.dtype.name) == expected, (batch.shape, batch.dtype)


def measure(
  setup: readers.Setup, warm_up: float, seconds: float
) -> dict[str, float]:
  """Takes batches as fast as they come, from a batch's arrival to another's."""
  with contextlib.closing(readers.READERS[setup.reader](setup)) as batches:
    batch = next(batches)
    if setup.reader not in readers.ONLY_DECODE:
      check_batch(batch, setup)
    start = time.perf_counter()
    while time.perf_counter() - start < warm_up:
      next(batches)
    num_images, elapsed = 0, 0.0
    start, cpu_start = time.perf_counter(), cpu_seconds()
    while elapsed < seconds or not num_images:
      num_images += len(next(batches))
      elapsed = time.perf_counter() - start
    cpu = cpu_seconds() - cpu_start
  return {
    'images_per_second': num_images / elapsed,
    'cpu_ms_per_image': 1e3 * cpu / num_images,
  }


def measure_apart(
  setup: readers.Setup, warm_up: float, seconds: float
) -> dict[str, float]:
  """`measure` in a new process, which inherits the limit to some cores.

  Raises:
    RuntimeError: if it fails, with the last line that it wrote.
  """
  task = {
    'setup': dataclasses.asdict(setup), 'warm_up': warm_up, 'seconds': seconds
  }  # fmt: skip
  quiet = {
    'JAX_PLATFORMS': 'cpu',
    'CUDA_VISIBLE_DEVICES': '',
    'TF_CPP_MIN_LOG_LEVEL': '3',
  }
  program = [sys.executable, '-m', 'benchmarks.input_pipeline']
  process = subprocess.Popen(
    [*program, f'--measure={json.dumps(task)}'],
    cwd=ROOT,
    env=os.environ | quiet,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
    start_new_session=True,
  )
  try:
    output, errors = process.communicate(
      timeout=START_SECONDS + warm_up + seconds
    )
  except subprocess.TimeoutExpired as error:
    raise RuntimeError(f'no result in {error.timeout:.0f} s') from error
  finally:
    # With its workers, none of which may disturb the next measurement.
    with contextlib.suppress(ProcessLookupError):
      os.killpg(process.pid, signal.SIGKILL)
    process.wait()
  if process.returncode:
    raise RuntimeError((errors.strip() or 'no message').splitlines()[-1])
  return json.loads(output.splitlines()[-1])


# All of them.


def limit_cores(num_cores: int) -> int:
  """Limits this process, and those it starts, to the first of its cores."""
  available = sorted(os.sched_getaffinity(0))
  if num_cores > len(available):
    raise UserError(f'--cores={num_cores}, but there are {len(available)}')
  chosen = available[: num_cores or len(available)]
  os.sched_setaffinity(0, chosen)
  return len(chosen)


def powers_of_two(highest: int) -> list[int]:
  """1, 2, 4, ... and the highest itself."""
  powers = [2**i for i in range(highest.bit_length()) if 2**i < highest]
  return [*powers, highest]


def reason_not_to_run(reader: str) -> str | None:
  for module in readers.NEEDS.get(reader, ()):
    if importlib.util.find_spec(module) is None:
      return f'{module} is not installed: {INSTALL}'
  return None


def parse_workers() -> list[int]:
  try:
    return [int(count) for count in _WORKERS.value]
  except ValueError:
    raise UserError('--workers takes numbers, such as --workers=0,2') from None


def make_rows(
  folders: dict[str, str], cores: int, workers: list[int]
) -> list[Row]:
  threads = powers_of_two(cores)
  workers = workers or [0, *threads]
  counts = {
    'tf.data': [cores], 'torch': workers,
    'ours, ArrayRecord': workers, 'ours, files': workers,
  }  # fmt: skip
  rows = []
  for kind, folder in folders.items():
    for reader in _READERS.value:
      for count in counts.get(reader, threads):
        setup = readers.Setup(
          reader, folder, count, cores, _BATCH_SIZE.value, _INTERPOLATION.value,
          _PREFETCH.value, _TF_DTYPE.value,
        )  # fmt: skip
        rows.append(Row(kind, setup, reason_not_to_run(reader)))
  return rows


def run_rounds(rows: list[Row]) -> None:
  for i in range(_ROUNDS.value):
    for row in rows:
      if row.not_run is not None:
        continue
      name = f'{row.photographs}, {label(row.setup)}'
      progress = f'round {i + 1} of {_ROUNDS.value}: {name}'
      print(f'\r{progress:79}', end='', file=sys.stderr, flush=True)
      try:
        result = measure_apart(row.setup, _WARM_UP.value, _SECONDS.value)
      except RuntimeError as error:
        row.not_run = str(error)
        continue
      row.images_per_second.append(result['images_per_second'])
      row.cpu_ms_per_image.append(result['cpu_ms_per_image'])
  print(f'\r{"":79}\r', end='', file=sys.stderr, flush=True)


def make_photographs(folder: str) -> tuple[dict[str, str], dict[str, dict]]:
  """Folders of the photographs, and what these are, by kind."""
  folders, facts = {}, {}
  for short_side in dict.fromkeys((None, _SHORT_SIDE.value or None)):
    path = pathlib.Path(folder) / f'short_side_{short_side}'
    found = photographs.write_folder(path, _NUM_PHOTOGRAPHS.value, short_side)
    photographs.write_array_records(path)
    kind = f'{found["width"]}x{found["height"]}'
    folders[kind], facts[kind] = str(path), found
  return folders, facts


def main() -> None:
  if _MEASURE.value is not None:
    task = json.loads(_MEASURE.value)
    setup = readers.Setup(**task.pop('setup'))
    print(json.dumps(measure(setup, **task)))
    return
  workers = parse_workers()
  check_output(_OUTPUT.value)
  cores = limit_cores(_CORES.value)
  with tempfile.TemporaryDirectory() as folder:
    folders, kinds = make_photographs(folder)
    rows = make_rows(folders, cores, workers)
    load = os.getloadavg()[0]
    run_rounds(rows)
  print_results(rows)
  facts = {
    'machine': machine(cores) | {'load_before': round(load, 2)},
    'photographs': kinds,
    'settings': {flag.name: flag.value for flag in _SETTINGS},
  }
  write_output(_OUTPUT.value, facts | summarize(rows))


if __name__ == '__main__':
  command_line.run(main)

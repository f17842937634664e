"""What a run of train.py spends beside its steps.

  python -m benchmarks.stalls --data_dir=/data/tfds --output=results/stalls.json

Trains fashion_mnist for some hundred steps, in real runs: first with an empty
cache of compiled programs, then with what that one left, in turns. Then, in the
same round, the bare step takes its turn (contenders.py). From the runs' own
metrics.jsonl come

* the time to the first step, from where train.py begins to read its data;
* images per second between evaluations, with reading, logging and looking for
  signals, by those of the bare step;
* the time that an evaluation takes, and that a checkpoint holds the steps up
  until its writing goes on in the background.
"""

import os
import statistics
import subprocess
import sys
import tempfile

from absl import flags

from benchmarks.contenders import Setup
from benchmarks.contest import ROOT, compete, use_cores
from benchmarks.results import (
  check_output,
  machine,
  print_table,
  spread,
  write_output,
)
from bn_inception.errors import UserError
from bn_inception.programs import command_line
from bn_inception.programs.path_flags import define_path
from bn_inception.runs.logbook import read_metrics

BATCH_SIZE, NUM_EXAMPLES = 32, 60_000
EVALUATE_EVERY, LOG_EVERY = 200, 50
CONFIG = {
  'batch_size': BATCH_SIZE,
  'augment.photometric_strength': 0.0,
  'training.log_every_steps': LOG_EVERY,
  'training.eval_every_steps': EVALUATE_EVERY,
  'training.checkpoint_every_steps': EVALUATE_EVERY,
}


def train(data_dir: str, num_steps: int, cache: str) -> list[dict]:
  """A run's records.

  Raises:
    UserError: if it fails, with its last line.
  """
  values = CONFIG | {
    'training.num_epochs': num_steps * BATCH_SIZE / NUM_EXAMPLES
  }
  with tempfile.TemporaryDirectory() as folder:
    done = subprocess.run(
      [
        sys.executable, 'train.py', '--config=configs/bn_x5.py:fashion_mnist',
        f'--data_dir={data_dir}', f'--workdir={folder}',
        *(f'--config.{name}={value}' for name, value in values.items()),
      ],
      cwd=ROOT, capture_output=True, text=True,
      env={
        **os.environ, 'JAX_PLATFORMS': 'cpu', 'JAX_COMPILATION_CACHE_DIR': cache,
      },
    )  # fmt: skip
    if done.returncode:
      lines = done.stderr.strip().splitlines() or ['it said nothing']
      raise UserError(f'train.py failed: {lines[-1]}')
    return read_metrics(folder)


def split_time(records: list[dict]) -> dict[str, list[float]]:
  """Numbers of one run, by what they are."""
  found = {
    'seconds to the first step': [], 'images/s': [], 'input wait, %': [],
    'evaluation, s': [], 'checkpoint, s': [],
  }  # fmt: skip
  evaluated = None
  for before, record in zip([None, *records], records, strict=False):
    if record['kind'] == 'start':
      found['seconds to the first step'].append(record['seconds_to_first_step'])
    elif record['kind'] == 'eval':
      found['evaluation, s'].append(record['seconds'] - before['seconds'])
      evaluated = record
    elif 'images_per_second' in record:
      rate = record['images_per_second']
      found['images/s'].append(rate)
      found['input wait, %'].append(100 * record['input_wait_fraction'])
      if before is evaluated:
        steps = record['step'] - before['step']
        began = record['seconds'] - steps * BATCH_SIZE / rate
        found['checkpoint, s'].append(began - before['seconds'])
  return found


def measure(data_dir: str, num_rounds: int, num_steps: int) -> dict:
  """All values of each kind."""
  names = 'cold cache', 'warm cache'
  values: dict = {name: {} for name in names}
  values['bare step'], values['run by bare step'] = {'images/s': []}, []
  cores = use_cores(None)
  setup = Setup('ours (fashion_mnist)', 'train', BATCH_SIZE, 28)
  for i in range(num_rounds):
    print(f'round {i + 1} of {num_rounds}', file=sys.stderr, flush=True)
    with tempfile.TemporaryDirectory() as cache:
      for name in names:
        found = split_time(train(data_dir, num_steps, cache))
        for kind, numbers in found.items():
          values[name].setdefault(kind, []).extend(numbers)
    (bare,) = compete([setup], cores, 4, 2.0)
    values['bare step']['images/s'] += bare.images_per_second
    values['run by bare step'].append(
      statistics.median(found['images/s'])
      / statistics.median(bare.images_per_second)
    )
  return values


def main() -> None:
  given = flags.FLAGS
  check_output(given.output)
  if given.steps < 2 * EVALUATE_EVERY:
    raise UserError(
      f'--steps must be at least {2 * EVALUATE_EVERY}, got {given.steps}'
    )
  values = measure(given.data_dir, given.rounds, given.steps)
  ratio = spread(values.pop('run by bare step'), 3)
  content = {
    name: {kind: spread(numbers, 3) for kind, numbers in found.items()}
    for name, found in values.items()
  }
  lines = [
    [name, kind, *(f'{value:.2f}' for value in numbers.values())]
    for name, found in content.items()
    for kind, numbers in found.items()
  ]
  print_table(['run', 'what', 'median', 'lowest', 'highest'], lines)
  print(f'images/s of a run by those of the bare step: {ratio["median"]}')
  write_output(
    given.output,
    {
      'machine': machine(len(use_cores(None))), 'results': content,
      'run_by_bare_step': ratio,
    },
  )  # fmt: skip


if __name__ == '__main__':
  define_path(
    'data_dir', None, 'Folder of TFDS, with fashion_mnist.', may_be_bucket=True
  )
  flags.DEFINE_integer('rounds', 3, 'Of two runs and the bare step.')
  flags.DEFINE_integer('steps', 650, 'Of each run.')
  define_path('output', None, 'JSON file to write.')
  flags.mark_flag_as_required('data_dir')
  command_line.run(main)

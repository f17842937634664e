"""The benchmarks of speed: what they refuse, and a short contest."""

import json
import pathlib
import subprocess
import sys

import pytest

from benchmarks import stalls

ROOT = pathlib.Path(__file__).parent.parent


def run(module, *arguments):
  command = [sys.executable, '-m', f'benchmarks.{module}', *arguments]
  return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


@pytest.mark.slow
def test_unknown_tables_and_cores_are_named():
  for arguments, message in (
    (['--only=imagnet'], "error: there is no table 'imagnet': use the paper's"),
    (['--skip=torch'], "error: there is no contender 'torch': use 2 x ours"),
    (['--output=LICENSE/x.json'], 'error: LICENSE/x.json cannot be written'),
    (['--before=no'], 'error: --before=no is not a version of this project'),
    (['--cores=99'], 'error: --cores must be between 1 and '),
  ):
    done = run('train_step', *arguments)
    assert done.returncode == 2
    assert done.stderr.startswith(message) and done.stderr.count('\n') == 1


def test_stalls_are_read_from_the_records_of_a_run():
  records = [
    {'kind': 'start', 'step': 1, 'seconds': 9.0, 'seconds_to_first_step': 9.5},
    {'kind': 'train', 'step': 50, 'seconds': 10.0},
    {
      'kind': 'train', 'step': 100, 'seconds': 12.0,
      'images_per_second': 800.0, 'input_wait_fraction': 0.25,
    },
    {'kind': 'eval', 'step': 100, 'seconds': 15.0},
    {  # 50 steps of 32 images: began at 15.5 s, after a checkpoint
      'kind': 'train', 'step': 150, 'seconds': 17.5,
      'images_per_second': 800.0, 'input_wait_fraction': 0.0,
    },
  ]  # fmt: skip
  assert stalls.split_time(records) == {
    'seconds to the first step': [9.5], 'images/s': [800.0, 800.0],
    'input wait, %': [25.0, 0.0], 'evaluation, s': [3.0],
    'checkpoint, s': [0.5],
  }  # fmt: skip


@pytest.mark.slow
def test_a_short_contest(tmp_path):
  output = tmp_path / 'speed.json'
  done = run(
    'train_step', '--only=fashion_mnist', '--batch_size=4', '--rounds=2',
    '--seconds=0.1', '--cores=1', '--before=.', f'--output={output}',
  )  # fmt: skip
  assert done.returncode == 0, done.stderr
  content = json.loads(output.read_text())
  assert content['machine']['cores'] == 1
  (table,) = content['results']
  ours, two, linen, before, two_before = table['rows']
  assert [row['name'] for row in table['rows']] == [
    'ours (fashion_mnist)', '2 x ours (fashion_mnist)', 'linen (fashion_mnist)',
    'before: ours (fashion_mnist)', '2 x before: ours (fashion_mnist)',
  ]  # fmt: skip
  assert two['not_run'] == two_before['not_run'] == 'it needs 2 cores'
  assert ours['first_by_this']['median'] == 1.0
  assert linen['first_by_this']['lowest'] > 0.0
  for row in ours, linen, before:
    assert len(row['rounds']) == 2 and min(row['rounds']) > 0.0
    assert row['peak_bytes'] > 1e8 and row['first_step_seconds'] > 0.0

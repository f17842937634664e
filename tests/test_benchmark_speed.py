"""The benchmarks of speed: what they refuse, and a short contest."""

import json
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent


def run(module, *arguments):
  command = [sys.executable, '-m', f'benchmarks.{module}', *arguments]
  return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def test_unknown_tables_and_cores_are_named():
  for arguments, message in (
    (['--only=imagnet'], "error: there is no table 'imagnet': use the paper's"),
    (['--skip=torch'], "error: there is no contender 'torch': use PyTorch"),
    (['--output=no/x.json'], 'error: --output=no/x.json is in a folder that'),
    (['--cores=99'], 'error: --cores must be between 1 and '),
  ):
    done = run('train_step', *arguments)
    assert done.returncode == 2
    assert done.stderr.startswith(message) and done.stderr.count('\n') == 1


@pytest.mark.slow
def test_a_short_contest(tmp_path):
  output = tmp_path / 'speed.json'
  done = run(
    'train_step', '--only=fashion_mnist', '--batch_size=4', '--rounds=2',
    '--seconds=0.1', '--cores=1', f'--output={output}',
  )  # fmt: skip
  assert done.returncode == 0, done.stderr
  content = json.loads(output.read_text())
  assert content['machine']['cores'] == 1
  (table,) = content['results']
  ours, linen = table['rows']
  assert (ours['name'], linen['name']) == (
    'ours (fashion_mnist)', 'linen (fashion_mnist)',
  )  # fmt: skip
  assert ours['first_by_this']['median'] == 1.0
  assert linen['first_by_this']['lowest'] > 0.0
  for row in ours, linen:
    assert len(row['rounds']) == 2 and min(row['rounds']) > 0.0
    assert row['peak_bytes'] > 1e8 and row['first_step_seconds'] > 0.0

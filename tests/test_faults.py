"""The benchmark of faults: what it refuses, and how it reads what runs say."""

import json
import pathlib
import subprocess
import sys

import pytest

from benchmarks.fault_runs import split_records

ROOT = pathlib.Path(__file__).parent.parent
FAULTS = [sys.executable, '-m', 'benchmarks.faults']


def test_an_unknown_fault_is_named():
  command = [*FAULTS, '--only=kil']
  done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
  assert done.returncode == 2
  assert done.stderr.startswith("error: there is no fault 'kil': use kill, ")
  assert done.stderr.count('\n') == 1


def test_records_of_the_runtime_are_told_from_complaints():
  record = [
    'E1125 04:31:18.706449    3349 agent.cc:289] Polled an error.',
    'F1125 04:31:18.706533    3349 client.h:80] Terminating process: see',
    'RPC: /tensorflow.CoordinationService/PollForError',
    '',
  ]
  own = ['error: another process of this run was killed']
  assert split_records([*record, *own]) == (own, record)
  warning = ['sys:1: RuntimeWarning: never awaited', 'E1125 says nobody']
  assert split_records(warning) == (warning, [])
  defect = ['Traceback (most recent call last):', '  File "x.py"', 'ValueError']
  assert split_records([*record, *defect]) == (defect, record)


@pytest.mark.slow
def test_the_benchmark_of_faults(tmp_path):
  """A damaged checkpoint, and one of two processes killed, in real runs."""
  output = tmp_path / 'faults.json'
  command = [*FAULTS, '--only=bit,kill_second', f'--output={output}']
  done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
  assert done.returncode == 0, done.stderr
  results = json.loads(output.read_text())['results']
  assert set(results) == {'bit', 'kill_second'}
  for row in results.values():
    assert row['tried'] == row['survived'] == 1, row['problems']
    assert row['differing_arrays'] == row['orphans'] == 0
  assert results['bit']['steps_lost'] == 1  # it was saved on SIGTERM, and at 30
  assert 'is damaged (' in results['bit']['said']
  assert 1 <= results['kill_second']['steps_lost'] <= 8
  assert 'another process of this run failed' in results['kill_second']['said']

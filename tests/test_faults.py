"""The benchmark of faults: what it refuses."""

import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).parent.parent
FAULTS = [sys.executable, '-m', 'benchmarks.faults']


def test_an_unknown_fault_is_named():
  command = [*FAULTS, '--only=kil']
  done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
  assert done.returncode == 2
  assert done.stderr.startswith("error: there is no fault 'kil': use kill, ")
  assert done.stderr.count('\n') == 1

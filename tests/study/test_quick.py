"""The quick version of every study, and the report of them, as a user runs it.

Each is meant to end within five minutes on two cores; the durations that pytest
prints say how long it took.
"""

import csv
import os
import pathlib
import subprocess
import sys

import pytest

from configs import studies

ROOT = pathlib.Path(__file__).parents[2]
JOBS = f'--jobs={min(2, len(os.sched_getaffinity(0)))}'
pytestmark = pytest.mark.study


def run(module, *arguments):
  command = [sys.executable, '-m', f'bn_inception.{module}', *arguments]
  done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
  assert done.returncode == 0, done.stdout + done.stderr
  return done.stdout


@pytest.fixture(scope='module')
def root(tmp_path_factory):
  """Where all studies put their runs, some of which they share."""
  return tmp_path_factory.mktemp('runs')


@pytest.mark.parametrize('name', studies.STUDIES)
def test_quick_study_trains_and_evaluates_all_its_runs(root, name):
  flags = f'--study={name}', '--quick', f'--runs={root}'
  run('study', *flags, JOBS)
  status = run('study', *flags, '--status')
  num_runs = len(studies.STUDIES[name].arms)
  assert f' {num_runs} runs: {num_runs} finished' in status


def test_report_of_them_has_every_run(root, tmp_path):
  for name in studies.STUDIES:
    # With all of the above this finds nothing left to do.
    run('study', f'--study={name}', '--quick', f'--runs={root}', JOBS)
  run('study.report', f'--runs={root}', f'--out={tmp_path}', '--quick')
  assert (tmp_path / 'report.html').exists()
  text = (tmp_path / 'report.md').read_text()
  assert 'not run' not in text
  for study in studies.STUDIES.values():
    assert study.title in text
  tables = list((tmp_path / 'tables').glob('*.csv'))
  assert len(tables) >= len(studies.STUDIES)
  for table in tables:
    header, *rows = csv.reader(table.read_text().splitlines())
    assert rows and all(len(row) == len(header) for row in rows), table

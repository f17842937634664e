"""The runner: real processes on the digits, skipped, resumed, listed, failed."""

import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from bn_inception.errors import UserError
from bn_inception.study import __main__ as study
from bn_inception.study import runs as study_runs
from bn_inception.study.runs import BEGUN, FINISHED
from configs import paper, studies
from configs.studies import Arm, Study

ROOT = pathlib.Path(__file__).parents[2]


def quick_runs(name, root, values=()):
  selection = study_runs.Selection(
    str(root), is_quick=True, values=dict(values)
  )
  return study_runs.list_runs(name, selection)


@pytest.fixture
def two_runs(tmp_path, monkeypatch):
  """A study of two short runs of Figure 1's network, which compile soon."""
  arms = tuple(Arm(name, 'mnist', name) for name in paper.PERCEPTRONS)
  monkeypatch.setitem(
    studies.STUDIES, 'small', Study('Two', arms, ('digits',), (0,))
  )
  return quick_runs('small', tmp_path / 'runs')


@pytest.mark.slow
def test_runs_are_trained_evaluated_and_then_skipped(two_runs, capsys):
  assert study.run_all(two_runs + two_runs, jobs=2) == []
  assert [run.status() for run in two_runs] == [FINISHED, FINISHED]
  plain, normalised = two_runs
  assert set(plain.evaluation()['results']) == {'none'}
  assert len(normalised.evaluation()['results']) == 2
  output = capsys.readouterr().out
  assert '[2/2] ' in output and '; about 0:00 left' in output
  log = pathlib.Path(plain.folder, study_runs.LOG_FILE).read_text()
  assert 'result: top-1' in log
  before = os.stat(pathlib.Path(plain.folder, 'result.json')).st_mtime_ns
  assert study.run_all(two_runs) == []
  assert capsys.readouterr().out == ''
  after = os.stat(pathlib.Path(plain.folder, 'result.json')).st_mtime_ns
  assert after == before


@pytest.mark.slow
def test_a_failure_is_named_and_the_others_go_on(two_runs, capsys):
  folder = pathlib.Path(two_runs[0].folder)
  folder.mkdir(parents=True)
  (folder / 'config.json').write_text('no JSON')
  (folder / 'metrics.jsonl').write_text('{"kind": "start", "step": 1}\n')
  [failure] = study.run_all(two_runs)
  assert failure.startswith(f'{folder}: error: {folder}/config.json is damaged')
  assert two_runs[1].status() == FINISHED
  assert f'failed: {failure}' in capsys.readouterr().out


@pytest.mark.slow
def test_a_signal_saves_the_runs_and_the_same_command_goes_on(tmp_path):
  command = [
    sys.executable, '-m', 'bn_inception.study', '--study=figure1', '--quick',
    f'--runs={tmp_path}', '--set=training.num_epochs=10.0',
  ]  # fmt: skip
  process = subprocess.Popen(
    command, cwd=ROOT, stdout=subprocess.PIPE, text=True
  )
  # One epoch would be over before the signal comes.
  values = {'training.num_epochs': 10.0}
  [first, _] = quick_runs('figure1', tmp_path, values)
  while first.status() != BEGUN:  # the first step is taken
    assert process.poll() is None
    time.sleep(0.1)
  process.send_signal(signal.SIGTERM)
  output, _ = process.communicate(timeout=60)
  assert process.returncode == 128 + signal.SIGTERM
  assert output.endswith('stopped; the same command resumes\n')
  log = pathlib.Path(first.folder, study_runs.LOG_FILE)
  saved = 'which is saved' in log.read_text()
  again = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
  assert again.returncode == 0, again.stderr
  assert 'figure1                2 runs: 1 begun, 1 not begun' in again.stdout
  if saved:
    assert 'resuming from' in log.read_text()
  assert first.status() == FINISHED


def test_runs_have_the_environment_where_this_process_has_none(
  two_runs, monkeypatch
):
  start, seen = subprocess.Popen, {}

  def see(command, *, env, **arguments):
    seen.update(env)
    return start(['false'], env=env, **arguments)

  monkeypatch.setattr(study.subprocess, 'Popen', see)
  monkeypatch.setenv('XLA_FLAGS', '--of_the_user')
  monkeypatch.delenv('JAX_DISABLE_MOST_OPTIMIZATIONS', raising=False)
  study.run_all(two_runs, environment=studies.QUICK_ENVIRONMENT)
  assert seen['JAX_DISABLE_MOST_OPTIMIZATIONS'] == 'true'
  assert seen['XLA_FLAGS'] == '--of_the_user'
  assert seen['PATH'] == os.environ['PATH']


def test_time_that_is_over(two_runs, capsys):
  assert study.run_all(two_runs, minutes=0.0) == []
  assert '2 runs left' in capsys.readouterr().out


def test_folders_are_checked_before_a_run_begins(two_runs, capsys):
  root = pathlib.Path(two_runs[0].folder).parent
  root.write_text('not a folder')
  with pytest.raises(UserError, match='cannot be written .*another --runs'):
    study.run_all(two_runs)
  assert 'begun' not in capsys.readouterr().out


def test_jobs_have_a_core_each(two_runs):
  with pytest.raises(UserError, match='--jobs must be between 1 and'):
    study.run_all(two_runs, jobs=1 + len(os.sched_getaffinity(0)))
  with pytest.raises(UserError, match='--jobs must be between 1 and'):
    study.run_all(two_runs, jobs=0)


@pytest.mark.parametrize(
  'arguments, line',
  [
    ([], 'error: name the studies to train, such as --study=figure2'),
    (['--quick'], 'error: name the studies to train'),
    (
      ['--study=figure2', '--data_dir=/no/such'],
      'error: data_dir /no/such does not exist',
    ),
    (['--study=figure3'], "error: there is no study 'figure3': use some of"),
    (['--study=figure2', '--seeds=a'], 'error: --seeds must be whole numbers'),
    (
      ['--study=figure2', '--task=cifar'],
      'error: --config=configs/network.py:inception,cifar: unknown task ',
    ),
    (
      ['--study=figure2', '--set=model.depth=3'],
      "error: the config has no key 'model.depth': use one of model.average_",
    ),
    (
      ['--study=figure2', '--set=depth.a=3'],
      "error: the config has no key 'depth.a': use one of architecture, ",
    ),
    (
      ['--study=figure2', '--set=seed.a=3'],
      "error: the config has no key 'seed.a': use one of architecture, ",
    ),
    (
      ['--study=figure1', '--quick', '--minutes=-1'],
      'error: flag --minutes=-1',
    ),
    (
      ['--study=figure1', '--quick', '--minutes=nan'],
      'error: --minutes must be a number, got nan',
    ),
    (['--study=figure2', '--set=x'], 'error: --set must be KEY=VALUE, got x'),
  ],
)
def test_bad_flags_are_one_line(tmp_path, arguments, line):
  command = [sys.executable, '-m', 'bn_inception.study', *arguments]
  command.append(f'--runs={tmp_path}/runs')
  done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
  assert done.returncode == 2
  assert done.stderr.startswith(line) and done.stderr.count('\n') == 1
  assert not (tmp_path / 'runs').exists()


def test_list_prints_a_command_for_each_run_that_is_left(tmp_path):
  command = [
    sys.executable, '-m', 'bn_inception.study', '--study=leave_one_out',
    '--seeds=0', '--task=imagenet', f'--runs={tmp_path}', '--list',
    '--set=model.dtype=bfloat16', '--set=batch_size=512',
  ]  # fmt: skip
  done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
  lines = done.stdout.splitlines()
  assert done.returncode == 0 and len(lines) == 8
  assert lines[0].startswith(
    'python -m bn_inception.train --config=configs/network.py:bn_x5,imagenet '
    '--config.seed=0 '
    '--config.model.dtype=bfloat16 --config.batch_size=512 '
  )

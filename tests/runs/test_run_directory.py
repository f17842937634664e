"""Lock, config and result of a run's folder."""

import errno
import fcntl
import json
import os
import stat
import subprocess
import sys
from unittest import mock

import pytest

from bn_inception.errors import UserError
from bn_inception.runs import file_system, json_files, run_directory

CONFIG = {
  'name': 'a',
  'seed': 0,
  'model': {'width': 1.0, 'mean': [1.0]},
  'training': {'num_epochs': 2.0},
}


DATA = {'dataset': 'pets', 'class_names': ['cat', 'dog'], 'num_examples': 48}


def changed(**updates):
  config = json.loads(json.dumps(CONFIG))
  for key, value in updates.items():
    section, _, leaf = key.rpartition('__')
    (config[section] if section else config)[leaf] = value
  return config


def begin(workdir, config, data):
  with run_directory.open_run(workdir, config, data):
    run_directory.record_start(workdir, config, data, {})


def test_the_same_config_may_resume_and_run_longer(tmp_path):
  workdir = str(tmp_path / 'run')
  for config in CONFIG, CONFIG, changed(training__num_epochs=5.0, name='b'):
    with run_directory.open_run(workdir, config, DATA):
      run_directory.record_start(workdir, config, DATA, {'folder': '/a'})
  saved = json_files.read_json(f'{workdir}/config.json')
  assert saved['training'] == {'num_epochs': 5.0}
  starts = json_files.read_json(f'{workdir}/manifest.json')['starts']
  assert len(starts) == 3 and starts[0]['data'] == {'folder': '/a'}
  assert json_files.read_json(f'{workdir}/data.json') == DATA
  assert starts[0]['packages']['jax'] and len(starts[0]['devices']) == 8


def test_another_config_is_refused_with_the_difference(tmp_path):
  # Before anything was trained a config may be corrected.
  workdir = str(tmp_path)
  begin(workdir, changed(seed=7), DATA | {'num_examples': 9})
  begin(workdir, CONFIG, DATA)
  (tmp_path / 'metrics.jsonl').write_text('{"step": 1}\n')
  other = changed(seed=1, model__width=0.5)
  message = r'another config \(model.width: 1.0 -> 0.5; seed: 0 -> 1\)'
  with pytest.raises(UserError, match=message):
    begin(workdir, other, DATA)
  assert json_files.read_json(f'{tmp_path}/config.json')['seed'] == 0


@pytest.mark.parametrize(
  'facts, message',
  [
    ({'class_names': ['cat', 'cow']}, 'class 1: dog -> cow'),
    ({'class_names': ['dog', 'cat']}, 'class 0: cat -> dog'),
    ({'class_names': ['cat', 'dog', 'emu']}, 'number of classes: 2 -> 3'),
    ({'num_examples': 47}, 'training examples: 48 -> 47'),
    ({'dataset': 'birds'}, 'data set: pets -> birds'),
  ],
)
def test_other_data_are_refused_with_the_difference(tmp_path, facts, message):
  # What has no checkpoint and no result begins anew.
  begin(str(tmp_path), CONFIG, DATA | facts)
  (tmp_path / 'metrics.jsonl').write_text('{"step": 1}\n')
  begin(str(tmp_path), CONFIG, DATA)
  (tmp_path / 'metrics.jsonl').unlink()
  # A run may have checkpoints and no records, as that of imported weights.
  (tmp_path / 'checkpoints' / '0').mkdir(parents=True)
  before = {p: p.read_bytes() for p in tmp_path.glob('*.json')}
  with pytest.raises(UserError, match=message):
    begin(str(tmp_path), CONFIG, DATA | facts)
  assert {p: p.read_bytes() for p in tmp_path.glob('*.json')} == before


def test_facts_that_an_earlier_version_did_not_store_are_skipped(tmp_path):
  run_directory.check_same_run('run', {'class_names': ['cat']}, CONFIG, {
    'class_names': ['cat'], 'num_examples': 3,
  })  # fmt: skip


def test_a_second_process_is_refused(tmp_path):
  program = (
    'import sys; from bn_inception.runs.run_directory import open_run\n'
    'with open_run(sys.argv[1], {}, {}): pass'
  )
  command = [sys.executable, '-c', program, str(tmp_path)]
  with run_directory.open_run(str(tmp_path), {}, {}):
    second = subprocess.run(command, capture_output=True, text=True)
    assert second.returncode != 0
    assert 'another process is training in' in second.stderr
  assert subprocess.run(command).returncode == 0


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
  (tmp_path / 'file').write_text('')
  with pytest.raises(UserError, match='file/run cannot be written'):
    with run_directory.open_run(str(tmp_path / 'file' / 'run'), CONFIG, {}):
      pass


def test_outputs_do_not_replace_the_files_of_a_run(tmp_path):
  run = tmp_path / 'run'
  (run / 'checkpoints' / '9' / 'state').mkdir(parents=True)
  own = (
    'config.json', 'data.json', 'result.json', 'manifest.json', 'metrics.jsonl',
    'checkpoints/9/x.json', 'checkpoints/9/state/x', 'checkpoints/10',
    'damaged_checkpoints/9.1/x',
  )  # fmt: skip
  for name in own:  # of no run
    run_directory.check_output(str(run / name), 'give another --output')
  (run / 'config.json').write_text('{}')
  for name in own:
    with pytest.raises(
      UserError, match=f'{name} is a file of the run in {run}'
    ):
      run_directory.check_output(str(run / name), 'give another --output')
  for name in 'evaluation_test_9.json', 'checkpoints/evaluation_test_9.json':
    run_directory.check_output(str(run / name), 'give another --output')


def test_the_commit_is_of_the_code_not_of_a_clone_around_it(tmp_path):
  """As of an environment inside a user's clone, and of code that is in it."""

  def git(*command):
    identity = ['-c', 'user.name=a', '-c', 'user.email=a@b']
    done = subprocess.run(
      ['git', '-C', tmp_path, *identity, *command],
      check=True, capture_output=True, text=True,
    )  # fmt: skip
    return done.stdout.strip()

  installed = tmp_path / '.venv' / 'run_directory.py'
  copied = tmp_path / 'copied' / 'run_directory.py'
  for path in (installed, copied):
    path.parent.mkdir()
    path.write_text('1')
  git('init')
  git('add', 'copied')
  git('commit', '--message=of the user')
  commit = git('rev-parse', 'HEAD')
  assert run_directory._commit(str(installed)) is None
  assert run_directory._commit(str(copied)) == commit
  copied.write_text('2')
  assert run_directory._commit(str(copied)) == commit + '+'


@pytest.mark.parametrize('number', ['ENOSYS', 'ENOLCK', 'EOPNOTSUPP'])
def test_a_folder_without_locks_is_used_with_one_line(
  tmp_path, monkeypatch, capsys, number
):
  refused = OSError(getattr(errno, number), 'no locks here')
  monkeypatch.setattr(fcntl, 'flock', mock.Mock(side_effect=refused))
  begin(str(tmp_path), CONFIG, DATA)
  assert json_files.read_json(f'{tmp_path}/data.json') == DATA
  (line,) = capsys.readouterr().out.splitlines()
  assert f'{tmp_path} cannot be locked (no locks here)' in line


def test_a_folder_that_cannot_be_synced_is_refused(tmp_path, monkeypatch):
  def fsync(descriptor):
    if stat.S_ISDIR(os.fstat(descriptor).st_mode):
      raise OSError(errno.EINVAL, 'no folders')

  monkeypatch.setattr(os, 'fsync', fsync)
  with pytest.raises(UserError, match='sync a folder.*no folders'):
    with run_directory.open_run(str(tmp_path), CONFIG, DATA):
      pass
  assert os.listdir(tmp_path) == ['.lock']


def test_what_a_killed_start_has_left_is_no_obstacle(tmp_path, monkeypatch):
  monkeypatch.setattr(os, 'replace', mock.Mock(side_effect=SystemExit))
  with pytest.raises(SystemExit):
    file_system.check_file_system(str(tmp_path))
  monkeypatch.undo()
  assert os.listdir(tmp_path) == ['.trial']
  begin(str(tmp_path), CONFIG, DATA)
  assert not (tmp_path / '.trial').exists()


@pytest.mark.parametrize(
  'name',
  ['a\\b', 'a.__lock', b'\xff'.decode(errors='surrogateescape'), 'logs:'],
)
def test_paths_that_tensorstore_does_not_take_are_refused(tmp_path, name):
  with pytest.raises(UserError, match='cannot hold checkpoints'):
    with run_directory.open_run(str(tmp_path / name / 'run'), CONFIG, {}):
      pass
  assert not list(tmp_path.iterdir())


def test_another_config_is_named_with_a_folder_that_is_free(tmp_path):
  run = tmp_path / 'digits'
  (tmp_path / 'digits-2').mkdir()
  saved = {'config': {'seed': 1, 'init_from': ''}}
  given = {'seed': 2, 'init_from': '/a'}
  for place in run, run / 'checkpoints' / '90':
    with pytest.raises(UserError) as raised:
      run_directory.check_same_run(str(place), saved, given, {})
    assert "init_from: '' -> /a; seed: 1 -> 2" in str(raised.value)
    assert f'--workdir, such as {run}-3, or' in str(raised.value)

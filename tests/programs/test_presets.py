"""Config files are found and loaded; what is wrong with one is one line."""

import subprocess
import sys

import pytest

from bn_inception.errors import UserError
from bn_inception.programs import presets
from bn_inception.programs.presets import compose


@pytest.fixture
def folder(tmp_path, monkeypatch):
  """The current folder, and home, with a folder configs/ of its own."""
  monkeypatch.chdir(tmp_path)
  monkeypatch.setenv('HOME', str(tmp_path))
  (tmp_path / 'configs').mkdir()
  return tmp_path


def test_files_are_found_here_first_and_then_in_the_project(folder):
  assert presets.load('configs/bn_x5.py:digits') == (
    compose.preset('bn_x5', 'digits')
  )
  assert presets.path_of('bn_x5') == 'configs/bn_x5.py'
  own = 'from configs import compose\ndef get_config(task):\n  return '
  own += 'compose.preset("inception", task)\n'
  for path in 'mine.py', 'configs/bn_x5.py':
    (folder / path).write_text(own)
  for path in 'mine.py', '~/mine.py', 'configs/bn_x5.py', f'{folder}/mine.py':
    config = presets.load(f'{path}:digits')
    assert config.name == 'inception-digits'
  # Studies are not of other files than those of the project.
  assert presets.path_of('bn_x5') == str(presets.FOLDER / 'bn_x5.py')
  config = presets.load(f'{presets.path_of("bn_x5")}:digits')
  assert config.name == 'bn_x5-digits'


def test_names_are_those_of_config_files():
  names = presets.names()
  assert 'configs/bn_x5.py' in names and 'configs/from_run.py' in names
  assert not {'configs/compose.py', 'configs/paper.py'} & set(names)
  assert not {'configs/studies.py', 'configs/__init__.py'} & set(names)


def test_another_package_of_the_name_configs_is_not_taken(folder):
  (folder / 'configs' / '__init__.py').write_text('')
  (folder / 'configs' / 'compose.py').write_text('raise ValueError')
  code = (
    'import sys; sys.path.insert(0, "."); import configs; '
    'from bn_inception.programs import presets; import configs; '
    'print(*configs.__path__, presets.compose.__file__)'
  )
  done = subprocess.run(
    [sys.executable, '-c', code],
    env={'PYTHONPATH': str(presets.FOLDER.parent)},
    capture_output=True,
    text=True,
    check=True,
  )
  assert done.stdout.split() == [
    str(presets.FOLDER), str(presets.FOLDER / 'compose.py')
  ]  # fmt: skip


@pytest.mark.parametrize(
  'text, message',
  [
    ('a = 1\n', 'mine.py has no function get_config; use one of configs/'),
    ('def get_config():\n  return {}\n', 'must return a ConfigDict'),
    ('def get_config(:\n', 'mine.py, line 1: SyntaxError'),
    ('\nimport no_such_module\n', 'mine.py, line 2: ModuleNotFoundError: No'),
    (
      'from configs import compose\ndef get_config():\n'
      '  config = compose.preset("bn_x5", "digits")\n'
      '  config.optimizer.learning_rat = 1.0\n',
      'mine.py, line 4: AttributeError: Key "learning_rat" .*learning_rate',
    ),
    (
      'from configs import compose\ndef get_config():\n'
      '  return compose.preset("bn_x5", "digit")\n',
      "mine.py: unknown task 'digit': use one of imagenet",
    ),
    ('def get_config(a): ...\n', 'TypeError: .* missing 1 required'),
  ],
)
def test_a_file_without_a_config_is_one_line(folder, text, message):
  (folder / 'mine.py').write_text(text)
  with pytest.raises(UserError, match=message) as raised:
    presets.load('mine.py')
  assert '\n' not in str(raised.value)
  assert str(raised.value).startswith('--config=mine.py: ')


def test_an_absent_file_lists_those_that_there_are(folder):
  with pytest.raises(UserError) as raised:
    presets.load('configs/paper:digits', '--diff')
  assert str(raised.value).startswith('--diff=configs/paper:digits: there is ')
  assert all(name in str(raised.value) for name in presets.names())


def test_descriptions_are_a_line_for_each_key():
  origins = {'a': 'base', 'b.c': 'task x'}
  text = presets.describe({'a': 1, 'b.c': 'two'}, origins)
  assert text.splitlines() == ['a    1      base', "b.c  'two'  task x"]
  text = presets.describe_difference({'a': 1, 'b': 2}, {'b': 3, 'c': 4}, 'xy')
  assert [line.split() for line in text.splitlines()] == [
    ['x', 'y'], ['a', '1', 'absent'], ['b', '2', '3'], ['c', 'absent', '4'],
  ]  # fmt: skip
  assert presets.describe_difference({'a': 1}, {'a': 1}, ('x', 'y')) == (
    'x and y have the same values'
  )

"""Which checkpoint of a folder is used, and where the damaged ones go."""

import os
import shutil

import pytest

from bn_inception.errors import UserError
from bn_inception.runs import checkpoint_folder, integrity

DATA = 'state/data'


def write(directory, *steps):
  """Sealed folders that look like checkpoints."""
  for step in steps:
    path = directory / str(step)
    for name in (DATA, 'description/metadata'):
      (path / name).parent.mkdir(parents=True)
      (path / name).write_bytes(b'%d of 100 bytes' % step)
    integrity.seal(str(path))


@pytest.fixture
def directory(tmp_path):
  """A run's checkpoints of steps 1 to 3, to be damaged."""
  path = tmp_path / 'run' / 'checkpoints'
  write(path, 1, 2, 3)
  return path


def damage(directory, step):
  """Changes a byte of a checkpoint; returns how that is described."""
  path = directory / str(step) / DATA
  path.write_bytes(b'x' + path.read_bytes()[1:])
  return f'{DATA} has changed since it was written'


def list_files(path):
  return sorted(p for p in path.rglob('*') if p.is_file())


def test_steps_are_listed_and_found(directory, tmp_path):
  (directory / '4.orbax-checkpoint-tmp').mkdir()
  assert checkpoint_folder.list_steps(str(directory)) == [1, 2, 3]
  assert checkpoint_folder.list_steps(str(tmp_path / 'absent')) == []
  assert checkpoint_folder.find(str(directory)) == f'{directory}/3'
  assert checkpoint_folder.find(str(directory), 2) == f'{directory}/2'
  for path, step, message in (
    (directory, 7, f'step 7 in {directory}: there are 1, 2, 3'),
    (tmp_path, None, f'no checkpoint in {tmp_path}'),
  ):
    with pytest.raises(UserError, match=message):
      checkpoint_folder.find(str(path), step)


def test_the_newest_intact_one_is_chosen(directory, capsys):
  assert checkpoint_folder.newest_intact(str(directory)) == (
    f'{directory}/3',
    {},
  )
  changed = damage(directory, 3)
  (directory / '2' / 'description' / 'metadata').unlink()
  before = list_files(directory)
  chosen, damage_of = checkpoint_folder.newest_intact(str(directory))
  assert chosen == f'{directory}/1'
  missing = 'description/metadata is missing'
  assert damage_of == {f'{directory}/3': changed, f'{directory}/2': missing}
  assert list_files(directory) == before

  assert checkpoint_folder.choose_to_resume(str(directory)) == chosen
  aside = directory.parent / 'damaged_checkpoints'
  for line, step, reason in zip(
    capsys.readouterr().out.splitlines(),
    (3, 2),
    (changed, missing),
    strict=True,
  ):
    assert f'{directory}/{step} ' in line and f'{aside}/{step}' in line
    assert reason in line
  assert checkpoint_folder.list_steps(str(directory)) == [1]
  assert len(list_files(aside)) + len(list_files(directory)) == len(before)
  # Their steps are written again, and may be damaged again.
  for number in 1, 2:
    write(directory, 3)
    moved = checkpoint_folder.set_aside(f'{directory}/3')
    assert moved == f'{aside}/3.{number}'


def test_older_damaged_ones_are_moved_too(directory):
  damage(directory, 1)
  shutil.rmtree(directory / '2')
  assert checkpoint_folder.choose_to_resume(str(directory)) == f'{directory}/3'
  assert checkpoint_folder.list_steps(str(directory)) == [3]


def test_nothing_is_moved_if_all_are_damaged(directory):
  changed = damage(directory, 3)
  for step in 1, 2:
    os.truncate(directory / str(step) / DATA, 0)
  before = list_files(directory.parent)
  with pytest.raises(UserError) as caught:
    checkpoint_folder.choose_to_resume(str(directory))
  short = f'{DATA} has 0 bytes, not 14'
  found = f'(3: {changed}; 2: {short}; 1: {short})'
  assert str(directory) in str(caught.value) and found in str(caught.value)
  assert list_files(directory.parent) == before


def test_an_unsealed_one_is_only_used_if_there_is_no_other(directory, capsys):
  for step in 2, 3:
    (directory / str(step) / 'sha256.json').unlink()
  chosen, damage_of = checkpoint_folder.newest_intact(str(directory))
  assert chosen == f'{directory}/1'
  assert list(damage_of) == [f'{directory}/3', f'{directory}/2']
  assert all('has no sha256.json' in reason for reason in damage_of.values())
  damage(directory, 1)
  assert checkpoint_folder.newest_intact(str(directory)) == (
    f'{directory}/3',
    {},
  )
  assert checkpoint_folder.choose_to_resume(str(directory)) == f'{directory}/3'
  # The damaged one is out of Orbax's way, and the older unsealed one stays.
  assert checkpoint_folder.list_steps(str(directory)) == [2, 3]
  assert f'{directory}/1 is damaged ({DATA}' in capsys.readouterr().out


def test_a_folder_that_cannot_be_moved_is_named(directory):
  (directory.parent / 'damaged_checkpoints').touch()
  with pytest.raises(UserError, match=f'{directory}/3 .*move it away yourself'):
    checkpoint_folder.set_aside(f'{directory}/3')

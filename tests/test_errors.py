"""Files that could not be written are refused before there is work to lose."""

import errno
import os
import shutil
import tempfile
from unittest import mock

import pytest

from bn_inception.errors import (
  UserError,
  check_choice,
  check_free_space,
  check_writable,
  make_parent_folder,
  replacing,
)


def refusal(path):
  with pytest.raises(UserError) as error:
    check_writable(str(path), 'give another --output')
  message = str(error.value)
  assert message.startswith(f'{path} cannot be written (')
  assert message.endswith('): give another --output') and '\n' not in message
  return message


def test_choices_are_listed_and_an_empty_one_is_seen():
  with pytest.raises(UserError, match="norm 'x' .*: use one of '', group$"):
    check_choice('norm', 'x', ('', 'group'))
  check_choice('norm', '', ('', 'group'))


def test_what_cannot_be_written_is_refused(tmp_path, monkeypatch):
  (tmp_path / 'file').touch()
  assert 'Not a directory' in refusal(tmp_path / 'file' / 'x.json')
  assert 'not a regular file' in refusal(tmp_path)
  assert 'not a regular file' in refusal('/dev/null')
  # The name that it is written under is longer than its own.
  longest = os.pathconf(tmp_path, 'PC_NAME_MAX')
  assert 'File name too long' in refusal(tmp_path / ('x' * longest))
  refused = mock.Mock(side_effect=PermissionError)
  monkeypatch.setattr(tempfile, 'TemporaryFile', refused)
  assert f'no permission to write in {tmp_path}' in refusal(
    tmp_path / 'new' / 'x.json'
  )


def test_a_folder_is_tried_whatever_is_said_of_it(tmp_path, monkeypatch):
  monkeypatch.setattr(os, 'access', lambda path, mode: False)
  check_writable(str(tmp_path / 'x.json'), 'give another --output')


def test_a_folder_that_takes_no_files_is_refused():
  refusal('/proc/p.npz')  # which the system's own answer calls writable


def test_a_file_larger_than_the_room_is_refused(tmp_path):
  path = str(tmp_path / 'p.npz')
  check_free_space(path, 1, 'give another file')
  with pytest.raises(
    UserError, match=f'{path} may take 1,000,000,000,000.0 MB'
  ):
    check_free_space(path, 10**18, 'give another file')


def test_a_disk_that_does_not_tell_its_size_has_room(tmp_path, monkeypatch):
  nothing = mock.Mock(return_value=(0, 0, 0))
  monkeypatch.setattr(shutil, 'disk_usage', nothing)
  check_free_space(str(tmp_path / 'p.npz'), 10**18, 'give another file')


def test_nothing_is_changed(tmp_path):
  (tmp_path / 'old.json').write_text('old')
  for name in ('old.json', 'new.json', 'new/folder/x.json'):
    check_writable(str(tmp_path / name), 'give another --output')
  assert os.listdir(tmp_path) == ['old.json']
  assert (tmp_path / 'old.json').read_text() == 'old'


def test_the_folder_of_a_file_is_made(tmp_path, monkeypatch):
  path = str(tmp_path / 'a' / 'b' / 'x.json')
  make_parent_folder(path, 'give another --output')
  assert os.listdir(tmp_path / 'a' / 'b') == []
  monkeypatch.chdir(tmp_path)
  make_parent_folder('x.json', 'give another --output')
  (tmp_path / 'file').touch()
  with pytest.raises(UserError, match='file/x.json .*: give another --output'):
    make_parent_folder(
      str(tmp_path / 'file' / 'x.json'), 'give another --output'
    )


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path):
  path = tmp_path / 'a.txt'
  path.write_text('old')
  with pytest.raises(UserError, match=f'{path} .*No space.*: wait'):
    with replacing(str(path), remedy='wait') as file:
      file.write('half')
      raise OSError(errno.ENOSPC, 'No space')
  assert path.read_text() == 'old'
  with replacing(str(path)) as file:
    file.write('new')
    assert path.read_text() == 'old'
  assert path.read_text() == 'new' and os.listdir(tmp_path) == ['a.txt']

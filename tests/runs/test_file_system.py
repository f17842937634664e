"""Folders that cannot hold checkpoints are refused with what fails there."""

import errno
import os
from unittest import mock

import pytest

from bn_inception.errors import UserError
from bn_inception.runs import file_system


@pytest.mark.parametrize(
  'function, lacking',
  [
    ('replace', 'replace a file'),
    ('rename', 'rename a folder'),
    ('fsync', 'sync a file'),
    ('makedirs', 'make a folder'),
  ],
)
def test_a_folder_that_cannot_hold_checkpoints_is_refused_at_the_start(
  tmp_path, monkeypatch, function, lacking
):
  refused = OSError(errno.EINVAL, 'it never does')
  monkeypatch.setattr(os, function, mock.Mock(side_effect=refused))
  with pytest.raises(UserError, match=f'cannot .*{lacking}.*it never does'):
    file_system.check_file_system(str(tmp_path))
  monkeypatch.undo()
  assert not list(tmp_path.iterdir())

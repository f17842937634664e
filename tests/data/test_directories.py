"""Folders of splits, and folders that cannot be read."""

import pytest
from etils import epath

from bn_inception.data import directories
from bn_inception.data.sources import make_source
from bn_inception.errors import UserError


def test_plain_split_names_come_first(tmp_path):
  for name in 'val', 'ILSVRC2012_img_val', 'ILSVRC/Data/CLS-LOC/train':
    (tmp_path / name).mkdir(parents=True)
  root = epath.Path(tmp_path)
  assert directories.find_split(root, 'validation') == root / 'val'
  train = directories.find_split(root, 'train')
  assert train == root / 'ILSVRC/Data/CLS-LOC/train'
  assert directories.find_split(root, 'test') is None


def test_a_data_dir_that_is_not_a_folder_is_named(tmp_path, monkeypatch):
  (tmp_path / 'file').write_text('')
  for name, message in (('file', 'is a file'), ('none', 'does not exist')):
    for dataset in 'imagenet2012', 'image_folder', 'cifar10':
      with pytest.raises(UserError, match=f'data_dir .*/{name} {message}'):
        make_source(dataset, 'train', f'{tmp_path}/{name}')

  class Path(type(epath.Path('/a'))):
    def is_dir(self):
      raise PermissionError(13, 'Permission denied', str(self))

  monkeypatch.setattr(directories.epath, 'Path', Path)
  with pytest.raises(UserError, match='/a/b cannot be read: .*denied'):
    make_source('cifar10', 'train', '/a/b')

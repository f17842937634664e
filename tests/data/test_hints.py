"""Hints for users who have the data but give the wrong folder or name."""

import os
import pathlib
import shutil

import pytest

from bn_inception.data import check, directories, hints, imagenet, shrink
from bn_inception.data.sources import make_source
from bn_inception.errors import UserError
from tests.data.test_folders import VALIDATION, write_images

TFDS_DIR = str(pathlib.Path(__file__).parents[1] / 'tfds')
WNIDS = imagenet.class_names()[:3]


def write_imagenet(root, train='train', val='val'):
  for name in WNIDS:
    write_images(root / train / name, [f'{name}_1.JPEG'])
  write_images(root / val, VALIDATION)
  return root


def said(dataset, data_dir, split='train'):
  """The error of every program, which is the same."""
  programs = [
    lambda: make_source(dataset, split, str(data_dir)),
    lambda: check.check(dataset, str(data_dir)),
  ]
  if dataset != 'image_folder':
    out = str(pathlib.Path(data_dir).parent / 'out')
    programs.append(lambda: shrink.shrink(dataset, str(data_dir), out))
  lines = set()
  for program in programs:
    with pytest.raises(UserError) as caught:
      program()
    lines.add(str(caught.value))
  (line,) = lines
  assert '\n' not in line
  return line


def test_one_level_too_deep_or_too_high_gets_the_right_folder(tmp_path):
  shutil.copytree(TFDS_DIR, tmp_path / 'a' / 'tfds')
  write_imagenet(tmp_path / 'b' / 'ilsvrc')
  v2 = imagenet.V2_FOLDERS['matched-frequency']
  write_images(tmp_path / 'c' / v2 / '0', ['1.jpeg'])
  tfds, folders = tmp_path / 'a' / 'tfds', tmp_path / 'b' / 'ilsvrc'
  for dataset, data_dir, right in (
    ('fashion_mnist', tfds / 'fashion_mnist', tfds),
    ('fashion_mnist', tfds / 'fashion_mnist' / '3.0.1', tfds),
    ('fashion_mnist', tmp_path / 'a', tfds),
    ('fashion_mnist', tmp_path, tfds),
    ('imagenet2012', tmp_path / 'b', folders),
    ('imagenet2012', folders / 'train', folders),
    ('imagenet2012', folders / 'val', folders),
    ('imagenet2012', folders / 'train' / WNIDS[0], folders),
    ('image_folder', tmp_path / 'b', folders),
    ('image_folder', folders / 'train', folders),
  ):
    assert said(dataset, data_dir).endswith(f': give --data_dir={right}')
  for data_dir in tmp_path, tmp_path / 'c' / v2:
    with pytest.raises(UserError, match=f'--data_dir={tmp_path}/c$'):
      make_source('imagenet_v2', 'test', str(data_dir))


def test_other_images_are_not_taken_for_imagenet(tmp_path):
  write_images(tmp_path / 'pets' / 'train' / 'cat', ['1.jpg'])
  assert '--manual_dir' in said('imagenet2012', tmp_path)
  assert '(it has image_folder)' in said('imagenet_v2', tmp_path / 'pets')


def test_kaggle_and_unpacked_folders_are_read(tmp_path):
  root = tmp_path / 'kaggle'
  place = 'ILSVRC/Data/CLS-LOC'
  write_imagenet(root, f'{place}/train', f'{place}/val')
  write_images(root / place / 'test', ['ILSVRC2012_test_00000001.JPEG'])
  unpacked = write_imagenet(
    tmp_path / 'unpacked', 'ILSVRC2012_img_train', 'ILSVRC2012_img_val'
  )
  for folder in root, unpacked:
    train = make_source('imagenet2012', 'train', str(folder))
    assert [train[i][1] for i in range(len(train))] == [0, 1, 2]
    validation = make_source('imagenet2012', 'validation', str(folder))
    assert validation.file_name(3) == VALIDATION[3]
    assert validation[3][1] == imagenet.validation_labels()[VALIDATION[3]]
  with pytest.raises(UserError, match='test_00000001.JPEG .*secret'):
    make_source('imagenet2012', 'test', f'{root}/{place}')
  assert f'--data_dir={root}/{place}' in said('imagenet2012', root / 'ILSVRC')


@pytest.mark.parametrize(
  'files, message',
  [
    (VALIDATION, '{root} FOLDER/val`'),
    ([f'{WNIDS[0]}/a.JPEG'], '{root} FOLDER/train`'),
    ([f'Train/{WNIDS[0]}/a.JPEG'], 'Train/: rename to train/'),
    ([f'valid/{WNIDS[0]}/a.JPEG'], 'valid/: rename to val/'),
    (['data/train-00000-of-00294.parquet'], 'Parquet'),
    (['train.lmdb'], 'LMDB'),
    (['train.rec', 'train.idx'], 'MXNet'),
    (['train.beton'], 'FFCV'),
    (['train-00000-of-01024'], 'TFRecord'),
    (['imagenet1k-train-0000.tar'], 'WebDataset'),
    (['imagenet-object-localization.zip'], 'compressed'),
    (['ILSVRC2012_img_val.tar.gz'], 'compressed'),
    (['ILSVRC2012_img_test_v10102019.tar'], 'secret'),
    (['ILSVRC2012_devkit_t12.tar.gz'], 'development kit'),
    (['n01440764.tar'], 'for t in n*.tar; do mkdir'),
    (
      ['downloads/manual/ILSVRC2012_img_val.tar'],
      'give --data_dir={root}/downloads/manual',
    ),
    (['downloads/cifar.tar.gz'], 'tfds build imagenet2012'),
    (['imagenet2012/5.1.0.incompleteA1/x'], 'was never finished'),
  ],
)
def test_other_forms_of_imagenet_are_named(tmp_path, files, message):
  root = tmp_path / 'data'
  for file in files:
    path = root / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b'')
  line = said('imagenet2012', root)
  assert message.format(root=root) in line


def test_an_empty_version_was_never_finished(tmp_path):
  (tmp_path / 'imagenet2012' / '9.9.9').mkdir(parents=True)
  assert '9.9.9 was never finished' in said('imagenet2012', tmp_path)


def test_a_split_folder_in_another_format_is_named(tmp_path):
  (tmp_path / 'train').mkdir()
  (tmp_path / 'train' / 'n01440764.tar').write_bytes(b'')
  with pytest.raises(
    UserError, match=r'1 file .*\.tar 1.*n01440764.tar .*for t in'
  ):
    make_source('imagenet2012', 'train', str(tmp_path))


def test_a_broken_link_is_named(tmp_path):
  for dataset, name in (
    ('image_folder', 'train'),
    ('imagenet2012', 'val'),
    ('fashion_mnist', 'fashion_mnist'),
  ):
    (tmp_path / name).symlink_to('/no/where')
    assert f'/{name} is a link to /no/where' in said(dataset, tmp_path)
    (tmp_path / name).unlink()


def test_training_tars_need_preparing(tmp_path):
  (tmp_path / 'ILSVRC2012_img_train.tar').write_bytes(b'')
  with pytest.raises(UserError, match=f'--manual_dir={tmp_path}`'):
    make_source('imagenet2012', 'train', str(tmp_path))


def test_the_archive_is_read_next_to_the_training_folders(tmp_path):
  write_images(tmp_path / 'train' / WNIDS[0], ['1.JPEG'])
  (tmp_path / imagenet.VALIDATION_ARCHIVE).write_bytes(b'\x1f\x8bgzip')
  with pytest.raises(UserError, match='ILSVRC2012_img_val.tar .*compressed'):
    make_source('imagenet2012', 'validation', str(tmp_path))


def test_folders_that_may_not_be_read_are_skipped(tmp_path, monkeypatch):
  write_imagenet(tmp_path / 'b' / 'mine')
  (tmp_path / 'a').mkdir()
  scandir = os.scandir

  def refuse(path):
    if str(path).endswith('/a'):
      raise PermissionError(13, 'Permission denied', str(path))
    return scandir(path)

  monkeypatch.setattr(directories.os, 'scandir', refuse)
  assert said('imagenet2012', tmp_path).endswith(f'={tmp_path}/b/mine')


def test_the_search_of_a_large_tree_is_limited(tmp_path, monkeypatch):
  monkeypatch.setattr(hints, '_MAX_FOLDERS', 5)
  for i in range(9):
    (tmp_path / f'{i}').mkdir()
  write_imagenet(tmp_path / '8')
  assert '--manual_dir' in said('imagenet2012', tmp_path)

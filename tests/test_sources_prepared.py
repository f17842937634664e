"""Copies prepared by TFDS: read without TensorFlow; what is said of bad ones."""

import pathlib
import pickle
import shutil

import numpy as np
import pytest

from bn_inception.errors import UserError
from bn_inception.images import decode_image
from bn_inception.sources import imagenet, make_source

TFDS_DIR = str(pathlib.Path(__file__).parent / 'data' / 'tfds')


def test_tfds_records_are_read_without_tensorflow():
  import sys

  source = make_source('fashion_mnist', 'train', TFDS_DIR)
  assert len(source) == 200 and source.num_channels == 1
  assert source.class_names[9] == 'Ankle boot'
  encoded, label = source[0]
  assert label == 2 and encoded.startswith(b'\x89PNG')
  image = decode_image(encoded, 1)
  assert image.shape == (28, 28, 1) and image.dtype == np.uint8
  assert len(make_source('fashion_mnist', 'test', TFDS_DIR)) == 80
  assert 'tensorflow' not in sys.modules
  assert source.describe(3) == 'fashion_mnist, example 3'
  assert source.origin()['folder'] == f'{TFDS_DIR}/fashion_mnist/3.0.1'


def copy_info(tmp_path, replacement):
  """The committed data set with its dataset_info.json changed."""
  folder = tmp_path / 'fashion_mnist' / '3.0.1'
  folder.mkdir(parents=True)
  for name in 'dataset_info.json', 'features.json', 'label.labels.txt':
    with open(f'{TFDS_DIR}/fashion_mnist/3.0.1/{name}') as file:
      (folder / name).write_text(file.read().replace(*replacement))


def test_tfrecord_copy_is_told_how_to_be_converted(tmp_path):
  copy_info(tmp_path, ('"array_record"', '"tfrecord"'))
  with pytest.raises(
    UserError,
    match=r'prepared as tfrecord.* --dataset_version_dir=\S+/3.0.1 ',
  ):
    make_source('fashion_mnist', 'train', str(tmp_path))


def test_a_converted_copy_is_read_in_its_second_format(tmp_path):
  shutil.copytree(TFDS_DIR, tmp_path, dirs_exist_ok=True)
  path = tmp_path / 'fashion_mnist' / '3.0.1' / 'dataset_info.json'
  formats = '"alternativeFileFormats": ["array_record"], "fileFormat": '
  text = path.read_text().replace(
    '"fileFormat": "array_record"', f'{formats}"tfrecord"'
  )
  assert formats in text
  path.write_text(text)
  source = make_source('fashion_mnist', 'train', str(tmp_path))
  expected = make_source('fashion_mnist', 'train', TFDS_DIR)
  assert pickle.loads(pickle.dumps(source))[199] == expected[199]


def test_an_incomplete_copy_is_told(tmp_path):
  copy_info(tmp_path, ('', ''))
  with pytest.raises(
    UserError, match='cannot be read .* incomplete or damaged'
  ):
    make_source('fashion_mnist', 'train', str(tmp_path))


@pytest.mark.parametrize('version', ['', ':3.0.1'])
def test_classes_in_another_order_are_refused(tmp_path, monkeypatch, version):
  shutil.copytree(TFDS_DIR, tmp_path, dirs_exist_ok=True)
  path = tmp_path / 'fashion_mnist' / '3.0.1' / 'label.labels.txt'
  names = make_source('fashion_mnist', 'test', TFDS_DIR).class_names
  if version:  # TFDS then takes the names of the copy; ImageNet's are known
    monkeypatch.setattr(imagenet, 'class_names', lambda: names)
  swapped = (names[1], names[0], *names[2:])
  path.write_text('\n'.join(swapped) + '\n')
  with pytest.raises(UserError) as error:
    make_source(f'fashion_mnist{version}', 'test', str(tmp_path))
  assert str(error.value).startswith(
    f"{path} has the classes in another order: number 0 is '{names[1]}', not "
    f"'{names[0]}': "
  )
  # Another spelling is no other order.
  path.write_text('\n'.join([*names[:-1], 'ankle boot']) + '\n')
  assert (
    len(make_source(f'fashion_mnist{version}', 'test', str(tmp_path))) == 80
  )

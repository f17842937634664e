"""Sources: what they hold, and what they say when something is missing."""

import pathlib
import pickle
import re

import numpy as np
import pytest

from bn_inception.errors import UserError
from bn_inception.input_pipeline import decode_image
from bn_inception.sources import make_source

TFDS_DIR = str(pathlib.Path(__file__).parent / 'data' / 'tfds')


def test_digits_are_split_into_fixed_stratified_parts():
  train, test = make_source('digits', 'train'), make_source('digits', 'test')
  assert (len(train), len(test)) == (1442, 355)
  for source, fraction in (train, 0.8), (test, 0.2):
    labels = np.array([source[i][1] for i in range(len(source))])
    counts = np.bincount(labels, minlength=10)
    assert np.all(np.abs(counts - fraction * 1797 / 10) < 5)
  image, _ = train[0]
  assert image.dtype == np.uint8 and image.shape == (8, 8, 1)
  assert max(train[i][0].max() for i in range(50)) == 255
  together = {train[i][0].tobytes() for i in range(len(train))}
  assert not together & {test[i][0].tobytes() for i in range(len(test))}


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


@pytest.mark.parametrize(
  'source',
  [
    make_source('digits', 'test'),
    make_source('synthetic', 'train'),
    make_source('fashion_mnist', 'test[:50%]', TFDS_DIR),
  ],
  ids=['digits', 'synthetic', 'tfds'],
)
def test_sources_survive_pickling(source):
  copy = pickle.loads(pickle.dumps(source))
  assert len(copy) == len(source) and copy.class_names == source.class_names
  image, label = source[7]
  copied_image, copied_label = copy[7]
  assert label == copied_label
  np.testing.assert_array_equal(
    decode_image(image, source.num_channels),
    decode_image(copied_image, source.num_channels),
  )


def test_synthetic_images_are_a_function_of_split_and_index():
  train, test = make_source('synthetic', 'train'), make_source('synthetic', 'x')
  np.testing.assert_array_equal(train[5][0], train[5][0])
  assert not np.array_equal(train[5][0], test[5][0])
  assert len(train.class_names) == 1000 and train[999][1] == 999
  assert train[999][0].mean() > train[0][0].mean() + 100


def copy_info(tmp_path, replacement):
  """The committed data set with its dataset_info.json changed."""
  folder = tmp_path / 'fashion_mnist' / '3.0.1'
  folder.mkdir(parents=True)
  for name in 'dataset_info.json', 'features.json', 'label.labels.txt':
    with open(f'{TFDS_DIR}/fashion_mnist/3.0.1/{name}') as file:
      (folder / name).write_text(file.read().replace(*replacement))


def test_tfrecord_copy_is_told_how_to_be_converted(tmp_path):
  copy_info(tmp_path, ('"array_record"', '"tfrecord"'))
  with pytest.raises(UserError, match='prepared as tfrecord.*convert_format'):
    make_source('fashion_mnist', 'train', str(tmp_path))


def test_an_incomplete_copy_is_told(tmp_path):
  copy_info(tmp_path, ('', ''))
  with pytest.raises(
    UserError, match='cannot be read .* incomplete or damaged'
  ):
    make_source('fashion_mnist', 'train', str(tmp_path))


def test_missing_things_are_named_with_the_remedy(tmp_path):
  cases = [
    (
      ('fashion_mnist', 'train', '/no/such'),
      'data_dir /no/such does not exist',
    ),
    (('fashion_mnist', 'train', str(tmp_path)), 'tfds build fashion_mnist'),
    (
      ('fashion_mnst', 'train', str(tmp_path)),
      "unknown data set 'fashion_mnst'",
    ),
    (
      ('fashion_mnist', 'val', TFDS_DIR),
      "no split 'val': use one of train, test",
    ),
    (('digits', 'val', None), "digits has no split 'val': use train or test"),
    (
      ('fashion_mnist:9.9.9', 'train', TFDS_DIR),
      "unknown data set 'fashion_mni",
    ),
    (
      ('fashion_mnist/foo', 'train', TFDS_DIR),
      "unknown data set 'fashion_mnist",
    ),
    (
      ('imagenet2012', 'train', str(tmp_path)),
      '--manual_dir=FOLDER_OF_THE_TWO',
    ),
    (('../x', 'train', None), "'../x' is not the name of a data set"),
  ]
  for arguments, message in cases:
    with pytest.raises(UserError, match=re.escape(message)) as caught:
      make_source(*arguments)
    assert '\n' not in str(caught.value)

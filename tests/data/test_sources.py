"""Opening sources by name, and errors if one is missing."""

import pathlib
import pickle
import re

import numpy as np
import pytest

from bn_inception.data.images import decode_image
from bn_inception.data.sources import make_source
from bn_inception.errors import UserError

TFDS_DIR = str(pathlib.Path(__file__).parents[1] / 'tfds')


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
      'it has fashion_mnist:3.0.1: give --config.source.dataset=fashion_mni',
    ),
    (
      ('fashion_mnist/foo', 'train', TFDS_DIR),
      'it has fashion_mnist:3.0.1: give --config.source.dataset=fashion_mni',
    ),
    (
      ('imagenet2012', 'train', str(tmp_path)),
      '--manual_dir=FOLDER_OF_THE_TWO',
    ),
    (('../x', 'train', None), "'../x' is not a"),
  ]
  for arguments, message in cases:
    with pytest.raises(UserError, match=re.escape(message)) as caught:
      make_source(*arguments)
    assert '\n' not in str(caught.value)

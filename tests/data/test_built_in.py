"""The digits and synthetic images."""

import numpy as np

from bn_inception.data.sources import make_source


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


def test_synthetic_images_are_a_function_of_split_and_index():
  train, test = make_source('synthetic', 'train'), make_source('synthetic', 'x')
  np.testing.assert_array_equal(train[5][0], train[5][0])
  assert not np.array_equal(train[5][0], test[5][0])
  assert len(train.class_names) == 1000 and train[999][1] == 999
  assert train[999][0].mean() > train[0][0].mean() + 100

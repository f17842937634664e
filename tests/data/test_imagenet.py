"""ImageNet's class order and ground truth."""

import numpy as np
import pytest

from bn_inception.data import imagenet
from bn_inception.errors import UserError


def test_classes_are_in_the_order_of_their_wordnet_ids():
  names = imagenet.class_names()
  assert len(names) == 1000 and list(names) == sorted(set(names))
  # Known from torchvision and Keras: tench, goldfish, ..., toilet tissue.
  assert names[:2] == ('n01440764', 'n01443537')
  assert names[281] == 'n02123045'  # tabby cat
  assert names[999] == 'n15075141'


def test_ground_truth_has_fifty_images_of_each_class():
  labels = imagenet.validation_labels()
  assert len(labels) == imagenet.NUM_EXAMPLES['validation'] == 50_000
  counts = np.bincount(list(labels.values()), minlength=1000)
  np.testing.assert_array_equal(counts, 50)
  # The first image is a snake, the second ski, in every published list.
  assert labels['ILSVRC2012_val_00000001.JPEG'] == 65
  assert labels['ILSVRC2012_val_00000002.JPEG'] == 970
  assert labels['ILSVRC2012_val_00000003.JPEG'] == 230


def test_real_labels_are_the_published_ones():
  labels = imagenet.validation_labels()
  classes = imagenet.class_names()
  sets = imagenet.real_labels(labels, classes)
  # Beyer et al. (2020): 46,837 images have labels; of these the original labels
  # are right for 90.02 %.
  rated = [(o, r) for o, r in zip(labels.values(), sets, strict=True) if r]
  assert len(rated) == 46_837
  right = sum(original in real for original, real in rated)
  assert round(100 * right / len(rated), 2) == 90.02
  names = ['ILSVRC2012_val_00000003.JPEG', 'ILSVRC2012_val_00000001.JPEG']
  assert imagenet.real_labels(names, classes) == [{230, 231}, set()]
  for images, others, message in (
    (['a.JPEG'], classes, "'a.JPEG' .*00001.JPEG"),
    (names, ('background', *classes), '1,000 classes'),
    (names, classes[:-1], '1,000 classes'),
    (names[1:], classes, 'none of these images has a ReaL label'),
  ):
    with pytest.raises(UserError, match=message):
      imagenet.real_labels(images, others)

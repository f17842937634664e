"""One table of names; those of whole networks are tested with their layouts."""

import pytest

from bn_inception.weights.names import published_names


@pytest.mark.parametrize(
  'unit, names',
  [
    (
      'conv2_reduce',
      (
        'conv2_3x3_reduce',
        'features.init_block.conv2.conv1',
        'Conv2d_2b_1x1',
      ),
    ),
    (
      'inception_4a/double3x3_a',
      (
        'inception_4a_double_3x3_1',
        'features.stage2.unit2.branches.branch3.conv2',
        'Mixed_4b/Branch_2/Conv2d_0b_3x3',
      ),
    ),
    (  # no 1x1 in a module that strides
      'inception_4e/conv3x3',
      (
        'inception_4e_3x3',
        'features.stage3.unit1.branches.branch1.conv2',
        'Mixed_5a/Branch_0/Conv2d_1a_3x3',
      ),
    ),
  ],
)
def test_names(unit, names):
  assert published_names(unit) == names

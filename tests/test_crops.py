"""Boxes: inside the image, with the paper's areas and aspects."""

import numpy as np
import pytest

from bn_inception import crops


@pytest.mark.parametrize('height, width', [(375, 500), (500, 375), (224, 224)])
def test_training_crops_have_the_stated_areas_and_aspects(height, width):
  rng = np.random.default_rng(0)
  boxes = np.array(
    [crops.training_crop(rng, height, width) for _ in range(3000)]
  )
  top, left, box_height, box_width = boxes.T
  assert (top >= 0).all() and (top + box_height <= height).all()
  assert (left >= 0).all() and (left + box_width <= width).all()
  area = box_height * box_width / (height * width)
  assert 0.075 < area.min() < 0.09 and area.max() <= 1.0
  # Boxes that do not fit are drawn again, which favours the smaller ones.
  assert 0.40 < area.mean() < 0.54
  aspect = box_width / box_height
  assert 0.73 < aspect.min() and aspect.max() < 1.37


def test_a_crop_that_never_fits_becomes_the_centre():
  rng = np.random.default_rng(0)
  box = crops.training_crop(rng, 10, 1000, area_range=(0.9, 1.0))
  assert box == (0, 495, 10, 10)


def test_centre_square():
  assert crops.centre_square(375, 500, 0.875) == (23, 86, 328, 328)
  assert crops.centre_square(8, 8, 1.0) == (0, 0, 8, 8)

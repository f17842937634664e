"""Crop boxes: inside the image, with the stated areas and aspects."""

import numpy as np
import pytest

from bn_inception.data import crops


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


def googlenet_boxes(sizes, offsets):
  """Boxes by GoogLeNet's description, from (height, width) and squares' corners."""
  expected = []
  for (height, width), squares in zip(sizes, offsets, strict=True):
    side = min(height, width)
    for top, left in squares:
      far = side - 224
      for y, x in [
        (0, 0),
        (0, far),
        (far, 0),
        (far, far),
        (far // 2, far // 2),
      ]:
        expected.append(((height, width), (top + y, left + x, 224, 224)))
      expected.append(((height, width), (top, left, side, side)))
  return expected


LANDSCAPE = [(256, 341), (288, 384), (320, 427), (352, 469)]
MIDDLES = [42, 48, 53, 58]  # (width - side) // 2


@pytest.mark.parametrize('shape', [(375, 500), (500, 375), (300, 300)])
def test_googlenet_takes_144_crops(shape):
  sizes = LANDSCAPE
  squares = [
    [(0, middle), (0, 0), (0, width - height)]
    for middle, (height, width) in zip(MIDDLES, LANDSCAPE, strict=True)
  ]
  if shape == (500, 375):
    sizes = [size[::-1] for size in sizes]
    squares = [[corner[::-1] for corner in of_scale] for of_scale in squares]
  elif shape == (300, 300):
    sizes = [(side, side) for side in (256, 288, 320, 352)]
    squares = [[(0, 0)] * 3] * 4
  found = crops.evaluation_views(*shape, 'googlenet', 224)
  assert found == googlenet_boxes(sizes, squares)
  assert 2 * len(found) == crops.NUM_CROPS['googlenet'] == 144
  assert crops.num_views('googlenet') == 72


def test_ten_crops_and_the_two_rules_for_one():
  ten = crops.evaluation_views(375, 500, 'ten', 224)
  assert [view.box[:2] for view in ten] == [
    (0, 42), (0, 74), (32, 42), (32, 74), (16, 58),
  ]  # fmt: skip
  assert {(view.size, view.box[2:]) for view in ten} == {
    ((256, 341), (224, 224))
  }
  assert crops.num_views('ten') == 5
  assert crops.evaluation_views(375, 500, 'short_side', 224) == [ten[4]]
  assert crops.evaluation_views(375, 500, 'centre', 224) == [
    (None, (23, 86, 328, 328))
  ]
  assert crops.evaluation_views(375, 500, 'whole', 224) == [
    (None, (0, 0, 375, 500))
  ]


@pytest.mark.parametrize(
  'shape, box',
  [
    ((375, 500), (23, 31, 329, 438)),
    ((500, 375), (31, 23, 438, 329)),
    ((224, 224), (14, 14, 196, 196)),
    ((15, 16), (0, 1, 15, 14)),
    ((1, 9), (0, 0, 1, 9)),
  ],
)
def test_slim_keeps_seven_eighths_of_both_sides(shape, box):
  # As tf.image.central_crop: int((n - 0.875 n) / 2) off each end.
  assert crops.evaluation_views(*shape, 'slim', 224) == [(None, box)]


@pytest.mark.parametrize(
  'shape, size, corner',
  [
    ((375, 500), (256, 341), (16, 58)),  # 341.33; 58.5 rounds to even
    ((500, 375), (341, 256), (58, 16)),
    ((299, 400), (256, 342), (16, 59)),  # 342.47
    ((300, 403), (256, 343), (16, 60)),  # 343.89; 59.5 rounds to even
    ((96, 97), (256, 258), (16, 17)),  # 258.67: it enlarges, too
    ((1, 3), (256, 768), (16, 272)),
  ],
)
def test_torchvision_truncates_the_long_side(shape, size, corner):
  assert crops.evaluation_views(*shape, 'torchvision', 224) == [
    (size, (*corner, 224, 224))
  ]


def test_caffe_squeezes_the_image_to_a_square():
  for shape in ((375, 500), (500, 375), (1, 9)):
    assert crops.evaluation_views(*shape, 'caffe', 224) == [
      ((256, 256), (16, 16, 224, 224))
    ]
  assert crops.evaluation_views(375, 500, 'caffe', 112) == [
    ((128, 128), (8, 8, 112, 112))
  ]


@pytest.mark.parametrize('rule', crops.NUM_CROPS)
@pytest.mark.parametrize('shape', [(1, 9), (9, 1), (28, 28), (29, 200)])
def test_views_are_inside_the_image(rule, shape):
  for image_size in (8, 28):
    views = crops.evaluation_views(*shape, rule, image_size)
    assert len(views) == crops.num_views(rule)
    for size, (top, left, height, width) in views:
      size = size or shape
      assert top >= 0 and left >= 0 and height > 0 and width > 0
      assert top + height <= size[0] and left + width <= size[1]

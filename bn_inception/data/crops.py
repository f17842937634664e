"""Crop boxes for training and evaluation: geometry only, no pixels.

A box is (top, left, height, width) in pixels.
"""

import math
from typing import NamedTuple

import numpy as np

Box = tuple[int, int, int, int]


def training_crop(
  rng: np.random.Generator,
  height: int,
  width: int,
  area_range: tuple[float, float] = (0.08, 1.0),
  aspect_range: tuple[float, float] = (3 / 4, 4 / 3),
  num_attempts: int = 10,
) -> Box:
  """A box of random area, aspect and position (GoogLeNet, Section 6).

  Args:
    rng: source of randomness.
    height, width: size of the image.
    area_range: fraction of the image's area, drawn uniformly.
    aspect_range: width / height, drawn log-uniformly.
    num_attempts: number of draws; if none fits, the largest centred square is
      returned.
  """
  least_area, most_area = area_range
  least_aspect, most_aspect = aspect_range
  # Drawing all at once is 4 times as fast as one by one.
  for draws in rng.random((num_attempts, 4)).tolist():
    area = least_area + draws[0] * (most_area - least_area)
    area *= height * width
    aspect = least_aspect * (most_aspect / least_aspect) ** draws[1]
    crop_width = round(math.sqrt(area * aspect))
    crop_height = round(math.sqrt(area / aspect))
    if 0 < crop_height <= height and 0 < crop_width <= width:
      top = int(draws[2] * (height - crop_height + 1))
      left = int(draws[3] * (width - crop_width + 1))
      return top, left, crop_height, crop_width
  return centre_square(height, width, 1.0)


def centre_square(height: int, width: int, fraction: float) -> Box:
  """The centred square of `fraction` of the shorter side."""
  size = max(1, round(fraction * min(height, width)))
  return (height - size) // 2, (width - size) // 2, size, size


class View(NamedTuple):
  """A crop of the resized image, to be resized to the network's input.

  Attributes:
    size: (height, width) to resize the whole image to; None: no resizing.
    box: box in the resized image.
  """

  size: tuple[int, int] | None
  box: Box


# Evaluation rule -> number of crops, including mirror images if more than one.
NUM_CROPS = {
  'whole': 1,
  'centre': 1,
  'short_side': 1,
  'slim': 1,
  'torchvision': 1,
  'caffe': 1,
  'ten': 10,
  'googlenet': 144,
}
# Rules from other projects resize as those do (a method of `resizing.resize`),
# all others as `data.interpolation` says.
RESIZERS = {
  'slim': 'tensorflow_1',
  'torchvision': 'pillow',
  'caffe': 'bilinear',
}


def num_views(rule: str) -> int:
  """Number of crops of a rule, not counting mirror images."""
  return max(1, NUM_CROPS[rule] // 2)


_SCALE = 256 / 224  # AlexNet, Section 4.1; later Caffe and PyTorch
_GOOGLENET_SCALES = (256 / 224, 288 / 224, 320 / 224, 352 / 224)


def evaluation_views(
  height: int, width: int, rule: str, image_size: int
) -> list[View]:
  """The views of an image that evaluation averages over, without mirror images.

  whole: the whole image.
  centre: centred square of 87.5 % of the short side.
  short_side: short side resized to 256/224 of the input, then the centre.
  ten: resized the same, then four corners and centre of the centre square
    (AlexNet).
  googlenet: 4 scales x 3 squares x (4 corners, centre, the square resized)
    (GoogLeNet, Section 7).
  slim: 87.5 % of both sides (tensorflow/models, research/slim/preprocessing/
    inception_preprocessing.py, preprocess_for_eval).
  torchvision: as short_side, with the rounding of its Resize and CenterCrop.
  caffe: image squeezed to a square of 256/224 of the input, then the centre
    (examples/imagenet/create_imagenet.sh).

  Args:
    height, width: size of the image.
    rule: a key of `NUM_CROPS`.
    image_size: height and width of the network's input.
  """
  if rule == 'whole':
    return [View(None, (0, 0, height, width))]
  if rule == 'centre':
    return [View(None, centre_square(height, width, 0.875))]
  if rule == 'slim':
    top, left = height // 16, width // 16  # as tf.image.central_crop rounds
    return [View(None, (top, left, height - 2 * top, width - 2 * left))]
  if rule == 'torchvision':
    side, short = round(_SCALE * image_size), min(height, width)
    size = side * height // short, side * width // short
    top, left = (round((length - image_size) / 2) for length in size)
    return [View(size, (top, left, image_size, image_size))]
  if rule == 'caffe':
    side = round(_SCALE * image_size)
    return [View((side, side), _centre(side, side, image_size))]
  scales = _GOOGLENET_SCALES if rule == 'googlenet' else (_SCALE,)
  found = []
  for scale in scales:
    size = _with_short_side(height, width, round(scale * image_size))
    if rule == 'short_side':
      found.append(View(size, _centre(*size, image_size)))
      continue
    for square in _squares(*size)[: 3 if rule == 'googlenet' else 1]:
      boxes = _corners_and_centre(square, image_size)
      found += [View(size, box) for box in boxes]
      if rule == 'googlenet':
        found.append(View(size, square))
  return found


def _with_short_side(height: int, width: int, side: int) -> tuple[int, int]:
  scale = side / min(height, width)
  return max(side, round(scale * height)), max(side, round(scale * width))


def _centre(height: int, width: int, size: int) -> Box:
  return (height - size) // 2, (width - size) // 2, size, size


def _squares(height: int, width: int) -> list[Box]:
  """The centre square, then left and right, or top and bottom."""
  side = min(height, width)
  last = (height - side, width - side, side, side)
  return [_centre(height, width, side), (0, 0, side, side), last]


def _corners_and_centre(square: Box, size: int) -> list[Box]:
  top, left, side, _ = square
  far = side - size
  offsets = [(0, 0), (0, far), (far, 0), (far, far), (far // 2, far // 2)]
  return [(top + y, left + x, size, size) for y, x in offsets]

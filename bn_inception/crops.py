"""Boxes to cut out of photographs: geometry on numbers, no pixels.

A box is (top, left, height, width) in pixels.
"""

import math

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
    height, width: of the image.
    area_range: fraction of the image's area, drawn uniformly.
    aspect_range: width / height, drawn uniformly in its logarithm.
    num_attempts: draws before giving up on a box that fits.

  Returns:
    The box; the largest centred square if no draw fitted.
  """
  least_area, most_area = area_range
  least_aspect, most_aspect = aspect_range
  # All at once: drawing one by one takes four times as long.
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

"""Each resizing method equals the library that it is named after."""

import cv2
import numpy as np
import pytest
from PIL import Image

from bn_inception.data import resizing

SHAPES = [(7, 10), (300, 40), (40, 300), (224, 224), (1, 9), (9, 1), (1, 1)]
METHODS = (*resizing.OPENCV, 'pillow', 'tensorflow_1')


def noise(*shape):
  rng = np.random.default_rng(0)
  return rng.integers(0, 256, shape).astype(np.uint8)


def slim_weights(length, new):
  """The weight of each pixel in each new one, float64 [new, length]."""
  weights = np.zeros((new, length))
  for i in range(new):
    position = i * length / new
    first = int(position)
    weights[i, first] += 1 - (position - first)
    weights[i, min(first + 1, length - 1)] += position - first
  return weights


@pytest.mark.parametrize('channels', [1, 3])
@pytest.mark.parametrize('shape', SHAPES)
def test_tensorflow_1_follows_its_formula(shape, channels):
  image = noise(*shape, channels)
  for size in (8, 224):
    exact = np.einsum(
      'yh,hwc,xw->yxc', slim_weights(shape[0], size), image,
      slim_weights(shape[1], size), optimize=True,
    )  # fmt: skip
    found = resizing.resize(image, (size, size), 'tensorflow_1')
    # A half, and what float32 positions, TensorFlow's too, are off.
    assert np.abs(found - exact).max() <= 0.51


def test_tensorflow_1_gives_what_tensorflow_gave():
  i, j, c = np.indices((7, 10, 3))
  image = ((37 * i + 91 * j + 53 * c) % 256).astype(np.uint8)
  # tf.compat.v1.image.resize_bilinear of TensorFlow 2.21, times 255.
  expected = [
    [53.0, 204.667, 100.333, 252.0, 147.667, 43.333],
    [117.75, 98.75, 165.083, 60.75, 212.417, 108.083],
    [182.5, 120.833, 144.5, 125.5, 106.5, 172.833],
    [183.25, 142.917, 166.583, 190.25, 85.917, 152.25],
  ]
  found = resizing.resize(image, (4, 6), 'tensorflow_1')[..., 1]
  np.testing.assert_allclose(found, expected, rtol=0, atol=0.5005)


@pytest.mark.parametrize('shape', SHAPES)
def test_pillow_is_pillows_bilinear(shape):
  colour, grey = noise(*shape, 3), noise(*shape, 1)
  for size in ((8, 12), (260, 224)):
    for pixels, image in (
      (colour, Image.fromarray(colour)),
      (grey, Image.fromarray(grey[..., 0])),
    ):
      resized = image.resize(size[::-1], Image.Resampling.BILINEAR)
      np.testing.assert_array_equal(
        resizing.resize(pixels, size, 'pillow'),
        np.asarray(resized).reshape(*size, -1),
      )


@pytest.mark.parametrize('name', ['linear', 'area', 'nearest', 'cubic'])
def test_opencvs_methods(name):
  method = {'linear': 'bilinear', 'cubic': 'bicubic'}.get(name, name)
  flag = getattr(cv2, f'INTER_{name.upper()}')
  image = noise(30, 50, 3)
  np.testing.assert_array_equal(
    resizing.resize(image, (12, 16), method),
    cv2.resize(image, (16, 12), interpolation=flag),
  )


@pytest.mark.parametrize('channels', [1, 3])
@pytest.mark.parametrize('method', METHODS)
def test_writes_into_a_part_of_a_batch_from_a_part_of_an_image(
  method, channels
):
  part = noise(40, 60, channels)[3:33, 5:45]
  batch = np.zeros((2, 12, 16, channels), np.uint8)
  assert resizing.resize(part, (12, 16), method, batch[1]).base is batch
  np.testing.assert_array_equal(
    batch[1], resizing.resize(part.copy(), (12, 16), method)
  )
  assert batch[1].any() and not batch[0].any()


@pytest.mark.parametrize('method', METHODS)
def test_the_same_size_keeps_the_pixels(method):
  image = noise(9, 14, 3)
  np.testing.assert_array_equal(resizing.resize(image, (9, 14), method), image)

"""Distortions against NumPy, image by image."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bn_inception.data import augment
from bn_inception.errors import UserError


def images(num_channels, num_images=5):
  rng = np.random.default_rng(0)
  return rng.integers(0, 256, (num_images, 6, 7, num_channels)).astype(np.uint8)


def reference(image, key, strength):
  """The documented distortion of one image, in float64."""
  order_key, factor_key, light_key = jax.random.split(key, 3)
  order = jax.random.permutation(order_key, 3)
  draws = np.asarray(jax.random.uniform(factor_key, (3,)), np.float64)
  factors = 1 + strength * (draws - 0.5)
  x = np.float64(image)
  for which, factor in zip(order, factors, strict=True):
    grey = x if x.shape[-1] == 1 else (x @ [0.299, 0.587, 0.114])[..., None]
    target = [0.0, grey.mean(), grey][int(which)]
    x = np.clip(target + factor * (x - target), 0, 255)
  if x.shape[-1] == 3:
    alpha = 0.1 * strength * np.asarray(jax.random.normal(light_key, (3,)))
    x = x + 255 * augment.LIGHTING_DIRECTIONS @ (
      alpha * augment.LIGHTING_DEVIATIONS
    )
  return x


@pytest.mark.parametrize('num_channels', [1, 3])
@pytest.mark.parametrize('strength', [0.5, 1.0])
def test_distortion_equals_numpy_per_image(num_channels, strength):
  batch, index = images(num_channels), jnp.array([4, 8, 15, 16, 23])
  key = jax.random.key(1)
  distorted = augment.photometric_distortion(batch, index, key, strength)
  for i in range(len(batch)):
    own_key = jax.random.fold_in(key, index[i])
    np.testing.assert_allclose(
      distorted[i], reference(batch[i], own_key, strength), rtol=1e-4, atol=1e-2
    )


def test_strength_zero_changes_nothing():
  batch = images(3)
  distorted = augment.photometric_distortion(
    batch, jnp.arange(5), jax.random.key(0), 0.0
  )
  np.testing.assert_array_equal(distorted, batch)


def test_factors_span_what_howard_states():
  grey = np.full((400, 2, 2, 1), 100, np.uint8)
  distorted = augment.photometric_distortion(
    grey, jnp.arange(400), jax.random.key(0), 1.0
  )
  # Contrast and colour keep a uniform grey image; brightness scales it.
  factor = np.asarray(distorted)[:, 0, 0, 0] / 100
  assert 0.5 <= factor.min() < 0.52 and 1.48 < factor.max() <= 1.5


SCALINGS = [  # of public networks: TF-Slim, PyTorch, Caffe
  (((-1.0, 1.0), (0.0,), (1.0,), 'rgb'), [-1.0, 0.0, 1.0]),
  (
    ((0.0, 1.0), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), 'rgb'),
    [-0.485 / 0.229, (0.5 - 0.456) / 0.224, (1 - 0.406) / 0.225],
  ),
  (
    ((0.0, 255.0), (104.0, 117.0, 128.0), (1.0,), 'bgr'),
    [255.0 - 104.0, 127.5 - 117.0, 0.0 - 128.0],
  ),
]


@pytest.mark.parametrize('scaling, expected', SCALINGS)
def test_scaling_is_that_of_public_networks(scaling, expected):
  image = jnp.array([[0, 127.5, 255.0]])
  np.testing.assert_allclose(
    augment.scale_image(image, *scaling, 0.0)[0], expected, rtol=1e-6, atol=1e-6
  )


@pytest.mark.parametrize(
  'scaling, message',
  [
    (((0, 1), (0.0,), (1.0,), 'gbr'), "channel_order 'gbr' is unknown"),
    (
      ((0, 1), (0.0, 1.0), (1.0,), 'rgb'),
      'mean has 2 values: give one, or one',
    ),
    (((0, 1), (0.0,), (1.0,) * 4, 'rgb'), 'std has 4 values'),
    (((0, 1), (0.0,), (0.0,), 'rgb'), 'input_scaling.std .*got 0.0'),
    (((1, 1), (0.0,), (1.0,), 'rgb'), r'input_scaling.value_range .*\(1, 1\)'),
  ],
)
def test_invalid_scaling_is_refused(scaling, message):
  with pytest.raises(UserError, match=message):
    augment.scale_image(jnp.zeros((2, 2, 3)), *scaling, 0.0)


def test_binary_images_have_two_values():
  image = jnp.array([[0.0], [127.0], [128.0], [255.0]])
  scaled = augment.scale_image(image, (0.0, 1.0), (0.0,), (1.0,), 'rgb', 128.0)
  np.testing.assert_array_equal(scaled[:, 0], [0, 0, 1, 1])
  with pytest.raises(UserError, match='binary_threshold .*got 256.0'):
    augment.scale_image(image, (0.0, 1.0), (0.0,), (1.0,), 'rgb', 256.0)

"""Input scaling and photometric distortions, on the device.

Distortions follow Howard (2013), cited by GoogLeNet: brightness, contrast and
colour in random order, then AlexNet's lighting noise. `photometric_strength`
scales them all: 1 for the Inception baseline, less for BN-x5 (Section 4.2.1,
change 7, which does not say how much).
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from bn_inception import config_keys
from bn_inception.errors import UserError
from bn_inception.wording import count

Array = jax.Array

# Weights of luma (ITU-R 601), as in PIL, whose factors Howard uses.
LUMA = np.array([0.299, 0.587, 0.114], np.float32)
# AlexNet's principal components of ImageNet's RGB values in [0, 1]: standard
# deviations and directions (from public AlexNet and GoogLeNet code).
LIGHTING_DEVIATIONS = np.array([0.2175, 0.0188, 0.0045], np.float32)
LIGHTING_DIRECTIONS = np.array(
  [
    [-0.5675, 0.7192, 0.4009],
    [-0.5808, -0.0045, -0.8140],
    [-0.5836, -0.6948, 0.4203],
  ],
  np.float32,
)


def scale_image(
  image: Array,
  value_range: tuple[float, float],
  mean: tuple[float, ...],
  std: tuple[float, ...],
  channel_order: str,
  binary_threshold: float,
) -> Array:
  """Scales images for a network: (image in `value_range` - mean) / std.

  Args:
    image: [..., C] with values in 0..255, RGB or greyscale.
    value_range: what 0 and 255 become, before mean and std.
    mean, std: one value, or one for each channel in `channel_order`.
    channel_order: 'rgb', or 'bgr' for networks trained with Caffe.
    binary_threshold: if not 0, values from this one up become 255 and those below
      become 0 (Section 4.1 uses binary images).

  Returns:
    float32 [..., C].

  Raises:
    UserError: for another order, or numbers that do not fit the channels.
  """
  num_channels = image.shape[-1]
  if channel_order not in ('rgb', 'bgr'):
    raise UserError(
      f"input_scaling.channel_order '{channel_order}' is unknown: use rgb or bgr"
    )
  for name, values in (('mean', mean), ('std', std)):
    if len(values) not in (1, num_channels):
      raise UserError(
        f'input_scaling.{name} has {count(len(values), "value")}: give one'
        f'{f", or one for each of {num_channels} channels" if num_channels > 1 else ""}'
      )
  config_keys.check_section(
    'input_scaling',
    {
      'value_range': value_range,
      'mean': mean,
      'std': std,
      'binary_threshold': binary_threshold,
    },
  )
  low, high = value_range
  if binary_threshold:
    image = jnp.where(image >= binary_threshold, 255.0, 0.0)
  if channel_order == 'bgr':
    image = image[..., ::-1]
  # One subtraction and one division: no fusion can round them differently.
  step = 255.0 / (high - low)
  offset = (np.asarray(mean, np.float64) - low) * step
  divisor = np.asarray(std, np.float64) * step
  return (image.astype(jnp.float32) - np.float32(offset)) / np.float32(divisor)


def _luma(image: Array) -> Array:
  if image.shape[-1] == 1:
    return image
  return jnp.sum(image * LUMA, axis=-1, keepdims=True)


def _adjust(image: Array, which: Array, factor: Array) -> Array:
  """Blends with black, the mean grey, or the greyscale image: `which` 0, 1, 2."""
  luma = _luma(image)
  grey = jnp.where(which == 1, jnp.mean(luma), luma)
  reference = jnp.where(which == 0, 0.0, grey)
  return jnp.clip(reference + factor * (image - reference), 0.0, 255.0)


def _distort_one(image: Array, key: Array, strength: float) -> Array:
  order_key, factor_key, light_key = jax.random.split(key, 3)
  order = jax.random.permutation(order_key, 3)
  factors = 1.0 + strength * jax.random.uniform(
    factor_key, (3,), minval=-0.5, maxval=0.5
  )
  for which in range(3):
    image = _adjust(image, order[which], factors[which])
  if image.shape[-1] == 3:
    alpha = 0.1 * strength * jax.random.normal(light_key, (3,))
    light = LIGHTING_DIRECTIONS @ (alpha * LIGHTING_DEVIATIONS)
    image = image + 255.0 * light
  return image


def photometric_distortion(
  image: Array, example_index: Array, key: Array, photometric_strength: float
) -> Array:
  """Distorts brightness, contrast, colour and lighting of each example.

  Factors are uniform in 1 -/+ 0.5 * strength: brightness blends with black,
  contrast with the mean grey, colour with the greyscale image. Lighting noise on
  the principal components is N(0, 0.1 * strength). On greyscale images the last two
  have no effect.

  Args:
    image: [N, H, W, C] with values in 0..255.
    example_index: int [N]; each example's key is fold_in(key, example_index).
    key: the step's key.
    photometric_strength: 0 (unchanged) to 1.

  Returns:
    float32 [N, H, W, C], values about 0..255.
  """
  image = image.astype(jnp.float32)
  if photometric_strength == 0.0:
    return image
  keys = jax.vmap(jax.random.fold_in, (None, 0))(key, example_index)
  distort = partial(_distort_one, strength=photometric_strength)
  return jax.vmap(distort)(image, keys)

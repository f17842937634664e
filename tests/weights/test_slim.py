"""TF-Slim's weights: the same function, and what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from bn_inception.errors import UserError
from bn_inception.inception import Inception
from bn_inception.weights.slim import from_slim
from tests.weights.networks import assert_identical

# fmt: off
SLIM_MODULES = {  # branches as convolutions, and what is pooled
  'Mixed_3b': ([64], [64, 64], [64, 96, 96], 'avg', [32]),
  'Mixed_3c': ([64], [64, 96], [64, 96, 96], 'avg', [64]),
  'Mixed_4a': ([128, 160], [64, 96, 96]),
  'Mixed_4b': ([224], [64, 96], [96, 128, 128], 'avg', [128]),
  'Mixed_4c': ([192], [96, 128], [96, 128, 128], 'avg', [128]),
  'Mixed_4d': ([160], [128, 160], [128, 160, 160], 'avg', [96]),
  'Mixed_4e': ([96], [128, 192], [160, 192, 192], 'avg', [96]),
  'Mixed_5a': ([128, 192], [192, 256, 256]),
  'Mixed_5b': ([352], [192, 320], [160, 224, 224], 'avg', [128]),
  'Mixed_5c': ([352], [192, 320], [192, 224, 224], 'max', [128]),
}
# fmt: on
# Of a branch of so many convolutions in a module without and with a stride.
SLIM_SCOPES = {
  1: ['Conv2d_0a_1x1'],
  2: ['Conv2d_0a_1x1', 'Conv2d_0b_3x3'],
  3: ['Conv2d_0a_1x1', 'Conv2d_0b_3x3', 'Conv2d_0c_3x3'],
}
SLIM_STRIDE_SCOPES = {
  2: ['Conv2d_0a_1x1', 'Conv2d_1a_3x3'],
  3: ['Conv2d_0a_1x1', 'Conv2d_0b_3x3', 'Conv2d_1a_3x3'],
}


class JaxOps:
  """The operations of TF-Slim's network in lax; the stem as a dense kernel."""

  @staticmethod
  def conv(x, kernel, stride=1):
    numbers = ('NHWC', 'HWIO', 'NHWC')
    strides = (stride, stride)
    return lax.conv_general_dilated(
      x, kernel, strides, 'SAME', dimension_numbers=numbers
    )

  @classmethod
  def separable_conv(cls, x, depthwise, pointwise, stride):
    num_inputs, multiplier = depthwise.shape[2:]
    pointwise = pointwise.reshape(num_inputs, multiplier, -1)
    kernel = jnp.einsum('hwcm,cmo->hwco', depthwise, pointwise)
    return cls.conv(x, kernel, stride)

  @staticmethod
  def max_pool(x, stride):
    return lax.reduce_window(
      x, -jnp.inf, lax.max, (1, 3, 3, 1), (1, stride, stride, 1), 'SAME'
    )

  @staticmethod
  def average_pool(x):
    def window_sum(x):
      return lax.reduce_window(x, 0.0, lax.add, (1, 3, 3, 1), (1,) * 4, 'SAME')

    return window_sum(x) / window_sum(jnp.ones_like(x))

  concat = staticmethod(lambda branches: jnp.concatenate(branches, -1))
  relu = staticmethod(jax.nn.relu)
  mean = staticmethod(lambda x: jnp.mean(x, (1, 2)))


def slim_logits(weights, x, ops):
  """TF-Slim's inception_v2 in evaluation mode, by the names of its variables.

  Args:
    weights: by name, without 'InceptionV2/'.
    x: [N, H, W, 3].
    ops: see `JaxOps`.
  """

  def unit(x, scope, stride=1):
    x = ops.conv(x, weights[f'{scope}/weights'], stride)
    return normalized(x, scope)

  def normalized(x, scope):
    norm = f'{scope}/BatchNorm'
    factor = 1 / np.sqrt(weights[f'{norm}/moving_variance'] + 0.001)
    x = (x - weights[f'{norm}/moving_mean']) * factor
    x = x * weights.get(f'{norm}/gamma', 1.0) + weights[f'{norm}/beta']
    return ops.relu(x)

  stem = 'Conv2d_1a_7x7'
  x = ops.separable_conv(
    x, weights[f'{stem}/depthwise_weights'],
    weights[f'{stem}/pointwise_weights'], 2,
  )  # fmt: skip
  if f'{stem}/biases' in weights:
    x = ops.relu(x + weights[f'{stem}/biases'])
  else:
    x = normalized(x, stem)
  x = unit(ops.max_pool(x, 2), 'Conv2d_2b_1x1')
  x = ops.max_pool(unit(x, 'Conv2d_2c_3x3'), 2)
  for module, row in SLIM_MODULES.items():
    stride = 2 if len(row) == 2 else 1
    scopes = SLIM_STRIDE_SCOPES if stride == 2 else SLIM_SCOPES
    branches = []
    for number, widths in enumerate(row[:3]):
      y = x
      for scope in scopes[len(widths)]:
        is_last = scope == scopes[len(widths)][-1]
        scope = f'{module}/Branch_{number}/{scope}'
        y = unit(y, scope, stride if is_last else 1)
      branches.append(y)
    if stride == 2:
      branches.append(ops.max_pool(x, 2))
    else:
      y = ops.average_pool(x) if row[3] == 'avg' else ops.max_pool(x, 1)
      branches.append(unit(y, f'{module}/Branch_3/Conv2d_0b_1x1'))
    x = ops.concat(branches)
  logits = ops.mean(x) @ weights['Logits/Conv2d_1c_1x1/weights'][0, 0]
  return logits + weights['Logits/Conv2d_1c_1x1/biases']


def make_slim_weights(
  num_classes=1001, has_stem_norm=False, has_gamma=False
) -> dict[str, np.ndarray]:
  """Random variables under TF-Slim's names, without 'InceptionV2/'."""
  rng, weights = np.random.default_rng(0), {}

  def normal(*shape, std):
    return np.float32(std * rng.normal(size=shape))

  def add_norm(scope, size):
    norm = f'{scope}/BatchNorm'
    weights[f'{norm}/beta'] = normal(size, std=0.3)
    weights[f'{norm}/moving_mean'] = normal(size, std=0.3)
    variance = np.float32(rng.uniform(0.5, 2.0, size))
    weights[f'{norm}/moving_variance'] = variance
    if has_gamma:
      weights[f'{norm}/gamma'] = np.float32(rng.uniform(0.5, 1.5, size))

  def add(scope, num_inputs, size):
    width = int(scope[-1])
    std = np.sqrt(2 / (width * width * num_inputs))
    weights[f'{scope}/weights'] = normal(
      width, width, num_inputs, size, std=std
    )
    add_norm(scope, size)

  stem = 'Conv2d_1a_7x7'
  weights[f'{stem}/depthwise_weights'] = normal(7, 7, 3, 8, std=0.2)
  weights[f'{stem}/pointwise_weights'] = normal(1, 1, 24, 64, std=0.2)
  if has_stem_norm:
    add_norm(stem, 64)
  else:
    weights[f'{stem}/biases'] = normal(64, std=0.3)
  add('Conv2d_2b_1x1', 64, 64)
  add('Conv2d_2c_3x3', 64, 192)
  num_inputs = 192
  for module, row in SLIM_MODULES.items():
    scopes = SLIM_STRIDE_SCOPES if len(row) == 2 else SLIM_SCOPES
    branches = [widths for widths in row if isinstance(widths, list)]
    num_outputs = num_inputs if len(row) == 2 else 0
    for number, widths in enumerate(branches):
      size = num_inputs
      names = ['Conv2d_0b_1x1'] if number == 3 else scopes[len(widths)]
      for scope, width in zip(names, widths, strict=True):
        add(f'{module}/Branch_{number}/{scope}', size, width)
        size = width
      num_outputs += size
    num_inputs = num_outputs
  scope = 'Logits/Conv2d_1c_1x1'
  weights[f'{scope}/weights'] = normal(1, 1, 1024, num_classes, std=0.1)
  weights[f'{scope}/biases'] = normal(num_classes, std=0.1)
  return weights


def in_scope(weights):
  return {f'InceptionV2/{name}': value for name, value in weights.items()}


@pytest.mark.slow
@pytest.mark.parametrize(
  'options, size',
  [
    ({}, 64),
    ({'num_classes': 5, 'has_stem_norm': True, 'has_gamma': True}, 75),
  ],
  ids=['published', 'all normalised'],
)
def test_slim_network_is_the_same_function(options, size):
  weights = make_slim_weights(**options)
  x = np.random.default_rng(1).uniform(-1, 1, (2, size, size, 3))
  x = x.astype(np.float32)
  expected = jax.jit(lambda x: slim_logits(weights, x, JaxOps))(x)
  imported = from_slim(in_scope(weights), keep_background=True)
  assert imported.num_classes == weights['Logits/Conv2d_1c_1x1/biases'].size
  model = Inception(imported.num_classes, **imported.model)
  logits = jax.jit(model.apply)(imported.variables, x, jnp.arange(2))
  difference = np.abs(logits - expected).max() / expected.std()
  assert difference < 1e-4


def test_slim_background_is_dropped_of_1001_classes_alone():
  weights = in_scope(make_slim_weights())
  kept = from_slim(weights, keep_background=True).variables['params']['logits']
  imported = from_slim(weights)
  assert from_slim(weights, True).num_classes == 1001
  dropped = imported.variables['params']['logits']
  assert imported.num_classes == 1000
  assert imported.input_scaling['value_range'] == (-1.0, 1.0)
  assert imported.eval_crop == 'slim'
  np.testing.assert_array_equal(dropped['kernel'], kept['kernel'][:, 1:])
  np.testing.assert_array_equal(dropped['bias'], kept['bias'][1:])
  assert from_slim(in_scope(make_slim_weights(6))).num_classes == 6


def test_slim_checkpoints_of_training_have_more_variables():
  weights = in_scope(make_slim_weights())
  expected = from_slim(weights).variables
  weights |= {f'{name}/RMSProp_1': value for name, value in weights.items()}
  weights['global_step'] = np.int64(7)
  assert_identical(from_slim(weights).variables, expected)
  weights['InceptionV2/Mixed_6a/weights'] = np.zeros(3)
  del weights['InceptionV2/Conv2d_1a_7x7/depthwise_weights']
  with pytest.raises(UserError) as error:
    from_slim(weights)
  found = str(error.value)
  assert 'missing: InceptionV2/Conv2d_1a_7x7/depthwise_weights' in found
  assert 'unknown: InceptionV2/Mixed_6a/weights' in found


def test_slim_weights_that_are_no_numbers_are_named():
  weights = in_scope(make_slim_weights(6))
  weights['InceptionV2/Conv2d_2c_3x3/BatchNorm/moving_variance'][5] = -0.5
  weights['InceptionV2/Logits/Conv2d_1c_1x1/biases'][1] = np.nan
  with pytest.raises(UserError) as error:
    from_slim(weights)
  message = str(error.value)
  assert 'Conv2d_2c_3x3/BatchNorm/moving_variance[5] is -0.5' in message
  assert 'and 1 more array:' in message

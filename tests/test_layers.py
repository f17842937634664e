"""Building blocks against NumPy."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bn_inception import layers
from bn_inception.batch_norm import BatchNorm
from bn_inception.kernels.convolution import convolve
from bn_inception.kernels.pooling import pool3x3


def test_local_response_normalization_equals_its_formula():
  rng = np.random.default_rng(0)
  x = (10 * rng.normal(size=(2, 3, 3, 7))).astype(np.float32)
  y = layers.local_response_normalization(x, alpha=0.5, k=2.0)
  for c in range(7):
    near = np.float64(x)[..., max(0, c - 2) : c + 3]
    expected = x[..., c] / (2 + 0.5 / 5 * np.square(near).sum(-1)) ** 0.75
    np.testing.assert_allclose(y[..., c], expected, rtol=1e-5)


@pytest.mark.parametrize('stride_padding', ['same', 'caffe'])
@pytest.mark.parametrize('kernel_size, size', [(3, 6), (3, 7), (7, 8), (1, 6)])
def test_padding_of_strides(stride_padding, kernel_size, size):
  rng = np.random.default_rng(0)
  x = rng.normal(size=(1, 1, size, 1)).astype(np.float32)
  kernel = rng.normal(size=(kernel_size, kernel_size, 1, 1))
  unit = layers.ConvUnit(
    1, kernel_size, lambda x: x, None, 2, stride_padding=stride_padding
  )
  params = {'kernel': kernel.astype(np.float32), 'bias': np.zeros(1)}
  y = unit.apply({'params': {'conv': params}}, x)[0, 0, :, 0]
  row = kernel[kernel_size // 2, :, 0, 0]  # the only one that meets the image
  num_outputs = -(-size // 2)
  before = kernel_size // 2
  if stride_padding == 'same':
    before = max(0, 2 * (num_outputs - 1) + kernel_size - size) // 2
  padded = np.pad(x[0, 0, :, 0], (before, kernel_size))
  expected = [
    padded[2 * i : 2 * i + kernel_size] @ row for i in range(num_outputs)
  ]
  np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-5)


def test_dropout_masks_follow_the_example():
  x = jnp.ones((64, 100))
  layer = layers.Dropout(0.4, train=True)
  rngs = {'dropout': jax.random.key(0)}
  index = jnp.arange(64)
  y = layer.apply({}, x, index, rngs=rngs)
  # The same examples, in another order and number, get the same masks.
  some = jnp.array([40, 3, 17])
  np.testing.assert_array_equal(
    layer.apply({}, x[some], some, rngs=rngs), y[some]
  )
  np.testing.assert_allclose(np.unique(y), [0, 1 / 0.6], rtol=1e-6)
  assert abs(np.mean(y == 0) - 0.4) < 0.02  # 3 std of 6,400 draws
  assert len(np.unique(np.asarray(y), axis=0)) == 64
  other = layer.apply({}, x, index, rngs={'dropout': jax.random.key(1)})
  assert np.mean((other == 0) == (y == 0)) < 0.6


def test_dropout_does_nothing_in_evaluation_or_at_rate_zero():
  x, index = jnp.ones((2, 3)), jnp.arange(2)
  for layer in (
    layers.Dropout(0.4, train=False),
    layers.Dropout(0.0, train=True),
  ):
    np.testing.assert_array_equal(layer.apply({}, x, index), x)


def test_dropout_needs_the_examples_only_where_it_drops():
  x = jnp.ones((2, 3))
  layer = layers.Dropout(0.4, train=True)
  y, _ = layer.init_with_output(jax.random.key(0), x)
  np.testing.assert_array_equal(y, x)
  with pytest.raises(ValueError, match='example_index'):
    layer.apply({}, x, rngs={'dropout': jax.random.key(0)})


def test_truncated_normal_is_linens_distribution():
  shape = (3, 3, 64, 96)
  ours = layers.truncated_normal(layers.HE_GAIN)(jax.random.key(0), shape)
  linen = nn.initializers.variance_scaling(2.0, 'fan_in', 'truncated_normal')
  theirs = linen(jax.random.key(0), shape)
  np.testing.assert_allclose(np.std(ours), np.sqrt(2 / (9 * 64)), rtol=0.01)
  np.testing.assert_allclose(
    np.abs(ours).max(), np.abs(theirs).max(), rtol=1e-3
  )
  quantiles = np.linspace(0.05, 0.95, 10)
  np.testing.assert_allclose(
    np.quantile(ours, quantiles), np.quantile(theirs, quantiles), atol=1e-3
  )


def test_conv_unit_has_a_bias_only_without_normalisation():
  x = np.random.default_rng(0).normal(size=(4, 6, 6, 3)).astype(np.float32)
  unit = partial(layers.ConvUnit, 8, 3, nn.relu)
  normalised = unit(make_norm=partial(BatchNorm, train=True))
  params = normalised.init(jax.random.key(0), x)['params']
  assert set(params['conv']) == {'kernel'}
  assert set(params['norm']) == {'scale', 'bias'}
  params = unit(make_norm=None).init(jax.random.key(0), x)['params']
  assert set(params) == {'conv'} and set(params['conv']) == {'kernel', 'bias'}


def test_conv_unit_normalises_before_the_nonlinearity():
  x = np.random.default_rng(0).normal(size=(4, 6, 6, 3)).astype(np.float32)
  norm = partial(BatchNorm, train=True, epsilon=0.0)
  unit = layers.ConvUnit(8, 3, lambda z: z, norm)
  variables = unit.init(jax.random.key(0), x)
  z, _ = unit.apply(variables, x, mutable=['batch_stats'])
  np.testing.assert_allclose(np.mean(z, (0, 1, 2)), 0, atol=1e-6)
  np.testing.assert_allclose(np.var(z, (0, 1, 2)), 1, rtol=1e-5)
  y, _ = unit.clone(nonlinearity=nn.sigmoid).apply(
    variables, x, mutable=['batch_stats']
  )
  np.testing.assert_allclose(y, 1 / (1 + np.exp(-z)), rtol=1e-5)


@pytest.mark.parametrize(
  'nonlinearity', [nn.relu, nn.sigmoid, nn.gelu, nn.silu, jnp.negative]
)
@pytest.mark.parametrize('is_normalised', [False, True])
def test_conv_unit_pools_what_it_returns(nonlinearity, is_normalised):
  x = np.random.default_rng(0).normal(size=(4, 6, 6, 3)).astype(np.float32)
  norm = partial(BatchNorm, train=True) if is_normalised else None
  unit = layers.ConvUnit(8, 3, nonlinearity, norm)
  variables = unit.init(jax.random.key(0), x)
  layer = variables['params']['norm' if is_normalised else 'conv']
  layer['bias'] = jnp.linspace(-1, 1, 8)
  pool = partial(pool3x3, kind='max', stride=2)
  (y, _), (z, _) = (
    unit.clone(pool=p).apply(variables, x, mutable=['batch_stats'])
    for p in (pool, None)
  )
  np.testing.assert_array_equal(y, pool(z))


@pytest.mark.parametrize(
  'make_norm, names',
  [
    (lambda: lambda z: z - jnp.mean(z, -1, keepdims=True), set()),
    (lambda: nn.GroupNorm(2), {'scale', 'bias'}),
    (partial(nn.LayerNorm, use_bias=False), {'scale'}),
  ],
  ids=['function', 'GroupNorm', 'LayerNorm'],
)
def test_conv_unit_takes_any_norm(make_norm, names):
  x = np.random.default_rng(0).normal(size=(4, 6, 6, 3)).astype(np.float32)
  pool = partial(pool3x3, kind='max', stride=2)
  unit = layers.ConvUnit(8, 3, nn.relu, make_norm, pool=pool)
  variables = unit.init(jax.random.key(0), x)
  params = variables['params']
  assert set(params['conv']) == {'kernel'}
  assert set(params.get('norm', {})) == names
  z = convolve(x, params['conv']['kernel'], 1, ((1, 1), (1, 1)))
  norm = make_norm()
  if names:
    z = norm.apply({'params': params['norm']}, z)
  else:
    z = norm(z)
  expected = pool(nn.relu(z))
  np.testing.assert_allclose(unit.apply(variables, x), expected, rtol=1e-5)


def test_conv_unit_of_a_convolution_that_is_given():
  x = np.random.default_rng(0).normal(size=(2, 4, 4, 3)).astype(np.float32)
  unit = layers.ConvUnit(8, 1, nn.relu, None)
  variables = unit.init(jax.random.key(0), x)
  wu = jnp.linspace(-1, 1, 2 * 4 * 4 * 8).reshape(2, 4, 4, 8)
  np.testing.assert_array_equal(unit.apply(variables, x, wu), nn.relu(wu))


@pytest.mark.parametrize('name', layers.NONLINEARITIES)
def test_pooling_comes_first_where_nothing_decreases(name):
  nonlinearity = layers.NONLINEARITIES[name]
  assert nonlinearity in layers.NON_DECREASING  # or it is pooled after: slower
  y = nonlinearity(jnp.linspace(-20, 20, 10_000))
  assert (jnp.diff(y) >= 0).all()


def test_integers_are_real_numbers_and_complex_ones_refused():
  image = np.random.default_rng(0).integers(0, 256, (2, 4, 4, 6), np.uint8)
  index = jnp.arange(2)
  unit = layers.ConvUnit(8, 3, nn.relu, partial(BatchNorm, train=False))
  variables = unit.init(jax.random.key(0), image)
  dropout = layers.Dropout(0.5, train=True)
  for call in (
    layers.local_response_normalization,
    partial(unit.apply, variables),
    lambda x: dropout.apply({}, x, index, rngs={'dropout': jax.random.key(0)}),
    lambda x: dropout.clone(train=False).apply({}, x, index),
  ):
    y = call(image)
    assert y.dtype == jnp.float32
    np.testing.assert_array_equal(y, call(image.astype(np.float32)))
    with pytest.raises(TypeError, match='complex64'):
      call(image.astype(np.complex64))


def test_separable_convolution_is_depthwise_then_1x1():
  x = np.random.default_rng(0).normal(size=(1, 4, 4, 3)).astype(np.float32)
  unit = layers.ConvUnit(5, 1, lambda z: z, None, depth_multiplier=8)
  params = unit.init(jax.random.key(0), x)['params']
  depthwise, pointwise = params['depthwise']['kernel'], params['conv']['kernel']
  assert depthwise.shape == (1, 1, 1, 24) and pointwise.shape == (1, 1, 24, 5)
  maps = np.repeat(x, 8, axis=-1) * depthwise[0, 0, 0]
  np.testing.assert_allclose(
    unit.apply({'params': params}, x),
    maps @ pointwise[0, 0],
    rtol=1e-4,
    atol=1e-5,
  )

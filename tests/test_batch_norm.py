"""Batch normalization against float64 NumPy and the paper's equations."""

import pathlib
import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from bn_inception import batch_norm, mesh
from bn_inception.batch_norm import BatchNorm, BatchStats
from bn_inception.kernels.pooled_batch_norm import pool_first
from bn_inception.kernels.pooling import pool3x3

EPSILON = 1e-3
AXES = (0, 1, 2)


@pytest.fixture
def x():
  rng = np.random.default_rng(0)
  return (3.0 + 2.0 * rng.normal(size=(16, 3, 4, 5))).astype(np.float32)


@pytest.fixture
def scale_bias():
  rng = np.random.default_rng(1)
  return rng.normal(size=5).astype(np.float32), rng.normal(size=5)


def reference_forward(x, scale, bias, epsilon=EPSILON):
  """Algorithm 1 in float64."""
  x = np.float64(x)
  mean, var = x.mean(AXES), x.var(AXES)
  normalised = (x - mean) / np.sqrt(var + epsilon)
  return scale * normalised + bias, mean, var


def reference_backward(x, scale, dy, epsilon=EPSILON):
  """The gradients as Section 3 prints them, before simplification."""
  x = np.float64(x)
  m = x.size // x.shape[-1]
  mean, var = x.mean(AXES), x.var(AXES)
  d_normalised = dy * scale
  d_var = (d_normalised * (x - mean) * -0.5 * (var + epsilon) ** -1.5).sum(AXES)
  d_mean = (d_normalised * -1 / np.sqrt(var + epsilon)).sum(AXES)
  d_mean += d_var * (-2 * (x - mean)).sum(AXES) / m
  dx = d_normalised / np.sqrt(var + epsilon)
  dx += d_var * 2 * (x - mean) / m + d_mean / m
  normalised = (x - mean) / np.sqrt(var + epsilon)
  return dx, (dy * normalised).sum(AXES), dy.sum(AXES)


def apply_layer(x, scale, bias, pool=None, **fields):
  """y and the updated batch_stats of a layer with fresh statistics."""
  layer = BatchNorm(train=True, epsilon=EPSILON, **fields)
  layer = layer if pool is None else pool_first(layer, pool)
  variables = {
    'params': {'scale': jnp.float32(scale), 'bias': jnp.float32(bias)},
    'batch_stats': {
      'mean': jnp.zeros(x.shape[-1]),
      'var': jnp.ones(x.shape[-1]),
      'num_updates': jnp.int32(0),
    },
  }
  return layer.apply(variables, x, mutable=['batch_stats'])


def test_forward_equals_algorithm_1(x, scale_bias):
  y, _ = apply_layer(x, *scale_bias)
  expected, _, _ = reference_forward(x, *scale_bias)
  np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)


def test_gradient_equals_printed_equations_and_finite_differences(
  x, scale_bias
):
  scale, bias = scale_bias
  dy = np.random.default_rng(2).normal(size=x.shape)

  def loss(x, scale, bias):
    return jnp.sum(apply_layer(x, scale, bias)[0] * dy)

  gradients = jax.grad(loss, (0, 1, 2))(
    x, jnp.float32(scale), jnp.float32(bias)
  )
  printed = reference_backward(x, scale, dy)
  for ours, paper in zip(gradients, printed, strict=True):
    np.testing.assert_allclose(ours, paper, rtol=1e-5, atol=2e-5)

  def reference_loss(x):
    return np.sum(reference_forward(x, scale, bias)[0] * dy)

  step = 1e-5
  for position in [(0, 0, 0, 0), (7, 2, 3, 4), (15, 1, 1, 2)]:
    delta = np.zeros(x.shape)
    delta[position] = step
    slope = reference_loss(x + delta) - reference_loss(x - delta)
    np.testing.assert_allclose(
      gradients[0][position], slope / (2 * step), rtol=1e-4, atol=1e-5
    )


def test_moving_averages_hold_unbiased_variance_with_warm_up(x, scale_bias):
  layer = BatchNorm(train=True, statistics_decay=0.2)
  variables = layer.init(jax.random.key(0), x)
  np.testing.assert_array_equal(variables['batch_stats']['mean'], np.zeros(5))
  mean, var = np.zeros(5), np.ones(5)
  m = 16 * 3 * 4
  for t in range(4):
    _, updates = layer.apply(variables, x + t, mutable=['batch_stats'])
    variables = {**variables, **updates}
    decay = min(0.2, (1 + t) / (10 + t))
    batch = np.float64(x + t)
    mean = decay * mean + (1 - decay) * batch.mean(AXES)
    var = decay * var + (1 - decay) * batch.var(AXES) * m / (m - 1)
  stats = variables['batch_stats']
  np.testing.assert_allclose(stats['mean'], mean, rtol=1e-5)
  np.testing.assert_allclose(stats['var'], var, rtol=1e-5)
  assert stats['num_updates'] == 4


def test_evaluation_uses_and_keeps_the_moving_averages(x, scale_bias):
  stats = {
    'mean': jnp.full(5, 2.0),
    'var': jnp.full(5, 3.0),
    'num_updates': jnp.int32(9),
  }
  scale, bias = (jnp.float32(v) for v in scale_bias)
  variables = {'params': {'scale': scale, 'bias': bias}, 'batch_stats': stats}
  layer = BatchNorm(train=False, epsilon=EPSILON)
  y, updates = layer.apply(variables, x, mutable=['batch_stats'])
  expected = (np.float64(x) - 2) / np.sqrt(3 + EPSILON) * scale + bias
  np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)
  jax.tree.map(np.testing.assert_array_equal, updates['batch_stats'], stats)
  # An example's output does not depend on its batch mates.
  np.testing.assert_array_equal(layer.apply(variables, x[3:5]), y[3:5])


def test_unbiased_variance_of_four_numbers():
  stats = batch_norm.batch_statistics(
    jnp.array([[1.0], [2.0], [3.0], [4.0]]), (0,)
  )
  assert stats.var[0] == 1.25
  np.testing.assert_allclose(
    batch_norm.unbiased(stats, 4).var, 5 / 3, rtol=1e-6
  )
  with pytest.raises(ValueError, match='at least 2 values'):
    batch_norm.unbiased(stats, 1)


@pytest.mark.parametrize('ratio', [10, 1000])
def test_variance_keeps_its_digits_far_from_zero(ratio):
  rng = np.random.default_rng(3)
  x = (ratio + rng.normal(size=(64, 8, 8, 4))).astype(np.float32)
  stats = batch_norm.batch_statistics(x, AXES)
  np.testing.assert_allclose(stats.var, np.float64(x).var(AXES), rtol=1e-5)
  np.testing.assert_allclose(stats.mean, np.float64(x).mean(AXES), rtol=1e-6)


def test_bfloat16_input_has_float32_statistics(x, scale_bias):
  rounded = jnp.asarray(x, jnp.bfloat16)
  y, updates = apply_layer(rounded, *scale_bias)
  exact, exact_updates = apply_layer(rounded.astype(jnp.float32), *scale_bias)
  assert y.dtype == jnp.bfloat16
  np.testing.assert_array_equal(y, exact.astype(jnp.bfloat16))
  stats, exact_stats = updates['batch_stats'], exact_updates['batch_stats']
  assert stats['mean'].dtype == stats['var'].dtype == jnp.float32
  jax.tree.map(np.testing.assert_array_equal, stats, exact_stats)


@pytest.mark.parametrize('dtype', [np.uint8, np.int32, np.bool_])
@pytest.mark.parametrize('train', [True, False])
def test_integers_are_normalised_as_real_numbers(dtype, train):
  image = np.random.default_rng(0).integers(0, 256, (8, 5, 5, 3)) // 2
  image = image.astype(dtype)
  layer = BatchNorm(train=train)
  variables = layer.init(jax.random.key(0), image)
  found, expected = (
    layer.apply(variables, x, mutable=['batch_stats'])
    for x in (image, image.astype(np.float32))
  )
  assert found[0].dtype == jnp.float32
  jax.tree.map(np.testing.assert_array_equal, found, expected)
  stats = batch_norm.batch_statistics(image, AXES)
  np.testing.assert_allclose(stats.mean, image.mean(AXES), rtol=1e-6)
  y = batch_norm.normalize(image, stats, None, None, EPSILON)
  assert y.dtype == jnp.float32 and np.abs(y).max() < 20
  y_too, _ = batch_norm.batch_normalize(image, None, None, EPSILON, AXES)
  np.testing.assert_array_equal(y_too, y)


def test_complex_numbers_are_refused():
  x = jnp.ones((4, 2), jnp.complex64)
  stats = BatchStats(jnp.zeros(2), jnp.ones(2))
  for call in (
    lambda: BatchNorm(train=True).init(jax.random.key(0), x),
    lambda: BatchNorm(train=False).init(jax.random.key(0), x),
    lambda: batch_norm.batch_statistics(x, (0,)),
    lambda: batch_norm.normalize(x, stats, None, None, EPSILON),
    lambda: batch_norm.batch_normalize(x, None, None, EPSILON, (0,)),
  ):
    with pytest.raises(TypeError, match='complex64'):
      call()


def test_float64_stays_float64():
  with jax.enable_x64(True):
    rng = np.random.default_rng(0)
    x, dy = 1e3 + rng.normal(size=(2, 16, 3, 4, 5))
    scale, bias = rng.normal(size=(2, 5))

    def loss(x):
      y, stats = batch_norm.batch_normalize(x, scale, bias, EPSILON, AXES)
      return jnp.sum(y * dy), (y, stats)

    dx, (y, stats) = jax.grad(loss, has_aux=True)(jnp.asarray(x))
    assert {a.dtype for a in (dx, y, *stats)} == {jnp.dtype('float64')}
    expected, mean, var = reference_forward(x, scale, bias)
    np.testing.assert_allclose(y, expected, rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(stats.var, var, rtol=1e-10)
    np.testing.assert_allclose(
      dx, reference_backward(x, scale, dy)[0], rtol=1e-8, atol=1e-8
    )
    # Moving averages keep the type that they have.
    _, updates = apply_layer(x, scale, bias)
    layer = updates['batch_stats']
    assert layer['mean'].dtype == layer['var'].dtype == jnp.float64
    moving = BatchStats(jnp.zeros(5, 'float32'), jnp.ones(5, 'float32'))
    new = batch_norm.update_moving_average(moving, stats, 0.9)
    assert new.mean.dtype == new.var.dtype == jnp.float32


@pytest.mark.parametrize('group_size', [2, 4, 16])
def test_groups_are_normalised_by_themselves(x, scale_bias, group_size):
  y, updates = apply_layer(x, *scale_bias, norm_batch_size=group_size)
  groups = np.split(x, 16 // group_size)
  expected = [reference_forward(group, *scale_bias) for group in groups]
  np.testing.assert_allclose(
    y, np.concatenate([e[0] for e in expected]), rtol=1e-5, atol=1e-5
  )
  m = group_size * 3 * 4
  var = np.mean([e[2] for e in expected], 0) * m / (m - 1)
  np.testing.assert_allclose(
    updates['batch_stats']['var'], 0.1 * 1.0 + 0.9 * var, rtol=1e-5
  )


@pytest.mark.parametrize('group_size', [3, 32])
def test_group_size_that_does_not_fit_is_refused(x, scale_bias, group_size):
  with pytest.raises(
    ValueError, match=f'norm_batch_size {group_size} does not'
  ):
    apply_layer(x, *scale_bias, norm_batch_size=group_size)


@pytest.mark.parametrize('size', [-4, 2.0])
def test_group_size_that_is_no_size_is_refused(x, size):
  with pytest.raises(ValueError, match=f'norm_batch_size .*{size}'):
    BatchNorm(train=True, norm_batch_size=size).init(jax.random.key(0), x)


@pytest.mark.parametrize(
  'shape, message',
  [
    ((0, 4, 4, 3), 'at least 2 values .* got 0'),
    ((4, 0, 4, 3), 'at least 2 values .* got 0'),
    ((1, 3), 'at least 2 values .* got 1'),
    ((3,), r'got shape \(3,\)'),
  ],
)
def test_too_few_values_to_train_on_are_refused(shape, message):
  layer = BatchNorm(train=True)
  variables = layer.init(jax.random.key(0), jnp.zeros((2, 3)))
  with pytest.raises(ValueError, match=message):
    layer.apply(variables, jnp.zeros(shape), mutable=['batch_stats'])


def test_axes_may_be_counted_from_the_end():
  x = jnp.array([[1.0, 2, 5], [4, 0, 1], [3, 3, 7]])
  w = jnp.sin(jnp.arange(9.0)).reshape(3, 3)

  def gradient(axis):
    return jax.grad(
      lambda x: jnp.sum(
        w * batch_norm.batch_normalize(x, None, None, 1e-3, (axis,))[0]
      )
    )(x)

  np.testing.assert_array_equal(gradient(-2), gradient(0))


@pytest.fixture(scope='module')
def batch_of_32():
  """x and the cotangent of y: [32, 2, 3, 5]."""
  rng = np.random.default_rng(4)
  shape = (32, 2, 3, 5)
  return np.float32(3 + 2 * rng.normal(size=shape)), rng.normal(size=shape)


def numpy_groups(x, dy, scale, bias, group_size):
  """y, gradients and the first moving averages, group by group in float64."""
  groups = np.split(x, len(x) // group_size)
  cotangents = np.split(dy, len(x) // group_size)
  forward = [reference_forward(group, scale, bias) for group in groups]
  backward = [
    reference_backward(group, scale, cotangent)
    for group, cotangent in zip(groups, cotangents, strict=True)
  ]
  m = group_size * x[0, ..., 0].size
  return {
    'y': np.concatenate([f[0] for f in forward]),
    'dx': np.concatenate([b[0] for b in backward]),
    'dscale': sum(b[1] for b in backward),
    'dbias': sum(b[2] for b in backward),
    'mean': 0.9 * np.mean([f[1] for f in forward], 0),
    'var': 0.1 + 0.9 * np.mean([f[2] for f in forward], 0) * m / (m - 1),
  }


def compute_on_devices(
  x, dy, scale_bias, num_devices, norm_batch_size, pool=None, check_vma=False
):
  """What `numpy_groups` returns, of the layer on so many devices."""
  devices = mesh.make_training_mesh(
    jax.devices()[:num_devices], 32, norm_batch_size
  )

  def mean(value):
    for axis in mesh.AXES:
      value = jax.lax.pmean(value, axis)
    return value

  def per_device(x, dy, scale, bias):
    def own_loss(x, scale, bias):
      y, updates = apply_layer(
        x,
        scale,
        bias,
        pool,
        norm_batch_size=norm_batch_size,
        axis_name=mesh.MEMBER,
      )
      loss = jnp.sum(y * dy)
      loss = jax.lax.psum(loss, mesh.AXES) if check_vma else loss
      return loss, (y, updates['batch_stats'])

    (dx, dscale, dbias), (y, stats) = jax.grad(
      own_loss, (0, 1, 2), has_aux=True
    )(x, scale, bias)
    sums = {'dscale': dscale, 'dbias': dbias}
    if not check_vma:
      sums = jax.lax.psum(sums, mesh.AXES)
    means = {name: mean(stats[name]) for name in ('mean', 'var')}
    return {'y': y, 'dx': dx}, sums | means

  split = P(mesh.AXES)
  mapped = jax.shard_map(
    per_device,
    mesh=devices,
    in_specs=(split, split, P(), P()),
    out_specs=(split, P()),
    check_vma=check_vma,
  )
  scale, bias = (jnp.float32(value) for value in scale_bias)
  per_example, shared = jax.jit(mapped)(x, dy, scale, bias)
  return per_example | shared


def assert_close(results, expected):
  for name, value in results.items():
    size = np.abs(expected[name]).max()
    np.testing.assert_allclose(
      value, expected[name], rtol=0, atol=1e-5 * size, err_msg=name
    )


@pytest.mark.parametrize('norm_batch_size', [4, 8, 16, 32, 0])
@pytest.mark.parametrize('num_devices', [1, 2, 4, 8])
def test_result_does_not_depend_on_the_number_of_devices(
  batch_of_32, scale_bias, num_devices, norm_batch_size
):
  assert_close(
    compute_on_devices(*batch_of_32, scale_bias, num_devices, norm_batch_size),
    numpy_groups(*batch_of_32, *scale_bias, norm_batch_size or 32),
  )


@pytest.mark.parametrize('norm_batch_size', [2, 16, 0])
@pytest.mark.parametrize('num_devices', [1, 8])
def test_map_that_checks_types(
  batch_of_32, scale_bias, num_devices, norm_batch_size
):
  assert_close(
    compute_on_devices(
      *batch_of_32, scale_bias, num_devices, norm_batch_size, check_vma=True
    ),
    numpy_groups(*batch_of_32, *scale_bias, norm_batch_size or 32),
  )


@pytest.mark.parametrize('num_devices', [1, 8])
def test_map_that_checks_types_knows_shared_statistics(
  batch_of_32, scale_bias, num_devices
):
  x, _ = batch_of_32
  devices = jax.make_mesh(
    (num_devices,), ('data',), devices=jax.devices()[:num_devices]
  )

  def batch_stats(x):
    return apply_layer(x, *scale_bias, axis_name='data')[1]['batch_stats']

  found = jax.shard_map(
    batch_stats,
    mesh=devices,
    in_specs=P('data'),
    out_specs=P(),  # refused for what may differ between devices
  )(jax.device_put(x, NamedSharding(devices, P('data'))))
  expected = apply_layer(x, *scale_bias)[1]['batch_stats']
  jax.tree.map(
    partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), found, expected
  )


@pytest.mark.parametrize(
  'check_vma', [pytest.param(False, marks=pytest.mark.slow), True]
)
def test_input_that_is_the_same_on_all_devices(scale_bias, check_vma):
  """Gradients are those of one device, in total."""
  x = np.float32(np.random.default_rng(0).normal(size=(4, 5)))
  scale, bias = map(jnp.float32, scale_bias)

  def loss(x, scale, axis_name=None):
    y, stats = batch_norm.batch_normalize(
      x, scale, bias, EPSILON, (0,), axis_name
    )
    return jnp.sum(y**3) + jnp.sum(stats.var + stats.mean**2)

  def gradient(x, scale):
    gradients = jax.grad(partial(loss, axis_name='data'), (0, 1))(x, scale)
    return gradients if check_vma else jax.lax.pmean(gradients, 'data')

  found = jax.shard_map(
    gradient,
    mesh=jax.make_mesh((8,), ('data',)),
    in_specs=P(),
    out_specs=P(),
    check_vma=check_vma,
  )(x, scale)
  for a, b in zip(found, jax.grad(loss, (0, 1))(x, scale), strict=True):
    np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * np.abs(b).max())


def test_map_over_some_axes_of_an_explicit_mesh(x):
  mesh = jax.make_mesh((2, 4), ('others', 'data'))
  layer = BatchNorm(train=True, axis_name='data')
  variables = layer.init(jax.random.key(0), x)

  def loss(x):
    y, _ = layer.apply(variables, x, mutable=['batch_stats'])
    return jax.lax.pmean(jnp.mean(y**3 + jnp.sin(y)), 'data')

  mapped = jax.shard_map(
    loss, mesh=mesh, in_specs=P('data'), out_specs=P(), axis_names={'data'}
  )
  with jax.set_mesh(mesh):
    divided = jax.device_put(x, NamedSharding(mesh, P('data')))
    found = jax.jit(jax.grad(mapped))(divided)

  def plain_loss(x):
    y, _ = BatchNorm(train=True).apply(variables, x, mutable=['batch_stats'])
    return jnp.mean(y**3 + jnp.sin(y))

  expected = jax.grad(plain_loss)(x)
  np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-7)


def test_init_needs_no_map(x):
  layer = BatchNorm(train=True, axis_name='data', norm_batch_size=64)
  variables = layer.init(jax.random.key(0), x)
  expected = BatchNorm(train=True).init(jax.random.key(0), x)
  jax.tree.map(np.testing.assert_array_equal, variables, expected)


@pytest.mark.parametrize('axis_type', [AxisType.Auto, AxisType.Explicit])
@pytest.mark.parametrize('norm_batch_size', [0, 2, 16])
@pytest.mark.parametrize('is_pooled', [False, True])
def test_divided_arrays_under_plain_jit(
  batch_of_32, scale_bias, is_pooled, norm_batch_size, axis_type
):
  x, dy = batch_of_32
  pool = partial(pool3x3, kind='max', stride=2) if is_pooled else None

  @jax.jit
  def compute(x, dy, scale, bias):
    def loss(x, scale, bias):
      y, updates = apply_layer(
        x, scale, bias, pool, norm_batch_size=norm_batch_size
      )
      return jnp.sum(y * dy[:, : y.shape[1], : y.shape[2]]), (y, updates)

    return jax.grad(loss, (0, 1, 2), has_aux=True)(x, scale, bias)

  scale, bias = map(jnp.float32, scale_bias)
  expected = compute(x, dy, scale, bias)
  devices = jax.make_mesh((8,), ('data',), (axis_type,))
  with jax.set_mesh(devices):
    split = NamedSharding(devices, P('data'))
    found = compute(*jax.device_put((x, np.float32(dy)), split), scale, bias)
  (dx, *_), (y, _) = found
  assert dx.sharding.is_equivalent_to(split, dx.ndim)
  assert y.sharding.is_equivalent_to(split, y.ndim)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(
      a, b, rtol=0, atol=1e-5 * np.abs(b).max()
    ),
    found,
    expected,
  )


@pytest.mark.parametrize('norm_batch_size', [4, 16, 0])
@pytest.mark.parametrize('num_devices', [1, 8])
def test_neither_does_the_pooled_one(
  batch_of_32, scale_bias, num_devices, norm_batch_size
):
  x, _ = batch_of_32  # 2 x 3, pooled to 1 x 2: columns 0 and 1, 1 and 2
  assert (scale_bias[0] < 0).any()
  dy = np.random.default_rng(5).normal(size=(32, 1, 2, 5))
  group_size = norm_batch_size or 32
  y = numpy_groups(x, np.zeros(x.shape), *scale_bias, group_size)['y']
  pooled, scattered = np.zeros(dy.shape), np.zeros(x.shape)
  for n, c in np.ndindex(32, 5):
    for i in range(2):
      row, column = np.unravel_index(np.argmax(y[n, :, i : i + 2, c]), (2, 2))
      pooled[n, 0, i, c] = y[n, row, i + column, c]
      scattered[n, row, i + column, c] += dy[n, 0, i, c]
  expected = numpy_groups(x, scattered, *scale_bias, group_size)
  pool = partial(pool3x3, kind='max', stride=2)
  assert_close(
    compute_on_devices(x, dy, scale_bias, num_devices, norm_batch_size, pool),
    expected | {'y': pooled},
  )


def test_variance_across_devices_keeps_its_digits_far_from_zero():
  rng = np.random.default_rng(5)
  x = np.float32(1000 + rng.normal(size=(32, 4, 4, 3)))
  stats = jax.jit(
    jax.shard_map(
      lambda x: batch_norm.batch_statistics(x, AXES, mesh.MEMBER),
      mesh=mesh.make_evaluation_mesh(jax.devices()),
      in_specs=P(mesh.AXES),
      out_specs=P(),
      check_vma=False,
    )
  )(x)
  np.testing.assert_allclose(stats.var, np.float64(x).var(AXES), rtol=1e-5)
  np.testing.assert_allclose(stats.mean, np.float64(x).mean(AXES), rtol=1e-6)


def test_constant_input_has_no_variance_and_a_finite_gradient():
  x = jnp.full((8, 2, 2, 5), 1234.567)
  y, _ = apply_layer(x, np.ones(5), np.zeros(5))
  # A rounding error of the mean, 3e-7 of it, is divided by sqrt(epsilon).
  assert np.abs(y).max() < 3e-7 * 1234.567 / np.sqrt(EPSILON)
  gradient = jax.grad(
    lambda x: jnp.sum(jnp.square(apply_layer(x, np.ones(5), np.ones(5))[0]))
  )(x)
  assert np.isfinite(gradient).all()


def test_one_collective_forward_and_one_backward():
  def per_device(x):
    def loss(x):
      return jnp.sum(jnp.square(apply_layer(
        x, np.ones(5), np.zeros(5), axis_name=mesh.MEMBER
      )[0]))  # fmt: skip

    return jax.grad(loss)(x)

  mapped = jax.shard_map(
    per_device,
    mesh=mesh.make_evaluation_mesh(jax.devices()),
    in_specs=P(mesh.AXES),
    out_specs=P(mesh.AXES),
    check_vma=False,
  )
  program = jax.jit(mapped).lower(jnp.ones((32, 2, 3, 5))).compile().as_text()
  counts = {
    name: len(re.findall(rf' {name}(?:-start)?\(', program))
    for name in ('all-gather', 'all-reduce', 'reduce-scatter', 'all-to-all')
  }
  assert counts == {
    'all-gather': 1, 'all-reduce': 1, 'reduce-scatter': 0, 'all-to-all': 0,
  }  # fmt: skip


def test_per_activation_statistics_are_those_of_a_fully_connected_layer(x):
  layer = BatchNorm(train=True, per_activation=True, epsilon=EPSILON)
  variables = layer.init(jax.random.key(0), x)
  assert variables['params']['scale'].shape == x.shape[1:]
  dy = np.random.default_rng(6).normal(size=x.shape)

  def loss(variables, x):
    y, updates = layer.apply(variables, x, mutable=['batch_stats'])
    return jnp.sum(y * dy), (y, updates['batch_stats'])

  (gradient, dx), (y, stats) = jax.grad(
    loss, (0, 1), has_aux=True, allow_int=True
  )(variables, x)
  # [16, 3 * 4 * 5]: every activation is a feature.
  flat, flat_dy = (a.reshape(16, 1, 1, -1) for a in (x, dy))
  expected, _, var = reference_forward(flat, 1.0, 0.0)
  printed = reference_backward(flat, np.ones(60), flat_dy)
  np.testing.assert_allclose(y, expected.reshape(x.shape), rtol=1e-5, atol=1e-5)
  np.testing.assert_allclose(
    dx, printed[0].reshape(x.shape), rtol=1e-4, atol=5e-5
  )
  np.testing.assert_allclose(
    gradient['params']['scale'].ravel(), printed[1], rtol=1e-4, atol=5e-5
  )
  np.testing.assert_allclose(
    stats['var'].ravel(), 0.1 + 0.9 * var * 16 / 15, rtol=1e-5
  )
  variables = {**variables, 'batch_stats': stats}
  evaluated = layer.clone(train=False).apply(variables, x[:3])
  np.testing.assert_allclose(
    evaluated,
    (x[:3] - stats['mean']) / np.sqrt(stats['var'] + EPSILON),
    rtol=1e-5,
  )


def test_scale_and_bias_are_optional(x):
  layer = BatchNorm(
    train=True, use_scale=False, use_bias=False, epsilon=EPSILON
  )
  variables = layer.init(jax.random.key(0), x)
  assert 'params' not in variables
  y, _ = layer.apply(variables, x, mutable=['batch_stats'])
  expected, _, var = reference_forward(x, 1.0, 0.0)
  np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)
  # Section 3: sum of x_hat = 0; mean of x_hat^2 = var / (var + epsilon).
  np.testing.assert_allclose(np.mean(y, AXES), 0.0, atol=1e-6)
  np.testing.assert_allclose(
    np.mean(np.square(y), AXES), var / (var + EPSILON), rtol=1e-5
  )


def test_moving_average_formula():
  new = batch_norm.update_moving_average(
    BatchStats(jnp.array([1.0]), jnp.array([2.0])),
    BatchStats(jnp.array([5.0]), jnp.array([10.0])),
    0.75,
  )
  assert (new.mean[0], new.var[0]) == (2.0, 4.0)
  decays = partial(batch_norm.warmed_up_decay, 0.9)
  np.testing.assert_allclose(
    [decays(jnp.int32(t)) for t in (0, 1, 8, 80, 10_000)],
    [1 / 10, 2 / 11, 9 / 18, 81 / 90, 0.9],
    rtol=1e-6,
  )


DOCUMENT = pathlib.Path(__file__).parent.parent / 'docs' / 'batch_norm.md'
BLOCKS = re.findall(r'```python\n(.*?)```', DOCUMENT.read_text(), re.DOTALL)
NAMES = (
  'jit',
  'divided arrays',
  'shard_map',
  'second derivatives',
  'forward mode',
)


@pytest.mark.parametrize('name', NAMES)
def test_examples_of_the_document(name):
  (block,) = (b for n, b in zip(NAMES, BLOCKS[1:], strict=True) if n == name)
  scope = {}
  exec(BLOCKS[0], scope)  # the network and its step
  exec(block, scope)
  scope_of = {'divided arrays': 'divided', 'shard_map': 'mapped'}
  if name in scope_of:
    step, network, variables = (
      scope[k] for k in ('step', 'network', 'variables')
    )
    expected = step(network, variables, scope['image'], scope['label'])
    jax.tree.map(
      partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5),
      scope[scope_of[name]],
      expected,
    )
    # The layer was given bytes, and the step changed something.
    assert scope['image'].dtype == np.uint8
    kernel = variables['params']['Conv_0']['kernel']
    assert np.abs(expected['params']['Conv_0']['kernel'] - kernel).max() > 1e-3
  if name == 'jit':
    assert scope['logits'].shape == (32, 10)
  if name == 'second derivatives':
    for leaf in scope['penalty']['Conv_0']['kernel'], scope['dx']:
      assert np.isfinite(leaf).all() and np.abs(leaf).max() > 0
  if name == 'forward mode':
    x = scope['x']
    gradient = jax.grad(
      lambda x: scope['loss_fn'](
        scope['network'], scope['variables'], x, scope['label']
      )[0]
    )(x)
    np.testing.assert_allclose(
      scope['slope'], jnp.vdot(gradient, jnp.cos(x)), rtol=1e-4
    )


def document_rows(name):
  """The rows of that name in the tables of other frameworks, cell by cell."""
  section = DOCUMENT.read_text().split('## Batch norm elsewhere')[1]
  lines = section.splitlines()
  rows = [[c.strip() for c in row.strip('|').split('|')] for row in lines]
  return [row[1:] for row in rows if row[0] == name]


def test_own_rows_among_other_frameworks():
  layer = BatchNorm(train=True)
  apply = jax.jit(partial(layer.apply, mutable=['batch_stats']))
  rng = np.random.default_rng(0)
  small = jnp.array(rng.normal(size=(8, 4)), jnp.bfloat16)
  variables = jax.jit(layer.init)(jax.random.key(0), small)
  start = variables['batch_stats']
  assert (start['mean'][0], start['var'][0]) == (0, 1)
  kept = float(batch_norm.warmed_up_decay(layer.statistics_decay, jnp.int32(0)))
  y, updated = apply(variables, small)
  updated = updated['batch_stats']
  new = (np.array(updated['var']) - kept) / (1 - kept)
  expected = np.var(np.float64(small), 0, ddof=1)
  np.testing.assert_allclose(new, expected, rtol=1e-5)
  with pytest.raises(ValueError, match='at least 2 values') as error:
    apply(variables, small[:1])
  x = np.float32(1000 + rng.normal(size=(32, 28, 28, 4)))
  found = batch_norm.batch_statistics(jnp.array(x), AXES).var
  measured = np.abs(found / np.var(x, AXES, dtype=np.float64) - 1).max()
  porting, behaviour = document_rows('ours')
  assert porting == [
    f'{layer.statistics_decay} old, after a warm-up',
    'm - 1',
    f'{layer.epsilon:.0e}'.replace('e-0', 'e-'),
    f'0 / 1; the first batch weighs {1 - kept:g}',
  ]
  *rest, claimed = behaviour
  assert rest == [
    type(error.value).__name__,
    f'{y.dtype} / {updated["var"].dtype}',
  ]
  assert measured < 4 * float(claimed)


def test_mean_of_a_small_array_of_one_constant_feature():
  x = jnp.full((8, 14, 14, 1), 1234.567)
  stats = jax.jit(partial(batch_norm.batch_statistics, axes=AXES))(x)
  np.testing.assert_allclose(stats.mean, x[0, 0, 0], rtol=3e-5)
  more = jnp.full((8, 14, 14, 4), 1234.567)  # more than 4,096 numbers
  stats = jax.jit(partial(batch_norm.batch_statistics, axes=AXES))(more)
  np.testing.assert_allclose(stats.mean, more[0, 0, 0], rtol=3e-7)

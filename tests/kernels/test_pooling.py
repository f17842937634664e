"""Pooling and its gradients are XLA's, also where values are equal."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from bn_inception.kernels.pooling import pool3x3


def xla_max_pool(x, stride_padding):
  pads = 'SAME'
  if stride_padding == 'caffe':
    pads = tuple((0, (size - 1) % 2) for size in x.shape[1:3])
  return nn.max_pool(x, (3, 3), (2, 2), pads)


@pytest.mark.parametrize('stride_padding', ['same', 'caffe'])
@pytest.mark.parametrize('size', [(8, 8), (7, 8), (9, 5), (3, 4)])
@pytest.mark.parametrize('num_values', [2, 1000])
def test_max_pooling_by_two(size, stride_padding, num_values):
  rng = np.random.default_rng(0)
  # Integers, of which many are equal, as after ReLU.
  x = rng.integers(0, num_values, (2, *size, 3)).astype(np.float32)

  @partial(jax.jit, static_argnums=0)
  def compute(pool, x, dy):
    y, backward = jax.vjp(pool, x)
    return y, *backward(dy)

  expected_pool = partial(xla_max_pool, stride_padding=stride_padding)
  shape = jax.eval_shape(expected_pool, x).shape
  dy = jnp.asarray(rng.integers(1, 100, shape), jnp.float32)
  own_pool = partial(
    pool3x3, kind='max', stride=2, stride_padding=stride_padding
  )
  own = compute(own_pool, x, dy)
  expected = compute(expected_pool, x, dy)
  for a, b in zip(own, expected, strict=True):
    np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize('with_padding', [False, True])
@pytest.mark.parametrize('stride', [1, 2])
@pytest.mark.parametrize('size', [(8, 8), (7, 8), (3, 4)])
def test_averages(size, stride, with_padding):
  rng = np.random.default_rng(0)
  x = jnp.asarray(rng.normal(size=(2, *size, 3)), jnp.float32)

  def own(x):
    return pool3x3(x, 'avg', stride, average_includes_padding=with_padding)

  def expected(x):
    return nn.avg_pool(
      x, (3, 3), (stride,) * 2, 'SAME', count_include_pad=with_padding
    )

  (a, own_backward), (b, backward) = jax.vjp(own, x), jax.vjp(expected, x)
  np.testing.assert_allclose(a, b, rtol=0, atol=1e-6)
  dy = jnp.asarray(rng.normal(size=b.shape), jnp.float32)
  (a,), (b,) = own_backward(dy), backward(dy)
  np.testing.assert_allclose(a, b, rtol=0, atol=1e-6)


def test_values_that_are_all_negative_beat_the_padding():
  x = -1.0 - jnp.arange(16.0).reshape(1, 4, 4, 1)
  dx = jax.grad(lambda x: pool3x3(x, 'max', 2).sum())(x)
  assert dx.sum() == 4.0 and dx.max() == 1.0


@pytest.mark.parametrize('kind', ['max', 'avg'])
@pytest.mark.parametrize('stride', [1, 2])
def test_the_type_stays(kind, stride):
  x = jnp.ones((1, 4, 4, 2), jnp.bfloat16)
  assert pool3x3(x, kind, stride).dtype == jnp.bfloat16


@pytest.mark.parametrize('kind', ['max', 'avg'])
@pytest.mark.parametrize('stride', [1, 2])
def test_integers_are_pooled_as_real_numbers(kind, stride):
  # Of bytes, the sum of a window is too large, and nothing is below the padding.
  for dtype in np.uint8, np.int8:
    x = np.full((1, 4, 4, 2), np.iinfo(dtype).max - 1, dtype)
    x[0, 0, 0] = np.iinfo(dtype).min
    y = pool3x3(x, kind, stride)
    assert y.dtype == jnp.float32
    np.testing.assert_array_equal(y, pool3x3(x.astype('float32'), kind, stride))


@pytest.mark.parametrize('kind', ['max', 'avg'])
def test_complex_numbers_are_refused(kind):
  with pytest.raises(TypeError, match='complex64'):
    pool3x3(jnp.ones((1, 4, 4, 2), jnp.complex64), kind, 2)


def test_images_without_a_window_are_refused():
  with pytest.raises(ValueError, match=r'\(2, 1, 5, 3\)'):
    pool3x3(jnp.zeros((2, 1, 5, 3)), 'max', 2, 'caffe')


@pytest.mark.parametrize('kind, stride', [('max', 1), ('max', 2), ('avg', 2)])
def test_all_derivatives_equal_those_of_jax(kind, stride):
  rng = np.random.default_rng(0)
  x, v = jnp.asarray(rng.normal(size=(2, 2, 7, 6, 3)), jnp.float32)
  shape = jax.eval_shape(lambda x: pool3x3(x, kind, stride), x).shape
  w = jnp.asarray(rng.normal(size=shape), jnp.float32)

  def loss(custom_vjp, x):
    y = pool3x3(x, kind, stride, custom_vjp=custom_vjp)
    return jnp.sum(w * jnp.sin(y))

  own, jaxs = partial(loss, True), partial(loss, False)

  @jax.jit
  def compute(x):
    gradients = jax.grad(own)(x), jax.grad(jaxs)(x)
    products = [
      jax.grad(lambda x, f=f: jnp.vdot(jax.grad(f)(x), v))(x)
      for f in (own, jaxs)
    ]
    forward = jax.jvp(jaxs, (x,), (v,))[1]
    mixed = jax.jvp(jax.grad(jaxs), (x,), (v,))[1]
    return gradients, products, forward, mixed

  gradients, products, forward, mixed = compute(x)
  np.testing.assert_allclose(*gradients, rtol=0, atol=1e-5)
  np.testing.assert_allclose(*products, rtol=0, atol=1e-5)
  np.testing.assert_allclose(mixed, products[0], rtol=0, atol=1e-5)
  np.testing.assert_allclose(forward, jnp.vdot(gradients[0], v), rtol=1e-5)


def test_gradient_of_arrays_divided_over_an_explicit_mesh():
  devices = jax.make_mesh((8,), ('data',))
  x = np.float32(np.random.default_rng(0).normal(size=(8, 7, 6, 3)))
  gradient = jax.jit(jax.grad(lambda x: jnp.sum(pool3x3(x, 'max', 2) ** 2)))
  with jax.set_mesh(devices):
    found = gradient(jax.device_put(x, NamedSharding(devices, P('data'))))
  np.testing.assert_array_equal(found, gradient(x))

"""Convolutions: outputs and gradients against float64 NumPy, on every path."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bn_inception import native
from bn_inception.convolution import convolve

NONE, ONE = ((0, 0), (0, 0)), ((1, 1), (1, 1))
SIZES = {
  # name: image, channels, kernel, features, stride, padding
  '1x1': ((5, 4), 6, 1, 7, 1, NONE),
  '1x1, padded': ((5, 4), 6, 1, 7, 1, ONE),
  '1x1, strided': ((6, 5), 6, 1, 7, 2, NONE),
  '3x3': ((6, 7), 5, 3, 8, 1, ONE),
  '3x3, strided, TensorFlow': ((8, 6), 5, 3, 9, 2, ((0, 1), (0, 1))),
  '3x3, strided, Caffe': ((8, 6), 5, 3, 9, 2, ONE),
  # Native ones of so many multiplications use all threads.
  '1x1, large': ((28, 30), 192, 1, 128, 1, NONE),
  '3x3, large': ((28, 30), 64, 3, 96, 1, ONE),
  '7x7, strided': ((12, 16), 3, 7, 4, 2, ((2, 3), (2, 3))),
}


def reference(x, kernel, dy, stride, padding):
  """y, dx and dkernel, one place of the kernel after the other."""
  x, kernel = x.astype(np.float64), kernel.astype(np.float64)
  padded = np.pad(x, ((0, 0), *padding, (0, 0)))
  dpadded = np.zeros_like(padded)
  height, width = (
    (size - k) // stride + 1
    for size, k in zip(padded.shape[1:3], kernel.shape[:2], strict=True)
  )
  y = np.zeros((len(x), height, width, kernel.shape[-1]))
  dy, dkernel = dy(y.shape), np.zeros_like(kernel)
  for i, j in np.ndindex(kernel.shape[:2]):
    place = (
      slice(None),
      slice(i, i + stride * (height - 1) + 1, stride),
      slice(j, j + stride * (width - 1) + 1, stride),
    )
    y += padded[place] @ kernel[i, j]
    dkernel[i, j] = np.einsum('nhwc,nhwf->cf', padded[place], dy)
    dpadded[place] += dy @ kernel[i, j].T
  inside = (
    slice(before, before + size)
    for (before, _), size in zip(padding, x.shape[1:3], strict=True)
  )
  return y, dpadded[:, *inside], dkernel


def check(name):
  size, num_inputs, kernel_size, num_features, stride, padding = SIZES[name]
  rng = np.random.default_rng(0)

  def normal(shape):
    return rng.normal(size=shape).astype(np.float32)

  x = normal((3, *size, num_inputs))
  kernel = normal((kernel_size, kernel_size, num_inputs, num_features))
  kept = []

  def dy(shape):
    kept.append(normal(shape))
    return kept[0].astype(np.float64)

  expected = reference(x, kernel, dy, stride, padding)

  @jax.jit
  def compute(x, kernel, dy):
    y, backward = jax.vjp(
      lambda x, k: convolve(x, k, stride, padding), x, kernel
    )
    return y, *backward(dy)

  found = compute(x, kernel, kept[0])
  for own, right in zip(found, expected, strict=True):
    assert own.shape == right.shape and own.dtype == jnp.float32
    np.testing.assert_allclose(own, right, atol=1e-5 * np.abs(right).max())


@pytest.mark.parametrize('name', SIZES)
def test_is_that_of_numpy(name, monkeypatch):
  monkeypatch.setattr(native, 'load', lambda: False)
  check(name)


@pytest.mark.native
@pytest.mark.parametrize('name', SIZES)
def test_native_is_that_of_numpy(name):
  assert native.load()
  check(name)


@pytest.mark.native
def test_native_serves_float32_alone_and_all_of_it():
  x, kernel = jnp.ones((1, 4, 4, 2)), jnp.ones((3, 3, 2, 2))

  def text(dtype):
    arguments = x.astype(dtype), kernel.astype(dtype)
    gradients = jax.grad(
      lambda x, k: convolve(x, k, 1, ONE).astype(jnp.float32).sum(), (0, 1)
    )
    return jax.jit(gradients).lower(*arguments).as_text()

  names = native.FORWARD, native.INPUT_GRADIENT, native.KERNEL_GRADIENT
  # Of a sum of it, the gradients do not need the output.
  assert [f'@{name}(' in text(jnp.float32) for name in names] == [
    False, True, True,
  ]  # fmt: skip
  assert not any(f'@{name}(' in text(jnp.bfloat16) for name in names)


@pytest.mark.native
@pytest.mark.parametrize('size, num_inputs', [(9, 4), (28, 64)])
def test_native_convolutions_may_come_at_once(size, num_inputs):
  """XLA calls independent ones from several threads; devices, too."""
  rng = np.random.default_rng(0)
  x = jnp.asarray(rng.normal(size=(8, size, size, num_inputs)), 'float32')
  kernels = [
    jnp.asarray(rng.normal(size=(3, 3, num_inputs, n)), 'float32')
    for n in (3, 8, 8, 24)
  ]
  one = [convolve(x, kernel, 1, ONE) for kernel in kernels]
  several = jax.jit(
    lambda x: [convolve(x, kernel, 1, ONE) for kernel in kernels]
  )
  devices = jax.devices()
  for found in [several(jax.device_put(x, d)) for d in 10 * devices]:
    for own, right in zip(found, one, strict=True):
      np.testing.assert_allclose(own, right, atol=1e-4)


def test_on_accelerators_it_is_xlas(monkeypatch):
  monkeypatch.setattr(native, 'load', lambda: True)
  x, kernel = jnp.ones((1, 4, 4, 2)), jnp.ones((1, 1, 2, 2))
  traced = jax.jit(
    jax.grad(lambda x, k: convolve(x, k, 1, NONE).sum(), (0, 1))
  ).trace(x, kernel)
  for platform in 'tpu', 'cuda':
    text = traced.lower(lowering_platforms=(platform,)).as_text()
    assert 'custom_call' not in text and 'stablehlo.convolution' in text

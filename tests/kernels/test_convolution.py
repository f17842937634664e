"""Convolutions: outputs and gradients against float64 NumPy, on every path."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from bn_inception.kernels import convolution, native
from bn_inception.kernels.convolution import (
  convolve,
  joined_1x1,
  same_padding,
)

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


@pytest.mark.peers
@pytest.mark.parametrize('name', SIZES)
def test_native_is_that_of_numpy(name):
  assert native.load()
  check(name)


@pytest.mark.peers
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


@pytest.mark.peers
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


def derivatives(custom_vjp, stride, padding, x, kernel, dx, dkernel):
  """First, second and third ones, along dx and dkernel."""

  def loss(x, kernel):
    return jnp.sum(jnp.sin(convolve(x, kernel, stride, padding, custom_vjp)))

  def along(f):
    def slope(*arguments):
      return sum(map(jnp.vdot, jax.grad(f, (0, 1))(*arguments), (dx, dkernel)))

    return slope

  return [
    jax.grad(f, (0, 1))(x, kernel)
    for f in (loss, along(loss), along(along(loss)))
  ]


def check_derivatives(name):
  size, num_inputs, kernel_size, num_features, stride, padding = SIZES[name]
  rng = np.random.default_rng(0)
  shape = 3, *size, num_inputs
  kernel_shape = kernel_size, kernel_size, num_inputs, num_features
  arguments = [
    jnp.asarray(0.3 * rng.normal(size=s), jnp.float32)
    for s in (shape, kernel_shape, shape, kernel_shape)
  ]
  own, jaxs = (
    jax.jit(partial(derivatives, custom_vjp, stride, padding))(*arguments)
    for custom_vjp in (True, False)
  )
  for a, b in zip(jax.tree.leaves(own), jax.tree.leaves(jaxs), strict=True):
    np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * np.abs(b).max())


SOME_SIZES = '1x1', '3x3', '3x3, strided, TensorFlow'


@pytest.mark.parametrize('name', SOME_SIZES)
def test_derivatives_equal_those_of_jax(name, monkeypatch):
  monkeypatch.setattr(native, 'load', lambda: False)
  check_derivatives(name)


@pytest.mark.peers
@pytest.mark.parametrize('name', SOME_SIZES)
def test_native_derivatives_equal_those_of_jax(name):
  assert native.load()
  check_derivatives(name)


def test_functions_without_derivatives_have_second_ones(monkeypatch):
  """As the native ones, which not every environment has."""
  general = convolution._general
  backward = convolution._backward_of

  def opaque(f):
    def call(*arguments):
      result = jax.eval_shape(f, *arguments)
      return jax.pure_callback(
        lambda *a: jax.device_get(f(*a)), result, *arguments
      )

    return call

  def native_forward(stride, padding, *arguments):
    return opaque(partial(general, stride, padding))(*arguments)

  def native_backward(stride, padding, *arguments):
    return opaque(backward(partial(general, stride, padding)))(*arguments)

  monkeypatch.setattr(native, 'load', lambda: True)
  monkeypatch.setattr(convolution, '_native_forward', native_forward)
  monkeypatch.setattr(convolution, '_native_backward', native_backward)
  check_derivatives('3x3')


def test_forward_mode_is_that_of_jax():
  rng = np.random.default_rng(0)
  x, dx = jnp.asarray(rng.normal(size=(2, 2, 5, 5, 3)), jnp.float32)
  kernel, dkernel = jnp.asarray(rng.normal(size=(2, 3, 3, 3, 4)), jnp.float32)
  own = partial(convolve, stride=1, padding=ONE, custom_vjp=False)
  _, slope = jax.jvp(own, (x, kernel), (dx, dkernel))
  expected = convolve(dx, kernel, 1, ONE) + convolve(x, dkernel, 1, ONE)
  np.testing.assert_allclose(slope, expected, rtol=0, atol=1e-5)
  with pytest.raises(TypeError, match='custom_vjp'):  # where to look for it
    jax.jvp(lambda x: convolve(x, kernel, 1, ONE), (x,), (dx,))


@pytest.mark.parametrize('kernel_size, padding', [(1, NONE), (3, ONE)])
def test_integers_are_real_numbers_and_complex_ones_refused(
  kernel_size, padding
):
  image = np.full((1, 4, 4, 2), 200, np.uint8)
  kernel = np.full((kernel_size, kernel_size, 2, 3), 2, np.uint8)
  y = convolve(image, kernel, 1, padding)
  assert y.dtype == jnp.float32
  assert y[0, 1, 1, 0] == 200 * 2 * 2 * kernel_size**2
  with pytest.raises(TypeError, match='complex64'):
    convolve(image.astype(np.complex64), kernel, 1, padding)


@pytest.mark.parametrize('kernel_size, padding', [(1, NONE), (3, ONE)])
@pytest.mark.parametrize('is_mapped', [False, True])
@pytest.mark.parametrize(
  'is_native', [False, pytest.param(True, marks=pytest.mark.peers)]
)
def test_gradients_on_an_explicit_mesh(
  kernel_size, padding, is_mapped, is_native, monkeypatch
):
  """Under plain jit, and in a `shard_map` that checks types."""
  if is_native:
    assert native.load()
  else:
    monkeypatch.setattr(native, 'load', lambda: False)
  rng = np.random.default_rng(0)
  x = np.float32(rng.normal(size=(16, 5, 5, 3)))
  kernel = np.float32(rng.normal(size=(kernel_size, kernel_size, 3, 4)))

  def gradients(x, kernel):
    def loss(x, kernel):
      own = jnp.sum(convolve(x, kernel, 1, padding) ** 2)
      return jax.lax.psum(own, 'data') if jax.typeof(own).mat.varying else own

    return jax.grad(loss, (0, 1))(x, kernel)

  expected = jax.jit(gradients)(x, kernel)
  devices = jax.make_mesh((8,), ('data',))
  with jax.set_mesh(devices):
    if is_mapped:
      gradients = jax.shard_map(
        gradients, in_specs=(P('data'), P()), out_specs=(P('data'), P())
      )
    split = jax.device_put(x, NamedSharding(devices, P('data')))
    # JAX itself takes no kernel that is not on the mesh.
    kernel = jax.device_put(kernel, NamedSharding(devices, P()))
    found = jax.jit(gradients)(split, kernel)
  for a, b in zip(found, expected, strict=True):
    np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * np.abs(b).max())


def test_on_accelerators_it_is_xlas(monkeypatch):
  monkeypatch.setattr(native, 'load', lambda: True)
  x, kernel = jnp.ones((1, 4, 4, 2)), jnp.ones((1, 1, 2, 2))
  traced = jax.jit(
    jax.grad(lambda x, k: convolve(x, k, 1, NONE).sum(), (0, 1))
  ).trace(x, kernel)
  for platform in 'tpu', 'cuda':
    text = traced.lower(lowering_platforms=(platform,)).as_text()
    assert 'custom_call' not in text and 'stablehlo.convolution' in text


@pytest.mark.parametrize('custom_vjp', [True, False])
def test_joined_1x1_equals_one_after_the_other(custom_vjp):
  rng = np.random.default_rng(0)
  x = np.float32(rng.normal(size=(2, 3, 4, 5)))
  kernels = [np.float32(rng.normal(size=(1, 1, 5, n))) for n in (4, 1, 7)]
  weights = [np.float32(rng.normal(size=(2, 3, 4, n))) for n in (4, 1, 7)]

  def loss(x, kernels):
    found = joined_1x1(x, kernels, custom_vjp)
    total = sum(jnp.sum(y * w) for y, w in zip(found, weights, strict=True))
    return total, found

  (dx, dkernels), found = jax.grad(loss, (0, 1), has_aux=True)(x, kernels)
  expected = [x @ kernel[0, 0] for kernel in kernels]
  jax.tree.map(
    partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5), found, expected
  )
  dx_expected = sum(
    w @ k[0, 0].T for w, k in zip(weights, kernels, strict=True)
  )
  np.testing.assert_allclose(dx, dx_expected, rtol=1e-4, atol=1e-5)
  for dkernel, w in zip(dkernels, weights, strict=True):
    one = np.einsum('nhwc,nhwf->cf', x, w)
    np.testing.assert_allclose(dkernel[0, 0], one, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('stride', [1, 2])
@pytest.mark.parametrize('window', [1, 3, 7])
def test_same_padding_is_that_of_jax(window, stride):
  for size in range(1, 12):
    [expected] = jax.lax.padtype_to_pads([size], [window], [stride], 'SAME')
    assert same_padding(size, window, stride) == tuple(expected)

"""Convolution of NHWC images, with the lowering that is fast on each platform.

One function, `convolve`. On accelerators it is XLA's convolution. On CPUs, in
float32, it is oneDNN's where `python -m bn_inception.native` has built it;
otherwise XLA's, but for 1x1 kernels, which XLA does faster as matrix products.
The numbers are those of `jax.lax.conv_general_dilated`, up to rounding.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from bn_inception import native

Array = jax.Array
Padding = tuple[tuple[int, int], tuple[int, int]]

_DIMENSIONS = ('NHWC', 'HWIO', 'NHWC')


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def convolve(x: Array, kernel: Array, stride: int, padding: Padding) -> Array:
  """Cross-correlation, as convolutions are in neural networks.

  Args:
    x: [N, H, W, C].
    kernel: [height, width, C, features], of the dtype of `x`.
    stride: in both directions.
    padding: zeros before and behind, in height and width.

  Returns:
    [N, H', W', features], of the dtype of `x`.
  """
  general = partial(_general, stride, padding)
  return lax.platform_dependent(
    x, kernel, cpu=_on_cpu(x, kernel, stride, padding)[0], default=general
  )


def _forward(x, kernel, stride, padding):
  return convolve(x, kernel, stride, padding), (x, kernel)


def _backward(stride, padding, residuals, dy):
  x, kernel = residuals

  def general(x, kernel, dy):
    return jax.vjp(partial(_general, stride, padding), x, kernel)[1](dy)

  return lax.platform_dependent(
    x, kernel, dy,
    cpu=_on_cpu(x, kernel, stride, padding)[1] or general, default=general,
  )  # fmt: skip


convolve.defvjp(_forward, _backward)


def _general(stride, padding, x, kernel):
  return lax.conv_general_dilated(
    x, kernel, (stride, stride), padding, dimension_numbers=_DIMENSIONS
  )


def _on_cpu(x, kernel, stride, padding):
  """Its forward and its backward computation; None: XLA's."""
  if x.dtype == jnp.float32 and native.load():
    sizes = stride, padding
    return partial(_native_forward, *sizes), partial(_native_backward, *sizes)
  is_1x1 = kernel.shape[:2] == (1, 1) and stride == 1
  if is_1x1 and not any(sum(padding, ())):
    return _dot, _dot_backward
  return partial(_general, stride, padding), None


def _dot(x: Array, kernel: Array) -> Array:
  rows = x.reshape(-1, x.shape[-1])
  return (rows @ kernel[0, 0]).reshape(*x.shape[:-1], kernel.shape[-1])


def _dot_backward(x, kernel, dy):
  rows = dy.reshape(-1, dy.shape[-1])
  dx = (rows @ kernel[0, 0].T).reshape(x.shape)
  dkernel = x.reshape(-1, x.shape[-1]).T @ rows
  return dx, dkernel[None, None]


def _call(name, stride, padding, like, *arguments):
  """Calls a native function, whose result has the shape of `like`."""
  result = jax.ShapeDtypeStruct(like.shape, like.dtype)
  return jax.ffi.ffi_call(name, result, vmap_method='sequential')(
    *arguments,
    strides=np.array([stride, stride]),
    before=np.array([padding[0][0], padding[1][0]]),
    behind=np.array([padding[0][1], padding[1][1]]),
  )


def _native_forward(stride, padding, x, kernel):
  y = jax.eval_shape(partial(_general, stride, padding), x, kernel)
  return _call(native.FORWARD, stride, padding, y, x, kernel)


def _native_backward(stride, padding, x, kernel, dy):
  sizes = stride, padding
  return (
    _call(native.INPUT_GRADIENT, *sizes, x, dy, kernel),
    _call(native.KERNEL_GRADIENT, *sizes, kernel, x, dy),
  )

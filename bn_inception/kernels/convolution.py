"""Convolution of NHWC images, lowered to what is fast on each platform.

Accelerators run XLA's convolution. CPUs run oneDNN's in float32 if
`python -m bn_inception.kernels.native` has built it; otherwise XLA's, except that
1x1 kernels become matrix products. The numbers are those of
`jax.lax.conv_general_dilated`, up to rounding.

Measured on two CPU cores, batch 16, all 3x3 convolutions of BN-Inception: oneDNN
takes 267 instead of 361 ms forward, 620 instead of 1,625 backward (results/speed.md).
"""

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from bn_inception.batch_norm import as_real, vary_alike
from bn_inception.kernels import native

Array = jax.Array
Padding = tuple[tuple[int, int], tuple[int, int]]

_DIMENSIONS = ('NHWC', 'HWIO', 'NHWC')


def convolve(
  x: Array,
  kernel: Array,
  stride: int,
  padding: Padding,
  custom_vjp: bool = True,
) -> Array:
  """Cross-correlation, which neural networks call convolution.

  Args:
    x: [N, H, W, C], real.
    kernel: [height, width, C, features], of the dtype of `x`.
    stride: in both directions.
    padding: zeros before and after, in height and width.
    custom_vjp: False for XLA's convolution everywhere, with JAX's own
      derivatives, which include forward mode (`jvp`, `jacfwd`, `linearize`,
      `hessian`).

  Returns:
    [N, H', W', features], of the dtype of `x`; float32 for integers.

  Raises:
    TypeError: for complex numbers.
  """
  x, kernel = as_real(x), as_real(kernel)
  if not custom_vjp:
    return _general(stride, padding, x, kernel)
  return _convolve(*vary_alike(x, kernel), stride, padding)


def joined_1x1(
  x: Array, kernels: Sequence[Array], custom_vjp: bool = True
) -> list[Array]:
  """Several 1x1 convolutions of one input, computed as one product.

  Measured on two CPU cores, batch 8, forward and backward: the separate ones take
  1.46 (module 3a), 1.17 (4a) and 1.13 (5a) times as long, and twice the memory.

  Args:
    x: [N, H, W, C], real.
    kernels: each [1, 1, C, features], of the dtype of `x`.
    custom_vjp: see `convolve`.

  Returns:
    One [N, H, W, features] for each kernel.
  """
  joined = jnp.concatenate(kernels, axis=-1)
  y = convolve(x, joined, 1, ((0, 0), (0, 0)), custom_vjp)
  ends = np.cumsum([kernel.shape[-1] for kernel in kernels])
  return jnp.split(y, ends[:-1], axis=-1)


def same_padding(size: int, window: int, stride: int) -> tuple[int, int]:
  """TensorFlow's 'SAME' zeros (before, after) an axis: ceil(size / stride) outputs.

  An odd zero comes after: (0, 1) for a 3x3 of stride 2 on an even size.
  """
  total = max(0, (-(-size // stride) - 1) * stride + window - size)
  return total // 2, total - total // 2


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _convolve(x, kernel, stride, padding):
  general = partial(_general, stride, padding)
  return lax.platform_dependent(
    x, kernel, cpu=_on_cpu(x, kernel, stride, padding)[0], default=general
  )


def _forward(x, kernel, stride, padding):
  return _convolve(x, kernel, stride, padding), (x, kernel)


def _backward(stride, padding, residuals, dy):
  return _gradients(stride, padding, *residuals, dy)


_convolve.defvjp(_forward, _backward)


# A custom VJP again: JAX cannot differentiate native functions, and second
# derivatives are those of XLA's convolution.
@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _gradients(stride, padding, x, kernel, dy):
  general = _backward_of(partial(_general, stride, padding))
  return lax.platform_dependent(
    x, kernel, dy, cpu=_on_cpu(x, kernel, stride, padding)[1], default=general
  )


def _gradients_forward(stride, padding, *arguments):
  return _gradients(stride, padding, *arguments), arguments


def _gradients_backward(stride, padding, arguments, cotangents):
  general = _backward_of(partial(_general, stride, padding))
  return jax.vjp(general, *arguments)[1](cotangents)


_gradients.defvjp(_gradients_forward, _gradients_backward)


def _backward_of(forward):
  def backward(x, kernel, dy):
    return jax.vjp(forward, x, kernel)[1](dy)

  return backward


def _general(stride, padding, x, kernel):
  return lax.conv_general_dilated(
    x, kernel, (stride, stride), padding, dimension_numbers=_DIMENSIONS
  )


def _on_cpu(x, kernel, stride, padding):
  """The forward and the backward computation on CPUs."""
  sizes = stride, padding
  if x.dtype == jnp.float32 and native.load():
    return partial(_native_forward, *sizes), partial(_native_backward, *sizes)
  is_1x1 = kernel.shape[:2] == (1, 1) and stride == 1
  if is_1x1 and not any(sum(padding, ())):
    return _dot, _backward_of(_dot)
  forward = partial(_general, *sizes)
  return forward, _backward_of(forward)


def _dot(x: Array, kernel: Array) -> Array:
  rows = x.reshape(-1, x.shape[-1])
  return (rows @ kernel[0, 0]).reshape(*x.shape[:-1], kernel.shape[-1])


def _call(name, stride, padding, like, *arguments):
  """Calls a native function, whose result has the type of `like`."""
  result = jax.eval_shape(lambda x: x, like)
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

"""3x3 pooling of NHWC images, lowered to what is fast on each platform.

Measured on CPUs: average pooling by additions is 3 to 6 times as fast as XLA's
windows, whose gradient of max pooling runs in a single thread (results/speed.md).
"""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from bn_inception.batch_norm import as_real
from bn_inception.kernels.convolution import Padding, same_padding

Array = jax.Array
STRIDE_PADDINGS = ('same', 'caffe')


def pool3x3(
  x: Array,
  kind: str,
  stride: int,
  stride_padding: str = 'same',
  average_includes_padding: bool = False,
  custom_vjp: bool = True,
) -> Array:
  """3x3 'max' or 'avg' pooling of [N, H, W, C].

  Args:
    x: the images, real; integers are pooled as float32.
    kind: 'max' or 'avg'.
    stride: 1 or 2.
    stride_padding: with stride 2, 'same' pads as TensorFlow does, to
      ceil(size / 2); 'caffe' pads after the image, as far as the last window
      reaches (PyTorch's ceil_mode). They agree for even sizes.
    average_includes_padding: count padded zeros in the averages, as Caffe and
      PyTorch do and TensorFlow does not.
    custom_vjp: False for JAX's own derivatives, which include forward mode
      (`jvp`, `jacfwd`, `linearize`, `hessian`).

  Raises:
    TypeError: for complex numbers.
    ValueError: for images in which no window fits.
  """
  x = as_real(x)
  padding = tuple(
    (0, (size - 1) % 2)
    if stride == 2 and stride_padding == 'caffe'
    else same_padding(size, 3, stride)
    for size in x.shape[1:3]
  )
  if any(
    size + sum(pair) < 3
    for size, pair in zip(x.shape[1:3], padding, strict=True)
  ):
    raise ValueError(f'images of shape {x.shape} are too small for 3x3 pooling')
  if kind == 'max':
    is_own = custom_vjp and stride == 2
    return max_pool3x3(x, padding) if is_own else _max_pool(x, padding, stride)
  return _average_pool(x, padding, stride, average_includes_padding)


def _average_pool(
  x: Array, padding: Padding, stride: int, with_padding: bool
) -> Array:
  """Averages; on CPUs from shifted additions, since XLA's windows are slow there."""
  total = lax.platform_dependent(
    x,
    cpu=partial(_shifted_sum, padding=padding, stride=stride),
    default=partial(_window_sum, padding=padding, stride=stride),
  )
  if with_padding:
    return total / jnp.array(9, x.dtype)
  counts = [
    np.array(
      [
        min(start + 3, size) - max(start, 0)
        for start in range(-before, size + after - 2, stride)
      ]
    )
    for size, (before, after) in zip(x.shape[1:3], padding, strict=True)
  ]
  return total / jnp.asarray(np.outer(*counts)[:, :, None], x.dtype)


def _window_sum(x: Array, padding: Padding, stride: int) -> Array:
  window, strides = (1, 3, 3, 1), (1, stride, stride, 1)
  zero = np.zeros((), x.dtype)  # a constant, or JAX has no gradient for it
  padding = ((0, 0), *padding, (0, 0))
  return lax.reduce_window(x, zero, lax.add, window, strides, padding)


def _shifted_sum(x: Array, padding: Padding, stride: int) -> Array:
  zero = jnp.zeros((), x.dtype)
  x = lax.pad(
    x, zero, [(0, 0, 0), *((*pair, 0) for pair in padding), (0, 0, 0)]
  )
  for axis in (1, 2):
    last = x.shape[axis] - 2
    x = sum(lax.slice_in_dim(x, i, last + i, stride, axis) for i in range(3))
  return x


def _max_pool(x: Array, padding: Padding, stride: int) -> Array:
  return nn.max_pool(x, (3, 3), (stride, stride), padding)


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def max_pool3x3(x: Array, padding: Padding) -> Array:
  """3x3 max pooling of stride 2.

  The gradient goes to the first of equal values in row-major order, as XLA's
  does; XLA's on CPUs visits the windows one by one in a single thread.

  Args:
    x: [N, H, W, C].
    padding: places before and after, in height and width, that never win.
  """
  return lax.platform_dependent(
    x,
    cpu=lambda x: _winners(x, padding)[0],
    default=partial(_max_pool, padding=padding, stride=2),
  )


def _max_pool_forward(x, padding):
  return max_pool3x3(x, padding), x


def _max_pool_backward(padding, x, dy):
  def by_scatter(x, dy):
    return jax.vjp(lambda x: _max_pool(x, padding, 2), x)[1](dy)[0]

  def by_gather(x, dy):
    dx = _gather_gradients(_winners(x, padding)[1], dy)
    (top, _), (left, _) = padding
    return dx[:, top : top + x.shape[1], left : left + x.shape[2]]

  return (lax.platform_dependent(x, dy, cpu=by_gather, default=by_scatter),)


max_pool3x3.defvjp(_max_pool_forward, _max_pool_backward)


def _winners(x: Array, padding: Padding) -> tuple[Array, Array]:
  """The largest value of each window, and its place: 0 to 8, row-major."""
  lowest = jnp.array(-jnp.inf, x.dtype)
  x = lax.pad(
    x, lowest, [(0, 0, 0), *((*pair, 0) for pair in padding), (0, 0, 0)]
  )
  height, width = ((size - 3) // 2 + 1 for size in x.shape[1:3])
  best, place = None, None
  for k in range(9):
    i, j = divmod(k, 3)
    rows = slice(i, i + 2 * height - 1, 2)
    columns = slice(j, j + 2 * width - 1, 2)
    value = x[:, rows, columns]
    if best is None:
      best, place = value, jnp.zeros(value.shape, jnp.int8)
    else:
      place = jnp.where(value > best, jnp.int8(k), place)
      best = jnp.maximum(value, best)
  return best, place


def _gather_gradients(place: Array, dy: Array) -> Array:
  """Sums for each position the gradients of the windows that it has won.

  Window i covers rows 2 i to 2 i + 2: row 2 i is its first and the last of
  window i - 1, row 2 i + 1 its second. Columns likewise.

  Args:
    place: [N, H', W', C], the place of each window's winner.
    dy: [N, H', W', C].

  Returns:
    [N, 2 H' + 2, 2 W' + 2, C]: the padded images, and one more row and column.
  """
  num, height, width, channels = dy.shape
  border = [(0, 0, 0), (1, 1, 0), (1, 1, 0), (0, 0, 0)]
  place = lax.pad(place, jnp.int8(-1), border)
  dy = lax.pad(dy, jnp.zeros((), dy.dtype), border)
  # [row of the pair, 1, column of the pair, 1]
  row = jnp.arange(2, dtype=jnp.int8)[:, None, None, None]
  column = jnp.arange(2, dtype=jnp.int8)[:, None]
  dx = 0
  for back_row in range(2):
    for back_column in range(2):
      own = 3 * (row + 2 * back_row) + column + 2 * back_column
      is_over = (row + 2 * back_row < 3) & (column + 2 * back_column < 3)
      window = (
        slice(None),
        slice(1 - back_row, 2 - back_row + height),
        None,
        slice(1 - back_column, 2 - back_column + width),
        None,
      )
      dx += jnp.where((place[window] == own) & is_over, dy[window], 0)
  # One pair of axes at a time: split arrays allow no more at once.
  dx = dx.reshape(num, 2 * height + 2, width + 1, 2, channels)
  return dx.reshape(num, 2 * height + 2, 2 * width + 2, channels)

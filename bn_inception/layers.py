"""Building blocks of the networks. Images are NHWC throughout."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from bn_inception.batch_norm import as_real, widen
from bn_inception.kernels.convolution import Padding, convolve, same_padding
from bn_inception.kernels.pooled_batch_norm import pool_first

Array = jax.Array

NONLINEARITIES = {
  'relu': nn.relu,
  'sigmoid': nn.sigmoid,
}
# Max pooling costs less before the nonlinearity. With these it picks the same values
# there; after all others (gelu, silu) it comes last.
NON_DECREASING = frozenset({nn.relu, nn.sigmoid})
# Alternatives to batch normalization: name -> `ConvUnit.make_norm`. Groups of 4
# channels fit every layer, even at an eighth of the width.
NORMS = {
  'group': partial(nn.GroupNorm, num_groups=None, group_size=4),
}
# Variance of the convolutions' initial weights times their fan-in. The paper states
# none; He's is what the public BN-Inception code uses.
HE_GAIN = 2.0


class ConvUnit(nn.Module):
  """z = g(BN(Wu)): convolution, normalisation, nonlinearity (Section 3.2).

  A normalised convolution has no bias: subtracting the mean would cancel it, and
  beta takes its role.

  `make_norm` returns the normalisation: any function or linen module that maps
  [N, H, W, C] to the same shape, as does `lambda: nn.GroupNorm(8)`. It is called
  with Wu alone, so `make_norm` must set everything else, such as `train`. The
  parameters of a linen module are named `norm`.

  Attributes:
    num_features: output feature maps.
    kernel_size: height and width of the kernel.
    nonlinearity: g, element-wise.
    make_norm: makes the normalisation; None for a bias instead.
    stride: in both directions.
    dtype: of the computation; parameters are float32.
    depth_multiplier: 0 for a dense convolution. Otherwise a separable one: this
      many depthwise maps per input channel, then a 1x1, with nothing in between
      (Appendix: 8 in the first layer).
    initial_scale: multiplies the initial weights.
    stride_padding: see `padding`.
    pool: max pooling of the output, or None. If g is in NON_DECREASING, it runs
      before `BatchNorm` or the bias, which gives the same values.
    custom_vjp: see `convolve`.
  """

  num_features: int
  kernel_size: int
  nonlinearity: Callable[[Array], Array]
  make_norm: Callable[[], Callable[[Array], Array]] | None
  stride: int = 1
  dtype: Any = jnp.float32
  depth_multiplier: int = 0
  initial_scale: float = 1.0
  stride_padding: str = 'same'
  pool: Callable[[Array], Array] | None = None
  custom_vjp: bool = True

  def setup(self):
    kernel_init = truncated_normal(HE_GAIN * self.initial_scale**2)
    if self.depth_multiplier:
      self.depthwise = Weights(use_bias=False, kernel_init=kernel_init)
    self.conv = Weights(self.make_norm is None, kernel_init)
    norm = None if self.make_norm is None else self.make_norm()
    pooled_norm = None
    if self.pool is not None and self.nonlinearity in NON_DECREASING:
      # A bias does not change which value is the largest: pooling alone takes the
      # place of the normalisation.
      pooled_norm = self.pool if norm is None else pool_first(norm, self.pool)
    self.pools_first = pooled_norm is not None
    self.norm = pooled_norm if self.pools_first else norm

  def __call__(self, x: Array, wu: Array | None = None) -> Array:
    """[N, H, W, C] -> [N, ceil(H / stride), ceil(W / stride), features], pooled.

    Args:
      x: u, the input.
      wu: Wu, if the caller has already computed the convolution.
    """
    kernel, bias = self.weights(x.shape[-1])
    if wu is None:
      pads = padding(
        x.shape[1:3], self.kernel_size, self.stride, self.stride_padding
      )
      wu = convolve(x, kernel, self.stride, pads, self.custom_vjp)
    z = wu if self.norm is None else self.norm(wu).astype(wu.dtype)
    z = z if bias is None else z + bias.astype(z.dtype)
    z = self.nonlinearity(z)
    return z if self.pool is None or self.pools_first else self.pool(z)

  def weights(self, num_inputs: int) -> tuple[Array, Array | None]:
    """The kernel [size, size, inputs, features] and bias, in `dtype`.

    The two kernels of a separable convolution are multiplied into one dense kernel.
    It reads the images once instead of twice and, for 3 channels times 8 maps,
    costs less.
    """
    size = self.kernel_size
    if not self.depth_multiplier:
      kernel, bias = self.conv((size, size, num_inputs, self.num_features))
    else:
      maps = num_inputs * self.depth_multiplier
      depthwise, _ = self.depthwise((size, size, 1, maps))
      pointwise, bias = self.conv((1, 1, maps, self.num_features))
      kernel = jnp.einsum(
        'hwcm,cmf->hwcf',
        depthwise.reshape(size, size, num_inputs, -1),
        pointwise.reshape(num_inputs, -1, self.num_features),
        precision=jax.lax.Precision.HIGHEST,
      )
    return kernel.astype(self.dtype), bias


class Weights(nn.Module):
  """The parameters of a convolution, named as `nn.Conv` names them.

  Attributes:
    use_bias: whether to have a bias, initially 0.
    kernel_init: initializer of the kernel.
  """

  use_bias: bool
  kernel_init: Callable

  @nn.compact
  def __call__(self, shape: tuple[int, ...]) -> tuple[Array, Array | None]:
    """(kernel of this shape, bias [shape[-1]] or None), float32."""
    kernel = self.param('kernel', self.kernel_init, shape)
    bias = None
    if self.use_bias:
      bias = self.param('bias', nn.initializers.zeros, shape[-1:])
    return kernel, bias


def padding(
  size: tuple[int, int], kernel_size: int, stride: int, stride_padding: str
) -> Padding:
  """Zero padding of a convolution: (before, after) for height and for width.

  Args:
    size: height and width of the images.
    kernel_size: odd.
    stride: in both directions.
    stride_padding: 'same', as in TensorFlow, or 'caffe', as in Caffe and PyTorch:
      the same on both sides. Both give the same output size; at stride 2 and an
      even size, their windows are one pixel apart.
  """
  if stride_padding == 'caffe':
    return ((kernel_size // 2,) * 2,) * 2
  return tuple(same_padding(length, kernel_size, stride) for length in size)


def truncated_normal(gain: float) -> Callable:
  """Initializer: a normal truncated at 2 std, with variance gain / fan-in.

  The same distribution as linen's variance_scaling(gain, 'fan_in',
  'truncated_normal'). Drawing a flat array saves minutes: on CPUs XLA compiles
  Threefry 20 times slower for four-dimensional shapes.
  """
  # The standard deviation of a standard normal truncated at -2 and 2.
  truncated_std = 0.87962566103423978

  def init(key: Array, shape: tuple[int, ...], dtype=jnp.float32) -> Array:
    fan_in = math.prod(shape[:-1])
    std = math.sqrt(gain / fan_in) / truncated_std
    flat = jax.random.truncated_normal(key, -2, 2, (math.prod(shape),), dtype)
    return (std * flat).reshape(shape)

  return init


lecun_truncated_normal = truncated_normal(1.0)


class Dropout(nn.Module):
  """Dropout whose mask depends on the example, not on its position in the batch.

  Linen's Dropout draws one mask for the whole local array, so under `shard_map` the
  mask depends on the number of devices. Here each example has its own key:
  `fold_in(key, example_index)`.
  """

  rate: float
  train: bool

  @nn.compact
  def __call__(self, x: Array, example_index: Array | None = None) -> Array:
    """Zeroes features of x [N, ...] with probability `rate`, scales the rest.

    Args:
      x: [N, ...].
      example_index: int [N], the examples' positions in their source; required
        to drop values.

    Returns:
      x in evaluation, in `init` or at rate 0; otherwise x masked and divided by
      1 - rate. Integers become float32 either way.

    Raises:
      TypeError: for complex numbers.
      ValueError: if values are to be dropped without `example_index`.
    """
    x = as_real(x)
    if not self.train or self.rate == 0.0 or self.is_initializing():
      return x
    if example_index is None:
      raise ValueError(
        f'dropout of rate {self.rate} draws a mask for each example: give '
        'example_index, int [N]'
      )
    key = self.make_rng('dropout')
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, example_index)
    keep = jax.vmap(
      lambda k: jax.random.bernoulli(k, 1.0 - self.rate, x.shape[1:])
    )(keys)
    return jnp.where(keep, x / (1.0 - self.rate), jnp.zeros_like(x))


def local_response_normalization(
  x: Array,
  size: int = 5,
  alpha: float = 1e-4,
  beta: float = 0.75,
  k: float = 1.0,
) -> Array:
  """y = x / (k + alpha / size * sum of x^2 over nearby channels) ^ beta.

  The paper's baseline uses it (Section 4.2.1, change 5) without stating the
  constants; the defaults are those of the public GoogLeNet (BVLC Caffe).

  Args:
    x: [N, H, W, C], real; float64 is computed in float64, all else in float32.
    size: width of the window of channels, centred; odd.
    alpha, beta, k: as in the formula.

  Returns:
    y with the shape of `x` and its dtype; float32 for integers.

  Raises:
    TypeError: for complex numbers.
  """
  x = as_real(x)
  x32 = widen(x)
  half = size // 2
  squares = jnp.pad(jnp.square(x32), ((0, 0),) * 3 + ((half, half),))
  num_channels = x.shape[-1]
  window_sum = sum(
    squares[..., offset : offset + num_channels] for offset in range(size)
  )
  y = x32 * (k + alpha / size * window_sum) ** -beta
  return y.astype(x.dtype)

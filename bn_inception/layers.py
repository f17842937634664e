"""Building blocks of the networks. Images are NHWC throughout."""

import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from bn_inception.arrays import as_real, widen
from bn_inception.kernels.convolution import Padding, convolve

Array = jax.Array
ModuleDef = Any


def truncated_normal(gain: float) -> Callable:
  """Initializer: a normal cut at 2 std, of variance gain / fan-in.

  The distribution is linen's variance_scaling(gain, 'fan_in',
  'truncated_normal'). Drawing the values in one dimension spares minutes: XLA
  compiles Threefry 20 times slower for four-dimensional shapes on CPUs.
  """
  # The standard deviation of a standard normal cut at -2 and 2.
  std_when_cut = 0.87962566103423978

  def init(key: Array, shape: tuple[int, ...], dtype=jnp.float32) -> Array:
    fan_in = math.prod(shape[:-1])
    std = math.sqrt(gain / fan_in) / std_when_cut
    flat = jax.random.truncated_normal(key, -2, 2, (math.prod(shape),), dtype)
    return (std * flat).reshape(shape)

  return init


NONLINEARITIES = {'relu': nn.relu, 'sigmoid': nn.sigmoid}
# Those that never decrease. Max pooling may come before these, which is cheaper
# and picks the same values; of all others (gelu, silu) it comes after.
NEVER_DECREASING = frozenset({nn.relu, nn.sigmoid})
# Of convolutions; the paper does not state it: He fan-in, as in the public
# BN-Inception code.
HE_GAIN = 2.0
lecun_truncated_normal = truncated_normal(1.0)


def padding(
  size: tuple[int, int], kernel_size: int, strides: int, stride_padding: str
) -> Padding:
  """The zeros around the images of a convolution, (before, behind) by axis.

  Args:
    size: height and width of the images.
    kernel_size: odd.
    strides: in both directions.
    stride_padding: with strides, 'same': TensorFlow's, which puts what is odd
      behind, (0, 1) for a 3x3 with stride 2 on an even size; 'caffe': Caffe's
      and PyTorch's, equal on both sides, (1, 1). The outputs have one size, a
      pixel apart.
  """
  if strides == 1 or stride_padding == 'caffe':
    return ((kernel_size // 2,) * 2,) * 2
  totals = [
    max(0, (-(-length // strides) - 1) * strides + kernel_size - length)
    for length in size
  ]
  return tuple((total // 2, total - total // 2) for total in totals)


class Weights(nn.Module):
  """The parameters of a convolution, under the names that `nn.Conv` gives them.

  Attributes:
    use_bias: whether there is one, initially 0.
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


class ConvUnit(nn.Module):
  """z = g(BN(Wu)): convolution, normalisation, nonlinearity (Section 3.2).

  A normalised convolution has no bias: subtracting the mean would cancel it,
  and beta takes its role.

  Attributes:
    num_features: output feature maps.
    kernel_size: height and width of the kernel.
    nonlinearity: g, element-wise.
    make_norm: makes the normalisation layer; None: a bias instead.
    strides: in both directions.
    dtype: of the computation; parameters are float32.
    depth_multiplier: 0 for a dense convolution; otherwise a separable one,
      of so many depthwise maps per input channel and then a 1x1, with nothing
      in between (Appendix: 8 in the first layer).
    initial_scale: multiplies the initial weights.
    stride_padding: see `padding`.
    pool: max pooling of the output, or None. It is done of the convolution's,
      which normalisation and nonlinearity leave in order, if the nonlinearity is
      one of NEVER_DECREASING.
    custom_vjp: see `convolve`.
  """

  num_features: int
  kernel_size: int
  nonlinearity: Callable[[Array], Array]
  make_norm: ModuleDef | None
  strides: int = 1
  dtype: Any = jnp.float32
  depth_multiplier: int = 0
  initial_scale: float = 1.0
  stride_padding: str = 'same'
  pool: Callable[[Array], Array] | None = None
  custom_vjp: bool = True

  def setup(self):
    kernel_init = truncated_normal(HE_GAIN * self.initial_scale**2)
    if self.depth_multiplier:
      self.depthwise = Weights(False, kernel_init)
    self.conv = Weights(self.make_norm is None, kernel_init)
    if self.make_norm is not None:
      self.norm = self.make_norm()

  def __call__(self, x: Array) -> Array:
    """[N, H, W, C] -> [N, ceil(H / strides), ceil(W / strides), features].

    Height and width are pooled then.
    """
    kernel, bias = self.weights(x.shape[-1])
    pads = padding(
      x.shape[1:3], self.kernel_size, self.strides, self.stride_padding
    )
    z = convolve(x, kernel, self.strides, pads, self.custom_vjp)
    return self.activate(z, bias)

  def weights(self, num_inputs: int) -> tuple[Array, Array | None]:
    """The kernel [size, size, inputs, features] and bias, in `dtype`.

    A separable convolution is the dense one whose kernel is the product of its
    two: 3 channels times 8 maps are so few that one pass over the images costs
    less than two.
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

  def activate(self, z: Array, bias: Array | None) -> Array:
    """g(BN(z)), or g(z + bias), of the convolution's output, pooled."""
    before = after = None
    if self.nonlinearity in NEVER_DECREASING:
      before = self.pool
    else:
      after = self.pool
    if self.make_norm is not None:
      z = self.norm(z, before)
    else:
      z = z if before is None else before(z)
      z = z if bias is None else z + bias.astype(z.dtype)
    y = self.nonlinearity(z)
    return y if after is None else after(y)


class Dropout(nn.Module):
  """Dropout whose mask depends on the example, not on where it is computed.

  Linen's Dropout draws one mask for the array that it sees, which under
  `shard_map` changes with the number of devices. Here each example has a key of
  its own: `fold_in(key, example_index)`.
  """

  rate: float
  train: bool

  @nn.compact
  def __call__(self, x: Array, example_index: Array) -> Array:
    """Zeroes features of x [N, ...] with probability `rate`, scales the rest.

    Args:
      x: [N, ...].
      example_index: int [N], the examples' positions in their source.

    Returns:
      x in evaluation or at rate 0; else masked and divided by 1 - rate. Integers
      become float32 either way.

    Raises:
      TypeError: for complex numbers.
    """
    x = as_real(x)
    if not self.train or self.rate == 0.0:
      return x
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

  The paper's baseline has it (Section 4.2.1, change 5) without its constants;
  the defaults are those of the public GoogLeNet (BVLC Caffe).

  Args:
    x: [N, H, W, C], real; computed in float32 (float64 in float64).
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

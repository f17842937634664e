"""Building blocks of the networks. Images are NHWC throughout."""

import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

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


# Of convolutions; the paper does not state it: He fan-in, as in the public
# BN-Inception code.
HE_GAIN = 2.0
lecun_truncated_normal = truncated_normal(1.0)


def padding(
  kernel_size: int, strides: int, stride_padding: str
) -> str | tuple[tuple[int, int], tuple[int, int]]:
  """The padding of a convolution, as linen takes it.

  Args:
    kernel_size: odd.
    strides: in both directions.
    stride_padding: 'same': TensorFlow's, which puts what is odd behind, (0, 1)
      for a 3x3 with stride 2 on an even size; 'caffe': Caffe's and PyTorch's,
      equal on both sides, (1, 1). The outputs have one size, a pixel apart.
  """
  if strides == 1 or stride_padding == 'same':
    return 'SAME'
  return ((kernel_size // 2,) * 2,) * 2


class ConvUnit(nn.Module):
  """z = g(BN(Wu)): convolution, normalisation, nonlinearity (Section 3.2).

  A normalised convolution has no bias: subtracting the mean would cancel it,
  and beta takes its role.

  Attributes:
    num_features: output feature maps.
    kernel_size: height and width of the kernel.
    nonlinearity: g, element-wise.
    norm: makes the normalisation layer, given its name; None: a bias instead.
    strides: in both directions.
    dtype: of the computation; parameters are float32.
    depth_multiplier: 0 for a dense convolution; otherwise a separable one,
      of so many depthwise maps per input channel and then a 1x1, with nothing
      in between (Appendix: 8 in the first layer).
    initial_scale: multiplies the initial weights.
    stride_padding: see `padding`.
  """

  num_features: int
  kernel_size: int
  nonlinearity: Callable[[Array], Array]
  norm: ModuleDef | None
  strides: int = 1
  dtype: Any = jnp.float32
  depth_multiplier: int = 0
  initial_scale: float = 1.0
  stride_padding: str = 'same'

  @nn.compact
  def __call__(self, x: Array) -> Array:
    """[N, H, W, C] -> [N, ceil(H / strides), ceil(W / strides), features]."""
    kernel_init = truncated_normal(HE_GAIN * self.initial_scale**2)
    kernel_size = (self.kernel_size, self.kernel_size)
    strides = (self.strides, self.strides)
    pads = padding(self.kernel_size, self.strides, self.stride_padding)
    if self.depth_multiplier:
      num_inputs = x.shape[-1]
      x = nn.Conv(
        num_inputs * self.depth_multiplier,
        kernel_size,
        strides,
        pads,
        feature_group_count=num_inputs,
        use_bias=False,
        dtype=self.dtype,
        kernel_init=kernel_init,
        name='depthwise',
      )(x)
      kernel_size, strides, pads = (1, 1), (1, 1), 'SAME'
    x = nn.Conv(
      self.num_features,
      kernel_size,
      strides,
      pads,
      use_bias=self.norm is None,
      dtype=self.dtype,
      kernel_init=kernel_init,
      name='conv',
    )(x)
    if self.norm is not None:
      x = self.norm(name='norm')(x)
    return self.nonlinearity(x)


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
      x in evaluation or at rate 0; else masked and divided by 1 - rate.
    """
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
    x: [N, H, W, C]; computed in float32.
    size: width of the window of channels, centred; odd.
    alpha, beta, k: as in the formula.

  Returns:
    y with the shape and dtype of `x`.
  """
  x32 = x.astype(jnp.float32)
  half = size // 2
  squares = jnp.pad(jnp.square(x32), ((0, 0),) * 3 + ((half, half),))
  num_channels = x.shape[-1]
  window_sum = sum(
    squares[..., offset : offset + num_channels] for offset in range(size)
  )
  y = x32 * (k + alpha / size * window_sum) ** -beta
  return y.astype(x.dtype)

"""Batch normalization: Algorithms 1 and 2 as pure functions, and a thin layer.

The functions work on `BatchStats`, a pair (mean, variance) of float32 arrays.
Integers are normalised as the real numbers that they are, in float32; float64
stays float64, and so do its statistics; complex numbers are a TypeError.

Which examples share statistics is one number, `norm_batch_size`, and does not
depend on how many devices hold the batch: see `BatchNorm`.

Conventions that differ between frameworks, spelled out here once:

* `statistics_decay` is the weight of the *old* value in the moving average
  (Flax calls it `momentum`; PyTorch's `momentum` is 1 - statistics_decay).
* A batch is normalised with its biased variance (divisor m, Algorithm 1); the
  moving average holds the unbiased one (divisor m - 1, Algorithm 2 line 10),
  as in PyTorch and unlike Flax.
* The moving average warms up: see `warmed_up_decay`.
"""

import math
import numbers
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from bn_inception.arrays import (
  as_real,
  on_auto_axes,
  vary_alike,
  varying_axes,
  widen,
)

Array = jax.Array
Pool = Callable[[jax.Array], jax.Array]


class BatchStats(NamedTuple):
  """Mean and variance of every normalised feature, both float32."""

  mean: Array
  var: Array


def batch_statistics(
  x: Array, axes: tuple[int, ...], axis_name: str | tuple | None = None
) -> BatchStats:
  """Mean and biased variance of a mini-batch (Algorithm 1, lines 1 and 2).

  Two passes: the variance is the mean of (x - mean)^2, so that it keeps its
  digits however far the mean is from zero (`E[x^2] - E[x]^2` was off by 29 % at
  mean = 1000 std) and is never negative. The mean itself may be off by 2e-5 of its
  value where XLA adds up less than 4,096 numbers on a CPU (docs/batch_norm.md).
  results/batch_statistics.md has the accuracy and cost of the alternatives.

  Args:
    x: real values; reduced in float32 (float64 in float64).
    axes: the axes to reduce: (0, 1, 2) for NHWC (Section 3.2: one mean and
      variance per feature map), (0,) for per-activation statistics.
    axis_name: mapped mesh axis (or axes) whose members share the statistics,
      each holding equally many examples; costs one `all_gather`. None: no
      communication.

  Returns:
    float32 `BatchStats` with the shape of the axes that were not reduced.
  """
  x = widen(x)
  mean = jnp.mean(x, axes)
  var = jnp.mean(jnp.square(x - jnp.expand_dims(mean, axes)), axes)
  is_tracked = _is_tracked(axis_name)
  if _axis_size(axis_name) == 1 and not is_tracked:
    return BatchStats(mean, var)
  to = 'invarying' if is_tracked else 'varying'
  both = jax.lax.all_gather(jnp.stack([mean, var]), axis_name, axis=1, to=to)
  return combine_statistics(BatchStats(*both))


def combine_statistics(parts: BatchStats) -> BatchStats:
  """Statistics of the union of equally large parts (Chan et al. 1979).

  mean = E[mean_i];  var = E[var_i] + E[(mean_i - mean)^2]

  Exact, unlike averages of mean and mean^2, which cancel where the mean is far
  from zero.

  Args:
    parts: float32 [parts, ...], biased variances.

  Returns:
    `BatchStats` without the leading axis.
  """
  mean = jnp.mean(parts.mean, 0)
  spread = jnp.mean(jnp.square(parts.mean - mean), 0)
  return BatchStats(mean, jnp.mean(parts.var, 0) + spread)


def normalize(
  x: Array,
  stats: BatchStats,
  scale: Array | None,
  bias: Array | None,
  epsilon: float,
) -> Array:
  """y = scale * (x - mean) / sqrt(var + epsilon) + bias (Algorithm 1, 3 and 4).

  Args:
    x: real values; computed in float32 (float64 in float64).
    stats: mean and variance, broadcastable against `x`.
    scale: gamma, or None for 1.
    bias: beta, or None for 0.
    epsilon: added to the variance.

  Returns:
    y with the shape of `x` and its dtype; float32 for integers.
  """
  x = as_real(x)
  factor = jax.lax.rsqrt(stats.var + epsilon)
  if scale is not None:
    factor = factor * scale
  # The mean is subtracted first: folding it into the bias would cancel digits.
  y = (widen(x) - stats.mean) * factor
  if bias is not None:
    y = y + bias
  return y.astype(x.dtype)


def batch_normalize(
  x: Array,
  scale: Array | None,
  bias: Array | None,
  epsilon: float,
  axes: tuple[int, ...],
  axis_name: str | tuple | None = None,
  pool: Pool | None = None,
  custom_vjp: bool = True,
) -> tuple[Array, BatchStats]:
  """Algorithm 1: x normalised by its own statistics, and the statistics.

  The gradient is Section 3's, simplified (x_hat = (x - mean) / std,
  std = sqrt(var + epsilon), E over the values that share statistics):

    dx = scale / std * (dy - E[dy] - x_hat * E[dy * x_hat])
    dscale = sum of dy * x_hat;  dbias = sum of dy

  Both averages travel in one `psum`; of the activations only x is kept for the
  backward pass. The statistics that come out have JAX's own gradient (m values
  share one): dx = (dmean + 2 (x - mean) * dvar) / m. A second derivative needs it
  as well as a loss of the statistics; where nothing does, it costs nothing.
  Reverse-mode derivatives of every order are right, and so are those in forward
  mode of a gradient (`jvp(grad(f))`, `hessian`). Forward mode of y itself (`jvp`,
  `jacfwd`, `linearize`) needs `custom_vjp=False`: JAX has none for a custom VJP.

  With a `pool` only the maxima are normalised, by the statistics of all of x.
  dy is then the gradient of the maxima, and both sums run over the maxima only; m
  stays the number of all values:
  dx = scale / std * (scattered dy - sum / m - x_hat * sum / m).

  Args:
    x: real values.
    scale, bias: gamma and beta, with the shape of the trailing axes that they
      belong to; or None.
    epsilon: added to the variance.
    axes, axis_name: see `batch_statistics`.
    pool: picks maxima of [N, H, W, C], and `scale` is not negative: y is then
      what the pool would pick of all the normalised values.
    custom_vjp: False for JAX's own derivatives, also in forward mode.

  Returns:
    (y, stats): y as `x`, or as it is pooled; stats float32 (float64 for
    float64), without the reduced axes.
  """
  x = as_real(x)
  axes = tuple(axis % x.ndim for axis in axes)
  x, scale, bias = vary_alike(x, scale, bias)
  stats = batch_statistics(x, axes, axis_name)
  normalize_own = _normalize_own if custom_vjp else _normalize_given
  y = normalize_own(x, scale, bias, stats, epsilon, axes, axis_name, pool)
  return y, stats


def _pooled(x: Array, pool: Pool | None) -> Array:
  """`pool` of [..., H, W, C], whatever comes before; x itself without one."""
  if pool is None:
    return x
  y = pool(x.reshape(-1, *x.shape[-3:]))
  return y.reshape(*x.shape[:-3], *y.shape[1:])


def _expand(stats: BatchStats, axes: tuple[int, ...]) -> BatchStats:
  """Puts back the reduced axes, with length 1."""
  return jax.tree.map(lambda s: jnp.expand_dims(s, axes), stats)


def _normalize_given(x, scale, bias, stats, epsilon, axes, axis_name, pool):
  del axis_name
  stats = _expand(stats, axes)
  return normalize(_pooled(x, pool), stats, scale, bias, epsilon)


# The gradient returned for x includes the path through `stats`, so that of `stats`
# is None.
_normalize_own = jax.custom_vjp(_normalize_given, nondiff_argnums=(4, 5, 6, 7))


def _normalize_forward(x, scale, bias, stats, *sizes):
  # Not `_normalize_own`: a jvp of the gradient passes through here.
  y = _normalize_given(x, scale, bias, stats, *sizes)
  return y, (x, scale, bias, stats)


def _normalize_backward(epsilon, axes, axis_name, pool, residuals, dy):
  x, scale, bias, stats = residuals
  mean, var = _expand(stats, axes)
  inverse_std = jax.lax.rsqrt(var + epsilon)
  pooled, scatter = jax.vjp(partial(_pooled, pool=pool), x)
  pooled_hat = (widen(pooled) - mean) * inverse_std
  own_sums = jnp.stack(
    [jnp.sum(widen(dy), axes), jnp.sum(widen(dy) * pooled_hat, axes)]
  )
  sums = _sum_over_devices(own_sums, axis_name)
  mean_dy, mean_dy_x_hat = jnp.expand_dims(
    sums / _num_values(x, axes, axis_name), [axis + 1 for axis in axes]
  )
  factor = inverse_std if scale is None else inverse_std * scale
  x_hat = (widen(x) - mean) * inverse_std
  (dy,) = scatter(dy)  # at its place in x
  dx = factor * (widen(dy) - mean_dy - x_hat * mean_dy_x_hat)

  def parameter_gradient(parameter, own_sum):
    if parameter is None:
      return None
    leading = tuple(range(own_sum.ndim - parameter.ndim))  # the groups
    return jnp.sum(own_sum, leading).astype(parameter.dtype)

  return (
    dx.astype(x.dtype),
    parameter_gradient(scale, own_sums[1]),
    parameter_gradient(bias, own_sums[0]),
    None,
  )


_normalize_own.defvjp(_normalize_forward, _normalize_backward)


def _sum_over_devices(x: Array, axis_name: Any) -> Array:
  # XLA:CPU keeps a collective of one device, and its copies, in the program.
  return x if _axis_size(axis_name) == 1 else jax.lax.psum(x, axis_name)


def _num_values(x: Array, axes: tuple[int, ...], axis_name: Any) -> int:
  """m, the values behind each statistic."""
  return _axis_size(axis_name) * math.prod(x.shape[axis] for axis in axes)


def unbiased(stats: BatchStats, num_values: int) -> BatchStats:
  """Variance with divisor m - 1 from that with divisor m (Algorithm 2, line 10).

  Args:
    stats: biased statistics of one mini-batch.
    num_values: m, the values behind each statistic: examples x height x width.

  Returns:
    `BatchStats` with var * m / (m - 1).

  Raises:
    ValueError: for m < 2, where the variance of a mini-batch is undefined.
  """
  _check_num_values(num_values)
  return BatchStats(stats.mean, stats.var * (num_values / (num_values - 1)))


def _check_num_values(num_values: int) -> None:
  if num_values < 2:
    raise ValueError(
      'batch normalization needs at least 2 values per feature to train '
      f'(Section 3: m > 1), got {num_values}'
    )


def warmed_up_decay(statistics_decay: float, num_updates: Array) -> Array:
  """The decay of update number t: min(statistics_decay, (1 + t) / (10 + t)).

  At a fixed 0.9997 the initial (0, 1) would still weigh 0.57 after 1,875
  updates, and early accuracies would measure that lag, not the network.
  """
  t = num_updates.astype(jnp.float32)
  return jnp.minimum(statistics_decay, (1.0 + t) / (10.0 + t))


def update_moving_average(
  moving: BatchStats, new: BatchStats, decay: float | Array
) -> BatchStats:
  """decay * moving + (1 - decay) * new (Section 3.1), in the dtype of `moving`."""
  return jax.tree.map(
    lambda m, n: (decay * m + (1.0 - decay) * n).astype(m.dtype), moving, new
  )


class BatchNorm(nn.Module):
  """Normalises each feature over the examples and positions that share it.

  In training y is computed from the statistics of the mini-batch (Algorithm 1)
  and the collection `batch_stats` {mean, var, num_updates} is updated, which
  must then be mutable; otherwise y uses the moving averages and is a function
  of its own input alone (Algorithm 2, line 11).

  With several groups in the batch (`norm_batch_size` below the batch size)
  each is normalised by itself, and the moving averages take the average over
  the groups of a device; the train step averages those over the devices.

  Reverse-mode derivatives of every order are right, of y and of the updated
  `batch_stats` (through which regularisers of statistics, as in DeepInversion,
  get their gradient). It runs under plain `jit`, on arrays divided over a mesh of
  Auto or Explicit axes, and under `jax.shard_map` with `check_vma` either way;
  docs/batch_norm.md has an example of each. `custom_vjp=False` is needed for forward
  mode (but not of a gradient), and for `grad` around `vmap(..., axis_name=...)` or
  `nn.vmap(..., axis_name=...)`, which ends in "unbound axis name" otherwise.

  Attributes:
    train: use and record the statistics of the mini-batch.
    norm_batch_size: how many examples share statistics; 0 = all of the global
      batch. Up to the per-device batch the groups are a reshape and need no
      communication; beyond it they extend over `axis_name`.
    axis_name: mapped mesh axis over which a group extends, `mesh.MEMBER` in
      this project; None outside of `shard_map`. `init` does not need the map:
      it computes no moving averages, and y from the statistics of its own x.
    statistics_decay: weight of the old value in the moving averages.
    epsilon: added to the variance; the paper does not state it.
    use_scale: learn gamma, one per feature, initially 1.
    use_bias: learn beta, one per feature, initially 0.
    per_activation: statistics, gamma and beta of every activation by itself
      (Section 4.2.3), not of every feature map.
    custom_vjp: the gradient of the paper, which costs less than what JAX
      derives; False for JAX's own derivatives, which also have forward mode:
      `jvp`, `jacfwd`, `linearize`. A `pool` has such an argument of its own.
  """

  train: bool
  norm_batch_size: int = 0
  axis_name: Any = None
  statistics_decay: float = 0.9997
  epsilon: float = 1e-3
  use_scale: bool = True
  use_bias: bool = True
  per_activation: bool = False
  custom_vjp: bool = True

  @nn.compact
  def __call__(self, x: Array, pool: Pool | None = None) -> Array:
    """Normalises `x` [N, ..., C] over all its axes but the last.

    (Over the first axis only, if `per_activation`.)

    Args:
      x: real values.
      pool: max pooling of [N, H, W, C] to do of the normalised values. It is
        done before, since the order of values stays when they are normalised,
        or turns around, for a negative scale: to the same bits, for less.

    Returns:
      y with the dtype of `x` (float32 for integers), and its shape but for the
      pooling; parameters and statistics are float32.

    Raises:
      TypeError: for complex numbers.
      ValueError: if the batch cannot be cut into groups of `norm_batch_size`, if
        a feature has fewer than two values to train on, or for a pool of what is
        normalised per activation.
    """
    if self.per_activation and pool is not None:
      raise ValueError('per activation, normalisation does not keep the order')
    x = as_real(x)
    shape = x.shape[1:] if self.per_activation else x.shape[-1:]
    scale = bias = None
    if self.use_scale:
      scale = self.param('scale', nn.initializers.ones, shape)
    if self.use_bias:
      bias = self.param('bias', nn.initializers.zeros, shape)
    moving_mean = self.variable('batch_stats', 'mean', jnp.zeros, shape)
    moving_var = self.variable('batch_stats', 'var', jnp.ones, shape)
    num_updates = self.variable(
      'batch_stats', 'num_updates', jnp.zeros, (), jnp.int32
    )
    moving = BatchStats(moving_mean.value, moving_var.value)
    sign = 1
    if pool is not None and scale is not None:
      sign = jnp.where(scale < 0, -1, 1)
      x, scale = x * sign.astype(x.dtype), scale * sign
    if not self.train:
      moving = BatchStats(moving.mean * sign, moving.var)
      return normalize(_pooled(x, pool), moving, scale, bias, self.epsilon)

    if x.ndim < 2:
      raise ValueError(f'expected x [N, ..., C] to train, got shape {x.shape}')
    size, axis_name = self._group(x.shape[0])
    num_values = size * _axis_size(axis_name)
    if not self.per_activation:
      num_values *= math.prod(x.shape[1:-1])
    if not self.is_initializing():
      _check_num_values(num_values)

    def normalize_groups(x, scale, bias):
      x = x.reshape(-1, size, *x.shape[1:])
      axes = (1,) if self.per_activation else tuple(range(1, x.ndim - 1))
      y, stats = batch_normalize(
        x, scale, bias, self.epsilon, axes, axis_name, pool, self.custom_vjp
      )
      return y.reshape(-1, *y.shape[2:]), stats

    y, stats = on_auto_axes(normalize_groups, x)(x, scale, bias)
    stats = BatchStats(stats.mean * sign, stats.var)
    if not self.is_initializing():
      decay = warmed_up_decay(self.statistics_decay, num_updates.value)
      group_average = jax.tree.map(
        lambda s: jnp.mean(s, 0), unbiased(stats, num_values)
      )
      new = update_moving_average(moving, group_average, decay)
      moving_mean.value, moving_var.value = new
      num_updates.value = num_updates.value + 1
    return y

  def _group(self, local: int) -> tuple[int, Any]:
    """How many of a device's examples share statistics, and over which axis."""
    size = self.norm_batch_size
    if not isinstance(size, numbers.Integral) or size < 0:
      raise ValueError(f'norm_batch_size must be 0 or a number, got {size!r}')
    if self.is_initializing():
      return local, None
    if size == 0:
      return local, self.axis_name
    if size <= local and local % size == 0:
      return size, None
    if size == local * _axis_size(self.axis_name):
      return local, self.axis_name
    raise ValueError(
      f'norm_batch_size {size} does not fit {local} examples on each of '
      f'{_axis_size(self.axis_name)} devices that share statistics'
    )


def _axis_size(axis_name: Any) -> int:
  return 1 if axis_name is None else jax.lax.axis_size(axis_name)


def _is_tracked(axis_name: Any) -> bool:
  """Whether a `shard_map` tracks what varies over the axis: `check_vma=True`."""
  return axis_name is not None and bool(
    varying_axes(jax.lax.axis_index(axis_name))
  )

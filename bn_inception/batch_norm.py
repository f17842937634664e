"""Batch normalization: Algorithms 1 and 2 as pure functions, and a thin layer.

The functions work on `BatchStats`, a pair (mean, variance) of float32 arrays.
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
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

Array = jax.Array


class BatchStats(NamedTuple):
  """Mean and variance of every normalised feature, both float32."""

  mean: Array
  var: Array


def batch_statistics(
  x: Array, axes: tuple[int, ...], axis_name: str | tuple | None = None
) -> BatchStats:
  """Mean and biased variance of a mini-batch (Algorithm 1, lines 1 and 2).

  Two passes: the variance is the mean of (x - mean)^2 about the mean of *all*
  the examples, so that it keeps its digits however far the mean is from zero
  (`E[x^2] - E[x]^2` is off by 6 % at mean = 1000 std) and is never negative.

  Args:
    x: values of any floating dtype; reduced in float32.
    axes: the axes to reduce: (0, 1, 2) for NHWC (Section 3.2: one mean and
      variance per feature map), (0,) for per-activation statistics.
    axis_name: mapped mesh axis (or axes) whose members share the statistics,
      each holding equally many examples. None: no communication.

  Returns:
    float32 `BatchStats` with the shape of the axes that were not reduced.
  """
  x = x.astype(jnp.float32)
  is_spread = _axis_size(axis_name) > 1
  mean = jnp.mean(x, axes)
  if is_spread:
    mean = jax.lax.pmean(mean, axis_name)
  var = jnp.mean(jnp.square(x - jnp.expand_dims(mean, axes)), axes)
  if is_spread:
    var = jax.lax.pmean(var, axis_name)
  return BatchStats(mean, var)


def normalize(
  x: Array,
  stats: BatchStats,
  scale: Array | None,
  bias: Array | None,
  epsilon: float,
) -> Array:
  """y = scale * (x - mean) / sqrt(var + epsilon) + bias (Algorithm 1, 3 and 4).

  Args:
    x: values of any floating dtype; computed in float32.
    stats: mean and variance, broadcastable against `x`.
    scale: gamma, or None for 1.
    bias: beta, or None for 0.
    epsilon: added to the variance.

  Returns:
    y with the shape and the dtype of `x`.
  """
  factor = jax.lax.rsqrt(stats.var + epsilon)
  if scale is not None:
    factor = factor * scale
  # The mean is subtracted first: folding it into the bias would cancel digits.
  y = (x.astype(jnp.float32) - stats.mean) * factor
  if bias is not None:
    y = y + bias
  return y.astype(x.dtype)


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
  if num_values < 2:
    raise ValueError(
      'batch normalization needs at least 2 values per feature to train '
      f'(Section 3: m > 1), got {num_values}'
    )
  return BatchStats(stats.mean, stats.var * (num_values / (num_values - 1)))


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
  """decay * moving + (1 - decay) * new, for mean and variance (Section 3.1)."""
  return jax.tree.map(lambda m, n: decay * m + (1.0 - decay) * n, moving, new)


class BatchNorm(nn.Module):
  """Normalises each feature over the examples and positions that share it.

  In training y is computed from the statistics of the mini-batch (Algorithm 1)
  and the collection `batch_stats` {mean, var, num_updates} is updated, which
  must then be mutable; otherwise y uses the moving averages and is a function
  of its own input alone (Algorithm 2, line 11).

  With several groups in the batch (`norm_batch_size` below the batch size)
  each is normalised by itself, and the moving averages take the average over
  the groups of a device; the train step averages those over the devices.

  Attributes:
    train: use and record the statistics of the mini-batch.
    norm_batch_size: how many examples share statistics; 0 = all of the global
      batch. Up to the per-device batch the groups are a reshape and need no
      communication; beyond it they are a `pmean` over `axis_name`.
    axis_name: mapped mesh axis over which a group extends, `mesh.MEMBER` in
      this project; None outside of `shard_map`.
    statistics_decay: weight of the old value in the moving averages.
    epsilon: added to the variance; the paper does not state it.
    use_scale: learn gamma, one per feature, initially 1.
    use_bias: learn beta, one per feature, initially 0.
  """

  train: bool
  norm_batch_size: int = 0
  axis_name: Any = None
  statistics_decay: float = 0.9997
  epsilon: float = 1e-3
  use_scale: bool = True
  use_bias: bool = True

  @nn.compact
  def __call__(self, x: Array) -> Array:
    """Normalises `x` [N, ..., C] over all its axes but the last.

    Returns:
      y with the shape and dtype of `x`; parameters and statistics are float32.

    Raises:
      ValueError: if the batch cannot be cut into groups of `norm_batch_size`.
    """
    num_features = x.shape[-1:]
    scale = bias = None
    if self.use_scale:
      scale = self.param('scale', nn.initializers.ones, num_features)
    if self.use_bias:
      bias = self.param('bias', nn.initializers.zeros, num_features)
    moving_mean = self.variable('batch_stats', 'mean', jnp.zeros, num_features)
    moving_var = self.variable('batch_stats', 'var', jnp.ones, num_features)
    num_updates = self.variable(
      'batch_stats', 'num_updates', jnp.zeros, (), jnp.int32
    )
    moving = BatchStats(moving_mean.value, moving_var.value)
    if not self.train:
      return normalize(x, moving, scale, bias, self.epsilon)

    grouped, axis_name = self._group(x)
    axes = tuple(range(1, grouped.ndim - 1))
    stats = batch_statistics(grouped, axes, axis_name)  # [groups, C]
    num_values = math.prod(grouped.shape[1:-1]) * _axis_size(axis_name)
    if not self.is_initializing():
      decay = warmed_up_decay(self.statistics_decay, num_updates.value)
      group_average = jax.tree.map(
        lambda s: jnp.mean(s, 0), unbiased(stats, num_values)
      )
      new = update_moving_average(moving, group_average, decay)
      moving_mean.value, moving_var.value = new
      num_updates.value = num_updates.value + 1
    per_group = jax.tree.map(lambda s: jnp.expand_dims(s, axes), stats)
    return normalize(grouped, per_group, scale, bias, self.epsilon).reshape(
      x.shape
    )

  def _group(self, x: Array) -> tuple[Array, Any]:
    """x [N, ..., C] as [groups, N / groups, ..., C], and the axes to average."""
    local, size = x.shape[0], self.norm_batch_size
    if size == 0:
      return x[None], self.axis_name
    if size <= local and local % size == 0:
      return x.reshape(-1, size, *x.shape[1:]), None
    if size == local * _axis_size(self.axis_name):
      return x[None], self.axis_name
    raise ValueError(
      f'norm_batch_size {size} does not fit {local} examples on each of '
      f'{_axis_size(self.axis_name)} devices that share statistics'
    )


def _axis_size(axis_name: Any) -> int:
  return 1 if axis_name is None else jax.lax.axis_size(axis_name)

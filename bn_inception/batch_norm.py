"""Batch normalization: Algorithm 1, its gradient, Algorithm 2, and the layer.

In the paper's order, with its gamma as `scale` and its beta as `bias`:

* `batch_normalize` is Algorithm 1: a mini-batch normalised by its own statistics.
* `input_gradient` is its gradient, from Section 3.
* `unbiased`, `update_moving_average` and `normalize` make up Algorithm 2.
* `BatchNorm` is the linen layer.

* `combine_statistics` combines the statistics of several devices.

The population statistics of Algorithm 2, lines 8 to 10, are averaged over many
mini-batches in `evaluation.passes`. This file imports nothing from the package.
docs/batch_norm.md shows how to use the layer and how other frameworks differ.
"""

import math
import numbers
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec

Array = jax.Array

# Defaults; a config sets `model.epsilon` and `model.statistics_decay`. The paper
# states neither: these are TF-Slim's values for its Inception networks.
EPSILON = 1e-3
STATISTICS_DECAY = 0.9997


class BatchStats(NamedTuple):
  """Mean and variance of each normalised feature, both float32."""

  mean: Array
  var: Array


def batch_normalize(
  x: Array,
  scale: Array | None,
  bias: Array | None,
  epsilon: float,
  axes: tuple[int, ...],
  axis_name: str | tuple | None = None,
  custom_vjp: bool = True,
) -> tuple[Array, BatchStats]:
  """Algorithm 1: normalises each feature over its m values x_1 ... x_m.

    mean  = 1/m sum x_i
    var   = 1/m sum (x_i - mean)^2
    x_hat = (x - mean) / sqrt(var + epsilon)
    y     = scale * x_hat + bias

  Args:
    x: real values; float64 is computed in float64, all else in float32.
    scale: gamma, with the shape of the trailing axes that it applies to; None
      for 1.
    bias: beta, of the same shape; None for 0.
    epsilon: added to the variance.
    axes: the axes to reduce: (0, 1, 2) for NHWC (Section 3.2: one mean and
      variance per feature map), (0,) for per-activation statistics.
    axis_name: mapped mesh axis (or axes) whose devices share the statistics;
      each holds the same number of examples. None for local statistics.
    custom_vjp: False for JAX's own derivatives, which also support forward mode
      (`jvp`, `jacfwd`, `linearize`).

  Returns:
    (y, stats): y with the shape and dtype of `x` (float32 for integers); stats
    without the reduced axes, float32 (float64 for float64).

  Raises:
    TypeError: for complex numbers.
  """
  x = as_real(x)
  axes = tuple(axis % x.ndim for axis in axes)
  x, scale, bias = vary_alike(x, scale, bias)
  stats = batch_statistics(x, axes, axis_name)
  transform = _normalize_batch if custom_vjp else _normalize_expanded
  return transform(x, scale, bias, stats, epsilon, axes, axis_name), stats


def batch_statistics(
  x: Array, axes: tuple[int, ...], axis_name: str | tuple | None = None
) -> BatchStats:
  """Mean and biased variance of a mini-batch (Algorithm 1, lines 1 and 2).

  Takes two passes: E[(x - mean)^2] is never negative, and it is accurate for a mean
  far from zero. The one-pass E[x^2] - E[x]^2 is 29 % off at mean = 1000 std
  (results/batch_statistics.md compares the alternatives). On a CPU, where XLA sums
  fewer than 4,096 numbers, the mean itself may be off by 2e-5 of its value.

  Args:
    x, axes, axis_name: see `batch_normalize`. Sharing statistics over an axis
      costs one `all_gather`.

  Returns:
    float32 `BatchStats` (float64 for float64) without the reduced axes.
  """
  x = widen(x)
  mean = jnp.mean(x, axes)
  var = jnp.mean(jnp.square(x - jnp.expand_dims(mean, axes)), axes)
  return _combine_over_devices(BatchStats(mean, var), axis_name)


def normalize(
  x: Array,
  stats: BatchStats,
  scale: Array | None,
  bias: Array | None,
  epsilon: float,
) -> Array:
  """y = scale * (x - mean) / sqrt(var + epsilon) + bias.

  With the statistics of a mini-batch, lines 3 and 4 of Algorithm 1; with population
  statistics or moving averages, line 11 of Algorithm 2.

  Args:
    x: real values; float64 is computed in float64, all else in float32.
    stats: mean and variance, broadcastable against `x`.
    scale, bias, epsilon: see `batch_normalize`.

  Returns:
    y with the shape and dtype of `x`; float32 for integers.
  """
  x = as_real(x)
  factor = jax.lax.rsqrt(stats.var + epsilon)
  if scale is not None:
    factor = factor * scale
  # Line 11 as printed folds the mean into the bias, which loses digits.
  y = (widen(x) - stats.mean) * factor
  if bias is not None:
    y = y + bias
  return y.astype(x.dtype)


def input_gradient(
  x: Array,
  dy: Array,
  scale: Array | None,
  stats: BatchStats,
  sums: Array,
  epsilon: float,
  axes: tuple[int, ...],
  axis_name: Any,
) -> Array:
  """dx of Algorithm 1. Section 3 derives it by the chain rule:

    dx_hat = dy * scale
    dvar   = sum dx_hat * (x - mean) * -1/2 (var + epsilon)^(-3/2)
    dmean  = sum dx_hat * -1 / sqrt(var + epsilon) + dvar * sum -2 (x - mean) / m
    dx     = dx_hat / sqrt(var + epsilon) + dvar * 2 (x - mean) / m + dmean / m
    dscale = sum dy * x_hat
    dbias  = sum dy

  The sum of x - mean is 0, so

    dx = scale / sqrt(var + epsilon) * (dy - dbias / m - x_hat * dscale / m)

  One `psum` carries both sums. The only activation that the backward pass keeps is
  x. On CPUs it moves 0.78 times the bytes that JAX's own gradient moves.

  Args:
    x, scale, epsilon, axes, axis_name: see `batch_normalize`.
    dy: gradient of y.
    stats: mean and variance of x.
    sums: this device's dbias and dscale, from `parameter_sums`.
  """
  mean, var = _expand(stats, axes)
  inverse_std = jax.lax.rsqrt(var + epsilon)
  x_hat = (widen(x) - mean) * inverse_std
  num_values = _axis_size(axis_name) * math.prod(x.shape[i] for i in axes)
  dbias_by_m, dscale_by_m = jnp.expand_dims(
    _sum_over_devices(sums, axis_name) / num_values,
    [axis + 1 for axis in axes],
  )
  factor = inverse_std if scale is None else inverse_std * scale
  dx = factor * (widen(dy) - dbias_by_m - x_hat * dscale_by_m)
  return dx.astype(x.dtype)


def parameter_sums(
  x: Array, dy: Array, stats: BatchStats, epsilon: float, axes: tuple[int, ...]
) -> Array:
  """(dbias, dscale) = sums of dy and of dy * x_hat over `axes`, stacked."""
  mean, var = _expand(stats, axes)
  x_hat = (widen(x) - mean) * jax.lax.rsqrt(var + epsilon)
  dy = widen(dy)
  return jnp.stack([jnp.sum(dy, axes), jnp.sum(dy * x_hat, axes)])


def parameter_gradients(
  scale: Array | None, bias: Array | None, sums: Array
) -> tuple[Array | None, Array | None]:
  """(dscale, dbias) with the shapes of the parameters, from `parameter_sums`."""

  def gradient(parameter, local_sum):
    if parameter is None:
      return None
    group_axes = tuple(range(local_sum.ndim - parameter.ndim))
    return jnp.sum(local_sum, group_axes).astype(parameter.dtype)

  dbias, dscale = sums
  return gradient(scale, dscale), gradient(bias, dbias)


def _normalize_expanded(x, scale, bias, stats, epsilon, axes, axis_name):
  del axis_name
  return normalize(x, _expand(stats, axes), scale, bias, epsilon)


_normalize_batch = jax.custom_vjp(
  _normalize_expanded, nondiff_argnums=(4, 5, 6)
)


def _forward(x, scale, bias, stats, *options):
  # The plain formula: the jvp of a gradient differentiates this function, and
  # `_normalize_batch` has no jvp.
  y = _normalize_expanded(x, scale, bias, stats, *options)
  return y, (x, scale, bias, stats)


def _backward(epsilon, axes, axis_name, residuals, dy):
  x, scale, bias, stats = residuals
  sums = parameter_sums(x, dy, stats, epsilon, axes)
  dx = input_gradient(x, dy, scale, stats, sums, epsilon, axes, axis_name)
  # dx includes the path through `stats`, so `stats` get no gradient here. If a loss
  # uses the returned statistics, JAX differentiates `batch_statistics` itself.
  return dx, *parameter_gradients(scale, bias, sums), None


_normalize_batch.defvjp(_forward, _backward)


def unbiased(stats: BatchStats, num_values: int) -> BatchStats:
  """Var[x] = m / (m - 1) * var of a mini-batch (Algorithm 2, line 10).

  Args:
    stats: biased statistics of one mini-batch.
    num_values: m, the number of values per statistic: examples x height x width.

  Raises:
    ValueError: for m < 2, where the unbiased variance is undefined.
  """
  _check_num_values(num_values)
  return BatchStats(stats.mean, stats.var * (num_values / (num_values - 1)))


def _check_num_values(num_values: int) -> None:
  if num_values < 2:
    raise ValueError(
      'batch normalization needs at least 2 values per feature to train '
      f'(Section 3: m > 1), got {num_values}'
    )


def update_moving_average(
  moving: BatchStats, new: BatchStats, decay: float | Array
) -> BatchStats:
  """decay * moving + (1 - decay) * new (Section 3.1), in the dtype of `moving`."""
  return jax.tree.map(
    lambda m, n: (decay * m + (1.0 - decay) * n).astype(m.dtype), moving, new
  )


def warmed_up_decay(statistics_decay: float, num_updates: Array) -> Array:
  """The moving averages' decay at update t: min(statistics_decay, (1 + t) / (10 + t)).

  With a fixed 0.9997 the initial (0, 1) would still weigh 0.57 after 1,875
  updates, and early accuracies would measure that lag instead of the network.
  """
  t = num_updates.astype(jnp.float32)
  return jnp.minimum(statistics_decay, (1.0 + t) / (10.0 + t))


class BatchNorm(nn.Module):
  """Normalises each feature over the examples and positions that share statistics.

  In training it applies Algorithm 1 and updates the collection `batch_stats`
  {mean, var, num_updates}, which must be mutable. In evaluation it normalises
  with the moving averages (Algorithm 2, line 11).

  Where frameworks differ, this layer:

  * takes `statistics_decay` as the weight of the *old* value, like Flax's
    `momentum`; PyTorch's `momentum` is 1 - statistics_decay;
  * normalises a batch with the biased variance (divisor m, Algorithm 1) but
    averages the unbiased one (divisor m - 1, Algorithm 2), like PyTorch and unlike
    Flax;
  * warms up the moving averages: see `warmed_up_decay`.

  A group is the `norm_batch_size` examples that share statistics; a batch may hold
  several. Each group is normalised by itself. The moving averages take the mean
  over the groups of a device, and `steps.train_step` averages them over devices.

  Reverse-mode derivatives of every order are exact, for y and for the updated
  `batch_stats`. The layer runs under plain `jit`, on arrays split over Auto or
  Explicit mesh axes, and under `jax.shard_map` with either value of `check_vma`;
  docs/batch_norm.md has an example of each.

  Attributes:
    train: use and record the statistics of the mini-batch.
    norm_batch_size: how many examples share statistics; 0 for the whole global
      batch. A group that fits on one device costs a reshape and no
      communication; a larger one spans the devices of `axis_name`.
    axis_name: mapped mesh axis whose devices share a group (`mesh.MEMBER` in this
      project); None outside `shard_map`. `init` needs no `shard_map`.
    statistics_decay: weight of the old value in the moving averages.
    epsilon: added to the variance.
    use_scale: learn gamma, one per feature, initially 1.
    use_bias: learn beta, one per feature, initially 0.
    per_activation: statistics, gamma and beta for every activation (Section
      4.2.3) instead of every feature map.
    custom_vjp: False for JAX's own derivatives, which cost more. Set it for
      forward mode (`jvp`, `jacfwd`, `linearize`) and for `grad` around
      `vmap(..., axis_name=...)`, which otherwise fails with "unbound axis name".
      `hessian` and the `jvp` of a gradient work with either.
  """

  train: bool
  norm_batch_size: int = 0
  axis_name: Any = None
  statistics_decay: float = STATISTICS_DECAY
  epsilon: float = EPSILON
  use_scale: bool = True
  use_bias: bool = True
  per_activation: bool = False
  custom_vjp: bool = True

  @nn.compact
  def __call__(self, x: Array) -> Array:
    """Normalises `x` [N, ..., C] over all axes but the last.

    With `per_activation`, over the first axis only.

    Returns:
      y with the shape and dtype of `x` (float32 for integers). Parameters and
      statistics are float32.

    Raises:
      TypeError: for complex numbers.
      ValueError: in training, if the batch does not divide into groups of
        `norm_batch_size` or a group has fewer than two values of a feature.
    """
    x = as_real(x)
    shape = x.shape[1:] if self.per_activation else x.shape[-1:]
    scale = bias = None
    if self.use_scale:
      scale = self.param('scale', nn.initializers.ones, shape)
    if self.use_bias:
      bias = self.param('bias', nn.initializers.zeros, shape)
    mean = self.variable('batch_stats', 'mean', jnp.zeros, shape)
    var = self.variable('batch_stats', 'var', jnp.ones, shape)
    num_updates = self.variable(
      'batch_stats', 'num_updates', jnp.zeros, (), jnp.int32
    )
    moving = BatchStats(mean.value, var.value)
    if not self.train:
      return self._normalize(x, moving, scale, bias)
    y, new = self._normalize_groups(x, scale, bias)
    if not self.is_initializing():
      decay = warmed_up_decay(self.statistics_decay, num_updates.value)
      mean.value, var.value = update_moving_average(moving, new, decay)
      num_updates.value = num_updates.value + 1
    return y

  def _normalize_groups(self, x, scale, bias):
    """Returns y and the unbiased statistics, averaged over this device's groups."""
    if x.ndim < 2:
      raise ValueError(f'expected x [N, ..., C] to train, got shape {x.shape}')
    size, axis_name = self._local_size_and_axis(x.shape[0])
    num_values = size * _axis_size(axis_name)
    if not self.per_activation:
      num_values *= math.prod(x.shape[1:-1])
    if not self.is_initializing():
      _check_num_values(num_values)

    def normalize_each(x, scale, bias):
      x = x.reshape(-1, size, *x.shape[1:])
      axes = (1,) if self.per_activation else tuple(range(1, x.ndim - 1))
      y, stats = self._batch_normalize(x, scale, bias, axes, axis_name)
      return y.reshape(-1, *y.shape[2:]), stats

    y, stats = on_auto_axes(normalize_each, x)(x, scale, bias)
    if self.is_initializing():
      return y, None
    stats = unbiased(stats, num_values)
    return y, jax.tree.map(lambda s: jnp.mean(s, 0), stats)

  # `kernels.pooled_batch_norm` overrides the next two.
  def _normalize(self, x, stats, scale, bias):
    return normalize(x, stats, scale, bias, self.epsilon)

  def _batch_normalize(self, x, scale, bias, axes, axis_name):
    return batch_normalize(
      x, scale, bias, self.epsilon, axes, axis_name, self.custom_vjp
    )

  def _local_size_and_axis(self, local: int) -> tuple[int, Any]:
    """A group's number of examples on one device, and the axis that it spans."""
    size = self.norm_batch_size
    if not isinstance(size, numbers.Integral) or size < 0:
      raise ValueError(f'norm_batch_size must be 0 or more, got {size!r}')
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


def combine_statistics(parts: BatchStats) -> BatchStats:
  """Statistics of the union of equally large parts (Chan et al. 1979).

    mean = E[mean_i]
    var  = E[var_i] + E[(mean_i - mean)^2]

  This is exact. Averages of x and x^2 would lose digits where the mean is far from
  zero.

  Args:
    parts: float32 [parts, ...], with biased variances.

  Returns:
    `BatchStats` without the leading axis.
  """
  mean = jnp.mean(parts.mean, 0)
  spread = jnp.mean(jnp.square(parts.mean - mean), 0)
  return BatchStats(mean, jnp.mean(parts.var, 0) + spread)


def _combine_over_devices(stats: BatchStats, axis_name: Any) -> BatchStats:
  """Statistics of the examples on all devices of a mesh axis."""
  is_tracked = _is_tracked(axis_name)
  if _axis_size(axis_name) == 1 and not is_tracked:
    return stats
  to = 'invarying' if is_tracked else 'varying'
  both = jax.lax.all_gather(jnp.stack(stats), axis_name, axis=1, to=to)
  return combine_statistics(BatchStats(*both))


def _sum_over_devices(x: Array, axis_name: Any) -> Array:
  # For one device XLA:CPU would still run the collective and its copies.
  return x if _axis_size(axis_name) == 1 else jax.lax.psum(x, axis_name)


def _axis_size(axis_name: Any) -> int:
  return 1 if axis_name is None else jax.lax.axis_size(axis_name)


def _is_tracked(axis_name: Any) -> bool:
  """Whether `shard_map` tracks varying values over the axis (`check_vma=True`)."""
  return axis_name is not None and bool(
    varying_axes(jax.lax.axis_index(axis_name))
  )


def _expand(stats: BatchStats, axes: tuple[int, ...]) -> BatchStats:
  """Puts back the reduced axes, with length 1."""
  return jax.tree.map(lambda s: jnp.expand_dims(s, axes), stats)


def as_real(x: Array) -> Array:
  """`x` as floating-point numbers: integers and booleans become float32.

  Raises:
    TypeError: for all other types, such as complex numbers.
  """
  x = jnp.asarray(x)
  if jnp.issubdtype(x.dtype, jnp.floating):
    return x
  if jnp.issubdtype(x.dtype, jnp.integer) or x.dtype == jnp.bool_:
    return x.astype(jnp.float32)
  raise TypeError(f'expected real numbers, got an array of {x.dtype}')


def widen(x: Array) -> Array:
  """`x` in the dtype of sums and statistics: float64 stays, all else is float32."""
  x = as_real(x)
  return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def varying_axes(x: Array) -> frozenset[str]:
  """Mesh axes over which the type of `x` says that it varies.

  Empty outside `jax.shard_map` and with `check_vma=False`.
  """
  return jax.typeof(x).mat.varying


def vary_alike(*arrays: Array | None) -> list[Array | None]:
  """Marks all arrays as varying over every axis that any of them varies over.

  A custom VJP needs this of its arguments, so that its gradients have one type.
  JAX then sums the gradients of replicated parameters over devices.
  """
  axes = frozenset[str]().union(
    *(varying_axes(x) for x in arrays if x is not None)
  )
  return [
    None
    if x is None
    else jax.lax.pcast(x, tuple(sorted(axes - varying_axes(x))), to='varying')
    for x in arrays
  ]


def on_auto_axes(f: Callable, x: Array) -> Callable:
  """Wraps `f` so that it sees the Explicit axes of a mesh as Auto.

  On Explicit axes (the default of `jax.make_mesh`) JAX refuses a reshape that cuts
  a split axis; on Auto axes the compiler chooses how arrays are split. Returns `f`
  itself if `x` is not split over an Explicit axis.

  Args:
    f: returns (y, others): y is split like `x` and has as many axes; the others
      are replicated.
    x: the array that `f` reshapes.
  """
  sharding = jax.typeof(x).sharding
  mesh = sharding.mesh
  explicit = tuple(
    name
    for name, kind in zip(mesh.axis_names, mesh.axis_types, strict=True)
    if kind == AxisType.Explicit
  )
  if not explicit or all(part is None for part in sharding.spec):
    return f
  replicated = NamedSharding(mesh, PartitionSpec())
  return jax.sharding.auto_axes(
    f, axes=explicit, out_sharding=(sharding, replicated)
  )

"""Max pooling of batch-normalised images, with the pooling done first.

Normalisation preserves the order of a feature map's values (it reverses it where
gamma is negative), so that pool(BN(x)) is BN of the maxima, to the same bits. A
quarter of the values is then normalised.

Measured: a training step of BN-Inception moves 57 instead of 67 MB an image on a
TPU v5e (the compiler's count); on a CPU it takes 35 MB less memory, inference 200.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from bn_inception import batch_norm
from bn_inception.batch_norm import BatchNorm, BatchStats

Array = jax.Array
Pool = Callable[[Array], Array]


class PooledBatchNorm(BatchNorm, kw_only=True):
  """pool(BN(x)) of `x` [N, H, W, C], with the parameters of `BatchNorm`.

  Only the gradients of exact ties can differ from pooling last: of a feature map
  whose gamma is 0, or of values that rounding makes equal.

  Attributes:
    pool: max pooling of [N, H, W, C].
  """

  pool: Pool

  def __post_init__(self):
    if self.per_activation:
      raise ValueError(
        'per_activation: every position has a scale of its own, so that '
        'normalisation does not keep the order of values; pool afterwards'
      )
    super().__post_init__()

  def _normalize(self, x, stats, scale, bias):
    sign = _sign(scale)
    return batch_norm.normalize(
      _pool_images(self.pool, _times(x, sign)),
      BatchStats(stats.mean * sign, stats.var),
      _times(scale, sign),
      bias,
      self.epsilon,
    )

  def _batch_normalize(self, x, scale, bias, axes, axis_name):
    # BN(x) with (scale, mean) is BN(-x) with (-scale, -mean).
    sign = _sign(scale)
    y, stats = batch_normalize_maxima(
      _times(x, sign),
      _times(scale, sign),
      bias,
      self.epsilon,
      axes,
      axis_name,
      self.pool,
      self.custom_vjp,
    )
    return y, BatchStats(stats.mean * sign, stats.var)


def pool_first(norm: Callable, pool: Pool) -> PooledBatchNorm | None:
  """The layer that computes pool(norm(x)), or None if pooling must come last.

  Args:
    norm: an unbound layer.
    pool: max pooling of [N, H, W, C].
  """
  if not isinstance(norm, BatchNorm) or norm.per_activation:
    return None
  fields = {
    field.name: getattr(norm, field.name)
    for field in dataclasses.fields(norm)
    if field.name not in ('parent', 'name')
  }
  return PooledBatchNorm(pool=pool, **fields)


def batch_normalize_maxima(
  x: Array,
  scale: Array | None,
  bias: Array | None,
  epsilon: float,
  axes: tuple[int, ...],
  axis_name: str | tuple | None,
  pool: Pool,
  custom_vjp: bool = True,
) -> tuple[Array, BatchStats]:
  """pool(batch_normalize(x, ...)) for a scale that is not negative.

  Statistics are those of all of x. In the gradient both sums run over the maxima
  only, since dy is 0 elsewhere; m stays the number of all values.

  Args:
    x: real [..., H, W, C].
    pool: max pooling of [N, H, W, C].
    scale, bias, epsilon, axes, axis_name, custom_vjp: see
      `batch_norm.batch_normalize`.

  Returns:
    (y, stats): y [..., H', W', C] as pooled, stats of x.
  """
  axes = tuple(axis % x.ndim for axis in axes)
  x, scale, bias = batch_norm.vary_alike(x, scale, bias)
  stats = batch_norm.batch_statistics(x, axes, axis_name)
  transform = _normalize_maxima if custom_vjp else _pool_and_normalize
  y = transform(x, scale, bias, stats, epsilon, axes, axis_name, pool)
  return y, stats


def _pool_and_normalize(x, scale, bias, stats, epsilon, axes, axis_name, pool):
  del axis_name
  stats = jax.tree.map(lambda s: jnp.expand_dims(s, axes), stats)
  maxima = _pool_images(pool, x)
  return batch_norm.normalize(maxima, stats, scale, bias, epsilon)


_normalize_maxima = jax.custom_vjp(
  _pool_and_normalize, nondiff_argnums=(4, 5, 6, 7)
)


def _forward(x, scale, bias, stats, *options):
  # Not `_normalize_maxima`: the jvp of a gradient passes through here.
  y = _pool_and_normalize(x, scale, bias, stats, *options)
  return y, (x, scale, bias, stats)


def _backward(epsilon, axes, axis_name, pool, residuals, dy):
  x, scale, bias, stats = residuals
  maxima, scatter = jax.vjp(lambda x: _pool_images(pool, x), x)
  sums = batch_norm.parameter_sums(maxima, dy, stats, epsilon, axes)
  (dy,) = scatter(dy)  # to the places of the maxima in x
  dx = batch_norm.input_gradient(
    x, dy, scale, stats, sums, epsilon, axes, axis_name
  )
  return dx, *batch_norm.parameter_gradients(scale, bias, sums), None


_normalize_maxima.defvjp(_forward, _backward)


def _pool_images(pool: Pool, x: Array) -> Array:
  """`pool` of [..., H, W, C] with any number of leading axes."""
  y = pool(x.reshape(-1, *x.shape[-3:]))
  return y.reshape(*x.shape[:-3], *y.shape[1:])


def _sign(scale: Array | None) -> Array | int:
  return 1 if scale is None else jnp.where(scale < 0, -1, 1)


def _times(x: Array | None, sign: Array | int) -> Array | None:
  return x if isinstance(sign, int) else x * sign.astype(x.dtype)

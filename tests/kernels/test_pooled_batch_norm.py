"""Pooling before normalisation equals pooling after it.

tests/test_batch_norm.py has it on several devices, and
tests/test_batch_norm_derivatives.py its second derivatives.
"""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bn_inception.batch_norm import BatchNorm
from bn_inception.kernels.pooled_batch_norm import PooledBatchNorm, pool_first
from bn_inception.kernels.pooling import pool3x3

POOL = partial(pool3x3, kind='max', stride=2)


@pytest.mark.parametrize(
  'fields', [{}, {'norm_batch_size': 4}, {'use_scale': False}]
)
@pytest.mark.parametrize('train', [True, False])
def test_pooling_first_equals_pooling_last(train, fields):
  rng = np.random.default_rng(0)
  x = jnp.asarray(5 + 3 * rng.normal(size=(8, 7, 6, 4)), jnp.float32)
  params = {
    # Half of them negative: there the smallest x has the largest y.
    'scale': jnp.asarray([1.0, -2.0, 0.01, -0.1]),
    'bias': jnp.asarray([0.0, 0.3, -0.5, 1.0]),
  }
  if not fields.get('use_scale', True):
    del params['scale']
    params['bias'] -= 2.0 if train else 4.0  # about the mean of the maxima
  batch_stats = {
    'mean': jnp.full(4, 4.0),
    'var': jnp.full(4, 2.0),
    'num_updates': jnp.int32(9),
  }
  plain = BatchNorm(train=train, **fields)
  dy = jnp.asarray(rng.normal(size=(8, 4, 3, 4)), jnp.float32)

  def compute(layer, pool):
    def loss_of(params, x):
      y, changed = layer.apply(
        {'params': params, 'batch_stats': batch_stats},
        x,
        mutable=['batch_stats'],
      )
      y = jnp.maximum(pool(y), 0)
      return (y * dy).sum(), (y, changed)

    (_, (y, changed)), gradients = jax.jit(
      jax.value_and_grad(loss_of, (0, 1), has_aux=True)
    )(params, x)
    return y, (changed, gradients)

  y, others = compute(pool_first(plain, POOL), lambda y: y)
  expected, expected_others = compute(plain, POOL)
  np.testing.assert_array_equal(y, expected)
  assert 0.2 < (y == 0).mean() < 0.8  # the nonlinearity acts
  for (path, a), b in zip(
    jax.tree_util.tree_leaves_with_path(others),
    jax.tree.leaves(expected_others),
    strict=True,
  ):
    tolerance = 2e-6 * np.abs(b).max()
    np.testing.assert_allclose(a, b, rtol=0, atol=tolerance, err_msg=str(path))


def test_pool_first_keeps_the_options_of_the_layer():
  plain = BatchNorm(
    train=True, norm_batch_size=4, axis_name='data', statistics_decay=0.5,
    epsilon=0.25, use_scale=False, use_bias=False, custom_vjp=False,
  )  # fmt: skip
  pooled = pool_first(plain, POOL)
  assert isinstance(pooled, PooledBatchNorm) and pooled.pool is POOL
  for name in BatchNorm.__dataclass_fields__:
    if name != 'parent':
      assert getattr(pooled, name) == getattr(plain, name), name


@pytest.mark.parametrize(
  'norm',
  [nn.LayerNorm(), nn.relu, BatchNorm(train=True, per_activation=True)],
  ids=['LayerNorm', 'function', 'per activation'],
)
def test_what_need_not_keep_the_order_is_pooled_last(norm):
  assert pool_first(norm, POOL) is None


def test_every_position_with_its_own_scale_is_refused():
  with pytest.raises(ValueError, match='per_activation'):
    PooledBatchNorm(train=True, per_activation=True, pool=POOL)

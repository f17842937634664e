"""The network is the plain one of benchmarks/linen_inception.py."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import linen_inception
from benchmarks.linen_inception import LinenInception
from bn_inception.inception import FIGURE_5, Inception

ROWS = FIGURE_5[0], FIGURE_5[2], FIGURE_5[9]  # avg and max, stride 1 and 2


@pytest.mark.slow
@pytest.mark.parametrize('stem', ['separable', 'dense', 'small'])
def test_outputs_gradients_and_statistics(stem):
  stem_stride = 1 if stem == 'small' else 2
  values = {'stem': stem, 'stem_stride': stem_stride, 'rows': ROWS}
  own = Inception(5, train=True, width=0.125, **values)
  plain = LinenInception(5, train=True, width=0.125, **values)
  rng = np.random.default_rng(0)
  size = 8 if stem == 'small' else 32
  x = jnp.asarray(rng.normal(size=(8, size, size, 3)), jnp.float32)
  index = jnp.arange(8)
  variables = jax.jit(own.init)(jax.random.key(0), x, index)
  shapes = jax.eval_shape(plain.init, jax.random.key(0), x)
  assert jax.tree.map(jnp.shape, variables['params']) == jax.tree.map(
    jnp.shape, shapes['params']
  )
  statistics = jax.tree.map(jnp.zeros_like, shapes['batch_stats'])
  weight = jnp.asarray(rng.normal(size=(8, 5)), jnp.float32)

  def compute(apply, batch_stats):
    def loss_of(params, x):
      logits, changed = apply({'params': params, 'batch_stats': batch_stats}, x)
      return (logits * weight).sum(), (logits, changed['batch_stats'])

    return jax.jit(jax.value_and_grad(loss_of, (0, 1), has_aux=True))(
      variables['params'], x
    )

  (_, (logits, own_stats)), gradients = compute(
    lambda v, x: own.apply(v, x, index, mutable=['batch_stats']),
    variables['batch_stats'],
  )
  (_, (right, stats)), expected = compute(
    lambda v, x: plain.apply(v, x, mutable=['batch_stats']), statistics
  )
  np.testing.assert_allclose(logits, right, atol=2e-5 * jnp.abs(right).max())
  for (path, a), b in zip(
    jax.tree_util.tree_leaves_with_path(gradients),
    jax.tree.leaves(expected),
    strict=True,
  ):
    atol = 1e-4 * jnp.abs(b).max()
    np.testing.assert_allclose(a, b, atol=atol, err_msg=str(path))
  # The first update is 0.9 of the way from (0, 1) in ours, 0.0003 of the way
  # from (0, 0) in linen's, whose variance is the biased one.
  for own_layer, layer in zip(
    jax.tree.leaves(own_stats, is_leaf=lambda x: 'mean' in x),
    jax.tree.leaves(stats, is_leaf=lambda x: 'mean' in x),
    strict=True,
  ):
    mean, var = own_layer['mean'] / 0.9, (own_layer['var'] - 0.1) / 0.9
    expected = {
      name: value / (1 - linen_inception.STATISTICS_DECAY)
      for name, value in layer.items()
    }
    np.testing.assert_allclose(mean, expected['mean'], rtol=1e-4, atol=1e-4)
    values = [8 * size**2 for size in (1, 2, 4, 8, 16)]  # that share statistics
    assert any(
      np.allclose(var, expected['var'] * m / (m - 1), rtol=2e-4) for m in values
    )

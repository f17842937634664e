"""Array types in batch_norm.py: real numbers, and how meshes split them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from bn_inception import batch_norm


@pytest.mark.parametrize(
  'dtype', ['uint8', 'int8', 'int32', 'uint32', 'bool', 'int64']
)
def test_integers_become_float32(dtype):
  x = np.array([0, 1, 100]).astype(dtype)
  assert batch_norm.as_real(x).dtype == jnp.float32
  np.testing.assert_array_equal(batch_norm.as_real(x), x)


@pytest.mark.parametrize('dtype', ['float16', 'bfloat16', 'float32'])
def test_floating_point_numbers_stay_and_are_widened(dtype):
  x = jnp.ones(3, dtype)
  assert batch_norm.as_real(x) is x
  assert batch_norm.widen(x).dtype == jnp.float32


def test_float64_is_not_cut():
  with jax.enable_x64(True):
    x = jnp.ones(3, 'float64')
    assert (
      batch_norm.as_real(x).dtype == batch_norm.widen(x).dtype == jnp.float64
    )


def test_what_is_no_real_number_is_refused_by_name():
  with pytest.raises(TypeError, match='complex64'):
    batch_norm.as_real(jnp.ones(2, 'complex64'))
  with pytest.raises(TypeError, match='key<fry>'):
    batch_norm.as_real(jax.random.key(0))


@pytest.mark.parametrize('check_vma', [True, False])
def test_gradients_of_what_is_shared_are_summed(check_vma):
  @jax.custom_vjp
  def product(x, y):
    return x * y

  product.defvjp(
    lambda x, y: (x * y, (x, y)), lambda xy, d: (d * xy[1], d * xy[0])
  )

  def gradient(x, y):
    def loss(x, y):
      x, none, y = batch_norm.vary_alike(x, None, y)
      assert none is None
      assert batch_norm.varying_axes(y) == ({'data'} if check_vma else set())
      own = product(x, y).sum()
      return jax.lax.psum(own, 'data') if check_vma else own

    dy = jax.grad(loss, 1)(x, y)
    return dy if check_vma else jax.lax.psum(dy, 'data')

  found = jax.shard_map(
    gradient,
    mesh=jax.make_mesh((8,), ('data',), (AxisType.Auto,)),
    in_specs=(P('data'), P()),
    out_specs=P(),
    check_vma=check_vma,
  )(jnp.arange(8.0), jnp.full(1, 2.0))
  assert found.item() == 28


@pytest.mark.parametrize('axis_type', [AxisType.Auto, AxisType.Explicit])
def test_reshapes_of_divided_axes(axis_type):
  def sums_of_pairs(x, factor):
    pairs = x.reshape(2, 4)
    return (factor * pairs).reshape(8), pairs.sum(1)

  mesh = jax.make_mesh((8,), ('data',), (axis_type,))

  @jax.jit
  def compute(x):
    return batch_norm.on_auto_axes(sums_of_pairs, x)(x, 2)

  with jax.set_mesh(mesh):
    split = NamedSharding(mesh, P('data'))
    y, sums = compute(jax.device_put(jnp.arange(8.0), split))
  assert y.sharding.is_equivalent_to(split, 1)
  np.testing.assert_array_equal(y, 2 * np.arange(8))
  np.testing.assert_array_equal(sums, [6, 22])

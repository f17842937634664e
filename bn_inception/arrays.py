"""What the layers ask of an array: real numbers, and JAX's types of meshes.

JAX tells a `shard_map` as it comes from one with `check_vma=False`, and a mesh
with Explicit axes from one with Auto axes, by the types of the arrays.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec

Array = jax.Array


def as_real(x: Array) -> Array:
  """`x` as floating-point numbers: integers and booleans become float32.

  Raises:
    TypeError: for complex numbers and anything else that is not a real number.
  """
  x = jnp.asarray(x)
  if jnp.issubdtype(x.dtype, jnp.floating):
    return x
  if jnp.issubdtype(x.dtype, jnp.integer) or x.dtype == jnp.bool_:
    return x.astype(jnp.float32)
  raise TypeError(f'expected real numbers, got an array of {x.dtype}')


def widen(x: Array) -> Array:
  """Real `x` in float32, or in float64 if it is that: what sums are done in."""
  x = as_real(x)
  return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def varying_axes(x: Array) -> frozenset[str]:
  """Mesh axes over which `x` may differ, as its type says.

  None outside of `jax.shard_map` and with `check_vma=False`.
  """
  return jax.typeof(x).mat.varying


def vary_alike(*arrays: Array | None) -> list[Array | None]:
  """The same arrays, all typed as varying over the axes that any varies over.

  For the arguments of a custom VJP, which then returns gradients of one type:
  JAX itself sums those of the parameters, which are the same on all devices.
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
  """Wraps `f` so that inside it the Explicit axes of a mesh are Auto.

  The compiler then chooses how arrays are divided. Where the axes of a mesh are
  Explicit (the default of `jax.make_mesh`), JAX refuses a reshape that cuts a
  divided axis. Where `x` is divided over no Explicit axis, this is `f` itself.

  Args:
    f: returns (y, others); y has as many axes as `x`.
    x: y is divided as it is; the others are on every device.
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

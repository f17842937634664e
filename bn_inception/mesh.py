"""The device mesh: always the axes ('group', 'member').

Batches are split over both axes; everything else is replicated. A group is the
devices that share batch statistics: `make_training_mesh` and `BatchNorm(axis_name=
MEMBER)` get the same `norm_batch_size`, and so agree on it.

* If a device's part of the batch holds one or more normalisation batches, the axis
  'member' has size 1, and `BatchNorm` cuts the part.
* If a normalisation batch is larger, the devices along 'member' hold one together.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from bn_inception.errors import UserError
from bn_inception.wording import count

GROUP, MEMBER = AXES = ('group', 'member')


def _divisors(n: int) -> list[int]:
  return [d for d in range(1, n + 1) if n % d == 0]


def make_training_mesh(
  devices: Sequence[jax.Device],
  batch_size: int,
  norm_batch_size: int,
  accumulate_steps: int = 1,
  fewest: int = 1,
) -> Mesh:
  """A mesh for training with batch statistics of `norm_batch_size` examples.

  Args:
    devices: all devices of all processes.
    batch_size: global batch.
    norm_batch_size: examples that share statistics; 0 = the whole micro-batch.
    accumulate_steps: micro-batches that the batch is cut into.
    fewest: how many examples must share statistics, at least: 2 if an example
      gives a single value, which has no variance.

  Returns:
    Mesh with axes ('group', 'member'), see the module's docstring.

  Raises:
    UserError: if the batch cannot be divided over the devices or into
      normalisation batches, or if these are too small; names sizes that work.
  """
  num_devices = len(devices)
  num_parts = num_devices * accumulate_steps
  local, remainder = divmod(batch_size, num_parts)
  if remainder or batch_size < 1:
    raise UserError(
      f'batch_size {batch_size} cannot be divided over '
      f'{count(num_devices, "device")}'
      f'{f" and {accumulate_steps} micro-batches" if accumulate_steps > 1 else ""}'
      f': use a multiple of {num_parts}, such as '
      f'--config.batch_size={max(1, round(batch_size / num_parts)) * num_parts}'
    )
  if local * num_devices < fewest:
    raise UserError(
      f'batch_size {batch_size}: batch normalization of this network needs at '
      f'least {fewest} examples that share statistics, but there is {local}: use '
      f'a larger batch, such as --config.batch_size={32 * num_parts}'
    )
  possible = _divisors(local) + [local * n for n in _divisors(num_devices)]
  possible = sorted({size for size in possible if size >= fewest})
  if norm_batch_size == 0:
    members = num_devices
  elif norm_batch_size in possible:
    members = max(1, norm_batch_size // local)
  else:
    too_few = (
      f'is below {fewest}, which batch normalization of this network needs'
    )
    misfit = (
      f'does not fit {count(local, "example")} on each of {num_devices} devices'
    )
    if num_devices == 1:
      misfit = f'does not fit {count(local, "example")} on one device'
    raise UserError(
      f'norm_batch_size {norm_batch_size} '
      f'{too_few if norm_batch_size < fewest else misfit}: use '
      '--config.norm_batch_size=0 (the whole batch) or one of '
      f'{possible}'
    )
  return _make_mesh(devices, members)


def make_evaluation_mesh(devices: Sequence[jax.Device]) -> Mesh:
  """A mesh of all devices in one group, for steps without batch statistics."""
  return _make_mesh(devices, len(devices))


def _make_mesh(devices: Sequence[jax.Device], members: int) -> Mesh:
  # Contiguous by process, as the input pipeline cuts the batch.
  devices = sorted(
    devices, key=lambda device: (device.process_index, device.id)
  )
  return Mesh(
    np.asarray(devices).reshape(-1, members),
    AXES,
    axis_types=(AxisType.Auto, AxisType.Auto),
  )


def replicated(mesh: Mesh) -> NamedSharding:
  """Every device holds the whole array."""
  return NamedSharding(mesh, PartitionSpec())


def replicate(x: jax.Array, mesh: Mesh) -> jax.Array:
  """Puts an array that all processes hold on every device of all of them."""
  return jax.jit(lambda: x, out_shardings=replicated(mesh))()


def differing_leaves(tree, mesh: Mesh) -> list[str]:
  """Names of the replicated arrays whose copies differ between devices.

  Compares copies by a sum over their bits, weighted by position.

  Args:
    tree: replicated arrays of 32-bit types.
    mesh: their devices.
  """
  if mesh.devices.size == 1:
    return []
  paths, leaves = zip(*jax.tree_util.tree_leaves_with_path(tree), strict=True)
  differs = jax.device_get(_comparison(mesh)(leaves))
  return [
    jax.tree_util.keystr(path)
    for path, is_different in zip(paths, differs, strict=True)
    if is_different
  ]


@functools.cache
def _comparison(mesh: Mesh):
  """Arrays -> whether their copies differ between devices, bool [arrays]."""

  def digest(x: jax.Array) -> jax.Array:
    bits = jax.lax.bitcast_convert_type(x, jnp.uint32).reshape(-1)
    weights = 2 * jnp.arange(bits.size, dtype=jnp.uint32) + 1
    return jnp.sum(bits * weights, dtype=jnp.uint32)

  def compare(leaves: tuple[jax.Array, ...]) -> jax.Array:
    digests = jnp.stack([digest(leaf) for leaf in leaves])
    return jax.lax.pmin(digests, AXES) != jax.lax.pmax(digests, AXES)

  return jax.jit(
    jax.shard_map(
      compare,
      mesh=mesh,
      in_specs=PartitionSpec(),
      out_specs=PartitionSpec(),
      check_vma=False,
    )
  )


def split_batch(mesh: Mesh, is_accumulating: bool = False) -> NamedSharding:
  """Divides the leading axis over all devices.

  With gradient accumulation it divides the second axis; the first counts
  micro-batches.
  """
  if is_accumulating:
    return NamedSharding(mesh, PartitionSpec(None, AXES))
  return NamedSharding(mesh, PartitionSpec(AXES))

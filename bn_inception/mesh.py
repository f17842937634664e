"""The device mesh: always the axes ('group', 'member').

Batches are split over both axes; everything else is replicated. The devices along
'member' share batch statistics; each 'group' of them has its own. A normalisation batch
is the `norm_batch_size` examples that share statistics:

* If one or more of them fit on a device, 'member' has size 1, and `BatchNorm` splits
  the device's part of the batch.
* If one is larger, the devices along 'member' hold it together.

`BatchNorm(axis_name=MEMBER)` must get the same `norm_batch_size` as
`make_training_mesh`.
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
  min_norm_batch_size: int = 1,
) -> Mesh:
  """A mesh for training with batch statistics of `norm_batch_size` examples.

  Args:
    devices: all devices of all processes.
    batch_size: global batch.
    norm_batch_size: examples that share statistics; 0 = the whole micro-batch.
    accumulate_steps: micro-batches that the batch is cut into.
    min_norm_batch_size: the least number of examples that can share statistics: 2
      if each gives a statistic one value, since one value has no variance.

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
  if local * num_devices < min_norm_batch_size:
    raise UserError(
      f'batch_size {batch_size}: batch normalization in this network needs at '
      f'least {min_norm_batch_size} examples that share statistics, but there is '
      f'{local}: use a larger batch, such as --config.batch_size={32 * num_parts}'
    )
  if norm_batch_size == 0:
    return _make_mesh(devices, num_devices)
  _check_norm_batch_size(
    norm_batch_size, local, num_devices, min_norm_batch_size
  )
  return _make_mesh(devices, max(1, norm_batch_size // local))


def _check_norm_batch_size(
  size: int, local: int, num_devices: int, minimum: int
) -> None:
  """Raises if groups of `size` do not fit `local` examples on each device."""
  possible = _divisors(local) + [local * n for n in _divisors(num_devices)]
  possible = sorted({number for number in possible if number >= minimum})
  if size in possible:
    return
  devices = (
    'one device' if num_devices == 1 else f'each of {num_devices} devices'
  )
  reason = f'does not fit {count(local, "example")} on {devices}'
  if size < minimum:
    reason = (
      f'is below {minimum}, which batch normalization in this network needs'
    )
  raise UserError(
    f'norm_batch_size {size} {reason}: use --config.norm_batch_size=0 (the whole '
    f'batch) or one of {possible}'
  )


def make_evaluation_mesh(devices: Sequence[jax.Device]) -> Mesh:
  """A mesh of all devices in one group, for steps that use no batch statistics."""
  return _make_mesh(devices, len(devices))


def _make_mesh(devices: Sequence[jax.Device], members: int) -> Mesh:
  # Each process has neighbouring devices: the input pipeline splits batches so.
  devices = sorted(
    devices, key=lambda device: (device.process_index, device.id)
  )
  return Mesh(
    np.asarray(devices).reshape(-1, members),
    AXES,
    axis_types=(AxisType.Auto, AxisType.Auto),
  )


def replicated(mesh: Mesh) -> NamedSharding:
  """The sharding of an array that every device holds whole."""
  return NamedSharding(mesh, PartitionSpec())


def replicate(x: jax.Array, mesh: Mesh) -> jax.Array:
  """Copies an array that every process holds to all devices of all processes."""
  return jax.jit(lambda: x, out_shardings=replicated(mesh))()


def differing_leaves(tree, mesh: Mesh) -> list[str]:
  """Names of the replicated arrays whose copies differ between devices.

  Compares checksums: sums of the arrays' 32-bit words, weighted by position.

  Args:
    tree: replicated arrays of 32-bit types.
    mesh: the devices that hold the copies.
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
  """Returns f(arrays) -> bool [arrays], whether copies differ between devices."""

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


def batch_sharding(mesh: Mesh, is_accumulating: bool = False) -> NamedSharding:
  """Splits the leading axis over all devices.

  With gradient accumulation the first axis counts micro-batches, and the second is
  split.
  """
  if is_accumulating:
    return NamedSharding(mesh, PartitionSpec(None, AXES))
  return NamedSharding(mesh, PartitionSpec(AXES))

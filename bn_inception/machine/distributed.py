"""Runs with several processes: joining them, and sharing values between them.

Every process runs the same code on its own devices and its own part of each batch.
Only the first one writes files and prints.
"""

import glob
import importlib.util
import json
import os
import re
import socket
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import jax
import numpy as np

# JAX has no public way to find the other processes without waiting for them.
from jax._src import clusters
from jax.experimental import multihost_utils

from bn_inception.errors import UserError
from bn_inception.machine import launchers, rendezvous

# A process without a heartbeat for this long counts as lost, and JAX ends the
# others. (CPU collectives notice at once.)
HEARTBEAT_TIMEOUT_SECONDS = 60


class AgreedError(UserError):
  """A `UserError` that all processes raise together."""


_Value = TypeVar('_Value')

_LOST = re.compile(
  'Gloo|NCCL|heartbeat|coordination service|Connection (reset|closed)|'
  'UNAVAILABLE|DEADLINE_EXCEEDED',
  re.IGNORECASE,
)


def initialize(
  coordinator_address: str | None,
  num_processes: int | None,
  process_id: int | None,
  traits: Mapping[str, str],
) -> None:
  """Joins the other processes; call it before anything is computed.

  Without arguments it joins if SLURM, Open MPI or Cloud TPU started several
  processes, and otherwise does nothing.

  Args:
    coordinator_address: HOST:PORT of the first process, the same for all. Enough if
      a scheduler provides the rest.
    num_processes: 1 runs a single process, without the other arguments.
    process_id: 0 to num_processes - 1, different for each.
    traits: name -> value of what must be the same in all processes.

  Raises:
    UserError: if arguments are missing or wrong, if other processes do not arrive,
      or if they differ in number or traits.
  """
  if num_processes == 1 and not process_id:
    return
  local_device_ids = None
  if num_processes is None and process_id is None:
    launch = launchers.find()
    if coordinator_address is None:
      found = _find_tpu() if launch is None else _find_first(launch)
      if found is None:
        return
      coordinator_address, num_processes, process_id = found
    if launch is not None:
      _, num_processes, process_id, local_device_ids, _ = launch
  _check_complete(coordinator_address, num_processes, process_id)
  if num_processes == 1:
    return
  address = rendezvous.parse_address(coordinator_address)
  _reach_without_proxy(address.host)
  traits = {'jax': jax.__version__, **traits}
  rendezvous.meet(address, rendezvous.Member(process_id, num_processes, traits))
  try:
    jax.distributed.initialize(
      str(address),
      num_processes,
      process_id,
      None if 'JAX_LOCAL_DEVICE_IDS' in os.environ else local_device_ids,
      cluster_detection_method='deactivate',
      heartbeat_timeout_seconds=HEARTBEAT_TIMEOUT_SECONDS,
      shutdown_timeout_seconds=HEARTBEAT_TIMEOUT_SECONDS,
    )
  except (jax.errors.JaxRuntimeError, ValueError) as error:
    raise UserError(
      f'JAX cannot join the other processes ({_first_line(error)}): see what '
      'they print, then restart all of them'
    ) from error


def _check_complete(
  coordinator_address: str | None,
  num_processes: int | None,
  process_id: int | None,
) -> None:
  values = {
    '--coordinator_address': coordinator_address,
    '--num_processes': num_processes,
    '--process_id': process_id,
  }
  missing = [name for name, value in values.items() if value is None]
  if missing:
    raise UserError(
      f'{" and ".join(missing)} must be given too: neither SLURM, Open MPI, MPICH '
      'nor torchrun provides them'
    )
  if num_processes < 1:
    raise UserError(f'--num_processes is {num_processes}: give at least 1')
  if not 0 <= process_id < num_processes:
    raise UserError(
      f'--process_id is {process_id} with --num_processes={num_processes}: give '
      'at least 0 and less than --num_processes'
    )


_Found = tuple[str | None, int | None, int | None]


def _find_first(launch: launchers.Launch) -> _Found:
  """Asks JAX where a scheduler started the first process."""
  if launch.jax_name is None:
    raise UserError(
      f'{launch.name} started {launch.num_processes} processes, but does not say '
      'where the first one is: give all of them --coordinator_address=HOST:PORT '
      f'with the host of the first one, or {launchers.ALONE}'
    )
  return _ask_jax(launch.name, launch.jax_name)


def _find_tpu() -> _Found | None:
  """The processes on the hosts of a TPU; None without a TPU or other hosts."""
  has_tpu = glob.glob('/dev/accel[0-9]*') or glob.glob('/dev/vfio/[0-9]*')
  if not has_tpu or importlib.util.find_spec('libtpu') is None:
    return None
  print('asking Cloud TPU for the hosts of this TPU ...', flush=True)
  found = _ask_jax('Cloud TPU', None)
  return None if found[0] is None else found


def _ask_jax(name: str, jax_name: str | None) -> _Found:
  try:
    *found, _ = clusters.ClusterEnv.auto_detect_unset_distributed_params(
      None, None, None, [], jax_name, rendezvous.TIMEOUT_SECONDS
    )
  except (ValueError, TypeError, LookupError, RuntimeError, OSError) as error:
    raise UserError(
      f'what {name} says about the processes cannot be read '
      f'({type(error).__name__}: {_first_line(error)}): give '
      '--coordinator_address, --num_processes and --process_id, or '
      f'{launchers.ALONE}'
    ) from error
  return tuple(found)


def _reach_without_proxy(host: str) -> None:
  """Has gRPC, which JAX uses to join the others, connect to a host directly.

  A cluster's web proxy does not know its nodes.
  """
  # gRPC ignores no_proxy if this variable is set.
  given = os.environ.get('no_grpc_proxy') or os.environ.get('no_proxy')
  os.environ['no_grpc_proxy'] = f'{given},{host}' if given else host
  jax.config.update('jax_check_proxy_envs', False)  # it warns about any


def is_first() -> bool:
  """Whether this process writes files and prints."""
  return jax.process_index() == 0


def from_first(make: Callable[[], _Value]) -> _Value:
  """Calls `make` in the first process, and returns its JSON value in all of them.

  Raises:
    AgreedError: in all processes, if `make` raises a `UserError`.
  """
  if jax.process_count() == 1:
    return make()
  value = message = error = None
  if is_first():
    try:
      value = make()
    except UserError as caught:
      error, message = caught, str(caught)
  value, message = _broadcast([value, message])
  if message is not None:
    raise AgreedError(message) from error
  return value


def _broadcast(value):
  """Sends a JSON value of the first process to all."""
  text = json.dumps(value).encode() if is_first() else b''
  size = int(multihost_utils.broadcast_one_to_all(np.int32(len(text))))
  # Padded to powers of two, so that few sizes are compiled.
  padded = np.zeros(1 << size.bit_length(), np.uint8)
  padded[: len(text)] = np.frombuffer(text, np.uint8)
  received = multihost_utils.broadcast_one_to_all(padded)
  return json.loads(np.asarray(received, np.uint8)[:size].tobytes())


def gather(values: Sequence[int]) -> list[int]:
  """The integers of all processes, in the order of the processes."""
  if jax.process_count() == 1:
    return list(values)
  count = np.int32(len(values))
  counts = multihost_utils.process_allgather(count)
  if not counts.any():
    return []
  padded = np.zeros(1 << int(counts.max()).bit_length(), np.int32)
  padded[: len(values)] = values
  rows = multihost_utils.process_allgather(padded)
  return [
    int(value) for row, n in zip(rows, counts, strict=True) for value in row[:n]
  ]


def processes_on_this_host() -> int:
  """The number of this run's processes on this host, which share its memory."""
  name = zlib.crc32(socket.gethostname().encode()) >> 1  # an int32
  return gather([name]).count(name)


def is_loss_of_process(error: Exception) -> bool:
  """Whether an error means that another process of this run is gone."""
  return jax.process_count() > 1 and bool(_LOST.search(str(error)))


def _first_line(error: Exception) -> str:
  return str(error).partition('\n')[0][:200]


def describe_loss(error: Exception) -> str:
  """One line for an error of `is_loss_of_process`."""
  return (
    f'another process of this run failed or was killed ({_first_line(error)}): '
    'see what it printed; the same command in all processes resumes the run'
  )

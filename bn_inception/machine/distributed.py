"""Several processes that run one program: who they are, what they agree on.

Every process runs the same code on its own devices and its own part of each
batch. The first one alone writes files and prints.
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

# JAX has no public way to learn, before it waits, whom it would wait for.
from jax._src import clusters
from jax.experimental import multihost_utils

from bn_inception.errors import UserError
from bn_inception.machine import launchers, rendezvous

# After this long without a sign of life a process counts as lost, and JAX ends
# the others. (Collectives on CPUs notice at once.)
HEARTBEAT_TIMEOUT_SECONDS = 60


class AgreedError(UserError):
  """A `UserError` that all processes raise."""


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
  """Joins the other processes, before anything is computed.

  Without arguments it does so where SLURM, Open MPI or Cloud TPU started
  several processes, and nothing anywhere else.

  Args:
    coordinator_address: HOST:PORT of the first process, for all the same. It
      alone is enough where a scheduler says the rest.
    num_processes: of the run. 1 is enough for a process that is to run alone.
    process_id: 0 to num_processes - 1, for each another.
    traits: name -> value of what has to be the same in all processes.

  Raises:
    UserError: if some are missing or wrong, if the others do not come, or if
      they differ in what they are told or in their traits.
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
      'they print, and start all of them again'
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
      f'{" and ".join(missing)} must be given too, as none of SLURM, Open MPI, '
      'MPICH and torchrun says so'
    )
  if num_processes < 1 or not 0 <= process_id < num_processes:
    raise UserError(
      f'--process_id is {process_id} of --num_processes={num_processes}: it '
      'must be at least 0 and less than their number'
    )


_Found = tuple[str | None, int | None, int | None]


def _find_first(launch: launchers.Launch) -> _Found:
  """Where JAX says that a scheduler started the first process."""
  if launch.jax_name is None:
    raise UserError(
      f'{launch.name} started {launch.num_processes} processes, but does not '
      'tell where the first one is: give all --coordinator_address=HOST:PORT, '
      f'HOST being where the first one runs; or {launchers.ALONE}'
    )
  return _ask_jax(launch.name, launch.jax_name)


def _find_tpu() -> _Found | None:
  """The processes on the hosts of a TPU; None: there is none, or one host."""
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
      f'what {name} says of the processes cannot be read '
      f'({type(error).__name__}: {_first_line(error)}): give '
      '--coordinator_address, --num_processes and --process_id, or '
      f'{launchers.ALONE}'
    ) from error
  return tuple(found)


def _reach_without_proxy(host: str) -> None:
  """Has gRPC, with which JAX joins the others, call a host itself.

  A proxy for the web, as clusters have one, does not know their nodes.
  """
  # gRPC does not look at no_proxy where this variable is set.
  given = os.environ.get('no_grpc_proxy') or os.environ.get('no_proxy')
  os.environ['no_grpc_proxy'] = f'{given},{host}' if given else host
  jax.config.update('jax_check_proxy_envs', False)  # it warns of any


def is_first() -> bool:
  """Whether this process is the one that writes and prints."""
  return jax.process_index() == 0


def from_first(make: Callable[[], _Value]) -> _Value:
  """What the first process makes, for all of them; others do not call `make`.

  Args:
    make: returns what JSON can hold.

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
  """JSON of the first process to all."""
  text = json.dumps(value).encode() if is_first() else b''
  size = int(multihost_utils.broadcast_one_to_all(np.int32(len(text))))
  # Powers of two, so that few sizes are compiled.
  padded = np.zeros(1 << size.bit_length(), np.uint8)
  padded[: len(text)] = np.frombuffer(text, np.uint8)
  received = multihost_utils.broadcast_one_to_all(padded)
  return json.loads(np.asarray(received, np.uint8)[:size].tobytes())


def gather(values: Sequence[int]) -> list[int]:
  """The integers of all processes, in their order."""
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
  """How many of this run's processes share the memory of this one's machine."""
  name = zlib.crc32(socket.gethostname().encode()) >> 1  # an int32
  return gather([name]).count(name)


def is_loss_of_process(error: Exception) -> bool:
  """Whether an error says that another process of this run is gone."""
  return jax.process_count() > 1 and bool(_LOST.search(str(error)))


def _first_line(error: Exception) -> str:
  return str(error).partition('\n')[0][:200]


def describe_loss(error: Exception) -> str:
  """One line for an error of `is_loss_of_process`."""
  return (
    f'another process of this run failed or was killed ({_first_line(error)}): '
    'see what it printed; the same command in all processes resumes the run'
  )

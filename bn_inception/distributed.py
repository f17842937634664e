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
from collections.abc import Callable, Sequence
from typing import TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from bn_inception.errors import UserError

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
) -> None:
  """Joins the other processes, before anything is computed.

  Without arguments it does so where SLURM, Open MPI or Cloud TPU started
  several processes, and nothing anywhere else.

  Args:
    coordinator_address: HOST:PORT of the first process, for all the same.
    num_processes: of the run.
    process_id: 0 to num_processes - 1, for each another.

  Raises:
    UserError: if only some are given, or if the others cannot be reached.
  """
  given = (coordinator_address, num_processes, process_id)
  if all(value is None for value in given):
    if not _is_started_by_cluster():
      return
  elif any(value is None for value in given):
    raise UserError(
      'give --coordinator_address, --num_processes and --process_id together, '
      'or none of them'
    )
  elif not 0 <= process_id < num_processes:
    raise UserError(
      f'--process_id must be between 0 and {num_processes - 1}, got {process_id}'
    )
  elif num_processes == 1:
    return
  who = 'process' if process_id is None else f'process {process_id}'
  at = f' at {coordinator_address}' if coordinator_address else ''
  print(f'{who}: waiting for the others{at} ...', flush=True)
  try:
    jax.distributed.initialize(
      coordinator_address,
      num_processes,
      process_id,
      cluster_detection_method='deactivate' if coordinator_address else None,
      heartbeat_timeout_seconds=HEARTBEAT_TIMEOUT_SECONDS,
      shutdown_timeout_seconds=HEARTBEAT_TIMEOUT_SECONDS,
    )
  except (jax.errors.JaxRuntimeError, ValueError) as error:
    raise UserError(
      f'the other processes cannot be reached ({_first_line(error)}): check '
      '--coordinator_address, and that all of them were started'
    ) from error


def _is_started_by_cluster() -> bool:
  """Whether a scheduler started several processes, whom JAX finds by itself."""
  environment = os.environ
  if 'SLURM_STEP_NODELIST' in environment:  # absent outside srun
    return int(environment['SLURM_NTASKS']) > 1
  if 'OMPI_COMM_WORLD_SIZE' in environment:
    return int(environment['OMPI_COMM_WORLD_SIZE']) > 1
  has_tpu = glob.glob('/dev/accel[0-9]*') or glob.glob('/dev/vfio/[0-9]*')
  return bool(has_tpu) and importlib.util.find_spec('libtpu') is not None


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

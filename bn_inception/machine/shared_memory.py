"""Checks that the batches of worker processes fit into shared memory.

Linux lets files in it grow, and kills a process by SIGBUS when it writes and no page
is left. Containers often have 64 MB, room for thirteen batches of 32 photographs.
"""

import mmap
import os
from collections.abc import Sequence
from typing import NamedTuple

from bn_inception.errors import UserError

PLACE = '/dev/shm'
# Smaller arrays go through a pipe, in half the time and without an open file.
MIN_BYTES = 2**16
# Batches handed over: the one ahead, and those that the devices still use.
_NUM_IN_USE = 5
_SEMAPHORE_BYTES = 2**17  # for a worker's queues, a page each


class Load(NamedTuple):
  """What a pipeline produces.

  Attributes:
    batch_bytes: bytes of the images in this process's part of a batch.
    num_batches: number of batches in all.
  """

  batch_bytes: int
  num_batches: int


def fitting_workers(
  num_workers: int,
  prefetch: int,
  loads: Sequence[Load],
  num_processes: int = 1,
) -> int:
  """The largest number of worker processes that fit now; 0: use threads.

  Args:
    num_workers: wanted number of workers.
    prefetch: batches that each worker prepares ahead.
    loads: the pipelines that exist at the same time.
    num_processes: processes that share the memory, with as many workers each.
  """
  free = _free_bytes()
  while num_workers and (
    num_processes * needed_bytes(num_workers, prefetch, loads) > free
  ):
    num_workers -= 1
  return num_workers


def check(
  num_workers: int,
  prefetch: int,
  loads: Sequence[Load],
  num_processes: int = 1,
) -> None:
  """Raises UserError if fewer workers fit; arguments as for `fitting_workers`."""
  fitting = fitting_workers(num_workers, prefetch, loads, num_processes)
  if fitting == num_workers:
    return
  needed = num_processes * needed_bytes(num_workers, prefetch, loads)
  megabytes = -(-needed // 2**20)
  fewer = '--config.data.num_workers=0, which uses threads (no worker fits)'
  if fitting:
    fewer = f'--config.data.num_workers={fitting} or fewer (0 uses threads)'
  raise UserError(
    f'{PLACE} has {_free_bytes() // 2**20:,} MB free, but the batches of '
    f'{num_workers} worker processes may need {megabytes:,} MB: start the '
    f'container with `docker run --shm-size={megabytes}m`, or set {fewer}'
  )


def needed_bytes(num_workers: int, prefetch: int, loads: Sequence[Load]) -> int:
  """The most memory that the batches can take.

  In Grain 0.2.18 a worker has `prefetch` batches in its queue and one more that
  waits for room; a thread of the parent holds as many for each worker.
  """
  most = num_workers * 2 * (prefetch + 1) + _NUM_IN_USE
  needed = num_workers * len(loads) * _SEMAPHORE_BYTES
  for load in loads:
    if load.batch_bytes >= MIN_BYTES:
      pages = -(-load.batch_bytes // mmap.PAGESIZE)
      needed += pages * mmap.PAGESIZE * min(most, load.num_batches)
  return needed


def _free_bytes() -> int:
  try:
    found = os.statvfs(PLACE)
  except OSError:  # the system has it elsewhere
    return 2**63
  if found.f_blocks == 0:  # unlimited, or unknown
    return 2**63
  return found.f_bavail * found.f_frsize

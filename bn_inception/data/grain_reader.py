"""Reads whole batches in order with Grain, in threads or worker processes."""

import os
import pickle
import re
import signal
import tempfile
import threading
import time
import weakref
from collections.abc import Iterator, Sequence

import grain
import numpy as np

from bn_inception.errors import UserError, writing
from bn_inception.machine import interruption, shared_memory

Batch = dict[str, np.ndarray]
# Grain's message about a worker process that ended early.
_LOST_WORKER = re.compile(r'Worker process was .* with exit code (-?\d+)')


def read(
  batches: Sequence[Batch],
  num_workers: int,
  prefetch: int,
  load: shared_memory.Load,
  stack: int = 1,
) -> Iterator[Batch]:
  """Iterates over batches, computed ahead in parallel.

  Args:
    batches: computes a batch when indexed; picklable.
    num_workers: worker processes; 0 uses threads of this process.
    prefetch: batches to compute ahead, in each worker.
    load: the shared memory that the batches take.
    stack: if above 1, this many batches are stacked along a new first axis.

  Raises:
    UserError: if there is too little shared memory for the workers.
  """
  shared_memory.check(num_workers, prefetch, [load])
  # One thread a core over all processes; twice as many were a tenth slower.
  num_threads = min(max(1, _num_cores() // max(1, num_workers)), 16)
  # Without /proc, a worker that is killed as it starts can block this process.
  if num_workers and os.path.exists('/proc/self/fd'):
    batches = _PickledToFile(batches)
  dataset = grain.MapDataset.source(batches)
  if stack > 1:
    dataset = dataset.batch(stack)
  dataset = dataset.to_iter_dataset(
    grain.ReadOptions(
      num_threads=num_threads, prefetch_buffer_size=max(num_threads, prefetch)
    )
  )
  if num_workers:
    dataset = grain.experimental.WithOptionsIterDataset(
      dataset,
      grain.experimental.DatasetOptions(min_shm_size=shared_memory.MIN_BYTES),
    )
    dataset = dataset.mp_prefetch(
      grain.MultiprocessingOptions(
        num_workers=num_workers, per_worker_buffer_size=prefetch
      ),
      worker_init_fn=_start_worker,
    )
  with interruption.shielding_children():
    return iter(dataset)


def next_batch(batches: Iterator[Batch]) -> Batch | None:
  """The next batch, or None at the end.

  Raises:
    UserError: if a worker process was killed or crashed. No batch is skipped or
      comes out of order.
  """
  try:
    return next(batches, None)
  except RuntimeError as error:
    lost = _LOST_WORKER.search(str(error))
    if lost is None:
      raise
    raise _explain_lost_worker(int(lost[1])) from error


def _explain_lost_worker(status: int) -> UserError:
  cause, remedy = f'ended with exit status {status}', ''
  if status < 0:
    cause = f'was killed by {signal.Signals(-status).name}'
  if status == -signal.SIGKILL:
    cause += ', as Linux does when memory runs out'
  if status == -signal.SIGBUS:
    cause += f', as Linux does when {shared_memory.PLACE} is full'
    remedy = ', or give a container more with `docker run --shm-size=...`'
  return UserError(
    f'a worker process of the input pipeline {cause}: run the same command again; '
    f'if it fails again, use fewer --config.data.num_workers{remedy}'
  )


def _num_cores() -> int:
  """The number of cores that this process may use."""
  if hasattr(os, 'sched_getaffinity'):
    return len(os.sched_getaffinity(0))
  return os.cpu_count()


def _start_worker(worker_index: int, worker_count: int) -> None:
  """Has a worker process end when its parent says so or dies.

  It ignores signals to the process group: the parent saves before it stops.
  """
  del worker_index, worker_count
  for number in interruption.SIGNALS:
    signal.signal(number, signal.SIG_IGN)
  parent = os.getppid()

  def watch():
    while os.getppid() == parent:
      time.sleep(1.0)
    os._exit(1)

  threading.Thread(target=watch, daemon=True).start()


class _PickledToFile:
  """Batches that worker processes unpickle from a file of this process.

  A new process gets its arguments through a pipe. If it is killed before it has read
  them and they exceed the pipe's 64 KiB, which sources can, the parent would wait
  forever, as it holds both ends.
  """

  def __init__(self, batches: Sequence[Batch]):
    self._batches = batches
    with writing(
      tempfile.gettempdir(), 'free up space, or set TMPDIR to another folder'
    ):
      self._file = (
        tempfile.TemporaryFile()
      )  # has no name that could be left over
      weakref.finalize(self, self._file.close)
      pickle.dump(batches, self._file, pickle.HIGHEST_PROTOCOL)
      self._file.flush()

  def __len__(self) -> int:
    return len(self._batches)

  def __getitem__(self, step: int) -> Batch:
    return self._batches[step]

  def __reduce__(self):
    path = f'/proc/{os.getpid()}/fd/{self._file.fileno()}'
    return _unpickle, (path,)


def _unpickle(path: str) -> Sequence[Batch]:
  with open(path, 'rb') as file:
    return pickle.load(file)

"""Worker processes: the same batches, and what happens when one is lost."""

import dataclasses
import multiprocessing
import os
import pathlib
import pickle
import signal
import subprocess
import sys
import threading
import time

import jax
import numpy as np
import pytest

from bn_inception import mesh
from bn_inception.data.input_pipeline import DeviceBatches, training_batches
from bn_inception.data.sources import make_source
from bn_inception.errors import UserError
from tests.data.test_input_pipeline import OPTIONS, assert_same_batches


@pytest.fixture(scope='module')
def digits():
  return make_source('digits', 'train')


@pytest.mark.parametrize('num_workers', [1, 2])
def test_worker_processes_give_the_same_batches(digits, num_workers):
  options = dataclasses.replace(OPTIONS, num_workers=num_workers)
  assert_same_batches(
    training_batches(digits, OPTIONS, 32, 5, 7, 12),
    training_batches(digits, options, 32, 5, 7, 12),
  )


PROGRAM_WITH_WORKERS = """
import sys
import absl.flags
from tests.data.test_input_pipeline import OPTIONS, dataclasses, make_source
from tests.data.test_input_pipeline import training_batches
if __name__ == '__main__':
  absl.flags.FLAGS(['program'])
  options = dataclasses.replace(OPTIONS, num_workers=2)
  batches = training_batches(make_source('digits', 'train'), options, 8, 0, 0, 999)
  next(batches)
  print('ready', flush=True)
  sys.stdin.read()
"""


def children_of(pid):
  """Process ids of the children, from /proc."""
  children = []
  for path in pathlib.Path('/proc').glob('[0-9]*/stat'):
    try:
      fields = path.read_text().rpartition(')')[2].split()
    except OSError:  # it has ended meanwhile
      continue
    if int(fields[1]) == pid:
      children.append(int(path.parent.name))
  return children


def test_a_lost_worker_is_an_error_and_no_batch_is_skipped(digits):
  options = dataclasses.replace(OPTIONS, num_workers=2)
  expected = training_batches(digits, OPTIONS, 32, 5, 0, 100)
  devices = mesh.make_evaluation_mesh(jax.devices()[:1])
  batches = DeviceBatches(
    training_batches(digits, options, 32, 5, 0, 100), devices
  )
  received = [next(batches)]
  workers = multiprocessing.active_children()
  assert len(workers) == 2
  workers[0].kill()
  with pytest.raises(UserError, match='worker .* SIGKILL.*num_workers'):
    received.extend(batches)
  # Batches prepared before the loss still come, in order.
  assert len(received) < 100
  for batch in received:
    np.testing.assert_array_equal(batch['index'], next(expected)['index'])
  assert not multiprocessing.active_children()


@pytest.mark.skipif(not os.path.exists('/proc/self/stat'), reason='needs /proc')
def test_a_worker_killed_as_it_starts_is_an_error(digits):
  # Of 96 KiB, where the pipe to a new process holds 64.
  assert len(pickle.dumps(digits)) > 2**16
  options = dataclasses.replace(OPTIONS, num_workers=1)

  def kill_new_worker():
    while True:
      for pid in children_of(os.getpid()):
        command = pathlib.Path(f'/proc/{pid}/cmdline').read_text()
        if 'spawn_main' in command:
          os.kill(pid, signal.SIGKILL)
          return
      time.sleep(0.001)

  thread = threading.Thread(target=kill_new_worker, daemon=True)
  thread.start()
  with pytest.raises(UserError, match='worker .* SIGKILL'):
    DeviceBatches(
      training_batches(digits, options, 32, 5, 0, 100),
      mesh.make_evaluation_mesh(jax.devices()[:1]),
    )
  thread.join()
  assert not multiprocessing.active_children()


@pytest.mark.skipif(not os.path.exists('/proc/self/stat'), reason='needs /proc')
def test_workers_end_with_a_parent_that_was_killed(tmp_path):
  program = tmp_path / 'program.py'
  program.write_text(PROGRAM_WITH_WORKERS)
  tests = pathlib.Path(__file__).parents[1]
  with subprocess.Popen(
    [sys.executable, str(program)],
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
    env={**os.environ, 'PYTHONPATH': str(tests.parent)},
  ) as process:
    assert process.stdout.readline() == b'ready\n'
    workers = children_of(process.pid)
    assert len(workers) >= 2
    process.kill()
  deadline = time.monotonic() + 30
  while alive := [pid for pid in workers if os.path.exists(f'/proc/{pid}/exe')]:
    assert time.monotonic() < deadline, alive
    time.sleep(0.1)

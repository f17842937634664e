"""Shared memory: how much batches need, and errors if there is too little."""

import os
import pathlib
import subprocess
import sys
from unittest import mock

import pytest

from bn_inception.errors import UserError
from bn_inception.machine import shared_memory
from bn_inception.machine.shared_memory import Load

IMAGENET = Load(32 * 224 * 224 * 3, 10**6)
MB = 2**20


@pytest.fixture
def free(monkeypatch):
  """A function that sets the free bytes."""

  def set_free(num_bytes):
    monkeypatch.setattr(shared_memory, '_free_bytes', lambda: num_bytes)

  return set_free


def test_dockers_default_is_too_small_for_the_preset(free):
  free(64 * MB)
  with pytest.raises(UserError) as caught:
    shared_memory.check(8, 4, [IMAGENET])
  # 8 workers with 2 x 5 batches each, and 5 in use, of 4.6 MB.
  needed = -(-(85 * IMAGENET.batch_bytes + 8 * 2**17) // MB)
  assert needed == 392
  for part in (
    '/dev/shm has 64 MB',
    '8 worker',
    '--shm-size=392m',
    'workers=0, which uses threads',
  ):
    assert part in str(caught.value)
  free(needed * MB)
  shared_memory.check(8, 4, [IMAGENET])
  with pytest.raises(
    UserError, match='--shm-size=783m.*num_workers=3 or fewer'
  ):
    shared_memory.check(8, 4, [IMAGENET, IMAGENET])
  with pytest.raises(UserError, match='--shm-size=783m'):
    shared_memory.check(8, 4, [IMAGENET], num_processes=2)


def test_memory_without_a_limit_is_enough(monkeypatch):
  said = mock.Mock(f_blocks=0, f_bavail=0, f_frsize=4096)  # tmpfs with size=0
  monkeypatch.setattr(os, 'statvfs', lambda path: said)
  shared_memory.check(8, 4, [IMAGENET])


def test_as_many_workers_as_fit(free):
  free(200 * MB)
  assert shared_memory.fitting_workers(8, 4, [IMAGENET]) == 3
  assert shared_memory.fitting_workers(2, 4, [IMAGENET]) == 2
  assert shared_memory.fitting_workers(8, 1, [IMAGENET]) == 8
  free(4 * MB)
  assert shared_memory.fitting_workers(8, 4, [IMAGENET]) == 0
  shared_memory.check(0, 4, [IMAGENET])  # threads


def test_small_batches_and_few_need_little(free):
  free(2 * MB)
  shared_memory.check(8, 4, [Load(2**16 - 1, 10**6)])  # through a pipe
  free(30 * MB)
  shared_memory.check(8, 4, [IMAGENET._replace(num_batches=6)])


PROGRAM = """
import dataclasses, sys, time
import absl.flags, jax
from bn_inception import mesh
from bn_inception.data import input_pipeline
from bn_inception.machine import shared_memory
from bn_inception.errors import UserError
from tests.data.test_input_pipeline import OPTIONS, make_source
if __name__ == '__main__':
  absl.flags.FLAGS(['program'])
  if sys.argv[1] == 'unchecked':
    shared_memory.check = lambda *arguments: None
  options = dataclasses.replace(
    OPTIONS, image_size=64, mirror=False, num_workers=2, prefetch=1
  )
  batches = None
  try:
    batches = input_pipeline.DeviceBatches(
      input_pipeline.training_batches(
        make_source('synthetic', 'train'), options, 16, 0, 0, 80
      ),
      mesh.make_evaluation_mesh(jax.devices()[:1]),
    )
    kept = [next(batches)]
    time.sleep(4)
    for batch in batches:
      kept = [*kept[-2:], batch]
    print('done')
  except UserError as error:
    print(error)
"""
BATCH_KB = 16 * 64 * 64 * 3 // 1024


def run_with_shared_memory(tmp_path, kilobytes, how):
  """What the program prints, and what it leaves in /dev/shm."""
  path = tmp_path / 'program.py'
  path.write_text(PROGRAM)
  script = (
    f'mount -t tmpfs -o size={kilobytes}k tmpfs /dev/shm || exit 77\n'
    f'{sys.executable} {path} {how} || exit\nls /dev/shm'
  )
  tests = pathlib.Path(__file__).parents[1]
  try:
    done = subprocess.run(
      ['unshare', '-m', 'bash', '-c', script],
      env={
        **os.environ, 'PYTHONPATH': str(tests.parent),
        'JAX_PLATFORMS': 'cpu', 'PYTHONWARNINGS': 'ignore',
      },
      capture_output=True,
      text=True,
    )  # fmt: skip
  except OSError:
    pytest.skip('needs the program unshare')
  if done.returncode in (1, 77) and 'permi' in done.stderr.lower():
    pytest.skip('a file system cannot be mounted here')
  assert done.returncode == 0, done.stderr
  return done.stdout.splitlines()


@pytest.mark.slow
def test_no_worker_is_killed_if_the_check_passes(tmp_path):
  enough = 13 * BATCH_KB + 2 * 128
  assert run_with_shared_memory(tmp_path, enough, 'checked') == ['done']
  (line,) = run_with_shared_memory(tmp_path, enough - 4, 'checked')
  assert 'num_workers=1' in line


@pytest.mark.slow
def test_a_worker_killed_for_lack_of_memory_is_explained(tmp_path):
  (line,) = run_with_shared_memory(tmp_path, 5 * BATCH_KB, 'unchecked')
  assert 'SIGBUS' in line and '/dev/shm is full' in line
  assert '--shm-size' in line and 'checkpoint' not in line

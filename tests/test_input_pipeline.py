"""Order, batches, padding: what they promise, on real digits."""

import dataclasses
import itertools
import os
import pathlib
import subprocess
import sys
import time

import cv2
import jax
import numpy as np
import pytest

from bn_inception import input_pipeline, mesh
from bn_inception.errors import UserError
from bn_inception.input_pipeline import (
  InputOptions,
  epoch_order,
  evaluation_batches,
  training_batches,
)
from bn_inception.sources import make_source

OPTIONS = InputOptions(
  image_size=8,
  shuffle='within_shards',
  num_shards=16,
  train_crop='whole',
  eval_crop='whole',
  mirror=True,
  num_workers=0,
  prefetch=2,
)
SHUFFLES = input_pipeline.SHUFFLES


@pytest.fixture(scope='module')
def digits():
  return make_source('digits', 'train')


@pytest.mark.parametrize('shuffle', SHUFFLES)
def test_every_epoch_is_a_permutation_of_its_own(shuffle):
  orders = [epoch_order(1000, 16, shuffle, seed=1, epoch=e) for e in range(3)]
  for order in orders:
    np.testing.assert_array_equal(np.sort(order), np.arange(1000))
  assert not np.array_equal(orders[0], orders[1])
  again = epoch_order.__wrapped__(1000, 16, shuffle, 1, 0)
  np.testing.assert_array_equal(again, orders[0])
  assert not np.array_equal(epoch_order(1000, 16, shuffle, 2, 0), orders[0])


def pairs_that_meet_again(shuffle):
  """Fraction of the pairs in a mini-batch that met in the epoch before, too."""
  met = []
  for epoch in range(2):
    order = epoch_order(2048, 16, shuffle, seed=0, epoch=epoch)
    batches = order.reshape(-1, 16)
    met.append(
      {p for b in batches for p in itertools.combinations(sorted(b), 2)}
    )
  return len(met[0] & met[1]) / len(met[1])


def test_shuffles_differ_in_who_meets_again():
  # 15 others in a batch: of the 127 of a shard, or of the 2047 of all.
  assert pairs_that_meet_again('shards') == 1.0
  np.testing.assert_allclose(
    pairs_that_meet_again('within_shards'), 15 / 127, rtol=0.15
  )
  np.testing.assert_allclose(
    pairs_that_meet_again('global'), 15 / 2047, rtol=0.35
  )


@pytest.mark.parametrize('shuffle', SHUFFLES)
def test_stream_shows_every_example_once_per_epoch(digits, shuffle):
  options = dataclasses.replace(OPTIONS, shuffle=shuffle)
  steps = 2 * 1442 // 28 + 1  # two epochs; 28 does not divide 1442
  batches = list(training_batches(digits, options, 28, 3, 0, steps))
  index = np.concatenate([batch['index'] for batch in batches])
  for epoch in range(2):
    part = index[epoch * 1442 : (epoch + 1) * 1442]
    np.testing.assert_array_equal(np.sort(part), np.arange(1442))
  batch = batches[0]
  assert {k: (v.dtype.name, v.shape) for k, v in batch.items()} == {
    'image': ('uint8', (28, 8, 8, 1)),
    'label': ('int32', (28,)),
    'mask': ('bool', (28,)),
    'index': ('int64', (28,)),
  }
  for image, label, i in zip(
    batch['image'], batch['label'], batch['index'], strict=True
  ):
    original, original_label = digits[i]
    assert label == original_label
    assert np.array_equal(image, original) or np.array_equal(
      image, original[:, ::-1]
    )


def test_half_of_the_images_are_mirrored_anew_in_each_epoch(digits):
  steps = 2 * 1442 // 32 + 1
  is_mirrored = {}
  position = 0
  for batch in training_batches(digits, OPTIONS, 32, 3, 0, steps):
    for image, index in zip(batch['image'], batch['index'], strict=True):
      original = digits[index][0]
      if not np.array_equal(original, original[:, ::-1]):
        epoch = position // 1442
        is_mirrored[epoch, int(index)] = not np.array_equal(image, original)
      position += 1
  assert abs(np.mean(list(is_mirrored.values())) - 0.5) < 0.03
  both = [i for i in range(1442) if {(0, i), (1, i)} <= set(is_mirrored)]
  same = np.mean([is_mirrored[0, i] == is_mirrored[1, i] for i in both])
  assert abs(same - 0.5) < 0.05


def assert_same_batches(ours, theirs):
  ours, theirs = list(ours), list(theirs)
  assert len(ours) == len(theirs) > 0
  for a, b in zip(ours, theirs, strict=True):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_resuming_gives_the_batches_that_were_to_come(digits):
  whole = list(training_batches(digits, OPTIONS, 32, 5, 0, 60))
  assert_same_batches(
    whole[47:], training_batches(digits, OPTIONS, 32, 5, 47, 60)
  )


def test_micro_batches_are_consecutive_parts_of_the_stream(digits):
  small = list(training_batches(digits, OPTIONS, 8, 5, 6, 12))
  stacked = list(
    training_batches(digits, OPTIONS, 24, 5, 2, 4, accumulate_steps=3)
  )
  assert [batch['image'].shape for batch in stacked] == [(3, 8, 8, 8, 1)] * 2
  parts = [
    {name: value[i] for name, value in batch.items()}
    for batch in stacked
    for i in range(3)
  ]
  assert_same_batches(small, parts)


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
from test_input_pipeline import OPTIONS, dataclasses, make_source
from test_input_pipeline import training_batches
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


@pytest.mark.skipif(not os.path.exists('/proc/self/stat'), reason='needs /proc')
def test_workers_end_with_a_parent_that_was_killed(tmp_path):
  program = tmp_path / 'program.py'
  program.write_text(PROGRAM_WITH_WORKERS)
  tests = pathlib.Path(__file__).parent
  with subprocess.Popen(
    [sys.executable, str(program)],
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
    env={**os.environ, 'PYTHONPATH': f'{tests}:{tests.parent}'},
  ) as process:
    assert process.stdout.readline() == b'ready\n'
    workers = children_of(process.pid)
    assert len(workers) >= 2
    process.kill()
  deadline = time.monotonic() + 30
  while alive := [pid for pid in workers if os.path.exists(f'/proc/{pid}/exe')]:
    assert time.monotonic() < deadline, alive
    time.sleep(0.1)


@pytest.mark.parametrize('process_count', [2, 4])
def test_hosts_have_disjoint_parts_of_the_same_batches(
  digits, monkeypatch, process_count
):
  whole = list(training_batches(digits, OPTIONS, 32, 5, 2, 6))
  evaluation = list(evaluation_batches(digits, OPTIONS, 400))
  monkeypatch.setattr(jax, 'process_count', lambda: process_count)
  parts, evaluation_parts = [], []
  for process in range(process_count):
    monkeypatch.setattr(jax, 'process_index', lambda p=process: p)
    parts.append(list(training_batches(digits, OPTIONS, 32, 5, 2, 6)))
    evaluation_parts.append(list(evaluation_batches(digits, OPTIONS, 400)))

  def joined(parts):
    return [
      {k: np.concatenate([b[k] for b in batches]) for k in batches[0]}
      for batches in zip(*parts, strict=True)
    ]

  assert_same_batches(whole, joined(parts))
  assert_same_batches(evaluation, joined(evaluation_parts))


@pytest.mark.parametrize('batch_size', [1442, 100, 2000])
def test_evaluation_pads_and_masks(digits, batch_size):
  batches = list(evaluation_batches(digits, OPTIONS, batch_size))
  assert all(len(batch['mask']) == batch_size for batch in batches)
  index = np.concatenate([b['index'][b['mask']] for b in batches])
  np.testing.assert_array_equal(index, np.arange(1442))


def test_images_are_decoded_in_rgb_order(tmp_path):
  image = np.zeros((4, 6, 3), np.uint8)
  image[..., 0], image[..., 2] = 200, 50  # red and a little blue
  png = cv2.imencode('.png', image[..., ::-1])[1].tobytes()
  np.testing.assert_array_equal(input_pipeline.decode_image(png, 3), image)
  grey = input_pipeline.decode_image(png, 1)
  assert grey.shape == (4, 6, 1)
  with pytest.raises(ValueError, match='3 bytes do not decode'):
    input_pipeline.decode_image(b'abc', 3)


def test_photographs_are_cropped_and_resized():
  rng = np.random.default_rng(0)
  photograph = rng.integers(0, 256, (30, 50, 3)).astype(np.uint8)
  options = dataclasses.replace(
    OPTIONS, image_size=12, train_crop='area', eval_crop='centre'
  )
  crop = input_pipeline.prepare_training_image(
    photograph, options, np.random.default_rng(1)
  )
  assert crop.shape == (12, 12, 3) and crop.dtype == np.uint8
  centre = input_pipeline.prepare_evaluation_image(photograph, options)
  expected = cv2.resize(photograph[2:28, 12:38], (12, 12))
  np.testing.assert_array_equal(centre, expected)


def test_devices_receive_their_parts(digits):
  sharding = mesh.split_batch(mesh.make_evaluation_mesh(jax.devices()))
  host = list(training_batches(digits, OPTIONS, 32, 5, 0, 3))
  placed = list(input_pipeline.to_devices(iter(host), sharding))
  assert len(placed) == 3
  for on_device, on_host in zip(placed, host, strict=True):
    assert on_device['index'].dtype == np.int32
    assert len(on_device['image'].addressable_shards) == 8
    jax.tree.map(np.testing.assert_array_equal, on_device, on_host)


def test_unknown_options_are_refused(digits):
  with pytest.raises(UserError, match="data.shuffle 'all' is unknown: use one"):
    dataclasses.replace(OPTIONS, shuffle='all')
  with pytest.raises(UserError, match='data.num_shards 2000 must be between'):
    epoch_order(1442, 2000, 'shards', 0, 0)

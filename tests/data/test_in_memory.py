"""Examples in memory are unchanged, and read only once."""

import os

import cv2
import numpy as np
import pytest

from bn_inception.data import in_memory
from bn_inception.data.images import BadImageError
from bn_inception.data.in_memory import InMemory
from bn_inception.data.input_pipeline import InputOptions, training_batches
from bn_inception.data.source import ListedImages
from bn_inception.errors import UserError
from bn_inception.kernels import host


class Counting(ListedImages):
  def __init__(self, images):
    super().__init__(images, ['a'], 1)
    self.num_reads = 0

  def __getitem__(self, index):
    self.num_reads += 1
    return super().__getitem__(index)


@pytest.fixture
def pixels():
  return np.random.default_rng(0).integers(0, 256, (6, 9, 9, 1), np.uint8)


def test_each_example_is_read_once_and_the_same(pixels):
  whole = Counting([cv2.imencode('.png', p)[1].tobytes() for p in pixels])
  kept = InMemory(whole)
  assert len(kept) == 6 and kept.name == 'images' and kept.num_channels == 1
  for _ in range(2):
    for i in range(6):
      image, label = kept[np.int64(i)]
      np.testing.assert_array_equal(image, pixels[i])
      assert label == 0
  assert whole.num_reads == 6
  assert kept.describe(3) == whole.describe(3)
  assert kept.file_name(3) == '3'
  assert kept.origin() == whole.origin()


def test_bytes_that_are_not_an_image_raise():
  with pytest.raises(BadImageError):
    InMemory(Counting([b'no image']))[0]


@pytest.mark.parametrize('mirror', [False, True])
def test_batches_are_those_of_the_source(pixels, mirror):
  encoded = [cv2.imencode('.png', p)[1].tobytes() for p in pixels]
  options = InputOptions(
    image_size=9, shuffle='global', num_shards=1, train_crop='whole',
    eval_crop='whole', mirror=mirror, interpolation='bilinear',
    on_bad_image='raise', num_workers=0, prefetch=1,
  )  # fmt: skip
  assert options.is_random == mirror
  whole = Counting(encoded)
  for ours, theirs in zip(
    training_batches(InMemory(whole), options, 4, 0, 0, 5),
    training_batches(Counting(encoded), options, 4, 0, 0, 5),
    strict=True,
  ):
    for name in ours:
      np.testing.assert_array_equal(ours[name], theirs[name])


def test_images_that_do_not_fit_in_memory_are_refused(monkeypatch):
  # 1,000 images of 81 bytes, every second one of 324.
  images = [
    np.zeros((9 * (1 + i % 2),) * 2 + (1,), np.uint8) for i in range(1000)
  ]
  whole = Counting(images)
  monkeypatch.setattr(in_memory.host, 'memory_bytes', lambda: 240_000)
  kept = InMemory(whole)
  assert len(kept) == 1000 and whole.num_reads < 20
  with pytest.raises(UserError, match=r'1,000 images .* 3 worker .*=False$'):
    InMemory(whole, num_copies=3)
  bad = Counting([b'no image', *images[1:]])
  assert len(InMemory(bad)) == 1000


def test_memory_is_at_most_the_machines():
  total = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')
  assert 2**28 < host.memory_bytes() <= total

"""Order, batches, padding and bad images, mostly on the digits."""

import dataclasses
import errno
import io
import pathlib
import re
import shutil

import cv2
import jax
import numpy as np
import PIL.Image
import pytest
from array_record.python.array_record_data_source import ArrayRecordDataSource
from array_record.python.array_record_module import ArrayRecordWriter
from tensorflow_datasets.proto import tf_example_pb2

from bn_inception import mesh
from bn_inception.data import crops, images, input_pipeline, resizing
from bn_inception.data.input_pipeline import (
  InputOptions,
  evaluation_batches,
  training_batches,
)
from bn_inception.data.order import epoch_order
from bn_inception.data.sources import Source, make_source
from bn_inception.errors import UserError

TFDS_DIR = pathlib.Path(__file__).parents[1] / 'tfds'
OPTIONS = InputOptions(
  image_size=8,
  shuffle='within_shards',
  num_shards=16,
  train_crop='whole',
  eval_crop='whole',
  mirror=True,
  interpolation='bilinear',
  on_bad_image='raise',
  num_workers=0,
  prefetch=2,
)
SHUFFLES = input_pipeline.SHUFFLES


@pytest.fixture(scope='module')
def digits():
  return make_source('digits', 'train')


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
    'replaced': ('int64', (28,)),
  }
  for image, label, i in zip(
    batch['image'], batch['label'], batch['index'], strict=True
  ):
    original, original_label = digits[i]
    assert label == original_label
    assert np.array_equal(image, original) or np.array_equal(
      image, original[:, ::-1]
    )


def test_half_of_the_images_are_mirrored_afresh_in_each_epoch(digits):
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


def test_resuming_gives_the_remaining_batches(digits):
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


def host_parts(monkeypatch, process_count, make_batches):
  """What each process would read."""
  monkeypatch.setattr(jax, 'process_count', lambda: process_count)
  for process in range(process_count):
    monkeypatch.setattr(jax, 'process_index', lambda p=process: p)
    yield list(make_batches())


@pytest.mark.parametrize(
  'process_count',
  [2, *(pytest.param(count, marks=pytest.mark.slow) for count in (1, 4))],
)
@pytest.mark.parametrize('shuffle', SHUFFLES)
def test_any_hosts_and_workers_read_every_example_once_an_epoch(
  digits, monkeypatch, shuffle, process_count
):
  def batches(num_workers):
    options = dataclasses.replace(
      OPTIONS, shuffle=shuffle, num_workers=num_workers
    )
    steps = 2 * 1442 // 28  # two epochs, of 51.5 batches each
    return training_batches(digits, options, 28, 3, 0, steps)

  parts = list(host_parts(monkeypatch, process_count, lambda: batches(0)))
  index = np.concatenate(
    [b['index'] for step in zip(*parts, strict=True) for b in step]
  )
  for epoch in range(2):
    np.testing.assert_array_equal(
      index[epoch * 1442 : (epoch + 1) * 1442],
      epoch_order(1442, 16, shuffle, 3, epoch),
    )
  # The last host again, with workers: the same part, whatever their number.
  for num_workers in (1, 4) if shuffle == 'within_shards' else ():
    assert_same_batches(parts[-1], batches(num_workers))


@pytest.mark.parametrize('process_count', [2, 4])
def test_hosts_have_disjoint_parts_of_the_same_batches(
  digits, monkeypatch, process_count
):
  whole = list(training_batches(digits, OPTIONS, 32, 5, 2, 6))
  evaluation = list(evaluation_batches(digits, OPTIONS, 400))
  parts = host_parts(
    monkeypatch,
    process_count,
    lambda: training_batches(digits, OPTIONS, 32, 5, 2, 6),
  )
  evaluation_parts = host_parts(
    monkeypatch,
    process_count,
    lambda: evaluation_batches(digits, OPTIONS, 400),
  )

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


def photograph(height=30, width=50, seed=0):
  rng = np.random.default_rng(seed)
  coarse = rng.integers(0, 256, (4, 5, 3)).astype(np.uint8)
  return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)


def prepare_crop(image, options, rng):
  out = np.empty((options.image_size, options.image_size, 3), np.uint8)
  input_pipeline.prepare_training_image(
    images.open_image(image, 3), options, rng, out
  )
  return out


def prepare_views(image, options):
  size, num_views = options.image_size, crops.num_views(options.eval_crop)
  out = np.empty((num_views, size, size, 3), np.uint8)
  input_pipeline.prepare_evaluation_image(
    images.open_image(image, 3), options, out
  )
  return out


def test_the_centre_is_cropped_and_resized():
  options = dataclasses.replace(OPTIONS, image_size=12, eval_crop='centre')
  image = photograph()
  (centre,) = prepare_views(image, options)
  expected = cv2.resize(image[2:28, 12:38], (12, 12))
  np.testing.assert_array_equal(centre, expected)
  whole = dataclasses.replace(options, image_size=30, eval_crop='whole')
  square = np.ascontiguousarray(image[:, :30])
  (kept,) = prepare_views(square, whole)
  np.testing.assert_array_equal(kept, square)


@pytest.mark.parametrize('rule', ['short_side', 'ten', 'googlenet'])
def test_views_are_cut_from_the_resized_image(rule):
  options = dataclasses.replace(OPTIONS, image_size=14, eval_crop=rule)
  image = photograph()
  found = prepare_views(image, options)
  views = crops.evaluation_views(30, 50, rule, 14)
  for pixels, (size, box) in zip(found, views, strict=True):
    top, left, height, width = box
    resized = cv2.resize(image, size[::-1])
    part = resized[top : top + height, left : left + width]
    np.testing.assert_array_equal(pixels, cv2.resize(part, (14, 14)))


@pytest.mark.parametrize('interpolation', ['bilinear', 'nearest', 'random'])
@pytest.mark.parametrize('mode', ['RGB', 'L'])
@pytest.mark.parametrize(
  'height, width', [(375, 500), (403, 300), (299, 299), (50, 67), (1, 30)]
)
def test_torchvision_crops_have_pillows_pixels(
  height, width, mode, interpolation
):
  options = dataclasses.replace(
    OPTIONS, image_size=224, eval_crop='torchvision',
    interpolation=interpolation,
  )  # fmt: skip
  file = io.BytesIO()
  picture = PIL.Image.fromarray(photograph(height, width)).convert(mode)
  picture.save(file, 'JPEG', quality=90)
  (found,) = prepare_views(file.getvalue(), options)
  # From the bytes, as torchvision's Resize(256) and CenterCrop(224) do it.
  short = min(height, width)
  size = int(256 * width / short), int(256 * height / short)
  theirs = PIL.Image.open(file).convert('RGB').resize(
    size, PIL.Image.Resampling.BILINEAR
  )  # fmt: skip
  left, top = (int(round((length - 224) / 2.0)) for length in size)
  theirs = theirs.crop((left, top, left + 224, top + 224))
  np.testing.assert_array_equal(found, np.asarray(theirs))


@pytest.mark.parametrize('interpolation', ['bilinear', 'area', 'random'])
@pytest.mark.parametrize('rule', ['slim', 'caffe'])
@pytest.mark.parametrize('height, width', [(30, 50), (50, 30), (1, 30), (3, 3)])
def test_rules_from_other_projects_resize_their_own_way(
  height, width, rule, interpolation
):
  options = dataclasses.replace(
    OPTIONS, image_size=14, eval_crop=rule, interpolation=interpolation
  )
  image = photograph(height, width)
  (found,) = prepare_views(image, options)
  if rule == 'slim':
    part = image[height // 16 :, width // 16 :]
    part = part[: height - 2 * (height // 16), : width - 2 * (width // 16)]
    expected = resizing.resize(part, (14, 14), 'tensorflow_1')
  else:
    expected = cv2.resize(image, (16, 16))[1:15, 1:15]
  np.testing.assert_array_equal(found, expected)


def test_batches_of_several_views_have_an_axis_for_them(digits):
  options = dataclasses.replace(OPTIONS, eval_crop='ten')
  batch = next(iter(evaluation_batches(digits, options, 40)))
  assert batch['image'].shape == (40, 5, 8, 8, 1)
  one = dataclasses.replace(OPTIONS, eval_crop='short_side')
  middle = next(iter(evaluation_batches(digits, one, 40)))['image']
  np.testing.assert_array_equal(batch['image'][:, 4], middle)


@pytest.mark.parametrize(
  'interpolation', ['bilinear', 'area', 'nearest', 'bicubic', 'random']
)
def test_crops_follow_the_documented_draws(interpolation):
  options = dataclasses.replace(
    OPTIONS, image_size=12, train_crop='area', interpolation=interpolation
  )
  flags = [cv2.INTER_LINEAR, cv2.INTER_AREA, cv2.INTER_NEAREST, cv2.INTER_CUBIC]
  names = ['bilinear', 'area', 'nearest', 'bicubic']
  image, used = photograph(), set()
  for seed in range(40):
    found = prepare_crop(image, options, np.random.default_rng(seed))
    rng = np.random.default_rng(seed)
    top, left, height, width = crops.training_crop(rng, 30, 50)
    is_mirrored = rng.random() < 0.5
    which = (
      rng.integers(4)
      if interpolation == 'random'
      else names.index(interpolation)
    )
    part = image[top : top + height, left : left + width]
    expected = cv2.resize(part, (12, 12), interpolation=flags[which])
    np.testing.assert_array_equal(
      found, expected[:, ::-1] if is_mirrored else expected
    )
    used.add((int(which), is_mirrored))
  assert len(used) == (8 if interpolation == 'random' else 2)


@pytest.mark.parametrize('rule', crops.NUM_CROPS)
@pytest.mark.parametrize('height, width', [(1, 300), (300, 1), (1, 1)])
def test_images_of_one_row_or_column_are_resized(height, width, rule):
  options = dataclasses.replace(
    OPTIONS, image_size=12, train_crop='area', eval_crop=rule
  )
  image = np.full((height, width, 3), 77, np.uint8)
  for seed in range(5):
    rng = np.random.default_rng(seed)
    crop = prepare_crop(image, options, rng)
    np.testing.assert_array_equal(crop, 77)
  np.testing.assert_array_equal(prepare_views(image, options), 77)


class Files(Source):
  """JPEGs in memory, some of them bad."""

  name, class_names, num_channels = 'files', ('a', 'b'), 3

  def __init__(self, num_examples, **bad):
    self.files = []
    for i in range(num_examples):
      self.files.append(cv2.imencode('.jpg', photograph(seed=i))[1].tobytes())
    self.labels = [i % 2 for i in range(num_examples)]
    self.unreadable = bad.get('unreadable', ())
    self.error = bad.get('error', OSError('the disk is gone'))
    for index in bad.get('cut_short', ()):
      self.files[index] = self.files[index][:200]
    for index in bad.get('empty', ()):
      self.files[index] = b''
    for index in bad.get('unlabelled', ()):
      self.labels[index] = -1

  def __len__(self):
    return len(self.files)

  def __getitem__(self, index):
    if index in self.unreadable:
      raise self.error
    return self.files[index], self.labels[index]


BAD = {
  'cut_short': [3],
  'empty': [11],
  'unreadable': [7, 8],
}


@pytest.mark.parametrize('num_workers', [0, 2])
def test_bad_images_are_replaced_by_the_next_of_the_order(num_workers):
  options = dataclasses.replace(
    OPTIONS, image_size=8, num_shards=4, on_bad_image='skip',
    num_workers=num_workers,
  )  # fmt: skip
  good, damaged = Files(32), Files(32, **BAD)
  bad = {i for indices in BAD.values() for i in indices}
  expected = list(training_batches(good, options, 8, 1, 0, 8))
  found = list(training_batches(damaged, options, 8, 1, 0, 8))
  order = np.concatenate([b['index'] for b in expected])
  replaced = np.concatenate([b['replaced'] for b in found])
  index = np.concatenate([b['index'] for b in found])
  assert sorted(replaced[replaced >= 0]) == sorted([*bad, *bad])  # two epochs
  for epoch in range(2):
    part = order[32 * epoch : 32 * epoch + 32]
    for offset, i in enumerate(part):
      following = [j for j in np.roll(part, -offset) if j not in bad]
      assert index[32 * epoch + offset] == following[0]
      assert replaced[32 * epoch + offset] == (i if i in bad else -1)
  images_of = {
    i: image for b in expected[:4] for i, image in zip(b['index'], b['image'], strict=True)
  }  # fmt: skip
  for b in found[:4]:
    for i, image, label in zip(b['index'], b['image'], b['label'], strict=True):
      np.testing.assert_array_equal(image, images_of[i])
      assert label == i % 2


@pytest.mark.parametrize('num_workers', [0, 1])
@pytest.mark.parametrize(
  'bad, message',
  [
    ({'cut_short': [3]}, 'files, example 3: .* 200 bytes'),
    ({'empty': [3]}, 'files, example 3: an image of 0 bytes'),
    ({'unreadable': [3]}, r'files, example 3: .*\(the disk is gone\)'),
  ],
  ids=str,
)
def test_bad_images_end_training_and_evaluation(bad, message, num_workers):
  options = dataclasses.replace(OPTIONS, num_shards=2, num_workers=num_workers)
  source = Files(8, **bad)
  skipping = dataclasses.replace(options, on_bad_image='skip')
  for batches, remedy in (
    (training_batches(source, options, 4, 0, 0, 2), 'on_bad_image=skip'),
    (evaluation_batches(source, skipping, 4), 'evaluation skips no image'),
  ):
    with pytest.raises(UserError) as caught:
      list(batches)
    # Not with `match`, which also sees the notes that Grain adds.
    assert re.fullmatch(f'{message}.*{remedy}.*', str(caught.value))


def test_a_label_outside_the_classes_is_never_skipped():
  source = Files(8, unlabelled=[3])
  for on_bad_image in ('raise', 'skip'):
    options = dataclasses.replace(
      OPTIONS, num_shards=2, on_bad_image=on_bad_image
    )
    for batches in (
      training_batches(source, options, 4, 0, 0, 2),
      evaluation_batches(source, options, 4),
    ):
      with pytest.raises(UserError) as caught:
        list(batches)
      message = str(caught.value)
      assert message.startswith(
        'files, example 3: label -1 is not one of the 2 '
      )
      assert 'skip' not in message


def test_only_bad_images_is_an_error():
  options = dataclasses.replace(OPTIONS, num_shards=2, on_bad_image='skip')
  last = epoch_order(9, 2, options.shuffle, 0, 0)[99 % 9]
  with pytest.raises(
    UserError,
    match=f'100 bad images in a row.* files, example {last}:',
  ):
    list(training_batches(Files(9, empty=range(9)), options, 1, 0, 0, 1))


@pytest.mark.parametrize(
  'error, remedy, num_workers',
  [
    (OSError(errno.EMFILE, 'Too many open files'), 'ulimit -n', 0),
    (OSError(errno.EIO, 'Input/output error'), 'check the disk', 0),
    (TimeoutError('from a bucket'), 'network', 0),
    (RuntimeError('read() failed: Cannot allocate memory'), 'num_workers', 0),
    (RuntimeError('open() failed: Too many open files; a'), 'ulimit', 1),
  ],
  ids=str,
)
def test_a_machine_error_replaces_no_image(error, remedy, num_workers):
  options = dataclasses.replace(
    OPTIONS, num_shards=2, num_workers=num_workers, on_bad_image='skip'
  )
  source = Files(8, unreadable=[3], error=error)
  for batches in (
    training_batches(source, options, 4, 0, 0, 2),
    evaluation_batches(source, options, 4),
  ):
    with pytest.raises(UserError) as caught:
      list(batches)
    assert str(caught.value).startswith('files, example 3 ')
    assert 'not at fault' in str(caught.value)
    assert remedy in str(caught.value) and 'skip' not in str(caught.value)


def damaged_tfds_copy(folder):
  """The committed data set; three training records of its first file are bad."""
  shutil.copytree(TFDS_DIR, folder, dirs_exist_ok=True)
  name = 'fashion_mnist-train.array_record-00000-of-00004'
  path = str(folder / 'fashion_mnist' / '3.0.1' / name)
  with ArrayRecordDataSource(path) as source:
    records = source.__getitems__(range(len(source)))
  unlabelled = tf_example_pb2.Example.FromString(records[7])
  del unlabelled.features.feature['label']
  records[7] = unlabelled.SerializeToString()
  records[3], records[5] = b'no example', b''
  writer = ArrayRecordWriter(path, 'group_size:1')
  for record in records:
    writer.write(record)
  writer.close()
  return make_source('fashion_mnist', 'train', str(folder))


@pytest.mark.parametrize('num_workers', [0, 1])
def test_bad_records_are_named_and_replaced(tmp_path, num_workers):
  options = dataclasses.replace(OPTIONS, image_size=28, num_workers=num_workers)
  source = damaged_tfds_copy(tmp_path)
  with pytest.raises(UserError, match='fashion_mnist, example [357]: .*skip'):
    list(training_batches(source, options, 20, 0, 0, 10))
  with pytest.raises(UserError, match='fashion_mnist, example 3: '):
    list(evaluation_batches(source, options, 20))
  with pytest.raises(images.BadImageError, match='1 image and 0 labels'):
    input_pipeline._open(source, 7)
  skipping = dataclasses.replace(options, on_bad_image='skip')
  batches = list(training_batches(source, skipping, 20, 0, 0, 10))
  replaced = np.concatenate([batch['replaced'] for batch in batches])
  assert sorted(replaced[replaced >= 0]) == [3, 5, 7]
  assert [source.describe(i) for i in (3, 5, 7)] == [
    f'fashion_mnist, example {i}' for i in (3, 5, 7)
  ]


def test_devices_receive_their_parts(digits):
  devices = mesh.make_evaluation_mesh(jax.devices())
  host = list(training_batches(digits, OPTIONS, 32, 5, 0, 3))
  copies = [{k: v.copy() for k, v in batch.items()} for batch in host]
  copies[1]['replaced'][5], copies[2]['replaced'][[0, 9]] = 17, (4, 8)
  batches = input_pipeline.DeviceBatches(iter(copies), devices)
  placed, replaced = [], []
  for batch in batches:
    placed.append(batch)
    replaced.append(batches.take_replaced())
  assert replaced == [[], [17], [4, 8]]
  for batch in host:
    del batch['replaced']
  assert len(placed) == 3
  for on_device, on_host in zip(placed, host, strict=True):
    assert on_device['index'].dtype == np.int32
    assert len(on_device['image'].addressable_shards) == 8
    jax.tree.map(np.testing.assert_array_equal, on_device, on_host)


def test_unknown_options_are_refused(digits):
  with pytest.raises(UserError, match="data.shuffle 'all'"):
    dataclasses.replace(OPTIONS, shuffle='all')


def test_waiting_for_the_host_is_timed(digits, monkeypatch):
  clock = iter(range(100))  # a second each time it is read
  monkeypatch.setattr(input_pipeline.time, 'monotonic', lambda: next(clock))
  devices = mesh.make_evaluation_mesh(jax.devices())
  batches = input_pipeline.DeviceBatches(iter([]), devices)
  assert batches.take_wait_seconds() == 1.0 and list(batches) == []
  assert batches.take_wait_seconds() == 0.0

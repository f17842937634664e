"""What benchmarks/input_pipeline.py compares: readers of the same photographs.

A reader is an endless iterator of batches, uint8 [B, H, W, 3] in RGB order; the
two that only decode give lists of images as they are. Each runs in a process of
its own and is the only one to import its framework there.
"""

import collections
import concurrent.futures
import dataclasses
import functools
import itertools
import os
import pathlib
from collections.abc import Callable, Iterator

import numpy as np

from bn_inception.data import crops, images
from bn_inception.errors import UserError

IMAGE_SIZE = 224
NUM_TFRECORD_FILES = 16  # as many as tfds.load reads at a time
TFDS_READ_BLOCK = 16  # and this many examples of one before the next
FLAX_SHUFFLED_BATCHES = 16
FLAX_PREFETCHED_BATCHES = 10
ENDLESS = 10**9  # steps


@dataclasses.dataclass(frozen=True)
class Setup:
  """What to read, and how.

  Attributes:
    reader: a key of `READERS`.
    folder: of the photographs: train/CLASS/PHOTOGRAPH.jpg, and prepared/ as
      TFDS has them.
    workers: threads where it only decodes, else worker processes.
    cores: to which the process is limited.
    batch_size: of one host.
    interpolation: 'bilinear' or 'bicubic'.
    prefetch: batches that ours prepares ahead.
    tf_dtype: of tf.data's images, 'uint8' or 'float32'.
  """

  reader: str
  folder: str
  workers: int
  cores: int
  batch_size: int
  interpolation: str
  prefetch: int
  tf_dtype: str


def _paths(folder: str) -> list[str]:
  return sorted(map(str, pathlib.Path(folder).glob('train/*/*.jpg')))


def _labels(paths: list[str]) -> list[int]:
  classes = [pathlib.Path(path).parent.name for path in paths]
  numbers = {name: i for i, name in enumerate(sorted(set(classes)))}
  return [numbers[name] for name in classes]


def _decoded(setup: Setup, decode: Callable) -> Iterator[list[np.ndarray]]:
  """decode(bytes, box) of all photographs, from memory, in threads.

  One task is a whole batch, for threads to meet rarely.
  """
  rng = np.random.default_rng(0)
  encoded = [pathlib.Path(path).read_bytes() for path in _paths(setup.folder)]
  sizes = [images.decode_image(image, 3).shape[:2] for image in encoded]
  # More boxes than photographs: their mean area is to be that of the others.
  tasks = [
    (encoded[i], crops.training_crop(rng, *sizes[i]))
    for i in itertools.islice(
      itertools.cycle(range(len(encoded))), 16 * len(encoded)
    )
  ]
  forever = itertools.cycle(tasks)
  with concurrent.futures.ThreadPoolExecutor(setup.workers) as pool:

    def submit():
      batch = list(itertools.islice(forever, setup.batch_size))
      return pool.submit(lambda: [decode(*task) for task in batch])

    ahead = collections.deque(submit() for _ in range(2 * setup.workers))
    while True:
      yield ahead.popleft().result()
      ahead.append(submit())


def decode_whole(setup: Setup) -> Iterator[list[np.ndarray]]:
  import cv2

  def decode(encoded, box):
    del box
    return cv2.imdecode(
      np.frombuffer(encoded, np.uint8),
      cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION,
    )

  return _decoded(setup, decode)


def decode_part(setup: Setup) -> Iterator[list[np.ndarray]]:
  return _decoded(
    setup, lambda encoded, box: images.open_image(encoded, 3).cut(box)
  )


def _input_options(setup: Setup):
  """The InputOptions of ours, of whose fields there may be fewer than here.

  Raises:
    UserError: if ours does not have the interpolation.
  """
  from bn_inception.data import input_pipeline

  values = {
    'image_size': IMAGE_SIZE,
    'shuffle': 'within_shards',
    'num_shards': 4,
    'train_crop': 'area',
    'eval_crop': 'centre',
    'mirror': True,
    'interpolation': setup.interpolation,
    'on_bad_image': 'raise',
    'num_workers': setup.workers,
    'prefetch': setup.prefetch,
  }
  names = {f.name for f in dataclasses.fields(input_pipeline.InputOptions)}
  if 'interpolation' not in names and setup.interpolation != 'bilinear':
    raise UserError(f'ours has no {setup.interpolation} interpolation')
  return input_pipeline.InputOptions(
    **{name: value for name, value in values.items() if name in names}
  )


def _ours(setup: Setup, dataset: str, folder: str) -> Iterator[np.ndarray]:
  from bn_inception.data import input_pipeline
  from bn_inception.data.sources import make_source

  batches = input_pipeline.training_batches(
    make_source(dataset, 'train', folder),
    _input_options(setup),
    setup.batch_size,
    seed=0,
    first_step=0,
    last_step=ENDLESS,
  )
  for batch in batches:
    yield batch['image']


def ours_array_record(setup: Setup) -> Iterator[np.ndarray]:
  return _ours(setup, 'imagenet2012', f'{setup.folder}/prepared')


def ours_files(setup: Setup) -> Iterator[np.ndarray]:
  return _ours(setup, 'image_folder', setup.folder)


def _write_tfrecords(folder: str) -> list[str]:
  """The photographs as tf.train.Example; written by the first that asks."""
  import tensorflow as tf

  place = pathlib.Path(folder) / 'tfrecords'
  if not place.exists():
    unfinished = place.with_name(f'unfinished-{os.getpid()}')
    unfinished.mkdir()
    paths = _paths(folder)
    examples = list(zip(paths, _labels(paths), strict=True))
    for i in range(NUM_TFRECORD_FILES):
      with tf.io.TFRecordWriter(str(unfinished / f'{i:02}.tfrecord')) as file:
        for path, number in examples[i::NUM_TFRECORD_FILES]:
          image = tf.train.BytesList(value=[pathlib.Path(path).read_bytes()])
          label = tf.train.Int64List(value=[number])
          feature = {
            'image': tf.train.Feature(bytes_list=image),
            'label': tf.train.Feature(int64_list=label),
          }
          example = tf.train.Example(
            features=tf.train.Features(feature=feature)
          )
          file.write(example.SerializeToString())
    unfinished.rename(place)
  return sorted(map(str, place.glob('*.tfrecord')))


def _tf_training_example(record, setup: Setup):
  """As flax's ImageNet example, but for what would only cost more.

  It also subtracts a mean and divides by a deviation, here left to the
  accelerator, and falls back to a central crop where ten draws have failed.
  """
  import tensorflow as tf

  example = tf.io.parse_single_example(
    record,
    {
      'image': tf.io.FixedLenFeature([], tf.string),
      'label': tf.io.FixedLenFeature([], tf.int64),
    },
  )
  begin, size, _ = tf.image.sample_distorted_bounding_box(
    tf.image.extract_jpeg_shape(example['image']),
    bounding_boxes=tf.constant([[[0.0, 0.0, 1.0, 1.0]]]),
    min_object_covered=0.1,
    aspect_ratio_range=(3 / 4, 4 / 3),
    area_range=(0.08, 1.0),
    max_attempts=10,
    use_image_if_no_bounding_boxes=True,
  )
  image = tf.io.decode_and_crop_jpeg(
    example['image'], tf.concat([begin[:2], size[:2]], 0), channels=3
  )
  image = tf.image.resize(
    image, [IMAGE_SIZE, IMAGE_SIZE], method=setup.interpolation
  )
  if setup.tf_dtype == 'uint8':
    if setup.interpolation == 'bicubic':  # which overshoots
      image = tf.clip_by_value(image, 0.0, 255.0)
    # Here, not later: flipping and batching move a quarter of the bytes.
    image = tf.cast(image, tf.uint8)
  image = tf.reshape(image, [IMAGE_SIZE, IMAGE_SIZE, 3])
  return {
    'image': tf.image.random_flip_left_right(image),
    'label': example['label'],
  }


def tf_data(setup: Setup) -> Iterator[np.ndarray]:
  import tensorflow as tf

  files = tf.data.Dataset.from_tensor_slices(_write_tfrecords(setup.folder))
  dataset = files.interleave(
    tf.data.TFRecordDataset,
    cycle_length=NUM_TFRECORD_FILES,
    block_length=TFDS_READ_BLOCK,
    num_parallel_calls=setup.cores,
  )
  dataset = dataset.repeat().shuffle(FLAX_SHUFFLED_BATCHES * setup.batch_size)
  dataset = dataset.map(
    functools.partial(_tf_training_example, setup=setup),
    num_parallel_calls=setup.cores,
  )
  dataset = dataset.batch(setup.batch_size, drop_remainder=True)
  dataset = dataset.prefetch(FLAX_PREFETCHED_BATCHES)
  options = tf.data.Options()
  options.threading.private_threadpool_size = setup.cores
  options.threading.max_intra_op_parallelism = 1
  for batch in dataset.with_options(options):
    yield batch['image']._numpy()  # no copy, as flax's example


class TorchPhotographs:
  """A torch Dataset, of which that class asks no more than these methods.

  What torchvision's RandomResizedCrop and RandomHorizontalFlip do, without it.
  """

  def __init__(self, setup: Setup):
    self._paths = _paths(setup.folder)
    self._labels = _labels(self._paths)
    self._interpolation = setup.interpolation
    self._rng = None  # of the worker process

  def __len__(self) -> int:
    return len(self._paths)

  def __getitem__(self, index: int):
    import torch
    from PIL import Image

    if self._rng is None:
      self._rng = np.random.default_rng(torch.initial_seed() % 2**63)
    with Image.open(self._paths[index]) as file:
      image = file.convert('RGB')
    top, left, height, width = crops.training_crop(
      self._rng, image.height, image.width
    )
    image = image.crop((left, top, left + width, top + height))
    image = image.resize(
      (IMAGE_SIZE, IMAGE_SIZE), Image.Resampling[self._interpolation.upper()]
    )
    if self._rng.random() < 0.5:
      image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return torch.from_numpy(np.array(image)), self._labels[index]


class EndlessPermutations:
  """A torch Sampler that never lets the workers run out of work."""

  def __init__(self, num_examples: int):
    self._num_examples = num_examples

  def __iter__(self) -> Iterator[int]:
    rng = np.random.default_rng(0)
    while True:
      yield from rng.permutation(self._num_examples).tolist()


def torch_loader(setup: Setup) -> Iterator[np.ndarray]:
  import torch

  # As in worker processes: threads to stack a batch cost more than they save.
  torch.set_num_threads(1)
  dataset = TorchPhotographs(setup)
  loader = torch.utils.data.DataLoader(
    dataset,
    setup.batch_size,
    sampler=EndlessPermutations(len(dataset)),
    num_workers=setup.workers,
    drop_last=True,
  )
  for image, _ in loader:
    yield image.numpy()


READERS = {
  'decode whole': decode_whole,
  'decode crop': decode_part,
  'ours, ArrayRecord': ours_array_record,
  'ours, files': ours_files,
  'tf.data': tf_data,
  'torch': torch_loader,
}
ONLY_DECODE = ('decode whole', 'decode crop')
# Modules without which a reader is not run.
NEEDS = {'tf.data': ('tensorflow',), 'torch': ('torch', 'PIL')}

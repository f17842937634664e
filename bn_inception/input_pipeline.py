"""From a source to batches: order, decode, crop, batch, pad, prefetch.

The order is a pure function of (seed, step): a run resumes from its step number
and nothing else, on any number of hosts, threads and worker processes. Batches
are cut from an endless stream of epochs, in each of which every example comes
exactly once; a batch may span two epochs.

A batch on the host is {'image': uint8 [B, H, W, C], 'label': int32 [B],
'mask': bool [B], 'index': int64 [B]}.
"""

import dataclasses
import functools
import os
import threading
import time
from collections.abc import Iterator

import cv2
import grain
import jax
import numpy as np

from bn_inception import crops
from bn_inception.errors import UserError
from bn_inception.sources import Source

SHUFFLES = ('shards', 'within_shards', 'global')
TRAIN_CROPS = ('whole', 'area')
EVAL_CROPS = ('whole', 'centre')


@dataclasses.dataclass(frozen=True)
class InputOptions:
  """How examples are ordered and made into network inputs.

  Attributes:
    image_size: height and width of the network's input.
    shuffle: what changes from epoch to epoch (Section 4.2.1, change 6): the
      order of the 'shards' only; also the order 'within_shards'; or 'global':
      a new permutation of everything.
    num_shards: logical shards, cut from a fixed permutation of the source.
    train_crop: 'whole' image, or 'area': 8-100 % of it, any position.
    eval_crop: 'whole' image, or 'centre': the middle 87.5 %.
    mirror: flip training images left to right at random.
    num_workers: worker processes; 0 = threads of this process.
    prefetch: batches to prepare ahead.
  """

  image_size: int
  shuffle: str
  num_shards: int
  train_crop: str
  eval_crop: str
  mirror: bool
  num_workers: int
  prefetch: int

  def __post_init__(self):
    for name, valid in (
      ('shuffle', SHUFFLES),
      ('train_crop', TRAIN_CROPS),
      ('eval_crop', EVAL_CROPS),
    ):
      if getattr(self, name) not in valid:
        raise UserError(
          f"data.{name} '{getattr(self, name)}' is unknown: use one of "
          f'{", ".join(valid)}'
        )
    for name, lowest in (
      ('image_size', 1),
      ('num_shards', 1),
      ('num_workers', 0),
      ('prefetch', 1),
    ):
      if getattr(self, name) < lowest:
        raise UserError(
          f'data.{name} must be at least {lowest}, got {getattr(self, name)}'
        )


@functools.lru_cache(maxsize=4)
def epoch_order(
  num_examples: int, num_shards: int, shuffle: str, seed: int, epoch: int
) -> np.ndarray:
  """The order of the examples in one epoch.

  The source is permuted once and for all and cut into `num_shards` logical
  shards. Every epoch visits them in a new order; what happens inside a shard,
  and so who can meet whom in a mini-batch, is `shuffle`: see `InputOptions`.

  Returns:
    A permutation of range(num_examples), int64, read-only.

  Raises:
    UserError: for more shards than examples.
  """
  if not 1 <= num_shards <= num_examples:
    raise UserError(
      f'data.num_shards {num_shards} must be between 1 and the number of '
      f'examples, {num_examples}'
    )
  rng = np.random.default_rng([seed, epoch])
  if shuffle == 'global':
    order = rng.permutation(num_examples)
  else:
    # Not a function of the seed: how the data lie on disk does not change.
    fixed = np.random.default_rng(0).permutation(num_examples)
    shards = np.array_split(fixed, num_shards)
    if shuffle == 'within_shards':
      shards = [rng.permutation(shard) for shard in shards]
    order = np.concatenate([shards[i] for i in rng.permutation(num_shards)])
  order.setflags(write=False)
  return order


def check_order(source: Source, options: InputOptions) -> None:
  """Raises the UserError that the first batch would raise in a thread."""
  epoch_order(len(source), options.num_shards, options.shuffle, 0, 0)


def decode_image(image: bytes | np.ndarray, num_channels: int) -> np.ndarray:
  """uint8 [H, W, C] of encoded bytes (JPEG, PNG, ...) in RGB or grey order.

  Raises:
    ValueError: if the bytes are no image.
  """
  if isinstance(image, np.ndarray):
    return image
  if not image:
    raise ValueError('an image of 0 bytes')
  encoded = np.frombuffer(image, np.uint8)
  if num_channels == 1:
    decoded = cv2.imdecode(encoded, cv2.IMREAD_GRAYSCALE)
  else:
    decoded = cv2.imdecode(encoded, cv2.IMREAD_COLOR_RGB)
  if decoded is None:
    raise ValueError(f'{len(image)} bytes do not decode to an image')
  return decoded.reshape(*decoded.shape[:2], num_channels)


def cut_and_resize(
  image: np.ndarray, box: crops.Box, image_size: int
) -> np.ndarray:
  """The box of an image, resized to a square with bilinear interpolation."""
  top, left, height, width = box
  part = image[top : top + height, left : left + width]
  if (height, width) != (image_size, image_size):
    part = cv2.resize(part, (image_size, image_size))
  return part.reshape(image_size, image_size, image.shape[-1])


def prepare_training_image(
  image: np.ndarray, options: InputOptions, rng: np.random.Generator
) -> np.ndarray:
  """A random crop and mirror image: uint8 [image_size, image_size, C]."""
  height, width = image.shape[:2]
  box = (0, 0, height, width)
  if options.train_crop == 'area':
    box = crops.training_crop(rng, height, width)
  image = cut_and_resize(image, box, options.image_size)
  if options.mirror and rng.random() < 0.5:
    image = image[:, ::-1]
  return image


def prepare_evaluation_image(
  image: np.ndarray, options: InputOptions
) -> np.ndarray:
  """The centre or the whole of an image: uint8 [image_size, image_size, C]."""
  height, width = image.shape[:2]
  box = (0, 0, height, width)
  if options.eval_crop == 'centre':
    box = crops.centre_square(height, width, 0.875)
  return cut_and_resize(image, box, options.image_size)


def _example(image: np.ndarray, label: int, index: int, mask: bool) -> dict:
  return {
    'image': image,
    'label': np.int32(label),
    'mask': np.bool_(mask),
    'index': np.int64(index),
  }


@dataclasses.dataclass(frozen=True)
class _HostPart:
  """This process's positions in a stream of global batches."""

  batch_size: int
  process_index: int
  process_count: int
  first_step: int = 0

  @property
  def local_batch_size(self) -> int:
    return self.batch_size // self.process_count

  def global_position(self, local_position: int) -> int:
    step, offset = divmod(local_position, self.local_batch_size)
    return (
      (self.first_step + step) * self.batch_size
      + self.process_index * self.local_batch_size
      + offset
    )


@dataclasses.dataclass(frozen=True)
class _TrainingExamples:
  """Random access to the endless training stream, from a step on."""

  source: Source
  options: InputOptions
  part: _HostPart
  num_steps: int
  seed: int

  def __len__(self) -> int:
    return self.num_steps * self.part.local_batch_size

  def __getitem__(self, local_position: int) -> dict:
    position = self.part.global_position(local_position)
    num_examples = len(self.source)
    epoch, offset = divmod(position, num_examples)
    order = epoch_order(
      num_examples,
      self.options.num_shards,
      self.options.shuffle,
      self.seed,
      epoch,
    )
    index = int(order[offset])
    image, label = _read(self.source, index)
    rng = np.random.default_rng([self.seed, epoch, index])
    image = prepare_training_image(image, self.options, rng)
    return _example(image, label, index, mask=True)


@dataclasses.dataclass(frozen=True)
class _EvaluationExamples:
  """Random access to one pass over the source, padded to whole batches."""

  source: Source
  options: InputOptions
  part: _HostPart

  def __len__(self) -> int:
    num_batches = -(-len(self.source) // self.part.batch_size)
    return num_batches * self.part.local_batch_size

  def __getitem__(self, local_position: int) -> dict:
    position = self.part.global_position(local_position)
    is_real = position < len(self.source)
    index = position if is_real else 0
    image, label = _read(self.source, index)
    image = prepare_evaluation_image(image, self.options)
    return _example(image, label, index, mask=is_real)


def _read(source: Source, index: int) -> tuple[np.ndarray, int]:
  image, label = source[index]
  try:
    return decode_image(image, source.num_channels), label
  except ValueError as error:
    raise ValueError(f'{source.name}, example {index}: {error}') from error


def _exit_with_parent(worker_index: int, worker_count: int) -> None:
  """Ends a worker process whose parent was killed, which could not end it."""
  del worker_index, worker_count
  parent = os.getppid()

  def watch():
    while os.getppid() == parent:
      time.sleep(1.0)
    os._exit(1)

  threading.Thread(target=watch, daemon=True).start()


def _batches(
  examples, part: _HostPart, options: InputOptions, stack: int = 1
) -> Iterator:
  # Batching before the workers: behind them, their number would change batches.
  dataset = grain.MapDataset.source(examples).batch(part.local_batch_size)
  if stack > 1:
    dataset = dataset.batch(stack)
  dataset = dataset.to_iter_dataset(
    grain.ReadOptions(
      num_threads=min(options.prefetch, 16),
      prefetch_buffer_size=options.prefetch,
    )
  )
  if options.num_workers:
    dataset = dataset.mp_prefetch(
      grain.MultiprocessingOptions(
        num_workers=options.num_workers, per_worker_buffer_size=options.prefetch
      ),
      worker_init_fn=_exit_with_parent,
    )
  return iter(dataset)


def training_batches(
  source: Source,
  options: InputOptions,
  batch_size: int,
  seed: int,
  first_step: int,
  last_step: int,
  accumulate_steps: int = 1,
) -> Iterator[dict]:
  """This process's part of the batches of steps first_step .. last_step - 1.

  Args:
    source: the training split.
    options: see `InputOptions`.
    batch_size: global batch, a multiple of the number of processes.
    seed: of order and augmentation.
    first_step, last_step: in updates of the global batch.
    accumulate_steps: if above 1, a batch comes as so many micro-batches,
      stacked along a new first axis: consecutive parts of the same stream,
      which therefore do not depend on the number of devices.
  """
  part = _HostPart(
    batch_size // accumulate_steps,
    jax.process_index(),
    jax.process_count(),
    first_step * accumulate_steps,
  )
  num_micro_batches = (last_step - first_step) * accumulate_steps
  examples = _TrainingExamples(source, options, part, num_micro_batches, seed)
  return _batches(examples, part, options, stack=accumulate_steps)


def evaluation_batches(
  source: Source, options: InputOptions, batch_size: int
) -> Iterator[dict]:
  """This process's part of one pass over the source, in the source's order.

  Every example comes once; the last batch is padded with examples of mask
  False.
  """
  part = _HostPart(batch_size, jax.process_index(), jax.process_count())
  return _batches(_EvaluationExamples(source, options, part), part, options)


def to_devices(
  batches: Iterator[dict], sharding: jax.sharding.Sharding
) -> Iterator[dict]:
  """Sends batches to the devices, one ahead of the one in use."""

  def send(batch: dict) -> dict:
    # Without 64-bit mode devices hold int32, enough for 2 billion examples.
    batch = {**batch, 'index': batch['index'].astype(np.int32)}
    return {
      name: jax.make_array_from_process_local_data(sharding, value)
      for name, value in batch.items()
    }

  ahead = None
  for batch in batches:
    sent = send(batch)
    if ahead is not None:
      yield ahead
    ahead = sent
  if ahead is not None:
    yield ahead

"""From a source to batches on the devices: order, decode, crop, resize, prefetch.

The order is a pure function of (seed, step): a run resumes from its step number
alone, on any number of hosts, threads and worker processes. Batches are cut from an
endless stream of epochs, each of which has every example exactly once; a batch may
span two epochs.

A batch on the host is {'image': uint8 [B, H, W, C], 'label': int32 [B],
'mask': bool [B], 'index': int64 [B]}; training batches also have 'replaced',
int64 [B]: the index of the bad example that was replaced, or -1.

Grain only reads whole batches in parallel (`grain_reader`); the order, the crops and
the batches are made here. Its own shuffle permutes globally or in windows, but the
paper's change 6 is about shards that are visited in a new order; a bad image has to
be replaced by the next one of the order; and with the order a function of the step,
checkpoints need no iterator state. A whole batch as Grain's element also lets each
image be written in its place, where Grain's `batch` would copy it once more.
"""

import contextlib
import dataclasses
import math
import time
from collections.abc import Iterator

import cv2
import jax
import numpy as np

from bn_inception import config_keys, mesh
from bn_inception.data import crops, grain_reader, images, resizing
from bn_inception.data.order import SHUFFLES, epoch_order
from bn_inception.data.read_errors import UNREADABLE, check_machine
from bn_inception.data.source import Source
from bn_inception.errors import UserError, check_choice
from bn_inception.machine import interruption, shared_memory
from bn_inception.wording import count

TRAIN_CROPS = ('whole', 'area')
EVAL_CROPS = tuple(crops.NUM_CROPS)
ON_BAD_IMAGE = ('raise', 'skip')
RANDOM = 'random'
# With this many bad images in a row the data set itself is wrong.
_MAX_BAD_IN_A_ROW = 100
# Without 64-bit mode devices hold int32, enough for 2 billion examples.
_DEVICE_INDEX = np.int32


@dataclasses.dataclass(frozen=True)
class InputOptions:
  """How examples are ordered and turned into network inputs.

  Attributes:
    image_size: height and width of the network's input.
    shuffle: 'shards', 'within_shards' or 'global', see `order.epoch_order`.
    num_shards: logical shards, cut from a fixed permutation of the source.
    train_crop: 'whole' image, or 'area': 8-100 % of it, at any position.
    eval_crop: a rule of `crops.evaluation_views`.
    mirror: flip half of the training images left to right.
    interpolation: 'bilinear', 'area', 'nearest', 'bicubic', or 'random': one of the
      four for each training image (GoogLeNet, Section 6) and bilinear in
      evaluation. Rules in `crops.RESIZERS` have their own.
    on_bad_image: whether a training image that cannot be decoded ends the run
      ('raise') or is replaced by the next one of the order ('skip').
    num_workers: worker processes; 0 uses threads of this process.
    prefetch: batches to prepare ahead.
  """

  image_size: int
  shuffle: str
  num_shards: int
  train_crop: str
  eval_crop: str
  mirror: bool
  interpolation: str
  on_bad_image: str
  num_workers: int
  prefetch: int

  def __post_init__(self):
    for name, valid in (
      ('shuffle', SHUFFLES),
      ('train_crop', TRAIN_CROPS),
      ('eval_crop', EVAL_CROPS),
      ('interpolation', (*resizing.OPENCV, RANDOM)),
      ('on_bad_image', ON_BAD_IMAGE),
    ):
      check_choice(f'data.{name}', getattr(self, name), valid)
    config_keys.check_section('data', dataclasses.asdict(self))

  @property
  def is_random(self) -> bool:
    """Whether a training image differs from epoch to epoch."""
    return (
      self.train_crop == 'area' or self.mirror or self.interpolation == RANDOM
    )


def _resize(
  part: np.ndarray, method: str, is_mirrored: bool, out: np.ndarray
) -> None:
  """Resizes to a square and writes to `out`, uint8 [size, size, C]."""
  size = out.shape[:2]
  if part.shape[:2] != size:
    part = resizing.resize(part, size, method, None if is_mirrored else out)
  if is_mirrored:
    cv2.flip(part, 1, dst=out)
  elif part is not out:
    out[...] = part


def prepare_training_image(
  image: images.Image,
  options: InputOptions,
  rng: np.random.Generator | None,
  out: np.ndarray,
) -> None:
  """Crops, resizes and mirrors an image at random.

  Args:
    image: the image.
    options: see `InputOptions`.
    rng: source of randomness; may be None unless `options.is_random`.
    out: uint8 [image_size, image_size, C] to write to.

  Raises:
    BadImageError: if the image cannot be decoded.
  """
  box = 0, 0, image.height, image.width
  if options.train_crop == 'area':
    box = crops.training_crop(rng, image.height, image.width)
  part = image.cut(box)
  is_mirrored = options.mirror and rng.random() < 0.5
  interpolation = options.interpolation
  if interpolation == RANDOM:
    interpolation = tuple(resizing.OPENCV)[rng.integers(len(resizing.OPENCV))]
  _resize(part, interpolation, is_mirrored, out)


def prepare_evaluation_image(
  image: images.Image, options: InputOptions, out: np.ndarray
) -> None:
  """Writes the views to `out`, uint8 [views, image_size, image_size, C].

  Raises:
    BadImageError: if the image cannot be decoded.
  """
  method = crops.RESIZERS.get(options.eval_crop, options.interpolation)
  if method == RANDOM:
    method = 'bilinear'
  resized = {None: image}  # size -> image: up to 18 views share a size
  views = crops.evaluation_views(
    image.height, image.width, options.eval_crop, options.image_size
  )
  for view, target in zip(views, out, strict=True):
    if view.size not in resized:
      whole = image.cut((0, 0, image.height, image.width))
      pixels = resizing.resize(whole, view.size, method)
      resized[view.size] = images.Image(pixels)
    _resize(resized[view.size].cut(view.box), method, False, target)


def _batch_shapes(
  options: InputOptions, batch_size: int, num_channels: int
) -> dict[str, tuple[tuple[int, ...], type]]:
  """Name -> (shape, dtype) on the host."""
  size = options.image_size
  return {
    'image': ((batch_size, size, size, num_channels), np.uint8),
    'label': ((batch_size,), np.int32),
    'mask': ((batch_size,), np.bool_),
    'index': ((batch_size,), np.int64),
  }


def abstract_training_batch(
  options: InputOptions,
  batch_size: int,
  num_channels: int,
  sharding: jax.sharding.Sharding,
  accumulate_steps: int = 1,
) -> dict[str, jax.ShapeDtypeStruct]:
  """Shapes, dtypes and shardings of the training batches from `DeviceBatches`.

  Args:
    options, batch_size, accumulate_steps: see `training_batches`.
    num_channels: the images' channels.
    sharding: see `mesh.batch_sharding`.
  """
  stack = (accumulate_steps,) if accumulate_steps > 1 else ()
  shapes = _batch_shapes(options, batch_size // accumulate_steps, num_channels)
  return {
    name: jax.ShapeDtypeStruct(
      stack + shape,
      _DEVICE_INDEX if name == 'index' else dtype,
      sharding=sharding,
    )
    for name, (shape, dtype) in shapes.items()
  }


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Batches:
  """Random access to this process's part of the batches of a stream of examples.

  Attributes:
    batch_size: examples in a batch, over all processes.
    first_step: batch of the stream that is number 0 here.
    process_index, process_count: JAX's, which worker processes do not know.
  """

  source: Source
  options: InputOptions
  batch_size: int
  first_step: int = 0
  process_index: int = dataclasses.field(
    default_factory=lambda: jax.process_index()
  )
  process_count: int = dataclasses.field(
    default_factory=lambda: jax.process_count()
  )

  def _empty_batch(self, step: int) -> tuple[np.ndarray, grain_reader.Batch]:
    """Positions in the stream of a batch's examples, and a batch to fill."""
    size = self.batch_size // self.process_count
    start = (self.first_step + step) * self.batch_size
    positions = start + self.process_index * size + np.arange(size)
    shapes = _batch_shapes(self.options, size, self.source.num_channels)
    batch = {name: np.empty(*shape) for name, shape in shapes.items()}
    batch['mask'][:] = True
    return positions, batch


@dataclasses.dataclass(frozen=True, kw_only=True)
class _TrainingBatches(_Batches):
  """Batches of the endless stream of epochs."""

  num_steps: int
  seed: int

  def __len__(self) -> int:
    return self.num_steps

  def __getitem__(self, step: int) -> grain_reader.Batch:
    positions, batch = self._empty_batch(step)
    batch['replaced'] = np.full(len(positions), -1)
    for row, position in enumerate(positions):
      self._fill(batch, row, int(position))
    return batch

  def _index(self, position: int, ahead: int = 0) -> int:
    """The example at a position of the stream, or `ahead` of it in its epoch."""
    num_examples = len(self.source)
    epoch, offset = divmod(int(position), num_examples)
    order = epoch_order(
      num_examples,
      self.options.num_shards,
      self.options.shuffle,
      self.seed,
      epoch,
    )
    return int(order[(offset + ahead) % num_examples])

  def _fill(self, batch: dict, row: int, position: int) -> None:
    epoch = position // len(self.source)
    for ahead in range(_MAX_BAD_IN_A_ROW):
      index = self._index(position, ahead)
      try:
        image, label = _open(self.source, index)
        rng = None
        if self.options.is_random:  # slower than preparing a small image
          rng = np.random.default_rng([self.seed, epoch, index])
        prepare_training_image(image, self.options, rng, batch['image'][row])
        batch['label'][row], batch['index'][row] = label, index
        return
      except images.BadImageError as error:
        if self.options.on_bad_image == 'raise':
          raise UserError(
            f'{self.source.describe(index)}: {error}: fix or remove it, or set '
            '--config.data.on_bad_image=skip to substitute the next image'
          ) from error
        batch['replaced'][row] = self._index(position)
    raise UserError(
      f'{_MAX_BAD_IN_A_ROW} bad images in a row, the last one '
      f'{self.source.describe(index)}: check that this is a data set of images'
    )


class _EvaluationBatches(_Batches):
  """Batches of one pass over the source; the last one is padded."""

  def __len__(self) -> int:
    return -(-len(self.source) // self.batch_size)

  def __getitem__(self, step: int) -> grain_reader.Batch:
    positions, batch = self._empty_batch(step)
    num_views = crops.num_views(self.options.eval_crop)
    single, *size = batch['image'].shape
    views = np.empty((single, num_views, *size), np.uint8)
    batch['image'] = views[:, 0] if num_views == 1 else views
    is_real = positions < len(self.source)
    indices = np.where(is_real, positions, 0)
    batch['mask'][:], batch['index'][:] = is_real, indices
    for row, index in enumerate(indices):
      try:
        image, batch['label'][row] = _open(self.source, index)
        prepare_evaluation_image(image, self.options, views[row])
      except images.BadImageError as error:
        raise UserError(
          f'{self.source.describe(index)}: {error}: fix or remove it; '
          'evaluation skips no image'
        ) from error
    return batch


def _open(source: Source, index: int) -> tuple[images.Image, int]:
  """Reads an example, without decoding a JPEG.

  Raises:
    BadImageError: if it cannot be read or is not an image.
    UserError: if its label is not one of the classes, a fault of the data set that
      skipping would hide.
  """
  try:
    image, label = source[index]
  except UNREADABLE as error:
    check_machine(error, source.describe(index))
    raise images.BadImageError(f'cannot be read ({error})') from error
  if not 0 <= label < len(source.class_names):
    raise UserError(
      f'{source.describe(index)}: label {label} is not one of the '
      f'{count(len(source.class_names), "class", "classes")}: prepare the data set again, or use '
      'a split that has labels'
    )
  return images.open_image(image, source.num_channels), label


def training_load(
  options: InputOptions, batch_size: int, num_channels: int, num_batches: int
) -> shared_memory.Load:
  """The shared memory that `training_batches` with these arguments takes."""
  shape, _ = _batch_shapes(options, batch_size, num_channels)['image']
  return shared_memory.Load(
    math.prod(shape) // jax.process_count(), num_batches
  )


def evaluation_load(
  options: InputOptions, batch_size: int, source: Source
) -> shared_memory.Load:
  """The shared memory that `evaluation_batches` with these arguments takes."""
  num_views = crops.num_views(options.eval_crop)
  return training_load(
    options,
    batch_size * num_views,
    source.num_channels,
    -(-len(source) // batch_size),
  )


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
    batch_size: examples in a batch, over all processes.
    seed: seed of order and augmentation.
    first_step, last_step: in updates.
    accumulate_steps: if above 1, a batch is this many micro-batches, stacked along
      a new first axis: consecutive parts of the stream, whatever the number of
      devices.
  """
  num_steps = last_step - first_step
  batches = _TrainingBatches(
    source=source,
    options=options,
    batch_size=batch_size // accumulate_steps,
    first_step=first_step * accumulate_steps,
    num_steps=num_steps * accumulate_steps,
    seed=seed,
  )
  load = training_load(options, batch_size, source.num_channels, num_steps)
  return grain_reader.read(
    batches, options.num_workers, options.prefetch, load, accumulate_steps
  )


def evaluation_batches(
  source: Source, options: InputOptions, batch_size: int
) -> Iterator[dict]:
  """This process's part of one pass over the source, in its order.

  Every example comes once; padding in the last batch has mask False. With several
  views, image is [B, views, H, W, C].
  """
  batches = _EvaluationBatches(
    source=source, options=options, batch_size=batch_size
  )
  load = evaluation_load(options, batch_size, source)
  return grain_reader.read(batches, options.num_workers, options.prefetch, load)


class DeviceBatches(Iterator[dict]):
  """Batches sent to the devices, one ahead of the one in use.

  Args:
    batches: this process's part of each.
    device_mesh: the devices to divide them over: see `mesh.batch_sharding`.
    is_accumulating: whether a batch is a stack of micro-batches.
  """

  def __init__(
    self,
    batches: Iterator[dict],
    device_mesh: jax.sharding.Mesh,
    is_accumulating: bool = False,
  ):
    self._wait_seconds, self._replaced = 0.0, []
    self._batches = iter(batches)
    self._sharding = mesh.batch_sharding(device_mesh, is_accumulating)
    with interruption.shielding_children():  # Grain's workers start here
      self._ahead = self._receive()

  def __next__(self) -> dict:
    if self._ahead is None:
      raise StopIteration
    batch, replaced = self._ahead
    self._ahead = self._receive()
    self._replaced += replaced
    return batch

  def take_wait_seconds(self) -> float:
    """How long the host's input was waited for since the last call."""
    seconds, self._wait_seconds = self._wait_seconds, 0.0
    return seconds

  def take_replaced(self) -> list[int]:
    """Indices of the bad examples in the batches since the last call."""
    replaced, self._replaced = self._replaced, []
    return replaced

  def close(self) -> None:
    """Ends the threads and processes; iterate no further."""
    if hasattr(self._batches, 'close'):  # Grain's; tests have others
      self._batches.close()
    self._batches = iter(())  # so that Grain's destructors run now

  def _receive(self) -> tuple[dict, list[int]] | None:
    start = time.monotonic()
    with contextlib.ExitStack() as after_error:
      # Else Grain's workers print tracebacks when the interpreter exits.
      after_error.callback(self.close)
      batch = grain_reader.next_batch(self._batches)
      after_error.pop_all()
    self._wait_seconds += time.monotonic() - start
    if batch is None:
      return None
    replaced = batch.pop('replaced', np.empty(0, np.int64))
    batch['index'] = batch['index'].astype(_DEVICE_INDEX)
    sent = {
      name: jax.make_array_from_process_local_data(self._sharding, value)
      for name, value in batch.items()
    }
    return sent, replaced[replaced >= 0].tolist()

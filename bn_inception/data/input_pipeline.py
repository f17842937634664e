"""From a source to batches: order, decode, crop, resize, prefetch, devices.

The order is a pure function of (seed, step): a run resumes from its step number
and nothing else, on any number of hosts, threads and worker processes. Batches
are cut from an endless stream of epochs, in each of which every example comes
exactly once; a batch may span two epochs.

A batch on the host is {'image': uint8 [B, H, W, C], 'label': int32 [B],
'mask': bool [B], 'index': int64 [B]}; those of training also have 'replaced',
int64 [B]: the bad example that another one stands in for, or -1.
"""

import contextlib
import dataclasses
import math
import os
import pickle
import re
import signal
import tempfile
import threading
import time
import weakref
from collections.abc import Iterator

import cv2
import grain
import jax
import numpy as np

from bn_inception import config_keys
from bn_inception.data import crops, images, resizing
from bn_inception.data.order import SHUFFLES, epoch_order
from bn_inception.data.sources import UNREADABLE, Source, check_machine
from bn_inception.errors import UserError, check_choice, writing
from bn_inception.machine import interruption, shared_memory

TRAIN_CROPS = ('whole', 'area')
EVAL_CROPS = tuple(crops.NUM_CROPS)
ON_BAD_IMAGE = ('raise', 'skip')
RANDOM = 'random'
# So many bad images in a row are no exception: the data are not what they seem.
_MAX_BAD_IN_A_ROW = 100
# Without 64-bit mode devices hold int32, enough for 2 billion examples.
_DEVICE_INDEX = np.int32


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
    eval_crop: a rule of `crops.evaluation_views`.
    mirror: flip training images left to right at random.
    interpolation: to resize with: 'bilinear', 'area', 'nearest', 'bicubic', or
      'random': each training image one of the four (GoogLeNet, Section 6), and
      bilinear in evaluation. Rules of `crops.RESIZERS` have their own.
    on_bad_image: in training, an image that cannot be decoded ends the run
      ('raise') or is replaced by the next one of the order ('skip').
    num_workers: worker processes; 0 = threads of this process.
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
    """Whether a training image is another one in every epoch."""
    return (
      self.train_crop == 'area' or self.mirror or self.interpolation == RANDOM
    )


def _resize(
  part: np.ndarray, method: str, is_mirrored: bool, out: np.ndarray
) -> None:
  """Writes `part`, resized to a square, into uint8 [size, size, C]."""
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
  """Writes a random crop and mirror image into uint8 [image_size, image_size, C].

  `rng` may be None where `options` has nothing random.

  Raises:
    BadImageError: if it cannot be decoded.
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
  """Writes the views into uint8 [views, image_size, image_size, C].

  Raises:
    BadImageError: if it cannot be decoded.
  """
  method = crops.RESIZERS.get(options.eval_crop, options.interpolation)
  if method == RANDOM:
    method = 'bilinear'
  resized = {None: image}  # each size once: nine views of an image share it
  views = crops.evaluation_views(
    image.height, image.width, options.eval_crop, options.image_size
  )
  for view, target in zip(views, out, strict=True):
    if view.size not in resized:
      whole = image.cut((0, 0, image.height, image.width))
      pixels = resizing.resize(whole, view.size, method)
      resized[view.size] = images.Image(pixels)
    _resize(resized[view.size].cut(view.box), method, False, target)


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

  def positions(self, step: int) -> np.ndarray:
    """Those of the examples of a batch, steps counted from the first one."""
    start = (
      (self.first_step + step) * self.batch_size
      + self.process_index * self.local_batch_size
    )  # fmt: skip
    return start + np.arange(self.local_batch_size)


def _batch_shapes(
  options: InputOptions, batch_size: int, num_channels: int
) -> dict[str, tuple[tuple[int, ...], type]]:
  """Name -> shape and type on the host."""
  size = options.image_size
  return {
    'image': ((batch_size, size, size, num_channels), np.uint8),
    'label': ((batch_size,), np.int32),
    'mask': ((batch_size,), np.bool_),
    'index': ((batch_size,), np.int64),
  }


def _empty_batch(
  source: Source, options: InputOptions, batch_size: int
) -> dict[str, np.ndarray]:
  shapes = _batch_shapes(options, batch_size, source.num_channels)
  batch = {name: np.empty(*shape) for name, shape in shapes.items()}
  batch['mask'][:] = True
  return batch


def abstract_training_batch(
  options: InputOptions,
  batch_size: int,
  num_channels: int,
  sharding: jax.sharding.Sharding,
  accumulate_steps: int = 1,
) -> dict[str, jax.ShapeDtypeStruct]:
  """Shapes and types of the global batches that training gets on the devices.

  Args:
    options, batch_size, accumulate_steps: see `training_batches`.
    num_channels: of the images.
    sharding: see `DeviceBatches`.
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


@dataclasses.dataclass(frozen=True)
class _TrainingBatches:
  """Random access to the batches of the endless stream, from a step on."""

  source: Source
  options: InputOptions
  part: _HostPart
  num_steps: int
  seed: int

  def __len__(self) -> int:
    return self.num_steps

  def __getitem__(self, step: int) -> dict[str, np.ndarray]:
    positions = self.part.positions(step)
    batch = _empty_batch(self.source, self.options, len(positions))
    batch['replaced'] = np.full(len(positions), -1)
    for row, position in enumerate(positions):
      self._fill(batch, row, int(position))
    return batch

  def _index(self, position: int, ahead: int = 0) -> int:
    """Of the example at a position, or so many ahead of it in its epoch."""
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
        if self.options.is_random:  # it takes longer than a small image
          rng = np.random.default_rng([self.seed, epoch, index])
        prepare_training_image(image, self.options, rng, batch['image'][row])
        batch['label'][row], batch['index'][row] = label, index
        return
      except images.BadImageError as error:
        if self.options.on_bad_image == 'raise':
          raise UserError(
            f'{self.source.describe(index)}: {error}: mend it, or replace all '
            'such images by others with --config.data.on_bad_image=skip'
          ) from error
        batch['replaced'][row] = self._index(position)
    raise UserError(
      f'{_MAX_BAD_IN_A_ROW} bad images in a row, the last one '
      f'{self.source.describe(index)}: is this a data set of images?'
    )


@dataclasses.dataclass(frozen=True)
class _EvaluationBatches:
  """Random access to one pass over the source, padded to whole batches."""

  source: Source
  options: InputOptions
  part: _HostPart

  def __len__(self) -> int:
    return -(-len(self.source) // self.part.batch_size)

  def __getitem__(self, step: int) -> dict[str, np.ndarray]:
    positions = self.part.positions(step)
    batch = _empty_batch(self.source, self.options, len(positions))
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
          f'{self.source.describe(index)}: {error}: evaluation leaves no '
          'example out, so mend it'
        ) from error
    return batch


def _open(source: Source, index: int) -> tuple[images.Image, int]:
  """An example, not yet decoded.

  Raises:
    BadImageError: if it cannot be read or is no image.
    UserError: if its label is not one of the classes: the fault is the data
      set's, and skipping the example would hide it.
  """
  try:
    image, label = source[index]
  except UNREADABLE as error:
    check_machine(error, source.describe(index))
    raise images.BadImageError(f'it cannot be read ({error})') from error
  if not 0 <= label < len(source.class_names):
    raise UserError(
      f'{source.describe(index)}: label {label} is not one of the '
      f'{len(source.class_names)} classes: prepare the data set again, or use '
      'a split that has labels'
    )
  return images.open_image(image, source.num_channels), label


def _start_worker(worker_index: int, worker_count: int) -> None:
  """Leaves the end of a worker process to its parent, or to the parent's death.

  Signals to a whole group of processes are for the parent, which saves first.
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


def _unpickle(path: str):
  with open(path, 'rb') as file:
    return pickle.load(file)


class _PickledToFile:
  """Batches that worker processes read from a file of this process.

  A new process gets its arguments through a pipe, of which the parent holds both
  ends: if the process is killed before it has read what the pipe cannot hold
  (64 KiB), the parent waits for ever. Sources can be larger than that.
  """

  def __init__(self, batches):
    self._batches = batches
    with writing(
      tempfile.gettempdir(), 'make room, or set TMPDIR to another folder'
    ):
      # It has no name that could outlive this process, whatever ends it.
      self._file = tempfile.TemporaryFile()
      weakref.finalize(self, self._file.close)
      pickle.dump(batches, self._file, pickle.HIGHEST_PROTOCOL)
      self._file.flush()

  def __len__(self) -> int:
    return len(self._batches)

  def __getitem__(self, step: int) -> dict[str, np.ndarray]:
    return self._batches[step]

  def __reduce__(self):
    path = f'/proc/{os.getpid()}/fd/{self._file.fileno()}'
    return _unpickle, (path,)


def _num_cores() -> int:
  """That this process may use."""
  if hasattr(os, 'sched_getaffinity'):
    return len(os.sched_getaffinity(0))
  return os.cpu_count()


def training_load(
  options: InputOptions, batch_size: int, num_channels: int, num_batches: int
) -> shared_memory.Load:
  """Of `training_batches`, with its arguments."""
  shape, _ = _batch_shapes(options, batch_size, num_channels)['image']
  return shared_memory.Load(
    math.prod(shape) // jax.process_count(), num_batches
  )


def evaluation_load(
  options: InputOptions, batch_size: int, source: Source
) -> shared_memory.Load:
  """Of `evaluation_batches`, with its arguments."""
  num_views = crops.num_views(options.eval_crop)
  return training_load(
    options,
    batch_size * num_views,
    source.num_channels,
    -(-len(source) // batch_size),
  )


def _batches(
  batches, options: InputOptions, load: shared_memory.Load, stack: int = 1
) -> Iterator[dict]:
  shared_memory.check(options.num_workers, options.prefetch, [load])
  # As many threads as cores, in all processes together: more of them were
  # slower, twice as many by a tenth.
  num_threads = _num_cores() // max(1, options.num_workers)
  num_threads = min(max(1, num_threads), 16)
  # Systems without /proc keep the pipe, and its danger while a worker starts.
  if options.num_workers and os.path.exists('/proc/self/fd'):
    batches = _PickledToFile(batches)
  dataset = grain.MapDataset.source(batches)
  if stack > 1:
    dataset = dataset.batch(stack)
  dataset = dataset.to_iter_dataset(
    grain.ReadOptions(
      num_threads=num_threads,
      prefetch_buffer_size=max(num_threads, options.prefetch),
    )
  )
  if options.num_workers:
    dataset = grain.experimental.WithOptionsIterDataset(
      dataset,
      grain.experimental.DatasetOptions(min_shm_size=shared_memory.MIN_BYTES),
    )
    dataset = dataset.mp_prefetch(
      grain.MultiprocessingOptions(
        num_workers=options.num_workers, per_worker_buffer_size=options.prefetch
      ),
      worker_init_fn=_start_worker,
    )
  with interruption.shielding_children():
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
  batches = _TrainingBatches(source, options, part, num_micro_batches, seed)
  load = training_load(
    options, batch_size, source.num_channels, last_step - first_step
  )
  return _batches(batches, options, load, stack=accumulate_steps)


def evaluation_batches(
  source: Source, options: InputOptions, batch_size: int
) -> Iterator[dict]:
  """This process's part of one pass over the source, in the source's order.

  Every example comes once; the last batch is padded with examples of mask
  False. Of several views each, image is [B, views, H, W, C].
  """
  part = _HostPart(batch_size, jax.process_index(), jax.process_count())
  return _batches(
    _EvaluationBatches(source, options, part),
    options,
    evaluation_load(options, batch_size, source),
  )


# What Grain says of a worker process that has not come to its end.
_LOST_WORKER = re.compile(r'Worker process was .* with exit code (-?\d+)')


def _next_batch(batches: Iterator[dict]) -> dict | None:
  """None at the end.

  Raises:
    UserError: if a worker process was killed or has crashed. Batches come in
      their order or not at all, so that none is left out.
  """
  try:
    return next(batches, None)
  except RuntimeError as error:
    lost = _LOST_WORKER.search(str(error))
    if lost is None:
      raise
    status = int(lost[1])
    cause = f'ended with exit status {status}'
    if status < 0:
      cause = f'was killed by {signal.Signals(-status).name}'
    remedy = ''
    if status == -signal.SIGKILL:
      cause += ', as Linux does when memory is short'
    if status == -signal.SIGBUS:
      cause += f', as Linux does when {shared_memory.PLACE} is full'
      remedy = ', or give a container more with `docker run --shm-size=...`'
    raise UserError(
      f'a worker process of the input pipeline {cause}: give the same command '
      'again, with fewer --config.data.num_workers if it happens again'
      f'{remedy}'
    ) from error


class DeviceBatches(Iterator[dict]):
  """Batches sent to the devices, one ahead of the one in use.

  Attributes:
    wait_seconds: spent so far waiting for the host to prepare batches.
    replaced: bad examples in the batches handed out so far, by their indices.
  """

  def __init__(self, batches: Iterator[dict], sharding: jax.sharding.Sharding):
    self.wait_seconds, self.replaced = 0.0, []
    self._batches, self._sharding = iter(batches), sharding
    with interruption.shielding_children():  # Grain's workers start here
      self._ahead = self._receive()

  def __next__(self) -> dict:
    if self._ahead is None:
      raise StopIteration
    batch, replaced = self._ahead
    self._ahead = self._receive()
    self.replaced += replaced
    return batch

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
      batch = _next_batch(self._batches)
      after_error.pop_all()
    self.wait_seconds += time.monotonic() - start
    if batch is None:
      return None
    replaced = batch.pop('replaced', np.empty(0, np.int64))
    batch['index'] = batch['index'].astype(_DEVICE_INDEX)
    sent = {
      name: jax.make_array_from_process_local_data(self._sharding, value)
      for name, value in batch.items()
    }
    return sent, replaced[replaced >= 0].tolist()

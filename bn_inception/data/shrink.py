"""Writes a copy of a data set with smaller images, in TFDS's layout.

Decoding photographs limits the input pipeline, and the networks see at most
224 x 224 pixels of them.
"""

import json
import os
import pathlib
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import NamedTuple

import cv2
import numpy as np
from etils import epath

from bn_inception.data import imagenet
from bn_inception.data.directories import find_split, require_folder
from bn_inception.data.images import BadImageError, decode_image
from bn_inception.data.progress import Progress
from bn_inception.data.read_errors import UNREADABLE, check_machine
from bn_inception.data.source import (
  DIGITS,
  IMAGE_FOLDER,
  SYNTHETIC,
  Example,
  Source,
)
from bn_inception.data.sources import (
  FOLDERS,
  PREPARED,
  imagenet_forms,
  make_source,
)
from bn_inception.data.tfds_metadata import (
  LABEL_FILE,
  describe_error,
  parse_name,
)
from bn_inception.data.tfds_source import SHRUNK_FILE, TfdsSource, open_builder
from bn_inception.errors import UserError, writing
from bn_inception.wording import count

EXAMPLES_PER_SHARD = 1250  # gives ImageNet about as many shards as TFDS does
RECORDS_PER_READ = 64
_START_AGAIN = 'free up space or fix the folder, then start again'
# OpenCV's 4:2:0 would save a fifth of the bytes and cost 3 dB.
FULL_CHROMA = (
  cv2.IMWRITE_JPEG_SAMPLING_FACTOR,
  cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444,
)


class _Split(NamedTuple):
  """A split to copy.

  Attributes:
    source: the examples in order.
    shard_lengths: number of examples in each shard of the copy.
    paths: the same shards of the original, if it was prepared by TFDS, or None.
    features: TFDS's features, which serialise an example.
  """

  source: Source
  shard_lengths: list[int]
  paths: list[epath.Path] | None
  features: object


class _Shard(NamedTuple):
  """A shard to write; `first` is the index of its first example in the split."""

  index: int
  first: int
  length: int
  path: str


def shrink_image(encoded: bytes, short_side: int, quality: int) -> bytes:
  """A JPEG with the given short side in pixels; smaller images stay unchanged.

  Raises:
    BadImageError: if the bytes are not an image.
  """
  pixels = decode_image(encoded, 3)
  height, width = pixels.shape[:2]
  if min(height, width) <= short_side:
    return encoded
  scale = short_side / min(height, width)
  smaller = cv2.resize(
    pixels,
    (round(width * scale), round(height * scale)),
    interpolation=cv2.INTER_AREA,
  )
  _, jpeg = cv2.imencode(
    '.jpg',
    cv2.cvtColor(smaller, cv2.COLOR_RGB2BGR),
    (cv2.IMWRITE_JPEG_QUALITY, quality, *FULL_CHROMA),
  )
  return jpeg.tobytes()


def shrink(
  dataset: str,
  data_dir: str,
  output_dir: str,
  short_side: int = 256,
  quality: int = 95,
  splits: list[str] | None = None,
) -> str:
  """Writes the copy, with the same order, labels and other features.

  The copy gets its final name when it is complete.

  Args:
    dataset: name in the TFDS catalogue, with RGB images. 'imagenet2012' may be in
      any form that `make_source` reads.
    data_dir: parent of the original.
    output_dir: parent of the copy: the data_dir to train from.
    short_side: short side of the copy's images, in pixels.
    quality: JPEG quality, 1 to 100.
    splits: None: all splits.

  Returns:
    The folder of the copy.

  Raises:
    UserError: for a bad argument, an existing copy, an unreadable image or record,
      or a file that cannot be written.
  """
  if short_side < 1 or not 1 <= quality <= 100:
    raise UserError(
      'short_side must be at least 1, and quality between 1 and 100: got '
      f'{short_side} and {quality}'
    )
  if '://' in output_dir or os.path.realpath(output_dir) == os.path.realpath(
    data_dir
  ):
    raise UserError(
      f'output_dir {output_dir} must be a local folder and different from '
      'data_dir'
    )
  info, opened = _open_splits(dataset, data_dir, splits)
  target = pathlib.Path(output_dir).expanduser() / info.full_name
  if target.exists():
    raise UserError(
      f'{target} already exists: remove it, or give another output_dir'
    )
  unfinished = target.with_name(f'{target.name}.incomplete')
  origins = {name: split.source.origin() for name, split in opened.items()}
  how = {
    'short_side': short_side,
    'quality': quality,
    'chroma': '4:4:4',
    'interpolation': 'cv2.INTER_AREA',
    'source': origins,
  }
  with writing(str(unfinished), _START_AGAIN):
    shutil.rmtree(unfinished, ignore_errors=True)  # left by a killed run
    unfinished.mkdir(parents=True)
    _write_splits(
      info, opened, unfinished, lambda e: shrink_image(e, short_side, quality)
    )
    (unfinished / SHRUNK_FILE).write_text(json.dumps(how, indent=2) + '\n')
    unfinished.rename(target)
  print(f'written: {target}', flush=True)
  return str(target)


def _open_splits(dataset: str, data_dir: str, splits: list[str] | None):
  """TFDS's info about the data set, and name -> split."""
  import tensorflow_datasets as tfds

  require_folder(data_dir)
  name = parse_name(dataset)[0]
  if name in (IMAGE_FOLDER, DIGITS, SYNTHETIC):
    raise UserError(
      f'{name} cannot be shrunk: --dataset takes {imagenet.NAME}, or a data set '
      'prepared by TFDS'
    )
  forms = imagenet_forms(data_dir) if name == imagenet.NAME else [PREPARED]
  # Without any form, open_builder raises an error with the remedy.
  if PREPARED in forms or not forms:
    builder = open_builder(dataset, data_dir)
    return builder.info, {
      split: _open_prepared(dataset, split, data_dir, builder)
      for split in splits or builder.info.splits
    }
  root = epath.Path(data_dir).expanduser()
  if splits is None and FOLDERS in forms:
    splits = [s for s in imagenet.NUM_EXAMPLES if find_split(root, s)]
  elif splits is None:
    splits = [
      archive.split
      for name, archive in imagenet.ARCHIVES.items()
      if (root / name).exists()
    ]
  with tempfile.TemporaryDirectory() as empty:  # not the info of a copy
    info = tfds.builder(imagenet.NAME, data_dir=empty).info
  info.set_file_format(tfds.core.FileFormat.ARRAY_RECORD, override=True)
  opened = {}
  for split in splits:
    source = make_source(imagenet.NAME, split, data_dir)
    lengths = _even_shards(len(source))
    opened[split] = _Split(source, lengths, None, info.features)
  return info, opened


def _open_prepared(dataset: str, split: str, data_dir: str, builder) -> _Split:
  if split not in builder.info.splits:
    raise UserError(
      f"{dataset} has no split '{split}': --splits takes "
      f'{", ".join(builder.info.splits)}'
    )
  source = TfdsSource(dataset, split, data_dir)
  image_type = np.dtype(builder.info.features['image'].np_dtype).name
  if image_type != 'uint8':
    raise UserError(
      f'{dataset} has images of {image_type}: only uint8 can be shrunk'
    )
  if source.num_channels != 3:
    raise UserError(
      f'{dataset} has images with {count(source.num_channels, "channel")}: only '
      'RGB images can be shrunk'
    )
  info = builder.info.splits[split]
  return _Split(
    source, info.shard_lengths, info.filepaths, builder.info.features
  )


def _even_shards(num_examples: int) -> list[int]:
  num_shards = max(1, round(num_examples / EXAMPLES_PER_SHARD))
  bounds = [num_examples * i // num_shards for i in range(num_shards + 1)]
  return [bounds[i + 1] - bounds[i] for i in range(num_shards)]


def _write_splits(
  info,
  opened: dict[str, _Split],
  folder: pathlib.Path,
  change: Callable[[bytes], bytes],
) -> None:
  """Writes the shards, and TFDS's metadata next to them."""
  import tensorflow_datasets as tfds

  infos = []
  for name, split in opened.items():
    template = tfds.core.ShardedFileTemplate(
      data_dir=epath.Path(folder),
      dataset_name=info.name,
      split=name,
      filetype_suffix='array_record',
    )
    paths = template.sharded_filepaths(len(split.shard_lengths))
    print(f'{name}: {count(len(split.source), "example")}', flush=True)
    for remark in split.source.remarks():
      print(f'{name}: {remark}', flush=True)
    num_bytes = _write_shards(name, split, [str(p) for p in paths], change)
    infos.append(
      tfds.core.SplitInfo(name, split.shard_lengths, num_bytes, template)
    )
  info.set_splits(tfds.core.SplitDict(infos))
  info.write_to_directory(folder)
  if not isinstance(info.features['label'], tfds.features.ClassLabel):
    names = next(iter(opened.values())).source.class_names
    (folder / LABEL_FILE).write_text('\n'.join(names) + '\n')


def _write_shards(
  name: str, split: _Split, paths: list[str], change: Callable[[bytes], bytes]
) -> int:
  """Writes the shards of a split in parallel; returns the number of bytes."""
  progress = Progress(name, len(split.source), 'images')
  stopped = threading.Event()
  first, futures = 0, []
  # Threads suffice: OpenCV and nvImageCodec release the GIL.
  with ThreadPoolExecutor(os.cpu_count()) as pool:
    for index, length in enumerate(split.shard_lengths):
      shard = _Shard(index, first, length, paths[index])
      futures.append(pool.submit(_write_shard, split, shard, change, stopped))
      first += length
    length_of = dict(zip(futures, split.shard_lengths, strict=True))
    try:
      for future in as_completed(futures):
        future.result()
        progress.advance(length_of[future])
    finally:  # after an error or interruption, stop the other threads
      stopped.set()
      pool.shutdown(wait=False, cancel_futures=True)
  return sum(future.result() for future in futures)


def _write_shard(
  split: _Split,
  shard: _Shard,
  change: Callable[[bytes], bytes],
  stopped: threading.Event,
) -> int:
  from array_record.python.array_record_module import ArrayRecordWriter

  num_bytes = 0
  try:
    writer = ArrayRecordWriter(shard.path, 'group_size:1,uncompressed')
    try:
      for position, record in enumerate(_read(split, shard)):
        if stopped.is_set():  # another thread failed
          break
        index = shard.first + position
        record = _change_image(record, change, split.source, index)
        writer.write(record)
        num_bytes += len(record)
    finally:
      writer.close()
  except RuntimeError as error:  # from array_record, such as for a full disk
    raise UserError(
      f'{shard.path} cannot be written ({describe_error(error)}): {_START_AGAIN}'
    ) from error
  return num_bytes


def _change_image(
  record: bytes, change: Callable[[bytes], bytes], source: Source, index: int
) -> bytes:
  """Changes the image in a serialised tf.train.Example."""
  from tensorflow_datasets.proto import tf_example_pb2

  example = tf_example_pb2.Example.FromString(record)
  images = example.features.feature['image'].bytes_list.value
  try:
    images[0] = change(images[0])
  except BadImageError as error:
    raise UserError(
      f'{source.describe(index)}: {error}: restore it, then start again'
    ) from error
  return example.SerializeToString(deterministic=True)


def _read_file(source: Source, index: int) -> Example:
  try:
    return source[index]
  except OSError as error:
    what = source.describe(index)
    check_machine(error, what)
    raise UserError(
      f'{what} cannot be read ({error.strerror}): fix it, then start again'
    ) from error


def _read(split: _Split, shard: _Shard) -> Iterator[bytes]:
  """The serialised examples of a shard."""
  if split.paths is None:
    for index in range(shard.first, shard.first + shard.length):
      image, label = _read_file(split.source, index)
      name = split.source.file_name(index)
      yield split.features.serialize_example(
        {'image': image, 'label': label, 'file_name': name}
      )
    return
  from array_record.python.array_record_data_source import ArrayRecordDataSource

  path = str(split.paths[shard.index])
  try:
    # One file at a time: a data source of all shards would keep all of them open.
    with ArrayRecordDataSource(path) as records:
      if len(records) != shard.length:
        raise ValueError(f'{count(len(records), "record")}, not {shard.length}')
      for start in range(0, shard.length, RECORDS_PER_READ):
        stop = min(start + RECORDS_PER_READ, shard.length)
        yield from records.__getitems__(range(start, stop))
  except UNREADABLE as error:
    check_machine(error, path)
    raise UserError(
      f'{path} cannot be read ({describe_error(error)}): copy or prepare it again'
    ) from error

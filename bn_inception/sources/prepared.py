"""Data sets prepared by TensorFlow Datasets as array_record."""

import bisect
import collections
import errno
import itertools
import json
import os
import threading

import numpy as np
from etils import epath

from bn_inception import host, paths
from bn_inception.errors import UserError
from bn_inception.sources import imagenet
from bn_inception.sources.source import (
  UNREADABLE,
  Example,
  Source,
  check_machine,
  hash_of,
  is_folder,
  number_of_machine,
)

FILE_FORMAT = 'array_record'  # the one that can be read in any order
IMAGE_TYPES = ('uint8', 'uint16')  # what `images` decodes, to uint8
_BUFFER_BYTES = 2**15  # array_record's own for random access
LABEL_FILE = 'label.labels.txt'  # the names of the classes, as it was prepared
SHRUNK_FILE = 'shrunk.json'  # beside dataset_info.json: how a copy was shrunk


def is_prepared(name: str, data_dir: str) -> bool:
  """Whether a folder holds a copy of a data set in TFDS's layout."""
  return is_folder(f'{data_dir}/{name}')


def describe_error(error: Exception) -> str:
  """The kind and the first line of an error of array_record or TFDS."""
  first_line = str(error).partition('\n')[0]
  return f'{type(error).__name__}{": " if first_line else ""}{first_line}'


def open_builder(name: str, data_dir: str | None):
  """TFDS's builder of a data set that is prepared as array_record.

  Args:
    name: in the TFDS catalogue.
    data_dir: where the data sets are; None: TFDS's own default.

  Raises:
    UserError: if the data set is unknown, not prepared under `data_dir`, in
      another file format, or not one of labelled images, or if the copy does
      not name each class once.
  """
  import tensorflow_datasets as tfds

  if data_dir is not None and not is_folder(data_dir):
    raise UserError(
      f'data_dir {data_dir} does not exist: give the folder that holds '
      f'{name}/, the data_dir of `tfds build`'
    )
  if data_dir is None:  # TFDS takes ~ as it is where there is no home folder
    default = str(tfds.core.constants.DATA_DIR)
    paths.expand(default, '--data_dir', may_be_bucket=True)
  try:
    builder = tfds.builder(name, data_dir=data_dir)
  # TFDS asserts that versions and builder configs exist.
  except (
    tfds.core.DatasetNotFoundError,
    AssertionError,
    ValueError,
  ) as error:
    raise UserError(
      f"unknown data set '{name}': use digits, synthetic, or a name of the "
      'TFDS catalogue, such as fashion_mnist or imagenet2012'
    ) from error
  _check_prepared(name, builder)
  _choose_format(builder)
  _check_features(name, builder.info.features)
  _check_label_names(builder)
  return builder


def _check_prepared(name: str, builder) -> None:
  root = builder.data_dir_root
  if not builder.info.splits:
    manual = ' --manual_dir=FOLDER_OF_THE_TWO_TARS'
    raise UserError(
      f'{name} is not prepared in {root}: point --data_dir at a prepared '
      f'copy, or run `pip install -r requirements-prepare.txt && tfds build '
      f'{name} --file_format={FILE_FORMAT} --data_dir={root}'
      f'{manual if name == imagenet.NAME else ""}`'
    )
  scheme, is_bucket, _ = str(root).partition('://')
  if is_bucket and scheme != 'gs':  # array_record takes it for a local path
    raise UserError(
      f'{name} is prepared in {root}, but records are read from gs:// buckets '
      'alone: mount this one, or copy the data set, and give that --data_dir'
    )


def _choose_format(builder) -> None:
  info = builder.info
  # `tfds convert_format` adds a format to a copy. TFDS reads of it into the
  # proto only, and would still choose the first.
  formats = [info.file_format.value, *info.as_proto.alternative_file_formats]
  if FILE_FORMAT not in formats:
    # With several workers the command ends with success even if all fail.
    raise UserError(
      f'{builder.data_dir} is prepared as {formats[0]}, which has no random '
      'access: run `pip install -r requirements-prepare.txt && tfds '
      f'convert_format --dataset_version_dir={builder.data_dir} '
      f'--out_file_format={FILE_FORMAT} --num_workers=1`'
    )
  if formats[0] != FILE_FORMAT:
    info.set_file_format(
      FILE_FORMAT, override=True, override_if_initialized=True
    )


def _check_features(name: str, features) -> None:
  missing = {'image', 'label'} - set(features)
  if missing:
    raise UserError(
      f'{name} is not a classification data set: its examples have '
      f'{sorted(features)}, without {sorted(missing)}'
    )
  import tensorflow_datasets as tfds

  image = features['image']
  if not isinstance(image, tfds.features.Image):
    raise UserError(
      f'{name} has images as {type(image).__name__}, and not encoded: prepare it '
      'again with tfds.features.Image'
    )
  image_type = np.dtype(image.np_dtype).name
  if image_type not in IMAGE_TYPES:
    raise UserError(
      f'{name} has images of {image_type}: prepare it again with '
      f'those of {" or ".join(IMAGE_TYPES)}'
    )
  label = features['label']
  if not isinstance(label, tfds.features.ClassLabel):
    raise UserError(
      f'{name} has labels as {type(label).__name__}: prepare it again with '
      'tfds.features.ClassLabel'
    )
  num_channels = image.shape[-1]
  if num_channels not in (1, 3):
    raise UserError(
      f'{name} has images of {num_channels} channels: use a data set of 1 or 3'
    )


def _read_label_names(file: epath.Path) -> tuple[str, ...]:
  lines = (line.strip() for line in file.read_text().splitlines())
  return tuple(line for line in lines if line)


def _check_label_names(builder) -> None:
  """Refuses a copy that does not name each class once.

  TFDS notices, too, but in a thread whose errors it drops, and then uses the
  wrong names.
  """
  file = epath.Path(builder.data_dir) / LABEL_FILE
  if not file.exists():  # the classes are named by their numbers
    return
  names = _read_label_names(file)
  num_classes = builder.info.features['label'].num_classes
  if len(names) != num_classes:
    raise UserError(
      f'{file} has {len(names):,} name{"" if len(names) == 1 else "s"} for '
      f'{num_classes:,} classes: '
      'copy or prepare the data set again'
    )
  name, count = collections.Counter(names).most_common(1)[0]
  if count > 1:
    raise UserError(
      f"{file} has the name '{name}' {count} times: give each class a name of "
      'its own, and prepare the data set again'
    )


class _Readers:
  """The open files of all sources of this process; threads may share it.

  array_record's own data source keeps each file open that it has read from: a
  thousand for ImageNet, in every worker process, where many systems allow 1,024.
  """

  def __init__(self):
    self._lock = threading.Lock()
    self._readers = collections.OrderedDict()  # the one used last is the last

  def read(self, path: str, position: int) -> bytes:
    """A record of a file.

    Raises:
      RuntimeError, IndexError, ValueError: of array_record.
    """
    try:
      return self._read(path, position)
    except RuntimeError as error:
      if number_of_machine(error) != errno.EMFILE:
        raise
    with self._lock:  # others than us have files open, too
      self._readers.clear()
    return self._read(path, position)

  def _read(self, path: str, position: int) -> bytes:
    try:
      return self._open(path).read([position])[0]
    except RuntimeError:
      # array_record notices only when it reads that a file could not be opened.
      with self._lock:
        self._readers.pop(path, None)
      raise

  def _open(self, path: str):
    from array_record.python.array_record_module import ArrayRecordReader

    with self._lock:
      if path in self._readers:
        self._readers.move_to_end(path)
        return self._readers[path]
    # Single reads in the calling thread: handing them to others costs more.
    reader = ArrayRecordReader(
      path,
      options='readahead_buffer_size:0,max_parallelism:0',
      file_reader_buffer_size=_BUFFER_BYTES,
    )
    with self._lock:
      self._readers[path] = reader
      # The rest is for batches in shared memory, checkpoints, and libraries. A
      # reader is closed when the last thread that reads with it lets go of it.
      while len(self._readers) > max(1, host.max_open_files() // 2):
        self._readers.popitem(last=False)
    return reader


_readers = _Readers()


class _Records:
  """Random access to the records of a split.

  Args:
    shards: TFDS's instructions: of each file, which records.
  """

  def __init__(self, shards):
    self._paths = [str(shard.filename) for shard in shards]
    self._skipped = [shard.skip for shard in shards]
    self._ends = list(itertools.accumulate(shard.take for shard in shards))

  def __len__(self) -> int:
    return self._ends[-1]

  def fingerprint(self, version: str) -> str:
    """Of a version's files: their names, and which records of each."""
    names = [os.path.basename(path) for path in self._paths]
    parts = [version, names, self._skipped, self._ends]
    return hash_of(json.dumps(parts).encode())

  def __getitem__(self, index: int) -> bytes:
    if not 0 <= index < len(self):
      raise IndexError(f'{index} is not one of {len(self)} records')
    shard = bisect.bisect_right(self._ends, index)
    start = self._ends[shard - 1] if shard else 0
    return _readers.read(
      self._paths[shard], index - start + self._skipped[shard]
    )


def _check_order(names: tuple[str, ...], file: epath.Path) -> None:
  """Refuses a copy whose labels number the classes in another order.

  Args:
    names: as TFDS gives them: of data sets in its catalogue, those of its code,
      whatever the copy says.
    file: of the copy's own names.

  Raises:
    UserError: if the copy's are in another order than these, or ImageNet's in
      another than its own; names that others spell otherwise are let pass.
  """
  own = _read_label_names(file) if file.exists() else names
  for expected in (names, imagenet.class_names()):
    if own != expected and sorted(own) == sorted(expected):
      i = next(i for i, name in enumerate(expected) if own[i] != name)
      raise UserError(
        f"{file} has the classes in another order: number {i} is '{own[i]}', "
        f"not '{expected[i]}': copy or prepare the data set again"
      )


class TfdsSource(Source):
  """A split of a data set prepared by TensorFlow Datasets as array_record.

  Reads the encoded bytes of the records itself, without TensorFlow, in half the
  time that TFDS's `as_data_source` takes.

  Raises:
    UserError: as `open_builder`, or if there is no such split or its records
      cannot be read.
  """

  def __init__(self, name: str, split: str, data_dir: str | None):
    from tensorflow_datasets.core.data_sources.base import file_instructions

    builder = open_builder(name, data_dir)
    self.name = name
    self.class_names = tuple(builder.info.features['label'].names)
    _check_order(self.class_names, epath.Path(builder.data_dir) / LABEL_FILE)
    self.num_channels = builder.info.features['image'].shape[-1]
    try:
      shards = file_instructions(builder.info, split)
    except ValueError as error:
      raise UserError(
        f"{name} has no split '{split}': use one of "
        f'{", ".join(builder.info.splits)}'
      ) from error
    self._records = _Records(shards)
    self.folder = str(builder.data_dir)
    self._version = str(builder.version)
    self._check_readable()

  def _check_readable(self) -> None:
    """Reads the first and the last record."""
    try:
      for index in (0, len(self) - 1):
        self[index]
    except UNREADABLE as error:
      check_machine(error, self.folder)
      raise UserError(
        f'the records in {self.folder} cannot be read '
        f'({type(error).__name__}): the copy is incomplete or damaged, copy or '
        'prepare it again'
      ) from error

  def __len__(self) -> int:
    return len(self._records)

  def __getitem__(self, index: int) -> Example:
    features = self._features(index)
    images = features['image'].bytes_list.value
    labels = features['label'].int64_list.value
    if len(images) != 1 or len(labels) != 1:
      raise ValueError(
        f'a record of {len(images)} images and {len(labels)} labels'
      )
    return images[0], labels[0]

  def _features(self, index: int):
    """Of the tf.train.Example that TFDS writes for an example."""
    from tensorflow_datasets.proto import tf_example_pb2

    record = self._records[int(index)]
    return tf_example_pb2.Example.FromString(record).features.feature

  def describe(self, index: int) -> str:
    try:
      file_name = self.file_name(index)
    except UNREADABLE:  # it is described because it is damaged
      file_name = str(index)
    is_named = file_name != str(index)
    return super().describe(index) + (f' ({file_name})' if is_named else '')

  def file_name(self, index: int) -> str:
    names = self._features(index)['file_name'].bytes_list.value
    return names[0].decode() if names else super().file_name(index)

  def fingerprint(self) -> str:
    """Of the version, and of the files and the number of records in each."""
    return self._records.fingerprint(self._version)

  def origin(self) -> dict:
    origin = super().origin() | {'folder': self.folder}
    shrunk = epath.Path(self.folder) / SHRUNK_FILE
    if shrunk.exists():
      origin['shrunk'] = json.loads(shrunk.read_text())
    return origin

"""Reads data sets prepared by TensorFlow Datasets as array_record."""

import bisect
import collections
import errno
import itertools
import json
import os
import re
import threading

from etils import epath

from bn_inception.data import imagenet
from bn_inception.data.directories import is_folder, names_in
from bn_inception.data.hints import find_hint, not_found
from bn_inception.data.read_errors import (
  UNREADABLE,
  check_machine,
  machine_errno,
)
from bn_inception.data.source import (
  DIGITS,
  IMAGE_FOLDER,
  SYNTHETIC,
  Example,
  Source,
  short_hash,
)
from bn_inception.data.tfds_metadata import (
  FEATURES_FILE,
  INFO_FILE,
  LABEL_FILE,
  TFDS_ERRORS,
  Copy,
  check_features,
  check_label_names,
  check_metadata,
  check_rebuilt,
  class_names,
  describe_error,
  list_copies,
  parse_name,
  quiet,
  read_label_names,
  wanted_copies,
)
from bn_inception.errors import UserError
from bn_inception.kernels import host
from bn_inception.machine import paths
from bn_inception.wording import count

FILE_FORMAT = 'array_record'  # TFDS's format with random access
# TFDS's program needs TensorFlow, so it gets an environment of its own.
_TFDS = (
  'python3 -m venv .venv-prepare && .venv-prepare/bin/pip install -r '
  'requirements-prepare.txt && .venv-prepare/bin/tfds'
)
_BUFFER_BYTES = 2**15  # array_record's default for random access
SHRUNK_FILE = 'shrunk.json'  # next to dataset_info.json: how a copy was shrunk


def is_prepared(name: str, data_dir: str) -> bool:
  """Whether a folder has a copy of a data set in TFDS's layout."""
  return bool(list_copies(epath.Path(data_dir).expanduser(), name))


def open_builder(name: str, data_dir: str | None):
  """TFDS's builder of a data set that is prepared as array_record.

  Args:
    name: name in the TFDS catalogue.
    data_dir: parent of the data sets; None: TFDS's default.

  Raises:
    UserError: if the data set is unknown, not prepared in `data_dir`, in another
      file format, not of labelled images, or does not name each class once.
  """
  if data_dir is None:
    data_dir = _default_folder()
  builder = _build(name, data_dir)
  root = data_dir or str(builder.data_dir_root)
  folder = epath.Path(builder.data_dir)
  if not names_in(folder):
    raise not_found(name, root, _how_to_prepare(name, root))
  _check_bucket(name, root)
  check_metadata(folder, (INFO_FILE,))
  _choose_format(builder)
  check_features(name, folder, builder.info.features)
  check_label_names(builder)
  return builder


def _default_folder() -> str:
  """TFDS's default folder, with ~ and file:// expanded, as TFDS does not."""
  import tensorflow_datasets as tfds

  folder = paths.expand(
    str(tfds.core.constants.DATA_DIR),
    '$TFDS_DATA_DIR' if 'TFDS_DATA_DIR' in os.environ else '--data_dir',
    may_be_bucket=True,
  )
  is_folder(folder)  # raises if it is a bucket that cannot be reached
  return folder


def _check_bucket(name: str, root: str) -> None:
  """Raises UserError for a bucket that array_record would take for a local path."""
  scheme, is_bucket, _ = root.partition('://')
  if is_bucket and scheme != 'gs':
    raise UserError(
      f'{name} is prepared in {root}, but records can be read only from gs:// '
      'buckets: mount this one, or copy the data set, and give that --data_dir'
    )


def _how_to_prepare(name: str, data_dir: str) -> str:
  """The remedy if there is no copy of a data set."""
  base = parse_name(name)[0]
  root = epath.Path(data_dir).expanduser()
  command = (
    f'`{_TFDS} build {name} --file_format={FILE_FORMAT} --data_dir={data_dir}'
  )
  if base != imagenet.NAME:
    return (
      f'it needs {base}/ as TFDS prepares it; point --data_dir at a copy, or run '
      f'{command}`'
    )
  tars = [tar for tar in imagenet.ARCHIVES if (root / tar).exists()]
  if tars:
    return (
      f'it has {" and ".join(tars)}: with both tars there, run {command} '
      f'--manual_dir={data_dir}`'
    )
  return (
    f'it needs {base}/ as TFDS prepares it, train/ or val/, or '
    f'{" or ".join(imagenet.ARCHIVES)}; point --data_dir at a copy, or run '
    f'{command} --manual_dir=FOLDER_OF_THE_TWO_TARS`'
  )


def _build(name: str, data_dir: str):
  """TFDS's builder of a data set that need not be prepared."""
  import tensorflow_datasets as tfds

  root = epath.Path(data_dir).expanduser()
  base, config, version = parse_name(name)
  copies = wanted_copies(root, name)
  try:
    tfds.builder_cls(base)
    is_known = True
  except tfds.core.DatasetNotFoundError:
    is_known = False
  # TFDS would choose the newest version even if its folder is empty.
  is_any = not is_known and not version
  is_newest = is_any and copies and copies[0].config == config
  version = f':{copies[0].version}' if is_newest else ''
  try:
    with quiet():
      return tfds.builder(f'{name}{version}', data_dir=data_dir)
  # TFDS asserts that versions and builder configs exist, and trusts the metadata.
  except TFDS_ERRORS as error:
    check_machine(error, str(root))
    # TFDS takes the features from its own code, or from the newest copy.
    is_by_code = is_known and not parse_name(name)[2]
    raise _explain(name, root, copies, is_by_code, error) from error


def _explain(
  name: str,
  root: epath.Path,
  copies: list[Copy],
  is_by_code: bool,
  error: Exception,
) -> UserError:
  """Explains why TFDS has no builder of a data set."""
  import tensorflow_datasets as tfds

  for copy in copies if is_by_code else copies[:1]:
    check_metadata(copy.folder, (INFO_FILE,))
    if not is_by_code:
      check_metadata(copy.folder, (FEATURES_FILE,))
      check_rebuilt(copy.folder)
  if copies and not isinstance(error, tfds.core.DatasetNotFoundError):
    return UserError(
      f'TFDS cannot read {copies[0].folder} ({describe_error(error)}): copy it '
      'again from where it came from, or prepare it again'
    )
  if hint := find_hint(name, str(root)):
    return UserError(f'{root} holds no copy of {name}: {hint}')
  if isinstance(error, ImportError):
    return UserError(
      f'TFDS cannot read {name} without TensorFlow ({describe_error(error)}): '
      'use a data set of images'
    )
  return UserError(
    f"unknown data set '{name}': use {DIGITS}, {SYNTHETIC}, {IMAGE_FOLDER}, or a "
    'name in the TFDS catalogue, such as fashion_mnist or imagenet2012'
  )


def _choose_format(builder) -> None:
  info = builder.info
  # `tfds convert_format` adds a format to a copy. TFDS reads it only into the
  # proto, and would still choose the first format.
  formats = [info.file_format.value, *info.as_proto.alternative_file_formats]
  if FILE_FORMAT not in formats:
    # With several workers the command exits with 0 even if all of them fail.
    raise UserError(
      f'{builder.data_dir} is prepared as {formats[0]}, which has no random '
      f'access: convert it with `{_TFDS} '
      f'convert_format --dataset_version_dir={builder.data_dir} '
      f'--out_file_format={FILE_FORMAT} --num_workers=1`'
    )
  if formats[0] != FILE_FORMAT:
    info.set_file_format(
      FILE_FORMAT, override=True, override_if_initialized=True
    )


class _Readers:
  """Least recently used cache of this process's open files; thread-safe.

  array_record's own data source keeps open every file that it has read from: a
  thousand for ImageNet in each worker process, while many systems allow 1,024.
  """

  def __init__(self):
    self._lock = threading.Lock()
    self._readers = collections.OrderedDict()  # most recently used last

  def read(self, path: str, position: int) -> bytes:
    """Reads a record.

    Raises:
      RuntimeError, IndexError, ValueError: from array_record.
    """
    try:
      return self._read(path, position)
    except RuntimeError as error:
      if machine_errno(error) != errno.EMFILE:
        raise
    with self._lock:  # other code in this process has files open too
      self._readers.clear()
    return self._read(path, position)

  def _read(self, path: str, position: int) -> bytes:
    try:
      return self._open(path).read([position])[0]
    except RuntimeError:
      # array_record reports only on reading that it could not open the file.
      with self._lock:
        self._readers.pop(path, None)
      raise

  def _open(self, path: str):
    from array_record.python.array_record_module import ArrayRecordReader

    with self._lock:
      if path in self._readers:
        self._readers.move_to_end(path)
        return self._readers[path]
    # Read in the calling thread: handing over single records costs more.
    reader = ArrayRecordReader(
      path,
      options='readahead_buffer_size:0,max_parallelism:0',
      file_reader_buffer_size=_BUFFER_BYTES,
    )
    with self._lock:
      self._readers[path] = reader
      # The other half is for shared memory, checkpoints and libraries. A reader is
      # closed when the last thread that uses it drops it.
      while len(self._readers) > max(1, host.max_open_files() // 2):
        self._readers.popitem(last=False)
    return reader


_readers = _Readers()


class _Records:
  """Random access to the records of a split.

  Args:
    shards: TFDS's FileInstructions: which records of which files.
  """

  def __init__(self, shards):
    self._paths = [str(shard.filename) for shard in shards]
    self._skipped = [shard.skip for shard in shards]
    self._ends = list(itertools.accumulate(shard.take for shard in shards))

  def __len__(self) -> int:
    return self._ends[-1]

  def fingerprint(self, version: str) -> str:
    """A hash of the version, the file names, and which records of each file."""
    names = [os.path.basename(path) for path in self._paths]
    parts = [version, names, self._skipped, self._ends]
    return short_hash(json.dumps(parts).encode())

  def path(self, index: int) -> str:
    """The file that contains a record."""
    return self._paths[bisect.bisect_right(self._ends, index)]

  def __getitem__(self, index: int) -> bytes:
    if not 0 <= index < len(self):
      raise IndexError(f'{index} is not one of {len(self)} records')
    shard = bisect.bisect_right(self._ends, index)
    start = self._ends[shard - 1] if shard else 0
    return _readers.read(
      self._paths[shard], index - start + self._skipped[shard]
    )


def _check_order(names: tuple[str, ...], file: epath.Path) -> None:
  """Raises UserError if a copy has the class names in another order.

  Names that are spelt differently are accepted.

  Args:
    names: from TFDS: for data sets in its catalogue, those in its code, whatever
      the copy says.
    file: the copy's own names.
  """
  own = read_label_names(file) if file.exists() else names
  for expected in (names, imagenet.class_names()):
    if own != expected and sorted(own) == sorted(expected):
      i = next(i for i, name in enumerate(expected) if own[i] != name)
      raise UserError(
        f"{file} has the classes in another order: label {i} is '{own[i]}', "
        f"not '{expected[i]}': copy or prepare the data set again"
      )


def _find_shards(name: str, info, split: str) -> list:
  """TFDS's FileInstructions for a split or parts of splits.

  Raises:
    UserError: if the split or part does not exist or is empty.
  """
  from tensorflow_datasets.core.data_sources.base import file_instructions

  wanted = {part.partition('[')[0].strip() for part in split.split('+')}
  if wanted - {*info.splits, 'all'}:
    raise UserError(
      f"{name} has no split '{split}': use one of {', '.join(info.splits)}"
    )
  counts = {s: i.num_examples for s, i in info.splits.items()}
  try:
    shards = file_instructions(info, split)
    fault = 'is empty'
  except ValueError:  # no such syntax, or past the end
    shards, fault = [], 'does not exist'
  if shards and all(shard.take > 0 for shard in shards):
    return shards
  has = ', '.join(f'{count(n, "example")} in {s}' for s, n in counts.items())
  raise UserError(
    f"'{split}' of {name} {fault}; it has {has}: give a part such as "
    f'{_nearest_part(split, counts)}'
  )


def _nearest_part(split: str, counts: dict[str, int]) -> str:
  """'test[36:100]' of 40 examples -> 'test[36:40]'; otherwise the first half."""
  name, _, rest = split.partition('[')
  name = name if counts.get(name) else max(counts, key=counts.get)
  if found := re.fullmatch(r'(\d+):(\d+)\]', rest):
    start, stop = int(found[1]), min(int(found[2]), counts[name])
    if start < stop:
      return f'{name}[{start}:{stop}]'
  return f'{name}[:50%]'


class TfdsSource(Source):
  """A split of a data set prepared by TFDS as array_record.

  Parses the records without TensorFlow, in half the time of TFDS's
  `as_data_source`.

  Raises:
    UserError: as `open_builder`, or if the split is missing or unreadable.
  """

  def __init__(self, name: str, split: str, data_dir: str | None):
    builder = open_builder(name, data_dir)
    self.name = name
    self.class_names = class_names(builder)
    _check_order(self.class_names, epath.Path(builder.data_dir) / LABEL_FILE)
    self.num_channels = builder.info.features['image'].shape[-1]
    self._records = _Records(_find_shards(name, builder.info, split))
    self.folder = str(builder.data_dir)
    self._version = str(builder.version)
    self._check_readable()

  def _check_readable(self) -> None:
    """Reads the first and the last record."""
    for index in (0, len(self) - 1):
      try:
        self[index]
      except UNREADABLE as error:
        check_machine(error, self.folder)
        path = epath.Path(self._records.path(index))
        damage = f'has damaged records ({type(error).__name__})'
        raise UserError(
          f'{path} {damage if path.exists() else "is missing"}: the copy is '
          'incomplete or damaged, copy or prepare it again'
        ) from error

  def __len__(self) -> int:
    return len(self._records)

  def __getitem__(self, index: int) -> Example:
    features = self._features(index)
    images = features['image'].bytes_list.value
    labels = features['label'].int64_list.value
    if len(images) != 1 or len(labels) != 1:
      raise ValueError(
        f'a record with {count(len(images), "image")} and '
        f'{count(len(labels), "label")}'
      )
    return images[0], labels[0]

  def _features(self, index: int):
    """The features of the tf.train.Example that TFDS wrote."""
    from tensorflow_datasets.proto import tf_example_pb2

    record = self._records[int(index)]
    return tf_example_pb2.Example.FromString(record).features.feature

  def describe(self, index: int) -> str:
    try:
      file_name = self.file_name(index)
    except UNREADABLE:  # damaged, which may be why it is described
      file_name = str(index)
    is_named = file_name != str(index)
    return super().describe(index) + (f' ({file_name})' if is_named else '')

  def file_name(self, index: int) -> str:
    names = self._features(index)['file_name'].bytes_list.value
    return names[0].decode() if names else super().file_name(index)

  def fingerprint(self) -> str:
    return self._records.fingerprint(self._version)

  def origin(self) -> dict:
    origin = super().origin() | {'folder': self.folder}
    shrunk = epath.Path(self.folder) / SHRUNK_FILE
    if shrunk.exists():
      origin['shrunk'] = json.loads(shrunk.read_text())
    return origin

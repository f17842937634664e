"""Verifies a copy of a data set before it is trained on.

Prints a line for each finding and each problem.
"""

import hashlib
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from etils import epath

from bn_inception.data import imagenet
from bn_inception.data.directories import (
  SPLITS,
  class_folders,
  find_split,
  folder_names,
  require_folder,
)
from bn_inception.data.folders import ImageFolderSource
from bn_inception.data.images import BadImageError, decode_image
from bn_inception.data.progress import Progress
from bn_inception.data.read_errors import UNREADABLE, check_machine
from bn_inception.data.source import IMAGE_FOLDER, TRAIN_SPLIT
from bn_inception.data.sources import (
  ARCHIVES,
  FOLDERS,
  PREPARED,
  imagenet_forms,
  make_source,
)
from bn_inception.data.tfds_metadata import (
  LABEL_FILE,
  class_names,
  describe_error,
  parse_name,
)
from bn_inception.data.tfds_source import SHRUNK_FILE, is_prepared, open_builder
from bn_inception.errors import UserError
from bn_inception.wording import count, name_some

CHUNK_BYTES = 2**24
BYTES_PER_MB = 10**6


class Expected(NamedTuple):
  """The contents of a complete copy.

  Attributes:
    num_examples: split -> number of examples.
    class_names: label i is class_names[i].
    archives: file name -> official tar.
  """

  num_examples: Mapping[str, int]
  class_names: tuple[str, ...]
  archives: Mapping[str, imagenet.Archive]


class _Report:
  """Prints findings and problems, and counts the problems."""

  def __init__(self):
    self.num_problems = 0

  def title(self, form: str, place: epath.Path | str) -> None:
    print(f'{form}: {place}', flush=True)

  def found(self, name: str, finding: str) -> None:
    print(f'  {name:<26} {finding}', flush=True)

  def problem(self, text: str) -> None:
    """Prints a line that names the thing and the remedy."""
    self.num_problems += 1
    print(f'  PROBLEM: {text}', flush=True)


def expected_of_imagenet() -> Expected:
  """The sizes, class names and tars of ILSVRC 2012."""
  return Expected(
    imagenet.NUM_EXAMPLES, imagenet.class_names(), imagenet.ARCHIVES
  )


def check(
  dataset: str, data_dir: str, expected: Expected | None = None
) -> None:
  """Checks every form of a data set in a folder, and prints 'ok' if all is well.

  Args:
    dataset: name in the TFDS catalogue, or 'image_folder'. 'imagenet2012' may also
      be in folders or official tars.
    data_dir: the folder.
    expected: None: ImageNet's facts for 'imagenet2012', otherwise what the copy's
      dataset_info.json says.

  Raises:
    UserError: if there is no copy, or if there are problems.
  """
  require_folder(data_dir)
  root = epath.Path(data_dir).expanduser()
  name = parse_name(dataset)[0]
  if name == imagenet.NAME:
    expected = expected or expected_of_imagenet()
    forms = imagenet_forms(data_dir)
  elif name == IMAGE_FOLDER:
    forms = [FOLDERS] if any(find_split(root, s) for s in SPLITS) else []
  else:
    forms = [PREPARED] if is_prepared(name, data_dir) else []
  if not forms:  # opening it raises an error with the remedy
    is_v2 = name == imagenet.V2_NAME
    make_source(dataset, imagenet.V2_SPLIT if is_v2 else TRAIN_SPLIT, data_dir)
    raise UserError(
      f'{dataset} cannot be checked in this form: --dataset takes '
      f'{imagenet.NAME}, {IMAGE_FOLDER}, or a data set prepared by TFDS'
    )
  report = _Report()
  if PREPARED in forms:
    _check_prepared(dataset, data_dir, expected, report)
  if name == IMAGE_FOLDER:
    _check_own_folders(root, report)
  elif FOLDERS in forms:
    _check_folders(root, expected, report)
  if ARCHIVES in forms:
    _check_archives(root, expected.archives, report)
  if report.num_problems:
    raise UserError(
      f'{count(report.num_problems, "problem")} with {dataset} in {data_dir}: fix '
      'what the lines with PROBLEM name'
    )
  print('ok', flush=True)


def _check_prepared(
  dataset: str, data_dir: str, expected: Expected | None, report: _Report
) -> None:
  try:
    builder = open_builder(dataset, data_dir)
  except UserError as error:
    report.title(PREPARED, f'{data_dir}/{dataset}')
    report.problem(str(error))
    return
  report.title(PREPARED, builder.data_dir)
  report.found('format', 'array_record')
  shrunk = epath.Path(builder.data_dir) / SHRUNK_FILE
  if shrunk.exists():
    report.found('images', f'shrunk; see {SHRUNK_FILE}')
  _check_label_names(builder, expected, report)
  for split in expected.num_examples if expected else builder.info.splits:
    number = expected.num_examples[split] if expected else None
    _check_prepared_split(builder, split, number, report)


def _check_label_names(
  builder, expected: Expected | None, report: _Report
) -> None:
  names = class_names(builder)
  if expected:
    # For data sets in its catalogue, TFDS does not read the copy's own names.
    file = epath.Path(builder.data_dir) / LABEL_FILE
    names = tuple(file.read_text().split()) if file.exists() else ()
  if expected and names != expected.class_names:
    report.problem(
      f'{file} does not have the {len(expected.class_names):,} names of '
      f'{builder.name} in their order: prepare the copy again'
    )
  else:
    report.found('label names', f'{len(names):,}')


def _check_prepared_split(
  builder, split: str, expected: int | None, report: _Report
) -> None:
  if split not in builder.info.splits:
    report.problem(
      f'{builder.data_dir} has no split {split}: prepare it again with both tars '
      'in --manual_dir'
    )
    return
  info = builder.info.splits[split]
  report.found(
    split,
    f'{count(info.num_examples, "example")} in {count(info.num_shards, "shard")}',
  )
  if expected not in (None, info.num_examples):
    report.problem(
      f'{split} has {count(info.num_examples, "example")}, not {expected:,}: '
      'prepare it again from the complete tar'
    )
  progress = Progress(split, info.num_shards, 'shards')
  num_before = report.num_problems
  for path, length in zip(info.filepaths, info.shard_lengths, strict=True):
    if not path.exists():
      report.problem(f'{path} is missing: copy it again')
    elif problem := _problem_of_shard(builder, path, length):
      report.problem(f'{path} {problem}: copy or prepare it again')
    progress.advance()
  if report.num_problems == num_before:
    report.found(split, 'first and last example of every shard are good')


def _problem_of_shard(builder, path: epath.Path, length: int) -> str | None:
  """What is wrong with the number of records, or the first or last record."""
  import tensorflow_datasets as tfds
  from array_record.python.array_record_data_source import ArrayRecordDataSource

  features = builder.info.features
  try:
    with ArrayRecordDataSource(str(path)) as records:
      if len(records) != length:
        return f'has {count(len(records), "record")}, not {length:,}'
      ends = records.__getitems__(sorted({0, length - 1}))
    examples = [
      features.deserialize_example_np(
        record, decoders={'image': tfds.decode.SkipDecoding()}
      )
      for record in ends
    ]
  except UNREADABLE as error:
    check_machine(error, str(path))
    return f'cannot be read ({describe_error(error)})'
  num_classes = len(class_names(builder))
  for which, example in zip(('first', 'last'), examples, strict=False):
    if not 0 <= example['label'] < num_classes:
      return f'has the label {example["label"]} in its {which} record'
    try:
      decode_image(example['image'], features['image'].shape[-1])
    except BadImageError as error:
      return f'has a bad image in its {which} record ({error})'
  return None


def _check_folders(
  root: epath.Path, expected: Expected, report: _Report
) -> None:
  report.title(FOLDERS, root)
  for split, number in expected.num_examples.items():
    folder = find_split(root, split)
    if folder is None:
      names = ' or '.join(f'{name}/' for name in folder_names(split))
      report.problem(
        f'{root} has no folder {names}: extract the tar of the split {split} there'
      )
      continue
    try:
      _check_folder(root, split, number, expected.class_names, report)
    except UserError as error:  # no images, or other file names
      report.problem(str(error))


def _check_folder(
  root: epath.Path,
  split: str,
  expected: int,
  class_names: tuple[str, ...],
  report: _Report,
) -> None:
  folder = find_split(root, split)
  present = set(class_folders(folder))
  missing = sorted(set(class_names) - present) if present else []
  unknown = sorted(present - set(class_names))
  if missing:
    report.problem(
      f'{folder} lacks {name_some(missing, "class", "classes")}: extract their '
      'images there'
    )
  if unknown:
    report.problem(
      f'{folder} has {name_some(unknown, "unknown class", "unknown classes")}: '
      'move them away'
    )
  names = (*class_names, *unknown)  # their images are counted anyway
  source = ImageFolderSource(
    str(root),
    split,
    imagenet.NAME,
    names if present else class_names,
    is_strict=False,
  )
  if len(source) != expected:
    report.problem(
      f'{folder} has {count(len(source), "image")}, not {expected:,}: extract the '
      'tar again'
    )
  if source.empty:
    report.problem(
      f'{folder} has no images of {name_some(source.empty, "class", "classes")}: '
      'extract them again'
    )
  num_classes = len(np.unique(source.labels)) - len(unknown)
  _check_source(source, folder, split, num_classes, report)


def _check_source(
  source: ImageFolderSource,
  folder: epath.Path,
  split: str,
  num_classes: int,
  report: _Report,
) -> None:
  """Reports what is in a split and what is not read, and decodes some images."""
  for problem in source.misplaced:
    report.problem(problem)
  classes = count(num_classes, 'class', 'classes')
  report.found(split, f'{count(len(source), "image")} of {classes}')
  for remark in source.remarks():
    report.found(split, remark)
  num_before = report.num_problems
  if source.name == imagenet.NAME and split == 'validation':
    _check_ground_truth(source, folder, report)
  _, first = np.unique(source.labels, return_index=True)
  last = len(source) - 1 - np.unique(source.labels[::-1], return_index=True)[1]
  _check_images(source, np.union1d(first, last), split, report)
  if report.num_problems == num_before:
    report.found(split, 'first and last image of every class are good')


def _check_own_folders(root: epath.Path, report: _Report) -> None:
  """Checks a user's own data set, where only the folders define the classes."""
  report.title(FOLDERS, root)
  for split in SPLITS:
    folder = find_split(root, split)
    if folder is None:
      continue
    try:
      source = ImageFolderSource(str(root), split, is_strict=False)
    except UserError as error:
      report.problem(str(error))
      continue
    if source.empty and split == TRAIN_SPLIT:
      report.problem(
        f'{folder} has no images of '
        f'{name_some(source.empty, "class", "classes")}: add some, or remove the '
        'folder'
      )
    _check_source(source, folder, split, len(np.unique(source.labels)), report)


def _check_ground_truth(
  source: ImageFolderSource, folder: epath.Path, report: _Report
) -> None:
  """Reports official validation images that are in the wrong class folder."""
  labels, class_names = imagenet.validation_labels(), imagenet.class_names()
  wrong = []
  for index in range(len(source)):
    label = labels.get(source.file_name(index))
    folder_name = source.class_names[source.labels[index]]
    if label is not None and class_names[label] != folder_name:
      wrong.append((index, class_names[label]))
  if wrong:
    images = name_some([source.describe(i) for i, _ in wrong], 'image')
    report.problem(
      f'{folder} has {images} in the folder of another class; the first one '
      f'belongs to {wrong[0][1]}: sort them again'
    )


def _check_images(
  source: ImageFolderSource, indices: np.ndarray, split: str, report: _Report
) -> None:
  progress = Progress(split, len(indices), 'images')
  for index in indices:
    try:
      decode_image(source[index][0], source.num_channels)
    except (BadImageError, OSError) as error:
      check_machine(error, source.describe(index))
      report.problem(f'{source.describe(index)}: {error}: extract it again')
    progress.advance()


def _check_archives(
  root: epath.Path, archives: Mapping[str, imagenet.Archive], report: _Report
) -> None:
  report.title(ARCHIVES, root)
  for name, archive in archives.items():
    path = root / name
    if not path.exists():
      report.found(name, 'absent')
      continue
    num_bytes = path.stat().length
    if num_bytes != archive.num_bytes:  # before the MD5, which takes minutes
      report.problem(
        f'{path} has {num_bytes:,} bytes, not {archive.num_bytes:,}: download it '
        'again'
      )
      continue
    report.found(name, f'{num_bytes:,} bytes; computing the MD5')
    md5 = _md5(path, num_bytes)
    if md5 != archive.md5:
      report.problem(
        f'{path} has the MD5 {md5}, not {archive.md5}: download it again'
      )
    else:
      report.found(name, f'MD5 {md5}')


def _md5(path: epath.Path, num_bytes: int) -> str:
  progress = Progress(path.name, max(1, num_bytes // BYTES_PER_MB), 'MB')
  digest = hashlib.md5(usedforsecurity=False)
  num_read = 0
  with path.open('rb') as file:
    while chunk := file.read(CHUNK_BYTES):
      digest.update(chunk)
      num_mb = num_read // BYTES_PER_MB
      num_read += len(chunk)
      progress.advance(num_read // BYTES_PER_MB - num_mb)
  return digest.hexdigest()

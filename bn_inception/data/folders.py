"""Images in folders, and ImageNet's validation images in their tar."""

import collections
import os
import tarfile
from collections.abc import Sequence

import numpy as np
from etils import epath

from bn_inception.data import imagenet
from bn_inception.data.directories import (
  JUNK_FOLDERS,
  SPLITS,
  class_folders,
  find_split,
  folder_names,
  is_image,
  list_folder,
)
from bn_inception.data.hints import (
  misnamed_splits,
  not_found,
  other_form,
)
from bn_inception.data.source import (
  IMAGE_FOLDER,
  TRAIN_SPLIT,
  Example,
  Source,
  short_hash,
)
from bn_inception.errors import UserError
from bn_inception.wording import count, name_some


def _no_folder(name: str, data_dir: str, split: str) -> UserError:
  if '[' in split:
    return UserError(
      f"'{split}' is part of a split, which only TFDS copies support: give a "
      f'whole split of {data_dir}, or hold out training images with '
      'source.num_holdout'
    )
  root = epath.Path(data_dir).expanduser()
  needed = ' or '.join(
    f'{folder}/CLASS/IMAGE.jpg' for folder in folder_names(split)
  )
  present = [s for s in SPLITS if find_split(root, s)]
  if not present:
    return not_found(name, data_dir, f'it needs {needed}')
  remedy = f'it needs {needed}, or use {" or ".join(present)}'
  if misnamed := misnamed_splits(root):
    remedy = f'it has {misnamed}'
  return UserError(f'{data_dir} has no folder for the split {split}: {remedy}')


class _SplitFolder:
  """The contents of a split's folder.

  Attributes:
    classes: class folder -> its images, sorted.
    loose: images outside of class folders, sorted.
    too_deep: folders inside class folders that contain images.
    not_read: suffix -> number of files that are not images.
    ignored: folders without images, and junk folders.
  """

  def __init__(self, folder: epath.Path):
    self.classes, self.too_deep, self.ignored = {}, [], []
    self.not_read = collections.Counter()
    names, files = list_folder(folder)
    self.loose = self._images(files)
    for name in names:
      if name in JUNK_FOLDERS:
        self.ignored.append(name)
        continue
      deeper, files = list_folder(folder / name)
      self.classes[name] = self._images(files)
      for other in deeper:
        has_images = _holds_images(folder / name / other)
        kind = self.too_deep if has_images else self.ignored
        kind.append(f'{name}/{other}')

  def _images(self, files: list[str]) -> list[str]:
    images = [file for file in files if is_image(file)]
    self.not_read.update(_suffix(file) for file in files if not is_image(file))
    return images

  def describe_not_read(self) -> str:
    """'3 files (.txt 2, .pdf 1), 1 folder (lost+found)', or ''."""
    parts = [_describe_files(self.not_read)] if self.not_read else []
    if self.ignored:
      parts.append(name_some(self.ignored, 'folder'))
    return ', '.join(parts)


def _suffix(file: str) -> str:
  return os.path.splitext(file)[1].lower() or 'no suffix'


def _describe_files(count_of: collections.Counter) -> str:
  """Suffix -> number of files, as '3 files (.txt 2, .pdf 1)'."""
  kinds = ', '.join(f'{k} {n:,}' for k, n in count_of.most_common())
  return f'{count(count_of.total(), "file")} ({kinds})'


def _holds_images(folder: epath.Path) -> bool:
  """Whether there is an image anywhere under a folder."""
  if folder.name in JUNK_FOLDERS:
    return False
  names, files = list_folder(folder)
  return any(map(is_image, files)) or any(
    _holds_images(folder / name) for name in names
  )


class _PackedNames:
  """Strings in two arrays, which pickle fast even if there are a million."""

  def __init__(self, names: Sequence[str]):
    joined = bytearray()
    self._ends = np.zeros(len(names) + 1, np.int64)
    for i, name in enumerate(names, start=1):
      joined += os.fsencode(name)
      self._ends[i] = len(joined)
    self._joined = bytes(joined)

  def __len__(self) -> int:
    return len(self._ends) - 1

  def __getitem__(self, index: int) -> str:
    start, end = self._ends[index], self._ends[index + 1]
    return os.fsdecode(self._joined[start:end])

  def fingerprint(self) -> str:
    return short_hash(self._ends.tobytes(), self._joined)


class ImageFolderSource(Source):
  """DATA_DIR/SPLIT/CLASS/IMAGE, local or in a bucket (gs://, s3://).

  Examples are sorted by class, then by file name. ImageNet's validation images
  may also lie in one folder, under their official names. Hidden files, files that
  are not images, and junk folders such as lost+found are skipped; `remarks`
  counts them.

  Args:
    data_dir: parent of the split folders.
    split: 'train', 'validation' (its folder may be called val), ...
    name: name of the data set.
    class_names: None: the folders of the training split, sorted.
    is_numbered: class folders are named by label, '0' to '999'; sorting their
      names (0, 1, 10, 100, ...) would give another order.
    is_strict: if False, skip misplaced images and accept training classes without
      images, so that a check can report all of them.

  Attributes:
    labels: int32 [N].
    misplaced: one line for each kind of misplaced images.
    empty: names of class folders without images.

  Raises:
    UserError: if the split is missing or has no images, an unknown class, a
      misplaced image, or a training class without images.
  """

  num_channels = 3

  def __init__(
    self,
    data_dir: str,
    split: str,
    name: str = IMAGE_FOLDER,
    class_names: tuple[str, ...] | None = None,
    is_numbered: bool = False,
    is_strict: bool = True,
  ):
    root = epath.Path(data_dir).expanduser()
    folder = find_split(root, split)
    if folder is None:
      raise _no_folder(name, data_dir, split)
    self.name, self._folder = name, folder
    found = _SplitFolder(folder)
    if class_names is None:
      train = find_split(root, TRAIN_SPLIT)
      class_names = tuple(
        found.classes if train in (None, folder) else class_folders(train)
      )
    self.class_names = class_names
    folders = map(str, range(len(class_names))) if is_numbered else class_names
    label_of = {name: label for label, name in enumerate(folders)}
    self._refuse_unknown(found, label_of)
    self.misplaced = _misplaced(folder, found)
    self.empty = [name for name, images in found.classes.items() if not images]
    self._not_read = found.describe_not_read()
    if is_strict:
      self._refuse_misplaced(split)
    paths, labels = self._list(found, label_of)
    if not paths:
      remedy = other_form(folder) or f'it needs {folder}/CLASS/IMAGE.jpg'
      raise UserError(
        f'{folder} has no images{self._files_not_read()}: {remedy}'
      )
    self._paths = _PackedNames(paths)
    self.labels = np.array(labels, np.int32)

  def _refuse_unknown(
    self, found: _SplitFolder, label_of: dict[str, int]
  ) -> None:
    unknown = [name for name in found.classes if name not in label_of]
    if unknown:
      raise UserError(
        f'{self._folder}/{unknown[0]} is not one of the '
        f'{len(self.class_names)} classes of {self.name}: move it out of '
        f'{self._folder}{_and_more(unknown)}'
      )

  def _refuse_misplaced(self, split: str) -> None:
    if self.misplaced:
      raise UserError(self.misplaced[0])
    if self.empty and split == TRAIN_SPLIT:
      raise UserError(
        f'{self._folder} has no images of '
        f'{name_some(self.empty, "class", "classes")}: add some, or '
        f'remove the folder{self._files_not_read()}'
      )

  def _files_not_read(self) -> str:
    return f' (not read: {self._not_read})' if self._not_read else ''

  def _list(
    self, found: _SplitFolder, label_of: dict[str, int]
  ) -> tuple[list[str], list[int]]:
    """Paths relative to the split's folder, and labels."""
    if not found.classes:
      return self._list_by_ground_truth(found.loose)
    paths, labels = [], []
    for class_name in sorted(found.classes, key=label_of.get):
      files = found.classes[class_name]
      paths += [f'{class_name}/{file}' for file in files]
      labels += [label_of[class_name]] * len(files)
    return paths, labels

  def _list_by_ground_truth(
    self, files: list[str]
  ) -> tuple[list[str], list[int]]:
    if files and self.class_names != imagenet.class_names():
      raise UserError(
        f'{self._folder} has images but no class folders: it needs '
        f'{self._folder}/CLASS/IMAGE.jpg'
      )
    return files, _ground_truth(files, str(self._folder))

  def __len__(self) -> int:
    return len(self._paths)

  def _path(self, index: int) -> str:
    return f'{self._folder}/{self._paths[index]}'

  def __getitem__(self, index: int) -> Example:
    path = self._path(index)
    if '://' in path:
      return epath.Path(path).read_bytes(), int(self.labels[index])
    with open(path, 'rb') as file:  # several times faster than epath
      return file.read(), int(self.labels[index])

  def file_name(self, index: int) -> str:
    return os.path.basename(self._path(index))

  def describe(self, index: int) -> str:
    return self._path(index)

  def origin(self) -> dict:
    return super().origin() | {'folder': str(self._folder)}

  def fingerprint(self) -> str:
    """A hash of the paths in the split's folder, in order."""
    return self._paths.fingerprint()

  def remarks(self) -> list[str]:
    remarks = [f'not read: {self._not_read}'] if self._not_read else []
    is_there = np.bincount(self.labels, minlength=len(self.class_names)) > 0
    absent = [
      name
      for name, found in zip(self.class_names, is_there, strict=True)
      if not found
    ]
    if absent:
      remarks.append(f'no images of {name_some(absent, "class", "classes")}')
    return remarks


def _misplaced(folder: epath.Path, found: _SplitFolder) -> list[str]:
  """A line for each kind of misplaced images."""
  lines = []
  if found.classes and found.loose:
    lines.append(
      f'{folder}/{found.loose[0]} is not in a class folder, but other images '
      f'are: move it into one, or out of {folder}{_and_more(found.loose)}'
    )
  if found.too_deep:
    lines.append(
      f'{folder}/{found.too_deep[0]} has images, but only '
      f'{folder}/CLASS/IMAGE are read: move them up, or remove the folder'
      f'{_and_more(found.too_deep)}'
    )
  return lines


def _and_more(names: Sequence[str]) -> str:
  return f' (and {len(names) - 1:,} more)' if len(names) > 1 else ''


class ValidationArchiveSource(Source):
  """ImageNet's validation images in the official tar, sorted by name.

  Skips the same files as `ImageFolderSource`.

  Raises:
    UserError: if the archive cannot be read, or contains other images.
  """

  name = imagenet.NAME
  num_channels = 3

  def __init__(self, path: str):
    self.class_names = imagenet.class_names()
    self._archive = path
    files = [m for m in _members(path) if not _is_junk(m.name)]
    names = [os.path.basename(member.name) for member in files]
    chosen = [i for i, name in enumerate(names) if is_image(name)]
    chosen.sort(key=names.__getitem__)
    self._names = [names[i] for i in chosen]
    members = [files[i] for i in chosen]
    self._labels = _ground_truth(self._names, path)
    others = collections.Counter(
      _suffix(name) for name in names if not is_image(name)
    )
    self._not_read = f'not read: {_describe_files(others)}' if others else ''
    if not members:
      found = f' ({self._not_read})' if others else ''
      raise UserError(f'{path} has no images{found}: download it again')
    self._start = np.array([m.offset_data for m in members], np.int64)
    self._size = np.array([m.size for m in members], np.int64)

  def __len__(self) -> int:
    return len(self._names)

  def __getitem__(self, index: int) -> Example:
    with open(self._archive, 'rb') as file:
      file.seek(self._start[index])
      return file.read(self._size[index]), self._labels[index]

  def file_name(self, index: int) -> str:
    return self._names[index]

  def describe(self, index: int) -> str:
    return f'{self._names[index]} in {self._archive}'

  def origin(self) -> dict:
    return super().origin() | {'archive': self._archive}

  def fingerprint(self) -> str:
    """A hash of the file names, in order."""
    return _PackedNames(self._names).fingerprint()

  def remarks(self) -> list[str]:
    return [self._not_read] if self._not_read else []


def _members(path: str) -> list[tarfile.TarInfo]:
  try:
    with tarfile.open(path, 'r:') as archive:
      return [member for member in archive if member.isfile()]
  except (tarfile.TarError, OSError) as error:
    remedy = 'download it again'
    if isinstance(error, tarfile.TarError) and _is_compressed(path):
      remedy = 'it is compressed; decompress it first'
    raise UserError(f'{path} cannot be read ({error}): {remedy}') from error


def _is_compressed(path: str) -> bool:
  """Whether a file starts like gzip, bzip2, xz, zstd or zip."""
  with open(path, 'rb') as file:
    return file.read(4).startswith(
      (b'\x1f\x8b', b'BZh', b'\xfd7zX', b'\x28\xb5\x2f\xfd', b'PK')
    )


def _is_junk(path: str) -> bool:
  """Whether a path in an archive is hidden or in a junk folder."""
  *folders, name = path.removeprefix('./').split('/')
  return name.startswith('.') or any(
    folder in JUNK_FOLDERS or folder.startswith('.') for folder in folders
  )


def _ground_truth(names: Sequence[str], place: str) -> list[int]:
  """The labels of validation images, from their official names."""
  labels = imagenet.validation_labels()
  unknown = [name for name in names if name not in labels]
  if unknown and unknown[0].startswith('ILSVRC2012_test_'):
    raise UserError(
      f'{unknown[0]} in {place} is a test image, whose label is secret: use the '
      'validation images'
    )
  if unknown:
    raise UserError(
      f'{unknown[0]} in {place} is not the name of an ImageNet validation '
      f'image, such as {imagenet.VALIDATION_FILE.format(1)}'
    )
  return [labels[name] for name in names]

"""Images in folders, and the validation images in their archive."""

import os
import tarfile
from collections.abc import Sequence

import numpy as np
from etils import epath

from bn_inception.errors import UserError
from bn_inception.sources import imagenet
from bn_inception.sources.source import TRAIN_SPLIT, Example, Source, is_folder

IMAGE_SUFFIXES = ('.jpeg', '.jpg', '.png', '.bmp', '.webp')
FOLDERS_OF_SPLITS = {'validation': ('validation', 'val')}


def is_image(name: str) -> bool:
  """Whether a file's name is that of an image."""
  return name.lower().endswith(IMAGE_SUFFIXES) and not name.startswith('.')


def find_split(root: epath.Path, split: str) -> epath.Path | None:
  """The folder of a split: 'validation' may be val/; None if there is none."""
  for name in FOLDERS_OF_SPLITS.get(split, (split,)):
    if is_folder(str(root / name)):
      return root / name
  return None


def class_folders(folder: epath.Path) -> list[str]:
  """Names of the folders of classes, sorted."""
  return sorted(
    path.name
    for path in folder.iterdir()
    if not path.name.startswith('.')
    and not is_image(path.name)
    and path.is_dir()
  )


class ImageFolderSource(Source):
  """SPLIT/CLASS/IMAGE under a folder, which may be in a bucket (gs://, s3://).

  Examples are in the order of class, then file name. Of a data set with given
  class names, validation images may also lie in one folder, by their official
  names.

  Args:
    data_dir: the folder of the splits' folders.
    split: 'train', 'validation' (its folder may be named val), ...
    name: of the data set.
    class_names: None: the folders of the training split, sorted.
    is_numbered: the folders are named by label, '0' to '999', whose order by
      name (0, 1, 10, 100, ...) is another.

  Attributes:
    labels: of all images, int32 [N].

  Raises:
    UserError: if there is no such split, a class too many, or no image.
  """

  num_channels = 3

  def __init__(
    self,
    data_dir: str,
    split: str,
    name: str = 'image_folder',
    class_names: tuple[str, ...] | None = None,
    is_numbered: bool = False,
  ):
    root = epath.Path(data_dir)
    folder = find_split(root, split)
    if folder is None:
      raise UserError(
        f'{data_dir} has no folder for the split {split}: it needs '
        f'{" or ".join(FOLDERS_OF_SPLITS.get(split, (split,)))}/CLASS/IMAGE.jpg'
      )
    self.name, self._folder = name, folder
    if class_names is None:
      class_names = tuple(
        class_folders(find_split(root, TRAIN_SPLIT) or folder)
      )
    self.class_names = class_names
    found = class_folders(folder)
    folders = map(str, range(len(class_names))) if is_numbered else class_names
    label_of = {name: label for label, name in enumerate(folders)}
    unknown = sorted(set(found) - set(label_of))
    if unknown:
      raise UserError(
        f'{folder}/{unknown[0]} is not one of the {len(class_names)} classes of '
        f'{name}: move it out of {folder}'
        f'{f" (and {len(unknown) - 1} more)" if len(unknown) > 1 else ""}'
      )
    found.sort(key=label_of.get)
    paths, labels = self._list_class_folders(found, label_of)
    if not found:
      paths, labels = self._list_by_ground_truth()
    if not paths:
      raise UserError(
        f'{folder} has no images: it needs {folder}/CLASS/IMAGE.jpg'
      )
    # Arrays of bytes: a million strings would be slow to send to workers.
    self._paths = np.array([os.fsencode(path) for path in paths])
    self.labels = np.array(labels, np.int32)

  def _list_class_folders(
    self, found: list[str], label_of: dict[str, int]
  ) -> tuple[list[str], list[int]]:
    paths, labels = [], []
    for class_name in found:
      names = (path.name for path in (self._folder / class_name).iterdir())
      files = sorted(filter(is_image, names))
      paths += [f'{class_name}/{file}' for file in files]
      labels += [label_of[class_name]] * len(files)
    return paths, labels

  def _list_by_ground_truth(self) -> tuple[list[str], list[int]]:
    names = (path.name for path in self._folder.iterdir())
    files = sorted(filter(is_image, names))
    if files and self.class_names != imagenet.class_names():
      raise UserError(
        f'{self._folder} has images but no folders of classes: it needs '
        f'{self._folder}/CLASS/IMAGE.jpg'
      )
    return files, _ground_truth(files, str(self._folder))

  def __len__(self) -> int:
    return len(self._paths)

  def _path(self, index: int) -> str:
    return f'{self._folder}/{os.fsdecode(self._paths[index])}'

  def __getitem__(self, index: int) -> Example:
    path = self._path(index)
    if '://' in path:
      return epath.Path(path).read_bytes(), int(self.labels[index])
    with open(path, 'rb') as file:  # several times faster than epath
      return file.read(), int(self.labels[index])

  def file_name(self, index: int) -> str:
    """Of an image, without its folder."""
    return os.path.basename(self._path(index))

  def describe(self, index: int) -> str:
    return self._path(index)

  def origin(self) -> dict:
    return super().origin() | {'folder': str(self._folder)}


class ValidationArchiveSource(Source):
  """ImageNet's validation images in the official tar, in the order of names.

  Raises:
    UserError: if the archive cannot be read, or holds other files.
  """

  name = imagenet.NAME
  num_channels = 3

  def __init__(self, path: str):
    self.class_names = imagenet.class_names()
    self._archive = path
    try:
      with tarfile.open(path, 'r:') as archive:
        members = [m for m in archive if m.isfile()]
    except (tarfile.TarError, OSError) as error:
      raise UserError(
        f'{path} cannot be read ({error}): download it again'
      ) from error
    members.sort(key=lambda member: os.path.basename(member.name))
    self._names = [os.path.basename(member.name) for member in members]
    self._labels = _ground_truth(self._names, path)
    if not members:
      raise UserError(f'{path} holds no images: download it again')
    self._start = np.array([m.offset_data for m in members], np.int64)
    self._size = np.array([m.size for m in members], np.int64)

  def __len__(self) -> int:
    return len(self._names)

  def __getitem__(self, index: int) -> Example:
    with open(self._archive, 'rb') as file:
      file.seek(self._start[index])
      return file.read(self._size[index]), self._labels[index]

  def file_name(self, index: int) -> str:
    """Of an image, without the archive's folders."""
    return self._names[index]

  def describe(self, index: int) -> str:
    return f'{self._names[index]} in {self._archive}'

  def origin(self) -> dict:
    return super().origin() | {'archive': self._archive}


def _ground_truth(names: Sequence[str], place: str) -> list[int]:
  """Labels of validation images by their official names."""
  labels = imagenet.validation_labels()
  unknown = [name for name in names if name not in labels]
  if unknown:
    raise UserError(
      f'{unknown[0]} in {place} is not the name of an ImageNet validation '
      f'image, such as {imagenet.VALIDATION_FILE.format(1)}'
    )
  return [labels[name] for name in names]

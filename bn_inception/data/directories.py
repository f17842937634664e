"""Names in folders, and the folders of splits; also in buckets."""

import os
from collections.abc import Sequence

from etils import epath

from bn_inception.errors import UserError

# What OpenCV decodes; of animations and pages the first image.
IMAGE_SUFFIXES = (
  '.jpeg', '.jpg', '.jpe', '.jfif', '.png', '.bmp', '.dib', '.webp', '.gif',
  '.tif', '.tiff', '.ppm', '.pgm', '.pbm', '.pnm', '.jp2', '.avif',
)  # fmt: skip
# Folders that file systems, network drives and archives make, at any depth.
JUNK_FOLDERS = {
  'lost+found', '@eaDir', '#recycle', '#snapshot', '__MACOSX', '$RECYCLE.BIN',
  'System Volume Information', '__pycache__',
}  # fmt: skip
FOLDERS_OF_SPLITS = {'validation': ('validation', 'val')}
# As ImageNet's official tars and Kaggle's archive are unpacked.
_IMAGENET_FOLDERS = {
  'train': ('ILSVRC2012_img_train', 'ILSVRC/Data/CLS-LOC/train'),
  'validation': ('ILSVRC2012_img_val', 'ILSVRC/Data/CLS-LOC/val'),
}
_NUM_NAMED = 5


def is_image(name: str) -> bool:
  """Whether a file's name is that of an image."""
  return name.lower().endswith(IMAGE_SUFFIXES) and not name.startswith('.')


def is_folder(path: str) -> bool:
  """Whether a path, which may be a bucket's, is a folder.

  Raises:
    UserError: if folders above it may not be entered, or if a bucket cannot be
      asked: its library is not installed, its name or the credentials are not
      known, ...
  """
  try:
    return epath.Path(path).expanduser().is_dir()
  except Exception as error:  # each library of buckets has its own
    if '://' not in path and not isinstance(error, PermissionError):
      raise
    first_line = str(error).partition('\n')[0] or type(error).__name__
    raise UserError(f'{path} cannot be read: {first_line}') from error


def require_folder(data_dir: str) -> None:
  """Refuses a `data_dir` that is no folder.

  Raises:
    UserError: which says so.
  """
  if not is_folder(data_dir):
    there = epath.Path(data_dir).expanduser().exists()
    raise UserError(
      f'data_dir {data_dir} {"is a file" if there else "does not exist"}: give '
      'the folder that holds the data, such as the data_dir of `tfds build`'
    )


def find_split(root: epath.Path, split: str) -> epath.Path | None:
  """The folder of a split: 'validation' may be val/; None if there is none."""
  names = FOLDERS_OF_SPLITS.get(split, (split,))
  for name in (*names, *_IMAGENET_FOLDERS.get(split, ())):
    if is_folder(str(root / name)):
      return root / name
  return None


def entries(folder: epath.Path) -> tuple[list[str], list[str]]:
  """Names of folders and of files, sorted; hidden ones are left out.

  Raises:
    UserError: if the folder cannot be listed.
  """
  try:
    if '://' in str(folder):  # where each question takes a request
      found = [
        (path.name, not is_image(path.name) and path.is_dir())
        for path in folder.iterdir()
      ]
    else:  # an eighth of the time that epath takes
      with os.scandir(folder) as listed:
        found = [
          (entry.name, entry.is_dir(follow_symlinks=not is_image(entry.name)))
          for entry in listed
        ]
  except OSError as error:
    raise _not_listed(folder, error) from error
  found = sorted(entry for entry in found if not entry[0].startswith('.'))
  return (
    [name for name, is_directory in found if is_directory],
    [name for name, is_directory in found if not is_directory],
  )


def names_in(folder: epath.Path) -> list[str]:
  """Of folders and files, without the hidden ones; none of what is no folder.

  Asks a bucket only once.

  Raises:
    UserError: if the folder cannot be listed.
  """
  try:
    found = [path.name for path in folder.iterdir()]
  except (FileNotFoundError, NotADirectoryError):
    return []
  except OSError as error:
    raise _not_listed(folder, error) from error
  return sorted(name for name in found if not name.startswith('.'))


def _not_listed(folder: epath.Path, error: OSError) -> UserError:
  return UserError(
    f'{folder} cannot be listed ({error.strerror}): fix its permissions or its '
    'disk'
  )


def class_folders(folder: epath.Path) -> list[str]:
  """Names of the folders of classes, sorted."""
  names, _ = entries(folder)
  return [name for name in names if name not in JUNK_FOLDERS]


def name_some(
  names: Sequence[str], one: str = 'class', several: str = 'classes'
) -> str:
  """['a', 'b'] -> '2 classes (a, b)'."""
  named = ', '.join(names[:_NUM_NAMED])
  more = ', ...' if len(names) > _NUM_NAMED else ''
  noun = one if len(names) == 1 else several
  return f'{len(names):,} {noun} ({named}{more})'

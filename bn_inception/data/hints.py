"""Hints for a --data_dir in which the data set was not found.

Looks where people's data usually are: one level too deep or too high, or under
another name, version or format.
"""

import os
import re

from etils import epath

from bn_inception.data import imagenet
from bn_inception.data.directories import (
  JUNK_FOLDERS,
  SPLITS,
  find_split,
  is_folder,
  is_image,
  list_folder,
)
from bn_inception.data.source import IMAGE_FOLDER
from bn_inception.data.tfds_metadata import list_copies, parse_name
from bn_inception.errors import UserError

_IN_FOLDERS = (imagenet.NAME, IMAGE_FOLDER)
# Other people's names for the folders of splits, in lower case.
_SPLIT_NAMES = {
  **dict.fromkeys(('train', 'training', 'trainset', 'train_set'), 'train'),
  **dict.fromkeys(
    ('val', 'valid', 'validation', 'validate', 'eval', 'dev', 'valset'), 'val'
  ),
  **dict.fromkeys(('test', 'testing', 'testset', 'test_set'), 'test'),
}
_EXTRACT = 'extract the images to train/CLASS/ and val/CLASS/'
_EXTRACT_CLASSES = (
  'extract each one into a folder of its own, `for t in n*.tar; do mkdir '
  '${t%.tar} && tar -xf $t -C ${t%.tar}; done`'
)
_GIVE_VALIDATION = f'give the folder of {imagenet.VALIDATION_ARCHIVE}'
# Pattern of file names -> what they are, and what to do.
_FORMATS = (
  (r'n\d{8}\.tar', 'the tar of one class', _EXTRACT_CLASSES),
  (
    r'ILSVRC2012_devkit.*', 'the development kit, without images',
    _GIVE_VALIDATION,
  ),
  (
    r'ILSVRC2012_img_test.*', 'the test images, whose labels are secret',
    _GIVE_VALIDATION,
  ),
  (r'.*\.(parquet|arrow)', 'Parquet or Arrow, as from Hugging Face', _EXTRACT),
  (r'data\.mdb|.*\.lmdb', 'LMDB', _EXTRACT),
  (r'.*\.rec', 'RecordIO of MXNet', _EXTRACT),
  (r'.*\.beton', 'FFCV', _EXTRACT),
  (r'.*\.(h5|hdf5)', 'HDF5', _EXTRACT),
  (
    r'.*tfrecords?(-.*)?|\w+-\d{5}-of-\d{5}',
    'TFRecord without the metadata that TFDS writes', _EXTRACT,
  ),
  (r'.*\.(zip|7z|rar|tgz|gz|bz2|xz|zst)', 'a compressed archive', _EXTRACT),
  (r'(.*[-_])?\d{4,6}\.tar', 'a WebDataset shard', _EXTRACT),
  (r'.*\.tar', 'a tar, but not an official one', _EXTRACT),
)  # fmt: skip
_SPLIT_FOLDERS = ('train', 'val', 'validation', 'test', 'ILSVRC2012_img_val')
_MAX_DEPTH = 3
_MAX_SUBFOLDERS = 100  # a folder with more is a split with its classes
_MAX_FOLDERS = 300  # to look into, for the sake of slow file systems


def not_found(dataset: str, data_dir: str, otherwise: str) -> UserError:
  """The error for a data set that is not in a folder.

  Args:
    dataset: name, as for `make_source`.
    data_dir: the folder.
    otherwise: the remedy if there is no hint.
  """
  root, there = _absolute(data_dir), ''
  if not (remedy := find_hint(dataset, data_dir)):
    remedy, others = otherwise, _other_data_sets(root, parse_name(dataset)[0])
    there = f' (it has {others})' if others else ''
  return UserError(f'{data_dir} holds no copy of {dataset}{there}: {remedy}')


def find_hint(dataset: str, data_dir: str) -> str | None:
  """What is there and what to give instead; None if nothing helps."""
  root, name = _absolute(data_dir), parse_name(dataset)[0]
  if not is_folder(str(root)):
    return None
  looks = [_other_versions, _above, _below]
  if name in _IN_FOLDERS:
    looks += [_images_without_split, _misnamed_splits, other_form]
  for look in (*looks, _broken_links, _unfinished):
    if hint := look(root, name):
      return hint
  return None


def _absolute(data_dir: str) -> epath.Path:
  root = epath.Path(data_dir).expanduser()
  return root if '://' in data_dir else epath.Path(os.path.abspath(root))


def _list_if_allowed(folder: epath.Path) -> tuple[list[str], list[str]]:
  """As `list_folder`; nothing if the folder may not be read."""
  try:
    return list_folder(folder)
  except UserError:
    return [], []


def _holds(root: epath.Path, name: str) -> bool:
  """Whether `make_source` would find a data set in a folder, in any form."""
  try:
    if list_copies(root, name):
      return True
    if name == imagenet.V2_NAME:
      return any(is_folder(str(root / f)) for f in imagenet.V2_FOLDERS.values())
    if name == imagenet.NAME and any(
      (root / archive).exists() for archive in imagenet.ARCHIVES
    ):
      return True
    return name in _IN_FOLDERS and any(
      _holds_images(folder, name)
      for split in SPLITS
      if (folder := find_split(root, split))
    )
  except UserError:  # the folder may not be read
    return False


def _holds_images(folder: epath.Path, name: str) -> bool:
  return any(_images_of(folder, name))


def _images_of(folder: epath.Path, name: str) -> tuple[list[str], list[str]]:
  """Class folders and loose images that may belong to a data set."""
  names, files = _list_if_allowed(folder)
  classes = [
    entry
    for entry in names[:_MAX_SUBFOLDERS]
    if entry not in JUNK_FOLDERS
    and any(map(is_image, _list_if_allowed(folder / entry)[1]))
  ]
  if name != imagenet.NAME:
    return classes, [file for file in files if is_image(file)]
  known, labels = set(imagenet.class_names()), imagenet.validation_labels()
  return (
    [entry for entry in classes if entry in known],
    [file for file in files if file in labels],
  )


def _other_versions(root: epath.Path, name: str) -> str | None:
  found = [copy.dataset for copy in list_copies(root, name)]
  if not found:
    return None
  return (
    f'it has {", ".join(found)}: give --config.source.dataset={found[0]}, or '
    f'--dataset={found[0]}'
  )


def _above(root: epath.Path, name: str) -> str | None:
  """If `root` is the folder of a split, a data set or a version."""
  for depth, folder in enumerate(list(root.parents)[:_MAX_DEPTH]):
    inside = root.parts[len(folder.parts)]
    is_split = depth < 2 and (
      name in _IN_FOLDERS
      and inside in _SPLIT_FOLDERS
      and _holds_images(folder / inside, name)
    )
    is_copy = inside == name and list_copies(folder, name)
    is_v2 = name == imagenet.V2_NAME and inside in imagenet.V2_FOLDERS.values()
    if is_split or is_copy or is_v2:
      return f'it is a folder inside a copy: give --data_dir={folder}'
  return None


def _below(root: epath.Path, name: str) -> str | None:
  folders, num_left = [root], _MAX_FOLDERS
  for _ in range(1 if '://' in str(root) else _MAX_DEPTH):
    deeper = [
      folder / entry
      for folder in folders
      if len(names := _list_if_allowed(folder)[0]) <= _MAX_SUBFOLDERS
      for entry in names
      if entry not in JUNK_FOLDERS
    ][:num_left]
    for folder in deeper:
      if _holds(folder, name):
        return f'one of its subfolders has one: give --data_dir={folder}'
    folders, num_left = deeper, num_left - len(deeper)
  return None


def _images_without_split(root: epath.Path, name: str) -> str | None:
  classes, loose = _images_of(root, name)
  if classes:
    split, first = 'train', f'{classes[0]}/'
  elif loose and name == imagenet.NAME:
    split, first = 'val', loose[0]
  else:
    return None
  return (
    f'{first} must be in a folder of a split: give --data_dir=FOLDER after '
    f'`mkdir FOLDER && ln -s {root} FOLDER/{split}`'
  )


def _misnamed_splits(root: epath.Path, _: str) -> str | None:
  misnamed = misnamed_splits(root)
  return misnamed and f'it has {misnamed}'


def misnamed_splits(root: epath.Path) -> str | None:
  """'Train/, valid/: rename to train/, val/', for folders with images."""
  right_name = {
    name: _SPLIT_NAMES[name.lower()]
    for name in _list_if_allowed(root)[0]
    if name.lower() in _SPLIT_NAMES
    and name not in _SPLIT_FOLDERS
    and _holds_images(root / name, IMAGE_FOLDER)
  }
  return right_name and (
    f'{", ".join(f"{name}/" for name in right_name)}: rename to '
    f'{", ".join(f"{name}/" for name in right_name.values())}'
  )


def _unfinished(root: epath.Path, name: str) -> str | None:
  if not is_folder(str(root / name)):
    return None
  for folder in _list_if_allowed(root / name)[0]:
    if '.incomplete' in folder or not any(
      _list_if_allowed(root / name / folder)
    ):
      return (
        f'{root / name / folder} was never finished: rerun the command that '
        'prepared it'
      )
  return None


def _broken_links(root: epath.Path, name: str) -> str | None:
  if '://' in str(root):
    return None
  sought = {name}
  if name in _IN_FOLDERS:
    sought |= {*_SPLIT_FOLDERS, *imagenet.ARCHIVES, 'ILSVRC'}
  for file in _list_if_allowed(root)[1]:
    if file in sought and not os.path.exists(root / file):
      return (
        f'{root / file} is a link to {os.readlink(root / file)}, which does not '
        'exist: fix the link'
      )
  return None


def other_form(root: epath.Path, _: str = '') -> str | None:
  """Names a file in a format that is not read, and says what to do."""
  names, files = _list_if_allowed(root)
  for folder in names:
    if folder.lower() in ('data', *_SPLIT_NAMES):
      files += [
        f'{folder}/{file}' for file in _list_if_allowed(root / folder)[1]
      ]
  for pattern, form, remedy in _FORMATS:
    for file in files:
      base = file.rpartition('/')[2]
      if base not in imagenet.ARCHIVES and re.fullmatch(pattern, base):
        return f'{root / file} is {form}: {remedy}'
  return None


def _other_data_sets(root: epath.Path, name: str) -> str:
  """'cifar10:3.0.2, image_folder', or ''."""
  if not is_folder(str(root)):
    return ''
  others = [
    copy.dataset
    for folder in _list_if_allowed(root)[0][:_MAX_SUBFOLDERS]
    if _holds(root, folder)
    for copy in list_copies(root, folder)[:1]
    if copy.is_of_its_name()
  ]
  if name != IMAGE_FOLDER and _holds(root, IMAGE_FOLDER):
    others.append(IMAGE_FOLDER)
  return ', '.join(others)

"""What a folder holds in which a data set was sought in vain, and what to give.

Looks where people's data usually are: a level too deep or too high, under other
names, in another version or form.
"""

import os
import re

from etils import epath

from bn_inception.data import imagenet
from bn_inception.data.directories import (
  JUNK_FOLDERS,
  entries,
  find_split,
  is_folder,
  is_image,
)
from bn_inception.data.tfds_metadata import list_copies, parse_name
from bn_inception.errors import UserError

IMAGE_FOLDER = 'image_folder'  # the data set of whatever classes there are
IN_FOLDERS = (imagenet.NAME, IMAGE_FOLDER)
SPLITS = ('train', 'validation', 'test')
# What others call the folders of splits, in small letters.
_SPLIT_NAMES = {
  **dict.fromkeys(('train', 'training', 'trainset', 'train_set'), 'train'),
  **dict.fromkeys(
    ('val', 'valid', 'validation', 'validate', 'eval', 'dev', 'valset'), 'val'
  ),
  **dict.fromkeys(('test', 'testing', 'testset', 'test_set'), 'test'),
}
_EXTRACT = 'extract the images to train/CLASS/ and val/CLASS/'
_OF_CLASSES = (
  'extract each to a folder of its name, `for t in n*.tar; do mkdir ${t%.tar} && '
  'tar -xf $t -C ${t%.tar}; done`'
)
# Names of files -> what they are, and what to do.
_FORMS = (
  (r'n\d{8}\.tar', 'the tar of a class', _OF_CLASSES),
  (r'ILSVRC2012_devkit.*', 'the development kit, without images', None),
  (r'ILSVRC2012_img_test.*', 'of test images, whose labels are secret', None),
  (r'.*\.(parquet|arrow)', 'Parquet or Arrow, as of Hugging Face', _EXTRACT),
  (r'data\.mdb|.*\.lmdb', 'LMDB', _EXTRACT),
  (r'.*\.rec', 'RecordIO of MXNet', _EXTRACT),
  (r'.*\.beton', 'FFCV', _EXTRACT),
  (r'.*\.(h5|hdf5)', 'HDF5', _EXTRACT),
  (
    r'.*tfrecords?(-.*)?|\w+-\d{5}-of-\d{5}',
    'TFRecord without the files that TFDS writes beside it',
    _EXTRACT,
  ),
  (
    r'.*\.(zip|7z|rar|tgz|gz|bz2|xz|zst)',
    'a compressed archive',
    _EXTRACT,
  ),
  (r'(.*[-_])?\d{4,6}\.tar', 'a shard of WebDataset', _EXTRACT),
  (r'.*\.tar', 'a tar of another name than the official ones', _EXTRACT),
)
_SPLIT_FOLDERS = ('train', 'val', 'validation', 'test', 'ILSVRC2012_img_val')
_MAX_DEPTH = 3
_MAX_LISTED = 100  # folders in one; more are those of classes
_MAX_FOLDERS = 300  # to look into, on a slow file system


def nothing_found(dataset: str, data_dir: str, otherwise: str) -> UserError:
  """The one line for a data set that a folder does not hold.

  Args:
    dataset: its name for `make_source`.
    data_dir: the folder.
    otherwise: the remedy where nothing that helps is found.
  """
  root, there = _absolute(data_dir), ''
  if not (remedy := find_remedy(dataset, data_dir)):
    remedy, others = otherwise, _other_data_sets(root, parse_name(dataset)[0])
    there = f' (it has {others})' if others else ''
  return UserError(f'{data_dir} holds no copy of {dataset}{there}: {remedy}')


def find_remedy(dataset: str, data_dir: str) -> str | None:
  """What there is, and which folder or name to give; None: nothing of use."""
  root, name = _absolute(data_dir), parse_name(dataset)[0]
  if not is_folder(str(root)):
    return None
  looks = [_other_versions, _above, _below]
  if name in IN_FOLDERS:
    looks += [_images_of_no_split, _renamed_splits, other_forms]
  for look in (*looks, _broken_links, _unfinished):
    if remedy := look(root, name):
      return remedy
  return None


def _absolute(data_dir: str) -> epath.Path:
  root = epath.Path(data_dir).expanduser()
  return root if '://' in data_dir else epath.Path(os.path.abspath(root))


def _entries(folder: epath.Path) -> tuple[list[str], list[str]]:
  """As `entries`; nothing of folders that are others' own."""
  try:
    return entries(folder)
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
    return name in IN_FOLDERS and any(
      _holds_images(folder, name)
      for split in SPLITS
      if (folder := find_split(root, split))
    )
  except UserError:  # others' own
    return False


def _holds_images(folder: epath.Path, name: str) -> bool:
  return any(_images_of(folder, name))


def _images_of(folder: epath.Path, name: str) -> tuple[list[str], list[str]]:
  """Folders of classes and single images that may be of a data set."""
  names, files = _entries(folder)
  classes = [
    entry
    for entry in names[:_MAX_LISTED]
    if entry not in JUNK_FOLDERS
    and any(map(is_image, _entries(folder / entry)[1]))
  ]
  if name != imagenet.NAME:
    return classes, [file for file in files if is_image(file)]
  known, labels = set(imagenet.class_names()), imagenet.validation_labels()
  return (
    [entry for entry in classes if entry in known],
    [file for file in files if file in labels],
  )


def _call_it(name: str) -> str:
  return f'give --config.source.dataset={name}, or --dataset={name}'


def _other_versions(root: epath.Path, name: str) -> str | None:
  found = [copy.dataset for copy in list_copies(root, name)]
  if not found:
    return None
  return f'it has {", ".join(found)}: {_call_it(found[0])}'


def _above(root: epath.Path, name: str) -> str | None:
  """For the folder of a split, a data set or its version."""
  for depth, folder in enumerate(list(root.parents)[:_MAX_DEPTH]):
    inside = root.parts[len(folder.parts)]
    is_split = depth < 2 and (
      name in IN_FOLDERS
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
      if len(names := _entries(folder)[0]) <= _MAX_LISTED
      for entry in names
      if entry not in JUNK_FOLDERS
    ][:num_left]
    for folder in deeper:
      if _holds(folder, name):
        return f'a folder in it holds one: give --data_dir={folder}'
    folders, num_left = deeper, num_left - len(deeper)
  return None


def _images_of_no_split(root: epath.Path, name: str) -> str | None:
  classes, flat = _images_of(root, name)
  if classes:
    split, first = 'train', f'{classes[0]}/'
  elif flat and name == imagenet.NAME:
    split, first = 'val', flat[0]
  else:
    return None
  return (
    f'it has {first} itself, without the folder of a split: give '
    f'--data_dir=FOLDER after `mkdir FOLDER && ln -s {root} FOLDER/{split}`'
  )


def _renamed_splits(root: epath.Path, _: str) -> str | None:
  renamed = renamed_splits(root)
  return renamed and f'it has {renamed}'


def renamed_splits(root: epath.Path) -> str | None:
  """Such as 'Train/, valid/: rename to train/, val/' for folders of images."""
  renamed = {
    name: _SPLIT_NAMES[name.lower()]
    for name in _entries(root)[0]
    if name.lower() in _SPLIT_NAMES
    and name not in _SPLIT_FOLDERS
    and _holds_images(root / name, IMAGE_FOLDER)
  }
  return renamed and (
    f'{", ".join(f"{name}/" for name in renamed)}: rename to '
    f'{", ".join(f"{name}/" for name in renamed.values())}'
  )


def _unfinished(root: epath.Path, name: str) -> str | None:
  if not is_folder(str(root / name)):
    return None
  for folder in _entries(root / name)[0]:
    if '.incomplete' in folder or not any(_entries(root / name / folder)):
      return (
        f'{root / name / folder} was never finished: give the command that '
        'prepared it again'
      )
  return None


def _broken_links(root: epath.Path, name: str) -> str | None:
  if '://' in str(root):
    return None
  sought = {name}
  if name in IN_FOLDERS:
    sought |= {*_SPLIT_FOLDERS, *imagenet.ARCHIVES, 'ILSVRC'}
  for file in _entries(root)[1]:
    if file in sought and not os.path.exists(root / file):
      return (
        f'{root / file} is a link to {os.readlink(root / file)}, which does not '
        'exist: mend the link'
      )
  return None


def other_forms(root: epath.Path, _: str = '') -> str | None:
  """Says what files of another form than images are in a folder, and what to do."""
  names, files = _entries(root)
  for folder in names:
    if folder.lower() in ('data', *_SPLIT_NAMES):
      files += [f'{folder}/{file}' for file in _entries(root / folder)[1]]
  for pattern, form, remedy in _FORMS:
    for file in files:
      base = file.rpartition('/')[2]
      if base in imagenet.ARCHIVES or not re.fullmatch(pattern, base):
        continue
      remedy = remedy or f'give the folder of {imagenet.VALIDATION_ARCHIVE}'
      return f'{root / file} is {form}: {remedy}'
  return None


def _other_data_sets(root: epath.Path, name: str) -> str:
  """Such as 'cifar10:3.0.2, image_folder', or ''."""
  if not is_folder(str(root)):
    return ''
  others = [
    copy.dataset
    for folder in _entries(root)[0][:_MAX_LISTED]
    if _holds(root, folder)
    for copy in list_copies(root, folder)[:1]
    if copy.is_of_its_name()
  ]
  if name != IMAGE_FOLDER and _holds(root, IMAGE_FOLDER):
    others.append(IMAGE_FOLDER)
  return ', '.join(others)

"""Opens a split of a data set by name, whatever form it is in.

`python -m bn_inception.data check` verifies a copy of a data set, and
`... shrink` makes a copy with smaller images.
"""

import re

import numpy as np
from etils import epath

from bn_inception.data import imagenet
from bn_inception.data.built_in import DigitsSource, SyntheticSource
from bn_inception.data.directories import (
  find_split,
  is_folder,
  require_folder,
)
from bn_inception.data.folders import ImageFolderSource, ValidationArchiveSource
from bn_inception.data.in_memory import InMemory
from bn_inception.data.source import (
  DIGITS,
  IMAGE_FOLDER,
  SYNTHETIC,
  TRAIN_SPLIT,
  ListedImages,
  Source,
  Subset,
)
from bn_inception.data.tfds_source import TfdsSource, is_prepared
from bn_inception.errors import UserError
from bn_inception.wording import count

__all__ = [
  'ListedImages', 'Source', 'describe_data', 'make_source', 'open_split',
]  # fmt: skip

HOLDOUT_SPLIT = 'train_holdout'

# The forms of ImageNet.
PREPARED = 'prepared by TFDS'
FOLDERS = 'image folders'
ARCHIVES = 'official tars'


def open_split(
  config: dict, dataset: str, split: str, data_dir: str | None
) -> Source:
  """A split of a data set, usually that of a config; see `make_source`."""
  # What the run held out means nothing for another data set.
  names = config['source']
  num_holdout = names['num_holdout'] if dataset == names['dataset'] else 0
  source = make_source(dataset, split, data_dir, num_holdout)
  if names['keep_in_memory']:
    return InMemory(source, max(1, config['data']['num_workers']))
  return source


def describe_data(config: dict, data_dir: str | None = None) -> dict[str, int]:
  """num_classes, num_channels and num_examples of the training split.

  ImageNet's are known without its data, and used for its subsets too: the number
  of examples only sets constants of the schedule.

  Raises:
    UserError: if another data set is not on this machine.
  """
  names = config['source']
  if names['dataset'] == imagenet.NAME:
    return {
      'num_classes': len(imagenet.class_names()),
      'num_channels': 3,
      'num_examples': imagenet.NUM_EXAMPLES['train'],
    }
  source = open_split(config, names['dataset'], names['train_split'], data_dir)
  return {
    'num_classes': len(source.class_names),
    'num_channels': source.num_channels,
    'num_examples': len(source),
  }


def make_source(
  dataset: str,
  split: str,
  data_dir: str | None = None,
  num_holdout: int = 0,
) -> Source:
  """Opens a split of a data set.

  Args:
    dataset: 'digits', 'synthetic', 'image_folder', or a name in the TFDS catalogue.
      'imagenet2012' may be prepared by TFDS, in folders, or (validation) the
      official tar; 'imagenet_v2' prepared by TFDS or as its archive unpacks.
    split: name of the split; with TFDS also a part, such as 'train[:90%]'.
    data_dir: None: TFDS's default.
    num_holdout: number of training examples, the same ones in all runs, that are
      the split 'train_holdout' instead of being part of 'train'.

  Raises:
    UserError: if anything is missing.
  """
  if num_holdout and split.startswith(f'{TRAIN_SPLIT}['):
    raise UserError(
      f'the split {split} may contain some of the '
      f'{count(num_holdout, "held-out example", form="")}: use {TRAIN_SPLIT}, or set source.num_holdout to 0'
    )
  is_held_out = split == HOLDOUT_SPLIT
  if not is_held_out and (split != TRAIN_SPLIT or num_holdout == 0):
    return _open(dataset, split, data_dir)
  whole = _open(dataset, TRAIN_SPLIT, data_dir)
  if not 1 <= num_holdout < len(whole):
    raise UserError(
      f'source.num_holdout must be between 1 and {len(whole) - 1} for the split '
      f'{HOLDOUT_SPLIT} of {dataset}, got {num_holdout}'
    )
  # Not a function of a run's seed: all runs hold out the same examples.
  order = np.random.default_rng(0).permutation(len(whole))
  chosen = order[:num_holdout] if is_held_out else order[num_holdout:]
  return Subset(whole, np.sort(chosen))


def _open(dataset: str, split: str, data_dir: str | None) -> Source:
  if dataset == DIGITS:
    return DigitsSource(split)
  if dataset == SYNTHETIC:
    return SyntheticSource(split)
  if not re.fullmatch(r'\w+(/[\w.-]+)?(:[\w.]+)?', dataset):
    raise UserError(
      f"'{dataset}' is not a data set name: give NAME, NAME/CONFIG or NAME:VERSION"
    )
  if data_dir is not None:
    require_folder(data_dir)
  if dataset == IMAGE_FOLDER:
    if data_dir is None:
      raise UserError('image_folder needs --data_dir=FOLDER, with train/CLASS/')
    return ImageFolderSource(data_dir, split)
  if dataset == imagenet.NAME and data_dir is not None:
    return _open_imagenet(split, data_dir)
  name, _, variant = dataset.partition('/')
  if name == imagenet.V2_NAME and data_dir is not None:
    return _open_imagenet_v2(dataset, variant, split, data_dir)
  return TfdsSource(dataset, split, data_dir)


def imagenet_forms(data_dir: str) -> list[str]:
  """The forms of ImageNet in a folder: PREPARED, FOLDERS, ARCHIVES, best first."""
  root = epath.Path(data_dir).expanduser()
  is_there = {
    PREPARED: is_prepared(imagenet.NAME, data_dir),
    FOLDERS: find_split(root, TRAIN_SPLIT) or find_split(root, 'validation'),
    ARCHIVES: any((root / name).exists() for name in imagenet.ARCHIVES),
  }
  return [form for form, found in is_there.items() if found]


def _open_imagenet(split: str, data_dir: str) -> Source:
  forms = imagenet_forms(data_dir)
  if PREPARED in forms:
    return TfdsSource(imagenet.NAME, split, data_dir)
  root = epath.Path(data_dir).expanduser()
  archive = root / imagenet.VALIDATION_ARCHIVE
  has_archive = split == 'validation' and archive.exists()
  if FOLDERS in forms and (find_split(root, split) or not has_archive):
    return ImageFolderSource(
      data_dir, split, imagenet.NAME, imagenet.class_names()
    )
  if has_archive:
    return ValidationArchiveSource(str(archive))
  return TfdsSource(imagenet.NAME, split, data_dir)


def _open_imagenet_v2(
  dataset: str, variant: str, split: str, data_dir: str
) -> Source:
  folder = imagenet.V2_FOLDERS.get(variant or 'matched-frequency')
  if (
    folder is None  # TFDS reports the unknown variant
    or is_prepared(imagenet.V2_NAME, data_dir)
    or not is_folder(f'{data_dir}/{folder}')
  ):
    return TfdsSource(dataset, split, data_dir)
  if split != imagenet.V2_SPLIT:
    raise UserError(
      f"{dataset} has no split '{split}': use {imagenet.V2_SPLIT}"
    )
  names = imagenet.class_names()
  return ImageFolderSource(data_dir, folder, dataset, names, is_numbered=True)

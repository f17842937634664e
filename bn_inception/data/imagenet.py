"""Facts about ILSVRC 2012: classes, labels, sizes and official archives.

Classes are sorted by WordNet id, as in TFDS, PyTorch and the sorted training
folders. (The "ILSVRC ids" of the development kit are in a different order; mixing
them up gives chance accuracy.)
"""

import functools
import pathlib
from collections.abc import Iterable
from typing import NamedTuple

from bn_inception.errors import UserError

NAME = 'imagenet2012'
NUM_EXAMPLES = {'train': 1_281_167, 'validation': 50_000}
VALIDATION_FILE = 'ILSVRC2012_val_{:08}.JPEG'  # numbered from 1


# ImageNet-V2 (Recht et al. 2019): TFDS's name of a variant -> the folder in its
# archive, whose class folders are named by label.
V2_NAME, V2_SPLIT = 'imagenet_v2', 'test'
V2_FOLDERS = {
  'matched-frequency': 'imagenetv2-matched-frequency-format-val',
  'threshold-0.7': 'imagenetv2-threshold0.7-format-val',
  'topimages': 'imagenetv2-top-images-format-val',
}


class Archive(NamedTuple):
  """An official tar; the MD5 is from image-net.org."""

  split: str
  num_bytes: int
  md5: str


ARCHIVES = {
  'ILSVRC2012_img_train.tar': Archive(
    'train', 147_897_477_120, '1d675b47d978889d74fa0da5fadfb00e'
  ),
  'ILSVRC2012_img_val.tar': Archive(
    'validation', 6_744_924_160, '29b22e2961454d5413ddabcf34fc5622'
  ),
}
VALIDATION_ARCHIVE = 'ILSVRC2012_img_val.tar'


def _lines_of(table: str) -> list[str]:
  """The lines of a file next to this one."""
  return pathlib.Path(__file__).with_name(table).read_text().splitlines()


def _read_lines(name: str) -> tuple[str, ...]:
  import tensorflow_datasets as tfds

  folder = pathlib.Path(tfds.__file__).parent / 'datasets' / NAME
  return tuple((folder / name).read_text().split())


@functools.cache
def class_names() -> tuple[str, ...]:
  """The 1,000 WordNet ids in label order, from TFDS."""
  return _read_lines('labels.txt')


@functools.cache
def validation_labels() -> dict[str, int]:
  """File name of each validation image -> ground-truth label, from TFDS."""
  label_of = {name: label for label, name in enumerate(class_names())}
  return {
    VALIDATION_FILE.format(i): label_of[name]
    for i, name in enumerate(_read_lines('validation_labels.txt'), start=1)
  }


@functools.cache
def _real_labels() -> tuple[frozenset[int], ...]:
  return tuple(
    frozenset(map(int, line.split()))
    for line in _lines_of('imagenet_real_labels.txt')
  )


def real_labels(
  file_names: Iterable[str], classes: Iterable[str]
) -> list[frozenset[int]]:
  """The ReaL ("reassessed") labels of validation images (Beyer et al. 2020).

  An image has any number of labels; it has none if people saw none of the classes
  in it. From github.com/google-research/reassessed-imagenet (Apache 2.0).

  Args:
    file_names: such as ILSVRC2012_val_00000001.JPEG.
    classes: the class names of the network to evaluate.

  Raises:
    UserError: for any other file name, other classes than `class_names`, or if no
      image has a label.
  """
  number_of = {
    VALIDATION_FILE.format(i): i for i in range(1, len(_real_labels()) + 1)
  }
  sets = []
  for name in file_names:
    if name not in number_of:
      raise UserError(
        f"'{name}' has no ReaL label, unlike ImageNet's validation images, such "
        f'as {VALIDATION_FILE.format(1)}: leave --real out'
      )
    sets.append(_real_labels()[number_of[name] - 1])
  if tuple(classes) != class_names():
    raise UserError(
      f"ReaL labels are for ImageNet's {len(class_names()):,} classes, but these "
      'classes are different or in another order: leave --real out'
    )
  if not any(sets):
    raise UserError('none of these images has a ReaL label: leave --real out')
  return sets


@functools.cache
def _readable_names() -> dict[str, str]:
  """WordNet id -> its words in WordNet 3.0."""
  return dict(line.split(' ', 1) for line in _lines_of('imagenet_names.txt'))


def readable(class_name: str) -> str:
  """The words for a WordNet id; other names are returned unchanged."""
  return _readable_names().get(class_name, class_name)

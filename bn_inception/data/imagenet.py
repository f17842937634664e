"""Facts of ILSVRC 2012: classes, ground truth, numbers, the official archives.

Classes are numbered in the order of their WordNet ids, as TFDS, PyTorch and the
sorted folders of the training set number them. (The "ILSVRC ids" of the
development kit are another order, which has cost others all of their accuracy.)
"""

import functools
import pathlib
from collections.abc import Iterable
from typing import NamedTuple

from bn_inception.errors import UserError

NAME = 'imagenet2012'
NUM_EXAMPLES = {'train': 1_281_167, 'validation': 50_000}
VALIDATION_FILE = 'ILSVRC2012_val_{:08}.JPEG'  # numbered from 1


# ImageNet-V2 (Recht et al. 2019): a variant, as TFDS names it -> the folder in
# its archive, with folders of classes that are named by their labels.
V2_NAME, V2_SPLIT = 'imagenet_v2', 'test'
V2_FOLDERS = {
  'matched-frequency': 'imagenetv2-matched-frequency-format-val',
  'threshold-0.7': 'imagenetv2-threshold0.7-format-val',
  'topimages': 'imagenetv2-top-images-format-val',
}


class Archive(NamedTuple):
  """An official tar: MD5 as image-net.org states it."""

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
  """Of a table beside this file."""
  return pathlib.Path(__file__).with_name(table).read_text().splitlines()


def _read_lines(name: str) -> tuple[str, ...]:
  import tensorflow_datasets as tfds

  folder = pathlib.Path(tfds.__file__).parent / 'datasets' / NAME
  return tuple((folder / name).read_text().split())


@functools.cache
def class_names() -> tuple[str, ...]:
  """The 1,000 WordNet ids, in the order of the labels; from TFDS."""
  return _read_lines('labels.txt')


@functools.cache
def validation_labels() -> dict[str, int]:
  """File name of each validation image -> label: the ground truth, from TFDS."""
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
  """The "reassessed" labels of validation images (Beyer et al. 2020).

  Any number for each image: where people saw none of the classes, none. From
  github.com/google-research/reassessed-imagenet (Apache 2.0).

  Args:
    file_names: such as ILSVRC2012_val_00000001.JPEG.
    classes: the names that labels are to number.

  Raises:
    UserError: for any other name, for other classes than `class_names`, or if
      no image has a label.
  """
  number_of = {
    VALIDATION_FILE.format(i): i for i in range(1, len(_real_labels()) + 1)
  }
  sets = []
  for name in file_names:
    if name not in number_of:
      raise UserError(
        "ReaL labels are those of the images of ImageNet's validation set, "
        f"such as {VALIDATION_FILE.format(1)}: '{name}' is none"
      )
    sets.append(_real_labels()[number_of[name] - 1])
  if tuple(classes) != class_names():
    raise UserError(
      f"ReaL labels number ImageNet's {len(class_names()):,} classes, and these "
      'are others, or in another order: leave --real out'
    )
  if not any(sets):
    raise UserError('none of these images has a ReaL label: leave --real out')
  return sets


@functools.cache
def _readable_names() -> dict[str, str]:
  """WordNet id -> its words in WordNet 3.0."""
  return dict(line.split(' ', 1) for line in _lines_of('imagenet_names.txt'))


def readable(class_name: str) -> str:
  """The words of a WordNet id; other names as they are."""
  return _readable_names().get(class_name, class_name)

"""Facts of ILSVRC 2012: classes, ground truth, numbers, the official archives.

Classes are numbered in the order of their WordNet ids, as TFDS, PyTorch and the
sorted folders of the training set number them. (The "ILSVRC ids" of the
development kit are another order, which has cost others all of their accuracy.)
"""

import functools
import pathlib
from typing import NamedTuple

NAME = 'imagenet2012'
NUM_EXAMPLES = {'train': 1_281_167, 'validation': 50_000}
VALIDATION_FILE = 'ILSVRC2012_val_{:08}.JPEG'  # numbered from 1


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
def _readable_names() -> dict[str, str]:
  """WordNet id -> its words in WordNet 3.0."""
  path = pathlib.Path(__file__).with_name('imagenet_names.txt')
  return dict(line.split(' ', 1) for line in path.read_text().splitlines())


def readable(class_name: str) -> str:
  """The words of a WordNet id; other names as they are."""
  return _readable_names().get(class_name, class_name)

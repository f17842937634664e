"""`Source`: what the input pipeline needs from a data set."""

import hashlib
import os
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from bn_inception.errors import UserError

TRAIN_SPLIT, TEST_SPLIT = 'train', 'test'
# Data set names that are not in the TFDS catalogue.
DIGITS, SYNTHETIC, IMAGE_FOLDER = 'digits', 'synthetic', 'image_folder'

# An image is either encoded bytes (JPEG, PNG) or uint8 [H, W, C].
Example = tuple[bytes | np.ndarray, int]


def short_hash(*parts: bytes) -> str:
  """The first 16 hex digits of the SHA-256 of some bytes."""
  digest = hashlib.sha256()
  for part in parts:
    digest.update(part)
  return digest.hexdigest()[:16]


class Source(Protocol):
  """A random-access split of labelled images; picklable, for worker processes.

  Attributes:
    name: name of the data set.
    class_names: label i is class_names[i].
    num_channels: 1 or 3.
  """

  name: str
  class_names: tuple[str, ...]
  num_channels: int

  def __len__(self) -> int: ...

  def __getitem__(self, index: int) -> Example: ...

  def describe(self, index: int) -> str:
    """The file or record of an example, for messages."""
    return f'{self.name}, example {index}'

  def file_name(self, index: int) -> str:
    """Names an example independently of where the data lie: its file name or index."""
    return str(index)

  def origin(self) -> dict:
    """Where the data come from, for a run's manifest."""
    return {'dataset': self.name, 'examples': len(self)}

  def fingerprint(self) -> str | None:
    """A hash of the names and order of the examples; no example is read.

    It is the same for copies in different folders. None: the source has no names.
    """
    return None

  def remarks(self) -> list[str]:
    """What a user should know about the split, such as files that were not read."""
    return []


class ListedImages(Source):
  """Unlabelled images; every label is 0.

  Args:
    images: paths, encoded bytes, or uint8 [H, W, C].
    class_names: of the network that classifies them.
    num_channels: the network's input channels.

  Raises:
    UserError: for anything else, such as floats or one image that is no list.
  """

  name = 'images'

  def __init__(
    self,
    images: Sequence[str | os.PathLike | bytes | np.ndarray],
    class_names: Sequence[str],
    num_channels: int,
  ):
    self.class_names, self.num_channels = tuple(class_names), num_channels
    if isinstance(images, str | os.PathLike | bytes):
      raise UserError('one image was given for a list of them: put it into [ ]')
    self._images = [self._check(i, image) for i, image in enumerate(images)]

  def _check(self, index: int, image) -> str | bytes | np.ndarray:
    """The image, a path as a string."""
    if isinstance(image, str | os.PathLike):
      return os.fspath(image)
    if isinstance(image, bytes):
      return image
    what = f'a {type(image).__name__}'
    if isinstance(image, np.ndarray):
      is_image = image.dtype == np.uint8 and image.ndim == 3 and image.size > 0
      if is_image and image.shape[-1] == self.num_channels:
        return image
      what = f'{image.dtype}{list(image.shape)}'
    raise UserError(
      f'image {index} is {what}: give a path, encoded bytes or uint8 '
      f'[H, W, {self.num_channels}] of 0 to 255'
    )

  def __len__(self) -> int:
    return len(self._images)

  def __getitem__(self, index: int) -> Example:
    image = self._images[index]
    if isinstance(image, str):
      with open(image, 'rb') as file:
        image = file.read()
    return image, 0

  def describe(self, index: int) -> str:
    image = self._images[index]
    return image if isinstance(image, str) else f'image {index}'


class Wrapper(Source):
  """Another source; subclasses change some of it."""

  def __init__(self, whole: Source):
    self.name, self.class_names = whole.name, whole.class_names
    self.num_channels = whole.num_channels
    self._whole = whole

  def _index_in_whole(self, index: int) -> int:
    return int(index)

  def __len__(self) -> int:
    return len(self._whole)

  def __getitem__(self, index: int) -> Example:
    return self._whole[self._index_in_whole(index)]

  def describe(self, index: int) -> str:
    return self._whole.describe(self._index_in_whole(index))

  def file_name(self, index: int) -> str:
    return self._whole.file_name(self._index_in_whole(index))

  def origin(self) -> dict:
    return self._whole.origin() | {'examples': len(self)}

  def fingerprint(self) -> str | None:
    return self._whole.fingerprint()

  def remarks(self) -> list[str]:
    return self._whole.remarks()


class Subset(Wrapper):
  """The examples of another source at some indices."""

  def __init__(self, whole: Source, indices: np.ndarray):
    super().__init__(whole)
    self._indices = indices

  def __len__(self) -> int:
    return len(self._indices)

  def _index_in_whole(self, index: int) -> int:
    return int(self._indices[index])

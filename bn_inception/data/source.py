"""What the input pipeline asks of a data set."""

import errno
import hashlib
import os
from collections.abc import Sequence
from typing import Protocol

import numpy as np
from google.protobuf.message import DecodeError

from bn_inception.errors import UserError

TRAIN_SPLIT, TEST_SPLIT = 'train', 'test'

# What files, array_record and TFDS raise for an example that cannot be read.
UNREADABLE = (
  RuntimeError, ValueError, TypeError, OSError, DecodeError,
)  # fmt: skip

_MORE_FILES = (
  'raise the limit with `ulimit -n 65536`, or use fewer '
  '--config.data.num_workers'
)
_FREE_MEMORY = 'free some, or use fewer --config.data.num_workers'
_FAILING_DEVICE = 'check the disk or the network that it is on, then give the same command again'
# What keeps a machine from reading files that have no fault -> the remedy.
_OF_MACHINE = {
  errno.EMFILE: _MORE_FILES,
  errno.ENFILE: 'raise the limit of the system, fs.file-max',
  errno.ENOMEM: _FREE_MEMORY,
  errno.EAGAIN: _FREE_MEMORY,
  errno.ENOSPC: 'make room',
  errno.EDQUOT: 'make room',
} | dict.fromkeys(
  (
    errno.EIO, errno.ESTALE, errno.ENOTCONN, errno.ETIMEDOUT, errno.EHOSTDOWN,
    errno.EHOSTUNREACH, errno.ENETDOWN, errno.ENETUNREACH, errno.ECONNRESET,
    errno.ECONNABORTED, errno.ECONNREFUSED, errno.ENODEV, errno.ENXIO,
  ),
  _FAILING_DEVICE,
)  # fmt: skip

# An image is either encoded bytes (JPEG, PNG) or uint8 [H, W, C].
Example = tuple[bytes | np.ndarray, int]


def number_of_machine(error: Exception) -> int | None:
  """The errno of an error of the machine; None: the file itself is at fault.

  array_record has the system's words in a RuntimeError.
  """
  if isinstance(error, OSError):
    number = error.errno
    if number is None and isinstance(error, TimeoutError):  # of a bucket
      number = errno.ETIMEDOUT
    if number is None and isinstance(error, ConnectionError):
      number = errno.ECONNRESET
    return number if number in _OF_MACHINE else None
  if not isinstance(error, RuntimeError):
    return None
  text = str(error)
  return next((n for n in _OF_MACHINE if os.strerror(n) in text), None)


def check_machine(error: Exception, what: str) -> None:
  """Keeps an error of the machine from passing for one of an example.

  Args:
    error: of `UNREADABLE`.
    what: could not be read.

  Raises:
    UserError: if reading another example, or the copy again, would not help.
  """
  number = number_of_machine(error)
  if number is not None:
    raise UserError(
      f'{what} cannot be read ({os.strerror(number)}), and the data are not at '
      f'fault: {_OF_MACHINE[number]}'
    ) from error


def hash_of(*parts: bytes) -> str:
  """A fingerprint of bytes: 16 digits of their SHA-256."""
  digest = hashlib.sha256()
  for part in parts:
    digest.update(part)
  return digest.hexdigest()[:16]


class Source(Protocol):
  """A random-access split of labelled images. Can be pickled, for workers.

  Attributes:
    name: of the data set.
    class_names: label i is class_names[i].
    num_channels: of the images, 1 or 3.
  """

  name: str
  class_names: tuple[str, ...]
  num_channels: int

  def __len__(self) -> int: ...

  def __getitem__(self, index: int) -> Example: ...

  def describe(self, index: int) -> str:
    """The file or record of an example, for a message."""
    return f'{self.name}, example {index}'

  def file_name(self, index: int) -> str:
    """Names an example wherever the data lie: its file's name, or its number."""
    return str(index)

  def origin(self) -> dict:
    """Where the data come from, for the manifest of a run."""
    return {'dataset': self.name, 'examples': len(self)}

  def fingerprint(self) -> str | None:
    """A hash of which examples there are, in which order, as far as names tell.

    Copies in other folders have the same one, and no example is read for it.
    None: there is nothing cheap to tell other examples by.
    """
    return None

  def remarks(self) -> list[str]:
    """What a user should know of what was found, such as files not read."""
    return []


class ListedImages(Source):
  """Images without labels, which all count as class 0.

  Args:
    images: each a path, encoded bytes, or uint8 [H, W, C].
    class_names: of the network that they are for.
    num_channels: that the network takes.
  """

  name = 'images'

  def __init__(
    self,
    images: Sequence[str | bytes | np.ndarray],
    class_names: Sequence[str],
    num_channels: int,
  ):
    self.class_names, self.num_channels = tuple(class_names), num_channels
    self._images = images

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


class Part(Source):
  """Some examples of another source."""

  def __init__(self, whole: Source, indices: np.ndarray):
    self.name, self.class_names = whole.name, whole.class_names
    self.num_channels = whole.num_channels
    self._whole, self._indices = whole, indices

  def __len__(self) -> int:
    return len(self._indices)

  def __getitem__(self, index: int) -> Example:
    return self._whole[int(self._indices[index])]

  def describe(self, index: int) -> str:
    return self._whole.describe(int(self._indices[index]))

  def file_name(self, index: int) -> str:
    return self._whole.file_name(int(self._indices[index]))

  def origin(self) -> dict:
    return self._whole.origin() | {'examples': len(self)}

  def fingerprint(self) -> str | None:
    return self._whole.fingerprint()

  def remarks(self) -> list[str]:
    return self._whole.remarks()

"""Data sets that need no files: handwritten digits, and noise."""

import functools

import numpy as np

from bn_inception.data.source import (
  DIGITS,
  SYNTHETIC,
  TEST_SPLIT,
  TRAIN_SPLIT,
  Example,
  Source,
)
from bn_inception.errors import UserError


@functools.cache
def _load_digits() -> tuple[np.ndarray, np.ndarray]:
  from sklearn.datasets import load_digits

  digits = load_digits()
  image = np.rint(digits.images * (255 / 16)).astype(np.uint8)[..., None]
  return image, digits.target.astype(np.int32)


class DigitsSource(Source):
  """scikit-learn's 1,797 handwritten digits, uint8 [8, 8, 1].

  The test split is every fifth example of each class.
  """

  name = DIGITS
  class_names = tuple('0123456789')
  num_channels = 1

  def __init__(self, split: str):
    if split not in (TRAIN_SPLIT, TEST_SPLIT):
      raise UserError(f"digits has no split '{split}': use train or test")
    image, label = _load_digits()
    in_test = np.zeros(len(label), bool)
    for digit in range(10):
      in_test[np.flatnonzero(label == digit)[4::5]] = True
    chosen = in_test if split == TEST_SPLIT else ~in_test
    self._image, self._label = image[chosen], label[chosen]

  def __len__(self) -> int:
    return len(self._label)

  def __getitem__(self, index: int) -> Example:
    return self._image[index], int(self._label[index])


class SyntheticSource(Source):
  """Noise whose brightness depends on the class, for tests and benchmarks.

  Each image is a function of (split, index) and is generated when read.
  """

  name = SYNTHETIC

  def __init__(
    self,
    split: str = TRAIN_SPLIT,
    num_examples: int = 1280,
    num_classes: int = 1000,
    shape: tuple[int, int, int] = (256, 320, 3),
  ):
    self.class_names = tuple(f'class {i}' for i in range(num_classes))
    self.num_channels = shape[-1]
    self._num_examples, self._shape = num_examples, shape
    self._seed = list(split.encode())

  def __len__(self) -> int:
    return self._num_examples

  def __getitem__(self, index: int) -> Example:
    num_classes = len(self.class_names)
    label = int(index) % num_classes
    rng = np.random.default_rng([*self._seed, int(index)])
    noise = rng.integers(0, 128, self._shape, np.uint8)
    return noise + np.uint8(127 * (label + 1) / num_classes), label

"""Random-access sources of labelled images.

A source is anything with `name`, `class_names`, `num_channels`, a length, and
`source[i]` -> (image, label), where the image is either encoded bytes (JPEG,
PNG) or uint8 [H, W, C]. Sources can be pickled, for worker processes.
"""

import functools
import os
import re
from typing import Protocol

import numpy as np

from bn_inception.errors import UserError

TRAIN_SPLIT, TEST_SPLIT = 'train', 'test'


class Source(Protocol):
  """What the input pipeline asks of a data set."""

  name: str
  class_names: tuple[str, ...]
  num_channels: int

  def __len__(self) -> int: ...

  def __getitem__(self, index: int) -> tuple[bytes | np.ndarray, int]: ...


class TfdsSource:
  """A split of a data set prepared by TensorFlow Datasets as array_record.

  Reads the encoded bytes through TFDS's `data_source`, which needs no
  TensorFlow.

  Raises:
    UserError: if the data set is unknown, not prepared under `data_dir`, in
      another file format, or not one of labelled images.
  """

  def __init__(self, name: str, split: str, data_dir: str | None):
    import tensorflow_datasets as tfds

    if data_dir is not None and not os.path.isdir(os.path.expanduser(data_dir)):
      raise UserError(
        f'data_dir {data_dir} does not exist: give the folder that holds '
        f'{name}/, the data_dir of `tfds build`'
      )
    try:
      builder = tfds.builder(name, data_dir=data_dir)
    # TFDS asserts that versions and builder configs exist.
    except (
      tfds.core.DatasetNotFoundError,
      AssertionError,
      ValueError,
    ) as error:
      raise UserError(
        f"unknown data set '{name}': use digits, synthetic, or a name of the "
        'TFDS catalogue, such as fashion_mnist or imagenet2012'
      ) from error
    self.name = name
    self._check_prepared(builder)
    self._check_features(builder.info.features)
    self.class_names = tuple(builder.info.features['label'].names)
    self.num_channels = builder.info.features['image'].shape[-1]
    try:
      self._records = builder.as_data_source(
        split, decoders={'image': tfds.decode.SkipDecoding()}
      )
    except ValueError as error:
      raise UserError(
        f"{name} has no split '{split}': use one of "
        f'{", ".join(builder.info.splits)}'
      ) from error
    self._check_readable(builder.data_dir)

  def _check_prepared(self, builder) -> None:
    root = builder.data_dir_root
    if not builder.info.splits:
      manual = ' --manual_dir=FOLDER_OF_THE_TWO_TARS'
      raise UserError(
        f'{self.name} is not prepared in {root}: point --data_dir at a prepared '
        f'copy, or run `pip install -r requirements-prepare.txt && tfds build '
        f'{self.name} --file_format=array_record --data_dir={root}'
        f'{manual if self.name == "imagenet2012" else ""}`'
      )
    file_format = builder.info.file_format.value
    if file_format != 'array_record':
      raise UserError(
        f'{builder.data_dir} is prepared as {file_format}, which has no random '
        'access: run `pip install -r requirements-prepare.txt && tfds '
        f'convert_format --dataset_dir={builder.data_dir} '
        '--out_file_format=array_record`'
      )

  def _check_features(self, features) -> None:
    missing = {'image', 'label'} - set(features)
    if missing:
      raise UserError(
        f'{self.name} is not a classification data set: its examples have '
        f'{sorted(features)}, without {sorted(missing)}'
      )

  def _check_readable(self, folder: str) -> None:
    """Reads the first and the last record."""
    from google.protobuf.message import DecodeError

    try:
      for index in (0, len(self) - 1):
        self[index]
    # What array_record and TFDS raise for missing and for damaged records.
    except (RuntimeError, ValueError, TypeError, OSError, DecodeError) as error:
      raise UserError(
        f'the records in {folder} cannot be read ({type(error).__name__}): the '
        'copy is incomplete or damaged, copy or prepare it again'
      ) from error

  def __len__(self) -> int:
    return len(self._records)

  def __getitem__(self, index: int) -> tuple[bytes, int]:
    record = self._records[int(index)]
    return record['image'], int(record['label'])


@functools.cache
def _load_digits() -> tuple[np.ndarray, np.ndarray]:
  from sklearn.datasets import load_digits

  digits = load_digits()
  image = np.rint(digits.images * (255 / 16)).astype(np.uint8)[..., None]
  return image, digits.target.astype(np.int32)


class DigitsSource:
  """The handwritten digits that ship with scikit-learn: 1,797 of 8x8 pixels.

  The test split is a fixed, stratified fifth: every fifth example of a class.
  """

  name = 'digits'
  class_names = tuple('0123456789')
  num_channels = 1

  def __init__(self, split: str):
    if split not in (TRAIN_SPLIT, TEST_SPLIT):
      raise UserError(f"digits has no split '{split}': use train or test")
    image, label = _load_digits()
    occurrence = np.zeros(len(label), np.int64)
    for digit in range(10):
      occurrence[label == digit] = np.arange(np.sum(label == digit))
    in_test = occurrence % 5 == 4
    chosen = in_test if split == TEST_SPLIT else ~in_test
    self._image, self._label = image[chosen], label[chosen]

  def __len__(self) -> int:
    return len(self._label)

  def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
    return self._image[index], int(self._label[index])


class SyntheticSource:
  """Noise of a class-dependent brightness: for tests and measurements.

  Each image is a function of (split, index) alone and is made when asked for.
  """

  name = 'synthetic'

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

  def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
    num_classes = len(self.class_names)
    label = int(index) % num_classes
    rng = np.random.default_rng([*self._seed, int(index)])
    noise = rng.integers(0, 128, self._shape, np.uint8)
    return noise + np.uint8(127 * (label + 1) / num_classes), label


def make_source(
  dataset: str, split: str, data_dir: str | None = None
) -> Source:
  """The split of a data set, by name.

  Args:
    dataset: 'digits', 'synthetic', or a data set of the TFDS catalogue.
    split: its name; TFDS also takes parts, such as 'train[:90%]'.
    data_dir: where TFDS data sets are; None: TFDS's own default.

  Raises:
    UserError: in one line, with the remedy, for whatever is missing.
  """
  if dataset == 'digits':
    return DigitsSource(split)
  if dataset == 'synthetic':
    return SyntheticSource(split)
  if not re.fullmatch(r'\w+(/[\w.]+)?(:[\w.]+)?', dataset):
    raise UserError(f"'{dataset}' is not the name of a data set")
  return TfdsSource(dataset, split, data_dir)

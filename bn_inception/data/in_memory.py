"""Examples that are read and decoded once."""

import numpy as np

from bn_inception.data.images import decode_image
from bn_inception.data.source import UNREADABLE, Example, Source, check_machine
from bn_inception.errors import UserError
from bn_inception.kernels import host

_NUM_TRIED = 16


class InMemory(Source):
  """Another source, whose examples are decoded and kept when first read.

  For small images, of which the decoded ones are not much larger: reading a
  record of Fashion-MNIST takes longer than training on it may.

  Args:
    whole: the other source.
    num_copies: processes that keep the images, each for itself.

  Raises:
    UserError: if a few images, spread over the source, show that all of them
      are more than the memory of the machine.
  """

  def __init__(self, whole: Source, num_copies: int = 1):
    self.name, self.class_names = whole.name, whole.class_names
    self.num_channels = whole.num_channels
    self._whole, self._kept = whole, {}
    self._check_size(num_copies)

  def _check_size(self, num_copies: int) -> None:
    num_examples = len(self)
    for index in np.unique(
      np.linspace(0, num_examples - 1, _NUM_TRIED, dtype=int)
    ):
      try:
        self[index]
      except UNREADABLE as error:  # told when it is asked for
        check_machine(error, self.describe(index))
    if not self._kept:
      return
    num_bytes = sum(image.nbytes for image, _ in self._kept.values())
    needed = num_bytes / len(self._kept) * num_examples * num_copies
    if needed > host.memory_bytes():
      copies = f' in {num_copies} worker processes' if num_copies > 1 else ''
      raise UserError(
        f'the {num_examples:,} images of {self.name} take about '
        f'{needed / 1e9:,.0f} GB when they are decoded{copies}, and the memory is '
        f'{host.memory_bytes() / 1e9:,.0f} GB: set '
        '--config.source.keep_in_memory=False'
      )

  def __len__(self) -> int:
    return len(self._whole)

  def __getitem__(self, index: int) -> Example:
    index = int(index)
    example = self._kept.get(index)
    if example is None:
      image, label = self._whole[index]
      example = decode_image(image, self.num_channels), label
      self._kept[index] = example
    return example

  def describe(self, index: int) -> str:
    return self._whole.describe(index)

  def file_name(self, index: int) -> str:
    return self._whole.file_name(index)

  def origin(self) -> dict:
    return self._whole.origin()

  def fingerprint(self) -> str | None:
    return self._whole.fingerprint()

  def remarks(self) -> list[str]:
    return self._whole.remarks()

"""A source that reads and decodes each example once."""

import numpy as np

from bn_inception.data.images import decode_image
from bn_inception.data.read_errors import UNREADABLE, check_machine
from bn_inception.data.source import Example, Source, Wrapper
from bn_inception.errors import UserError
from bn_inception.kernels import host

_NUM_TRIED = 16


class InMemory(Wrapper):
  """Decodes each example of another source when first read, and keeps it.

  For small images: reading a record of Fashion-MNIST can take longer than
  training on it, and decoded it is not much larger.

  Args:
    whole: the other source.
    num_copies: number of processes that each keep a copy of the images.

  Raises:
    UserError: if, judging by a few images spread over the source, they do not all
      fit into the machine's memory.
  """

  def __init__(self, whole: Source, num_copies: int = 1):
    super().__init__(whole)
    self._kept = {}
    self._check_size(num_copies)

  def _check_size(self, num_copies: int) -> None:
    num_examples = len(self)
    for index in np.unique(
      np.linspace(0, num_examples - 1, _NUM_TRIED, dtype=int)
    ):
      try:
        self[index]
      except UNREADABLE as error:  # reported when the pipeline reads it
        check_machine(error, self.describe(index))
    if not self._kept:
      return
    num_bytes = sum(image.nbytes for image, _ in self._kept.values())
    needed = num_bytes / len(self._kept) * num_examples * num_copies
    if needed > host.memory_bytes():
      copies = f' in {num_copies} worker processes' if num_copies > 1 else ''
      raise UserError(
        f'the {num_examples:,} images of {self.name} take about '
        f'{needed / 1e9:,.0f} GB decoded{copies}, but memory is '
        f'{host.memory_bytes() / 1e9:,.0f} GB: set '
        '--config.source.keep_in_memory=False'
      )

  def __getitem__(self, index: int) -> Example:
    index = int(index)
    example = self._kept.get(index)
    if example is None:
      image, label = super().__getitem__(index)
      example = decode_image(image, self.num_channels), label
      self._kept[index] = example
    return example

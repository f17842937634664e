"""Examples that are read and decoded once."""

from bn_inception.images import decode_image
from bn_inception.sources.source import Example, Source


class InMemory(Source):
  """Another source, whose examples are decoded and kept when first read.

  For small images, of which the decoded ones are not much larger: reading a
  record of Fashion-MNIST takes longer than training on it may.
  """

  def __init__(self, whole: Source):
    self.name, self.class_names = whole.name, whole.class_names
    self.num_channels = whole.num_channels
    self._whole, self._kept = whole, {}

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

  def remarks(self) -> list[str]:
    return self._whole.remarks()

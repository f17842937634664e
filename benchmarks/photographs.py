"""Synthetic photographs of the average size and quality of ImageNet's."""

import contextlib
import io
import pathlib

import cv2
import numpy as np

from bn_inception.data import imagenet
from bn_inception.data.shrink import shrink, shrink_image

HEIGHT, WIDTH = 375, 500
QUALITY = 94  # makes about 100 kB
SHRUNK_QUALITY = 95  # the default of `python -m bn_inception.data shrink`
NUM_CLASSES = 8
# Waves of random colours: how many across the width, and how strong.
SCALES = ((4, 54), (16, 30), (64, 18), (180, 12))
NOISE = 5.4


def photograph(index: int) -> np.ndarray:
  """uint8 [375, 500, 3]: smooth structure at several scales, a little noise."""
  rng = np.random.default_rng(index)
  image = np.full((HEIGHT, WIDTH, 3), 128, np.float32)
  for num_waves, strength in SCALES:
    shape = (max(2, HEIGHT * num_waves // WIDTH), num_waves, 3)
    waves = rng.standard_normal(shape, np.float32)
    image += strength * cv2.resize(
      waves, (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC
    )
  image += NOISE * rng.standard_normal((HEIGHT, WIDTH, 1), np.float32)
  return np.clip(image, 0, 255).astype(np.uint8)


def write_folder(
  folder: pathlib.Path, num_photographs: int, short_side: int | None = None
) -> dict:
  """Writes train/CLASS/PHOTOGRAPH.jpg under a folder, as ImageNet has it.

  Args:
    folder: is made.
    num_photographs: to write, each different from all others.
    short_side: shrink the photographs to it; None: leave them as they are.

  Returns:
    What they are: 'height', 'width', and 'mean_bytes' of a file.
  """
  sizes = []
  for index in range(num_photographs):
    _, encoded = cv2.imencode(
      '.jpg', photograph(index), (cv2.IMWRITE_JPEG_QUALITY, QUALITY)
    )
    encoded = encoded.tobytes()
    if short_side is not None:
      encoded = shrink_image(encoded, short_side, SHRUNK_QUALITY)
    class_name = imagenet.class_names()[index % NUM_CLASSES]
    (folder / 'train' / class_name).mkdir(parents=True, exist_ok=True)
    (folder / 'train' / class_name / f'{index:06}.jpg').write_bytes(encoded)
    sizes.append(len(encoded))
  decoded = cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_COLOR)
  return {
    'height': decoded.shape[0],
    'width': decoded.shape[1],
    'mean_bytes': round(float(np.mean(sizes))),
  }


def write_array_records(folder: pathlib.Path) -> None:
  """Writes prepared/: the same files as TFDS prepares ImageNet."""
  with contextlib.redirect_stdout(io.StringIO()):  # where it tells of progress
    shrink(
      imagenet.NAME,
      str(folder),
      str(folder / 'prepared'),
      short_side=max(HEIGHT, WIDTH),  # of none: the bytes stay as they are
      splits=['train'],
    )

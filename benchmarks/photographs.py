"""Synthetic photographs of the average size and quality of ImageNet's."""

import pathlib

import cv2
import numpy as np

HEIGHT, WIDTH = 375, 500
QUALITY = 94  # makes about 100 kB
SHRUNK_QUALITY = 95
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


def shrink(image: np.ndarray, short_side: int) -> np.ndarray:
  scale = short_side / min(image.shape[:2])
  size = (round(scale * image.shape[1]), round(scale * image.shape[0]))
  return cv2.resize(image, size, interpolation=cv2.INTER_AREA)


def write_folder(
  folder: pathlib.Path, num_photographs: int, short_side: int | None = None
) -> dict:
  """Writes train/CLASS/PHOTOGRAPH.jpg under a folder.

  Args:
    folder: is made.
    num_photographs: to write, each different from all others.
    short_side: shrink the photographs to it; None: leave them as they are.

  Returns:
    What they are: 'height', 'width', and 'mean_bytes' of a file.
  """
  sizes = []
  for index in range(num_photographs):
    image, quality = photograph(index), QUALITY
    if short_side is not None:
      # Of the photograph as it is decoded: as a real copy is shrunk.
      image = cv2.imdecode(_encode(image, quality), cv2.IMREAD_COLOR)
      image, quality = shrink(image, short_side), SHRUNK_QUALITY
    encoded = _encode(image, quality)
    class_folder = folder / 'train' / f'class_{index % NUM_CLASSES}'
    class_folder.mkdir(parents=True, exist_ok=True)
    (class_folder / f'{index:06}.jpg').write_bytes(encoded.tobytes())
    sizes.append(len(encoded))
  return {
    'height': image.shape[0],
    'width': image.shape[1],
    'mean_bytes': round(float(np.mean(sizes))),
  }


def _encode(image: np.ndarray, quality: int) -> np.ndarray:
  return cv2.imencode('.jpg', image, [cv2.IMWRITE_JPEG_QUALITY, quality])[1]

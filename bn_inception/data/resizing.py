"""Resizes images as OpenCV, Pillow or TensorFlow 1 does.

Their "bilinear" methods differ: OpenCV interpolates between pixel centres; Pillow
averages over all covered pixels when it shrinks an image; TensorFlow 1 measures
from pixel corners, which shifts the image by up to half a pixel.
"""

import cv2
import numpy as np
from PIL import Image

# `interpolation='random'` draws a position in this dict: keep the order.
OPENCV = {
  'bilinear': cv2.INTER_LINEAR,
  'area': cv2.INTER_AREA,
  'nearest': cv2.INTER_NEAREST,
  'bicubic': cv2.INTER_CUBIC,
}


def resize(
  pixels: np.ndarray,
  size: tuple[int, int],
  method: str,
  out: np.ndarray | None = None,
) -> np.ndarray:
  """Resizes uint8 [H, W, C] with C = 1 or 3 to [*size, C].

  Args:
    pixels: the image.
    size: (height, width) of the result.
    method: a key of `OPENCV`; 'pillow': Pillow's antialiased bilinear filter;
      'tensorflow_1': `resize_bilinear` of TensorFlow 1 (align_corners=False),
      rounded to integers.
    out: array to write to and return; None: a new one.
  """
  if out is None:
    out = np.empty((*size, pixels.shape[-1]), np.uint8)
  if method in OPENCV:
    target = out[..., 0] if out.shape[-1] == 1 else out  # OpenCV's layout
    cv2.resize(pixels, size[::-1], dst=target, interpolation=OPENCV[method])
  elif method == 'pillow':
    is_grey = pixels.shape[-1] == 1
    whole = Image.fromarray(pixels[..., 0] if is_grey else pixels)
    resized = whole.resize(size[::-1], Image.Resampling.BILINEAR)
    out[...] = np.asarray(resized).reshape(out.shape)
  elif method == 'tensorflow_1':
    out[...] = np.rint(_tensorflow_1(pixels, *size))
  else:
    raise ValueError(f'unknown method {method}')
  return out


def _tensorflow_1(pixels: np.ndarray, height: int, width: int) -> np.ndarray:
  top, bottom, down = _samples(pixels.shape[0], height)
  left, right, across = _samples(pixels.shape[1], width)
  rows = pixels[top].astype(np.float32)
  rows += (pixels[bottom] - rows) * down[:, None, None]
  start = rows[:, left]
  return start + (rows[:, right] - start) * across[:, None]


def _samples(length: int, new: int) -> tuple[np.ndarray, ...]:
  """For each new pixel: the two pixels to interpolate between, and the weight."""
  position = np.arange(new, dtype=np.float32) * np.float32(length / new)
  first = position.astype(int)
  return first, np.minimum(first + 1, length - 1), position - first

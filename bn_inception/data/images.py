"""Decodes images, and only the requested part of a JPEG.

nvImageCodec decodes parts with libjpeg-turbo, on the CPU. OpenCV decodes
everything else, as a whole: other formats, CMYK, greyscale, and all images if
nvImageCodec is not installed. Both give the same pixels.

EXIF rotation is ignored, as in TensorFlow and PyTorch: published accuracies are
for the pixels as stored. Transparency is ignored, as by Pillow's convert('RGB').
Animations and multi-page files give their first image. 16-bit images become 8-bit
by v / 257, rounded; other types, such as floats, have no fixed scale and raise.
"""

import contextlib
import functools
import glob
import importlib.util
import os
import tempfile
import threading
from collections.abc import Iterator

import cv2
import numpy as np

from bn_inception.data.crops import Box
from bn_inception.errors import UserError
from bn_inception.wording import count

# Keep the stored depth: OpenCV would truncate 16 bits to 8, and floats to integers.
_AS_STORED = cv2.IMREAD_IGNORE_ORIENTATION | cv2.IMREAD_ANYDEPTH
_FLAGS = {
  1: cv2.IMREAD_GRAYSCALE | _AS_STORED,
  3: cv2.IMREAD_COLOR_RGB | _AS_STORED,
}
_JPEG = b'\xff\xd8\xff'


class BadImageError(ValueError):
  """The requested pixels of an image cannot be decoded."""


class Image:
  """A decoded image.

  Attributes:
    height, width: in pixels.
  """

  def __init__(self, pixels: np.ndarray):
    self.height, self.width = pixels.shape[:2]
    self._pixels = pixels

  def cut(self, box: Box) -> np.ndarray:
    """The pixels of a box, uint8 [height, width, C]; may raise BadImageError."""
    top, left, height, width = box
    return self._pixels[top : top + height, left : left + width]


class _Jpeg(Image):
  """A JPEG that decodes only what is cut."""

  def __init__(self, encoded: bytes, stream):
    self.height, self.width = stream.height, stream.width
    self._encoded, self._stream = encoded, stream

  def cut(self, box: Box) -> np.ndarray:
    part = _decode_part(self._stream, box)
    if part is None:  # OpenCV may still decode it, or says what is wrong
      part = Image(_decode_whole(self._encoded, 3)).cut(box)
    return part


def open_image(image: bytes | np.ndarray, num_channels: int) -> Image:
  """Opens an image without decoding a JPEG.

  Args:
    image: encoded (JPEG, PNG, ...), or uint8 [H, W, C].
    num_channels: 3: converts to RGB; 1: converts to greyscale.

  Raises:
    BadImageError: if the bytes are not an image.
  """
  if isinstance(image, np.ndarray):
    return Image(image)
  if num_channels == 3 and image.startswith(_JPEG) and _codec() is not None:
    stream = _codec().CodeStream(image)
    try:
      is_rgb_or_grey = stream.num_channels in (1, 3)
    except RuntimeError:  # unreadable header
      is_rgb_or_grey = False
    if is_rgb_or_grey:
      return _Jpeg(image, stream)
  return Image(_decode_whole(image, num_channels))


def decode_image(image: bytes | np.ndarray, num_channels: int) -> np.ndarray:
  """Decodes a whole image to uint8 [H, W, C], RGB or greyscale.

  Raises:
    BadImageError: if the bytes are not an image.
  """
  opened = open_image(image, num_channels)
  return opened.cut((0, 0, opened.height, opened.width))


def _decode_whole(encoded: bytes, num_channels: int) -> np.ndarray:
  if not encoded:
    raise BadImageError('an image of 0 bytes')
  try:
    decoded = _decode(np.frombuffer(encoded, np.uint8), num_channels)
  except cv2.error as error:  # the header claims too many pixels
    if error.code == cv2.Error.StsNoMem:
      raise UserError(
        f'not enough memory to decode an image of {count(len(encoded), "byte", form="")}: free '
        'some, or use fewer --config.data.num_workers'
      ) from error
    raise BadImageError(
      f'{count(len(encoded), "byte", form="")}: {error.err}'
    ) from error
  if decoded is None:
    raise BadImageError(
      f'no image decodes from {count(len(encoded), "byte", form="")}'
    )
  if decoded.dtype != np.uint8:
    raise BadImageError(f'pixels of {decoded.dtype}, not of 8 or 16 bits')
  return decoded.reshape(*decoded.shape[:2], num_channels)


def _decode(encoded: np.ndarray, num_channels: int) -> np.ndarray | None:
  """Decodes to uint8, if stored with 8 or 16 bits; 65535 becomes 255."""
  decoded = cv2.imdecode(encoded, _FLAGS[num_channels])
  if decoded is None or decoded.dtype != np.uint16:
    return decoded
  if num_channels == 3:
    # With IMREAD_COLOR_RGB, OpenCV 5.0.0 leaves 16-bit TIFF pixels undefined.
    decoded = cv2.imdecode(encoded, cv2.IMREAD_COLOR_BGR | _AS_STORED)
    decoded = cv2.cvtColor(decoded, cv2.COLOR_BGR2RGB)
  return ((decoded.astype(np.uint32) + 128) // 257).astype(np.uint8)


def _decode_part(stream, box: Box) -> np.ndarray | None:
  top, left, height, width = box
  region = _codec().Region(start=(top, left), end=(top + height, left + width))
  part = stream.get_sub_code_stream(region=region)
  decoded = _decoder().decode(part, params=_parameters())
  return None if decoded is None else np.asarray(decoded)


_import_lock = threading.Lock()  # the import changes environment variables


@functools.cache
def _codec():
  """The module nvimgcodec, or None if it is not installed."""
  try:
    spec = importlib.util.find_spec('nvidia.nvimgcodec')
  except ModuleNotFoundError:
    spec = None
  if spec is None:
    return None
  with _import_lock, _only_jpeg(spec.submodule_search_locations[0]):
    from nvidia import nvimgcodec
  return nvimgcodec


@contextlib.contextmanager
def _only_jpeg(package: str) -> Iterator[None]:
  """Lets nvImageCodec load only libjpeg-turbo, and print nothing.

  Its other extensions print to stderr if CUDA is absent.
  """
  with tempfile.TemporaryDirectory() as folder:
    for path in glob.glob(f'{glob.escape(package)}/extensions/libjpeg_turbo*'):
      os.symlink(path, os.path.join(folder, os.path.basename(path)))
    settings = {
      'NVIMGCODEC_EXTENSIONS_PATH': folder, 'PYNVIMGCODEC_VERBOSITY': '0',
    }  # fmt: skip
    ours = {k: v for k, v in settings.items() if k not in os.environ}
    os.environ.update(ours)
    try:
      yield
    finally:
      for name in ours:
        del os.environ[name]


_local = threading.local()


def _decoder():
  """The calling thread's decoder, which decodes in this thread."""
  if not hasattr(_local, 'decoder'):
    codec = _codec()
    _local.decoder = codec.Decoder(
      device_id=codec.NVIMGCODEC_DEVICE_CPU_ONLY,
      max_num_cpu_threads=1,
      backends=[codec.Backend(codec.BackendKind.CPU_ONLY)],
    )
  return _local.decoder


@functools.cache
def _parameters():
  return _codec().DecodeParams(apply_exif_orientation=False)

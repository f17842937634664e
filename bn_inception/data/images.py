"""Decodes images, and of a JPEG only the part that is asked for.

The part is decoded by nvImageCodec with libjpeg-turbo, on the CPU. OpenCV
decodes, as a whole, whatever else there is: other formats, CMYK, grey networks,
and all images where nvImageCodec is not installed. Both give the same pixels.

A rotation that a camera noted in EXIF is ignored, as by TensorFlow and PyTorch:
published accuracies are of the pixels as they are stored. Transparency is
ignored, as by Pillow's convert('RGB'). Of animations and files of several pages
the first image counts. Images of 16 bits become 8 by v / 257, rounded; others,
such as those of real numbers, have no scale of their own and are refused.
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

# The depth as it is stored: OpenCV would cut 16 bits to the upper 8, and real
# numbers to whole ones.
_AS_STORED = cv2.IMREAD_IGNORE_ORIENTATION | cv2.IMREAD_ANYDEPTH
_FLAGS = {
  1: cv2.IMREAD_GRAYSCALE | _AS_STORED,
  3: cv2.IMREAD_COLOR_RGB | _AS_STORED,
}
_JPEG = b'\xff\xd8\xff'


class BadImageError(ValueError):
  """An image of which the pixels that are needed cannot be decoded."""


class Image:
  """A decoded image.

  Attributes:
    height, width: in pixels.
  """

  def __init__(self, pixels: np.ndarray):
    self.height, self.width = pixels.shape[:2]
    self._pixels = pixels

  def cut(self, box: Box) -> np.ndarray:
    """The pixels of a box: uint8 [height, width, C].

    Raises:
      BadImageError: if they cannot be decoded.
    """
    top, left, height, width = box
    return self._pixels[top : top + height, left : left + width]


class _Jpeg(Image):
  """A JPEG of which the parts are decoded when they are cut."""

  def __init__(self, encoded: bytes, stream):
    self.height, self.width = stream.height, stream.width
    self._encoded, self._stream = encoded, stream

  def cut(self, box: Box) -> np.ndarray:
    part = _decode_part(self._stream, box)
    if part is None:  # let OpenCV have a try, and the last word
      part = Image(_decode_whole(self._encoded, 3)).cut(box)
    return part


def open_image(image: bytes | np.ndarray, num_channels: int) -> Image:
  """An image of which parts can be cut.

  Args:
    image: encoded (JPEG, PNG, ...), or uint8 [H, W, C].
    num_channels: 3: RGB, to which grey and CMYK images are converted; 1: grey.

  Raises:
    BadImageError: if the bytes are no image.
  """
  if isinstance(image, np.ndarray):
    return Image(image)
  if num_channels == 3 and image.startswith(_JPEG) and _codec() is not None:
    stream = _codec().CodeStream(image)
    try:
      is_rgb_or_grey = stream.num_channels in (1, 3)
    except RuntimeError:  # a header that it cannot read
      is_rgb_or_grey = False
    if is_rgb_or_grey:
      return _Jpeg(image, stream)
  return Image(_decode_whole(image, num_channels))


def decode_image(image: bytes | np.ndarray, num_channels: int) -> np.ndarray:
  """The whole of an image: uint8 [H, W, C], in RGB order or grey.

  Raises:
    BadImageError: if the bytes are no image.
  """
  opened = open_image(image, num_channels)
  return opened.cut((0, 0, opened.height, opened.width))


def _decode_whole(encoded: bytes, num_channels: int) -> np.ndarray:
  if not encoded:
    raise BadImageError('an image of 0 bytes')
  try:
    decoded = _decode(np.frombuffer(encoded, np.uint8), num_channels)
  except cv2.error as error:  # a header that promises too many pixels
    if error.code == cv2.Error.StsNoMem:
      raise UserError(
        f'memory is too short to decode an image of {len(encoded)} bytes: free '
        'some, or use fewer --config.data.num_workers'
      ) from error
    raise BadImageError(f'{len(encoded)} bytes: {error.err}') from error
  if decoded is None:
    raise BadImageError(f'{len(encoded)} bytes do not decode to an image')
  if decoded.dtype != np.uint8:
    raise BadImageError(f'pixels of {decoded.dtype}, not of 8 or 16 bits')
  return decoded.reshape(*decoded.shape[:2], num_channels)


def _decode(encoded: np.ndarray, num_channels: int) -> np.ndarray | None:
  """Of 16 bits a channel, 65535 becomes 255."""
  decoded = cv2.imdecode(encoded, _FLAGS[num_channels])
  if decoded is None or decoded.dtype != np.uint16:
    return decoded
  if num_channels == 3:
    # Asked for RGB, OpenCV 5.0.0 leaves the pixels of a 16-bit TIFF undefined.
    decoded = cv2.imdecode(encoded, cv2.IMREAD_COLOR_BGR | _AS_STORED)
    decoded = cv2.cvtColor(decoded, cv2.COLOR_BGR2RGB)
  return ((decoded.astype(np.uint32) + 128) // 257).astype(np.uint8)


def _decode_part(stream, box: Box) -> np.ndarray | None:
  top, left, height, width = box
  region = _codec().Region(start=(top, left), end=(top + height, left + width))
  part = stream.get_sub_code_stream(region=region)
  decoded = _decoder().decode(part, params=_parameters())
  return None if decoded is None else np.asarray(decoded)


_loading = threading.Lock()  # which changes the environment for a moment


@functools.cache
def _codec():
  """The module nvimgcodec, or None where it is not installed."""
  try:
    spec = importlib.util.find_spec('nvidia.nvimgcodec')
  except ModuleNotFoundError:
    spec = None
  if spec is None:
    return None
  with _loading, _only_jpeg(spec.submodule_search_locations[0]):
    from nvidia import nvimgcodec
  return nvimgcodec


@contextlib.contextmanager
def _only_jpeg(package: str) -> Iterator[None]:
  """Lets nvImageCodec load one extension: others complain where CUDA is absent.

  They do so on stderr, as does a damaged image, which is reported otherwise.
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


_of_thread = threading.local()


def _decoder():
  """This thread's decoder; it runs in this thread."""
  if not hasattr(_of_thread, 'decoder'):
    codec = _codec()
    _of_thread.decoder = codec.Decoder(
      device_id=codec.NVIMGCODEC_DEVICE_CPU_ONLY,
      max_num_cpu_threads=1,
      backends=[codec.Backend(codec.BackendKind.CPU_ONLY)],
    )
  return _of_thread.decoder


@functools.cache
def _parameters():
  return _codec().DecodeParams(apply_exif_orientation=False)

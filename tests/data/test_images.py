"""Decoding: parts equal the whole; unusual and damaged images."""

import io
import subprocess
import sys
import threading

import cv2
import numpy as np
import PIL.Image
import pytest

from bn_inception.data import images
from bn_inception.data.images import BadImageError, decode_image, open_image
from bn_inception.errors import UserError


def photograph(height=90, width=120, seed=0):
  """Smooth colours with a little noise: uint8 RGB."""
  rng = np.random.default_rng(seed)
  coarse = rng.integers(0, 256, (5, 6, 3)).astype(np.uint8)
  image = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
  return np.clip(image + rng.normal(0, 8, image.shape), 0, 255).astype(np.uint8)


def encode(image, file_format='JPEG', mode='RGB', **options):
  file = io.BytesIO()
  PIL.Image.fromarray(image).convert(mode).save(file, file_format, **options)
  return file.getvalue()


def with_opencv(encoded):
  """The whole image as OpenCV decodes it."""
  return cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_COLOR_RGB)


BOXES = [(0, 0, 90, 120), (17, 33, 41, 59), (89, 0, 1, 120), (3, 119, 80, 1)]


@pytest.mark.parametrize(
  'options',
  [
    {'subsampling': 0},
    {'subsampling': 1},
    {'subsampling': 2},
    {'progressive': True},
    {'mode': 'L'},
    {'mode': 'CMYK'},
    {'file_format': 'PNG'},
  ],
  ids=str,
)
@pytest.mark.parametrize('has_codec', [True, False])
def test_parts_equal_the_whole_that_opencv_decodes(
  options, has_codec, monkeypatch
):
  assert images._codec() is not None
  if not has_codec:
    monkeypatch.setattr(images, '_codec', lambda: None)
  encoded = encode(photograph(), quality=93, **options)
  whole = with_opencv(encoded)
  opened = open_image(encoded, 3)
  assert (opened.height, opened.width) == (90, 120)
  for box in BOXES:
    top, left, height, width = box
    expected = whole[top : top + height, left : left + width]
    np.testing.assert_array_equal(opened.cut(box), expected)


def test_a_part_is_decoded_without_the_whole(monkeypatch):
  encoded = encode(photograph())
  monkeypatch.setattr(images, '_decode_whole', None)
  assert open_image(encoded, 3).cut((5, 6, 7, 8)).shape == (7, 8, 3)


def test_each_thread_has_its_own_decoder():
  encoded, found = encode(photograph()), []

  def decode():
    found.append(decode_image(encoded, 3))

  threads = [threading.Thread(target=decode) for _ in range(4)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  assert len(found) == 4
  for image in found:
    np.testing.assert_array_equal(image, with_opencv(encoded))


def test_images_come_in_rgb_order_or_grey():
  image = np.zeros((4, 6, 3), np.uint8)
  image[..., 0], image[..., 2] = 200, 50  # red and a little blue
  png = encode(image, 'PNG')
  np.testing.assert_array_equal(decode_image(png, 3), image)
  grey = decode_image(png, 1)
  assert grey.shape == (4, 6, 1)
  np.testing.assert_allclose(grey, 0.299 * 200 + 0.114 * 50, atol=1)
  np.testing.assert_array_equal(decode_image(image, 3), image)


def test_exif_rotation_is_ignored():
  image = photograph()
  exif = PIL.Image.Exif()
  exif[0x0112] = 6  # turn by 90 degrees
  for file_format in 'JPEG', 'PNG':
    for num_channels in (1, 3):
      np.testing.assert_array_equal(
        decode_image(encode(image, file_format, exif=exif), num_channels),
        decode_image(encode(image, file_format), num_channels),
      )


@pytest.mark.parametrize('height, width', [(1, 300), (300, 1), (1, 1)])
def test_images_of_one_row_or_column(height, width):
  encoded = encode(photograph(height, width))
  np.testing.assert_array_equal(decode_image(encoded, 3), with_opencv(encoded))


def test_a_jpeg_that_ends_early_has_its_first_rows():
  encoded = encode(photograph(400, 400), quality=95)
  cut_short = open_image(encoded[: len(encoded) // 2], 3)
  np.testing.assert_array_equal(
    cut_short.cut((0, 0, 50, 400)), with_opencv(encoded)[:50]
  )
  with pytest.raises(BadImageError, match='[0-9]+ byte'):
    cut_short.cut((300, 0, 100, 400))


@pytest.mark.parametrize(
  'damaged',
  [
    b'',
    b'abc',
    encode(photograph())[:300],
    encode(photograph(), 'PNG')[:9000],
    encode(photograph(), quality=95)[:-1000],
  ],
  ids=['nothing', 'text', 'header', 'png', 'most'],
)
@pytest.mark.parametrize('num_channels', [1, 3])
def test_damaged_images_are_bad_images(damaged, num_channels, capfd):
  with pytest.raises(BadImageError, match='bytes'):
    decode_image(damaged, num_channels)
  assert capfd.readouterr().out == ''


def test_nothing_is_printed_where_cuda_is_absent(tmp_path):
  path = tmp_path / 'image.jpg'
  path.write_bytes(encode(photograph()))
  program = (
    'import pathlib, sys\n'
    'from bn_inception.data import images\n'
    'encoded = pathlib.Path(sys.argv[1]).read_bytes()\n'
    'assert images.decode_image(encoded, 3).shape == (90, 120, 3)\n'
    'try: images.decode_image(encoded[:-1000], 3)\n'
    'except images.BadImageError: pass\n'
  )
  done = subprocess.run(
    [sys.executable, '-c', program, str(path)], capture_output=True, text=True
  )
  assert (done.returncode, done.stdout, done.stderr) == (0, '', '')


@pytest.mark.parametrize('suffix', ['.png', '.tif', '.ppm'])
def test_sixteen_bits_are_scaled_to_eight(suffix):
  values = np.array([0, 128, 129, 255, 256, 385, 386, 511, 65406, 65407, 65535])
  expected = np.array([0, 0, 1, 1, 1, 1, 2, 2, 254, 255, 255])
  image = np.zeros((4, len(values), 3), np.uint16)
  image[..., 0], image[..., 1] = values, 100 * 257
  encoded = cv2.imencode(suffix, image[..., ::-1])[1].tobytes()
  decoded = decode_image(encoded, 3)
  np.testing.assert_array_equal(decoded[..., 0], np.tile(expected, (4, 1)))
  np.testing.assert_array_equal(decoded[..., 1], 100)
  np.testing.assert_array_equal(decoded[..., 2], 0)
  grey = np.uint16(np.tile(values, (4, 1)))
  encoded = cv2.imencode('.png', grey)[1].tobytes()
  for num_channels in (1, 3):
    decoded = decode_image(encoded, num_channels)
    np.testing.assert_array_equal(decoded[0, :, -1], expected)


def test_float_images_are_refused():
  image = np.random.default_rng(0).random((4, 5, 3)).astype(np.float32)
  for suffix in '.hdr', '.pfm':
    encoded = cv2.imencode(suffix, image)[1].tobytes()
    with pytest.raises(BadImageError, match='pixels of float32'):
      decode_image(encoded, 3)


@pytest.mark.parametrize('mode', ['RGBA', 'LA', 'P', '1', 'L'])
def test_modes_are_those_of_pillow(mode):
  image = PIL.Image.fromarray(photograph(20, 30))
  converted = image.convert(mode)
  if mode in ('RGBA', 'LA'):  # which what is transparent keeps its colour
    converted.putalpha(PIL.Image.fromarray(photograph(20, 30, 1)[..., 0]))
  options = {'transparency': 0} if mode == 'P' else {}
  file = io.BytesIO()
  converted.save(file, 'PNG', **options)
  expected = np.asarray(PIL.Image.open(file).convert('RGB'))
  np.testing.assert_array_equal(decode_image(file.getvalue(), 3), expected)


def test_the_first_image_of_an_animation_is_read():
  frames = [PIL.Image.new('RGB', (8, 6), c) for c in ('red', 'blue')]
  for file_format in 'GIF', 'WEBP', 'PNG', 'TIFF':
    file = io.BytesIO()
    frames[0].save(file, file_format, save_all=True, append_images=frames[1:])
    np.testing.assert_allclose(
      decode_image(file.getvalue(), 3)[0, 0], (255, 0, 0), atol=6
    )


def test_a_lack_of_memory_is_not_a_bad_image(monkeypatch):
  def decode(*arguments):
    error = cv2.error()
    error.code = cv2.Error.StsNoMem
    raise error

  monkeypatch.setattr(images.cv2, 'imdecode', decode)
  with pytest.raises(UserError, match='memory'):
    decode_image(b'a', 3)

"""Shrunk copies: layout, order, pixels, and what failures leave behind."""

import json
import pathlib
import sys

import cv2
import numpy as np
import pytest
import tensorflow_datasets as tfds
from google.protobuf.json_format import MessageToDict

from bn_inception.data import imagenet, shrink
from bn_inception.data.crops import centre_square
from bn_inception.data.images import decode_image
from bn_inception.data.sources import make_source
from bn_inception.errors import UserError
from tests.data.test_folders import (
  VALIDATION,
  imagenet_labels,
  jpeg,
  write_archive,
  write_images,
)

TFDS_DIR = str(pathlib.Path(__file__).parents[1] / 'tfds')
LABELS = (7, 281, 999)


def write_training_folders(root, num_images=3):
  """Images of 40 x 30 pixels, in three classes."""
  for label in LABELS:
    name = imagenet.class_names()[label]
    files = [f'{name}_{i}.JPEG' for i in range(num_images)]
    write_images(root / 'train' / name, files, first_seed=10 * label)


def shape(encoded):
  return decode_image(encoded, 3).shape


def photograph(seed, height=375, width=500):
  """Noise with the spectrum of photographs, and discs with sharp edges."""
  rng = np.random.default_rng(seed)
  frequency = np.hypot(
    np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None]
  )
  frequency[0, 0] = 1.0
  parts = []
  for _ in range(4):
    phases = rng.normal(size=(2, *frequency.shape))
    spectrum = (phases[0] + 1j * phases[1]) / frequency**1.1
    part = np.fft.irfft2(spectrum, s=(height, width))
    parts.append(part / part.std())
  image = np.stack([0.9 * parts[0] + 0.35 * p for p in parts[1:]], -1) * 45
  image += 120
  for _ in range(8):
    disc = np.zeros((height, width), np.float32)
    centre = int(rng.integers(width)), int(rng.integers(height))
    radius = int(rng.integers(10, 70))
    cv2.circle(disc, centre, radius, 0.7, -1, cv2.LINE_AA)
    colour = rng.integers(0, 256, 3)
    image = image * (1 - disc[..., None]) + disc[..., None] * colour
  image = np.clip(image, 0, 255).astype(np.uint8)
  return cv2.imencode('.jpg', image, (cv2.IMWRITE_JPEG_QUALITY, 94))[
    1
  ].tobytes()


def centre(image):
  top, left, height, width = centre_square(*image.shape[:2], 0.875)
  return image[top : top + height, left : left + width]


def test_folders_become_a_prepared_copy(tmp_path, monkeypatch, capsys):
  monkeypatch.setattr(shrink, 'EXAMPLES_PER_SHARD', 2)
  write_training_folders(tmp_path / 'in')
  for name, label in zip(VALIDATION, imagenet_labels(VALIDATION), strict=True):
    folder = tmp_path / 'in' / 'val' / imagenet.class_names()[label]
    write_images(folder, [name])
  out = str(tmp_path / 'out')
  folder = shrink.shrink('imagenet2012', str(tmp_path / 'in'), out, 20)
  assert folder == f'{out}/imagenet2012/5.1.0'
  train = make_source('imagenet2012', 'train', out)
  assert train.class_names == imagenet.class_names()
  assert [train[i][1] for i in range(9)] == [
    label for label in LABELS for _ in range(3)
  ]
  name = imagenet.class_names()[281]
  assert train.describe(4) == f'imagenet2012, example 4 ({name}_1.JPEG)'
  np.testing.assert_allclose(  # the same image, not its neighbour
    decode_image(train[4][0], 3),
    cv2.resize(decode_image(jpeg(2811), 3), (27, 20), interpolation=3),
    atol=12,
  )
  validation = make_source('imagenet2012', 'validation', out)
  assert sorted(validation[i][1] for i in range(4)) == sorted(
    imagenet_labels(VALIDATION)
  )
  assert shape(validation[0][0]) == (20, 27, 3)
  how = train.origin()['shrunk']
  assert (how['short_side'], how['quality']) == (20, 95)
  assert how['interpolation'] == 'cv2.INTER_AREA'
  assert how['source']['train']['folder'] == f'{tmp_path}/in/train'
  shards = list(pathlib.Path(folder).glob('*train.array_record-*-of-00004'))
  assert len(shards) == 4
  assert [p.name for p in (tmp_path / 'out/imagenet2012').iterdir()] == [
    '5.1.0'
  ]
  assert 'tensorflow' not in sys.modules
  assert f'written: {folder}' in capsys.readouterr().out


def test_a_prepared_copy_keeps_its_shards_order_and_features(
  tmp_path, monkeypatch
):
  monkeypatch.setattr(shrink, 'EXAMPLES_PER_SHARD', 4)
  write_training_folders(tmp_path / 'in')
  copies = [str(tmp_path / name) for name in ('in', 'same', 'small')]
  shrink.shrink('imagenet2012', *copies[:2], short_side=30)
  monkeypatch.setattr(shrink, 'EXAMPLES_PER_SHARD', 1)
  shrink.shrink('imagenet2012', *copies[1:], short_side=12)
  original, same, small = (
    make_source('imagenet2012', 'train', folder) for folder in copies
  )
  everything = range(len(original))
  # Images that are small enough stay the same, byte for byte.
  for index in everything:
    assert same[index] == original[index]
    assert small[index][1] == same[index][1]
    assert small.describe(index) == same.describe(index)
    assert shape(small[index][0]) == (12, 16, 3)
  info = json.loads(
    (tmp_path / 'small/imagenet2012/5.1.0/dataset_info.json').read_text()
  )
  assert [s['name'] for s in info['splits']] == ['train']
  assert info['splits'][0]['shardLengths'] == ['4', '5']
  assert int(info['splits'][0]['numBytes']) > 9 * 300
  history = small.origin()['shrunk']
  assert history['short_side'] == 12
  assert history['source']['train']['shrunk']['short_side'] == 30


def test_integer_labels_keep_the_names_of_their_classes(tmp_path):
  write_training_folders(tmp_path / 'in')
  copies = [str(tmp_path / name) for name in ('in', 'first', 'second')]
  folder = shrink.shrink('imagenet2012', *copies[:2], short_side=20)
  features = pathlib.Path(folder) / 'features.json'
  content = json.loads(features.read_text())
  label = tfds.features.Scalar(np.int64).to_proto()
  content['featuresDict']['features']['label'] = MessageToDict(label)
  features.write_text(json.dumps(content))
  dataset = 'imagenet2012:5.1.0'  # TFDS then reads the copy's own features
  shrink.shrink(dataset, *copies[1:], short_side=10)
  source = make_source(dataset, 'train', copies[2])
  assert source.class_names == imagenet.class_names()
  assert [source[i][1] for i in (0, 3, 6)] == list(LABELS)
  assert shape(source[0][0]) == (10, 14, 3)


def test_data_sets_that_cannot_be_shrunk_are_named(tmp_path):
  for dataset in 'image_folder', 'digits':
    with pytest.raises(UserError, match=f'{dataset} .*--dataset'):
      shrink.shrink(dataset, str(tmp_path), str(tmp_path / 'out'))


def test_the_validation_archive_is_shrunk(tmp_path):
  write_archive(tmp_path / imagenet.VALIDATION_ARCHIVE, VALIDATION)
  out = str(tmp_path / 'out')
  shrink.shrink('imagenet2012', str(tmp_path), out, 15)
  source = make_source('imagenet2012', 'validation', out)
  labels = [source[i][1] for i in range(4)]
  assert labels == imagenet_labels(VALIDATION)
  assert VALIDATION[3] in source.describe(3)
  assert shape(source[3][0]) == (15, 20, 3)


def test_images_keep_their_aspect_and_never_grow():
  tall = cv2.imencode('.png', np.zeros((100, 33, 3), np.uint8))[1].tobytes()
  shrunk = shrink.shrink_image(tall, 16, 95)
  assert shrunk.startswith(b'\xff\xd8\xff') and shape(shrunk) == (48, 16, 3)
  assert shrink.shrink_image(tall, 33, 95) is tall
  grey = cv2.imencode('.jpg', np.full((64, 64), 90, np.uint8))[1].tobytes()
  pixels = decode_image(shrink.shrink_image(grey, 32, 95), 3)
  np.testing.assert_allclose(pixels, np.full((32, 32, 3), 90), atol=1)
  red = np.zeros((64, 64, 3), np.uint8)
  red[..., 2] = 200  # OpenCV's order
  red = cv2.imencode('.png', red)[1].tobytes()
  pixels = decode_image(shrink.shrink_image(red, 32, 95), 3)
  np.testing.assert_allclose(pixels[0, 0], [200, 0, 0], atol=2)


def test_pixels_of_the_centre_crop_are_close_to_those_of_the_original():
  """Measured: 40.1 dB and 1.9 of 255; below the shift of one pixel, 25 dB."""
  for seed in range(3):
    original = photograph(seed)
    whole = decode_image(original, 3)
    shrunk = shrink.shrink_image(original, 256, 95)
    crop = centre(decode_image(shrunk, 3)).astype(float)
    assert crop.shape == (224, 224, 3)
    assert len(shrunk) < 0.65 * len(original)
    reference = cv2.resize(whole, (341, 256), interpolation=cv2.INTER_AREA)
    error = crop - centre(reference)
    assert 10 * np.log10(255**2 / np.mean(error**2)) > 39
    assert np.abs(error).mean() < 2.3


def test_failures_are_named_and_leave_no_usable_copy(tmp_path):
  source, out = tmp_path / 'in', tmp_path / 'out'
  write_training_folders(source)
  bad = source / 'train' / imagenet.class_names()[281] / 'bad.JPEG'
  bad.write_bytes(jpeg(0)[:40])

  def complaint(*arguments, dataset='imagenet2012', **options):
    with pytest.raises(UserError) as caught:
      shrink.shrink(dataset, *map(str, arguments), **options)
    assert '\n' not in str(caught.value)
    return str(caught.value)

  assert str(bad) in complaint(source, out)
  unfinished = out / 'imagenet2012' / '5.1.0.incomplete'
  assert unfinished.exists()
  with pytest.raises(UserError, match='5.1.0.incomplete was never finished'):
    make_source('imagenet2012', 'train', str(out))
  bad.unlink()
  (unfinished / 'stale').write_text('')
  shrink.shrink('imagenet2012', str(source), str(out))
  assert not unfinished.exists()
  assert not (out / 'imagenet2012/5.1.0/stale').exists()
  assert len(make_source('imagenet2012', 'train', str(out))) == 9
  assert f'{out}/imagenet2012/5.1.0 already exists' in complaint(source, out)
  assert f'output_dir {source} ' in complaint(source, source)
  assert 'output_dir gs://a/b ' in complaint(source, 'gs://a/b')
  assert "has no split 'tset': --splits takes train" in complaint(
    out, tmp_path / 'c', splits=['tset']
  )
  assert 'split test' in complaint(source, tmp_path / 'c', splits=['test'])
  assert 'between 1 and 100: got 256 and 101' in complaint(
    source, tmp_path / 'c', quality=101
  )
  assert '1 channel:' in complaint(
    TFDS_DIR, tmp_path / 'c', dataset='fashion_mnist'
  )
  (tmp_path / 'file').write_text('')
  assert 'cannot be written' in complaint(source, tmp_path / 'file')
  shard = next((out / 'imagenet2012/5.1.0').glob('*.array_record-*'))
  content = bytearray(shard.read_bytes())
  middle = content.index(b'_1.JPEG')
  content[middle : middle + 7] = bytes(7)
  shard.write_bytes(content)
  assert f'{shard} cannot be read' in complaint(out, tmp_path / 'c')

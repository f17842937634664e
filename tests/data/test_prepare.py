"""A miniature ILSVRC 2012, starting from official archives: `make test-slow`.

TensorFlow, in an environment of its own, prepares it by the commands that our
messages print; here, where there is none, it is read, trained on and evaluated.
"""

import importlib.util
import io
import json
import os
import pathlib
import pickle
import re
import subprocess
import sys
import tarfile

import cv2
import numpy as np
import PIL.Image
import pytest

from bn_inception.data import imagenet
from bn_inception.data.images import decode_image
from bn_inception.data.sources import make_source
from bn_inception.errors import UserError

pytestmark = pytest.mark.slow

ROOT = pathlib.Path(__file__).parents[2]
TFDS = ROOT / os.environ.get('TFDS', '.venv-prepare/bin/tfds')
# TFDS knows the images that are no RGB JPEGs by their names.
CMYK, PNG = 'n01739381_1309.JPEG', 'n02105855_2933.JPEG'
CLASSES = 'n01440764', 'n01739381', 'n02105855', 'n03445777'
TRAIN = {
  wnid: [name for name in (CMYK, PNG) if name.startswith(wnid)]
  + [f'{wnid}_{i}.JPEG' for i in range(11 + (wnid not in CMYK + PNG))]
  for wnid in CLASSES
}
VALIDATION = [imagenet.VALIDATION_FILE.format(i) for i in range(1, 17)]


def photograph(name):
  """An encoded image of coloured or grey patches, a function of its name."""
  rng = np.random.default_rng(list(name.encode()))
  height, width = rng.integers((220, 270), (280, 330))
  is_grey = name.endswith('5.JPEG')
  patches = rng.integers(0, 256, (5, 6) if is_grey else (5, 6, 3), np.uint8)
  image = cv2.resize(patches, (int(width), int(height)))
  if name != CMYK:
    suffix = '.png' if name == PNG else '.jpg'
    return cv2.imencode(suffix, image)[1].tobytes()
  encoded = io.BytesIO()
  PIL.Image.fromarray(image).convert('CMYK').save(encoded, 'JPEG')
  return encoded.getvalue()


def archive(contents):
  """A tar of {name: bytes}."""
  buffer = io.BytesIO()
  with tarfile.open(fileobj=buffer, mode='w') as tar:
    for name, content in contents.items():
      member = tarfile.TarInfo(name)
      member.size = len(content)
      tar.addfile(member, io.BytesIO(content))
  return buffer.getvalue()


def printed_command(data_dir, message):
  """The command in an error message that makes a copy readable."""
  with pytest.raises(UserError, match=message) as caught:
    make_source('imagenet2012', 'train', str(data_dir))
  assert '\n' not in str(caught.value)
  make, install, command = re.search('`(.*)`', str(caught.value))[1].split(
    ' && '
  )
  assert make == 'python3 -m venv .venv-prepare'
  assert install.endswith('/bin/pip install -r requirements-prepare.txt')
  return command.removeprefix('.venv-prepare/bin/')


def run(command, environment):
  done = subprocess.run(
    command,
    shell=isinstance(command, str),
    cwd=ROOT,
    env=os.environ | environment,
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stderr


def paste(command):
  """Runs a shell command with `tfds` from TensorFlow's environment."""
  run(command, {'PATH': f'{TFDS.parent}:{os.environ["PATH"]}'})


@pytest.fixture(autouse=True)
def no_tensorflow():
  assert importlib.util.find_spec('tensorflow') is None


@pytest.fixture(scope='module')
def tars(tmp_path_factory):
  """The two official archives."""
  folder = tmp_path_factory.mktemp('tars')
  classes = {
    f'{wnid}.tar': archive({name: photograph(name) for name in names})
    for wnid, names in TRAIN.items()
  }
  (folder / 'ILSVRC2012_img_train.tar').write_bytes(archive(classes))
  images = {name: photograph(name) for name in reversed(VALIDATION)}
  (folder / imagenet.VALIDATION_ARCHIVE).write_bytes(archive(images))
  return folder


@pytest.fixture(scope='module')
def folders(tmp_path_factory):
  """The same images as files."""
  root = tmp_path_factory.mktemp('folders')
  places = {root / 'train' / wnid: names for wnid, names in TRAIN.items()}
  for folder, names in (places | {root / 'val': VALIDATION}).items():
    folder.mkdir(parents=True)
    for name in names:
      (folder / name).write_bytes(photograph(name))
  return root


@pytest.fixture(scope='module')
def build(tars, tmp_path_factory):
  """The command that prepares a copy, and the copy's data_dir."""
  data_dir = tmp_path_factory.mktemp('prepared')
  command = printed_command(data_dir, 'holds no copy of')
  in_documents = command.replace(str(data_dir), '/data/tfds')
  in_documents = in_documents.replace('FOLDER_OF_THE_TWO_TARS', '/data/tars')
  assert in_documents in (ROOT / 'docs' / 'data.md').read_text()
  return command.replace('FOLDER_OF_THE_TWO_TARS', str(tars)), data_dir


@pytest.fixture(scope='module')
def prepared(build):
  """The data_dir of the copy that TFDS prepared."""
  command, data_dir = build
  paste(command)
  return data_dir


def read(data_dir, split):
  """{file name: (encoded image, label)}."""
  source = make_source('imagenet2012', split, str(data_dir))
  return {
    re.search(r'\w+\.JPEG', source.describe(i))[0]: source[i]
    for i in range(len(source))
  }


def test_training_images_have_the_same_labels_in_both_forms(prepared, folders):
  copied, in_folders = read(prepared, 'train'), read(folders, 'train')
  names = imagenet.class_names()
  assert set(copied) == set(in_folders) and len(copied) == 48
  for name, (encoded, label) in copied.items():
    original, expected = in_folders[name]
    assert label == expected == names.index(name.partition('_')[0])
    if name in (CMYK, PNG):
      assert encoded.startswith(b'\xff\xd8\xff')  # TFDS makes it an RGB JPEG
      pixels = [np.float32(decode_image(e, 3)) for e in (encoded, original)]
      assert np.abs(pixels[0] - pixels[1]).mean() < 3.0
    else:
      assert encoded == original
      assert decode_image(encoded, 3).shape[-1] == 3


def test_validation_images_are_the_same_in_all_forms(prepared, folders, tars):
  copied, in_folders, in_archive = (
    read(data_dir, 'validation') for data_dir in (prepared, folders, tars)
  )
  assert copied == in_folders == in_archive
  labels = imagenet.validation_labels()
  assert {name: label for name, (_, label) in copied.items()} == {
    name: labels[name] for name in VALIDATION
  }


def test_the_printed_command_converts_a_tfrecord_copy(
  build, prepared, tmp_path
):
  command, data_dir = build
  command = command.replace('--file_format=array_record ', '')
  paste(command.replace(str(data_dir), str(tmp_path)))
  paste(printed_command(tmp_path, 'is prepared as tfrecord'))
  assert read(tmp_path, 'train') == read(prepared, 'train')
  source = make_source('imagenet2012', 'validation', str(tmp_path))
  copy = pickle.loads(pickle.dumps(source))  # as to worker processes
  assert copy[15] == source[15] and len(copy) == 16


@pytest.mark.slow
def test_the_full_network_trains_and_is_evaluated(prepared, tars, tmp_path):
  environment = {
    'JAX_PLATFORMS': 'cpu',
    'JAX_COMPILATION_CACHE_DIR': str(tmp_path / 'cache'),
  }
  workdir = tmp_path / 'run'
  sizes = {
    'batch_size': 8,
    'norm_batch_size': 8,
    'eval_batch_size': 8,
    'data.num_shards': 4,
    'data.num_workers': 1,
    'training.num_epochs': 0.5,  # 3 steps
    'training.log_every_steps': 1,
  }
  run(
    [
      *(sys.executable, 'train.py', '--config=configs/bn_x30.py:imagenet'),
      *(f'--config.{name}={value}' for name, value in sizes.items()),
      *(f'--workdir={workdir}', f'--data_dir={prepared}'),
    ],
    environment,
  )
  result = json.loads((workdir / 'result.json').read_text())
  assert result['steps'] == 3 and not result['diverged']
  evaluations = []
  for number, data_dir in enumerate((prepared, tars)):
    output = tmp_path / f'{number}.json'
    run(
      [
        *(sys.executable, 'eval.py', f'--workdir={workdir}'),
        *(f'--data_dir={data_dir}', f'--output={output}'),
      ],
      environment,
    )
    evaluation = json.loads(output.read_text())
    assert evaluation['examples'] == 16
    evaluations.append(evaluation['results']['moving averages'])
  copied, in_archive = evaluations
  assert 0.0 <= copied['top1'] <= copied['top5'] <= 100.0
  for name in 'top1', 'top5', 'loss':
    assert in_archive[name] == pytest.approx(copied[name], rel=1e-6), name
  for name in 'top1', 'loss':
    assert copied[name] == pytest.approx(result[name], rel=1e-6), name

"""Copies prepared by TFDS: read without TensorFlow; errors for bad ones."""

import os
import pathlib
import pickle
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import pytest
from array_record.python.array_record_module import ArrayRecordWriter
from tensorflow_datasets.proto import tf_example_pb2

from bn_inception.data import check, imagenet, shrink, tfds_source
from bn_inception.data.images import decode_image
from bn_inception.data.sources import make_source
from bn_inception.errors import UserError

TFDS_DIR = str(pathlib.Path(__file__).parents[1] / 'tfds')


def test_tfds_records_are_read_without_tensorflow():
  import sys

  source = make_source('fashion_mnist', 'train', TFDS_DIR)
  assert len(source) == 200 and source.num_channels == 1
  assert source.class_names[9] == 'Ankle boot'
  encoded, label = source[0]
  assert label == 2 and encoded.startswith(b'\x89PNG')
  image = decode_image(encoded, 1)
  assert image.shape == (28, 28, 1) and image.dtype == np.uint8
  assert len(make_source('fashion_mnist', 'test', TFDS_DIR)) == 80
  assert 'tensorflow' not in sys.modules
  assert source.describe(3) == 'fashion_mnist, example 3'
  assert source.origin()['folder'] == f'{TFDS_DIR}/fashion_mnist/3.0.1'


def copy_info(tmp_path, replacement):
  """The committed data set with its dataset_info.json changed."""
  folder = tmp_path / 'fashion_mnist' / '3.0.1'
  folder.mkdir(parents=True)
  for name in 'dataset_info.json', 'features.json', 'label.labels.txt':
    with open(f'{TFDS_DIR}/fashion_mnist/3.0.1/{name}') as file:
      (folder / name).write_text(file.read().replace(*replacement))


def test_tfds_without_a_home_folder_needs_data_dir(monkeypatch):
  import tensorflow_datasets as tfds

  missing = '~nobody-here/tensorflow_datasets'
  monkeypatch.delenv('TFDS_DATA_DIR', raising=False)
  monkeypatch.setattr(tfds.core.constants, 'DATA_DIR', missing)
  with pytest.raises(
    UserError, match=f'--data_dir={missing}: there is no user'
  ):
    make_source('fashion_mnist', 'train')


def test_the_folder_of_tfds_may_be_an_address(monkeypatch):
  import tensorflow_datasets as tfds

  def use(address):  # TFDS reads the variable when it is imported
    monkeypatch.setenv('TFDS_DATA_DIR', address)
    monkeypatch.setattr(tfds.core.constants, 'DATA_DIR', address)
    return make_source('fashion_mnist', 'train')

  assert len(use(f'file://{TFDS_DIR}')) == 200
  with pytest.raises(UserError, match=r'^\$TFDS_DATA_DIR=hdfs://h/a: '):
    use('hdfs://h/a')


def test_records_are_read_only_from_google_buckets():
  with pytest.raises(UserError, match='fashion_mnist .*s3://a.*gs://'):
    tfds_source._check_bucket('fashion_mnist', 's3://a')
  tfds_source._check_bucket('fashion_mnist', 'gs://a')


def test_a_tfrecord_copy_gets_the_command_to_convert_it(tmp_path):
  copy_info(tmp_path, ('"array_record"', '"tfrecord"'))
  with pytest.raises(
    UserError,
    match=r'prepared as tfrecord.* --dataset_version_dir=\S+/3.0.1 ',
  ):
    make_source('fashion_mnist', 'train', str(tmp_path))


def test_a_converted_copy_is_read_in_its_second_format(tmp_path):
  shutil.copytree(TFDS_DIR, tmp_path, dirs_exist_ok=True)
  path = tmp_path / 'fashion_mnist' / '3.0.1' / 'dataset_info.json'
  formats = '"alternativeFileFormats": ["array_record"], "fileFormat": '
  text = path.read_text().replace(
    '"fileFormat": "array_record"', f'{formats}"tfrecord"'
  )
  assert formats in text
  path.write_text(text)
  source = make_source('fashion_mnist', 'train', str(tmp_path))
  expected = make_source('fashion_mnist', 'train', TFDS_DIR)
  assert pickle.loads(pickle.dumps(source))[199] == expected[199]


def test_a_fingerprint_is_of_the_version_and_the_files(tmp_path):
  shutil.copytree(TFDS_DIR, tmp_path, dirs_exist_ok=True)
  splits = 'train', 'test', 'train[:100]', 'train[100:]'
  here, there = (
    [make_source('fashion_mnist', s, place).fingerprint() for s in splits]
    for place in (TFDS_DIR, str(tmp_path))
  )
  assert here == there and len(set(here)) == 4
  records = make_source('fashion_mnist', 'train', TFDS_DIR)._records
  assert records.fingerprint('3.0.1') == here[0] != records.fingerprint('3.0.2')


def test_an_incomplete_copy_is_refused(tmp_path):
  copy_info(tmp_path, ('', ''))
  with pytest.raises(UserError, match='-00000-of-00004 is missing'):
    make_source('fashion_mnist', 'train', str(tmp_path))


def test_few_files_stay_open_in_any_order(monkeypatch):
  source = make_source('fashion_mnist', 'train', TFDS_DIR)
  expected = [source[i] for i in range(200)]
  readers = tfds_source._Readers()
  monkeypatch.setattr(tfds_source, '_readers', readers)
  monkeypatch.setattr(tfds_source.host, 'max_open_files', lambda: 4)
  order = np.random.default_rng(0).permutation(200)

  def open_files():
    links = pathlib.Path('/proc/self/fd').iterdir()
    return sum('fashion_mnist-train' in os.path.realpath(f) for f in links)

  others = open_files()  # of the other tests
  with ThreadPoolExecutor(4) as pool:
    for index, example in zip(
      order, pool.map(source.__getitem__, order), strict=True
    ):
      assert example == expected[index]
      assert len(readers._readers) <= 2
  assert open_files() - others == len(readers._readers) == 2
  # The most recently used stays; two sources of the same file share a reader.
  paths = source._records._paths
  source[0], source[199], source[1], source[100]
  assert list(readers._readers) == [paths[0], paths[2]]
  make_source('fashion_mnist', 'train[:10]', TFDS_DIR)[0]
  assert list(readers._readers) == [paths[2], paths[0]]


def test_parts_of_a_split_have_their_records():
  whole = make_source('fashion_mnist', 'train', TFDS_DIR)
  part = make_source('fashion_mnist', 'train[45:120]', TFDS_DIR)
  assert len(part) == 75
  assert [part[i] for i in range(75)] == [whole[i] for i in range(45, 120)]
  for index in -1, 75:
    with pytest.raises(IndexError):
      part[index]


@pytest.mark.parametrize(
  'split, fault, part',
  [
    ('test[36:100]', 'does not exist', 'test[36:80]'),
    ('test[90:95]', 'does not exist', 'test[:50%]'),
    ('test[:200%]', 'does not exist', 'test[:50%]'),
    ('test[:9', 'does not exist', 'test[:50%]'),
    ('train[10:10]', 'is empty', 'train[:50%]'),
    ('train[5:2]', 'is empty', 'train[:50%]'),
    ('test[:0%]', 'is empty', 'test[:50%]'),
    ('test+train[3:3]+train[5:2]', 'is empty', 'train[:50%]'),
  ],
)
def test_missing_parts_of_a_split_get_an_existing_one(split, fault, part):
  with pytest.raises(UserError) as caught:
    make_source('fashion_mnist', split, TFDS_DIR)
  line = str(caught.value)
  assert line.startswith(f"'{split}' of fashion_mnist {fault}")
  assert '200 examples in train, 80 examples in test' in line
  assert line.endswith(f' {part}')
  assert len(make_source('fashion_mnist', part, TFDS_DIR)) > 0


def test_all_splits_at_once_are_read():
  assert len(make_source('fashion_mnist', 'all', TFDS_DIR)) == 280
  assert len(make_source('fashion_mnist', 'train + test[:5]', TFDS_DIR)) == 205
  with pytest.raises(UserError, match='no split .*: use one of train, test'):
    make_source('fashion_mnist', 'train+val[:5]', TFDS_DIR)


WITH_FEW_FILES = """
import os, resource, sys
from bn_inception.data import shrink, tfds_source
from bn_inception.data.sources import make_source
source = make_source('fashion_mnist', 'train', sys.argv[1])
tfds_source._readers._readers.clear()
two = [open(os.devnull) for _ in range(2)]
limit = two[1].fileno() + 1
[file.close() for file in two]
resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
for i in range(0, 200, 49):  # the limit allows two open shards, and not three
  assert len(source[i][0]) > 100
  print(len(tfds_source._readers._readers), end=' ')
tfds_source._readers._readers.clear()
files = [open(os.devnull), open(os.devnull)]
try:
  source[0]
except Exception as error:
  print(type(error).__name__, str(error).partition(';')[0])
files.pop()
print(source[0][1])
"""


def test_readers_close_files_at_the_limit():
  done = subprocess.run(
    [sys.executable, '-c', WITH_FEW_FILES, TFDS_DIR],
    capture_output=True,
    text=True,
    env={**os.environ, 'JAX_PLATFORMS': 'cpu'},
  )
  assert done.returncode == 0, done.stderr
  counts, last = done.stdout.splitlines()
  *counts, error = counts.split(maxsplit=5)
  # Threads of the library close files a moment later: room for two, or for one.
  assert set(counts) <= {'1', '2'}
  assert error == 'RuntimeError open() failed: Too many open files'
  assert last == '2'  # a file that could not be opened is not kept


def test_a_machine_error_does_not_blame_the_copy(monkeypatch):
  def fail(self, path, position):
    raise RuntimeError('open() failed: Too many open files; opening a')

  monkeypatch.setattr(tfds_source._Readers, 'read', fail)
  with pytest.raises(UserError) as caught:
    make_source('fashion_mnist', 'train', TFDS_DIR)
  assert 'Too many open files' in str(caught.value)
  assert 'ulimit -n' in str(caught.value)
  assert 'damaged' not in str(caught.value)


def own_copy(tmp_path, *replacements):
  """The metadata of the committed data set, under a name that TFDS does not know."""
  folder = tmp_path / 'my_pets' / '3.0.1'
  folder.mkdir(parents=True)
  for name in 'dataset_info.json', 'features.json', 'label.labels.txt':
    text = pathlib.Path(f'{TFDS_DIR}/fashion_mnist/3.0.1/{name}').read_text()
    for replacement in (('fashion_mnist', 'my_pets'), *replacements):
      text = text.replace(*replacement)
    (folder / name).write_text(text)
  return folder


def test_images_of_16_bits_are_read(tmp_path):
  folder = own_copy(tmp_path, ('"uint8"', '"uint16"'))
  image = np.full((28, 28, 1), 200 * 257, np.uint16)
  encoded = cv2.imencode('.png', image)[1].tobytes()
  record = tf_example_pb2.Example()
  record.features.feature['image'].bytes_list.value.append(encoded)
  record.features.feature['label'].int64_list.value.append(7)
  for shard in range(4):
    name = f'my_pets-train.array_record-{shard:05}-of-00004'
    writer = ArrayRecordWriter(str(folder / name), 'group_size:1')
    for _ in range(50):
      writer.write(record.SerializeToString())
    writer.close()
  source = make_source('my_pets', 'train', str(tmp_path))
  np.testing.assert_array_equal(decode_image(source[60][0], 1), 200)
  with pytest.raises(UserError, match='my_pets .*uint16: .*uint8'):
    shrink.shrink('my_pets', str(tmp_path), str(tmp_path / 'out'))


IMAGE = 'tensorflow_datasets.core.features.image_feature.Image'
LABEL = 'tensorflow_datasets.core.features.class_label_feature.ClassLabel'
TENSOR = 'tensorflow_datasets.core.features.tensor_feature.Tensor'


@pytest.mark.parametrize(
  'replacements, message',
  [
    ([('"uint8"', '"float32"')], 'images of float32: .* uint8 or uint16'),
    (
      [
        (IMAGE, TENSOR),
        ('                "image"', '                "tensor"'),
      ],
      "'image' as Tensor of uint8 .28, 28, 1., .*features.Image",
    ),
    (
      [
        (LABEL, TENSOR),
        (
          '"classLabel": {\n                    "numClasses": "10"',
          '"tensor": {"dtype": "float32", "encoding": "none", "shape": {}',
        ),
      ],
      "'label' as Tensor of float32, .*ClassLabel",
    ),
  ],
)
def test_images_and_labels_of_other_types_are_refused(
  tmp_path, replacements, message
):
  own_copy(tmp_path, *replacements)
  with pytest.raises(UserError, match=message):
    make_source('my_pets', 'train', str(tmp_path))


@pytest.mark.parametrize(
  'replacement, message',
  [
    (('Sandal\n', ''), 'has 9 names for 10 classes'),
    (('Sandal\n', 'Sandal\nSocks\n'), 'has 11 names for 10 classes'),
    (('Sandal\n', 'Coat\n'), "has the name 'Coat' 2 times"),
  ],
)
def test_label_names_that_do_not_match_the_classes_are_refused(
  tmp_path, capsys, replacement, message
):
  folder = own_copy(tmp_path, replacement)
  expected = re.escape(f'{folder}/label.labels.txt {message}: ')
  with pytest.raises(UserError, match=expected):
    make_source('my_pets', 'train', str(tmp_path))
  with pytest.raises(UserError, match=expected):
    shrink.shrink('my_pets', str(tmp_path), str(tmp_path / 'out'))
  with pytest.raises(UserError, match='^1 problem with my_pets'):
    check.check('my_pets', str(tmp_path))
  assert re.search(f'PROBLEM: {expected}', capsys.readouterr().out)


@pytest.mark.parametrize('version', ['', ':3.0.1'])
def test_classes_in_another_order_are_refused(tmp_path, monkeypatch, version):
  shutil.copytree(TFDS_DIR, tmp_path, dirs_exist_ok=True)
  path = tmp_path / 'fashion_mnist' / '3.0.1' / 'label.labels.txt'
  names = make_source('fashion_mnist', 'test', TFDS_DIR).class_names
  if version:  # TFDS then takes the names of the copy; ImageNet's are known
    monkeypatch.setattr(imagenet, 'class_names', lambda: names)
  swapped = (names[1], names[0], *names[2:])
  path.write_text('\n'.join(swapped) + '\n')
  with pytest.raises(UserError) as error:
    make_source(f'fashion_mnist{version}', 'test', str(tmp_path))
  assert str(error.value).startswith(f'{path} ')
  assert f"0 is '{names[1]}', not '{names[0]}'" in str(error.value)
  # Another spelling is not another order.
  path.write_text('\n'.join([*names[:-1], 'ankle boot']) + '\n')
  assert (
    len(make_source(f'fashion_mnist{version}', 'test', str(tmp_path))) == 80
  )

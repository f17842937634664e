"""Metadata of copies prepared by TFDS, and errors if they are damaged."""

import contextlib
import io
import json
import pathlib
import shutil

import numpy as np
import pytest
import tensorflow_datasets as tfds
from etils import epath
from google.protobuf import json_format

from bn_inception.data import check, shrink, tfds_metadata
from bn_inception.data.sources import make_source
from bn_inception.errors import UserError

TFDS_DIR = pathlib.Path(__file__).parents[1] / 'tfds'
INFO, FEATURES = 'dataset_info.json', 'features.json'


def own_copy(root, version='3.0.1', config=''):
  """The committed data set and its records, as a data set that TFDS does not know."""
  folder = root / 'my_pets' / config / version
  shutil.copytree(TFDS_DIR / 'fashion_mnist' / '3.0.1', folder)
  for path in list(folder.iterdir()):
    path.rename(folder / path.name.replace('fashion_mnist', 'my_pets'))
  edit(
    folder / INFO, lambda info: info | {'name': 'my_pets', 'version': version}
  )
  return folder


def edit(path, change):
  path.write_text(json.dumps(change(json.loads(path.read_text()))))


def set_feature(folder, name, feature):
  def change(content):
    content['featuresDict']['features'][name] = json_format.MessageToDict(
      feature.to_proto()
    )
    return content

  edit(folder / FEATURES, change)


def complaint(root, dataset='my_pets'):
  """The error of every program, which is the same."""
  lines, printed = [], io.StringIO()
  for program in (
    lambda: make_source(dataset, 'train', str(root)),
    lambda: shrink.shrink(dataset, str(root), f'{root}/out'),
    lambda: check.check(dataset, str(root)),
  ):
    with contextlib.redirect_stdout(printed):
      with pytest.raises(UserError) as caught:
        program()
    lines.append(str(caught.value))
  assert lines[0] == lines[1] and '\n' not in lines[0]
  problem = f'  PROBLEM: {lines[0]}'
  assert problem in printed.getvalue().splitlines() or lines[2] == lines[0]
  return lines[0]


@pytest.mark.parametrize(
  'file, content, message',
  [
    (INFO, None, 'is missing'),
    (INFO, '', 'is empty'),
    (INFO, '{"name": "my_p', 'is damaged (Unterminated string'),
    (INFO, '<html>', 'is damaged (Expecting value'),
    (INFO, '[1]', 'is damaged (no JSON object)'),
    (
      INFO,
      '{"name": "my_pets", "version": "3.0.1"}',
      'is damaged (it has no spl',
    ),
    (
      INFO,
      '{"name": "my_pets", "splits": [1]}',
      'is damaged (it has no version',
    ),
    (INFO, '{"version": "3.0.1", "splits": [1]}', 'is damaged (it has no name'),
    (FEATURES, None, 'is missing'),
    (FEATURES, '', 'is empty'),
    (FEATURES, '{"pythonClassName": "tenso', 'is damaged (Unterminated'),
    (FEATURES, '{}', 'is damaged (it has no pythonClassName'),
  ],
)
@pytest.mark.parametrize('is_known', [False, True])
def test_damaged_files_of_a_copy_are_named(
  tmp_path, file, content, message, is_known
):
  folder = own_copy(tmp_path)
  if is_known:
    shutil.copytree(TFDS_DIR, tmp_path, dirs_exist_ok=True)
    folder = tmp_path / 'fashion_mnist' / '3.0.1'
  (folder / file).unlink()
  if content is not None:
    (folder / file).write_text(content)
  dataset = 'fashion_mnist' if is_known else 'my_pets'
  if is_known and file == FEATURES:  # TFDS's code has the features
    assert len(make_source(dataset, 'train', str(tmp_path))) == 200
  else:
    line = complaint(tmp_path, dataset)
    assert line.startswith(f'{folder}/{file} {message}')


ENCODED = tfds.features.Image(shape=(28, 28, 1))
CLASS = tfds.features.ClassLabel(num_classes=10)


@pytest.mark.parametrize(
  'name, feature, kind',
  [
    ('image', tfds.features.Sequence(ENCODED), 'a list of Image'),
    ('image', tfds.features.Text(), 'Text'),
    (
      'image',
      tfds.features.Tensor(shape=(28, 28, 1), dtype=np.uint8),
      'Tensor of uint8 [28, 28, 1]',
    ),
    (
      'image',
      tfds.features.FeaturesDict({'a': ENCODED, 'b': ENCODED}),
      'a dict of a, b',
    ),
    ('label', tfds.features.Text(), 'Text'),
    ('label', tfds.features.Sequence(CLASS), 'a list of ClassLabel'),
    ('label', tfds.features.FeaturesDict({'a': CLASS}), 'a dict of a'),
    (
      'label',
      tfds.features.Tensor(shape=(10,), dtype=np.float32),
      'Tensor of float32 [10]',
    ),
    (
      'label',
      tfds.features.Tensor(shape=(), dtype=np.int64, encoding='zlib'),
      'Tensor of int64',
    ),
  ],
)
def test_features_of_other_kinds_are_named(tmp_path, name, feature, kind):
  set_feature(own_copy(tmp_path), name, feature)
  line = complaint(tmp_path)
  assert line.startswith(f"my_pets has the feature '{name}' as {kind}, ")


def test_features_of_other_names_are_named(tmp_path):
  folder = own_copy(tmp_path)

  def rename(content):
    features = content['featuresDict']['features']
    features['img'] = features.pop('image')
    return content

  edit(folder / FEATURES, rename)
  line = complaint(tmp_path)
  assert "'img' (Image)" in line and "not ['image']" in line


VIDEO = {
  'pythonClassName': 'tensorflow_datasets.core.features.video_feature.Video',
  'video': {'dtype': 'uint8', 'shape': {'dimensions': ['-1', '28', '28', '1']}},
}
AUDIO = {
  'pythonClassName': 'tensorflow_datasets.core.features.audio_feature.Audio',
  'audio': {'dtype': 'int64', 'shape': {'dimensions': ['-1']}},
}


@pytest.mark.parametrize('name', ['image', 'clip'])
@pytest.mark.parametrize('feature', [VIDEO, AUDIO])
def test_features_that_need_tensorflow_are_named(
  tmp_path, capsys, name, feature
):
  folder = own_copy(tmp_path)

  def change(content):
    content['featuresDict']['features'][name] = feature
    return content

  edit(folder / FEATURES, change)
  kind = feature['pythonClassName'].split('.')[-1]
  assert f"'{name}' ({kind})" in complaint(tmp_path)
  with pytest.raises(UserError):
    make_source('my_pets', 'train', str(tmp_path))
  assert capsys.readouterr().out == ''  # no paragraph on TensorFlow


def test_integer_labels_need_class_names(tmp_path):
  folder = own_copy(tmp_path)
  for feature in (
    tfds.features.Scalar(np.int64),
    tfds.features.Tensor(shape=(1,), dtype=np.uint8),
  ):
    set_feature(folder, 'label', feature)
    names = (folder / tfds_metadata.LABEL_FILE).read_text()
    source = make_source('my_pets', 'train', str(tmp_path))
    expected = make_source('fashion_mnist', 'train', str(TFDS_DIR))
    assert source.class_names == expected.class_names
    assert [source[i] for i in range(200)] == [expected[i] for i in range(200)]
    check.check('my_pets', str(tmp_path))
    (folder / tfds_metadata.LABEL_FILE).unlink()
    line = complaint(tmp_path)
    assert line.endswith(f' from 0, to {folder}/label.labels.txt')
    (folder / tfds_metadata.LABEL_FILE).write_text('')
    assert 'has 0 names' in complaint(tmp_path)
    (folder / tfds_metadata.LABEL_FILE).write_text(names)


@pytest.mark.parametrize('file_format', ['tfrecord', 'riegeli', 'parquet'])
def test_copies_of_other_file_formats_are_converted(tmp_path, file_format):
  folder = own_copy(tmp_path)
  edit(folder / INFO, lambda info: info | {'fileFormat': file_format})
  line = complaint(tmp_path)
  assert f'{folder} is prepared as {file_format}' in line
  assert 'tfds convert_format' in line
  edit(folder / INFO, lambda info: info | {'fileFormat': 'zarr'})
  assert "'zarr' is not a valid FileFormat" in complaint(tmp_path)


def test_an_empty_newer_version_is_skipped(tmp_path):
  own_copy(tmp_path, '3.0.9')
  folder = own_copy(tmp_path, '3.0.10')
  (tmp_path / 'my_pets' / '3.1.0').mkdir()
  source = make_source('my_pets', 'train', str(tmp_path))
  assert source.folder == str(folder)
  found = tfds_metadata.list_copies(epath.Path(tmp_path), 'my_pets')
  assert [copy.version for copy in found] == ['3.0.10', '3.0.9']
  for dataset, versions in (
    ('my_pets:3.0.9', ['3.0.9']),
    ('my_pets:3.0.*', ['3.0.10', '3.0.9']),
    ('my_pets:4.*.*', []),
    ('my_pets/big', []),
  ):
    wanted = tfds_metadata.wanted_copies(epath.Path(tmp_path), dataset)
    assert [copy.version for copy in wanted] == versions


def test_other_versions_and_configs_are_named(tmp_path):
  own_copy(tmp_path / 'a', '3.0.1')
  own_copy(tmp_path / 'b', '1.0.0', 'big')
  for dataset, place, there in (
    ('my_pets:9.0.0', 'a', 'my_pets:3.0.1'),
    ('my_pets/small', 'a', 'my_pets:3.0.1'),
    ('my_pets', 'b', 'my_pets/big:1.0.0'),
    ('my_pets/small', 'b', 'my_pets/big:1.0.0'),
  ):
    line = complaint(tmp_path / place, dataset)
    assert line.startswith(f'{tmp_path}/{place} holds no copy of {dataset}: ')
    assert f'--config.source.dataset={there}, or --dataset={there}' in line


def test_an_older_version_of_the_catalogue_is_named(tmp_path):
  folder = tmp_path / 'fashion_mnist' / '2.0.0'
  shutil.copytree(TFDS_DIR / 'fashion_mnist' / '3.0.1', folder)
  edit(folder / INFO, lambda info: info | {'version': '2.0.0'})
  (tmp_path / 'fashion_mnist' / '3.0.1').mkdir()
  line = complaint(tmp_path, 'fashion_mnist')
  assert line.endswith('or --dataset=fashion_mnist:2.0.0')
  assert len(make_source('fashion_mnist:2.0.0', 'train', str(tmp_path))) == 200

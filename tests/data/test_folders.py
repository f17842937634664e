"""Image folders and the validation archive: labels, order and errors."""

import io
import pickle
import re
import shutil
import tarfile

import cv2
import numpy as np
import pytest
from etils import epath

from bn_inception.data import directories, folders, imagenet
from bn_inception.data.images import decode_image
from bn_inception.data.in_memory import InMemory
from bn_inception.data.sources import make_source
from bn_inception.errors import UserError


def jpeg(seed):
  rng = np.random.default_rng(seed)
  coarse = rng.integers(0, 256, (3, 4, 3)).astype(np.uint8)
  return cv2.imencode('.jpg', cv2.resize(coarse, (40, 30)))[1].tobytes()


def write_images(folder, names, first_seed=0):
  folder.mkdir(parents=True, exist_ok=True)
  for seed, name in enumerate(names, start=first_seed):
    (folder / name).write_bytes(jpeg(seed))


def write_archive(path, names):
  with tarfile.open(path, 'w') as archive:
    for seed, name in enumerate(names):
      content = jpeg(seed)
      member = tarfile.TarInfo(name)
      member.size = len(content)
      archive.addfile(member, io.BytesIO(content))


VALIDATION = [imagenet.VALIDATION_FILE.format(i) for i in (1, 2, 3, 50_000)]


def imagenet_labels(names):
  labels = imagenet.validation_labels()
  return [labels[name] for name in names]


def test_the_training_split_defines_the_classes(tmp_path):
  for name in 'cat', 'ant', 'bee':
    write_images(tmp_path / 'train' / name, ['2.jpg', '10.JPG', '.hidden.jpg'])
  write_images(tmp_path / 'val' / 'cat', ['1.png'])
  (tmp_path / 'train' / 'cat' / 'notes.txt').write_text('no image')
  train = make_source('image_folder', 'train', str(tmp_path))
  assert train.class_names == ('ant', 'bee', 'cat')
  assert [train[i][1] for i in range(len(train))] == [0, 0, 1, 1, 2, 2]
  assert train.describe(4) == f'{tmp_path}/train/cat/10.JPG'
  validation = make_source('image_folder', 'validation', str(tmp_path))
  assert len(validation) == 1 and validation[0][1] == 2
  assert validation.class_names == train.class_names
  copy = pickle.loads(pickle.dumps(train))
  assert copy[3] == train[3]


def test_imagenet_in_folders_has_the_labels_of_imagenet(tmp_path):
  names = imagenet.class_names()
  for label in 999, 7, 281:
    write_images(tmp_path / 'train' / names[label], [f'{names[label]}_3.JPEG'])
  train = make_source('imagenet2012', 'train', str(tmp_path))
  assert train.class_names == names
  assert [train[i][1] for i in range(3)] == [7, 281, 999]
  assert train.origin()['folder'] == f'{tmp_path}/train'


def test_imagenet_v2_folders_are_labels_not_names(tmp_path):
  folder = tmp_path / 'imagenetv2-threshold0.7-format-val'
  for label in 0, 10, 2, 999:
    write_images(folder / str(label), [f'{label}.jpeg'])
  dataset = 'imagenet_v2/threshold-0.7'
  source = make_source(dataset, 'test', str(tmp_path))
  assert source.class_names == imagenet.class_names()
  assert [source[i][1] for i in range(4)] == [0, 2, 10, 999]
  assert source.describe(1) == f'{folder}/2/2.jpeg'
  assert source.name == dataset
  with pytest.raises(UserError, match="no split 'validation': use test"):
    make_source(dataset, 'validation', str(tmp_path))
  for absent in ('imagenet_v2', 'imagenet_v2/topimages'):
    with pytest.raises(UserError, match=f'holds no copy of {absent}: '):
      make_source(absent, 'test', str(tmp_path))
  with pytest.raises(UserError, match="unknown data set 'imagenet_v2/none'"):
    make_source('imagenet_v2/none', 'test', str(tmp_path))
  write_images(folder / '1000', ['a.jpeg'])
  with pytest.raises(UserError, match='val/1000 .*1000 classes'):
    make_source(dataset, 'test', str(tmp_path))


@pytest.mark.parametrize('form', ['classes', 'flat', 'archive'])
def test_validation_images_have_their_ground_truth(tmp_path, form):
  expected = imagenet_labels(VALIDATION)
  if form == 'classes':
    for name, label in zip(VALIDATION, expected, strict=True):
      folder = tmp_path / 'val' / imagenet.class_names()[label]
      write_images(folder, [name], VALIDATION.index(name))
  elif form == 'flat':
    write_images(tmp_path / 'val', VALIDATION)
    (tmp_path / 'val' / 'valprep.sh').write_text('')
  else:
    shuffled = [VALIDATION[i] for i in (2, 0, 3, 1)]
    write_archive(tmp_path / imagenet.VALIDATION_ARCHIVE, shuffled)
  source = make_source('imagenet2012', 'validation', str(tmp_path))
  source = pickle.loads(pickle.dumps(source))
  assert len(source) == 4
  assert sorted(VALIDATION) == sorted(source.file_name(i) for i in range(4))
  if form != 'classes':  # which come first in the order
    assert [source.file_name(i) for i in range(4)] == VALIDATION
  described = [source.describe(i) for i in range(4)]
  for name, label in zip(VALIDATION, expected, strict=True):
    index = next(i for i in range(4) if name in described[i])
    encoded, found = source[index]
    assert found == label
    assert decode_image(encoded, 3).shape == (30, 40, 3)
    if form == 'archive':
      assert encoded == jpeg(shuffled.index(name))


def test_junk_in_the_archive_is_skipped(tmp_path):
  archive = tmp_path / imagenet.VALIDATION_ARCHIVE
  name = VALIDATION[0]
  junk = ['.DS_Store', f'._{name}', f'val/._{name}', f'__MACOSX/val/{name}']
  junk += [f'./__MACOSX/._{name}', 'val/@eaDir/thumbnail.jpg']
  write_archive(archive, ['val/readme.txt', *junk, f'./val/{name}'])
  source = make_source('imagenet2012', 'validation', str(tmp_path))
  assert len(source) == 1 and source.file_name(0) == name
  assert source[0] == (jpeg(7), imagenet_labels([name])[0])
  assert source.remarks() == ['not read: 1 file (.txt 1)']
  write_archive(archive, [*junk, 'readme.txt'])
  with pytest.raises(UserError, match=f'{archive} .*1 file .*.txt 1'):
    make_source('imagenet2012', 'validation', str(tmp_path))
  write_archive(archive, ['test/ILSVRC2012_test_00000001.JPEG'])
  with pytest.raises(UserError, match='test_00000001.JPEG .*secret'):
    make_source('imagenet2012', 'validation', str(tmp_path))


def test_a_missing_split_names_the_existing_ones(tmp_path):
  root = write_own_folders(tmp_path)
  for split, message in (
    ('test', 'split test: .*test/CLASS/.* train or validation$'),
    ('train[:5]', r"^'train\[:5\]' .*source.num_holdout"),
  ):
    with pytest.raises(UserError, match=message):
      open_own(root, split)
  (root / 'val').rename(root / 'validation')
  with pytest.raises(UserError, match='train or validation$'):
    open_own(root, 'test')
  (root / 'validation').rename(root / 'Valid')
  with pytest.raises(UserError, match='Valid/: rename to val/'):
    open_own(root, 'validation')


def test_the_holdout_is_fixed_and_disjoint_from_the_rest(tmp_path):
  for name in 'ant', 'bee':
    write_images(tmp_path / 'train' / name, [f'{i}.jpg' for i in range(5)])

  def names(split, num_holdout):
    source = make_source('image_folder', split, str(tmp_path), num_holdout)
    assert source.origin()['examples'] == len(source)
    return {source.describe(i) for i in range(len(source))}

  whole, held_out = names('train', 0), names('train_holdout', 3)
  assert len(whole) == 10 and len(held_out) == 3
  assert names('train', 3) == whole - held_out
  assert names('train_holdout', 4) > held_out
  digits = make_source('digits', 'train', num_holdout=100)
  assert len(digits) == 1342
  assert len(make_source('digits', 'test', num_holdout=100)) == 355


def test_parts_of_the_training_split_cannot_leak_the_holdout():
  with pytest.raises(UserError, match=r'train\[:9\] .*source.num_holdout'):
    make_source('digits', 'train[:9]', num_holdout=3)


@pytest.mark.parametrize('kind', [ImportError, RuntimeError, OSError])
def test_an_unreachable_bucket_gets_one_line(monkeypatch, kind):
  import tensorflow_datasets as tfds

  class Path(type(epath.Path('gs://a'))):
    def is_dir(self):
      raise kind('Please install gcsfs\nor find credentials')

  monkeypatch.setattr(folders.epath, 'Path', Path)
  for dataset in 'image_folder', 'imagenet2012', 'fashion_mnist':
    with pytest.raises(UserError, match='gs://a .*: Please install gcsfs$'):
      make_source(dataset, 'train', 'gs://a')
  monkeypatch.setattr(tfds.core.constants, 'DATA_DIR', 'gs://a')
  with pytest.raises(UserError, match='gs://a .*: Please install'):
    make_source('fashion_mnist', 'train')


def test_missing_and_unknown_things_are_named(tmp_path):
  def complaint(dataset, split, folder, **arguments):
    with pytest.raises(UserError) as caught:
      make_source(dataset, split, str(folder), **arguments)
    assert '\n' not in str(caught.value)
    return str(caught.value)

  good, names = tmp_path / 'good', imagenet.class_names()
  write_images(good / 'train' / names[3], ['a.jpg'])
  assert re.match(
    f'{good} .*split validation.* train$',
    complaint('imagenet2012', 'validation', good),
  )
  for number, message in ((0, 'got 0'), (1, 'between 1 and 0 for the split')):
    assert message in complaint(
      'imagenet2012', 'train_holdout', good, num_holdout=number
    )
  write_images(good / 'train' / 'n00000000', ['a.jpg'])
  write_images(good / 'train' / 'zebra', ['a.jpg'])
  assert re.search(
    r'train/n00000000 is not one of the 1000 classes .* \(and 1 more\)',
    complaint('imagenet2012', 'train', good),
  )
  (tmp_path / 'empty' / 'train' / 'ant').mkdir(parents=True)
  assert 'has no images' in complaint(
    'image_folder', 'train', tmp_path / 'empty'
  )
  flat = tmp_path / 'flat'
  write_images(flat / 'train', ['a.jpg'])
  assert f'{flat}/train/CLASS/' in complaint('image_folder', 'train', flat)
  assert 'a.jpg in' in complaint('imagenet2012', 'train', flat)
  archive = tmp_path / imagenet.VALIDATION_ARCHIVE
  write_archive(archive, ['cat.jpg'])
  assert 'cat.jpg in' in complaint('imagenet2012', 'validation', tmp_path)
  archive.write_bytes(archive.read_bytes()[:100])
  assert 'cannot be read' in complaint('imagenet2012', 'validation', tmp_path)
  assert f'give --data_dir={good}' in complaint(
    'imagenet2012', 'train', tmp_path
  )
  with pytest.raises(UserError, match='image_folder needs --data_dir'):
    make_source('image_folder', 'train')


def write_own_folders(root):
  """Two training images each of ant, bee and cat; one validation image of cat."""
  for name in 'ant', 'bee', 'cat':
    write_images(root / 'train' / name, ['1.jpg', '2.jpg'])
  write_images(root / 'val' / 'cat', ['1.jpg'])
  return root


def open_own(root, split='train'):
  return make_source('image_folder', split, str(root))


def test_fingerprints_depend_on_names_not_on_the_folder(tmp_path):
  root = write_own_folders(tmp_path / 'a')
  shutil.copytree(root, tmp_path / 'b')
  found = open_own(root).fingerprint()
  assert found == open_own(tmp_path / 'b').fingerprint()
  assert found != open_own(root, 'validation').fingerprint()
  part = make_source('image_folder', 'train', str(root), num_holdout=2)
  assert found == part.fingerprint() == InMemory(part).fingerprint()
  (root / 'train/bee/1.jpg').rename(root / 'train/bee/3.jpg')
  assert found != open_own(root).fingerprint()
  assert make_source('digits', 'train').fingerprint() is None


def test_every_decodable_format_is_read(tmp_path):
  root, image = write_own_folders(tmp_path), np.full((9, 9, 3), 90, np.uint8)
  suffixes = (
    'jpe jp2 webp avif gif tif tiff ppm pgm pbm pnm bmp dib png'.split()
  )
  for suffix in suffixes:
    is_grey = suffix in ('pgm', 'pbm')
    path = root / 'train' / 'cat' / f'{suffix.upper()}.{suffix}'
    pixels = image[..., 0] if is_grey else np.tile(image, (8, 8, 1))
    assert cv2.imwrite(str(path), pixels)
  (root / 'train' / 'cat' / 'a.JFIF').write_bytes(jpeg(0))
  source = open_own(root)
  assert len(source) == 6 + len(suffixes) + 1
  assert source.remarks() == []
  for i in range(len(source)):
    assert decode_image(source[i][0], 3).shape[-1] == 3
  assert {'.' + s for s in suffixes} < set(directories.IMAGE_SUFFIXES)


def test_files_that_are_not_read_are_counted(tmp_path):
  root = write_own_folders(tmp_path)
  for name in 'train/notes.txt', 'train/ant/a.PDF', 'val/cat/b.txt', 'val/c':
    (root / name).write_text('no image')
  (root / 'train' / 'ant' / 'd.txt').write_text('no image')
  (root / 'train' / 'bee' / 'empty').mkdir()
  train, validation = open_own(root), open_own(root, 'validation')
  assert train.remarks() == [
    'not read: 3 files (.txt 2, .pdf 1), 1 folder (bee/empty)'
  ]
  assert validation.remarks()[0] == 'not read: 2 files (no suffix 1, .txt 1)'
  assert validation.remarks()[1] == 'no images of 2 classes (ant, bee)'
  held_out = make_source('image_folder', 'train_holdout', str(root), 2)
  assert held_out.remarks() == train.remarks()


def test_junk_folders_are_not_classes(tmp_path):
  root = write_own_folders(tmp_path)
  write_images(root / 'train' / '@eaDir' / '1.jpg', ['thumbnail.jpg'])
  write_images(root / 'train' / 'ant' / '@eaDir', ['thumbnail.jpg'])
  write_images(root / 'train' / '.ipynb_checkpoints', ['1.jpg'])
  write_images(root / 'train' / 'ant' / '.thumbnails', ['1.jpg'])
  for name in 'train/lost+found', 'train/__MACOSX', 'val/lost+found':
    (root / name).mkdir()
  train, validation = open_own(root), open_own(root, 'validation')
  assert train.class_names == validation.class_names == ('ant', 'bee', 'cat')
  assert [train[i][1] for i in range(len(train))] == [0, 0, 1, 1, 2, 2]
  (remark,) = train.remarks()
  assert '4 folders (@eaDir, __MACOSX, ant/@eaDir, lost+found)' in remark


def test_misplaced_images_are_refused(tmp_path):
  def complaint(root, split='train'):
    with pytest.raises(UserError) as caught:
      open_own(root, split)
    return str(caught.value)

  deep = write_own_folders(tmp_path / 'deep')
  write_images(deep / 'train' / 'ant' / 'red', ['3.jpg'])
  write_images(deep / 'train' / 'bee' / 'a' / 'b', ['3.jpg'])
  assert complaint(deep).startswith(f'{deep}/train/ant/red ')
  assert complaint(deep).endswith('(and 1 more)')
  twice = tmp_path / 'twice'  # as archives are unpacked
  write_images(twice / 'train' / 'train' / 'ant', ['1.jpg'])
  assert complaint(twice).startswith(f'{twice}/train/train/ant ')
  half = write_own_folders(tmp_path / 'half')
  write_images(half / 'val', ['2.jpg', '3.jpg'])
  assert complaint(half, 'validation').startswith(f'{half}/val/2.jpg ')
  open_own(half)
  empty = write_own_folders(tmp_path / 'empty')
  (empty / 'train' / 'dog').mkdir()
  (empty / 'train' / 'dog' / '1.heic').write_bytes(b'')
  assert '1 class (dog)' in complaint(empty)
  assert complaint(empty).endswith('(not read: 1 file (.heic 1))')
  write_images(empty / 'train' / 'dog', ['1.jpg'])
  (empty / 'val' / 'dog').mkdir()
  assert len(open_own(empty, 'validation')) == 1


def test_a_half_sorted_imagenet_is_refused(tmp_path):
  label = imagenet_labels(VALIDATION)[0]
  write_images(tmp_path / 'val' / imagenet.class_names()[label], VALIDATION[:1])
  write_images(tmp_path / 'val', VALIDATION[1:])
  with pytest.raises(UserError, match=r'val_00000002.JPEG .*\(and 2 more\)'):
    make_source('imagenet2012', 'validation', str(tmp_path))


def test_a_folder_that_cannot_be_listed_is_named(tmp_path, monkeypatch):
  root = write_own_folders(tmp_path)

  def scandir(path):
    raise PermissionError(13, 'Permission denied', path)

  monkeypatch.setattr(folders.os, 'scandir', scandir)
  with pytest.raises(UserError, match='train .*Permission denied'):
    open_own(root)


def test_one_long_name_does_not_lengthen_the_others(tmp_path):
  root = write_own_folders(tmp_path)
  write_images(root / 'train' / 'cat', ['c' * 200 + '.jpg', 'd\u00e9.jpg'])
  source = open_own(root)
  assert len(pickle.dumps(source)) < 2000
  assert source.file_name(6) == 'c' * 200 + '.jpg'
  assert source.file_name(7) == 'd\u00e9.jpg' and source.file_name(0) == '1.jpg'

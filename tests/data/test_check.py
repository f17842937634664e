"""Checks of copies: each thing that can be wrong is named, and all of them."""

import hashlib
import os
import pathlib
import re
import shutil
import subprocess
import sys

import pytest
from array_record.python.array_record_module import ArrayRecordWriter

from bn_inception.data import check, imagenet, shrink
from bn_inception.errors import UserError
from tests.data.test_folders import (
  VALIDATION,
  imagenet_labels,
  jpeg,
  write_images,
)

ROOT = pathlib.Path(__file__).parents[2]
TFDS_DIR = str(ROOT / 'tests' / 'tfds')
LABELS = imagenet_labels(VALIDATION)
NAMES = tuple(sorted(imagenet.class_names()[label] for label in LABELS))
CONTENT = {'train.tar': b'train' * 300, 'val.tar': b'val' * 100}
ARCHIVES = {
  'ILSVRC2012_img_train.tar': imagenet.Archive(
    'train', 1500, hashlib.md5(CONTENT['train.tar']).hexdigest()
  ),
  'ILSVRC2012_img_val.tar': imagenet.Archive(
    'validation', 300, hashlib.md5(CONTENT['val.tar']).hexdigest()
  ),
}
NUM_EXAMPLES = {'train': 12, 'validation': 4}
IN_FOLDERS = check.Expected(NUM_EXAMPLES, NAMES, ARCHIVES)
PREPARED = IN_FOLDERS._replace(class_names=imagenet.class_names())


def write_folders(root):
  for name in NAMES:
    files = [f'{name}_{i}.JPEG' for i in range(3)]
    write_images(root / 'train' / name, files)
  for name, label in zip(VALIDATION, LABELS, strict=True):
    write_images(root / 'val' / imagenet.class_names()[label], [name])


def problems(capsys, data_dir, expected=None, dataset='imagenet2012'):
  """The lines of the problems; the last line said how many there are."""
  with pytest.raises(UserError) as caught:
    check.check(dataset, str(data_dir), expected)
  lines = capsys.readouterr().out.splitlines()
  found = [
    line.partition('PROBLEM: ')[2] for line in lines if 'PROBLEM' in line
  ]
  assert str(caught.value).startswith(f'{len(found)} problem')
  assert 'ok' not in lines
  return found


@pytest.fixture
def prepared(tmp_path, monkeypatch):
  """A copy in TFDS's layout, of 6 and 1 shards; its folder."""
  monkeypatch.setattr(shrink, 'EXAMPLES_PER_SHARD', 2)
  write_folders(tmp_path / 'source')
  out = tmp_path / 'prepared'
  shrink.shrink('imagenet2012', str(tmp_path / 'source'), str(out), 20)
  return pathlib.Path(out / 'imagenet2012' / '5.1.0')


def test_complete_copies_of_all_forms_are_ok(tmp_path, prepared, capsys):
  root = prepared.parent.parent
  capsys.readouterr()
  check.check('imagenet2012', str(root), PREPARED)
  lines = capsys.readouterr().out.splitlines()
  assert lines[0] == f'prepared by TFDS: {prepared}' and lines[-1] == 'ok'
  assert '  train                      12 examples in 6 shards' in lines
  assert '  label names                1,000' in lines

  folders = tmp_path / 'source'
  (folders / 'ILSVRC2012_img_train.tar').write_bytes(CONTENT['train.tar'])
  check.check('imagenet2012', str(folders), IN_FOLDERS)
  lines = capsys.readouterr().out.splitlines()
  assert lines[0] == f'image folders: {folders}'
  assert '  train                      12 images of 4 classes' in lines
  assert f'official tars: {folders}' in lines
  md5 = ARCHIVES['ILSVRC2012_img_train.tar'].md5
  assert f'  ILSVRC2012_img_train.tar   MD5 {md5}' in lines
  assert '  ILSVRC2012_img_val.tar     absent' in lines
  assert lines[-1] == 'ok'

  check.check('fashion_mnist', TFDS_DIR)
  lines = capsys.readouterr().out.splitlines()
  assert '  test                       80 examples in 2 shards' in lines
  assert lines[-1] == 'ok'


def rewrite(builder_dir, shard, change):
  """A shard of training records with the last one changed."""
  from array_record.python.array_record_data_source import ArrayRecordDataSource
  from tensorflow_datasets.proto import tf_example_pb2

  path = builder_dir / f'imagenet2012-train.array_record-{shard:05}-of-00006'
  with ArrayRecordDataSource(str(path)) as source:
    records = source.__getitems__(range(len(source)))
  example = tf_example_pb2.Example.FromString(records[-1])
  last = change(example)
  writer = ArrayRecordWriter(str(path), 'group_size:1')
  for record in (*records[:-1], *last):
    writer.write(record)
  writer.close()


def test_every_problem_of_a_prepared_copy_is_named(prepared, capsys):
  def far_label(example):
    example.features.feature['label'].int64_list.value[0] = 1000
    return [example.SerializeToString()]

  def bad_image(example):
    example.features.feature['image'].bytes_list.value[0] = jpeg(0)[:60]
    return [example.SerializeToString()]

  rewrite(prepared, 0, far_label)
  rewrite(prepared, 1, bad_image)
  rewrite(prepared, 2, lambda example: [])
  rewrite(prepared, 3, lambda example: [b'\xff no example'])
  shards = sorted(prepared.glob('*-train.*'))
  shards[4].write_bytes(shards[4].read_bytes()[:1000])
  shards[5].unlink()
  labels = prepared / 'label.labels.txt'
  first, second, rest = labels.read_text().split('\n', 2)
  labels.write_text(f'{second}\n{first}\n{rest}')
  found = problems(
    capsys,
    prepared.parent.parent,
    PREPARED._replace(num_examples={'train': 13, 'validation': 4, 'x': 1}),
  )
  for problem, pattern in zip(
    found,
    [
      f'{labels} does not have the 1,000 names of imagenet2012 in',
      'train has 12 examples, not 13: prepare it again',
      f'{shards[0]} has the label 1000 in its last record: copy or prepare',
      f'{shards[1]} has a bad image in its last record ',
      f'{shards[2]} has 1 records, not 2',
      f'{shards[3]} cannot be read .DecodeError',
      f'{shards[4]} cannot be read .RuntimeError',
      f'{shards[5]} is missing: copy it again',
      f'{prepared} has no split x: prepare it again with both tars',
    ],
    strict=True,
  ):
    assert re.match(pattern, problem), problem


def test_a_tfrecord_copy_has_the_one_remedy(tmp_path, capsys):
  folder = tmp_path / 'fashion_mnist' / '3.0.1'
  shutil.copytree(f'{TFDS_DIR}/fashion_mnist/3.0.1', folder)
  info = folder / 'dataset_info.json'
  info.write_text(info.read_text().replace('"array_record"', '"tfrecord"'))
  (problem,) = problems(capsys, tmp_path, dataset='fashion_mnist')
  assert 'prepared as tfrecord' in problem and 'convert_format' in problem


def test_every_problem_of_folders_is_named(tmp_path, capsys):
  write_folders(tmp_path)
  train = tmp_path / 'train'
  shutil.rmtree(train / NAMES[0])
  write_images(train / 'n00000000', ['a.JPEG'])
  for path in (train / NAMES[1]).iterdir():
    path.unlink()
  (train / NAMES[2] / f'{NAMES[2]}_2.JPEG').write_bytes(jpeg(0)[:60])
  shutil.rmtree(tmp_path / 'val')
  found = problems(capsys, tmp_path, IN_FOLDERS)
  for problem, pattern in zip(
    found,
    [
      rf'{train} lacks 1 class \({NAMES[0]}\): extract',
      rf'{train} has 1 class \(n00000000\) too many: move',
      f'{train} has 7 images, not 12: extract',
      rf'{train} has no images of 1 class \({NAMES[1]}\)',
      f'{train}/{NAMES[2]}/{NAMES[2]}_2.JPEG: .* extract it again',
      f'{tmp_path} has no folder validation/ or val/: extract the tar',
    ],
    strict=True,
  ):
    assert re.match(pattern, problem), problem
  # Real ImageNet is expected unless another is.
  found = problems(capsys, tmp_path)
  assert 'lacks 997 classes (n01440764, ' in found[0]
  assert 'has 7 images, not 1,281,167' in found[2]


def test_validation_images_in_a_wrong_folder_are_noticed(tmp_path, capsys):
  write_folders(tmp_path)
  first, second = (imagenet.class_names()[label] for label in LABELS[:2])
  path = tmp_path / 'val' / first / VALIDATION[0]
  path.rename(tmp_path / 'val' / second / VALIDATION[0])
  write_images(tmp_path / 'val' / first, ['other.JPEG'])
  expected = IN_FOLDERS._replace(num_examples={'train': 12, 'validation': 5})
  (problem,) = problems(capsys, tmp_path, expected)
  assert problem.startswith(
    f'{tmp_path}/val has 1 image ({tmp_path}/val/{second}'
  )
  assert f'the first one of {first}: sort' in problem


def test_archives_are_told_apart_by_size_before_the_md5(
  tmp_path, capsys, monkeypatch
):
  train, val = (tmp_path / name for name in ARCHIVES)
  train.write_bytes(CONTENT['train.tar'][:-1])
  val.write_bytes(CONTENT['val.tar'][:-1] + b'x')
  short, other = problems(capsys, tmp_path, IN_FOLDERS)
  assert short == f'{train} has 1,499 bytes, not 1,500: download it again'
  assert f'{val} has the MD5' in other and 'download it again' in other
  monkeypatch.setattr(check, '_md5', None)
  val.unlink()
  problems(capsys, tmp_path, IN_FOLDERS)


def test_a_folder_without_any_copy_is_told_what_it_needs(tmp_path):
  with pytest.raises(
    UserError, match='holds no copy .* train/ or val/, or ILS'
  ):
    check.check('imagenet2012', str(tmp_path))
  with pytest.raises(UserError, match='needs cifar10/ as TFDS prepares it; '):
    check.check('cifar10', str(tmp_path))
  with pytest.raises(UserError, match='/none does not exist'):
    check.check('cifar10', f'{tmp_path}/none')


def test_what_is_not_checked_is_named(tmp_path):
  folder = tmp_path / imagenet.V2_FOLDERS['matched-frequency'] / '0'
  write_images(folder, ['1.jpeg'])
  for dataset in 'digits', 'imagenet_v2':
    with pytest.raises(
      UserError, match=f'{dataset} is not checked in this form'
    ):
      check.check(dataset, str(tmp_path))


def run(*arguments):
  return subprocess.run(
    [sys.executable, '-m', 'bn_inception.data', *arguments],
    cwd=ROOT,
    env={**os.environ, 'JAX_PLATFORMS': 'cpu'},
    capture_output=True,
    text=True,
  )


def test_the_program_shrinks_then_checks(tmp_path):
  write_folders(tmp_path / 'in')
  source, out = f'--data_dir={tmp_path}/in', f'--data_dir={tmp_path}/out'
  options = ['--short_side=20', '--splits=train', '--quality=90']
  done = run('shrink', source, f'--output_dir={tmp_path}/out', *options)
  assert (done.returncode, done.stderr) == (0, '')
  assert 'train: 12 examples' in done.stdout
  checked = run('check', out)
  assert checked.returncode == 2
  assert 'PROBLEM: train has 12 examples, not 1,281,167' in checked.stdout
  assert checked.stderr == (
    f'error: 2 problems with imagenet2012 in {tmp_path}/out: mend what the '
    'lines with PROBLEM name\n'
  )
  good = run('check', f'--data_dir={TFDS_DIR}', '--dataset=fashion_mnist')
  assert (good.returncode, good.stderr) == (0, '')
  assert good.stdout.endswith('\nok\n')


@pytest.mark.parametrize(
  'arguments, message',
  [
    ([], 'give a command: check or shrink; see --help'),
    (['chekc'], "there is no command 'chekc': use check or shrink; see --help"),
    (['check'], 'flag --data_dir=None: '),
  ],
)
def test_a_wrong_command_gets_one_line(arguments, message):
  done = run(*arguments)
  assert done.returncode == 2 and done.stdout == ''
  assert done.stderr.startswith(f'error: {message}')
  assert done.stderr.count('\n') == 1


def test_help_names_the_commands_and_explains_their_flags():
  text = run('--help').stdout
  assert 'data check --data_dir=DIR' in text
  text = ' '.join(run('shrink', '--help').stdout.split())
  for name in 'data_dir dataset output_dir short_side quality splits'.split():
    assert f' --{name}: ' in text and f'Example: --{name}=' in text


def test_folders_of_ones_own_are_checked(tmp_path, capsys):
  for name in 'ant', 'bee':
    write_images(tmp_path / 'train' / name, ['1.jpg', '2.jpg'])
  write_images(tmp_path / 'val' / 'bee', ['1.jpg'])
  (tmp_path / 'train' / 'notes.txt').write_text('')
  check.check('image_folder', str(tmp_path))
  lines = capsys.readouterr().out.splitlines()
  assert '  train                      4 images of 2 classes' in lines
  assert '  train                      not read: 1 file (.txt 1)' in lines
  assert '  validation                 1 images of 1 class' in lines
  assert '  validation                 no images of 1 class (ant)' in lines
  (tmp_path / 'train' / 'cat').mkdir()
  write_images(tmp_path / 'train' / 'ant' / 'deep', ['1.jpg'])
  write_images(tmp_path / 'val', ['2.jpg'])
  (tmp_path / 'train' / 'bee' / '2.jpg').write_bytes(jpeg(0)[:60])
  found = problems(capsys, tmp_path, dataset='image_folder')
  for problem, pattern in zip(
    found,
    [
      rf'{tmp_path}/train has no images of 1 class \(cat\): add',
      f'{tmp_path}/train/ant/deep has images',
      f'{tmp_path}/train/bee/2.jpg: .* extract it again',
      f'{tmp_path}/val/2.jpg is in no folder',
    ],
    strict=True,
  ):
    assert re.match(pattern, problem), problem
  with pytest.raises(UserError, match=f'give --data_dir={tmp_path}$'):
    check.check('image_folder', f'{tmp_path}/train')

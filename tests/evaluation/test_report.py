"""What an evaluation prints and writes."""

import copy
import csv
import dataclasses
import json
import os
import pathlib
import re

import cv2
import numpy as np
import pytest

from bn_inception.data.sources import make_source
from bn_inception.errors import UserError
from bn_inception.evaluation import checkpoints, report, scores
from bn_inception.evaluation.checkpoints import (
  EvaluationOptions,
  PopulationOptions,
)
from bn_inception.evaluation.predictions import Predictions
from bn_inception.runs import checkpoint, json_files, run_directory
from configs import compose

LOGARITHMS = np.log(np.array([[0.9, 0.1], [0.6, 0.4], [0.2, 0.8]]))
LABELS = np.array([0, 1, 1], np.int32)
PREDICTIONS = Predictions(
  LOGARITHMS,
  LABELS,
  np.array(['a', 'b', 'c']),
  np.array(['n01440764', 'n02123045']),
  'run',
)


def result(**changes):
  summary = scores.summary(LOGARITHMS, LABELS)
  member = {
    'name': 'bn_x30-imagenet', 'step': 9, 'trained_on': 'digits',
    'checkpoint': '/runs/9', 'results': {'moving averages': summary},
  }  # fmt: skip
  return {
    'dataset': 'digits', 'split': 'test', 'examples': 3, 'crops': 'centre',
    'num_crops': 1, 'folded': False, 'images_per_second': 1234.5,
    'results': {'moving averages': summary}, 'members': [member],
  } | changes  # fmt: skip


def test_the_table_has_accuracies_errors_and_intervals(capsys):
  report.print_table(result())
  low, high = scores.wilson_interval(2, 3)
  assert capsys.readouterr().out.splitlines() == [
    'run         bn_x30-imagenet, step 9',
    'split       digits test',
    'examples    3',
    'crops       1 (centre)',
    'statistics  moving averages',
    'top-1       66.67 %',
    f'  95 %      {low:.2f} - {high:.2f} %',
    '  error     33.33 %',
    'top-5       100.00 %',
    '  95 %      43.85 - 100.00 %',
    '  error     0.00 %',
    f'loss        {-np.log([0.9, 0.4, 0.8]).mean():.4f}',
    f'ECE         {100 * (0.1 + 0.6 + 0.2) / 3:.2f} %',
    'images/s    1234',
  ]


def test_a_loss_that_is_not_finite_is_said_and_null(tmp_path, capsys):
  nan = scores.summary(np.full((2, 2), np.nan), np.array([0, 1]))
  assert nan['loss'] is None and nan['ece'] is None and nan['top1'] == 0.0
  report.print_accuracies([nan])
  assert 'loss        not finite\nECE         not finite' in (
    capsys.readouterr().out
  )
  path = str(tmp_path / 'x.json')
  report.write_result(result(results={'none': nan}), path)
  with open(path) as file:
    assert json.load(file)['results']['none']['loss'] is None
  with pytest.raises(UserError, match='cannot be written .*: give another'):
    report.write_result({}, str(tmp_path / 'no' / 'x.json'))


def test_classes_are_printed_and_written_with_readable_names(tmp_path, capsys):
  report.print_worst_classes(PREDICTIONS)
  assert capsys.readouterr().out.splitlines() == [
    'worst of 2 classes:',
    '  tabby, tabby cat: 50.00 % of 2, 1 as tench, Tinca tinca',
    '  tench, Tinca tinca: 100.00 % of 1',
  ]
  path = tmp_path / 'x.csv'
  report.write_classes(PREDICTIONS, str(path))
  with open(path, newline='') as file:
    first, second = csv.DictReader(file)
  assert first == {
    'label': '1', 'class': 'n02123045', 'name': 'tabby, tabby cat',
    'examples': '2', 'top1': '50.0000', 'top5': '100.0000',
    'confused_with': 'n01440764', 'confused': '1',
  }  # fmt: skip
  assert second['confused_with'] == '' and second['confused'] == '0'
  with pytest.raises(UserError, match='cannot be written'):
    report.write_classes(PREDICTIONS, str(tmp_path / 'no' / 'x.csv'))


def test_files_that_could_not_all_be_written_are_refused(tmp_path):
  out, data = str(tmp_path / 'new' / 'x.json'), str(tmp_path / 'a.npz')
  for outputs, named in (
    ([out, data], data),  # also read
    ([out, str(tmp_path / 'new' / '..' / 'new' / 'x.json')], out),
    ([out, '/dev/null/x'], '/dev/null/x'),
  ):
    with pytest.raises(UserError, match=f'{named} .*: give another --output'):
      report.check_files(outputs, 'give another --output', inputs=[data])
    assert not os.path.exists(os.path.dirname(out))
  report.check_files([out], 'give another --output', inputs=[data])
  assert os.listdir(os.path.dirname(out)) == []


# ---- names of files ----

TFDS_DIR = str(pathlib.Path(__file__).parents[1] / 'tfds')
FOLDER = f'{TFDS_DIR}/fashion_mnist/3.0.1'


@pytest.fixture
def described(monkeypatch):
  """The description of every checkpoint: of a run on Fashion-MNIST."""
  origin = {'dataset': 'fashion_mnist', 'folder': FOLDER}
  monkeypatch.setattr(
    report.run_directory, 'read_origin', lambda workdir, remedy: origin
  )
  config = compose.preset('bn_x5', 'fashion_mnist').to_dict()
  description = {
    'config': json.loads(json.dumps(config)),
    'class_names': list(
      make_source('fashion_mnist', 'test', TFDS_DIR).class_names
    ),
    'num_channels': 1,
  }
  monkeypatch.setattr(
    checkpoint, 'read_description', lambda path: copy.deepcopy(description)
  )
  return description


def name_output(paths=('runs/a/checkpoints/9',), **changes):
  options = EvaluationOptions(**{'data_dir': TFDS_DIR, **changes})
  members = checkpoints.prepare(paths, options)
  return report.default_output(members, options, 'runs')


# What is written to the file, and how it changes the name. None: the result is
# the same, or the option is not for one that is written by that name.
BOTH = {'statistics': 'both'}
SAID = '_population_fashion_mnist_train'
IN_NAMES = {
  'dataset': ({'dataset': 'fashion_mnist:3.0.1'}, '_fashion_mnist:3.0.1'),
  'split': ({'split': 'train[:9]'}, None),
  'data_dir': None,  # see below
  'batch_size': None,
  'crops': ({'crops': 'ten'}, '_ten_crops'),
  'statistics': ({'statistics': 'population'}, SAID),
  'population': (BOTH, f'_both{SAID}'),  # by its fields, below
  'fold': ({'fold': True}, '_folded'),
  'dtype': ({'dtype': 'bfloat16'}, '_bfloat16'),
  'real': None,  # see below
  'is_named': None,
}
IN_NAMES_OF_POPULATION = {
  'num_batches': ({'num_batches': 7}, f'{SAID}_7_batches'),
  'seed': ({'seed': 3}, f'{SAID}_seed_3'),
  'dataset': (
    {'dataset': 'fashion_mnist:3.0.1'},
    '_population_fashion_mnist:3.0.1_train',
  ),
  'split': ({'split': 'test'}, '_population_fashion_mnist_test'),
}


def test_every_option_that_changes_an_evaluation_changes_its_name(described):
  for options, decisions in (
    (EvaluationOptions, IN_NAMES),
    (PopulationOptions, IN_NAMES_OF_POPULATION),
  ):
    fields = {field.name for field in dataclasses.fields(options)}
    assert fields == set(decisions), 'is a new option in the names of files?'
  assert name_output() == 'runs/evaluation_test_9.json'
  names = [name_output()]
  changes = [d for d in IN_NAMES.values() if d is not None]
  changes += [
    (
      {'statistics': 'population', 'population': PopulationOptions(**given)},
      said,
    )
    for given, said in IN_NAMES_OF_POPULATION.values()
  ]
  for given, said in changes:
    names.append(name_output(**given))
    if said is not None:
      assert names[-1] == f'runs/evaluation{said}_test_9.json'
  assert names[2] == 'runs/evaluation_train[:9]_9.json'
  assert len(set(names)) == len(names) == 12


def test_what_the_run_does_by_itself_is_not_in_the_name(described):
  described['config']['data']['eval_crop'] = 'ten'
  described['config']['model']['dtype'] = 'bfloat16'
  usual = {'dtype': 'bfloat16', 'crops': 'ten', 'dataset': 'fashion_mnist'}
  for given in {}, usual:
    assert name_output(**given) == 'runs/evaluation_test_9.json'
  assert name_output(crops='whole', dtype='float32') == (
    'runs/evaluation_whole_crops_float32_test_9.json'
  )


def test_ensembles_are_told_by_their_members(described):
  def ensemble(*runs):
    return name_output([f'runs/{run}/checkpoints/9' for run in runs])

  names = {ensemble('a', 'b'), ensemble('a', 'c'), ensemble('b', 'c')}
  assert len(names) == 3
  for name in names:
    assert re.fullmatch(
      'runs/evaluation_ensemble_[0-9a-f]{8}_test_9_9.json', name
    )
  many = ensemble(*'abcdefghi')
  assert many.endswith('_test_9_members.json') and many != ensemble(
    *'bcdefghia'
  )


def test_images_of_other_folders_go_to_other_files(described, tmp_path):
  image = np.zeros((32, 32, 3), np.uint8)
  for folder in 'birds', 'more/birds':
    for class_name in 'ab':
      place = tmp_path / folder / 'test' / class_name
      place.mkdir(parents=True)
      cv2.imwrite(str(place / '0.png'), image)
  described.update(class_names=['a', 'b'], num_channels=3)
  described['config']['source']['dataset'] = 'image_folder'
  names = [
    name_output(data_dir=str(tmp_path / folder))
    for folder in ('birds', 'more/birds')
  ]
  assert names[0] != names[1]
  for name in names:
    assert re.fullmatch('runs/evaluation_birds-[0-9a-f]{8}_test_9.json', name)


def test_other_data_of_the_same_name_go_to_other_files(tmp_path):
  def name(path, own, dataset='imagenet2012'):
    key = 'archive' if path.endswith('.tar') else 'folder'
    trained_on = {'dataset': 'imagenet2012', 'folder': own} if own else {}
    return report._name_data({'dataset': dataset, key: path}, trained_on)

  for path, own in (
    ('/a/imagenet2012/5.1.0', '/a/imagenet2012/5.1.0'),
    ('/a/validation', '/a/train'),
    ('gs://a/imagenet2012/5.1.0', 'gs://a/imagenet2012/5.1.0'),
  ):
    assert name(path, own) == []
  names = [
    name(path, own)
    for path, own in (
      ('/b/imagenet2012/5.1.0', '/a/imagenet2012/5.1.0'),
      ('/c/b/imagenet2012/5.1.0', '/a/imagenet2012/5.1.0'),
      ('/b/imagenet2012/5.1.1', '/b/imagenet2012/5.1.0'),
      ('/b/imagenet2012/validation', '/b/imagenet2012/5.1.0'),
      ('/a/imagenet2012/5.1.0', ''),  # imported weights have no manifest
      ('/a/validation', ''),
      ('/a/val.tar', ''),
    )
  ]
  assert [n.partition('-')[0] for (n,) in names] == [
    'b', 'b', 'b', 'imagenet2012', 'a', 'a', 'a'
  ]  # fmt: skip
  assert len({n for (n,) in names}) == len(names)
  # A link that leads elsewhere later leads to other data.
  (tmp_path / 'link').symlink_to(tmp_path / 'a')
  link, real = (str(tmp_path / n / 'x' / '1.0.0') for n in ('link', 'a'))
  assert name(link, '') == name(real, '') and name(link, real) == []


def test_the_data_of_a_run_are_those_of_its_first_start(tmp_path):
  assert run_directory.read_origin(str(tmp_path), 'x') == {}
  starts = [{'data': {'folder': folder}} for folder in ('/a', '/b')]
  path = tmp_path / 'manifest.json'
  json_files.write_json(str(path), {'starts': starts})
  assert run_directory.read_origin(str(tmp_path), 'x') == {'folder': '/a'}
  path.write_text('{')
  with pytest.raises(UserError, match=f'{path} is damaged .*: give --output'):
    run_directory.read_origin(str(tmp_path), 'give --output')


def test_copies_and_labels_are_named():
  shrunk = {'dataset': 'x', 'shrunk': {'short_side': 256, 'quality': 95}}
  assert report._name_data(shrunk, {}) == ['shrunk_256_95']
  facts = {
    'dataset': 'x', 'data': {'dataset': 'x'}, 'crops': 'whole',
    'folded': False, 'dtype': 'float32', 'split': 'test',
  }  # fmt: skip
  member = checkpoints.Member(
    'c/9', facts, None, None, facts, (), None, None, None, None
  )
  options = EvaluationOptions(real=True)
  assert report.default_output([member], options, 'runs') == (
    'runs/evaluation_real_test_9.json'
  )


def test_real_labels_have_their_own_rows(capsys):
  summary = scores.summary(LOGARITHMS, LABELS)
  summary['real'] = scores.label_set_summary(LOGARITHMS, [{0}, {0, 1}, set()])
  report.print_accuracies([summary])
  lines = capsys.readouterr().out.splitlines()
  assert lines[6:9] == [
    'ReaL        100.00 %',
    '  95 %      34.24 - 100.00 %',
    '  examples  2',
  ]

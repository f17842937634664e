"""What an evaluation prints and writes."""

import csv
import json

import numpy as np
import pytest

from bn_inception import evaluation_report as report
from bn_inception import scores
from bn_inception.errors import UserError
from bn_inception.predictions import Predictions

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
    'batches     -',
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
    '   50.00 % of 2 tabby, tabby cat, 1 taken for tench, Tinca tinca',
    '  100.00 % of 1 tench, Tinca tinca',
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


def test_outputs_of_different_evaluations_have_different_names():
  origin = {'statistics_dataset': 'digits', 'statistics_split': 'train[:9]'}
  both = {'moving averages': {}, 'population': origin}
  (member,) = result()['members']
  with_both = member | {'results': both}
  names = [
    report.default_output(result(**changes), 'runs')
    for changes in (
      {},
      {'results': both, 'members': [with_both]},
      {'folded': True},
      {'dataset': 'x'},
      {'num_crops': 144},
      {'members': [member, member | {'step': 7}]},
    )
  ]
  assert names == [
    'runs/evaluation_test_9.json',
    'runs/evaluation_population_digits_train[:9]_test_9.json',
    'runs/evaluation_folded_test_9.json',
    'runs/evaluation_x_test_9.json',
    'runs/evaluation_144_crops_test_9.json',
    'runs/evaluation_ensemble_test_9_7.json',
  ]


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

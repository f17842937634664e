"""The commands: saved predictions averaged, images classified."""

import dataclasses
import json

import numpy as np
import pytest

from bn_inception.errors import UserError
from bn_inception.evaluation import __main__ as evaluation
from bn_inception.evaluation import predictions
from bn_inception.evaluation.predictions import Predictions


@pytest.fixture
def saved(tmp_path):
  """Two files; the first network is wrong about the first image."""
  first = Predictions(
    np.log(np.float32([[0.4, 0.6], [0.3, 0.7]])),
    np.int32([0, 1]),
    np.array(['a.jpg', 'b.jpg']),
    np.array(['n01440764', 'n02123045']),
    'first at step 9',
  )
  second = dataclasses.replace(
    first,
    log_probabilities=np.log(np.float32([[0.8, 0.2], [0.4, 0.6]])),
    origin='second at step 9',
  )
  paths = [str(tmp_path / name) for name in ('a.npz', 'b.npz')]
  for path, value in zip(paths, (first, second), strict=True):
    predictions.save(path, value)
  return paths


def test_mean_and_members(saved, tmp_path, capsys):
  output = tmp_path / 'new' / 'mean.json'
  evaluation.average(saved, str(output))
  first, second, count, *_ = capsys.readouterr().out.splitlines()
  assert first.startswith('50.00 % top-1') and 'first at step 9' in first
  assert second.startswith('100.00 % top-1') and 'second at step 9' in second
  assert count == 'mean of 2, 2 examples'
  written = json.loads(output.read_text())
  assert written['predictions'] == saved
  assert written['results']['top1'] == 100.0
  loss = -(np.log(0.6) + np.log(0.65)) / 2
  assert written['results']['loss'] == pytest.approx(loss, rel=1e-6)


def test_mean_by_real_labels(saved, capsys, monkeypatch):
  monkeypatch.setattr(
    evaluation.imagenet, 'real_labels', lambda names, classes: [{1}, set()]
  )
  evaluation.average(saved, with_real=True)
  assert 'ReaL        0.00 %' in capsys.readouterr().out


def test_output_is_none_of_the_files(saved):
  with pytest.raises(UserError, match='b.npz would be two files in one'):
    evaluation.average(saved, saved[1])


def test_classes_of_images(monkeypatch, capsys):
  def top_classes(path, images, crops):
    assert (path, crops) == ('runs/9', 'ten')
    return [[('n02123045', 0.75), ('n01440764', 0.25)]] * len(images)

  monkeypatch.setattr(evaluation.inference, 'top_classes', top_classes)
  evaluation.classify('runs/9', ['a.jpg', 'b.jpg'], 'ten')
  assert capsys.readouterr().out.splitlines() == [
    'a.jpg',
    '   75.00 %  tabby, tabby cat',
    '   25.00 %  tench, Tinca tinca',
    'b.jpg',
    '   75.00 %  tabby, tabby cat',
    '   25.00 %  tench, Tinca tinca',
  ]

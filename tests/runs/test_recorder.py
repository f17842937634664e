"""What happens in training is recorded, with its speed."""

import time
from types import SimpleNamespace

import numpy as np
import pytest

from bn_inception.runs import learning_curve
from bn_inception.runs.recorder import open_recorder


@pytest.fixture
def clock(monkeypatch):
  now = [1000.0]
  monkeypatch.setattr(time, 'monotonic', lambda: now[0])
  return now


def step_metrics(bad_step=-1):
  names = 'loss_sum', 'top1_count', 'top5_count', 'count'
  return {name: np.float32(8) for name in names} | {
    'measurements': {},
    'learning_rate': 0.1,
    'gradient_norm': 2.0,
    'first_nonfinite_step': bad_step,
  }


@pytest.fixture
def recorder(tmp_path, clock):
  experiment = SimpleNamespace(
    num_steps=100,
    steps_per_epoch=10.0,
    batch_size=8,
    setup=SimpleNamespace(config={'name': 'a'}),
  )
  with open_recorder(experiment, str(tmp_path), 0, clock[0] - 5) as opened:
    yield opened


def test_speed_is_measured_after_the_first_interval(recorder, clock, capsys):
  recorder.first_step(1)
  recorder.training(1, [step_metrics()], wait_seconds=0.5)
  recorder.begin_interval(1)
  clock[0] += 2.0
  recorder.training(11, [step_metrics()] * 10, wait_seconds=0.5)
  start, first, second = recorder.records
  assert start['seconds_to_first_step'] == first['seconds'] == 5.0
  assert 'images_per_second' not in first
  assert second['images_per_second'] == 10 * 8 / 2.0
  assert second['input_wait_fraction'] == 0.25
  # 89 steps of 8 images are left, at 40 images/s.
  assert '0:18 left' in capsys.readouterr().out


def test_the_learning_curve_takes_a_hundredth_of_the_time(
  recorder, clock, monkeypatch
):
  drawn = []

  def draw(records, path, title):
    drawn.append(records[-1]['step'])
    clock[0] += 1.0

  monkeypatch.setattr(learning_curve, 'draw', draw)
  values = {'top1': 1.0, 'top5': 2.0, 'loss': 3.0, 'examples': 4}
  for step, seconds in (1, 29), (2, 1), (3, 99), (4, 1):
    clock[0] += seconds
    recorder.evaluation(step, values, values if step == 4 else {})
  assert drawn == [2, 4]
  assert 'population_top1' not in recorder.records[0]
  assert recorder.records[-1]['population_top1'] == 1.0

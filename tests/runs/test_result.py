"""result.json follows from the config and the records."""

import json

from bn_inception.metrics import MOVING
from bn_inception.runs import result
from configs import compose


def record(kind, step, **values):
  return {'kind': kind, 'step': step, **values}


def evaluation(step, top1):
  values = {'top1': top1, 'top5': top1 + 1, 'loss': 0.5, 'examples': 7}
  return record('eval', step, **values, seconds=10.0 * step)


def training(step, speed, bad_step=-1):
  values = {'images_per_second': speed, 'input_wait_fraction': 0.25}
  values |= {'first_nonfinite_step': bad_step, 'seconds': 10.0 * step}
  return record('train', step, **values)


def make(*records):
  config = compose.preset('bn_x5', 'digits').to_dict()
  config['batch_size'] = 64
  config['training']['target_accuracy'] = 80.0
  return result.make_result(config, list(records), num_examples=640)


def test_a_result_has_the_last_the_best_and_the_first_to_reach_the_target():
  found = make(
    record('start', 1, seconds_to_first_step=3.0),
    training(5, speed=None),
    evaluation(5, 79.0),
    record('replaced', 7, index=1),
    training(10, speed=100.0),
    evaluation(10, 90.0),
    training(15, speed=300.0),
    evaluation(15, 80.0),
  )
  expected = {
    'steps': 15, 'epochs': 1.5, 'examples': 960, 'paper_steps': 30.0,
    'top1': 80.0, 'top5': 81.0, 'max_top1': 90.0, 'steps_to_target': 10,
    'population_top1': None, 'statistics': MOVING, 'diverged': False,
    'images_per_second': 200.0, 'replaced_examples': 1, 'wall_seconds': 150.0,
    'seconds_to_first_step': 3.0,
  }  # fmt: skip
  assert {name: found[name] for name in expected} == expected


def test_a_run_that_diverged_ends_at_its_first_bad_step(tmp_path):
  found = make(training(10, speed=1.0, bad_step=8))
  found = json.loads(json.dumps(found))  # lists for tuples
  assert found['steps'] == found['first_nonfinite_step'] == 8
  assert found['diverged'] and found['top1'] is None
  assert result.diverged_result(str(tmp_path)) is None
  path = tmp_path / 'result.json'
  path.write_text(json.dumps(found))
  assert result.diverged_result(str(tmp_path)) == found
  path.write_text(json.dumps(found | {'diverged': False}))
  assert result.diverged_result(str(tmp_path)) is None

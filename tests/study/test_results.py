"""Outcomes and groups of runs, and intervals, against numbers made by hand."""

import json
import math
import pathlib

import pytest

from bn_inception.metrics import MOVING, POPULATION
from bn_inception.study import results as study_results
from bn_inception.study.results import mean_interval, paired_differences
from tests.study.study_files import study_runs, write_run

ROOT_3, ROOT_2 = math.sqrt(3), math.sqrt(2)
# Of tables: Student's t for 95 %, with one and two degrees of freedom.
T_1, T_2 = 12.706205, 4.302653


@pytest.fixture
def runs(tmp_path):
  return study_runs('leave_one_out', tmp_path)


def read(runs):
  (groups,) = study_results.read_groups(runs.values()).values()
  return {group.name: group for group in groups}


def test_interval_of_three_values():
  found = mean_interval([1.0, 2.0, 3.0])
  assert found.mean == 2.0 and found.count == 3
  assert found.margin == pytest.approx(T_2 / ROOT_3, rel=1e-6)  # 2.484


def test_interval_of_two_values_and_of_one():
  assert mean_interval([1.0, 3.0]).margin == pytest.approx(T_1, rel=1e-6)
  alone = mean_interval([7.0])
  assert (alone.mean, alone.margin, alone.count) == (7.0, None, 1)


@pytest.mark.parametrize(
  'values, is_resolved',
  [([1.0, 1.1, 0.9], True), ([-1.0, -0.5], False), ([9.0], None)],
)
def test_resolved_means_that_the_interval_excludes_zero(values, is_resolved):
  assert mean_interval(values).is_resolved is is_resolved


def test_outcome_of_a_network_with_batch_norm(runs):
  top1, population = (
    {100: 40.0, 200: 70.0, 300: 65.0},
    {100: 71, 200: 80, 300: 79},
  )
  write_run(runs['BN-x5', 0], top1, population, 60.0, 62.0)
  (outcome,) = read(runs)['BN-x5'].outcomes
  assert outcome.followed(MOVING) == top1
  assert outcome.followed(POPULATION) == population
  assert (outcome.last(MOVING), outcome.last(POPULATION)) == (65.0, 79)
  assert (outcome.best(MOVING), outcome.best(POPULATION)) == (70.0, 80)
  assert (outcome.final(MOVING), outcome.final(POPULATION)) == (60.0, 62.0)
  assert outcome.last(MOVING, 'loss') == 1.5
  assert outcome.last(POPULATION, 'loss') == 1.0
  assert outcome.first_step(70.0, MOVING) == 200
  assert outcome.first_step(70.0, POPULATION) == 100
  assert outcome.first_step(80.5, POPULATION) is None


def test_without_batch_norm_one_accuracy_stands_in_both_places(tmp_path):
  runs = study_runs('figure2', tmp_path)
  write_run(runs['Inception', 0], {100: 40.0}, final=41.0)
  (outcome,) = read(runs)['Inception'].outcomes
  assert outcome.last(MOVING) == outcome.last(POPULATION) == 40.0
  assert outcome.final(MOVING) == outcome.final(POPULATION) == 41.0


def test_loss_that_is_not_finite_at_the_end_is_no_earlier_one(runs):
  write_run(runs['BN-x5', 0], {100: 40.0}, loss=1.0)
  (outcome,) = read(runs)['BN-x5'].outcomes
  outcome.records.append(outcome.records[-1] | {'step': 200, 'loss': None})
  assert outcome.last(MOVING, 'loss') is None
  assert outcome.followed(MOVING, 'loss') == {100: 1.0}


def test_states_of_groups(runs):
  for seed in range(3):
    write_run(runs['BN-x5', seed], {100: 50.0}, {100: 50.0}, 50.0, 50.0)
    write_run(runs['without remove_dropout', seed], {}, diverged_at=41)
  for seed, diverged_at in ((0, 41), (1, 1043), (2, None)):
    run = runs['without reduce_weight_decay', seed]
    write_run(run, {10: 50.0}, None, 50.0, 50.0, diverged_at)
  write_run(runs['without shuffle_more_thoroughly', 2], {100: 1.0})
  groups = read(runs)
  assert groups['BN-x5'].state() == '3 runs'
  assert groups['BN-x5'].exception() == ''
  all_diverged = groups['without remove_dropout']
  assert all_diverged.state() == '3 runs; diverged at step 41'
  assert all_diverged.absence() == 'diverged at step 41'
  assert all_diverged.values(lambda o: o.final(MOVING)) == []
  assert groups['without reduce_weight_decay'].state() == (
    '3 runs; 2 of 3 diverged at steps 41, 1,043'
  )
  begun = groups['without shuffle_more_thoroughly']
  assert begun.state() == begun.exception() == '1 of 3 runs'
  absent = groups['without increase_learning_rate']
  assert absent.state() == absent.exception() == absent.absence() == 'not run'


def test_run_without_evaluation_is_not_finished(runs, tmp_path):
  write_run(runs['BN-x5', 0], {100: 50.0})
  (tmp_path / runs['BN-x5', 0].folder / 'evaluation.json').unlink()
  assert read(runs)['BN-x5'].state() == 'not run'


METRICS, RESULT, EVALUATION, CONFIG = (
  'metrics.jsonl', 'result.json', 'evaluation.json', 'config.json'
)  # fmt: skip


def edit(**values):
  """Replaces keys of a JSON file; None removes one."""

  def make(text):
    content = json.loads(text) | values
    return json.dumps({k: v for k, v in content.items() if v is not None})

  return make


@pytest.mark.parametrize(
  'name, change',
  [
    (RESULT, lambda text: '{}'),
    (RESULT, lambda text: '[]'),
    (RESULT, lambda text: text[:40]),
    (RESULT, edit(diverged=None)),
    (RESULT, edit(diverged=True)),
    (RESULT, edit(wall_seconds=math.nan)),
    (RESULT, edit(steps='200')),
    (RESULT, edit(eval_split=None)),
    (RESULT, edit(max_top1=1234.5)),
    (RESULT, edit(top5=-0.5)),
    (CONFIG, lambda text: '{}'),
    (CONFIG, lambda text: ''),
    (CONFIG, edit(seed=9)),
  ],
)
def test_run_that_cannot_be_trusted_is_named_and_not_counted(
  runs, name, change
):
  for seed in range(3):
    write_run(runs['BN-x5', seed], {100: 40.0, 200: 60.0}, final=70.0 + seed)
  path = pathlib.Path(runs['BN-x5', 0].path(name))
  path.write_text(change(path.read_text()))
  group = read(runs)['BN-x5']
  assert group.values(lambda o: o.final(MOVING)) == [71.0, 72.0]
  assert group.state() == group.exception() == '2 of 3 runs; 1 damaged'
  [line] = group.problems[0]
  assert line.startswith(str(path))


@pytest.mark.parametrize(
  'name, change, final, last',
  [
    (EVALUATION, lambda text: '{}', [None, None], 60.0),
    (EVALUATION, lambda text: text[:9], [None, None], 60.0),
    (EVALUATION, edit(results=[]), [None, None], 60.0),
    (
      EVALUATION, edit(results={'moving averages': {'top1': 7.0}}),
      [7.0, None], 60.0,
    ),
    (
      EVALUATION,
      edit(results={
        'moving averages': {'top1': math.inf}, 'population': {'top1': 7.0}
      }),
      [None, 7.0], 60.0,
    ),
    (
      EVALUATION,
      edit(results={
        'moving averages': {'top1': 100.5}, 'population': {'top1': 100.0}
      }),
      [None, 100.0], 60.0,
    ),
    (
      METRICS, lambda text: text.replace('"top1": 40.0', '"top1": 1234.5'),
      [70.0, 75.0], None,
    ),
    # Cut short, so that the last evaluation would be an earlier one.
    (METRICS, lambda text: text[: text.index('200')], [70.0, 75.0], None),
    (METRICS, lambda text: text[: text.index('\n') + 1], [70.0, 75.0], None),
    (METRICS, lambda text: '', [70.0, 75.0], None),
    (METRICS, lambda text: '{"step": 1}\n' + text, [70.0, 75.0], None),
    (METRICS, lambda text: 'x\n' + text, [70.0, 75.0], None),
  ],
)  # fmt: skip
def test_numbers_that_are_missing_are_named_and_the_others_count(
  runs, name, change, final, last
):
  run = runs['BN-x5', 0]
  write_run(run, {100: 40.0, 200: 60.0}, final=70.0, final_population=75.0)
  path = pathlib.Path(run.path(name))
  path.write_text(change(path.read_text()))
  group = read(runs)['BN-x5']
  [outcome] = group.outcomes
  assert [outcome.final(kind) for kind in (MOVING, POPULATION)] == final
  assert outcome.last(MOVING) == outcome.best(MOVING) == last
  assert group.state() == '1 of 3 runs; 1 damaged'
  assert all(line.startswith(str(path)) for line in group.problems[0])


def test_missing_files_are_named(runs):
  for seed, name in enumerate((METRICS, CONFIG)):
    run = runs['BN-x5', seed]
    write_run(run, {100: 40.0})
    pathlib.Path(run.path(name)).unlink()
  problems = read(runs)['BN-x5'].problems
  assert problems[0] == [
    f'{runs["BN-x5", 0].path(METRICS)} is missing or empty'
  ]
  assert problems[1] == [f'{runs["BN-x5", 1].path(CONFIG)} does not exist']


def test_population_statistics_are_never_mixed_with_moving_averages(runs):
  write_run(runs['BN-x5', 0], {100: 40.0, 200: 90.0}, {100: 71.0, 200: 80.0})
  [outcome] = read(runs)['BN-x5'].outcomes
  del outcome.records[-1]['population_top1']
  assert outcome.followed(POPULATION) == {100: 71.0}
  assert outcome.last(POPULATION) is None


def test_differences_are_paired_by_seed(runs):
  for seed, final in ((0, 80.0), (1, 81.0), (2, 82.0)):
    write_run(runs['BN-x5', seed], {9: 1.0}, {9: 1.0}, 0.0, final)
  other = 'without remove_dropout'
  for seed, final in ((1, 80.5), (0, 79.0)):
    write_run(runs[other, seed], {9: 1.0}, {9: 1.0}, 0.0, final)
  write_run(runs[other, 2], {}, diverged_at=3)
  groups = read(runs)
  found = paired_differences(
    groups[other], groups['BN-x5'], lambda o: o.final(POPULATION)
  )
  assert found == [-1.0, -0.5]
  interval = mean_interval(found)
  assert interval.mean == -0.75
  # Their standard deviation is 0.5 / sqrt(2).
  assert interval.margin == pytest.approx(T_1 * 0.5 / ROOT_2 / ROOT_2, rel=1e-6)

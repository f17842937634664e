"""Curves and the data of plots, against numbers made by hand."""

import pytest

from bn_inception.evaluation.passes import MOVING, POPULATION
from bn_inception.study import plots
from bn_inception.study.results import final, read_groups
from tests.study.study_files import study_runs, write_run


def read(runs):
  (groups,) = read_groups(runs.values()).values()
  return groups


def test_means_are_of_the_seeds_that_have_a_value():
  first, second = plots.mean_points([{1: 10.0, 2: 20.0}, {1: 13.0}])
  assert (first.x, first.value, first.low, first.high) == (1, 11.5, 10.0, 13.0)
  assert (second.value, first.count, second.count) == (20.0, 2, 1)


def test_accuracy_curve_breaks_where_a_seed_diverged(tmp_path):
  runs = study_runs('figure2', tmp_path, seeds=(0, 1))
  write_run(runs['Inception', 0], {10: 30.0, 20: 40.0})
  write_run(runs['Inception', 1], {10: 50.0}, diverged_at=14)
  curve = plots.accuracy_curve(read(runs)[0], 3, MOVING)
  assert [(p.x, p.value) for p in curve.points] == [(10, 40.0), (20, 40.0)]
  assert curve.crosses == curve.breaks == (14,)
  assert (curve.label, curve.colour, curve.dash) == ('Inception', 3, 3)
  assert curve.note == '1 of 2 diverged at step 14'


def test_rate_curves_of_both_networks(tmp_path):
  runs = study_runs('learning_rates', tmp_path, seeds=(0,))
  write_run(runs['BN-x5', 0], {9: 1.0}, {9: 2.0}, 50.0, 60.0)
  write_run(runs['Inception', 0], {9: 1.0}, final=40.0)
  groups = read(runs)
  unit = groups[0].rate
  with_bn, without = plots.rate_curves(groups, final(POPULATION), unit)
  assert (with_bn.label, without.label) == ('with BN', 'without BN')
  assert [(p.x, p.value) for p in with_bn.points] == [
    (pytest.approx(5.0), 60.0)
  ]
  assert with_bn.breaks == pytest.approx((1.0, 30.0, 100.0))
  assert without.note == 'at 5, 30, 100: not run'
  networks = plots.by_network(groups)
  assert [group.name for group in networks['with BN']] == [
    'BN-x1', 'BN-x5', 'BN-x30', 'BN-x100',
  ]  # fmt: skip

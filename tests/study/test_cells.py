"""Cells of tables, against texts made by hand."""

import pytest

from bn_inception.evaluation.passes import MOVING, POPULATION
from bn_inception.study import cells
from bn_inception.study.results import final, read_groups
from tests.study.study_files import study_runs, write_run


@pytest.fixture
def groups(tmp_path):
  """BN-Baseline has three seeds and BN-x5 one; one of BN-x30 diverged."""
  runs = study_runs('figure2', tmp_path)
  for seed in range(3):
    run = runs['BN-Baseline', seed]
    write_run(run, {100: 40.0, 200: 60.0 + seed}, None, 70.0 + seed)
  write_run(runs['BN-x5', 0], {100: 90.0}, None, 71.5)
  write_run(runs['BN-x30', 0], {}, diverged_at=41)
  (found,) = read_groups(runs.values()).values()
  return {group.name: group for group in found}


def test_table_has_a_row_for_each_group(groups):
  table = cells.make_table(
    'file', 'Title', list(groups.values())[:2],
    {'arm': cells.name_cell, 'network': cells.network_cell},
  )  # fmt: skip
  assert (table.name, table.title) == ('file', 'Title')
  assert table.columns == ('arm', 'network')
  assert [[cell.text for cell in row] for _, row in table.rows] == [
    ['Inception', 'without BN'], ['BN-Baseline', 'with BN'],
  ]  # fmt: skip


def test_mean_with_interval_one_seed_and_none(groups):
  column = cells.mean_column(final(MOVING), digits=1)
  cell = column(groups['BN-Baseline'])
  # 4.302653 of two degrees of freedom, divided by the root of 3.
  assert cell.text == '71.0 ± 2.5'
  assert cell.numbers == {
    'mean': 71.0, 'margin': pytest.approx(2.484138, rel=1e-6), 'count': 3,
  }  # fmt: skip
  assert column(groups['BN-x5']).text == '71.5 (one seed)'
  assert column(groups['Inception']).text == 'not run'
  assert column(groups['BN-x30']).text == '1 of 3 diverged at step 41'


def test_cell_of_values_counts_seeds_that_lack_one(groups):
  group = groups['BN-Baseline']
  cell = cells.values_cell(group, [1.0, 1.0], 'absent', sign='+')
  assert cell.text == '+1.00 ± 0.00, 2 of 3 seeds'
  assert cells.values_cell(group, [], 'absent').text == 'absent'


def test_steps_to_a_target(groups):
  cell = cells.steps_column(61.0, MOVING, unit=2.0)(groups['BN-Baseline'])
  assert cell.text == '400 (400–400), 2 of 3 seeds'
  assert cell.numbers == {
    'mean': 400.0, 'lowest': 400.0, 'highest': 400.0, 'reached': 2, 'seeds': 3,
  }  # fmt: skip
  far = cells.steps_column(99.0, POPULATION)
  assert far(groups['BN-Baseline']).text == 'not reached'
  assert far(groups['BN-x30']).text == '1 of 3 diverged at step 41'
  assert far(groups['Inception']).text == 'not run'
  assert cells.steps_column(None, MOVING)(groups['BN-x5']).text == 'no target'

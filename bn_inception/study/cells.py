"""Tables of the report and the contents of their cells.

If a run is missing or diverged, the cell says so in place of the number.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from bn_inception.study.plots import Cell, Table
from bn_inception.study.results import Group, Measure, mean_interval

Column = Callable[[Group], Cell]


def make_table(
  name: str,
  title: str,
  groups: Sequence[Group],
  columns: Mapping[str, Column],
) -> Table:
  """A table with a row for each group.

  Args:
    name: name of its file.
    title: title above it.
    groups: one for each row.
    columns: head -> function that makes a group's cell.
  """
  rows = tuple(
    (group, tuple(make_cell(group) for make_cell in columns.values()))
    for group in groups
  )
  return Table(name, title, tuple(columns), rows)


def name_cell(group: Group) -> Cell:
  return Cell(group.name)


def network_cell(group: Group) -> Cell:
  return Cell(group.network)


def mean_column(measure: Measure, digits: int = 2) -> Column:
  """The mean over seeds with its interval."""
  return lambda group: values_cell(
    group, group.values(measure), group.absence(), digits
  )


def values_cell(
  group: Group,
  values: Sequence[float],
  absence: str,
  digits: int = 2,
  sign: str = '',
) -> Cell:
  """'87.10 ± 0.30', or the only value; with the count if some seeds lack one.

  Args:
    group: the runs.
    values: one for each seed that has one.
    absence: the text if there are no values.
    digits: digits after the decimal point.
    sign: '+' shows plus signs.
  """
  if not values:
    return Cell(absence)
  found = mean_interval(values)
  margin = f'± {found.margin:.{digits}f}' if found.count > 1 else '(one seed)'
  text = f'{found.mean:{sign}.{digits}f} {margin}'
  if found.count < group.num_measured:
    text += f', {found.count} of {group.num_measured} seeds'
  return Cell(text, dataclasses.asdict(found))


def steps_column(
  target: float | None, statistics: str, unit: float = 1.0
) -> Column:
  """Mean, lowest and highest number of steps to a target.

  Args:
    target: accuracy in percent; None: there is none.
    statistics: see `Outcome.followed`.
    unit: factor by which to multiply steps.
  """

  def make_cell(group: Group) -> Cell:
    if target is None:
      return Cell('no target')
    steps = group.values(lambda o: o.first_step(target, statistics))
    total = sum(
      bool(o.followed(statistics)) or o.diverged_at is not None
      for o in group.outcomes
    )
    if not steps:
      is_whole = total > 0 and not group.divergence()
      return Cell('not reached' if is_whole else group.absence())
    mean, low, high = (f(steps) * unit for f in (np.mean, min, max))
    text = f'{mean:,.0f}'
    text += f' ({low:,.0f}–{high:,.0f})' if len(steps) > 1 else ''
    text += f', {len(steps)} of {total} seeds' if total > 1 else ''
    numbers = {'mean': mean, 'lowest': low, 'highest': high}
    return Cell(text, numbers | {'reached': len(steps), 'seeds': total})

  return make_cell

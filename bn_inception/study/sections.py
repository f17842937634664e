"""What the report shows of each study: curves, bars and tables, as data.

A study of the paper is a function of the groups of its runs, in `STUDIES`; any other
one is shown by `_any_study`. What they return is drawn by report_figures.py and
written by report_page.py. What is missing or diverged is said in place of the number.
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from operator import methodcaller
from string import ascii_lowercase

import numpy as np

from bn_inception.evaluation.passes import MOVING, POPULATION
from bn_inception.metrics import PERCENTILES
from bn_inception.study.results import (
  Group,
  Measure,
  Outcome,
  mean_interval,
  paired_differences,
  read_groups,
)
from bn_inception.study.runs import Run, find_study
from bn_inception.training import PAPER_BATCH_SIZE

_FIGURE_1_ACCURACIES = 80, 90, 95, 97, 98
_FIGURE_1_RANGE = 70.0, 100.0
_FIGURE_2_RANGE = 25.0  # below the target, as the paper's axis begins at 40 %
_NETWORKS = {False: 'without BN', True: 'with BN'}
# Figure 3: steps to 72.2 %, and the best validation accuracy; and what Section
# 4.2.2 says of the two that failed.
_PAPER = {
  'Inception': (31.0e6, '72.2 %'),
  'BN-Baseline': (13.3e6, '72.7 %'),
  'BN-x5': (2.1e6, '73.0 %'),
  'BN-x30': (2.7e6, '74.8 %'),
  'BN-x5-Sigmoid': (None, '69.8 %'),
  'Inception-x5': (None, 'reached machine infinity'),
  'Inception-Sigmoid': (None, 'chance, 0.1 %'),
}
_NOT_IN_PAPER = 'not in the paper'


@dataclasses.dataclass(frozen=True)
class Point:
  """A mean over seeds at x, with the lowest and the highest of them."""

  x: float
  value: float
  low: float
  high: float
  count: int


@dataclasses.dataclass(frozen=True)
class Curve:
  """A line of a plot.

  Attributes:
    label: in the legend, with `note`: what is missing or diverged.
    colour, dash: numbers of them.
    points: left to right.
    mark: a point that stands out.
    crosses: x of divergences, which have no value.
    breaks: x that the line does not cross: from there it is of other seeds, or
      of none.
  """

  label: str
  colour: int
  dash: int
  points: tuple[Point, ...]
  note: str = ''
  mark: Point | None = None
  crosses: tuple[float, ...] = ()
  breaks: tuple[float, ...] = ()


@dataclasses.dataclass(frozen=True)
class Bar:
  """A difference with its margin, and as text; None where there is none."""

  label: str
  value: float | None
  margin: float | None
  text: str


@dataclasses.dataclass(frozen=True)
class Plot:
  """Curves or bars.

  Attributes:
    name: of its files.
    x_label, y_label: with units.
    variants: kind of statistics -> its curves; the first one is shown first.
    bars: instead of curves.
    y_range: of the axis; None: what the data need.
    level: a horizontal line, such as a target.
  """

  name: str
  title: str
  x_label: str
  y_label: str
  variants: dict[str, tuple[Curve, ...]] = dataclasses.field(
    default_factory=dict
  )
  bars: tuple[Bar, ...] = ()
  is_log_x: bool = False
  y_range: tuple[float, float] | None = None
  level: float | None = None


@dataclasses.dataclass(frozen=True)
class Cell:
  """A text, and its numbers by name for the CSV files."""

  text: str
  numbers: Mapping[str, float | None] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Table:
  """A row for each group; `name` is of its file."""

  name: str
  title: str
  columns: tuple[str, ...]
  rows: tuple[tuple[Group, tuple[Cell, ...]], ...]


@dataclasses.dataclass(frozen=True)
class Part:
  """A study for one task."""

  task: str
  notes: list[str]
  plots: list[Plot]
  tables: list[Table]


@dataclasses.dataclass(frozen=True)
class Section:
  """A study: what is shown of it, and all its groups."""

  name: str
  title: str
  parts: list[Part]
  groups: list[Group]

  @property
  def outcomes(self) -> list[Outcome]:
    return [o for group in self.groups for o in group.outcomes]

  @property
  def problems(self) -> list[str]:
    """What is missing or damaged in the files of its runs, a line each."""
    found = [group.problems.values() for group in self.groups]
    return [line for lines in sum(map(list, found), []) for line in lines]


def make_section(name: str, runs: Iterable[Run]) -> Section:
  """What is shown of a study.

  Args:
    name: of configs/studies.py.
    runs: of `study_runs.list_runs`.

  Raises:
    UserError: for a name that is not there.
  """
  title, groups_of = find_study(name).title, read_groups(runs)
  parts = []
  for task, groups in groups_of.items():
    make_part = STUDIES.get(name, _any_study)
    part = make_part(f'{name}_{task}', task, groups)
    part.notes.append(_origin(groups))
    parts.append(part)
  return Section(name, title, parts, sum(groups_of.values(), []))


def _origin(groups: Sequence[Group]) -> str:
  """Where accuracies come from, and how long a step is."""
  outcomes = [o for group in groups for o in group.outcomes]
  if not outcomes:
    return 'None of its runs is finished.'
  sizes = sorted({group.config['batch_size'] for group in groups})
  sentences = [
    f'A step is {size} examples, or {size / PAPER_BATCH_SIZE:g} of the '
    f"paper's steps of {PAPER_BATCH_SIZE}."
    if size != PAPER_BATCH_SIZE
    else f"A step is {size} examples, as the paper's."
    for size in sizes
  ]
  followed = sorted({o.result['eval_split'] for o in outcomes})
  final = sorted({o.split for o in outcomes if o.split is not None})
  sentences.append(
    f'Accuracy was followed on {", ".join(followed)}; final accuracies are of '
    f'{", ".join(final) or "no split"}.'
  )
  return ' '.join(sentences)


# Tables.


def _table(
  name: str,
  title: str,
  groups: Sequence[Group],
  columns: dict[str, Callable[[Group], Cell]],
) -> Table:
  rows = tuple(
    (group, tuple(make_cell(group) for make_cell in columns.values()))
    for group in groups
  )
  return Table(name, title, tuple(columns), rows)


def _name(group: Group) -> Cell:
  return Cell(group.name)


def _network(group: Group) -> Cell:
  return Cell(_network_name(group))


def _mean(measure: Measure, digits: int = 2) -> Callable[[Group], Cell]:
  """Of a column: the mean over seeds with its interval."""
  return lambda group: _values_cell(
    group, group.values(measure), group.absence(), digits
  )


def _values_cell(
  group: Group,
  values: Sequence[float],
  absence: str,
  digits: int = 2,
  sign: str = '',
) -> Cell:
  """'87.10 ± 0.30', or the one value; and of how many seeds, if some lack it."""
  if not values:
    return Cell(absence)
  found = mean_interval(values)
  margin = f'± {found.margin:.{digits}f}' if found.count > 1 else '(one seed)'
  text = f'{found.mean:{sign}.{digits}f} {margin}'
  if found.count < group.num_measured:
    text += f', {found.count} of {group.num_measured} seeds'
  return Cell(text, dataclasses.asdict(found))


def _steps(
  target: float | None, statistics: str, unit: float = 1.0
) -> Callable[[Group], Cell]:
  """Of a column: mean, lowest and highest of the steps to a target.

  Args:
    target: accuracy in percent; None: there is none.
    statistics: see `Outcome.followed`.
    unit: what a step counts for.
  """

  def make_cell(group: Group) -> Cell:
    if target is None:
      return Cell('no target')
    steps = group.values(methodcaller('first_step', target, statistics))
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


# Curves.


def mean_points(series: Sequence[Mapping[float, float]]) -> tuple[Point, ...]:
  """x -> value of each seed, as means over those that got so far."""
  points = []
  for x in sorted({x for values in series for x in values}):
    found = [values[x] for values in series if x in values]
    mean = float(np.mean(found))
    points.append(Point(x, mean, min(found), max(found), len(found)))
  return tuple(points)


def _accuracy_curve(group: Group, number: int, statistics: str) -> Curve:
  crosses = tuple(group.values(lambda o: o.diverged_at))
  return Curve(
    group.name,
    colour=number,
    dash=number,
    points=mean_points([o.followed(statistics) for o in group.outcomes]),
    note=group.exception(),
    crosses=crosses,
    breaks=crosses,
  )


def _rate_curves(
  groups: Sequence[Group], measure: Measure, unit: float = 1.0
) -> tuple[Curve, ...]:
  """Means against the learning rate, in units of one; a curve for each network."""
  curves = []
  for name, members in _by_network(groups).items():
    points, crosses, breaks, notes = [], [], [], {}
    for group in sorted(members, key=lambda group: group.rate):
      x, values = group.rate / unit, group.values(measure)
      points += mean_points([{x: value} for value in values])
      crosses += [x] if group.divergence() else []
      breaks += [] if values else [x]
      if group.exception():
        notes.setdefault(group.exception(), []).append(f'{x:g}')
    texts = [f'at {", ".join(at)}: {text}' for text, at in notes.items()]
    number = list(_NETWORKS.values()).index(name)
    curves.append(
      Curve(
        name, number, number, tuple(points), '; '.join(texts),
        crosses=tuple(crosses), breaks=tuple(breaks),
      )
    )  # fmt: skip
  return tuple(curves)


def _network_name(group: Group) -> str:
  return _NETWORKS[group.config['model']['use_batch_norm']]


def _by_network(groups: Sequence[Group]) -> dict[str, list[Group]]:
  networks: dict[str, list[Group]] = {}
  for group in groups:
    networks.setdefault(_network_name(group), []).append(group)
  return networks


# The studies: (name of the files, task, groups) -> `Part`.


def _figure_1(name: str, task: str, groups: Sequence[Group]) -> Part:
  curves = tuple(_accuracy_curve(g, i, MOVING) for i, g in enumerate(groups))
  ends = [curve.points[-1].value for curve in curves if curve.points]
  has_range = min(ends, default=0.0) >= _FIGURE_1_RANGE[0]
  plots = [
    Plot(
      name, f'(a) {task}: accuracy', 'steps', 'accuracy (%)', {MOVING: curves},
      y_range=_FIGURE_1_RANGE if has_range else None,
    )
  ]  # fmt: skip
  for letter, group in zip(ascii_lowercase[1:], groups, strict=False):
    seed = group.outcomes[0].run.seed if group.outcomes else group.runs[0].seed
    title = f'({letter}) {task}, {group.name}: input of a sigmoid, seed {seed}'
    inputs = {MOVING: _percentile_curves(group)}
    plots.append(Plot(f'{name}_{letter}', title, 'steps', 'input', inputs))
  columns = {
    'network': _name,
    'accuracy at the end (%)': _mean(methodcaller('last', MOVING)),
    'best accuracy (%)': _mean(methodcaller('best', MOVING)),
    'at the end, population statistics (%)': _mean(
      methodcaller('final', POPULATION)
    ),
  } | {f'steps to {a} %': _steps(a, MOVING) for a in _FIGURE_1_ACCURACIES}
  table = _table(name, f'{task}: accuracies', groups, columns)
  notes = ['The axis of (a) begins at 70 %.'] if has_range else []
  return Part(task, notes, plots, [table])


def _percentile_curves(group: Group) -> tuple[Curve, ...]:
  records = group.outcomes[0].records if group.outcomes else []
  curves = []
  for i, percentile in enumerate(PERCENTILES):
    name = f'sigmoid_input_p{percentile}'
    values = {
      r['step']: r[name]
      for r in records
      if r['kind'] == 'train' and r.get(name) is not None
    }
    points = mean_points([values])
    note = '' if points else group.absence()
    curves.append(Curve(f'{percentile}th percentile', i, i, points, note))
  return tuple(curves)


def _rates(name: str, task: str, groups: Sequence[Group]) -> Part:
  measure, best_rates, notes = methodcaller('last', MOVING), {}, []
  for network, members in _by_network(groups).items():
    found = [(np.mean(v), g.rate) for g in members if (v := g.values(measure))]
    if found:
      best, best_rates[network] = max(found)
      notes.append(
        f'{network}: the best learning rate is {best_rates[network]:g} '
        f'({best:.2f} % at the end).'
      )

  def choice(group: Group) -> Cell:
    is_best = best_rates.get(_network_name(group)) == group.rate
    return Cell('best' if is_best else '')

  plot = Plot(
    name,
    f'{task}: accuracy at the end of training against the learning rate',
    'learning rate',
    'accuracy (%)',
    {MOVING: _rate_curves(groups, measure)},
    is_log_x=True,
  )
  columns = {
    'network': _network,
    'learning rate': lambda group: Cell(f'{group.rate:g}'),
    'accuracy at the end (%)': _mean(measure),
    'best accuracy (%)': _mean(methodcaller('best', MOVING)),
    'choice': choice,
  }
  table = _table(name, f'{task}: learning rates', groups, columns)
  return Part(task, notes, [plot], [table])


def _figure_2(name: str, task: str, groups: Sequence[Group]) -> Part:
  base, variants, tables, targets = groups[0], {}, [], {}
  kinds = _kinds(groups)
  for kind in kinds:
    found = base.values(methodcaller('best', kind))
    targets[kind] = float(np.mean(found)) if found else None
    curves = [_accuracy_curve(g, i, kind) for i, g in enumerate(groups)]
    variants[kind] = tuple(_mark(c, targets[kind]) for c in curves)
    tables.append(_figure_3(name, task, groups, kind, targets[kind]))
  target, y_range = targets[kinds[0]], None
  note = f'Without {base.name} there is no target.'
  if target is not None:
    note = (
      f'The target is {target:.2f} %: the mean over seeds of the best that '
      f'{base.name} reached. Diamonds: where a mean curve first reaches it. '
      'Steps to the target are of the first evaluation at or above it, as the '
      'mean over the seeds that reached it (lowest–highest).'
    )
    y_range = _range_around(target, variants)
    variants = {
      kind: tuple(_say_if_below(curve, y_range[0]) for curve in curves)
      for kind, curves in variants.items()
    }
  plot = Plot(
    name, f'{task}: validation accuracy', 'steps', 'accuracy (%)', variants,
    y_range=y_range, level=target,
  )  # fmt: skip
  return Part(task, [note], [plot], tables)


def _kinds(groups: Sequence[Group]) -> tuple[str, ...]:
  """Of the statistics with which some run was followed."""
  records = [r for g in groups for o in g.outcomes for r in o.records]
  has_population = any('population_top1' in r for r in records)
  return (POPULATION, MOVING) if has_population else (MOVING,)


def _mark(curve: Curve, target: float | None) -> Curve:
  """Marks where it first reaches the target."""
  if target is None:
    return curve
  mark = next((p for p in curve.points if p.value >= target), None)
  return dataclasses.replace(curve, mark=mark)


def _range_around(
  target: float, variants: Mapping[str, Sequence[Curve]]
) -> tuple[float, float]:
  """Of an axis on which curves near the target can be told apart."""
  curves = [curve for curves in variants.values() for curve in curves]
  highest = max(p.high for curve in curves for p in curve.points)
  lowest = 10.0 * np.floor((target - _FIGURE_2_RANGE) / 10.0)
  return float(max(0.0, lowest)), float(5.0 * np.ceil((highest + 1.0) / 5.0))


def _say_if_below(curve: Curve, bottom: float) -> Curve:
  """Says so in the legend of a curve that an axis does not show."""
  if not curve.points or any(p.high >= bottom for p in curve.points):
    return curve
  best = max(p.high for p in curve.points)
  note = f'below the axis: at most {best:.1f} %'
  note = f'{curve.note}; {note}' if curve.note else note
  return dataclasses.replace(curve, note=note)


def _figure_3(
  name: str,
  task: str,
  groups: Sequence[Group],
  kind: str,
  target: float | None,
) -> Table:
  base = groups[0]
  # All networks of Figure 2 have mini-batches of the same size.
  unit = base.config['batch_size'] / PAPER_BATCH_SIZE

  def paper(group: Group) -> Cell:
    if group.name not in _PAPER:
      return Cell(_NOT_IN_PAPER)
    steps, _ = _PAPER[group.name]
    if steps is None:
      return Cell('never')
    factor = _PAPER['Inception'][0] / steps
    fewer = f' ({factor:.1f} times fewer)' if factor > 1 else ''
    return Cell(f'{steps / 1e6:.1f} million{fewer}', {'steps': steps})

  def factor(group: Group) -> Cell:
    own, of_base = (_steps(target, kind)(g) for g in (group, base))
    if not own.numbers or not of_base.numbers:
      return Cell(own.text if not own.numbers else 'none to compare with')
    value = of_base.numbers['mean'] / own.numbers['mean']
    return Cell(f'{value:.2f}', {'factor': value})

  columns = {
    'network': _name,
    'paper: steps to 72.2 %': paper,
    'paper: best': lambda group: Cell(
      _PAPER.get(group.name, (None, _NOT_IN_PAPER))[1]
    ),
    'steps to the target': _steps(target, kind),
    f'in steps of {PAPER_BATCH_SIZE} examples': _steps(target, kind, unit),
    f'times fewer than {base.name}': factor,
    'best validation accuracy (%)': _mean(methodcaller('best', kind)),
    'final, moving averages (%)': _mean(methodcaller('final', MOVING)),
    'final, population (%)': _mean(methodcaller('final', POPULATION)),
  }
  goal = '' if target is None else f'; the target is {target:.2f} %'
  title = f'{task}: Figure 3 with statistics: {kind}{goal}'
  return _table(f'{name}_{kind.split()[0]}', title, groups, columns)


def _differences(name: str, task: str, groups: Sequence[Group]) -> Part:
  base, others = groups[0], groups[1:]
  final = methodcaller('final', POPULATION)
  found = {
    group.name: paired_differences(group, base, final) for group in others
  }
  intervals = {k: mean_interval(v) for k, v in found.items() if v}

  def resolved(group: Group) -> bool | None:
    interval = intervals.get(group.name)
    return interval and interval.is_resolved

  def difference(group: Group) -> Cell:
    if group is base:
      return Cell('compared with')
    absence = group.absence()
    if group.values(final):  # then it is the other one that has no value
      absence = f'{base.name} {base.absence()}'
    return _values_cell(group, found[group.name], absence, sign='+')

  def verdict(group: Group) -> Cell:
    if group is base:
      return Cell('')
    return Cell({True: 'yes', False: 'no', None: 'unknown'}[resolved(group)])

  def bar(group: Group) -> Bar:
    interval, text = intervals.get(group.name), difference(group).text
    if interval is None:
      return Bar(group.name, None, None, text)
    return Bar(group.name, interval.mean, interval.margin, text)

  notes = [
    f'Differences to {base.name} in final accuracy with population statistics, '
    "paired by seed, with Student's 95 % intervals over seeds; resolved: the "
    f'interval excludes 0. Of {len(others)} intervals, one in twenty misses by '
    'chance. Pale bars: not resolved.'
  ]
  for verdict_value, text in (
    (False, 'This scale cannot resolve: {}.'),
    (None, 'No interval, for want of two pairs of seeds: {}.'),
  ):
    names = [g.name for g in others if resolved(g) is verdict_value]
    notes += [text.format(', '.join(names))] if names else []
  plot = Plot(
    name, f'{task}: difference in final accuracy to {base.name}',
    'percentage points', '', bars=tuple(map(bar, others)),
  )  # fmt: skip
  columns = {
    'network': _name,
    'final accuracy (%)': _mean(final),
    f'minus {base.name} (points)': difference,
    'resolved': verdict,
    'validation loss at the end': _mean(
      methodcaller('last', POPULATION, 'loss'), digits=4
    ),
  }
  table = _table(name, f'{task}: final accuracies', groups, columns)
  return Part(task, notes, [plot], [table])


def _batch_statistics(name: str, task: str, groups: Sequence[Group]) -> Part:
  def gain(outcome: Outcome) -> float | None:
    finals = outcome.final(POPULATION), outcome.final(MOVING)
    return None if None in finals else finals[0] - finals[1]

  curves = tuple(
    dataclasses.replace(
      _accuracy_curve(group, i, kind), label=f'{group.name}, {kind}', dash=dash
    )
    for i, group in enumerate(groups)
    for dash, kind in enumerate((MOVING, POPULATION))
  )
  plot = Plot(
    name,
    f'{task}: validation accuracy with moving averages and population statistics',
    'steps (logarithmic)',
    'accuracy (%)',
    {'both': curves},
    is_log_x=True,
  )
  columns = {
    'examples': _name,
    'final, moving averages (%)': _mean(methodcaller('final', MOVING)),
    'final, population (%)': _mean(methodcaller('final', POPULATION)),
    'population minus moving (points)': lambda group: _values_cell(
      group, group.values(gain), group.absence(), sign='+'
    ),
  }
  table = _table(name, f'{task}: final accuracies', groups, columns)
  return Part(task, [], [plot], [table])


def _learning_rates(name: str, task: str, groups: Sequence[Group]) -> Part:
  unit = min(group.rate for group in groups)
  final = methodcaller('final', POPULATION)
  plot = Plot(
    name,
    f'{task}: final accuracy against the learning rate',
    f'learning rate / {unit:g}',
    'accuracy (%)',
    {POPULATION: _rate_curves(groups, final, unit)},
    is_log_x=True,
  )
  columns = {
    'network': _network,
    'arm': _name,
    'factor': lambda group: Cell(f'{group.rate / unit:g}'),
    'final accuracy (%)': _mean(final),
    'best validation accuracy (%)': _mean(methodcaller('best', POPULATION)),
  }
  notes = ['Crosses at the foot: rates at which a run diverged.']
  table = _table(name, f'{task}: final accuracies', groups, columns)
  return Part(task, notes, [plot], [table])


def _any_study(name: str, task: str, groups: Sequence[Group]) -> Part:
  """Curves, and accuracies of each arm: all that needs no knowledge of a study."""
  variants = {
    kind: tuple(_accuracy_curve(g, i, kind) for i, g in enumerate(groups))
    for kind in _kinds(groups)
  }
  plot = Plot(
    name, f'{task}: validation accuracy', 'steps', 'accuracy (%)', variants
  )
  columns = {'arm': _name}
  for kind in variants:
    columns |= {
      f'validation at the end, {kind} (%)': _mean(methodcaller('last', kind)),
      f'best validation, {kind} (%)': _mean(methodcaller('best', kind)),
    }
  columns |= {
    f'final, {kind} (%)': _mean(methodcaller('final', kind))
    for kind in (MOVING, POPULATION)
  }
  table = _table(name, f'{task}: accuracies', groups, columns)
  return Part(task, [], [plot], [table])


STUDIES: dict[str, Callable[[str, str, Sequence[Group]], Part]] = {
  'figure1': _figure_1,
  'figure1_small_rates': _figure_1,
  'figure2': _figure_2,
  'leave_one_out': _differences,
  'add_one_in': _differences,
  'batch_statistics': _batch_statistics,
  'learning_rates': _learning_rates,
  'figure1_rates': _rates,
  'base_rate': _rates,
}

"""The sections of the report: one function for each kind.

A study of configs/studies.py names the kind of its section. If a run is missing or diverged, the
report says so in place of the number.
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from string import ascii_lowercase
from types import MappingProxyType

import numpy as np

from bn_inception.metrics import MOVING, PERCENTILES, POPULATION
from bn_inception.optimizer import PAPER_BATCH_SIZE
from bn_inception.study.cells import (
  make_table,
  mean_column,
  name_cell,
  network_cell,
  steps_column,
  values_cell,
)
from bn_inception.study.plots import (
  FILE_SUFFIXES,
  Bar,
  Cell,
  Curve,
  Part,
  Plot,
  Section,
  Table,
  accuracy_curve,
  by_network,
  mean_points,
  rate_curves,
)
from bn_inception.study.results import (
  Group,
  Outcome,
  Source,
  best,
  final,
  last,
  mean_interval,
  paired_differences,
  read_groups,
)
from bn_inception.study.runs import Run, find_study
from bn_inception.wording import count

_FIGURE_1_ACCURACIES = 80, 90, 95, 97, 98
_FIGURE_1_RANGE = 70.0, 100.0
_FIGURE_2_RANGE = 25.0  # below the target: the paper's axis begins at 40 %


def make_section(
  name: str,
  runs: Iterable[Run],
  archive: Mapping[str, Source] = MappingProxyType({}),
) -> Section:
  """The section of a study.

  Args:
    name: name of a study of configs/studies.py.
    runs: from `runs.list_runs`.
    archive: see `results.read_groups`.

  Raises:
    UserError: if there is no study of this name.
  """
  study = find_study(name)
  papers = {arm.name: arm.paper for arm in study.arms}
  groups_of = read_groups(runs, papers, archive)
  parts = []
  for task, groups in groups_of.items():
    part = SECTIONS[study.section](f'{name}_{task}', task, groups)
    part.notes.append(_origin(groups))
    parts.append(part)
  return Section(name, study.title, parts, sum(groups_of.values(), []))


def _origin(groups: Sequence[Group]) -> str:
  """Says which splits were evaluated, and how many examples a step has."""
  outcomes = [o for group in groups for o in group.outcomes]
  if not outcomes:
    return 'None of its runs is finished.'
  sizes = sorted({group.config['batch_size'] for group in groups})
  sentences = [
    f'A step is {count(size, "example")}, or {size / PAPER_BATCH_SIZE:g} of the '
    f"paper's steps of {PAPER_BATCH_SIZE}."
    if size != PAPER_BATCH_SIZE
    else f"A step is {size} examples, as the paper's."
    for size in sizes
  ]
  followed = sorted({o.result['eval_split'] for o in outcomes})
  splits = sorted({o.split for o in outcomes if o.split is not None})
  sentences.append(
    f'Accuracy was followed on {", ".join(followed)}; final accuracies are of '
    f'{", ".join(splits) or "no split"}.'
  )
  return ' '.join(sentences)


def _figure_1(name: str, task: str, groups: Sequence[Group]) -> Part:
  """Accuracy curves, and the percentiles of a sigmoid's input."""
  curves = tuple(accuracy_curve(g, i, MOVING) for i, g in enumerate(groups))
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
    'network': name_cell,
    'accuracy at the end (%)': mean_column(last(MOVING)),
    'best accuracy (%)': mean_column(best(MOVING)),
    'at the end, population statistics (%)': mean_column(final(POPULATION)),
  } | {f'steps to {a} %': steps_column(a, MOVING) for a in _FIGURE_1_ACCURACIES}
  table = make_table(name, f'{task}: accuracies', groups, columns)
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


def _rate_search(name: str, task: str, groups: Sequence[Group]) -> Part:
  """The accuracy at each learning rate, and the best rate of each network."""
  measure, best_rates, notes = last(MOVING), {}, []
  for network, members in by_network(groups).items():
    found = [(np.mean(v), g.rate) for g in members if (v := g.values(measure))]
    if found:
      accuracy, best_rates[network] = max(found)
      notes.append(
        f'{network}: the best learning rate is {best_rates[network]:g} '
        f'({accuracy:.2f} % at the end).'
      )

  def choice(group: Group) -> Cell:
    is_best = best_rates.get(group.network) == group.rate
    return Cell('best' if is_best else '')

  plot = Plot(
    name,
    f'{task}: accuracy at the end of training against the learning rate',
    'learning rate',
    'accuracy (%)',
    {MOVING: rate_curves(groups, measure)},
    is_log_x=True,
  )
  columns = {
    'network': network_cell,
    'learning rate': lambda group: Cell(f'{group.rate:g}'),
    'accuracy at the end (%)': mean_column(measure),
    'best accuracy (%)': mean_column(best(MOVING)),
    'choice': choice,
  }
  table = make_table(name, f'{task}: learning rates', groups, columns)
  return Part(task, notes, [plot], [table])


def _figure_2(name: str, task: str, groups: Sequence[Group]) -> Part:
  """Accuracy curves, and the steps to the best accuracy of the first arm."""
  base, variants, tables, targets = groups[0], {}, [], {}
  kinds = _kinds(groups)
  for kind in kinds:
    found = base.values(best(kind))
    targets[kind] = float(np.mean(found)) if found else None
    curves = [accuracy_curve(g, i, kind) for i, g in enumerate(groups)]
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
  """The kinds of statistics that were evaluated while some run trained."""
  records = [r for g in groups for o in g.outcomes for r in o.records]
  has_population = any('population_top1' in r for r in records)
  return (POPULATION, MOVING) if has_population else (MOVING,)


def _mark(curve: Curve, target: float | None) -> Curve:
  """Marks the first point at or above the target."""
  if target is None:
    return curve
  mark = next((p for p in curve.points if p.value >= target), None)
  return dataclasses.replace(curve, mark=mark)


def _range_around(
  target: float, variants: Mapping[str, Sequence[Curve]]
) -> tuple[float, float]:
  """The range of an axis that keeps the curves near the target apart."""
  curves = [curve for curves in variants.values() for curve in curves]
  highest = max(p.high for curve in curves for p in curve.points)
  lowest = 10.0 * np.floor((target - _FIGURE_2_RANGE) / 10.0)
  return float(max(0.0, lowest)), float(5.0 * np.ceil((highest + 1.0) / 5.0))


def _say_if_below(curve: Curve, bottom: float) -> Curve:
  """Notes in the legend that a curve lies below the axis."""
  if not curve.points or any(p.high >= bottom for p in curve.points):
    return curve
  highest = max(p.high for p in curve.points)
  note = f'below the axis: at most {highest:.1f} %'
  note = f'{curve.note}; {note}' if curve.note else note
  return dataclasses.replace(curve, note=note)


def _figure_3(
  name: str,
  task: str,
  groups: Sequence[Group],
  kind: str,
  target: float | None,
) -> Table:
  """Steps to the target with one kind of statistics, next to the paper's."""
  base = groups[0]
  # All networks of Figure 2 have mini-batches of the same size.
  unit = base.config['batch_size'] / PAPER_BATCH_SIZE

  def paper_steps(group: Group) -> Cell:
    paper = group.paper
    if paper is None:
      return Cell('not in the paper')
    if paper.steps is None:
      return Cell('never')
    text = f'{paper.steps / 1e6:.1f} million'
    if base.paper and base.paper.steps and base.paper.steps > paper.steps:
      text += f' ({base.paper.steps / paper.steps:.1f} times fewer)'
    return Cell(text, {'steps': paper.steps})

  def paper_best(group: Group) -> Cell:
    return Cell(group.paper.best if group.paper else 'not in the paper')

  def factor(group: Group) -> Cell:
    own, of_base = (steps_column(target, kind)(g) for g in (group, base))
    if not own.numbers or not of_base.numbers:
      return Cell(own.text if not own.numbers else 'none to compare with')
    value = of_base.numbers['mean'] / own.numbers['mean']
    return Cell(f'{value:.2f}', {'factor': value})

  columns = {
    'network': name_cell,
    'paper: steps to 72.2 %': paper_steps,
    'paper: best': paper_best,
    'steps to the target': steps_column(target, kind),
    f'in steps of {PAPER_BATCH_SIZE} examples': steps_column(
      target, kind, unit
    ),
    f'times fewer than {base.name}': factor,
    'best validation accuracy (%)': mean_column(best(kind)),
    'final, moving averages (%)': mean_column(final(MOVING)),
    'final, population (%)': mean_column(final(POPULATION)),
  }
  goal = '' if target is None else f'; the target is {target:.2f} %'
  title = f'{task}: Figure 3 with statistics: {kind}{goal}'
  return make_table(f'{name}_{FILE_SUFFIXES[kind]}', title, groups, columns)


def _differences(name: str, task: str, groups: Sequence[Group]) -> Part:
  """Differences in final accuracy to the first arm, paired by seed."""
  base, others = groups[0], groups[1:]
  found = {
    group.name: paired_differences(group, base, final(POPULATION))
    for group in others
  }
  intervals = {k: mean_interval(v) for k, v in found.items() if v}

  def resolved(group: Group) -> bool | None:
    interval = intervals.get(group.name)
    return interval and interval.is_resolved

  def difference(group: Group) -> Cell:
    if group is base:
      return Cell('compared with')
    is_measured = bool(group.values(final(POPULATION)))
    absence = (
      f'{base.name} {base.absence()}' if is_measured else group.absence()
    )
    return values_cell(group, found[group.name], absence, sign='+')

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
    (None, 'No interval, since there are fewer than two pairs of seeds: {}.'),
  ):
    names = [g.name for g in others if resolved(g) is verdict_value]
    notes += [text.format(', '.join(names))] if names else []
  plot = Plot(
    name, f'{task}: difference in final accuracy to {base.name}',
    'percentage points', '', bars=tuple(map(bar, others)),
  )  # fmt: skip
  columns = {
    'network': name_cell,
    'final accuracy (%)': mean_column(final(POPULATION)),
    f'minus {base.name} (points)': difference,
    'resolved': verdict,
    'validation loss at the end': mean_column(
      last(POPULATION, 'loss'), digits=4
    ),
  }
  table = make_table(name, f'{task}: final accuracies', groups, columns)
  return Part(task, notes, [plot], [table])


def _batch_statistics(name: str, task: str, groups: Sequence[Group]) -> Part:
  """Accuracy with moving averages and with population statistics."""

  def gain(outcome: Outcome) -> float | None:
    finals = outcome.final(POPULATION), outcome.final(MOVING)
    return None if None in finals else finals[0] - finals[1]

  curves = tuple(
    dataclasses.replace(
      accuracy_curve(group, i, kind), label=f'{group.name}, {kind}', dash=dash
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
    'examples': name_cell,
    'final, moving averages (%)': mean_column(final(MOVING)),
    'final, population (%)': mean_column(final(POPULATION)),
    'population minus moving (points)': lambda group: values_cell(
      group, group.values(gain), group.absence(), sign='+'
    ),
  }
  table = make_table(name, f'{task}: final accuracies', groups, columns)
  return Part(task, [], [plot], [table])


def _learning_rates(name: str, task: str, groups: Sequence[Group]) -> Part:
  """The final accuracy against multiples of the lowest learning rate."""
  unit = min(group.rate for group in groups)
  plot = Plot(
    name,
    f'{task}: final accuracy against the learning rate',
    f'learning rate / {unit:g}',
    'accuracy (%)',
    {POPULATION: rate_curves(groups, final(POPULATION), unit)},
    is_log_x=True,
  )
  columns = {
    'network': network_cell,
    'arm': name_cell,
    'factor': lambda group: Cell(f'{group.rate / unit:g}'),
    'final accuracy (%)': mean_column(final(POPULATION)),
    'best validation accuracy (%)': mean_column(best(POPULATION)),
  }
  notes = ['Crosses at the foot: rates at which a run diverged.']
  table = make_table(name, f'{task}: final accuracies', groups, columns)
  return Part(task, notes, [plot], [table])


def _accuracies(name: str, task: str, groups: Sequence[Group]) -> Part:
  """Curves and accuracies of each arm, for a study without a section of its own."""
  variants = {
    kind: tuple(accuracy_curve(g, i, kind) for i, g in enumerate(groups))
    for kind in _kinds(groups)
  }
  plot = Plot(
    name, f'{task}: validation accuracy', 'steps', 'accuracy (%)', variants
  )
  columns = {'arm': name_cell}
  for kind in variants:
    columns |= {
      f'validation at the end, {kind} (%)': mean_column(last(kind)),
      f'best validation, {kind} (%)': mean_column(best(kind)),
    }
  columns |= {
    f'final, {kind} (%)': mean_column(final(kind))
    for kind in (MOVING, POPULATION)
  }
  table = make_table(name, f'{task}: accuracies', groups, columns)
  return Part(task, [], [plot], [table])


# `Study.section` -> function of a name for files, the task and the groups.
SECTIONS: dict[str, Callable[[str, str, Sequence[Group]], Part]] = {
  'figure_1': _figure_1,
  'figure_2': _figure_2,
  'differences': _differences,
  'batch_statistics': _batch_statistics,
  'learning_rates': _learning_rates,
  'rate_search': _rate_search,
  'accuracies': _accuracies,
}

"""Curves, bars and tables of the report as data, and curves of runs.

figures.py draws them, and page.py writes the page.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from bn_inception.metrics import MOVING, POPULATION
from bn_inception.study.results import NETWORKS, Group, Measure, Outcome

# Kind of statistics -> its name in file names.
FILE_SUFFIXES = {MOVING: 'moving', POPULATION: 'population'}


@dataclasses.dataclass(frozen=True)
class Point:
  """A mean over seeds at x, with the lowest and the highest value."""

  x: float
  value: float
  low: float
  high: float
  count: int


@dataclasses.dataclass(frozen=True)
class Curve:
  """A line of a plot.

  Attributes:
    label: name in the legend.
    colour, dash: indices into the palettes of the figures.
    points: sorted by x.
    note: follows `label` in the legend: what is missing or diverged.
    mark: a highlighted point.
    crosses: x of divergences, which have no value.
    breaks: x at which the line is interrupted, because other seeds, or none, have
      points from there on.
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
  """A difference with its margin, and both as text; None if not measured."""

  label: str
  value: float | None
  margin: float | None
  text: str


@dataclasses.dataclass(frozen=True)
class Plot:
  """Curves or bars.

  Attributes:
    name: name of its files.
    title: title above it.
    x_label, y_label: labels of the axes, with units.
    variants: kind of statistics -> its curves; the first one is shown first.
    bars: the bars, instead of curves.
    is_log_x: whether the horizontal axis is logarithmic.
    y_range: range of the vertical axis; None: fits the data.
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
  """A text, and named numbers for the CSV files."""

  text: str
  numbers: Mapping[str, float | None] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Table:
  """A row for each group; `name` is that of its file."""

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
  """A section of the report: the parts of a study, and all its groups."""

  name: str
  title: str
  parts: list[Part]
  groups: list[Group]

  @property
  def outcomes(self) -> list[Outcome]:
    return [o for group in self.groups for o in group.outcomes]

  @property
  def problems(self) -> list[str]:
    """One line for each missing or damaged file or number of its runs."""
    found = [group.problems.values() for group in self.groups]
    return [line for lines in sum(map(list, found), []) for line in lines]


def mean_points(series: Sequence[Mapping[float, float]]) -> tuple[Point, ...]:
  """The mean at each x over the seeds that have a value there.

  Args:
    series: x -> value, for each seed.
  """
  points = []
  for x in sorted({x for values in series for x in values}):
    found = [values[x] for values in series if x in values]
    mean = float(np.mean(found))
    points.append(Point(x, mean, min(found), max(found), len(found)))
  return tuple(points)


def accuracy_curve(group: Group, number: int, statistics: str) -> Curve:
  """Accuracy against steps, in the colour and dashes of this number."""
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


def rate_curves(
  groups: Sequence[Group], measure: Measure, unit: float = 1.0
) -> tuple[Curve, ...]:
  """Means against the learning rate, one curve with BN and one without.

  Args:
    groups: runs that differ in the learning rate.
    measure: the number to average over seeds.
    unit: the learning rate at 1 on the axis.
  """
  curves = []
  for name, members in by_network(groups).items():
    points, crosses, breaks, notes = [], [], [], {}
    for group in sorted(members, key=lambda group: group.rate):
      x, values = group.rate / unit, group.values(measure)
      points += mean_points([{x: value} for value in values])
      crosses += [x] if group.divergence() else []
      breaks += [] if values else [x]
      if group.exception():
        notes.setdefault(group.exception(), []).append(f'{x:g}')
    texts = [f'at {", ".join(at)}: {text}' for text, at in notes.items()]
    number = list(NETWORKS.values()).index(name)
    curves.append(
      Curve(
        name, number, number, tuple(points), '; '.join(texts),
        crosses=tuple(crosses), breaks=tuple(breaks),
      )
    )  # fmt: skip
  return tuple(curves)


def by_network(groups: Sequence[Group]) -> dict[str, list[Group]]:
  """'with BN' and 'without BN' -> their groups."""
  networks: dict[str, list[Group]] = {}
  for group in groups:
    networks.setdefault(group.network, []).append(group)
  return networks

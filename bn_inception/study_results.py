"""What the runs of a study found, seed by seed, and intervals over seeds.

Only finished runs count.
"""

import dataclasses
import os
from collections.abc import Callable, Iterable, Sequence

import numpy as np
from scipy import stats

from bn_inception.evaluation import NONE, POPULATION
from bn_inception.study_runs import FINISHED, Run

CONFIDENCE = 0.95
# What `Group.values` takes from a run: a number, or None where there is none.
Measure = Callable[['Outcome'], float | None]


@dataclasses.dataclass(frozen=True)
class Outcome:
  """A finished run, as it was read."""

  run: Run
  result: dict
  evaluation: dict | None
  records: list[dict]

  @property
  def folder_name(self) -> str:
    return os.path.basename(self.run.folder)

  @property
  def diverged_at(self) -> int | None:
    return self.result['first_nonfinite_step']

  def followed(self, statistics: str, name: str = 'top1') -> dict[int, float]:
    """Step -> top-1 in percent, or loss, of all evaluations while it trained.

    Where population statistics were not taken, the others stand in.
    """
    values = {
      record['step']: _value(record, statistics, name)
      for record in self.records
      if record['kind'] == 'eval'
    }
    return {step: v for step, v in values.items() if v is not None}

  def last(self, statistics: str, name: str = 'top1') -> float | None:
    """Of the last evaluation; None if it was not finite, or the run diverged."""
    evals = [r for r in self.records if r['kind'] == 'eval']
    if not evals or self.diverged_at is not None:
      return None
    return _value(evals[-1], statistics, name)

  def best(self, statistics: str) -> float | None:
    return max(self.followed(statistics).values(), default=None)

  def final(self, statistics: str) -> float | None:
    """Top-1 of evaluation.json in percent; None after a divergence."""
    if self.diverged_at is not None:
      return None
    results = self.evaluation['results']
    result = results.get(statistics) or results.get(NONE)
    return result and result['top1']

  def first_step(self, target: float, statistics: str) -> int | None:
    """Of the first evaluation at or above the target."""
    followed = self.followed(statistics).items()
    return next((step for step, value in followed if value >= target), None)


def _value(record: dict, statistics: str, name: str) -> float | None:
  prefix = 'population_' if statistics == POPULATION else ''
  return record.get(f'{prefix}{name}', record[name])


@dataclasses.dataclass(frozen=True)
class Group:
  """The runs of one arm for one task, one for each seed.

  Attributes:
    name: of the arm.
    runs: all of them.
    outcomes: of those that are finished.
  """

  name: str
  runs: tuple[Run, ...]
  outcomes: tuple[Outcome, ...]

  @property
  def config(self) -> dict:
    return self.runs[0].config

  @property
  def rate(self) -> float:
    return self.config['optimizer']['learning_rate']

  def divergence(self) -> str:
    """'diverged at step 41', of how many seeds; '' if none did."""
    steps = [o.diverged_at for o in self.outcomes if o.diverged_at is not None]
    if not steps:
      return ''
    distinct = [f'{step:,}' for step in sorted(set(steps))]
    text = f'diverged at step{"s" * (len(distinct) > 1)} {", ".join(distinct)}'
    is_all = len(steps) == len(self.runs)
    return text if is_all else f'{len(steps)} of {len(self.runs)} {text}'

  def state(self) -> str:
    """'3 runs', '2 of 3 runs' or 'not run', and what diverged."""
    done, total = len(self.outcomes), len(self.runs)
    if done == 0:
      return 'not run'
    text = f'{done} of {total} runs' if done < total else f'{total} runs'
    text = '1 run' if (done, total) == (1, 1) else text
    return '; '.join(filter(None, (text, self.divergence())))

  def exception(self) -> str:
    """What is missing or diverged; '' if nothing."""
    is_whole = len(self.outcomes) == len(self.runs)
    return self.divergence() if is_whole else self.state()

  def absence(self) -> str:
    """What stands in place of a number."""
    if not self.outcomes:
      return 'not run'
    return self.divergence() or 'not measured'

  def values(self, measure: Measure) -> list[float]:
    """Of the seeds that have one."""
    found = map(measure, self.outcomes)
    return [value for value in found if value is not None]


def read_groups(runs: Iterable[Run]) -> dict[str, list[Group]]:
  """Task -> its groups, arm by arm, of what `study_runs.list_runs` returns."""
  by_arm: dict[str, dict[str, list[Run]]] = {}
  for run in runs:
    by_arm.setdefault(run.task, {}).setdefault(run.arm, []).append(run)
  return {
    task: [
      Group(name, tuple(arm), tuple(filter(None, map(_read, arm))))
      for name, arm in arms.items()
    ]
    for task, arms in by_arm.items()
  }


def _read(run: Run) -> Outcome | None:
  if run.status() != FINISHED:
    return None
  return Outcome(run, run.result(), run.evaluation(), run.records())


@dataclasses.dataclass(frozen=True)
class Interval:
  """A mean over seeds, plus or minus a margin; None for fewer than two."""

  mean: float
  margin: float | None
  count: int

  @property
  def is_resolved(self) -> bool | None:
    """Whether it excludes zero; None where there is no interval."""
    return None if self.margin is None else abs(self.mean) > self.margin


def mean_interval(values: Sequence[float]) -> Interval:
  """The mean, and Student's 95 % interval of it, of one value or more."""
  count = len(values)
  if count < 2:
    return Interval(float(values[0]), None, count)
  quantile = stats.t.ppf((1 + CONFIDENCE) / 2, count - 1)
  margin = quantile * np.std(values, ddof=1) / np.sqrt(count)
  return Interval(float(np.mean(values)), float(margin), count)


def paired_differences(
  group: Group, base: Group, measure: Measure
) -> list[float]:
  """`group` minus `base`, of the seeds for which both have a value."""
  of_base = {o.run.seed: measure(o) for o in base.outcomes}
  pairs = ((measure(o), of_base.get(o.run.seed)) for o in group.outcomes)
  return [a - b for a, b in pairs if a is not None and b is not None]

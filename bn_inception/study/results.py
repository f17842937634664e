"""What the runs of a study found, seed by seed, and intervals over seeds.

Only finished runs count. What is missing or damaged in their files is named, and
no number is taken from there.
"""

import dataclasses
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
from scipy import stats

from bn_inception.errors import UserError
from bn_inception.metrics import MOVING, NONE, POPULATION
from bn_inception.runs import json_files, run_directory
from bn_inception.runs.logbook import METRICS_FILE
from bn_inception.study.runs import EVALUATION_FILE, FINISHED, Run, values_hash

CONFIDENCE = 0.95
# What `Group.values` takes from a run: a number, or None where there is none.
Measure = Callable[['Outcome'], float | None]

# Of result.json and metrics.jsonl, in percent.
_ACCURACIES = {
  'top1', 'top5', 'max_top1', 'population_top1', 'population_top5',
  'max_population_top1',
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Outcome:
  """A finished run, as it was read.

  Attributes:
    run: which.
    result: of result.json.
    split: of the final evaluation; None: there is none.
    finals: kind of statistics -> top-1 of evaluation.json in percent.
    records: of metrics.jsonl; a number that is not finite is None.
  """

  run: Run
  result: dict
  split: str | None
  finals: dict[str, float]
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
    key = self._key(statistics, name)
    values = {r['step']: r.get(key) for r in self._evaluations()}
    return {step: v for step, v in values.items() if v is not None}

  def last(self, statistics: str, name: str = 'top1') -> float | None:
    """Of the last evaluation; None if it was not finite, or the run diverged."""
    evaluations = self._evaluations()
    if not evaluations or self.diverged_at is not None:
      return None
    return evaluations[-1].get(self._key(statistics, name))

  def _evaluations(self) -> list[dict]:
    return [record for record in self.records if record['kind'] == 'eval']

  def _key(self, statistics: str, name: str) -> str:
    key = f'population_{name}'
    was_taken = any(key in record for record in self._evaluations())
    return key if statistics == POPULATION and was_taken else name

  def best(self, statistics: str) -> float | None:
    return max(self.followed(statistics).values(), default=None)

  def final(self, statistics: str) -> float | None:
    """Top-1 of evaluation.json in percent; None after a divergence."""
    return self.finals.get(statistics, self.finals.get(NONE))

  def first_step(self, target: float, statistics: str) -> int | None:
    """Of the first evaluation at or above the target."""
    followed = self.followed(statistics).items()
    return next((step for step, value in followed if value >= target), None)


@dataclasses.dataclass(frozen=True)
class Group:
  """The runs of one arm for one task, one for each seed.

  Attributes:
    name: of the arm.
    runs: all of them.
    outcomes: of those that are finished, and can be read.
    problems: seed -> what is missing or damaged in its files, a line each.
  """

  name: str
  runs: tuple[Run, ...]
  outcomes: tuple[Outcome, ...]
  problems: Mapping[int, Sequence[str]] = dataclasses.field(
    default_factory=dict
  )

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
    """'3 runs', '2 of 3 runs' or 'not run', and what diverged or lacks files."""
    done, total = len(self.outcomes), len(self.runs)
    if done == 0 and not self.problems:
      return 'not run'
    text = f'{done} of {total} runs' if done < total else f'{total} runs'
    text = '1 run' if (done, total) == (1, 1) else text
    problems = f'{len(self.problems)} damaged' if self.problems else ''
    return '; '.join(filter(None, (text, self.divergence(), problems)))

  def exception(self) -> str:
    """What is missing, damaged or diverged; '' if nothing."""
    is_whole = len(self.outcomes) == len(self.runs) and not self.problems
    return self.divergence() if is_whole else self.state()

  def absence(self) -> str:
    """What stands in place of a number."""
    if not self.outcomes:
      return 'damaged' if self.problems else 'not run'
    return self.divergence() or 'not measured'

  @property
  def num_measured(self) -> int:
    """Seeds that should have every number: finished, and not diverged."""
    return sum(outcome.diverged_at is None for outcome in self.outcomes)

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
    task: [_read_group(name, arm) for name, arm in arms.items()]
    for task, arms in by_arm.items()
  }


def _read_group(name: str, runs: Sequence[Run]) -> Group:
  outcomes, problems = [], {}
  for run in runs:
    outcome, found = read_outcome(run)
    outcomes += [outcome] if outcome else []
    if found:
      problems[run.seed] = found
  return Group(name, tuple(runs), tuple(outcomes), problems)


def read_outcome(run: Run) -> tuple[Outcome | None, list[str]]:
  """A finished run, and what is missing or damaged in its files, a line each.

  There is no outcome of a run that is not finished, or whose config.json or
  result.json is damaged.
  """
  problems = []
  try:
    if run.status() != FINISHED:
      return None, []
    result = run.result()
    problems += _check_config(run) + _check_result(run, result)
  except UserError as error:
    problems.append(str(error))
  if problems:
    return None, problems
  records, split, finals = [], None, {}
  try:
    records = _read_records(run, result)
  except UserError as error:
    problems.append(str(error))
  try:
    if not result['diverged']:
      split, finals, lacking = _read_finals(run)
      problems += lacking
  except UserError as error:
    problems.append(str(error))
  return Outcome(run, result, split, finals, records), problems


def _check_config(run: Run) -> list[str]:
  path = run.path(run_directory.CONFIG_FILE)
  if values_hash(json_files.read_json(path)) == values_hash(run.config):
    return []
  return [f'{path} has other values than the run that its folder is named for']


def _check_result(run: Run, result: dict) -> list[str]:
  """What a report needs of it, and is not there."""
  steps, bad_step = result.get('steps'), result.get('first_nonfinite_step')
  is_valid = {
    'steps': isinstance(steps, int),
    'first_nonfinite_step': isinstance(bad_step, int) == result['diverged'],
    'wall_seconds': _number(result.get('wall_seconds')) is not None,
    'eval_split': isinstance(result.get('eval_split'), str),
    **{key: _may_be_accuracy(result.get(key)) for key in _ACCURACIES},
  }
  path = run.path(run_directory.RESULT_FILE)
  return [
    f"{path} is damaged ('{key}' is {result.get(key, 'missing')})"
    for key in is_valid
    if not is_valid[key]
  ]


def _read_records(run: Run, result: dict) -> list[dict]:
  """The records of the whole run.

  Raises:
    UserError: if some are missing: numbers of the others would be of an earlier
      step; or if an accuracy is none.
  """
  records = run.records()
  path = run.path(METRICS_FILE)
  if not records:
    raise UserError(f'{path} is missing or empty')
  kind = 'train' if result['diverged'] else 'eval'
  end = max((r['step'] for r in records if r['kind'] == kind), default=0)
  if end < result['steps']:
    raise UserError(
      f'{path} was cut short: it ends at step {end} of {result["steps"]}'
    )
  for record in records:
    for key in _ACCURACIES & record.keys():
      if not _may_be_accuracy(record[key]):
        raise UserError(
          f"{path} is damaged ('{key}' is {record[key]} at step {record['step']})"
        )
  return [
    {
      key: value if key == 'kind' else _number(value)
      for key, value in record.items()
    }
    for record in records
  ]


def _read_finals(run: Run) -> tuple[str | None, dict[str, float], list[str]]:
  """Split and accuracies of evaluation.json, and what is not there."""
  evaluation, path = run.evaluation(), run.path(EVALUATION_FILE)
  has_batch_norm = run.config['model']['use_batch_norm']
  results, split = evaluation.get('results'), evaluation.get('split')
  finals, problems = {}, []
  for kind in (MOVING, POPULATION) if has_batch_norm else (NONE,):
    found = results.get(kind) if isinstance(results, dict) else None
    top1 = _number(found.get('top1')) if isinstance(found, dict) else None
    if not _may_be_accuracy(top1):
      problems.append(
        f"{path} is damaged ('top1' is {top1} with statistics: {kind})"
      )
    elif top1 is None:
      problems.append(f'{path} lacks top1 with statistics: {kind}')
    else:
      finals[kind] = top1
  if not isinstance(split, str):
    split, problems = None, [*problems, f'{path} lacks the split']
  return split, finals, problems


def _number(value) -> float | None:
  """A finite number, or None."""
  is_number = isinstance(value, int | float) and not isinstance(value, bool)
  return value if is_number and math.isfinite(value) else None


def _may_be_accuracy(value) -> bool:
  """Whether it is in percent; what is no number is told, or skipped, elsewhere."""
  number = _number(value)
  return number is None or 0 <= number <= 100


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

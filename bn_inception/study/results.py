"""The results of the runs of a study, seed by seed, and intervals over seeds.

Only finished runs count. Missing and damaged files are named, and no number is
taken from them.
"""

import dataclasses
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Protocol

import numpy as np
from scipy import stats

from bn_inception.errors import UserError
from bn_inception.metrics import MOVING, NONE, POPULATION
from bn_inception.programs.presets import studies
from bn_inception.runs import json_files, run_directory
from bn_inception.runs.logbook import METRICS_FILE
from bn_inception.study.runs import EVALUATION_FILE, FINISHED, Run, values_hash

CONFIDENCE = 0.95
NETWORKS = {False: 'without BN', True: 'with BN'}
# A number of a run; None if it has none.
Measure = Callable[['Outcome'], float | None]

# Keys of result.json and metrics.jsonl with percentages.
_ACCURACIES = {
  'top1', 'top5', 'max_top1', 'population_top1', 'population_top5',
  'max_population_top1',
}  # fmt: skip


def last(statistics: str, name: str = 'top1') -> Measure:
  """See `Outcome.last`."""
  return lambda outcome: outcome.last(statistics, name)


def best(statistics: str) -> Measure:
  """See `Outcome.best`."""
  return lambda outcome: outcome.best(statistics)


def final(statistics: str) -> Measure:
  """See `Outcome.final`."""
  return lambda outcome: outcome.final(statistics)


class Source(Protocol):
  """The contents of a run's files, wherever they are stored.

  Every method but `place` raises UserError if the file is absent or damaged.
  """

  def is_finished(self) -> bool: ...

  def config(self) -> dict: ...

  def result(self) -> dict: ...

  def evaluation(self) -> dict | None:
    """The content of evaluation.json; None if there is none."""

  def records(self) -> list[dict]:
    """The lines of metrics.jsonl."""

  def manifest(self) -> dict: ...

  def place(self, name: str) -> str:
    """Where a file of the run is stored, for messages."""


@dataclasses.dataclass(frozen=True)
class RunFolder:
  """A `Source`: the run directory itself."""

  run: Run

  def is_finished(self) -> bool:
    return self.run.status() == FINISHED

  def config(self) -> dict:
    return json_files.read_json(self.place(run_directory.CONFIG_FILE))

  def result(self) -> dict:
    return self.run.result()

  def evaluation(self) -> dict | None:
    return self.run.evaluation()

  def records(self) -> list[dict]:
    return self.run.records()

  def manifest(self) -> dict:
    path = self.place(run_directory.MANIFEST_FILE)
    return json_files.read_json(path, 'restore it')

  def place(self, name: str) -> str:
    return self.run.path(name)


@dataclasses.dataclass(frozen=True)
class Outcome:
  """The contents of a finished run's files.

  Attributes:
    run: the run.
    config: content of config.json.
    result: content of result.json.
    evaluation: content of evaluation.json; None if there is none.
    finals: kind of statistics -> top-1 of evaluation.json in percent.
    records: lines of metrics.jsonl; numbers that are not finite are None.
    starts: the starts recorded in manifest.json.
  """

  run: Run
  config: dict
  result: dict
  evaluation: dict | None
  finals: dict[str, float]
  records: list[dict]
  starts: list[dict]

  @property
  def name(self) -> str:
    return os.path.basename(self.run.folder)

  @property
  def split(self) -> str | None:
    """The split of the final evaluation; None if there is none."""
    split = (self.evaluation or {}).get('split')
    return split if isinstance(split, str) else None

  @property
  def diverged_at(self) -> int | None:
    return self.result['first_nonfinite_step']

  def followed(self, statistics: str, name: str = 'top1') -> dict[int, float]:
    """Step -> top-1 in percent, or loss, of all evaluations while it trained.

    A run without population statistics has one value for both kinds.
    """
    key = self._key(statistics, name)
    values = {r['step']: r.get(key) for r in self._evaluations()}
    return {step: v for step, v in values.items() if v is not None}

  def last(self, statistics: str, name: str = 'top1') -> float | None:
    """The value at the last evaluation; None if not finite or after divergence."""
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
    """The highest top-1 while it trained, in percent."""
    return max(self.followed(statistics).values(), default=None)

  def final(self, statistics: str) -> float | None:
    """Top-1 of evaluation.json in percent; None after a divergence."""
    return self.finals.get(statistics, self.finals.get(NONE))

  def first_step(self, target: float, statistics: str) -> int | None:
    """The step of the first evaluation at or above the target."""
    followed = self.followed(statistics).items()
    return next((step for step, value in followed if value >= target), None)


@dataclasses.dataclass(frozen=True)
class Group:
  """The runs of one arm for one task, one for each seed.

  Attributes:
    name: name of the arm.
    runs: all runs.
    outcomes: the runs that are finished and readable.
    problems: seed -> one line for each missing or damaged file or number.
    paper: the paper's numbers for this arm; None: it has none.
  """

  name: str
  runs: tuple[Run, ...]
  outcomes: tuple[Outcome, ...]
  problems: Mapping[int, Sequence[str]] = dataclasses.field(
    default_factory=dict
  )
  paper: studies.Paper | None = None

  @property
  def config(self) -> dict:
    return self.runs[0].config

  @property
  def network(self) -> str:
    """'with BN' or 'without BN'."""
    return NETWORKS[self.config['model']['use_batch_norm']]

  @property
  def rate(self) -> float:
    return self.config['optimizer']['learning_rate']

  def divergence(self) -> str:
    """'diverged at step 41', with the number of seeds; '' if none did."""
    steps = [o.diverged_at for o in self.outcomes if o.diverged_at is not None]
    if not steps:
      return ''
    distinct = [f'{step:,}' for step in sorted(set(steps))]
    text = f'diverged at step{"s" * (len(distinct) > 1)} {", ".join(distinct)}'
    is_all = len(steps) == len(self.runs)
    return text if is_all else f'{len(steps)} of {len(self.runs)} {text}'

  def state(self) -> str:
    """'3 runs', '2 of 3 runs' or 'not run', and how many diverged or are damaged."""
    done, total = len(self.outcomes), len(self.runs)
    if done == 0 and not self.problems:
      return 'not run'
    text = f'{done} of {total} runs' if done < total else f'{total} runs'
    text = '1 run' if (done, total) == (1, 1) else text
    problems = f'{len(self.problems)} damaged' if self.problems else ''
    return '; '.join(filter(None, (text, self.divergence(), problems)))

  def exception(self) -> str:
    """`state` if runs are missing, damaged or diverged; '' otherwise."""
    is_whole = len(self.outcomes) == len(self.runs) and not self.problems
    return self.divergence() if is_whole else self.state()

  def absence(self) -> str:
    """The text in place of a number."""
    if not self.outcomes:
      return 'damaged' if self.problems else 'not run'
    return self.divergence() or 'not measured'

  @property
  def num_measured(self) -> int:
    """Number of seeds that did not diverge, and so should have every number."""
    return sum(outcome.diverged_at is None for outcome in self.outcomes)

  def values(self, measure: Measure) -> list[float]:
    """The measured values; seeds without one are skipped."""
    found = map(measure, self.outcomes)
    return [value for value in found if value is not None]


def read_groups(
  runs: Iterable[Run],
  papers: Mapping[str, studies.Paper | None] = MappingProxyType({}),
  archive: Mapping[str, Source] = MappingProxyType({}),
) -> dict[str, list[Group]]:
  """Reads runs from their folders or an archive.

  Args:
    runs: from `runs.list_runs`.
    papers: arm -> the paper's numbers for it.
    archive: identity -> a run that is read from the archive, not from its folder.

  Returns:
    Task -> its groups, arm by arm.
  """
  by_arm: dict[str, dict[str, list[Run]]] = {}
  for run in runs:
    by_arm.setdefault(run.task, {}).setdefault(run.arm, []).append(run)
  return {
    task: [
      _read_group(name, members, papers.get(name), archive)
      for name, members in arms.items()
    ]
    for task, arms in by_arm.items()
  }


def _read_group(
  name: str,
  runs: Sequence[Run],
  paper: studies.Paper | None,
  archive: Mapping[str, Source],
) -> Group:
  outcomes, problems = [], {}
  for run in runs:
    outcome, found = read_outcome(run, archive.get(run.identity))
    outcomes += [outcome] if outcome else []
    if found:
      problems[run.seed] = found
  return Group(name, tuple(runs), tuple(outcomes), problems, paper)


def read_outcome(
  run: Run, source: Source | None = None
) -> tuple[Outcome | None, list[str]]:
  """Reads a finished run; also returns a line for each problem in its files.

  Args:
    run: the run.
    source: its files; None: those in its folder.

  Returns:
    The outcome is None if the run is not finished, or its config.json or
    result.json is damaged.
  """
  source = source or RunFolder(run)
  problems = []
  try:
    if not source.is_finished():
      return None, []
    config, result = source.config(), source.result()
    problems += _check_config(run, source, config)
    problems += _check_result(source, result)
  except UserError as error:
    problems.append(str(error))
  if problems:
    return None, problems
  records, evaluation, finals, starts = [], None, {}, []
  try:
    records = _read_records(source, result)
  except UserError as error:
    problems.append(str(error))
  try:
    if not result['diverged']:
      evaluation = source.evaluation()
      finals, lacking = _read_finals(run, source, evaluation)
      problems += lacking
  except UserError as error:
    problems.append(str(error))
  try:
    starts = _read_starts(source)
  except UserError as error:
    problems.append(str(error))
  outcome = Outcome(run, config, result, evaluation, finals, records, starts)
  return outcome, problems


def _check_config(run: Run, source: Source, config: dict) -> list[str]:
  if values_hash(config) == values_hash(run.config):
    return []
  place = source.place(run_directory.CONFIG_FILE)
  return [f'{place} has other values than the run that it is named for']


def _check_result(source: Source, result: dict) -> list[str]:
  """One line for each damaged or missing value of result.json."""
  steps, bad_step = result.get('steps'), result.get('first_nonfinite_step')
  is_valid = {
    'steps': isinstance(steps, int),
    'first_nonfinite_step': isinstance(bad_step, int) == result['diverged'],
    'wall_seconds': _number(result.get('wall_seconds')) is not None,
    'eval_split': isinstance(result.get('eval_split'), str),
    **{key: _may_be_accuracy(result.get(key)) for key in _ACCURACIES},
  }
  place = source.place(run_directory.RESULT_FILE)
  return [
    f"{place} is damaged ('{key}' is {result.get(key, 'missing')})"
    for key in is_valid
    if not is_valid[key]
  ]


def _read_records(source: Source, result: dict) -> list[dict]:
  """The records of the whole run.

  Raises:
    UserError: if the last ones are missing, so that numbers would belong to an
      earlier step, or if an accuracy is not a percentage.
  """
  records, place = source.records(), source.place(METRICS_FILE)
  if not records:
    raise UserError(f'{place} is missing or empty')
  kind = 'train' if result['diverged'] else 'eval'
  end = max((r['step'] for r in records if r['kind'] == kind), default=0)
  if end < result['steps']:
    raise UserError(
      f'{place} was cut short: it ends at step {end} of {result["steps"]}'
    )
  for record in records:
    for key in _ACCURACIES & record.keys():
      if not _may_be_accuracy(record[key]):
        raise UserError(
          f"{place} is damaged ('{key}' is {record[key]} at step {record['step']})"
        )
  return [
    {
      key: value if key == 'kind' else _number(value)
      for key, value in record.items()
    }
    for record in records
  ]


def _read_finals(
  run: Run, source: Source, evaluation: dict | None
) -> tuple[dict[str, float], list[str]]:
  """Accuracies of evaluation.json, and one line for each that is missing."""
  place, evaluation = source.place(EVALUATION_FILE), evaluation or {}
  has_batch_norm = run.config['model']['use_batch_norm']
  results, finals, problems = evaluation.get('results'), {}, []
  for kind in (MOVING, POPULATION) if has_batch_norm else (NONE,):
    found = results.get(kind) if isinstance(results, dict) else None
    top1 = _number(found.get('top1')) if isinstance(found, dict) else None
    if not _may_be_accuracy(top1):
      problems.append(
        f"{place} is damaged ('top1' is {top1} with statistics: {kind})"
      )
    elif top1 is None:
      problems.append(f'{place} lacks top1 with statistics: {kind}')
    else:
      finals[kind] = top1
  if not isinstance(evaluation.get('split'), str):
    problems.append(f'{place} lacks the split')
  return finals, problems


def _read_starts(source: Source) -> list[dict]:
  """The starts of manifest.json.

  Raises:
    UserError: if they lack a value that the report shows.
  """
  starts = source.manifest().get('starts')
  if isinstance(starts, list) and starts and all(map(_is_start, starts)):
    return starts
  place = source.place(run_directory.MANIFEST_FILE)
  raise UserError(f'{place} lacks time, versions or devices of its starts')


def _is_start(value) -> bool:
  if not isinstance(value, dict):
    return False
  texts = value.get('time'), value.get('python'), value.get('platform')
  devices = value.get('devices')
  return (
    all(isinstance(text, str) for text in texts)
    and isinstance(value.get('commit'), str | None)
    and isinstance(value.get('packages'), dict)
    and isinstance(devices, list)
    and len(devices) > 0
  )


def _number(value) -> float | None:
  """A finite number, or None."""
  is_number = isinstance(value, int | float) and not isinstance(value, bool)
  return value if is_number and math.isfinite(value) else None


def _may_be_accuracy(value) -> bool:
  """False for numbers that are not percentages; other values are checked elsewhere."""
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
    """Whether the interval excludes zero; None if there is none."""
    return None if self.margin is None else abs(self.mean) > self.margin


def mean_interval(values: Sequence[float]) -> Interval:
  """The mean of one value or more, with Student's 95 % interval."""
  count, mean = len(values), float(np.mean(values))
  if count < 2:
    return Interval(mean, None, count)
  _, quantile = stats.t.interval(CONFIDENCE, count - 1)
  return Interval(mean, float(quantile * stats.sem(values)), count)


def paired_differences(
  group: Group, base: Group, measure: Measure
) -> list[float]:
  """`group` minus `base` for each seed that has a value in both."""
  of_base = {o.run.seed: measure(o) for o in base.outcomes}
  pairs = ((measure(o), of_base.get(o.run.seed)) for o in group.outcomes)
  return [a - b for a, b in pairs if a is not None and b is not None]

"""The archive of finished runs: files <study>.jsonl with one line a run.

A line has all that a report needs to know of a run. Lines are looked up by the run's
identity in all files, so a run that several studies share is stored once.
"""

import dataclasses
import json
import math
import os
import pathlib
from collections.abc import Mapping, Sequence

from bn_inception.errors import UserError, replacing
from bn_inception.study.results import Outcome

_ENDING = '.jsonl'
# Wall-clock times of single records: result.json has their sums.
_TIMES = {'seconds', 'images_per_second', 'input_wait_fraction'}
_REMEDY = 'restore the file, or delete the line'


@dataclasses.dataclass(frozen=True)
class Line:
  """A run of the archive, as a `results.Source`."""

  file: str
  content: dict

  def is_finished(self) -> bool:
    return True

  def config(self) -> dict:
    return self.content['config']

  def result(self) -> dict:
    return self.content['result']

  def evaluation(self) -> dict | None:
    return self.content['evaluation']

  def records(self) -> list[dict]:
    return [
      {'kind': kind, **dict(zip(columns, row, strict=True))}
      for kind, columns in self.content['metrics'].items()
      for row in zip(*columns.values(), strict=True)
    ]

  def manifest(self) -> dict:
    return {'starts': self.content['starts']}

  def place(self, name: str) -> str:
    return f'{self.file}#{self.content["name"]}: {name}'


def read(folder: str) -> dict[str, Line]:
  """The runs of all files <study>.jsonl in a folder, by identity.

  Raises:
    UserError: if a line is damaged.
  """
  lines = {}
  for path in sorted(pathlib.Path(folder).glob(f'*{_ENDING}')):
    with open(path) as file:
      for number, text in enumerate(file, start=1):
        content = _parse(text, f'line {number} of {path}')
        lines.setdefault(content['identity'], Line(str(path), content))
  return lines


def _parse(text: str, place: str) -> dict:
  try:
    content = json.loads(text)
    columns = content['metrics'].values()
    is_valid = (
      all(isinstance(content[key], str) for key in ('name', 'identity'))
      and isinstance(content['config'], dict)
      and isinstance(content['result']['diverged'], bool)
      and isinstance(content['starts'], list)
      and isinstance(content['evaluation'], dict | None)
      and all(
        'step' in c and len({*map(len, c.values())}) == 1 for c in columns
      )
    )
  except (ValueError, TypeError, KeyError, AttributeError) as error:
    reason = f'{type(error).__name__}: {error}'
    raise UserError(f'{place} is damaged ({reason}): {_REMEDY}') from error
  if not is_valid:
    raise UserError(f'{place} is damaged: {_REMEDY}')
  return content


def write(
  outcomes_of: Mapping[str, Sequence[Outcome]], folder: str, remedy: str
) -> dict[str, str]:
  """Adds runs to the archive in a folder, or replaces their lines.

  A run that is in none of the files yet goes into the file of its first study.
  The other lines stay.

  Args:
    outcomes_of: name of a study -> its finished runs.
    folder: an existing folder.
    remedy: see `errors.writing`.

  Returns:
    Name of a run -> name of the file that has its line.

  Raises:
    UserError: if a line in the folder is damaged, or a file cannot be written.
  """
  files: dict[str, dict[str, dict]] = {}
  file_of, file_of_name = {}, {}
  for identity, line in read(folder).items():
    file_of[identity] = os.path.basename(line.file)
    files.setdefault(file_of[identity], {})[identity] = line.content
  for study, outcomes in outcomes_of.items():
    for outcome in outcomes:
      identity = outcome.run.identity
      file = file_of.setdefault(identity, study + _ENDING)
      files.setdefault(file, {})[identity] = _content(outcome)
      file_of_name[outcome.name] = file
  for file in dict.fromkeys(file_of_name.values()):
    path = os.path.join(folder, file)
    with replacing(path, remedy=remedy) as stream:
      for content in files[file].values():
        text = json.dumps(content, separators=(',', ':'), allow_nan=False)
        stream.write(text + '\n')
  return file_of_name


def _content(outcome: Outcome) -> dict:
  """The content of a line, without paths of this machine."""
  run, evaluation = outcome.run, outcome.evaluation
  if evaluation is not None:  # its members repeat the results, with their paths
    evaluation = {k: v for k, v in evaluation.items() if k != 'members'}
  return _with_finite_numbers(
    {
      'name': outcome.name,
      'identity': run.identity,
      'arm': run.arm,
      'task': run.task,
      'seed': run.seed,
      'config': outcome.config,
      'result': {k: v for k, v in outcome.result.items() if k != 'config'},
      'evaluation': evaluation,
      'starts': [_without_folder(start) for start in outcome.starts],
      'metrics': _columns(outcome.records),
    }
  )


def _without_folder(start: dict) -> dict:
  data = start.get('data')
  if not isinstance(data, dict):
    return start
  return start | {'data': {k: v for k, v in data.items() if k != 'folder'}}


def _columns(records: Sequence[dict]) -> dict[str, dict[str, list]]:
  """Kind of record -> key -> its values; None where a record lacks the key."""
  by_kind: dict[str, list[dict]] = {}
  for record in records:
    by_kind.setdefault(record['kind'], []).append(record)
  return {
    kind: {
      key: [record.get(key) for record in found]
      for key in dict.fromkeys(key for record in found for key in record)
      if key != 'kind' and key not in _TIMES
    }
    for kind, found in by_kind.items()
  }


def _with_finite_numbers(value):
  """The value with None for infinities and NaN, which JSON does not have."""
  if isinstance(value, dict):
    return {k: _with_finite_numbers(v) for k, v in value.items()}
  if isinstance(value, list):
    return [_with_finite_numbers(v) for v in value]
  is_bad = isinstance(value, float) and not math.isfinite(value)
  return None if is_bad else value

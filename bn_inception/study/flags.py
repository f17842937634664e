"""The flags that select runs of studies."""

import ast
from collections.abc import Sequence

from absl import flags

from bn_inception.errors import UserError
from bn_inception.programs.path_flags import define_path
from bn_inception.programs.presets import studies
from bn_inception.study.runs import Selection

flags.disclaim_key_flags()  # they belong to the program that defines them


def define() -> None:
  """Defines the flags; called by programs, not on import."""
  flags.DEFINE_list(
    'study',
    [],
    f'Studies, separated by commas: {", ".join(studies.STUDIES)}; or all. '
    'Example: --study=figure2,leave_one_out',
  )
  define_path(
    'runs',
    'runs/study',
    'Folder of the runs; for a report, also the folder of another report. '
    'Example: --runs=/shared/study',
  )
  flags.DEFINE_bool(
    'quick',
    False,
    'A small version on digits, which takes minutes. Example: --quick',
  )
  flags.DEFINE_list(
    'task', [], "Tasks; default: the study's. Example: --task=imagenet"
  )
  flags.DEFINE_list(
    'seeds', [], "Seeds; default: the study's. Example: --seeds=0,1,2,3,4"
  )
  flags.DEFINE_multi_string(
    'set',
    [],
    'KEY=VALUE to set in the configs of all runs. '
    'Example: --set=model.dtype=bfloat16 --set=batch_size=512',
  )


def names() -> list[str]:
  """The studies of --study; all of them by default."""
  given = flags.FLAGS.study
  return list(studies.STUDIES) if given in ([], ['all']) else given


def selection() -> Selection:
  """The runs selected by the other flags.

  Raises:
    UserError: for seeds that are not numbers, or --set without a value.
  """
  values = flags.FLAGS
  return Selection(
    root=values.runs,
    is_quick=values.quick,
    tasks=tuple(values.task),
    seeds=_parse_seeds(values.seeds),
    values=_parse_values(values.set),
  )


def _parse_seeds(texts: Sequence[str]) -> tuple[int, ...]:
  if not all(text.isdecimal() for text in texts):
    raise UserError(
      f'--seeds must be whole numbers such as 0,1,2, got {",".join(texts)}'
    )
  return tuple(int(text) for text in texts)


def _parse_values(assignments: Sequence[str]) -> dict:
  """['a.b=1', 'c=x'] -> {'a.b': 1, 'c': 'x'}."""
  values = {}
  for assignment in assignments:
    key, equals, text = assignment.partition('=')
    if not equals:
      raise UserError(f'--set must be KEY=VALUE, got {assignment}')
    try:
      values[key] = ast.literal_eval(text)
    except (ValueError, SyntaxError):  # a name, such as bfloat16
      values[key] = text
  return values

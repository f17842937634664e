"""The one exception that stands for bad input."""

import contextlib
from collections.abc import Iterator, Sequence


class UserError(Exception):
  """Something the caller can mend: one line that names the thing and the remedy.

  The programs print it without a traceback and exit non-zero; every other
  exception is a defect and keeps its traceback.
  """


def check_choice(name: str, value: str, valid: Sequence[str]) -> None:
  """Refuses what is none of the valid values of a config's key.

  Raises:
    UserError: with the valid ones.
  """
  if value not in valid:
    raise UserError(
      f"{name} '{value}' is unknown: use one of {', '.join(valid)}"
    )


_OF_A_RUN = (
  'make room or mend the folder, and give the same command again to go on'
)


@contextlib.contextmanager
def writing(path: str, remedy: str = _OF_A_RUN) -> Iterator[None]:
  """Turns the system's refusal to write a file into one line.

  Args:
    path: of the file.
    remedy: what to do then; the default is for the files of a run.

  Raises:
    UserError: for an OSError, such as a full disk.
  """
  try:
    yield
  except OSError as error:
    raise UserError(
      f'{path} cannot be written ({error.strerror}): {remedy}'
    ) from error

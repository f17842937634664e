"""JSON files that hold one object, written atomically."""

import json

from bn_inception.errors import RERUN, UserError, replacing


def write_json(path: str, value: dict, remedy: str = RERUN) -> None:
  """Writes the whole file, or leaves the old one as it was.

  Raises:
    UserError: if it cannot be written; the default remedy is for a run's files.
    ValueError: for NaN and infinities, which JSON does not have.
  """
  text = json.dumps(value, indent=2, allow_nan=False)
  with replacing(path, remedy=remedy) as file:
    file.write(text + '\n')


def read_json(
  path: str, remedy: str = 'restore it, or give another --workdir'
) -> dict:
  """The object in a JSON file.

  Raises:
    UserError: if the file does not exist or is damaged; `remedy` is for the
      latter.
  """
  try:
    with open(path) as file:
      value = json.load(file)
  except FileNotFoundError as error:
    raise UserError(f'{path} does not exist') from error
  except ValueError as error:  # not JSON, or not even text
    raise UserError(f'{path} is damaged ({error}): {remedy}') from error
  if not isinstance(value, dict):
    raise UserError(f'{path} is damaged (not an object): {remedy}')
  return value

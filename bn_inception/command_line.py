"""Running a program: flags, and errors of the user in one line."""

import os
import sys
from collections.abc import Callable

from absl import app, flags, logging

from bn_inception.errors import UserError

EXIT_USER_ERROR = 2


def run(main: Callable[[], None]) -> None:
  """Parses the command line and calls `main`; a `UserError` becomes one line.

  Exit status: 0, or 2 for what the user can mend; a defect keeps its traceback.
  """
  # Orbax and Grain narrate at the level of info.
  logging.set_verbosity(logging.WARNING)
  os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '2')

  def guarded(arguments: list[str]) -> None:
    if len(arguments) > 1:
      _stop(f"'{arguments[1]}' is not a flag: flags begin with --; see --help")
    try:
      main()
    except UserError as error:
      _stop(str(error))

  app.run(guarded, flags_parser=_parse)


def _parse(arguments: list[str]) -> list[str]:
  try:
    return app.parse_flags_with_usage(arguments)
  except AttributeError as error:  # ml_collections: an override of no such key
    _stop(_explain_unknown_key(arguments) or str(error))
  except OSError as error:  # ml_collections: no such config file
    _stop(' '.join(str(error).split()))


def _explain_unknown_key(arguments: list[str]) -> str | None:
  """'--config.optimizer.rate=1' -> the keys that `optimizer` has."""
  for argument in arguments:
    path = argument.lstrip('-').partition('=')[0].split('.')
    if path[0] != 'config':
      continue
    section = flags.FLAGS['config'].value
    for depth, key in enumerate(path[1:], 1):
      if not hasattr(section, 'keys') or key not in section:
        known = ', '.join(sorted(section)) if hasattr(section, 'keys') else ''
        place = '.'.join(path[:depth])
        return f"{place} has no key '{key}': it has {known or 'no keys'}"
      section = section[key]
  return None


def _stop(message: str):
  print(f'error: {message}', file=sys.stderr)
  raise SystemExit(EXIT_USER_ERROR)

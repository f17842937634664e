"""Finds the package `configs`, and loads config files by name.

Import `compose`, `paper` and `studies` from here: this makes sure that `configs` is
the folder of this project, whatever else on sys.path has that name.
"""

import importlib.machinery
import importlib.util
import os
import pathlib
import sys
import traceback
import types
from collections.abc import Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from bn_inception.errors import UserError

_PACKAGE = pathlib.Path(__file__).parents[1]
# A wheel has it in the package, a checkout next to it.
_HOME = _PACKAGE if (_PACKAGE / 'configs').is_dir() else _PACKAGE.parent
FOLDER = _HOME / 'configs'


def _import_configs() -> None:
  """Makes `import configs` find `FOLDER`, here and in config files."""
  loaded = sys.modules.get('configs')
  if list(getattr(loaded, '__path__', ())) == [str(FOLDER)]:
    return
  for name in [n for n in sys.modules if n.partition('.')[0] == 'configs']:
    del sys.modules[name]
  spec = importlib.util.spec_from_file_location(
    'configs',
    FOLDER / '__init__.py',
    submodule_search_locations=[str(FOLDER)],
  )
  module = importlib.util.module_from_spec(spec)
  sys.modules['configs'] = module
  spec.loader.exec_module(module)


_import_configs()

from configs import compose, paper, studies  # noqa: E402

__all__ = ['compose', 'load', 'names', 'paper', 'studies']


def names() -> list[str]:
  """The config files of this project, such as 'configs/bn_x5.py'."""
  return sorted(
    f'configs/{path.name}'
    for path in FOLDER.glob('*.py')
    if 'def get_config(' in path.read_text()
  )


def path_of(name: str) -> str:
  """The value of --config that names a file of `FOLDER`.

  Args:
    name: name of the file, without .py.

  Returns:
    'configs/NAME.py', or the full path if the current folder has another file
    of that name.
  """
  short, path = f'configs/{name}.py', FOLDER / f'{name}.py'
  found = _find(short)
  is_other = found is not None and not found.samefile(path)
  return str(path) if is_other else short


def load(value: str, flag: str = '--config') -> ConfigDict:
  """Loads the config FILE or FILE:ARGUMENT.

  Args:
    value: FILE is looked up from the current folder, then among `names`;
      ARGUMENT is passed to its function get_config.
    flag: name of the flag, for messages.

  Raises:
    UserError: if the file does not exist, or does not return a config.
  """
  path, colon, argument = value.partition(':')
  found, given = _find(path), f'{flag}={value}'
  if found is None:
    raise UserError(f'{given}: there is no such config; {_remedy()}')
  try:
    get_config = getattr(_run_file(found), 'get_config', None)
    if get_config is None:
      raise UserError(
        f'{given}: {found} has no function get_config; {_remedy()}'
      )
    config = get_config(*([argument] if colon else []))
  except UserError:
    raise
  except compose.BadValue as error:
    raise UserError(f'{given}: {error}') from error
  except Exception as error:
    raise UserError(
      f'{given}: {found}{_last_line_in(found, error)}: '
      f'{type(error).__name__}: {_text_of(error)}'
    ) from error
  if not isinstance(config, ConfigDict):
    raise UserError(
      f'{given}: get_config must return a ConfigDict, as those of configs/ do, '
      f'not {type(config).__name__}'
    )
  return config


def _text_of(error: BaseException) -> str:
  """Its message on one line."""
  # ml_collections wraps a KeyError, whose text is quoted, line breaks as well.
  if len(error.args) == 1 and isinstance(error.args[0], Exception):
    return _text_of(error.args[0])
  text = error.args[0] if isinstance(error, KeyError) else error
  return ' '.join(str(text).split())


def _remedy() -> str:
  return f'use one of {", ".join(names())}, or a file of your own'


def describe(values: Mapping[str, Any], origins: Mapping[str, str]) -> str:
  """Formats one line for each key: its value and its origin.

  Args:
    values: {'section.key': value}.
    origins: {'section.key': origin}, from `compose.origins`.
  """
  return _align([(k, repr(v), origins[k]) for k, v in values.items()])


def describe_difference(
  values: Mapping[str, Any],
  others: Mapping[str, Any],
  heads: tuple[str, str],
) -> str:
  """Formats one line for each key that differs, or a line that none does.

  Args:
    values, others: {'section.key': value}.
    heads: names of the two configs.
  """
  rows = [
    (key, *(repr(v[key]) if key in v else 'absent' for v in (values, others)))
    for key in {**values, **others}
    if key not in values or key not in others or values[key] != others[key]
  ]
  if not rows:
    return f'{heads[0]} and {heads[1]} have the same values'
  return _align([('', *heads), *rows])


def _align(rows: Sequence[tuple[str, ...]]) -> str:
  widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
  lines = [
    '  '.join(
      cell.ljust(width) for cell, width in zip(row, widths, strict=True)
    )
    for row in rows
  ]
  return '\n'.join(line.rstrip() for line in lines)


def _find(path: str) -> pathlib.Path | None:
  own = pathlib.Path(os.path.expanduser(path))
  if own.is_file():
    return own
  return _HOME / path if path in names() else None


def _run_file(path: pathlib.Path) -> types.ModuleType:
  """Runs a file as a module that is not entered in sys.modules."""
  loader = importlib.machinery.SourceFileLoader('_config_file', str(path))
  spec = importlib.util.spec_from_loader(loader.name, loader)
  module = importlib.util.module_from_spec(spec)
  loader.exec_module(module)
  return module


def _last_line_in(path: pathlib.Path, error: Exception) -> str:
  """', line 3', or '' if the error did not come from this file."""
  if isinstance(error, SyntaxError):
    return f', line {error.lineno}'
  frames = traceback.extract_tb(error.__traceback__)
  lines = [f.lineno for f in frames if f.filename == str(path)]
  return f', line {lines[-1]}' if lines else ''

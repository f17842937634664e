"""The config of a program: --config=FILE:TASK, and --config.KEY=VALUE."""

import re
import sys
from collections.abc import Sequence

from absl import flags
from ml_collections import ConfigDict, config_flags

from bn_inception.config_keys import KEYS, PATH
from bn_inception.errors import UserError
from bn_inception.machine import paths
from bn_inception.programs import presets

flags.disclaim_key_flags()

_EXAMPLE = (
  '--config=configs/bn_x30.py:imagenet --config.optimizer.learning_rate=0.01'
)


def define(
  arguments: Sequence[str],
  default: str,
  flag_values: flags.FlagValues = flags.FLAGS,
) -> list[str]:
  """Loads the config that the arguments name, and defines its flags.

  Args:
    arguments: the command line after the program's name.
    default: default of --config, as for `presets.load`.
    flag_values: the flags that will parse the arguments.

  Returns:
    The arguments without --config. After `flag_values` has parsed them, its
    `config` is a ConfigDict that includes the values of --config.KEY=VALUE.

  Raises:
    UserError: as `presets.load`, for two configs, or for a key that the config
      does not have.
  """
  given, others = _take(arguments)
  if len(given) > 1:
    raise UserError(f'--config is given {len(given)} times: {", ".join(given)}')
  value = given[0] if given else default
  config = presets.load(value)
  for argument in others:
    if match := re.match(r'--?(?:no)?config\.([^=]*)', argument):
      _check_key(config, match[1])
  try:
    config_flags.DEFINE_config_dict(
      'config', config, _describe(), flag_values, sys_argv=['', *others]
    )
  except flags.Error as error:
    raise UserError(str(error)) from error
  flag = flag_values['config']
  flag.default_as_str = f"'{default}'"
  flag_values.register_key_flag_for_module(sys.argv[0], flag)
  return others


def expand_paths(config: dict) -> dict:
  """A config with its paths as `paths.expand` gives them.

  Args:
    config: the plain nested dict of configs/.

  Raises:
    UserError: as `paths.expand`; values that are not text are left alone.
  """
  expanded = {
    key: paths.expand(value, f'--config.{key}')
    for key, value in config.items()
    if key in KEYS and KEYS[key].allowed is PATH and isinstance(value, str)
  }
  return config | expanded


def _take(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
  """Splits off the values of --config=VALUE and --config VALUE."""
  values, others = [], []
  remaining = iter(arguments)
  for argument in remaining:
    name, equals, value = argument.partition('=')
    if name not in ('--config', '-config'):
      others.append(argument)
      continue
    value = value if equals else next(remaining, '')
    if not value or value.startswith('-'):
      raise UserError(f'--config needs a value, such as {_EXAMPLE.split()[0]}')
    values.append(value)
  return values, others


def _check_key(config: ConfigDict, key: str) -> None:
  """Raises for an unknown key, such as 'optimizer.rate', and lists its siblings."""
  section, place = config, 'config'
  for name in key.split('.'):
    if not isinstance(section, ConfigDict):
      raise UserError(
        f"{place} is a value, not a section: it has no key '{name}'"
      )
    if name not in section:
      raise UserError(
        f"{place} has no key '{name}': it has {', '.join(section)}"
      )
    section, place = section[name], f'{place}.{name}'
  if isinstance(section, ConfigDict):
    raise UserError(
      f'{place} is a section: give one of its keys, {", ".join(section)}'
    )


def _describe() -> str:
  return (
    'What to train: FILE:TASK, or a file of your own. The files are '
    f'{", ".join(presets.names())}; their first lines say what else may follow '
    f'the colon. The tasks are {", ".join(presets.paper.TASKS)}. '
    f'--config.KEY=VALUE replaces a value. Example: {_EXAMPLE}'
  )

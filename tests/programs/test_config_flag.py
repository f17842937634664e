"""--config and its overrides."""

import pytest
from absl import flags

from bn_inception.errors import UserError
from bn_inception.programs import config_flag
from configs import compose

DEFAULT = 'configs/bn_x5.py:digits'


@pytest.fixture
def values():
  """Flags of a program that has none yet."""
  own = flags.FlagValues()
  flags.DEFINE_bool('fold', False, '', own)
  return own


def parse(values, *arguments):
  others = config_flag.define(arguments, DEFAULT, values)
  values(['program', *others])
  return values.config


def test_the_config_has_what_the_command_line_replaces(values):
  config = parse(
    values, '--config.seed=3', '--fold', '--config', 'configs/mnist.py:plain',
    '--noconfig.model.use_batch_norm', '--config.model.hidden_sizes=(7, 8)',
  )  # fmt: skip
  assert config.name == 'perceptron_plain-mnist' and values.fold
  assert (config.seed, config.model.use_batch_norm) == (3, False)
  assert config.model.hidden_sizes == (7, 8)
  assert values['config'].override_values.keys() == {
    'seed', 'model.use_batch_norm', 'model.hidden_sizes'
  }  # fmt: skip
  assert values['config'].default_as_str == f"'{DEFAULT}'"


def test_the_default(values):
  assert parse(values).name == 'bn_x5-digits'


@pytest.mark.parametrize(
  'arguments, message',
  [
    (['--config=a.py', '-config=b.py'], 'given 2 times: a.py, b.py'),
    (['--config'], '--config needs a value, such as --config=configs/'),
    (['--config', '--fold'], '--config needs a value'),
    (['--config='], '--config needs a value'),
    (['--config.optimizer.rate=1'], 'config.optimizer has no key .rate.: it'),
    (['--noconfig.seed.x'], 'config.seed is a value, .* no key .x.'),
    (['--config.model=1'], 'config.model is a section: give one of its keys'),
  ],
)
def test_bad_arguments_are_named(values, arguments, message):
  with pytest.raises(UserError, match=message):
    config_flag.define(arguments, DEFAULT, values)


def test_paths_in_a_config_are_expanded(monkeypatch):
  monkeypatch.setenv('HOME', '/home/u')
  config = compose.preset('bn_x5', 'digits').to_dict()
  assert config_flag.expand_paths(config) == config
  config |= {'init_from': '~/a/checkpoints/9', 'name': '~/a'}
  expanded = config_flag.expand_paths(config)
  assert expanded == config | {'init_from': '/home/u/a/checkpoints/9'}
  with pytest.raises(UserError, match='--config.init_from=gs://b/9: '):
    config_flag.expand_paths(config | {'init_from': 'gs://b/9'})
  assert config_flag.expand_paths(config | {'init_from': 3})['init_from'] == 3

"""Trains one of the paper's networks.

Without flags: BN-x5 on the digits that ship with scikit-learn, in two minutes.
"""

from bn_inception.machine import interruption

if __name__ == '__main__':
  interruption.watch()  # the other imports take seconds

import os

import jax
from absl import flags
from flax.traverse_util import flatten_dict

from bn_inception import config_keys, training
from bn_inception.data.sources import describe_data
from bn_inception.experiment import make_setup
from bn_inception.programs import command_line, config_flag, presets
from bn_inception.programs.path_flags import define_path

DEFAULT_CONFIG = 'configs/bn_x5.py:digits'

_WORKDIR = define_path(
  'workdir',
  None,
  'Folder of the run; the same command again resumes it. Default: runs/ and '
  'the name of the config, or runs/digits. Example: --workdir=runs/first',
)
_DATA_DIR = define_path(
  'data_dir',
  None,
  'Folder of the data sets that TensorFlow Datasets prepared. Default: its own, '
  '$TFDS_DATA_DIR or ~/tensorflow_datasets. Example: --data_dir=/data/tfds',
  may_be_bucket=True,
)
_INIT_FROM = define_path(
  'init_from',
  None,
  'Checkpoint to initialise from; if the classes differ, the last layer is new. '
  'Same as --config.init_from. '
  'Example: --init_from=runs/cadene/checkpoints/0',
)
_PRINT_CONFIG = flags.DEFINE_bool(
  'print_config',
  False,
  'Only print every value of the config and where it is from. '
  'Example: --print_config',
)
_DIFF = flags.DEFINE_string(
  'diff',
  None,
  'Only print in what --config differs from this config. '
  'Example: --diff=configs/bn_baseline.py:digits',
)
_SUMMARY = flags.DEFINE_bool(
  'summary',
  False,
  "Only print the network's modules with their shapes, FLOPs and parameters. "
  'Example: --summary',
)
_PROFILE = define_path(
  'profile',
  None,
  'Folder for a profile of steps 11 to 20 by JAX, for Perfetto or XProf. '
  'Example: --profile=profiles/first',
)
command_line.define_process_flags()


def main() -> None:
  config = flags.FLAGS.config.to_dict()
  if _INIT_FROM.value is not None:
    config['init_from'] = _INIT_FROM.value
  config = config_flag.expand_paths(config)
  if _PRINT_CONFIG.value or _DIFF.value is not None:
    show(config)
    return
  config_keys.check_config(config)  # before its name is taken
  if _SUMMARY.value:
    facts = describe_data(config, _DATA_DIR.value)
    print(make_setup(config, jax.devices()[:1], **facts).tabulate())
    return
  name = 'digits' if config['name'] == 'bn_x5-digits' else config['name']
  workdir = _WORKDIR.value or os.path.join('runs', name)
  training.train_and_evaluate(config, workdir, _DATA_DIR.value, _PROFILE.value)


def show(config: dict) -> None:
  """What --print_config and --diff ask for."""
  values = flatten_dict(config, sep='.')
  if _DIFF.value is not None:
    other = flatten_dict(presets.load(_DIFF.value, '--diff').to_dict(), sep='.')
    print(presets.describe_difference(values, other, ('--config', '--diff')))
    return
  origins = presets.compose.origins(flags.FLAGS.config)
  given = dict.fromkeys(flags.FLAGS['config'].override_values, 'command line')
  if _INIT_FROM.value is not None:
    given['init_from'] = 'command line'
  print(presets.describe(values, origins | given))


if __name__ == '__main__':
  command_line.run(main, DEFAULT_CONFIG)

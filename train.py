"""Trains one of the paper's networks.

Without flags: BN-x5 on the digits that ship with scikit-learn, in two minutes.
"""

from bn_inception.machine import interruption

if __name__ == '__main__':
  interruption.watch()  # the other imports take seconds

import os

from absl import flags
from ml_collections import config_flags

from bn_inception import command_line, ranges, training
from bn_inception.machine.path_flags import define_path

DEFAULT_CONFIG = 'configs/bn_x5.py:digits'

_CONFIG = config_flags.DEFINE_config_file(
  'config',
  None,
  'What to train, as FILE:TASK, where the task is imagenet, fashion_mnist or '
  f'digits; default: {DEFAULT_CONFIG}. Any value can be overridden. Example: '
  '--config=configs/bn_x30.py:imagenet --config.optimizer.learning_rate=0.01',
)
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
  'Checkpoint to take the first weights from, but for the last layer if the '
  'classes are others: --config.init_from. '
  'Example: --init_from=runs/cadene/checkpoints/0',
)
command_line.define_process_flags()
flags.adopt_module_key_flags(command_line)


def main() -> None:
  config = ranges.expand_paths(_CONFIG.value.to_dict())
  if _INIT_FROM.value is not None:
    config['init_from'] = _INIT_FROM.value
  name = 'digits' if config['name'] == 'bn_x5-digits' else config['name']
  workdir = _WORKDIR.value or os.path.join('runs', name)
  training.train_and_evaluate(config, workdir, _DATA_DIR.value)


if __name__ == '__main__':
  command_line.run(main, DEFAULT_CONFIG)

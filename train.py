"""Trains one of the paper's networks.

Without flags: BN-x5 on the digits that ship with scikit-learn, in two minutes.
"""

from absl import flags
from ml_collections import config_flags

from bn_inception import command_line, training

DEFAULT_CONFIG = 'configs/bn_x5.py:digits'
DEFAULT_WORKDIR = 'runs/digits'

_CONFIG = config_flags.DEFINE_config_file(
  'config',
  DEFAULT_CONFIG,
  'What to train, as FILE:TASK, where the task is imagenet, fashion_mnist or '
  'digits: --config=configs/bn_x30.py:imagenet. Any value can be overridden: '
  '--config.optimizer.learning_rate=0.01',
)
_WORKDIR = flags.DEFINE_string(
  'workdir',
  None,
  'Folder of the run; the same command again resumes it. Default: runs/ and '
  'the name of the config. Example: --workdir=runs/my_first_run',
)
_DATA_DIR = flags.DEFINE_string(
  'data_dir',
  None,
  'Folder of the data sets that TensorFlow Datasets prepared. Default: its own, '
  '$TFDS_DATA_DIR or ~/tensorflow_datasets. Example: --data_dir=/data/tfds',
)


def main() -> None:
  config = _CONFIG.value.to_dict()
  workdir = _WORKDIR.value
  if workdir is None:
    is_default = flags.FLAGS['config'].using_default_value
    workdir = DEFAULT_WORKDIR if is_default else f'runs/{config["name"]}'
  training.train_and_evaluate(config, workdir, _DATA_DIR.value)


if __name__ == '__main__':
  command_line.run(main)

"""Evaluates a checkpoint: top-1 and top-5 accuracy, as a table and as JSON."""

import os

from absl import flags

from bn_inception import command_line, evaluation
from bn_inception.errors import UserError

_WORKDIR = flags.DEFINE_string(
  'workdir',
  'runs/digits',
  'Folder of a run, as given to train.py. Example: --workdir=runs/digits',
)
_CHECKPOINT = flags.DEFINE_string(
  'checkpoint',
  None,
  'Folder of one checkpoint, instead of --workdir. '
  'Example: --checkpoint=runs/digits/checkpoints/450',
)
_STEP = flags.DEFINE_integer(
  'step',
  None,
  'Step of the checkpoint in --workdir; default: the newest. Example: --step=450',
)
_DATASET = flags.DEFINE_string(
  'dataset',
  None,
  'Data set to evaluate on; default: that of the training run. '
  'Example: --dataset=fashion_mnist',
)
_SPLIT = flags.DEFINE_string(
  'split',
  None,
  "Split to evaluate on; default: the run's evaluation split. "
  'Example: --split=train',
)
_BATCH_SIZE = flags.DEFINE_integer(
  'batch_size',
  None,
  "Examples at a time; default: the run's. The result does not depend on it. "
  'Example: --batch_size=64',
)
_DATA_DIR = flags.DEFINE_string(
  'data_dir',
  None,
  'Folder of the data sets that TensorFlow Datasets prepared. Default: its own, '
  '$TFDS_DATA_DIR or ~/tensorflow_datasets. Example: --data_dir=/data/tfds',
)
_STATISTICS = flags.DEFINE_enum(
  'statistics',
  'moving',
  ['moving', 'population', 'both'],
  'What batch normalization uses: moving averages, population statistics '
  '(Algorithm 2, from training mini-batches), or both beside each other. '
  'Example: --statistics=both',
)
_STATISTICS_BATCHES = flags.DEFINE_integer(
  'statistics_batches',
  200,
  'Mini-batches to take population statistics from. '
  'Example: --statistics_batches=50',
)
_STATISTICS_SEED = flags.DEFINE_integer(
  'statistics_seed',
  0,
  'Seed of their order and distortions. Example: --statistics_seed=1',
)
_STATISTICS_DATASET = flags.DEFINE_string(
  'statistics_dataset',
  None,
  'Data set to take population statistics from; default: that of training. '
  'Example: --statistics_dataset=fashion_mnist',
)
_STATISTICS_SPLIT = flags.DEFINE_string(
  'statistics_split',
  None,
  'Split to take them from; default: that of training. '
  'Example: --statistics_split=test',
)
_FOLD = flags.DEFINE_bool(
  'fold',
  False,
  'Evaluate with batch normalization folded into the convolutions. '
  'Example: --fold',
)
_OUTPUT = flags.DEFINE_string(
  'output',
  None,
  'JSON file to write; default: evaluation_SPLIT_STEP.json in --workdir or '
  'beside the checkpoint, with unusual settings in its name. Example: --output=digits.json',
)


def main() -> None:
  if _CHECKPOINT.value and _STEP.value is not None:
    raise UserError(
      '--step chooses in --workdir: leave it out beside --checkpoint'
    )
  path = _CHECKPOINT.value or evaluation.find_checkpoint(
    _WORKDIR.value, _STEP.value
  )
  result = evaluation.evaluate_checkpoint(
    path,
    dataset=_DATASET.value,
    split=_SPLIT.value,
    batch_size=_BATCH_SIZE.value,
    data_dir=_DATA_DIR.value,
    statistics=_STATISTICS.value,
    population=evaluation.PopulationOptions(
      num_batches=_STATISTICS_BATCHES.value,
      seed=_STATISTICS_SEED.value,
      dataset=_STATISTICS_DATASET.value,
      split=_STATISTICS_SPLIT.value,
    ),
    fold=_FOLD.value,
  )
  evaluation.print_table(result)
  folder = os.path.dirname(os.path.abspath(path))
  if _CHECKPOINT.value is None:
    folder = _WORKDIR.value
  output = _OUTPUT.value or evaluation.default_output(result, folder)
  evaluation.write_result(result, output)


if __name__ == '__main__':
  command_line.run(main)

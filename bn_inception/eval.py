"""Evaluates checkpoints: accuracies as a table, as JSON and, by class, as CSV.

    python eval.py --workdir=DIR
    python eval.py --checkpoint FOLDER FOLDER

Several checkpoints are an ensemble. Saved predictions are averaged, and images
classified, by bn_inception.evaluation.
"""

from bn_inception.machine import interruption

if __name__ == '__main__':
  interruption.watch()  # the other imports take seconds

import os
import sys

from absl import flags

from bn_inception.errors import UserError, check_free_space
from bn_inception.evaluation import checkpoints, predictions, report
from bn_inception.evaluation.checkpoints import (
  STATISTICS,
  EvaluationOptions,
  PopulationOptions,
)
from bn_inception.evaluation.flags import define_network_flags
from bn_inception.machine import distributed
from bn_inception.programs import command_line
from bn_inception.programs.path_flags import define_path, define_paths

_REMEDY = 'give another --output or --save_predictions'


def define_flags() -> None:
  """Defines the flags; not done on import."""
  define_network_flags()
  define_statistics_flags()
  command_line.define_process_flags()
  define_paths(
    'checkpoint',
    'Folder of one checkpoint, instead of --workdir; several are an ensemble. '
    'Example: --checkpoint runs/a/checkpoints/1802 runs/b/checkpoints/1802',
  )
  flags.DEFINE_string(
    'dataset',
    None,
    'Data set to evaluate on; default: that of the training run. '
    'Example: --dataset=fashion_mnist',
  )
  flags.DEFINE_string(
    'split',
    None,
    "Split to evaluate on; default: the run's evaluation split. "
    'Example: --split=train',
  )
  flags.DEFINE_integer(
    'batch_size',
    None,
    "Examples at a time; default: the run's. The result does not depend on it. "
    'Example: --batch_size=64',
  )
  define_path(
    'data_dir',
    None,
    'Folder of the data sets that TensorFlow Datasets prepared. Default: its own, '
    '$TFDS_DATA_DIR or ~/tensorflow_datasets. Example: --data_dir=/data/tfds',
    may_be_bucket=True,
  )
  flags.DEFINE_enum(
    'dtype',
    None,
    ['float32', 'bfloat16'],
    "Of the computation; default: the run's. Example: --dtype=bfloat16",
  )
  define_path(
    'save_predictions',
    None,
    'NPZ file to write, with the log probabilities of the classes and the name of '
    'every image. '
    'Example: --save_predictions=a.npz',
  )
  flags.DEFINE_bool(
    'real',
    False,
    "Also the accuracy by the ReaL labels of ImageNet's validation set. "
    'Example: --real',
  )
  flags.DEFINE_bool(
    'fold',
    False,
    'Evaluate with batch normalization folded into the convolutions. '
    'Example: --fold',
  )
  define_path(
    'output',
    None,
    'JSON file to write; default: evaluation_SPLIT_STEP.json in --workdir or '
    'next to the checkpoint; its name has every setting and data set that is not '
    "the run's own. Example: --output=digits.json",
  )


def define_statistics_flags() -> None:
  """Defines the flags of batch norm's statistics."""
  flags.DEFINE_enum(
    'statistics',
    'moving',
    list(STATISTICS),
    'What batch normalization uses: moving averages, population statistics '
    '(Algorithm 2, from training mini-batches), or both. '
    'Example: --statistics=both',
  )
  flags.DEFINE_integer(
    'statistics_batches',
    200,
    'Mini-batches to take population statistics from. '
    'Example: --statistics_batches=50',
  )
  flags.DEFINE_integer(
    'statistics_seed',
    0,
    'Seed of their order and distortions. Example: --statistics_seed=1',
  )
  flags.DEFINE_string(
    'statistics_dataset',
    None,
    'Data set to take population statistics from; default: that of training. '
    'Example: --statistics_dataset=fashion_mnist',
  )
  flags.DEFINE_string(
    'statistics_split',
    None,
    'Split to take them from; default: that of training. '
    'Example: --statistics_split=test',
  )


def read_options() -> EvaluationOptions:
  """The options of `checkpoints.prepare` from the flags.

  Raises:
    UserError: for a flag without effect.
  """
  values = flags.FLAGS
  if values.statistics == 'moving':
    for flag in values.get_key_flags_for_module(sys.argv[0]):
      if flag.present and flag.name.startswith('statistics_'):
        raise UserError(
          f'--{flag.name} has no effect with --statistics=moving: give '
          '--statistics=population or both'
        )
  return EvaluationOptions(
    dataset=values.dataset,
    split=values.split,
    data_dir=values.data_dir,
    batch_size=values.batch_size,
    crops=values.crops,
    statistics=values.statistics,
    population=PopulationOptions(
      num_batches=values.statistics_batches,
      seed=values.statistics_seed,
      dataset=values.statistics_dataset,
      split=values.statistics_split,
    ),
    fold=values.fold,
    dtype=values.dtype or '',
    real=values.real,
    is_named=values.save_predictions is not None,
  )


def main() -> None:
  values, options = flags.FLAGS, read_options()
  paths = checkpoints.choose(values.checkpoint, values.workdir, values.step)
  members = checkpoints.prepare(paths, options)
  folder = values.workdir
  if values.checkpoint:
    folder = os.path.dirname(os.path.abspath(paths[0]))
  output = values.output or report.default_output(members, options, folder)
  by_class = os.path.splitext(output)[0] + '.csv'
  saved = values.save_predictions

  def check() -> None:
    outputs = [path for path in (output, saved, by_class) if path]
    report.check_files(outputs, _REMEDY)
    if saved:
      source, names = members[0].source, members[0].names
      size = 4 * len(source) * len(source.class_names) + names.nbytes
      check_free_space(saved, size, _REMEDY)

  def write() -> None:
    report.write_result(result, output)
    report.write_classes(last, by_class)
    if saved:
      predictions.save(saved, last)
      print(f'written to {saved}')

  distributed.from_first(check)
  result, found = checkpoints.evaluate_members(members)
  report.print_table(result)
  *_, last = found.values()  # of both statistics, those of the population
  report.print_worst_classes(last)
  distributed.from_first(write)


if __name__ == '__main__':
  define_flags()
  command_line.run(main, of_several=('checkpoint',))

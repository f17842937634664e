"""Evaluates checkpoints: accuracies as a table, as JSON and, by class, as CSV."""

from bn_inception.machine import interruption
from bn_inception.wording import count

if __name__ == '__main__':
  interruption.watch()  # the other imports take seconds

import os
import sys
from collections.abc import Sequence

from absl import flags

from bn_inception import command_line
from bn_inception.data import imagenet
from bn_inception.errors import UserError, check_room, writing
from bn_inception.evaluation import (
  checkpoints,
  inference,
  predictions,
  report,
  scores,
)
from bn_inception.machine import distributed
from bn_inception.machine.path_flags import define_path, define_paths
from bn_inception.runs import run_directory

CROPS = {
  '1': 'centre',
  '1_of_256': 'short_side',
  'slim': 'slim',
  'torchvision': 'torchvision',
  'caffe': 'caffe',
  '10': 'ten',
  '144': 'googlenet',
}

_WORKDIR = define_path(
  'workdir',
  'runs/digits',
  'Folder of a run, as given to train.py. Example: --workdir=runs/digits',
)
_CHECKPOINT = define_paths(
  'checkpoint',
  'Folder of one checkpoint, instead of --workdir; several are an ensemble. '
  'Example: --checkpoint runs/a/checkpoints/450 runs/b/checkpoints/450',
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
_DATA_DIR = define_path(
  'data_dir',
  None,
  'Folder of the data sets that TensorFlow Datasets prepared. Default: its own, '
  '$TFDS_DATA_DIR or ~/tensorflow_datasets. Example: --data_dir=/data/tfds',
  may_be_bucket=True,
)
_STATISTICS = flags.DEFINE_enum(
  'statistics',
  'moving',
  ['moving', 'population', 'both'],
  'What batch normalization uses: moving averages, population statistics '
  '(Algorithm 2, from training mini-batches), or both. '
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
_CROPS = flags.DEFINE_enum(
  'crops',
  None,
  list(CROPS),
  "Crops of an image to average over; default: the run's rule. 1: its centre, a "
  'square of 87.5 % of the short side; 1_of_256: the middle of the short side '
  'resized to 256 (of 224); slim, torchvision, caffe: one crop as these take it; '
  "10: AlexNet's; 144: GoogLeNet's. Example: --crops=144",
)
_DTYPE = flags.DEFINE_enum(
  'dtype',
  None,
  ['float32', 'bfloat16'],
  "Of the computation; default: the run's. Example: --dtype=bfloat16",
)
_SAVE_PREDICTIONS = define_path(
  'save_predictions',
  None,
  "NPZ file for the logarithms of the class probabilities of every image, with the images' names. "
  'Example: --save_predictions=a.npz',
)
_PREDICTIONS = define_paths(
  'predictions',
  'Average saved predictions, without running anything. '
  'Example: --predictions a.npz b.npz',
)
_REAL = flags.DEFINE_bool(
  'real',
  False,
  "Also the accuracy by the ReaL labels of ImageNet's validation set. "
  'Example: --real',
)
_IMAGES = define_paths(
  'images',
  'Name the five most probable classes of image files. '
  'Example: --images a.jpg b.png',
)
_FOLD = flags.DEFINE_bool(
  'fold',
  False,
  'Evaluate with batch normalization folded into the convolutions. '
  'Example: --fold',
)
_OUTPUT = define_path(
  'output',
  None,
  'JSON file to write; default: evaluation_SPLIT_STEP.json in --workdir or '
  'next to the checkpoint, with unusual settings and other data in its name. Example: --output=digits.json',
)


command_line.define_process_flags()

REMEDY = 'give another --output or --save_predictions'

# What each way of using this program has use for.
_WITH_PREDICTIONS = {'predictions', 'output', 'real'}
_WITH_IMAGES = {'images', 'checkpoint', 'workdir', 'step', 'crops'}


def main() -> None:
  if _PREDICTIONS.value:
    refuse_others('predictions', _WITH_PREDICTIONS)
    evaluate_predictions()
    return
  if _CHECKPOINT.value and _STEP.value is not None:
    raise UserError(
      '--step chooses in --workdir: leave it out with --checkpoint'
    )
  paths = _CHECKPOINT.value or [
    checkpoints.find_checkpoint(_WORKDIR.value, _STEP.value)
  ]
  if _IMAGES.value:
    refuse_others('images', _WITH_IMAGES)
    classify(paths)
    return
  if _STATISTICS.value == 'moving':
    refuse_unused_statistics()
  options = checkpoints.EvaluationOptions(
    dataset=_DATASET.value,
    split=_SPLIT.value,
    batch_size=_BATCH_SIZE.value,
    data_dir=_DATA_DIR.value,
    crops=CROPS.get(_CROPS.value),
    statistics=_STATISTICS.value,
    population=checkpoints.PopulationOptions(
      num_batches=_STATISTICS_BATCHES.value,
      seed=_STATISTICS_SEED.value,
      dataset=_STATISTICS_DATASET.value,
      split=_STATISTICS_SPLIT.value,
    ),
    fold=_FOLD.value,
    dtype=_DTYPE.value or '',
    real=_REAL.value,
    is_named=_SAVE_PREDICTIONS.value is not None,
  )
  members = checkpoints.prepare(paths, options)
  folder = os.path.dirname(os.path.abspath(paths[0]))
  if not _CHECKPOINT.value:
    folder = _WORKDIR.value
  files = {
    'output': _OUTPUT.value or report.default_output(members, options, folder),
    'save_predictions': _SAVE_PREDICTIONS.value,
  }
  files['by class'] = os.path.splitext(files['output'])[0] + '.csv'
  distributed.from_first(lambda: check_files(files))
  if _SAVE_PREDICTIONS.value:
    source, names = members[0].source, members[0].names
    size = 4 * len(source) * len(source.class_names) + names.nbytes
    distributed.from_first(
      lambda: check_room(_SAVE_PREDICTIONS.value, size, REMEDY)
    )
  result, found = checkpoints.evaluate_members(members)
  report.print_table(result)
  *_, last = found.values()  # of both statistics, those of the population
  report.print_worst_classes(last)
  distributed.from_first(lambda: write(result, last, files))


def check_files(
  files: dict[str, str | None], inputs: Sequence[str] = ()
) -> None:
  """Refuses files that could not all be written, before the work for them.

  Makes their folders.

  Args:
    files: by what they are; None: not wanted.
    inputs: files that are read.
  """
  wanted = [path for path in files.values() if path]
  for path in wanted:
    run_directory.check_output(path, REMEDY)
  real_paths = [os.path.realpath(path) for path in (*wanted, *inputs)]
  for path in wanted:
    if real_paths.count(os.path.realpath(path)) > 1:
      raise UserError(f'{path} would be two files in one: {REMEDY}')
  for path in wanted:
    with writing(path, REMEDY):
      os.makedirs(os.path.dirname(path) or '.', exist_ok=True)


def write(
  result: dict, last: predictions.Predictions, files: dict[str, str | None]
) -> None:
  """The files that an evaluation leaves: see `check_files`."""
  report.write_result(result, files['output'])
  report.write_classes(last, files['by class'])
  if files['save_predictions']:
    predictions.save(files['save_predictions'], last)
    print(f'written to {files["save_predictions"]}')


def refuse_unused_statistics() -> None:
  """Refuses flags about population statistics when none are taken."""
  for flag in flags.FLAGS.get_key_flags_for_module(sys.argv[0]):
    if flag.present and flag.name.startswith('statistics_'):
      raise UserError(
        f'--{flag.name} has no effect with --statistics=moving: give '
        '--statistics=population or both'
      )


def refuse_others(name: str, useful: set[str]) -> None:
  """Refuses flags that have no effect with the one named."""
  for flag in flags.FLAGS.get_key_flags_for_module(sys.argv[0]):
    if flag.present and flag.name not in useful:
      raise UserError(
        f'--{flag.name} has no effect with --{name}: leave it out'
      )


def classify(paths: list[str]) -> None:
  """Prints the most probable classes of the files of --images."""
  if len(paths) > 1:
    raise UserError('--images takes one --checkpoint')
  found = inference.top_classes(
    paths[0], _IMAGES.value, CROPS.get(_CROPS.value)
  )
  for path, classes in zip(_IMAGES.value, found, strict=True):
    print(path)
    for name, probability in classes:
      print(f'  {100 * probability:6.2f} %  {imagenet.readable(name)}')


def evaluate_predictions() -> None:
  """The mean of saved predictions, and each of them alone."""
  check_files({'output': _OUTPUT.value}, inputs=_PREDICTIONS.value)
  members = [predictions.load(path) for path in _PREDICTIONS.value]
  for member in members:
    alone = scores.summary(member.log_probabilities, member.labels)
    print(
      f'{alone["top1"]:.2f} % top-1, {alone["top5"]:.2f} % top-5: {member.origin}'
    )
  mean = predictions.average(members, _PREDICTIONS.value)
  result = scores.summary(mean.log_probabilities, mean.labels)
  if _REAL.value:
    result['real'] = scores.label_set_summary(
      mean.log_probabilities,
      imagenet.real_labels(mean.names, mean.class_names),
    )
  print(f'mean of {len(members)}, {count(result["examples"], "example")}')
  report.print_accuracies([result])
  report.print_worst_classes(mean)
  if _OUTPUT.value:
    report.write_result(
      {'predictions': _PREDICTIONS.value, 'results': result}, _OUTPUT.value
    )


if __name__ == '__main__':
  command_line.run(main, of_several=('images', 'predictions', 'checkpoint'))

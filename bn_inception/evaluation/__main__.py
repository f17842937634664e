"""Averages saved predictions, and classifies images.

    python -m bn_inception.evaluation average A.npz B.npz [--output=FILE]
    python -m bn_inception.evaluation classify --workdir=DIR IMAGE...

average: the mean of the class probabilities that `eval.py --save_predictions`
wrote, and its accuracies. Runs no network.

classify: the five most probable classes of each image.

Each command lists its flags with --help. Checkpoints are evaluated by eval.py.
"""

from bn_inception.machine import interruption

if __name__ == '__main__':
  interruption.watch()  # the other imports take seconds

from collections.abc import Callable, Sequence

from absl import flags

from bn_inception.data import imagenet
from bn_inception.errors import UserError
from bn_inception.evaluation import (
  checkpoints,
  inference,
  predictions,
  report,
  scores,
)
from bn_inception.evaluation.flags import define_network_flags
from bn_inception.machine import paths, streams
from bn_inception.programs import command_line
from bn_inception.programs.path_flags import define_path
from bn_inception.wording import count


def average(
  files: Sequence[str], output: str | None = None, with_real: bool = False
) -> None:
  """Prints the accuracies of saved predictions, of each and of their mean.

  Args:
    files: from `predictions.save`, of the same images.
    output: JSON file for the mean's accuracies; None: no file.
    with_real: also score the mean by the ReaL labels of ImageNet.

  Raises:
    UserError: if a file is damaged or does not fit the first, or if the output
      cannot be written.
  """
  if output is not None:
    report.check_files([output], 'give another --output', inputs=files)
  members = [predictions.load(file) for file in files]
  for member in members:
    alone = scores.summary(member.log_probabilities, member.labels)
    print(
      f'{alone["top1"]:.2f} % top-1, {alone["top5"]:.2f} % top-5: {member.origin}'
    )
  mean = predictions.average(members, files)
  result = scores.summary(mean.log_probabilities, mean.labels)
  if with_real:
    result['real'] = scores.label_set_summary(
      mean.log_probabilities,
      imagenet.real_labels(mean.names, mean.class_names),
    )
  print(f'mean of {len(members)}, {count(result["examples"], "example")}')
  report.print_accuracies([result])
  report.print_worst_classes(mean)
  if output is not None:
    report.write_result({'predictions': files, 'results': result}, output)


def classify(path: str, images: Sequence[str], crops: str | None) -> None:
  """Prints the most probable classes of images; see `inference.top_classes`."""
  found = inference.top_classes(path, images, crops)
  for image, classes in zip(images, found, strict=True):
    print(image)
    for name, probability in classes:
      print(f'  {100 * probability:6.2f} %  {imagenet.readable(name)}')


def define_average() -> Callable[[list[str]], None]:
  """Defines the flags of `average`, and returns its main function."""
  define_path(
    'output',
    None,
    'JSON file to write; default: none. Example: --output=ensemble.json',
  )
  flags.DEFINE_bool(
    'real',
    False,
    "Also the accuracy by the ReaL labels of ImageNet's validation set. "
    'Example: --real',
  )

  def main(arguments: list[str]) -> None:
    if not arguments:
      raise UserError(
        'give one file or more that eval.py --save_predictions wrote: average '
        'a.npz b.npz'
      )
    values = flags.FLAGS
    if values.output is not None:
      streams.continue_without_stdout()
    files = [paths.expand(argument, 'FILE') for argument in arguments]
    average(files, values.output, values.real)

  return main


def define_classify() -> Callable[[list[str]], None]:
  """Defines the flags of `classify`, and returns its main function."""
  define_network_flags()
  define_path(
    'checkpoint',
    None,
    'Folder of a checkpoint, instead of --workdir. '
    'Example: --checkpoint=runs/digits/checkpoints/1802',
  )

  def main(arguments: list[str]) -> None:
    if not arguments:
      raise UserError('give one image or more: classify a.jpg b.png')
    values = flags.FLAGS
    given = [] if values.checkpoint is None else [values.checkpoint]
    (path,) = checkpoints.choose(given, values.workdir, values.step)
    images = [paths.expand(argument, 'IMAGE') for argument in arguments]
    classify(path, images, values.crops)

  return main


if __name__ == '__main__':
  command_line.run_one_of(
    {'average': define_average, 'classify': define_classify},
    takes_arguments=True,
  )

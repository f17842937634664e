"""Verifies copies of data sets, and makes copies with smaller images.

    python -m bn_inception.data check --data_dir=DIR
    python -m bn_inception.data shrink --data_dir=DIR --output_dir=OUT

check: verifies that a copy of a data set is complete and readable: ImageNet as
prepared by TensorFlow Datasets, in folders, or in the official tars; another data
set prepared by TensorFlow Datasets; or, with --dataset=image_folder, your own
folders.

shrink: writes a copy of a data set with a short side of 256 pixels, to be used in
place of the original with --data_dir=OUT.

Each command lists its flags with --help.
"""

from bn_inception.machine import interruption

if __name__ == '__main__':
  interruption.watch()  # the other imports take seconds

from collections.abc import Callable

from absl import flags

from bn_inception.data import check, imagenet, shrink
from bn_inception.machine import streams
from bn_inception.programs import command_line
from bn_inception.programs.path_flags import define_path


def define_common_flags() -> None:
  """Defines --data_dir and --dataset."""
  define_path(
    'data_dir',
    None,
    'Folder of the data: the data_dir of `tfds build`, the parent of train/ and '
    'val/, or the folder of the official tars. Example: --data_dir=/data/tfds',
    required=True,
    may_be_bucket=True,
  )
  flags.DEFINE_string(
    'dataset',
    imagenet.NAME,
    'Name of the data set in the TFDS catalogue, or (check only) image_folder. '
    'Example: --dataset=cifar10',
  )


def define_check() -> Callable[[], None]:
  """Defines the flags of `check`, and returns its main function."""
  define_common_flags()
  values = flags.FLAGS
  return lambda: check.check(values.dataset, values.data_dir)


def define_shrink() -> Callable[[], None]:
  """Defines the flags of `shrink`, and returns its main function."""
  define_common_flags()
  define_path(
    'output_dir',
    None,
    'Folder for the copy: the --data_dir to train from. '
    'Example: --output_dir=/data/tfds256',
    required=True,
  )
  flags.DEFINE_integer(
    'short_side',
    256,
    "Short side of the copy's images in pixels; smaller images stay unchanged. "
    'Example: --short_side=320',
  )
  flags.DEFINE_integer(
    'quality',
    95,
    'JPEG quality of the copy, 1 to 100. Example: --quality=90',
  )
  flags.DEFINE_list(
    'splits',
    None,
    'Splits to copy; default: all. Example: --splits=train,validation',
  )
  values = flags.FLAGS

  def main() -> None:
    streams.continue_without_stdout()
    shrink.shrink(
      values.dataset,
      values.data_dir,
      values.output_dir,
      values.short_side,
      values.quality,
      values.splits,
    )

  return main


if __name__ == '__main__':
  command_line.run_one_of({'check': define_check, 'shrink': define_shrink})

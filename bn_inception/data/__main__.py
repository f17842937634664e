"""Verifies copies of data sets, and makes copies with smaller images.

    python -m bn_inception.data check --data_dir=DIR
    python -m bn_inception.data shrink --data_dir=DIR --output_dir=OUT

check: says whether a copy of ImageNet is complete and can be read, be it
prepared by TensorFlow Datasets, in folders, or in the official tars; or a copy
of another data set prepared by TensorFlow Datasets; or, with
--dataset=image_folder, folders of one's own.

shrink: writes a copy with images of a short side of 256 pixels, which is used
like the original with --data_dir=OUT.

Each explains its flags with --help.
"""

from bn_inception.machine import interruption

if __name__ == '__main__':
  interruption.watch()  # the other imports take seconds

from collections.abc import Callable

from absl import flags

from bn_inception import command_line
from bn_inception.data import check as checking
from bn_inception.data import imagenet
from bn_inception.data import shrink as shrinking
from bn_inception.machine import streams
from bn_inception.machine.path_flags import define_path


def define_common_flags() -> None:
  """--data_dir and --dataset."""
  define_path(
    'data_dir',
    None,
    'Folder of the data: the data_dir of `tfds build`, or the folder of train/ '
    'and val/, or that of the official tars. Example: --data_dir=/data/tfds',
    required=True,
    may_be_bucket=True,
  )
  flags.DEFINE_string(
    'dataset',
    imagenet.NAME,
    'Name of the data set in the TFDS catalogue. Example: --dataset=cifar10',
  )


def check() -> Callable[[], None]:
  """Defines the flags of `check`; what it does with them."""
  define_common_flags()
  values = flags.FLAGS
  return lambda: checking.check(values.dataset, values.data_dir)


def shrink() -> Callable[[], None]:
  """Defines the flags of `shrink`; what it does with them."""
  define_common_flags()
  define_path(
    'output_dir',
    None,
    'Folder for the copy, then the --data_dir to train from. '
    'Example: --output_dir=/data/tfds256',
    required=True,
  )
  flags.DEFINE_integer(
    'short_side',
    256,
    "Pixels of the shorter side of the copy's images; smaller images stay as "
    'they are. Example: --short_side=320',
  )
  flags.DEFINE_integer(
    'quality',
    95,
    "Quality of the copy's JPEGs, 1 to 100. Example: --quality=90",
  )
  flags.DEFINE_list(
    'splits',
    None,
    'Splits to copy; default: all. Example: --splits=train,validation',
  )
  values = flags.FLAGS

  def main() -> None:
    streams.go_on_without_stdout()
    shrinking.shrink(
      values.dataset,
      values.data_dir,
      values.output_dir,
      values.short_side,
      values.quality,
      values.splits,
    )

  return main


if __name__ == '__main__':
  command_line.run_one_of({'check': check, 'shrink': shrink})

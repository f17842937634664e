"""The flags that choose a network, for the programs that evaluate."""

from absl import flags

from bn_inception.data.crops import NUM_CROPS
from bn_inception.programs.path_flags import define_path

flags.disclaim_key_flags()  # they belong to the program that defines them


def define_network_flags() -> None:
  """Defines --workdir, --step and --crops."""
  define_path(
    'workdir',
    'runs/digits',
    'Folder of a run, as given to train.py. Example: --workdir=runs/digits',
  )
  flags.DEFINE_integer(
    'step',
    None,
    'Step of the checkpoint in --workdir; default: the newest. Example: --step=1802',
  )
  flags.DEFINE_enum(
    'crops',
    None,
    list(NUM_CROPS),
    "Crops of an image to average over; default: the run's data.eval_crop. whole: "
    'the image itself; centre: a square of 87.5 % of the short side; short_side: '
    'the middle of the short side resized to 256 (of 224); slim, torchvision, '
    "caffe: one crop, as these take it; ten: AlexNet's 10; googlenet: "
    "GoogLeNet's 144. Example: --crops=googlenet",
  )

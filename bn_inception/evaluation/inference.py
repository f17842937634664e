"""Applies a trained network to images, from a program or a notebook."""

from collections.abc import Callable, Sequence

import numpy as np

from bn_inception import inception
from bn_inception.data.crops import NUM_CROPS
from bn_inception.data.images import BadImageError, decode_image
from bn_inception.data.sources import ListedImages
from bn_inception.errors import UserError
from bn_inception.evaluation.passes import predict
from bn_inception.experiment import setup_of_checkpoint
from bn_inception.runs import checkpoint

Images = Sequence[str | bytes | np.ndarray]


def load(
  path: str, crops: str | None = None
) -> tuple[inception.Inception, Callable[[Images], np.ndarray]]:
  """Loads a network from a checkpoint.

    model, apply = load('runs/digits/checkpoints/1800')
    probabilities = apply(['a.jpg', 'b.png'])

  Args:
    path: of a checkpoint.
    crops: a rule of `crops.NUM_CROPS`; None: that of the run's evaluation.

  Returns:
    The linen module in evaluation mode, and `apply`: images, each a path,
    encoded bytes or uint8 [H, W, C] of any size -> class probabilities, float32
    [N, classes]. It runs on all devices, with moving averages.

  Raises:
    UserError: as `checkpoint.restore_weights`; from `apply`: if an image cannot
      be read.
  """
  description = checkpoint.read_description(path)
  config = description['config']
  config['data']['num_workers'] = 0  # processes take longer to start than this
  if crops is not None:
    config['data']['eval_crop'] = crops
  setup = setup_of_checkpoint(description)
  state = checkpoint.restore_weights(
    path, setup.abstract_state(), setup.replicated
  )

  def apply(images: Images) -> np.ndarray:
    source = ListedImages(
      images, description['class_names'], description['num_channels']
    )
    num_inputs = len(images) * NUM_CROPS[setup.batches.options.eval_crop]
    # A power of two, so that few sizes are compiled.
    enough = 1 << max(0, num_inputs - 1).bit_length()
    log_probabilities, _, _ = predict(
      setup.predict_step,
      state.evaluation_variables,
      setup.batches.evaluation(source, at_most=enough),
      source,
    )
    return np.exp(log_probabilities)

  return setup.model, apply


def top_classes(
  path: str, images: Images, crops: str | None = None, number: int = 5
) -> list[list[tuple[str, float]]]:
  """The most probable classes of images: (name, probability) of each.

  Args:
    path: of a checkpoint.
    images, crops: see `load`.
    number: how many classes.

  Raises:
    UserError: as `load`.
  """
  description = checkpoint.read_description(path)
  class_names = description['class_names']
  _check_images(
    ListedImages(images, class_names, description['num_channels'])
  )  # before minutes of compiling
  _, apply = load(path, crops)
  found = []
  for probabilities in apply(images):
    best = np.argsort(-probabilities, kind='stable')[:number]
    found.append([(class_names[i], float(probabilities[i])) for i in best])
  return found


def _check_images(source: ListedImages) -> None:
  for i in range(len(source)):
    try:
      image, _ = source[i]
      decode_image(image, source.num_channels)
    except (OSError, BadImageError) as error:
      reason = getattr(error, 'strerror', None) or error
      raise UserError(
        f'{source.describe(i)}: {reason}: give another image'
      ) from error

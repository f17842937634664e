"""A trained network applied to images, from a program or a notebook."""

from collections.abc import Callable, Sequence

import jax
import numpy as np

from bn_inception import inception, mesh
from bn_inception.data.crops import NUM_CROPS
from bn_inception.data.images import BadImageError, decode_image
from bn_inception.data.sources import ListedImages
from bn_inception.errors import UserError
from bn_inception.evaluation.passes import predict
from bn_inception.experiment import make_evaluation_batches, make_evaluator
from bn_inception.runs import checkpoint

Images = Sequence[str | bytes | np.ndarray]


def load(
  path: str, crops: str | None = None
) -> tuple[inception.Inception, Callable[[Images], np.ndarray]]:
  """A network and what applies it.

    model, apply = load('runs/digits/checkpoints/1800')
    probabilities = apply(['a.jpg', 'b.png'])

  Args:
    path: of a checkpoint.
    crops: a rule of `crops.NUM_CROPS`; None: that of the run's evaluation.

  Returns:
    The linen module in evaluation mode, and `apply`: images, each a path,
    encoded bytes or uint8 [H, W, C] of any size -> class probabilities, float32
    [N, classes]. It uses moving averages for batch statistics, and all devices.

  Raises:
    UserError: if it is no checkpoint, or one of weights that are no numbers:
      see `checkpoint.restore_weights`; `apply`: if an image cannot be read.
  """
  description = checkpoint.read_description(path)
  config = description['config']
  config['data']['num_workers'] = 0  # processes take longer to start than this
  if crops is not None:
    config['data']['eval_crop'] = crops
  device_mesh = mesh.make_evaluation_mesh(jax.devices())

  def list_images(images: Images) -> ListedImages:
    return ListedImages(
      images, description['class_names'], description['num_channels']
    )

  evaluator = make_evaluator(config, list_images([]), device_mesh)
  state = checkpoint.restore_weights(
    path, evaluator.abstract_state, mesh.replicated(device_mesh)
  )
  predict_step = evaluator.make_predict_step(evaluator.model)

  def apply(images: Images) -> np.ndarray:
    num_inputs = len(images) * NUM_CROPS[config['data']['eval_crop']]
    # Powers of two, so that few sizes are compiled.
    enough = 1 << max(0, num_inputs - 1).bit_length()
    own = {
      **config, 'eval_batch_size': min(config['eval_batch_size'], enough)
    }  # fmt: skip
    source = list_images(images)
    log_probabilities, _, _ = predict(
      predict_step,
      state.evaluation_variables,
      make_evaluation_batches(own, source, device_mesh),
      source,
    )
    return np.exp(log_probabilities)

  return evaluator.model, apply


def top_classes(
  path: str, images: Images, crops: str | None = None, number: int = 5
) -> list[list[tuple[str, float]]]:
  """The most probable classes of images, by name, with their probabilities.

  Args:
    path: of a checkpoint.
    images, crops: as of `load`.
    number: of classes to name.

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

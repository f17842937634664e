"""Applies a trained network to images, from a program or a notebook."""

import os
from collections.abc import Callable, Sequence
from typing import NamedTuple

import flax.linen as nn
import jax
import numpy as np

from bn_inception.data.crops import NUM_CROPS
from bn_inception.data.images import BadImageError, decode_image
from bn_inception.data.input_pipeline import evaluation_batches
from bn_inception.data.sources import ListedImages
from bn_inception.errors import UserError
from bn_inception.evaluation.passes import predict
from bn_inception.experiment import setup_of_checkpoint
from bn_inception.runs import checkpoint

# Each a path, encoded bytes or uint8 [H, W, C] of any size.
Images = Sequence[str | os.PathLike | bytes | np.ndarray]


class Network(NamedTuple):
  """A trained network; everything runs with moving averages.

  Attributes:
    model: the linen module in evaluation mode.
    variables: its params and batch_stats.
    apply: images -> class probabilities, float32 [N, classes], averaged over
      the crops, on all devices.
    inputs: images -> what `model` takes: cropped and scaled, float32
      [N, size, size, C]; of several crops [N, crops, size, size, C].
    class_names: in the order of the classes.
  """

  model: nn.Module
  variables: dict
  apply: Callable[[Images], np.ndarray]
  inputs: Callable[[Images], np.ndarray]
  class_names: tuple[str, ...]


def load(path: str, crops: str | None = None) -> Network:
  """Loads a network from a checkpoint.

    network = load('runs/digits/checkpoints/1802')
    probabilities = network.apply(['a.jpg', 'b.png'])
    logits = network.model.apply(network.variables, network.inputs(['a.jpg']))

  Args:
    path: of a checkpoint.
    crops: a rule of `crops.NUM_CROPS`; None: that of the run's evaluation.

  Raises:
    UserError: as `checkpoint.restore_weights`; from `apply` and `inputs`: if an
      image cannot be read or is none, or if `inputs` gets none.
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
  class_names = tuple(description['class_names'])

  def open_images(images: Images) -> ListedImages:
    return ListedImages(images, class_names, description['num_channels'])

  def apply(images: Images) -> np.ndarray:
    source = open_images(images)
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

  def inputs(images: Images) -> np.ndarray:
    if not len(images):
      raise UserError('there are no images: give one or more')
    [batch] = evaluation_batches(
      open_images(images), setup.batches.options, len(images)
    )
    views = batch['image']
    flat = setup.scale(views.reshape(-1, *views.shape[-3:]))
    return np.asarray(flat).reshape(*views.shape[:-1], flat.shape[-1])

  variables = jax.device_get(state.evaluation_variables)
  return Network(setup.model, variables, apply, inputs, class_names)


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
  found = []
  for probabilities in load(path, crops).apply(images):
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

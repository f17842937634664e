"""The batches that a network trains on and is evaluated on, on the devices."""

import dataclasses
import sys

import jax

from bn_inception import mesh
from bn_inception.data.crops import NUM_CROPS
from bn_inception.data.input_pipeline import (
  DeviceBatches,
  InputOptions,
  abstract_training_batch,
  evaluation_batches,
  evaluation_load,
  training_batches,
  training_load,
)
from bn_inception.data.source import Source
from bn_inception.machine import distributed, shared_memory


@dataclasses.dataclass(frozen=True)
class Batches:
  """The sizes of batches, how they are made, and the devices they go to.

  Attributes:
    options: see `InputOptions`.
    num_channels: of the images.
    batch_size: global batch of an update.
    accumulate_steps: micro-batches that it is cut into.
    eval_batch_size: images of a global batch in evaluation, each crop counted.
    seed: of the order in training.
    device_mesh: the devices.
  """

  options: InputOptions
  num_channels: int
  batch_size: int
  accumulate_steps: int
  eval_batch_size: int
  seed: int
  device_mesh: jax.sharding.Mesh

  @property
  def micro_batch_size(self) -> int:
    """The global batch of a forward pass in training."""
    return self.batch_size // self.accumulate_steps

  @property
  def _is_accumulating(self) -> bool:
    return self.accumulate_steps > 1

  def training(
    self, source: Source, first_step: int, last_step: int
  ) -> DeviceBatches:
    """The batches of updates first_step .. last_step - 1."""
    batches = training_batches(
      source,
      self.options,
      self.batch_size,
      self.seed,
      first_step,
      last_step,
      self.accumulate_steps,
    )
    return DeviceBatches(batches, self.device_mesh, self._is_accumulating)

  def abstract_training(self) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes, types and shardings of a batch of `training`."""
    return abstract_training_batch(
      self.options,
      self.batch_size,
      self.num_channels,
      mesh.batch_sharding(self.device_mesh, self._is_accumulating),
      self.accumulate_steps,
    )

  def evaluation(
    self, source: Source, at_most: int | None = None
  ) -> DeviceBatches:
    """One pass over a source, padded and masked.

    Args:
      source: to evaluate on.
      at_most: a bound for `eval_batch_size`, for a source of few images.
    """
    size = min(self.eval_batch_size, at_most or sys.maxsize)
    return DeviceBatches(
      evaluation_batches(source, self.options, self._num_images(size)),
      self.device_mesh,
    )

  def _num_images(self, eval_batch_size: int) -> int:
    """Whole images, with all their crops; a multiple of the devices."""
    num_images = max(1, eval_batch_size // NUM_CROPS[self.options.eval_crop])
    num_devices = self.device_mesh.devices.size
    return -(-num_images // num_devices) * num_devices

  def statistics(
    self, source: Source, num_batches: int, seed: int
  ) -> DeviceBatches:
    """Batches to take statistics from, as large and as distorted as in training.

    Labels have no influence, so a source of other classes will do.

    Args:
      source: of images with `num_channels`.
      num_batches: how many.
      seed: of their order.
    """
    options = self.options
    if options.num_shards > len(source):  # fewer examples than in training
      options = dataclasses.replace(options, shuffle='global')
    return DeviceBatches(
      training_batches(
        source, options, self.micro_batch_size, seed, 0, num_batches
      ),
      self.device_mesh,
    )

  def evaluation_loads(
    self, source: Source, statistics_batches: int = sys.maxsize
  ) -> list[shared_memory.Load]:
    """Memory of `evaluation` and of `statistics`, never both at a time."""
    images = self._num_images(self.eval_batch_size)
    return [
      evaluation_load(self.options, images, source),
      training_load(
        self.options,
        self.micro_batch_size,
        self.num_channels,
        statistics_batches,
      ),
    ]

  def check_shared_memory(
    self, num_steps: int, eval_source: Source, statistics_batches: int
  ) -> None:
    """Raises UserError if the batches of worker processes may not fit.

    Training batches stay while those of evaluations come and go.

    Args:
      num_steps: updates of the run.
      eval_source: what is evaluated on the way.
      statistics_batches: of each evaluation.
    """
    options = self.options
    if options.num_workers == 0:
      return
    training = training_load(
      options, self.batch_size, self.num_channels, num_steps
    )
    for other in self.evaluation_loads(eval_source, statistics_batches):
      shared_memory.check(
        options.num_workers,
        options.prefetch,
        [training, other],
        distributed.processes_on_this_host(),
      )

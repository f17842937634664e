"""Momentum SGD, L2 on kernels only, staircase exponential decay."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import optax

from bn_inception import config_keys
from bn_inception.errors import UserError


class Optimizer(NamedTuple):
  """An optax transformation, and what the train step needs besides.

  Attributes:
    transform: the update rule.
    learning_rate_fn: the schedule inside it, for logging.
    average_decay: of the Polyak average of the parameters; 0 = none.
    accumulate_steps: micro-batches whose gradients are averaged per update.
  """

  transform: optax.GradientTransformation
  learning_rate_fn: Callable[[jax.Array], jax.Array]
  average_decay: float
  accumulate_steps: int


def effective_learning_rate(
  learning_rate: float, batch_size: int, learning_rate_per_32: bool
) -> float:
  """The initial rate: as given, or per 32 examples of the global batch."""
  return learning_rate * (batch_size / 32 if learning_rate_per_32 else 1.0)


def decay_schedule(
  learning_rate: float,
  decay_factor: float,
  decay_epochs: float,
  steps_per_epoch: float,
) -> Callable[[jax.Array], jax.Array]:
  """learning_rate * decay_factor ^ floor(step / (decay_epochs of steps)).

  Section 4.2.1, change 4: the rate decays exponentially; in stairs of
  `decay_epochs` epochs, as in GoogLeNet (-4 % every 8 epochs).
  """
  return optax.exponential_decay(
    learning_rate,
    transition_steps=decay_epochs * steps_per_epoch,
    decay_rate=decay_factor,
    staircase=True,
  )


def kernel_mask(params):
  """True for convolution and linear kernels: what the L2 loss applies to."""
  return jax.tree_util.tree_map_with_path(
    lambda path, _: path[-1].key == 'kernel', params
  )


def make_optimizer(
  *,
  steps_per_epoch: float,
  batch_size: int,
  learning_rate: float,
  learning_rate_per_32: bool,
  momentum: float,
  nesterov: bool,
  weight_decay: float,
  decay_factor: float,
  decay_epochs: float,
  average_decay: float,
  accumulate_steps: int,
) -> Optimizer:
  """SGD with momentum in its classical form (Sutskever et al. 2013).

  v <- momentum * v - rate(step) * (gradient + weight_decay * kernel)
  parameter <- parameter + v

  The rate multiplies the gradient before it enters v, so that a step of the
  schedule acts on new gradients only. `weight_decay * kernel` is the gradient
  of the L2 loss weight_decay / 2 * |kernel|^2; scales and biases have none.

  Args:
    steps_per_epoch: training examples / global batch; need not be whole.
    batch_size: global batch, for `learning_rate_per_32`.
    learning_rate: initial rate.
    learning_rate_per_32: multiply the rate by batch_size / 32.
    momentum: of the velocity v.
    nesterov: evaluate v one step ahead.
    weight_decay: of the kernels.
    decay_factor, decay_epochs: see `decay_schedule`; a factor of 1 keeps the
      rate constant.
    average_decay: of the Polyak average of the parameters; 0 = none. Moving
      averages of batch norm belong to the parameters themselves: evaluate the
      average with population statistics.
    accumulate_steps: cut the batch into so many micro-batches, each with batch
      statistics of its own, and average their gradients; for batches that do
      not fit a device.

  Returns:
    An `Optimizer`.

  Raises:
    UserError: for a number out of its range (`config_keys.KEYS`), or if the batch
      cannot be cut.
  """
  config_keys.check_section(
    'optimizer',
    {
      'learning_rate': learning_rate,
      'momentum': momentum,
      'weight_decay': weight_decay,
      'decay_factor': decay_factor,
      'decay_epochs': decay_epochs,
      'average_decay': average_decay,
      'accumulate_steps': accumulate_steps,
    },
  )
  if batch_size % accumulate_steps:
    raise UserError(
      f'optimizer.accumulate_steps {accumulate_steps} does not divide '
      f'batch_size {batch_size}'
    )
  rate = effective_learning_rate(
    learning_rate, batch_size, learning_rate_per_32
  )
  schedule = decay_schedule(rate, decay_factor, decay_epochs, steps_per_epoch)
  transform = optax.chain(
    optax.add_decayed_weights(weight_decay, mask=kernel_mask),
    optax.scale_by_learning_rate(schedule),
    optax.trace(momentum, nesterov=nesterov),
  )
  return Optimizer(transform, schedule, average_decay, accumulate_steps)

"""Momentum SGD, L2 on kernels only, staircase exponential decay.

The paper needs no more. Four options that others expect are here too, off in the
paper's presets: cosine decay, warm-up, gradient clipping, and label smoothing.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from bn_inception import config_keys
from bn_inception.errors import UserError, check_choice

Schedule = Callable[[jax.Array], jax.Array]

PAPER_BATCH_SIZE = 32  # Section 4.2


class Optimizer(NamedTuple):
  """An optax transformation, and what else the train step needs.

  Attributes:
    transform: the update rule.
    learning_rate_fn: the schedule inside it, for logging.
    average_decay: of the Polyak average of the parameters; 0 = none.
    accumulate_steps: micro-batches whose gradients are averaged per update.
    learning_rate: the initial one: see `effective_learning_rate`.
    label_smoothing: of the training loss, see `metrics.classification_sums`.
  """

  transform: optax.GradientTransformation
  learning_rate_fn: Schedule
  average_decay: float
  accumulate_steps: int
  learning_rate: float
  label_smoothing: float = 0.0


def effective_learning_rate(
  learning_rate: float, batch_size: int, learning_rate_per_32: bool
) -> float:
  """The initial rate: as given, or per 32 examples of the global batch."""
  if not learning_rate_per_32:
    return learning_rate
  return learning_rate * (batch_size / PAPER_BATCH_SIZE)


def staircase_decay(
  learning_rate: float, factor: float, num_steps: float
) -> Schedule:
  """learning_rate * factor ^ floor(step / num_steps).

  Section 4.2.1, change 4: the rate decays exponentially; in stairs, as in GoogLeNet
  (-4 % every 8 epochs).
  """
  return optax.exponential_decay(
    learning_rate,
    transition_steps=num_steps,
    decay_rate=factor,
    staircase=True,
  )


def cosine_decay(learning_rate: float, num_steps: float) -> Schedule:
  """learning_rate * (1 + cos(pi * step / num_steps)) / 2, then 0.

  Loshchilov & Hutter (2017), without restarts.
  """
  return optax.cosine_decay_schedule(learning_rate, num_steps)


def with_warmup(schedule: Schedule, num_steps: float) -> Schedule:
  """The schedule times min(1, (step + 1) / num_steps): a linear warm-up.

  Goyal et al. (2017). The decay runs on meanwhile; 0 steps change nothing.
  """
  if num_steps == 0:
    return schedule
  return lambda step: schedule(step) * jnp.minimum(1.0, (step + 1) / num_steps)


def make_schedule(
  learning_rate: float,
  steps_per_epoch: float | None,
  schedule: str,
  decay_factor: float,
  decay_epochs: float,
  warmup_epochs: float,
) -> Schedule:
  """A schedule whose lengths are given in epochs.

  Args:
    learning_rate: initial rate.
    steps_per_epoch: None: a schedule that raises a ValueError.
    schedule: 'staircase' or 'cosine'.
    decay_factor, decay_epochs: of the staircase; a factor of 1 keeps the rate
      constant. A cosine falls to 0 in `decay_epochs` and has no factor.
    warmup_epochs: see `with_warmup`; 0 = none.

  Raises:
    UserError: for a number out of its range, or an unknown schedule.
  """
  config_keys.check_section(
    'optimizer',
    {
      'decay_factor': decay_factor,
      'decay_epochs': decay_epochs,
      'warmup_epochs': warmup_epochs,
    },
  )
  check_choice('optimizer.schedule', schedule, ('staircase', 'cosine'))
  if steps_per_epoch is None:
    return _no_schedule
  num_steps = decay_epochs * steps_per_epoch
  if schedule == 'cosine':
    decay = cosine_decay(learning_rate, num_steps)
  else:
    decay = staircase_decay(learning_rate, decay_factor, num_steps)
  return with_warmup(decay, warmup_epochs * steps_per_epoch)


def _no_schedule(step: jax.Array) -> jax.Array:
  raise ValueError('this optimizer was made without steps_per_epoch')


def kernel_mask(params):
  """True for convolution and linear kernels: what the L2 loss applies to."""
  return jax.tree_util.tree_map_with_path(
    lambda path, _: path[-1].key == 'kernel', params
  )


def make_optimizer(
  *,
  steps_per_epoch: float | None,
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
  schedule: str = 'staircase',
  warmup_epochs: float = 0.0,
  max_gradient_norm: float = 0.0,
  label_smoothing: float = 0.0,
) -> Optimizer:
  """SGD with momentum in its classical form (Sutskever et al. 2013).

  v <- momentum * v - rate(step) * (gradient + weight_decay * kernel)
  parameter <- parameter + v

  The rate multiplies the gradient before it enters v, so that a step of the
  schedule acts on new gradients only. `weight_decay * kernel` is the gradient
  of the L2 loss weight_decay / 2 * |kernel|^2; scales and biases have none.

  Args:
    steps_per_epoch: training examples / global batch; need not be whole. None:
      for creating and restoring states, which do not depend on the schedule;
      an update raises a ValueError.
    batch_size: global batch.
    learning_rate, learning_rate_per_32: see `effective_learning_rate`.
    nesterov: evaluate v one step ahead.
    schedule, decay_factor, decay_epochs, warmup_epochs: see `make_schedule`.
    average_decay: of the Polyak average of the parameters; 0 = none. Batch
      norm's moving averages are those of the latest parameters, not of their
      average: evaluate the average with population statistics.
    accumulate_steps: number of micro-batches whose gradients are averaged, each
      with its own batch statistics; for batches that do not fit a device.
    max_gradient_norm: scale gradients whose global norm is larger down to it,
      before weight decay; 0 = never.
    label_smoothing: probability of the label that the training loss spreads
      over all classes; 0 = none. Evaluations have none.

  Raises:
    UserError: as `make_schedule`, for a number out of its range
      (`config_keys.KEYS`), or if the batch cannot be cut.
  """
  config_keys.check_section(
    'optimizer',
    {
      'learning_rate': learning_rate,
      'momentum': momentum,
      'weight_decay': weight_decay,
      'average_decay': average_decay,
      'accumulate_steps': accumulate_steps,
      'max_gradient_norm': max_gradient_norm,
      'label_smoothing': label_smoothing,
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
  learning_rate_fn = make_schedule(
    rate, steps_per_epoch, schedule, decay_factor, decay_epochs, warmup_epochs
  )
  clip = [optax.clip_by_global_norm(max_gradient_norm)] * bool(
    max_gradient_norm
  )
  transform = optax.chain(
    *clip,
    optax.add_decayed_weights(weight_decay, mask=kernel_mask),
    optax.scale_by_learning_rate(learning_rate_fn),
    optax.trace(momentum, nesterov=nesterov),
  )
  return Optimizer(
    transform,
    learning_rate_fn,
    average_decay,
    accumulate_steps,
    rate,
    label_smoothing,
  )

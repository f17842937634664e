"""Momentum SGD, L2 on kernels only, staircase exponential decay.

The paper needs no more. Common options are here too, off in the paper's presets:
cosine decay, warm-up, gradient clipping, label smoothing, Nesterov momentum, averaged
parameters and gradient accumulation.
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
  """An optax transformation, and the other settings that the train step needs.

  Attributes:
    transform: the update rule, which applies the learning rate.
    learning_rate_fn: the schedule inside `transform`, for logging.
    average_decay: decay of the Polyak average of the parameters; 0 = none.
    accumulate_steps: micro-batches whose gradients are averaged per update.
    learning_rate: the initial rate: see `effective_learning_rate`.
    label_smoothing: for the training loss, see `metrics.classification_sums`.
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
  """The initial rate, multiplied by batch_size / 32 if `learning_rate_per_32`."""
  if not learning_rate_per_32:
    return learning_rate
  return learning_rate * (batch_size / PAPER_BATCH_SIZE)


def staircase_decay(
  learning_rate: float, factor: float, num_steps: float
) -> Schedule:
  """learning_rate * factor ^ floor(step / num_steps).

  Section 4.2.1, change 4: the rate decays exponentially. GoogLeNet does so in steps
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

  Goyal et al. (2017). The schedule keeps decaying during the warm-up. With 0 steps
  there is no warm-up.
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
  """A learning-rate schedule from lengths in epochs.

  Args:
    learning_rate: initial rate.
    steps_per_epoch: None returns a schedule that raises a ValueError when called.
    schedule: 'staircase' or 'cosine'.
    decay_factor, decay_epochs: the staircase multiplies the rate by the factor
      every `decay_epochs`; 1 keeps it constant. The cosine falls to 0 within
      `decay_epochs` and ignores the factor.
    warmup_epochs: see `with_warmup`; 0 = none.

  Raises:
    UserError: for a number out of its range or an unknown schedule.
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
  """True for the kernels of convolutions and linear layers: only they have L2."""
  return jax.tree_util.tree_map_with_path(
    lambda path, _: path[-1].key == 'kernel', params
  )


def momentum_sgd(
  learning_rate_fn: Schedule,
  momentum: float,
  nesterov: bool,
  weight_decay: float,
  max_gradient_norm: float,
) -> optax.GradientTransformation:
  """SGD with momentum in its classical form (Sutskever et al. 2013).

    v <- momentum * v - rate(step) * (gradient + weight_decay * kernel)
    parameter <- parameter + v

  The rate multiplies the gradient before it enters v, so a new rate affects only
  new gradients. `weight_decay * kernel` is the gradient of the L2 loss
  weight_decay / 2 * |kernel|^2; scales and biases have no L2 loss.

  Args:
    learning_rate_fn: step -> rate.
    momentum, weight_decay: as in the equations.
    nesterov: use Nesterov momentum.
    max_gradient_norm: clip gradients to this global norm, before weight decay;
      0 = no clipping.
  """
  clipping = []
  if max_gradient_norm:
    clipping = [optax.clip_by_global_norm(max_gradient_norm)]
  return optax.chain(
    *clipping,
    optax.add_decayed_weights(weight_decay, mask=kernel_mask),
    optax.scale_by_learning_rate(learning_rate_fn),
    optax.trace(momentum, nesterov=nesterov),
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
  """Builds the optimizer from the config section `optimizer`.

  Args:
    steps_per_epoch: training examples / global batch, not rounded. None suffices
      to create and restore states, which do not depend on the schedule; an update
      then raises a ValueError.
    batch_size: global batch.
    learning_rate, learning_rate_per_32: see `effective_learning_rate`.
    momentum, nesterov, weight_decay, max_gradient_norm: see `momentum_sgd`.
    schedule, decay_factor, decay_epochs, warmup_epochs: see `make_schedule`.
    average_decay: decay of the Polyak average of the parameters; 0 = none. The
      moving averages of batch norm belong to the latest parameters, so evaluate
      averaged parameters with population statistics.
    accumulate_steps: number of micro-batches whose gradients are averaged, each
      with its own batch statistics; for batches too large for a device.
    label_smoothing: share of the target that the training loss spreads over all
      classes; 0 = none. Evaluation ignores it.

  Raises:
    UserError: for a number out of its range (`config_keys.KEYS`), an unknown
      schedule, or a batch that `accumulate_steps` does not divide.
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
      f'batch_size {batch_size}: use a multiple of it as the batch size'
    )
  rate = effective_learning_rate(
    learning_rate, batch_size, learning_rate_per_32
  )
  learning_rate_fn = make_schedule(
    rate, steps_per_epoch, schedule, decay_factor, decay_epochs, warmup_epochs
  )
  transform = momentum_sgd(
    learning_rate_fn, momentum, nesterov, weight_decay, max_gradient_norm
  )
  return Optimizer(
    transform,
    learning_rate_fn,
    average_decay,
    accumulate_steps,
    rate,
    label_smoothing,
  )

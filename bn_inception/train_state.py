"""Everything that a training step reads and writes."""

from typing import Any

import flax
import jax
import jax.numpy as jnp

from bn_inception.optimizer import Optimizer


@flax.struct.dataclass
class TrainState:
  """The state of a run; replicated over the mesh.

  Attributes:
    step: number of updates so far, int32.
    params: float32 parameters.
    batch_stats: moving averages of the batch-norm layers; {} without them.
    opt_state: the optimizer's state.
    average_params: Polyak average of the parameters; {} when off.
    first_nonfinite_step: the first update whose loss or gradient was not
      finite, int32; -1 for none.
  """

  step: jax.Array
  params: Any
  batch_stats: Any
  opt_state: Any
  average_params: Any
  first_nonfinite_step: jax.Array

  @property
  def evaluation_variables(self) -> dict:
    """Variables to evaluate; the averaged parameters if the run keeps them."""
    return {
      'params': self.average_params or self.params,
      'batch_stats': self.batch_stats,
    }


def create_train_state(
  model,
  optimizer: Optimizer,
  rng: jax.Array,
  image_shape: tuple[int, int, int],
) -> TrainState:
  """Initial state with random weights.

  Args:
    model: a linen module in evaluation mode.
    optimizer: see `make_optimizer`.
    rng: key of the initial weights.
    image_shape: (H, W, C).
  """
  image = jnp.zeros((1, *image_shape), jnp.float32)
  variables = model.init(rng, image, jnp.zeros((1,), jnp.int32))
  return initial_state(variables, optimizer)


def initial_state(variables: dict, optimizer: Optimizer) -> TrainState:
  """Initial state with the given variables.

  Args:
    variables: float32 params and, where there is batch norm, batch_stats.
    optimizer: see `make_optimizer`.
  """
  params = variables['params']
  return TrainState(
    step=jnp.zeros((), jnp.int32),
    params=params,
    batch_stats=variables.get('batch_stats', {}),
    opt_state=optimizer.transform.init(params),
    average_params=jax.tree.map(jnp.copy, params)
    if optimizer.average_decay
    else {},
    first_nonfinite_step=jnp.full((), -1, jnp.int32),
  )


def count_parameters(params) -> int:
  """Number of values in a tree of parameters."""
  return sum(leaf.size for leaf in jax.tree.leaves(params))

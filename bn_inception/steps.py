"""One update and one evaluation batch: pure functions of state and batch.

`train_step` and `eval_step` run on each device under `shard_map`, on its part
of the batch; `make_train_step` and `make_eval_step` wrap them for a mesh.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, PartitionSpec

from bn_inception import batch_norm, mesh, metrics
from bn_inception.optimizer import Optimizer
from bn_inception.train_state import TrainState


def average_over_devices(tree):
  """`pmean` of the floating leaves; counters are the same everywhere."""
  # XLA:CPU runs a collective of one device as one, at a millisecond each.
  if jax.lax.axis_size(mesh.AXES) == 1:
    return tree
  return jax.tree.map(
    lambda x: (
      jax.lax.pmean(x, mesh.AXES)
      if jnp.issubdtype(x.dtype, jnp.floating)
      else x
    ),
    tree,
  )


def train_step(
  state: TrainState,
  batch: dict,
  rng: jax.Array,
  *,
  model,
  optimizer: Optimizer,
  prepare: Callable,
) -> tuple[TrainState, dict]:
  """One update on this device's part of a batch.

  Args:
    state: replicated.
    batch: image [B, H, W, C], label, mask, index [B]; mask is all True.
    rng: key of the run; folded with the step.
    model: linen module in training mode.
    optimizer: see `make_optimizer`.
    prepare: (image, index, key) -> the network's input.

  Returns:
    The next state and metrics of the global batch: `classification_sums`,
    `gradient_norm` and `learning_rate`.
  """
  rng = jax.random.fold_in(rng, state.step)
  prepare_key, dropout_key = jax.random.split(rng)
  image = prepare(batch['image'], batch['index'], prepare_key)

  def loss_fn(params):
    variables = {'params': params, 'batch_stats': state.batch_stats}
    logits, updates = model.apply(
      variables,
      image,
      batch['index'],
      mutable=['batch_stats'],
      rngs={'dropout': dropout_key},
    )
    sums = metrics.classification_sums(logits, batch['label'], batch['mask'])
    loss = sums['loss_sum'] / len(batch['label'])
    return loss, (updates.get('batch_stats', {}), sums)

  gradients, (batch_stats, sums) = jax.grad(loss_fn, has_aux=True)(state.params)
  # shard_map runs with check_vma=False, so these are gradients of the device's
  # own loss (through collectives: of the sum of losses); the mean is right.
  gradients, batch_stats = average_over_devices((gradients, batch_stats))
  sums = jax.lax.psum(sums, mesh.AXES)
  gradient_norm = optax.tree.norm(gradients)
  is_finite = jnp.isfinite(sums['loss_sum']) & jnp.isfinite(gradient_norm)
  first_bad = (~is_finite) & (state.first_nonfinite_step < 0)

  updates, opt_state = optimizer.transform.update(
    gradients, state.opt_state, state.params
  )
  params = optax.apply_updates(state.params, updates)
  new_state = TrainState(
    step=state.step + 1,
    params=params,
    batch_stats=batch_stats,
    opt_state=opt_state,
    average_params=_average_parameters(state, params, optimizer.average_decay),
    first_nonfinite_step=jnp.where(
      first_bad, state.step + 1, state.first_nonfinite_step
    ),
  )
  learning_rate = optimizer.learning_rate_fn(state.step)
  return new_state, {
    **sums,
    'gradient_norm': gradient_norm,
    'learning_rate': learning_rate,
    'first_nonfinite_step': new_state.first_nonfinite_step,
  }


def _average_parameters(state: TrainState, params, average_decay: float):
  """The Polyak average after this update, warmed up as batch statistics are."""
  if not average_decay:
    return state.average_params
  decay = batch_norm.warmed_up_decay(average_decay, state.step)
  return batch_norm.update_moving_average(state.average_params, params, decay)


def eval_step(
  variables: dict, batch: dict, *, model, prepare: Callable
) -> dict[str, jax.Array]:
  """Sums over the unmasked examples of the global batch.

  Args:
    variables: params and batch_stats of the model.
    batch: image [B, H, W, C], label, mask, index [B].
    model: linen module in evaluation mode.
    prepare: image -> the network's input.

  Returns:
    See `metrics.classification_sums`.
  """
  logits = model.apply(variables, prepare(batch['image']), batch['index'])
  sums = metrics.classification_sums(logits, batch['label'], batch['mask'])
  return jax.lax.psum(sums, mesh.AXES)


def make_train_step(device_mesh: Mesh, **keywords) -> Callable:
  """jit(shard_map(train_step)): (state, batch, rng) -> (state, metrics).

  The state is replicated and donated, the batch split over the devices.
  """
  replicated, split = PartitionSpec(), PartitionSpec(mesh.AXES)
  mapped = jax.shard_map(
    partial(train_step, **keywords),
    mesh=device_mesh,
    in_specs=(replicated, split, replicated),
    out_specs=replicated,
    check_vma=False,
  )
  return jax.jit(mapped, donate_argnums=0)


def make_eval_step(device_mesh: Mesh, **keywords) -> Callable:
  """jit(shard_map(eval_step)): (variables, batch) -> sums."""
  replicated, split = PartitionSpec(), PartitionSpec(mesh.AXES)
  mapped = jax.shard_map(
    partial(eval_step, **keywords),
    mesh=device_mesh,
    in_specs=(replicated, split),
    out_specs=replicated,
    check_vma=False,
  )
  return jax.jit(mapped)

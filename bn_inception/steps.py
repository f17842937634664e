"""One update and one evaluation batch: pure functions of state and batch.

`train_step`, `eval_step`, `predict_step` and `statistics_step` run on each device
under `shard_map`, on its part of the batch; `make_train_step` and the others wrap
them for a mesh.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, PartitionSpec

from bn_inception import batch_norm, mesh, metrics
from bn_inception.kernels.host import compiler_options
from bn_inception.optimizer import Optimizer
from bn_inception.train_state import TrainState

# Raise it by one when a change alters the numbers of training or evaluation beyond
# rounding, so that older results are never mixed with new ones.
# tests/test_results_version.py fails when that is needed.
RESULTS_VERSION = 1

REPLICATED = PartitionSpec()


def average_over_devices(tree):
  """`pmean` of the floating-point leaves; counters are equal on all devices."""
  # For one device XLA:CPU would still run the collective and its copies.
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
    batch: image [B, H, W, C], label, mask, index [B]; mask is all True. With
      gradient accumulation each has a leading axis of micro-batches.
    rng: key of the run; the step is folded in here.
    model: linen module in training mode.
    optimizer: see `make_optimizer`.
    prepare: (image, index, key) -> the network's input.

  Returns:
    The next state and metrics of the global batch: `classification_sums`,
    `gradient_norm`, `learning_rate`, `first_nonfinite_step`, and
    `measurements`: name -> [global batch], which the model sows.
  """
  keys = jax.random.split(jax.random.fold_in(rng, state.step))
  local_gradient = partial(
    _gradient, model, prepare, optimizer.label_smoothing, state.params, keys
  )
  if optimizer.accumulate_steps == 1:
    batch_stats, parts = local_gradient(state.batch_stats, batch)
    gradients, sums, measured = parts
  else:
    # Each micro-batch has its own statistics and updates the moving averages.
    batch_stats, parts = jax.lax.scan(local_gradient, state.batch_stats, batch)
    gradients = jax.tree.map(lambda g: jnp.mean(g, 0), parts[0])
    sums = jax.tree.map(lambda s: jnp.sum(s, 0), parts[1])
    measured = jax.tree.map(jnp.ravel, parts[2])
  # With check_vma=False a device gets the gradient of its own loss or, if the network
  # has collectives, its part of the gradient of the summed loss. Either way the mean
  # over devices is the gradient of the mean loss.
  gradients, batch_stats = average_over_devices((gradients, batch_stats))
  sums = jax.lax.psum(sums, mesh.AXES)
  gradient_norm = optax.tree.norm(gradients)
  updates, opt_state = optimizer.transform.update(
    gradients, state.opt_state, state.params
  )
  params = optax.apply_updates(state.params, updates)
  is_finite = _all_finite(
    (sums['loss_sum'], gradient_norm, params, batch_stats)
  )
  is_first_nonfinite = (~is_finite) & (state.first_nonfinite_step < 0)
  new_state = TrainState(
    step=state.step + 1,
    params=params,
    batch_stats=batch_stats,
    opt_state=opt_state,
    average_params=_average_parameters(state, params, optimizer.average_decay),
    first_nonfinite_step=jnp.where(
      is_first_nonfinite, state.step + 1, state.first_nonfinite_step
    ),
  )
  return new_state, {
    **sums,
    'gradient_norm': gradient_norm,
    'learning_rate': optimizer.learning_rate_fn(state.step),
    'first_nonfinite_step': new_state.first_nonfinite_step,
    'measurements': jax.lax.all_gather(measured, mesh.AXES, tiled=True),
  }


def _gradient(
  model, prepare, label_smoothing, params, keys, batch_stats, batch
):
  """Gradient of the mean loss on one (micro-)batch, as the body of a scan.

  Returns:
    (batch_stats, (gradients, sums, measurements)), where batch_stats are the
    moving averages after this batch.
  """
  prepare_key, dropout_key = keys
  image = prepare(batch['image'], batch['index'], prepare_key)

  def loss_fn(params):
    logits, updates = model.apply(
      {'params': params, 'batch_stats': batch_stats},
      image,
      batch['index'],
      mutable=['batch_stats', 'measurements'],
      rngs={'dropout': dropout_key},
    )
    sums = metrics.classification_sums(
      logits, batch['label'], batch['mask'], label_smoothing
    )
    loss = sums['loss_sum'] / len(batch['label'])
    # A sown value is a tuple with one entry for each call of the module.
    sown = updates.get('measurements', {})
    measured = {name: values[0] for name, values in sown.items()}
    return loss, (updates.get('batch_stats', {}), sums, measured)

  gradients, (batch_stats, *others) = jax.grad(loss_fn, has_aux=True)(params)
  return batch_stats, (gradients, *others)


def _all_finite(tree) -> jax.Array:
  leaves = [jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(tree)]
  return jnp.all(jnp.stack(leaves))


def _average_parameters(state: TrainState, params, average_decay: float):
  """The Polyak average after this update, with the warm-up of the moving averages."""
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
  logits = _evaluation_logits(variables, batch, model, prepare)
  sums = metrics.classification_sums(logits, batch['label'], batch['mask'])
  return jax.lax.psum(sums, mesh.AXES)


def _evaluation_logits(variables, batch, model, prepare) -> jax.Array:
  """Logits [B, classes]; for several views, the log of the mean probabilities."""
  image = batch['image']
  if image.ndim == 4:
    return model.apply(variables, prepare(image), batch['index'])
  num_examples, num_views = image.shape[:2]
  views = prepare(image.reshape(-1, *image.shape[2:]))
  # [2, B, views]: unchanged and mirrored.
  views = jnp.concatenate([views, views[:, :, ::-1]])
  index = jnp.tile(jnp.repeat(batch['index'], num_views), 2)
  logits = model.apply(variables, views, index)
  log_probability = jax.nn.log_softmax(logits)
  log_probability = log_probability.reshape(2, num_examples, num_views, -1)
  total = jax.nn.logsumexp(log_probability, axis=(0, 2))
  return total - jnp.log(2.0 * num_views)


def predict_step(
  variables: dict, batch: dict, *, model, prepare: Callable
) -> dict[str, jax.Array]:
  """Class log-probabilities of this device's examples.

  Args:
    variables, batch, model, prepare: see `eval_step`.

  Returns:
    `log_probabilities`, float32 [B, classes], the log of the mean over views, and
    the batch's `label`, `index` and `mask` [B].
  """
  logits = _evaluation_logits(variables, batch, model, prepare)
  return {
    'log_probabilities': jax.nn.log_softmax(logits),
    **{name: batch[name] for name in ('label', 'index', 'mask')},
  }


def statistics_step(
  variables: dict, batch: dict, rng: jax.Array, *, model, prepare: Callable
) -> dict:
  """Mean and unbiased variance of every batch-norm layer on one mini-batch.

  The body of Algorithm 2, lines 8 to 10, for all layers at once.
  `evaluation.passes.with_population_statistics` averages it over mini-batches.

  Args:
    variables: params and batch_stats; the latter have no effect.
    batch: as in `train_step`, without accumulation.
    rng: key of the distortions; use a new one for each batch.
    model: linen module in training mode.
    prepare: (image, index, key) -> the network's input.

  Returns:
    A tree like `batch_stats`, averaged over the normalisation batches.
  """
  # With a decay of 0 the moving average is the new value.
  model = model.clone(statistics_decay=0.0)
  image = prepare(batch['image'], batch['index'], rng)
  _, updates = model.apply(
    variables,
    image,
    batch['index'],
    mutable=['batch_stats'],
    # It has no effect: dropout comes after the last batch-norm layer.
    rngs={'dropout': rng},
  )
  return average_over_devices(updates['batch_stats'])


def make_train_step(
  device_mesh: Mesh, *, optimizer: Optimizer, **keywords
) -> Callable:
  """jit(shard_map(train_step)): (state, batch, rng) -> (state, metrics).

  The state is replicated and donated; the batch is split over the devices.
  """
  is_accumulating = optimizer.accumulate_steps > 1
  step = partial(train_step, optimizer=optimizer, **keywords)
  batch_spec = mesh.batch_sharding(device_mesh, is_accumulating).spec
  in_specs = (REPLICATED, batch_spec, REPLICATED)
  return _jit_mapped(step, device_mesh, in_specs, donate_argnums=0)


def make_eval_step(device_mesh: Mesh, **keywords) -> Callable:
  """jit(shard_map(eval_step)): (variables, batch) -> sums."""
  in_specs = (REPLICATED, mesh.batch_sharding(device_mesh).spec)
  return _jit_mapped(partial(eval_step, **keywords), device_mesh, in_specs)


def make_predict_step(device_mesh: Mesh, **keywords) -> Callable:
  """jit(shard_map(predict_step)): (variables, batch) -> probabilities.

  The result is split over the devices, like the batch.
  """
  batch_spec = mesh.batch_sharding(device_mesh).spec
  step = partial(predict_step, **keywords)
  return _jit_mapped(step, device_mesh, (REPLICATED, batch_spec), batch_spec)


def make_statistics_step(device_mesh: Mesh, **keywords) -> Callable:
  """jit(shard_map(statistics_step)): (variables, batch, rng) -> batch_stats."""
  step = partial(statistics_step, **keywords)
  in_specs = (REPLICATED, mesh.batch_sharding(device_mesh).spec, REPLICATED)
  return _jit_mapped(step, device_mesh, in_specs)


def _jit_mapped(
  step: Callable, device_mesh: Mesh, in_specs, out_specs=REPLICATED, **keywords
) -> Callable:
  mapped = jax.shard_map(
    step,
    mesh=device_mesh,
    in_specs=in_specs,
    out_specs=out_specs,
    check_vma=False,
  )
  options = compiler_options(device_mesh)
  return jax.jit(mapped, compiler_options=options, **keywords)

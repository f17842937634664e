"""Passes over a split: for accuracies, predictions and population statistics."""

import time
from collections.abc import Callable, Iterable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from bn_inception import mesh, metrics
from bn_inception.data.sources import Source
from bn_inception.experiment import Setup


def evaluate(
  eval_step: Callable,
  variables: dict,
  batches: Iterable[dict],
  num_examples: int,
) -> dict[str, float]:
  """Loss and accuracies over all examples.

  Args:
    eval_step: (variables, batch) -> sums: see `steps.make_eval_step`.
    variables: params and batch_stats.
    batches: on the devices, padded and masked.
    num_examples: of the split.

  Returns:
    `loss`, `top1` and `top5` (percent) and `examples`. The loss of a diverged
    network may not be finite.

  Raises:
    RuntimeError: if it did not count `num_examples` examples.
  """
  sums = []
  for batch in batches:
    sums.append(eval_step(variables, batch))
    # Neither batches nor collectives may pile up on the devices: XLA:CPU with
    # more devices than cores can deadlock. One step ahead is enough.
    jax.block_until_ready(sums[-2:][0])
  total = metrics.add_sums(jax.device_get(sums))
  counted = int(total['count'])
  if counted != num_examples:
    raise RuntimeError(
      f'evaluated {counted} examples of a split of {num_examples}'
    )
  return {**metrics.divide_by_count(total), 'examples': counted}


def predict(
  predict_step: Callable,
  variables: dict,
  batches: Iterable[dict],
  source: Source,
) -> tuple[np.ndarray, np.ndarray, float | None]:
  """Log-probabilities of the classes for every example of a source.

  Args:
    predict_step: see `steps.make_predict_step`.
    variables: params and batch_stats.
    batches: of the source, on the devices, padded and masked.
    source: where they come from.

  Returns:
    Log-probabilities float32 [N, classes] and labels int32 [N] in the order of
    the source, and images per second without the first batch, which compiles;
    None if it is the only one.

  Raises:
    RuntimeError: if an example is missing, or comes twice.
  """
  num_examples = len(source)
  log_probabilities = np.empty(
    (num_examples, len(source.class_names)), np.float32
  )
  labels, times_seen = np.empty(num_examples, np.int32), np.zeros(num_examples)
  start = count = None
  for batch in batches:
    found = _fetch(predict_step(variables, batch))
    is_real = found['mask']
    index = found['index'][is_real]
    log_probabilities[index] = found['log_probabilities'][is_real]
    labels[index] = found['label'][is_real]
    times_seen[index] += 1
    if start is None:
      start, count = time.monotonic(), 0
    else:
      count += len(index)
  if not np.all(times_seen == 1):
    raise RuntimeError(
      f'{np.sum(times_seen != 1)} of {num_examples} examples were not evaluated '
      'once'
    )
  speed = count / (time.monotonic() - start) if count else None
  return log_probabilities, labels, speed


def _fetch(tree):
  """Fetches arrays that are sharded over the devices of all processes."""
  if jax.process_count() == 1:
    return jax.device_get(tree)
  return multihost_utils.process_allgather(tree, tiled=True)


def estimate_population_statistics(
  statistics_step: Callable,
  variables: dict,
  batches: Iterable[dict],
  rng: jax.Array,
) -> dict:
  """Mean and variance over training mini-batches (Algorithm 2, lines 8 to 10).

  E[x] = E_B[mean_B];  Var[x] = m / (m - 1) * E_B[var_B]

  All layers are estimated at once: each layer's input was normalised by its
  mini-batch, as in training.

  Args:
    statistics_step: see `steps.make_statistics_step`.
    variables: params and batch_stats; the latter have no influence.
    batches: on the devices; all have the same weight.
    rng: key of the distortions, folded with the batch's number.

  Returns:
    A tree like batch_stats, with plain instead of moving averages.
  """
  add = jax.jit(partial(jax.tree.map, jnp.add))
  running_sum, count = None, 0
  for batch in batches:
    new = statistics_step(variables, batch, jax.random.fold_in(rng, count))
    jax.block_until_ready(new)  # batches must not pile up here either
    running_sum = new if running_sum is None else add(running_sum, new)
    count += 1
  # `num_updates`, the only integer, has no meaning here and stays a sum.
  return jax.tree.map(
    lambda s: s / count if jnp.issubdtype(s.dtype, jnp.floating) else s,
    running_sum,
  )


def with_population_statistics(
  setup: Setup, variables: dict, source: Source, num_batches: int, seed: int
) -> dict:
  """The variables with `estimate_population_statistics` for batch_stats.

  Args:
    setup: of the network, made for batch statistics.
    variables: params and batch_stats.
    source: to take mini-batches from, usually the training split.
    num_batches: how many.
    seed: of their order and distortions.
  """
  batch_stats = estimate_population_statistics(
    setup.statistics_step,
    variables,
    setup.batches.statistics(source, num_batches, seed),
    mesh.replicate(jax.random.key(seed), setup.device_mesh),
  )
  return {**variables, 'batch_stats': batch_stats}

"""Sums and counts over examples: never means of means.

A metric is a sum over examples, divided by their count once, at the end, so that
every example has the same weight whatever the batch size.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax

Array = jax.Array

# The statistics that the batch-norm layers use in an evaluation: moving averages over
# training, or population statistics: the mean over many training mini-batches with
# the final parameters (Algorithm 2).
MOVING, POPULATION, NONE = 'moving averages', 'population', 'none'


def classification_sums(
  logits: Array, label: Array, mask: Array, label_smoothing: float = 0.0
) -> dict[str, Array]:
  """Cross-entropy and correct predictions, summed over the unmasked examples.

  The rank of the label is the number of classes before it in descending order of
  logits; ties go by index, as in `lax.top_k`. An example with a non-finite logit
  counts as wrong.

  Args:
    logits: float32 [N, classes].
    label: int32 [N].
    mask: bool [N]; False for padding.
    label_smoothing: a in the target (1 - a) * one-hot + a / classes (Szegedy et
      al. 2016); 0 = none.

  Returns:
    float32 scalars `loss_sum`, and int32 scalars `top1_count`, `top5_count`,
    `count`.
  """
  if label_smoothing:
    one_hot = jax.nn.one_hot(label, logits.shape[-1])
    target = optax.smooth_labels(one_hot, label_smoothing)
    loss = optax.softmax_cross_entropy(logits, target)
  else:
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, label)
  label_logit = jnp.take_along_axis(logits, label[:, None], axis=-1)
  classes = jnp.arange(logits.shape[-1])
  before = (logits > label_logit) | (
    (logits == label_logit) & (classes < label[:, None])
  )
  rank = jnp.sum(before, axis=-1)
  valid = mask & jnp.all(jnp.isfinite(logits), axis=-1)
  return {
    'loss_sum': jnp.sum(jnp.where(mask, loss, 0.0)),
    'top1_count': jnp.sum(valid & (rank < 1), dtype=jnp.int32),
    'top5_count': jnp.sum(valid & (rank < 5), dtype=jnp.int32),
    'count': jnp.sum(mask, dtype=jnp.int32),
  }


def add_sums(batches: list[dict]) -> dict[str, float]:
  """Adds the sums of many batches on the host, in float64."""
  return {
    name: sum(float(batch[name]) for batch in batches)
    for name in ('loss_sum', 'top1_count', 'top5_count', 'count')
  }


def divide_by_count(sums: dict) -> dict[str, float]:
  """Mean loss, and top-1 and top-5 accuracy in percent."""
  count = sums['count']
  return {
    'loss': sums['loss_sum'] / count,
    'top1': 100.0 * sums['top1_count'] / count,
    'top5': 100.0 * sums['top5_count'] / count,
  }


# The median and about one standard deviation on either side, as in Figure 1.
PERCENTILES = (15, 50, 85)


def percentiles(batches: Sequence[dict[str, np.ndarray]]) -> dict[str, float]:
  """Percentiles of measurements over the examples of many batches.

  Args:
    batches: for each batch, name -> values of its examples; all have the same
      names.

  Returns:
    f'{name}_p{percentile}' -> value, for each of `PERCENTILES`.
  """
  found = {}
  for name in batches[0]:
    values = np.concatenate([batch[name] for batch in batches])
    for percentile in PERCENTILES:
      value = float(np.percentile(values, percentile))
      found[f'{name}_p{percentile}'] = value
  return found

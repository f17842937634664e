"""Sums and counts against hand-made cases."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bn_inception import metrics


def test_sums_of_random_logits_equal_numpy():
  rng = np.random.default_rng(0)
  logits = rng.normal(size=(40, 12)).astype(np.float32)
  label = rng.integers(12, size=40).astype(np.int32)
  mask = rng.random(40) < 0.7
  sums = metrics.classification_sums(logits, label, mask)
  order = np.argsort(-logits, axis=-1)
  probability = np.exp(np.float64(logits))
  probability /= probability.sum(-1, keepdims=True)
  loss = -np.log(probability[np.arange(40), label])
  np.testing.assert_allclose(sums['loss_sum'], loss[mask].sum(), rtol=1e-5)
  assert sums['top1_count'] == np.sum((order[:, 0] == label)[mask])
  in_top5 = np.any(order[:, :5] == label[:, None], axis=-1)
  assert sums['top5_count'] == np.sum(in_top5[mask])
  assert sums['count'] == mask.sum()


@pytest.mark.parametrize('smoothing', [0.1, 0.75])
def test_smoothed_labels_equal_numpy(smoothing):
  rng = np.random.default_rng(0)
  logits = rng.normal(size=(40, 12)).astype(np.float32)
  label = rng.integers(12, size=40).astype(np.int32)
  mask = rng.random(40) < 0.7
  sums = metrics.classification_sums(logits, label, mask, smoothing)
  probability = np.exp(np.float64(logits))
  probability /= probability.sum(-1, keepdims=True)
  target = (1 - smoothing) * np.eye(12)[label] + smoothing / 12
  loss = -(target * np.log(probability)).sum(-1)
  np.testing.assert_allclose(sums['loss_sum'], loss[mask].sum(), rtol=1e-5)
  plain = metrics.classification_sums(logits, label, mask)
  for name in 'top1_count', 'top5_count', 'count':
    assert sums[name] == plain[name]


def test_no_smoothing_is_the_same_program():
  arguments = jnp.zeros((3, 10)), jnp.zeros(3, int), jnp.ones(3, bool)

  def program(**options):
    f = functools.partial(metrics.classification_sums, **options)
    return str(jax.make_jaxpr(f)(*arguments))

  plain = program()
  assert program(label_smoothing=0.0) == plain
  assert program(label_smoothing=0.1) != plain


def test_equal_logits_are_ranked_by_class():
  logits = jnp.zeros((3, 10))
  label = jnp.array([0, 4, 5])
  sums = metrics.classification_sums(logits, label, jnp.ones(3, bool))
  assert (int(sums['top1_count']), int(sums['top5_count'])) == (1, 2)


def test_nan_logits_are_wrong():
  logits = jnp.array([[jnp.nan] * 10, [0.0] * 9 + [jnp.inf]])
  label = jnp.array([0, 9])
  sums = metrics.classification_sums(logits, label, jnp.ones(2, bool))
  assert (int(sums['top1_count']), int(sums['top5_count'])) == (0, 0)


def test_averages_weigh_examples_and_not_batches():
  batches = [
    {'loss_sum': 30.0, 'top1_count': 9, 'top5_count': 10, 'count': 10},
    {'loss_sum': 1.0, 'top1_count': 0, 'top5_count': 1, 'count': 2},
  ]
  averages = metrics.divide_by_count(metrics.add_sums(batches))
  assert averages == {
    'loss': 31 / 12,
    'top1': 100 * 9 / 12,
    'top5': 100 * 11 / 12,
  }

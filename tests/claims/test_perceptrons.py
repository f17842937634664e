"""The perceptrons of the claims against float64 NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bn_inception.claims.perceptrons import (
  EPSILON,
  Network,
  forward,
  initial_params,
  load_digits,
  make_batches,
  measure_inputs,
  moving_noise,
  train,
  weight_gradient,
)

SIZES = (64, 8, 7, 10)


def forward_by_numpy(norm, params, x):
  """Logits and inputs of the sigmoids in float64."""
  inputs, x = [], np.float64(x)
  for layer in params[:-1]:
    x = x @ np.float64(layer['weight'])
    if norm == 'batch':
      x = (x - x.mean(0)) / np.sqrt(x.var(0) + EPSILON)
    inputs.append(x)
    x = 1 / (1 + np.exp(-x))
  return x @ np.float64(params[-1]['weight']), inputs


@pytest.mark.parametrize('norm', ['none', 'batch'])
def test_forward_equals_numpy(norm):
  x = load_digits()[0][:32]
  params = initial_params(SIZES)
  logits, inputs = forward(Network(SIZES, norm), params, x)
  expected_logits, expected_inputs = forward_by_numpy(norm, params, x)
  np.testing.assert_allclose(logits, expected_logits, atol=1e-4)
  for value, expected in zip(inputs, expected_inputs, strict=True):
    np.testing.assert_allclose(value, expected, atol=2e-4)


def test_digits_are_the_training_split():
  images, labels = load_digits()
  assert images.shape == (len(labels), 64)
  assert 1400 < len(labels) < 1450
  assert images.min() == 0 and images.max() == 1


@pytest.mark.slow
def test_training_goes_down_the_gradient():
  network = Network(SIZES, 'batch')
  params = initial_params(SIZES)
  images, labels = make_batches(1, 16)
  new, records = train(network, params, (images, labels), 0.5)
  gradient = weight_gradient(network, params, images[0], labels[0])
  step = jnp.concatenate(
    [
      (old['weight'] - after['weight']).ravel()
      for old, after in zip(params, new, strict=True)
    ]
  )
  np.testing.assert_allclose(step, 0.5 * gradient, atol=1e-6)
  assert records['loss'].shape == (1,)


def test_batches_repeat_with_the_seed():
  first, again, other = (make_batches(3, 4, seed)[0] for seed in (0, 0, 1))
  np.testing.assert_array_equal(first, again)
  assert (first != other).any()


def test_noise_has_a_mean_and_a_deviation_of_its_own_per_unit():
  x = jax.random.normal(jax.random.key(0), (4096, 50))
  y = np.float64(moving_noise(x, jax.random.key(1)))
  other = np.float64(moving_noise(x, jax.random.key(2)))
  assert np.abs(y.mean(0)).max() < 0.6
  assert y.mean(0).std() == pytest.approx(0.5 / np.sqrt(3), rel=0.3)
  assert 0.95 < y.std(0).min() and y.std(0).max() < 1.3
  assert np.abs(y.mean(0) - other.mean(0)).mean() > 0.1


def test_measurements_of_inputs():
  network = Network(SIZES, 'batch')
  params = initial_params(SIZES)
  measured = measure_inputs(network, params, params, None)
  _, inputs = forward_by_numpy('batch', params, load_digits()[0][:250])
  slope = [np.mean(4 * np.exp(-x) / (1 + np.exp(-x)) ** 2) for x in inputs]
  np.testing.assert_allclose(measured['slope'], slope, rtol=1e-4)
  np.testing.assert_allclose(measured['mean'], 0, atol=1e-4)
  saturated = [np.mean(np.abs(x) > 4) for x in inputs]
  np.testing.assert_allclose(measured['saturated'], saturated, atol=1e-3)

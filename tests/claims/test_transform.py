"""The claims about the transform against closed forms and float64 NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bn_inception.claims.transform import (
  bias_example,
  compare_scaled,
  decorrelate,
  descend,
  identity_and_moments,
  inverse_square_root,
)


@pytest.fixture
def u():
  rng = np.random.default_rng(0)
  u = rng.normal(size=64)
  return np.float32((u - u.mean()) / u.std())


@pytest.fixture
def correlated():
  rng = np.random.default_rng(0)
  mixed = rng.normal(size=(128, 6)) @ rng.normal(size=(6, 6)) + 3
  return np.float32(mixed)


def test_bias_grows_by_rate_times_wanted_mean(u):
  # dl/dx_hat = x_hat - (u + 2): its mean is -2, whatever b is.
  run = descend(u, u + 2, 0.05, full_gradient=False, scales=False, num_steps=41)
  np.testing.assert_allclose(run['bias'], 0.05 * 2 * np.arange(41), atol=1e-4)
  np.testing.assert_allclose(run['loss'], 2.0, rtol=1e-5)


@pytest.mark.parametrize('scales', [False, True])
def test_full_gradient_leaves_weight_and_bias(u, scales):
  run = descend(
    u, 2 * u + 2, 0.05, full_gradient=True, scales=scales, num_steps=41
  )
  np.testing.assert_allclose(run['bias'], 0, atol=1e-5)
  np.testing.assert_allclose(run['weight'], 1, atol=1e-5)


def test_scaled_descent_equals_numpy(u):
  run = descend(
    u, 2 * u + 2, 0.05, full_gradient=False, scales=True, num_steps=41
  )
  w, b, x = 1.0, 0.0, np.float64(u)
  for _ in range(40):  # x_hat = u as long as w > 0
    d_x = (x - (2 * x + 2)) / w
    w, b = w - 0.05 * (d_x * x).mean(), b - 0.05 * d_x.mean()
  np.testing.assert_allclose(run['weight'][-1], w, rtol=1e-5)
  np.testing.assert_allclose(run['bias'][-1], b, rtol=1e-5)


def test_bias_example_reports_what_it_measured():
  claim = bias_example()
  assert claim.held
  assert claim.numbers['b, centred, ignored'] == pytest.approx(99.9, rel=1e-3)
  assert claim.numbers['w, scaled, full'] == pytest.approx(1, abs=1e-3)


def scaled_by_numpy(w, u, coefficients, factor, epsilon):
  """BN(Wu) and BN((aW)u) in float64."""
  outputs = []
  for weight in (w, factor * w):
    x = np.float64(u) @ np.float64(weight)
    outputs.append((x - x.mean(0)) / np.sqrt(x.var(0) + epsilon))
  return outputs


@pytest.mark.parametrize(
  ('factor', 'epsilon'), [(0.1, 0.0), (7.0, 0.0), (0.1, 1e-3), (-1.0, 0.0)]
)
def test_scale_invariance_errors(factor, epsilon):
  rng = np.random.default_rng(0)
  w, u = rng.normal(size=(5, 3)) / 5, rng.normal(size=(40, 5))
  c = rng.normal(size=(40, 3))
  errors = compare_scaled(*map(jnp.float32, (w, u, c)), factor, epsilon)
  y, scaled = scaled_by_numpy(w, u, c, factor, epsilon)
  expected = np.linalg.norm(scaled - y) / np.linalg.norm(y)
  assert errors['output'] == pytest.approx(expected, abs=1e-5)
  if epsilon == 0 and factor > 0:
    assert max(errors.values()) < 1e-5
  else:
    assert errors['output'] > 0.01


def test_identity_needs_the_statistics_themselves():
  claim = identity_and_moments()
  assert claim.held
  # The deviation is 0.03: var / (var + 1e-3) = 0.47, give or take the sample.
  smallest = claim.numbers['smallest mean x_hat^2, epsilon=0.001']
  assert smallest == pytest.approx(0.47, abs=0.03)


@pytest.mark.parametrize('kind', ['zca', 'pca'])
def test_whitened_covariance_is_the_identity(correlated, kind):
  y = np.float64(decorrelate(correlated, kind, 0.0))
  np.testing.assert_allclose(y.mean(0), 0, atol=1e-4)
  np.testing.assert_allclose(y.T @ y / len(y), np.eye(6), atol=1e-3)


def test_zca_equals_numpy(correlated):
  x = np.float64(correlated)
  eigenvalues, vectors = np.linalg.eigh(np.cov(x.T, bias=True))
  root = vectors @ np.diag(eigenvalues**-0.5) @ vectors.T
  y = decorrelate(correlated, 'zca', 0.0)
  np.testing.assert_allclose(y, (x - x.mean(0)) @ root, atol=2e-3)


def test_rotation_decorrelates_and_keeps_lengths(correlated):
  y = np.float64(decorrelate(correlated, 'rotation', 0.0))
  covariance = y.T @ y / len(y)
  off_diagonal = covariance - np.diag(np.diag(covariance))
  assert np.abs(off_diagonal).max() < 1e-4 * covariance.max()
  centred = np.float64(correlated) - np.float64(correlated).mean(0)
  np.testing.assert_allclose(
    np.linalg.norm(y, axis=1), np.linalg.norm(centred, axis=1), rtol=1e-4
  )


@pytest.mark.parametrize('eigenvalues', [(1, 2, 5), (2, 2, 5)])
def test_inverse_square_root_gradient(eigenvalues):
  # Also where eigenvalues coincide, which defeats the plain derivative.
  rng = np.random.default_rng(0)
  basis = np.linalg.qr(rng.normal(size=(3, 3)))[0]
  matrix = basis @ np.diag(np.float64(eigenvalues)) @ basis.T
  weights, direction = rng.normal(size=(2, 3, 3))
  direction = direction + direction.T

  def of(matrix):
    values, vectors = np.linalg.eigh(matrix)
    return np.sum(weights * ((vectors / np.sqrt(values)) @ vectors.T))

  step = 1e-5
  expected = of(matrix + step * direction) - of(matrix - step * direction)
  gradient = jax.grad(
    lambda m: jnp.sum(jnp.float32(weights) * inverse_square_root(m))
  )(jnp.float32(matrix))
  slope = np.sum(np.float64(gradient) * direction)
  np.testing.assert_allclose(slope, expected / (2 * step), rtol=1e-3)


def test_zca_gradient_equals_finite_differences(correlated):
  x = np.float64(correlated)
  rng = np.random.default_rng(1)
  weights, direction = rng.normal(size=(2, *x.shape))

  def of(x):
    values, vectors = np.linalg.eigh(np.cov(x.T, bias=True) + 0.1 * np.eye(6))
    root = (vectors / np.sqrt(values)) @ vectors.T
    return np.sum(weights * ((x - x.mean(0)) @ root))

  step = 1e-5
  expected = (of(x + step * direction) - of(x - step * direction)) / (2 * step)
  gradient = jax.grad(
    lambda x: jnp.sum(jnp.float32(weights) * decorrelate(x, 'zca', 0.1))
  )(jnp.float32(x))
  slope = np.sum(np.float64(gradient) * direction)
  np.testing.assert_allclose(slope, expected, rtol=1e-3)

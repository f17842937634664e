"""The claims about networks: their measures, and the quick experiments."""

import jax.numpy as jnp
import numpy as np
import pytest

from bn_inception.claims.networks import (
  final_loss,
  layer_singular_values,
  profile,
  shift_per_step,
  weight_norms,
)
from bn_inception.claims.perceptrons import Network, initial_params, load_digits


def test_shift_is_the_distance_of_gaussians():
  # One unit: the mean moves by 3 and the deviation by 4, then nothing moves.
  records = {
    'mean': np.array([[0.0], [3.0], [3.0]]),
    'std': np.array([[2.0], [6.0], [6.0]]),
  }
  assert shift_per_step(records) == pytest.approx((2.5, 1.25))


def test_final_loss_is_of_the_last_hundred_steps():
  assert final_loss({'loss': np.arange(300.0)}) == np.arange(200, 300).mean()


def test_linear_layer_has_the_singular_values_of_its_weights():
  network = Network((64, 12, 12, 10), 'none', 'linear')
  params = initial_params(network.sizes)
  values = layer_singular_values(network, params)
  expected = np.linalg.svd(np.float64(params[1]['weight']), compute_uv=False)
  np.testing.assert_allclose(values, np.tile(expected, (64, 1)), atol=1e-4)


def test_normalised_layer_divides_by_the_deviation():
  network = Network((64, 12, 12, 10), 'batch', 'linear')
  params = initial_params(network.sizes)
  x = np.float64(load_digits()[0][:1000]) @ np.float64(params[0]['weight'])
  x = (x - x.mean(0)) / np.sqrt(x.var(0) + 1e-3)
  weight = np.float64(params[1]['weight'])
  jacobian = weight / np.sqrt((x @ weight).var(0) + 1e-3)
  np.testing.assert_allclose(
    layer_singular_values(network, params)[0],
    np.linalg.svd(jacobian, compute_uv=False),
    atol=1e-3,
  )


def test_profile_of_a_linear_network():
  # An orthogonal layer changes neither a change nor a gradient.
  rng = np.random.default_rng(0)
  params = initial_params((64, 64, 64, 64, 10))
  for layer in params[1:-1]:
    orthogonal = np.linalg.qr(rng.normal(size=(64, 64)))[0]
    layer['weight'] = jnp.float32(3 * orthogonal)
  network = Network((64, 64, 64, 64, 10), 'none', 'linear')
  changes, gradients = profile(network, params)
  np.testing.assert_allclose(changes, changes[0], rtol=1e-3)
  np.testing.assert_allclose(gradients[:-1] / gradients[1:], 3, rtol=1e-3)


@pytest.mark.slow
def test_larger_weights_get_smaller_gradients():
  claim = weight_norms()
  ratio = claim.numbers['gradient at 10 W / gradient at W']
  assert ratio == pytest.approx(0.1, rel=0.02)
  assert claim.held == (
    claim.numbers['growth in the second half, with BN, rate 50']
    < claim.numbers['growth in the first half, with BN, rate 50'] / 2
    and claim.numbers['loss, with BN, rate 50'] < np.log(10)
  )

"""Random variables of the network that PyTorch's BN-Inceptions are."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bn_inception.inception import Inception
from bn_inception.weights.pytorch import PYTORCH_MODEL


@pytest.fixture(scope='session')
def variables():
  """Random ones, all different, of the network that PyTorch's is."""
  rng = np.random.default_rng(0)
  image, index = jnp.zeros((1, 32, 32, 3)), jnp.zeros(1, int)
  model = Inception(1000, **PYTORCH_MODEL)
  abstract = jax.eval_shape(model.init, jax.random.key(0), image, index)

  def fill(leaf):
    if leaf.dtype == jnp.int32:
      return np.int32(rng.integers(2**31))
    if leaf.ndim == 1:
      return rng.uniform(0.5, 1.5, leaf.shape).astype(np.float32)
    std = np.sqrt(2 / np.prod(leaf.shape[:-1]))
    return np.float32(std * rng.normal(size=leaf.shape))

  return jax.tree.map(fill, abstract)

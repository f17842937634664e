"""What the tests of published weights share."""

import jax
import numpy as np

from bn_inception.inception import Inception
from bn_inception.weights.pytorch import CADENE, PYTORCH_MODEL, to_pytorch


def export(variables, layout=CADENE):
  return to_pytorch(variables, Inception(1000, **PYTORCH_MODEL), layout)


def assert_identical(ours, others):
  assert jax.tree.structure(ours) == jax.tree.structure(others)
  for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(others), strict=True):
    assert a.dtype == b.dtype
    np.testing.assert_array_equal(a, b)

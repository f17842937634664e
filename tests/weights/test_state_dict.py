"""State_dicts: names and axes of PyTorch's, and exact."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bn_inception.inception import Inception
from bn_inception.perceptron import Perceptron
from bn_inception.weights.state_dict import (
  as_saved,
  from_state_dict,
  to_state_dict,
)
from tests.conftest import FEW_ROWS
from tests.weights.networks import assert_identical

SLOWLY = functools.partial(pytest.param, marks=pytest.mark.slow)
SMALL = {'width': 0.125, 'rows': FEW_ROWS}


@pytest.mark.parametrize(
  'model, name, shape',
  [
    SLOWLY(Inception(10, **SMALL), 'conv1.depthwise.weight', (24, 1, 7, 7)),
    (
      Inception(10, use_batch_norm=False, stem='small', **SMALL),
      'inception_3c.double3x3_b.conv.bias',
      (12,),
    ),
    SLOWLY(
      Inception(10, per_activation_modules=('3a',), **SMALL),
      'inception_3a.conv1x1.norm.running_var',
      (8, 4, 4),
    ),
    (Perceptron(7), 'hidden_1.weight', (100, 32 * 32 * 3)),
  ],
  ids=['separable', 'without norm', 'per activation', 'perceptron'],
)
def test_there_and_back(model, name, shape):
  init = jax.jit(lambda key, x: model.init(key, x, jnp.zeros(1, int)))
  variables = init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
  weights = as_saved(to_state_dict(variables))
  assert len(weights) == len(jax.tree.leaves(variables))
  assert weights[name].shape == shape
  assert all(value.flags.c_contiguous for value in weights.values())
  kernel = np.asarray(variables['params']['logits']['kernel'])
  np.testing.assert_array_equal(weights['logits.weight'], kernel.T)
  abstract = jax.eval_shape(lambda: variables)
  variables.setdefault('batch_stats', {})
  found = {'batch_stats': {}} | from_state_dict(weights, abstract)
  assert_identical(found, variables)


def test_axes_are_those_of_pytorch():
  kernel = np.arange(2 * 3 * 5 * 7).reshape(2, 3, 5, 7)
  norm = np.arange(2 * 3 * 5).reshape(2, 3, 5)
  weights = to_state_dict({'params': {'a': {'kernel': kernel, 'bias': norm}}})
  assert weights['a.weight'][6, 4, 1, 2] == kernel[1, 2, 4, 6]
  assert weights['a.bias'][4, 1, 2] == norm[1, 2, 4]

"""Weights are checked by name, shape and dtype."""

import jax
import numpy as np
import pytest

from bn_inception.errors import UserError
from bn_inception.weights.imported import check_weights

EXPECTED = {
  'conv.weight': jax.ShapeDtypeStruct((2, 3), np.float32),
  'bn.running_var': jax.ShapeDtypeStruct((3,), np.float32),
  'bn.num_batches_tracked': jax.ShapeDtypeStruct((), np.int32),
}
WEIGHTS = {
  'conv.weight': np.ones((2, 3)),
  'bn.running_var': np.ones((1, 3), np.float16),
  'bn.num_batches_tracked': np.float32(8),
}


def check(weights, path='a.pth', **options):
  return check_weights(weights, EXPECTED, 'a network', path, **options)


def refusal(weights):
  with pytest.raises(UserError) as error:
    check(weights)
  message = str(error.value)
  assert message.startswith('a.pth') and '\n' not in message
  return message


def test_good_weights_come_back_in_float32():
  found = check(WEIGHTS)
  assert {k: v.shape for k, v in found.items()} == {
    k: v.shape for k, v in EXPECTED.items()
  }
  assert (
    found['conv.weight'].dtype == found['bn.running_var'].dtype == 'float32'
  )
  assert found['bn.num_batches_tracked'] == 8


def test_missing_and_unknown_weights_are_named():
  weights = dict(WEIGHTS)
  del weights['bn.running_var'], weights['bn.num_batches_tracked']
  weights |= {f'extra{i}': np.zeros(1) for i in range(9)}
  message = refusal(weights)
  assert 'missing: bn.num_batches_tracked, bn.running_var; unknown' in message
  assert 'extra0, extra1, extra2, extra3 and 5 more' in message
  optional = frozenset({'bn.num_batches_tracked'})
  weights = {k: v for k, v in WEIGHTS.items() if k not in optional}
  assert check(weights, optional=optional).keys() == weights.keys()


@pytest.mark.parametrize(
  'name, value, problem',
  [
    ('conv.weight', np.ones(7), 'conv.weight is (7,), not (2, 3)'),
    ('conv.weight', np.ones((2, 3), np.int8), 'conv.weight is int8'),
    ('bn.running_var', -np.ones(3), 'bn.running_var[0] is -1.0'),
  ],
)
def test_other_shapes_dtypes_and_values_are_named(name, value, problem):
  assert problem in refusal(WEIGHTS | {name: value})


def test_a_few_of_many_wrong_shapes_are_named():
  message = refusal({name: np.ones(9) for name in EXPECTED})
  assert message.count('is (9,)') == 3

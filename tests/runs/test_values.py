"""Arrays that cannot be weights are named."""

import numpy as np
import pytest

from bn_inception.errors import UserError
from bn_inception.runs.values import check_values


def test_weights_pass():
  check_values({'conv1/kernel': np.float16([6e4])}, 'a')
  check_values(
    {'conv1/kernel': np.array([-3e38, 0.0]), 'norm/var': np.ones(2)}, 'a'
  )
  check_values({'norm/num_updates': np.array(2**31 - 1)}, 'a')


@pytest.mark.parametrize(
  'name, value, problem',
  [
    ('conv1/kernel', [[0.0, np.nan]], r'conv1/kernel\[0, 1\] is nan'),
    ('conv1/kernel', [1e39], r'conv1/kernel\[0\] .* too large for float32'),
    ('norm/var', [1.0, -1e-9], r'norm/var\[1\] is -1e-09'),
    ('bn1.running_var', [np.inf], r'bn1.running_var\[0\] is inf'),
    ('conv1/kernel', np.float16([np.inf]), r'conv1/kernel\[0\] is inf'),
    ('norm/num_updates', 2**31, 'norm/num_updates is 2147483648, not in 0'),
  ],
)
def test_what_is_no_weight_is_named(name, value, problem):
  with pytest.raises(UserError, match=f'^a cannot be used: {problem}'):
    check_values({name: np.array(value), 'fc/bias': np.zeros(1)}, 'a')

"""The initial state."""

import jax
import numpy as np

from bn_inception.train_state import count_parameters, create_train_state
from tests.test_steps import initial_state, make_model, make_sgd


def test_initial_state_depends_on_the_key_alone():
  state = initial_state()
  again = create_train_state(
    make_model(), make_sgd(), jax.random.key(0), (8, 8, 1)
  )
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), state, again
  )
  kernel = state.params['conv2']['conv']['kernel']
  np.testing.assert_allclose(
    np.std(kernel), np.sqrt(2 / (9 * 8)), rtol=0.1
  )  # He: 2 / fan-in
  assert state.step == 0 and state.first_nonfinite_step == -1
  assert state.average_params == {}
  assert state.evaluation_variables['params'] is state.params


def test_average_starts_at_the_parameters():
  state = initial_state(average_decay=0.99)
  jax.tree.map(
    np.testing.assert_array_equal, state.average_params, state.params
  )


def test_parameters_are_counted():
  assert count_parameters({'a': np.zeros((2, 3)), 'b': [np.zeros(4)]}) == 10

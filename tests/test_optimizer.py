"""Updates and schedule against closed forms in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bn_inception import optimizer
from bn_inception.errors import UserError

RECIPE = {
  'learning_rate': 0.1,
  'learning_rate_per_32': False,
  'momentum': 0.9,
  'nesterov': False,
  'weight_decay': 0.01,
  'decay_factor': 0.5,
  'decay_epochs': 1.5,
  'average_decay': 0.0,
  'accumulate_steps': 1,
}


def test_updates_equal_the_classical_form():
  made = optimizer.make_optimizer(steps_per_epoch=2, batch_size=32, **RECIPE)
  params = {
    'conv': {'kernel': jnp.array([2.0]), 'bias': jnp.array([1.0])},
    'norm': {'scale': jnp.array([1.5])},
  }
  gradients = {
    'conv': {'kernel': jnp.array([0.3]), 'bias': jnp.array([0.2])},
    'norm': {'scale': jnp.array([-0.1])},
  }
  state = made.transform.init(params)
  kernel, bias, scale = 2.0, 1.0, 1.5
  v_kernel = v_bias = v_scale = 0.0
  for step in range(8):
    updates, state = made.transform.update(gradients, state, params)
    params = optax.apply_updates(params, updates)
    rate = 0.1 * 0.5 ** (step // 3)
    v_kernel = 0.9 * v_kernel - rate * (0.3 + 0.01 * kernel)
    v_bias = 0.9 * v_bias - rate * 0.2
    v_scale = 0.9 * v_scale - rate * -0.1
    kernel, bias, scale = kernel + v_kernel, bias + v_bias, scale + v_scale
    np.testing.assert_allclose(params['conv']['kernel'], kernel, rtol=1e-5)
    np.testing.assert_allclose(params['conv']['bias'], bias, rtol=1e-5)
    np.testing.assert_allclose(params['norm']['scale'], scale, rtol=1e-5)


def test_schedule_is_a_staircase_with_fractions_of_epochs():
  # 0.96 every 8 / 6 epochs of ImageNet at batch 32: every 53,382 steps.
  schedule = optimizer.staircase_decay(0.0075, 0.96, 8 / 6 * 1_281_167 / 32)
  for step in (0, 53_381, 53_383, 106_763, 106_765, 2_100_000):
    stairs = int(step / (8 / 6 * 1_281_167 / 32))
    np.testing.assert_allclose(
      schedule(jnp.int32(step)), 0.0075 * 0.96**stairs, rtol=1e-5
    )
  np.testing.assert_allclose(schedule(jnp.int32(53_383)), 0.0072, rtol=1e-6)


def test_cosine_and_warm_up_equal_their_closed_forms():
  recipe = RECIPE | {
    'schedule': 'cosine',
    'decay_epochs': 4,
    'warmup_epochs': 1.5,
  }
  made = optimizer.make_optimizer(steps_per_epoch=2, batch_size=32, **recipe)
  for step in range(12):
    cosine = (1 + np.cos(np.pi * min(step / 8, 1))) / 2
    expected = 0.1 * cosine * min(1, (step + 1) / 3)
    np.testing.assert_allclose(
      made.learning_rate_fn(jnp.int32(step)), expected, rtol=1e-5, atol=1e-9
    )


@pytest.mark.parametrize(
  'gradients, clipped',
  [((3.0, 4.0), (1.5, 2.0)), ((0.6, -0.8), (0.6, -0.8))],
)
def test_only_larger_gradients_are_clipped(gradients, clipped):
  recipe = RECIPE | {'max_gradient_norm': 2.5, 'momentum': 0.0}
  made = optimizer.make_optimizer(steps_per_epoch=99, batch_size=32, **recipe)
  params = {'kernel': jnp.array(10.0), 'bias': jnp.array(0.0)}
  updates, _ = made.transform.update(
    dict(zip(params, map(jnp.array, gradients), strict=True)),
    made.transform.init(params),
    params,
  )
  # The L2 loss is not clipped: its gradient is 0.01 * 10.
  expected = -0.1 * (clipped[0] + 0.1), -0.1 * clipped[1]
  found = updates['kernel'], updates['bias']
  np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_the_papers_options_have_no_other_state():
  made = optimizer.make_optimizer(steps_per_epoch=2, batch_size=32, **RECIPE)
  assert len(made.transform.init({'kernel': jnp.zeros(1)})) == 3


def test_an_unknown_schedule_names_the_two():
  with pytest.raises(UserError, match='schedule .*linear.*staircase, cosine'):
    optimizer.make_optimizer(
      steps_per_epoch=2, batch_size=32, **RECIPE | {'schedule': 'linear'}
    )


@pytest.mark.parametrize('per_32, expected', [(False, 0.1), (True, 0.8)])
def test_rate_follows_the_batch_only_when_asked(per_32, expected):
  recipe = RECIPE | {'learning_rate_per_32': per_32}
  made = optimizer.make_optimizer(steps_per_epoch=2, batch_size=256, **recipe)
  np.testing.assert_allclose(made.learning_rate_fn(0), expected, rtol=1e-6)


@pytest.mark.parametrize(
  'value',
  [
    {'decay_epochs': 0},
    {'decay_factor': 0.0},  # optax would keep the rate constant
    {'momentum': 1.5},
    {'weight_decay': -1e-4},
    {'learning_rate': float('nan')},
    {'label_smoothing': 1.0},
    {'label_smoothing': -0.1},
  ],
)
def test_numbers_out_of_range_are_refused(value):
  ((key, number),) = value.items()
  with pytest.raises(UserError, match=f'optimizer.{key} .*got {number}'):
    optimizer.make_optimizer(steps_per_epoch=2, batch_size=32, **RECIPE | value)


def test_micro_batches_must_divide_the_batch():
  message = 'accumulate_steps 3 does not divide batch_size 32'
  with pytest.raises(UserError, match=message):
    optimizer.make_optimizer(
      steps_per_epoch=2, batch_size=32, **RECIPE | {'accumulate_steps': 3}
    )


def test_states_need_no_schedule():
  made, scheduled = (
    optimizer.make_optimizer(steps_per_epoch=steps, batch_size=32, **RECIPE)
    for steps in (None, 2.0)
  )
  params = {'kernel': jnp.ones(2)}
  state = made.transform.init(params)
  jax.tree.map(
    np.testing.assert_array_equal, state, scheduled.transform.init(params)
  )
  with pytest.raises(ValueError, match='without steps_per_epoch'):
    made.transform.update(params, state, params)

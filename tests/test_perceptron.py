"""The network of Figure 1: the paper's numbers of it, and what it measures."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bn_inception import mesh, metrics, steps, training
from bn_inception.errors import UserError
from bn_inception.evaluation import checkpoints
from bn_inception.optimizer import make_optimizer
from bn_inception.perceptron import Perceptron
from bn_inception.runs.logbook import read_metrics
from bn_inception.train_state import count_parameters, create_train_state
from configs import compose
from tests.test_steps import assert_close


def forward_float64(params, stats, image):
  """Logits, and the inputs of the last hidden layer's sigmoids."""
  x = np.float64(image).reshape(len(image), -1)
  for i in (1, 2, 3):
    x = x @ np.float64(params[f'hidden_{i}']['kernel'])
    if stats:
      norm, moving = params[f'norm_{i}'], stats[f'norm_{i}']
      x = (x - moving['mean']) / np.sqrt(np.float64(moving['var']) + 1e-3)
      x = norm['scale'] * x + norm['bias']
    else:
      x = x + params[f'hidden_{i}']['bias']
    sigmoid_input = x
    x = 1 / (1 + np.exp(-x))
  last = params['logits']
  return x @ np.float64(last['kernel']) + last['bias'], sigmoid_input


@pytest.mark.parametrize(
  'use_batch_norm, num_parameters', [(False, 99_710), (True, 100_010)]
)
def test_is_that_of_section_4_1(use_batch_norm, num_parameters):
  model = Perceptron(10, use_batch_norm=use_batch_norm)
  image = np.random.default_rng(0).random((5, 28, 28, 1), np.float32)
  variables = model.init(jax.random.key(0), image, np.arange(5))
  assert count_parameters(variables['params']) == num_parameters
  kernel = np.asarray(variables['params']['hidden_1']['kernel'])
  assert kernel.std() == pytest.approx(0.1, rel=0.02)
  expected, _ = forward_float64(
    variables['params'], variables.get('batch_stats'), image
  )
  logits = model.apply(variables, image, np.arange(5))
  np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
  'fields, message',
  [
    ({'nonlinearity': 'tanh'}, "nonlinearity 'tanh' is unknown: use one of"),
    ({'dtype': 'float16'}, "dtype 'float16' is unknown"),
    ({'hidden_sizes': ()}, r'hidden_sizes .*got \(\)'),
    ({'measured_unit': 100}, 'measured_unit must be below 100'),
    ({'initial_std': 0.0}, 'initial_std .*above 0 .*got 0.0'),
  ],
)
def test_options_that_make_no_sense_are_refused(fields, message):
  with pytest.raises(UserError, match=message):
    Perceptron(10, **fields)


@pytest.fixture(scope='module')
def batch():
  rng = np.random.default_rng(0)
  return {
    'image': rng.random((16, 8, 8, 1), np.float32),
    'label': rng.integers(0, 10, 16).astype(np.int32),
    'mask': np.ones(16, bool),
    'index': np.arange(16),
  }


def one_step(batch, num_devices, use_batch_norm, accumulate_steps=1):
  optimizer = make_optimizer(
    steps_per_epoch=100, batch_size=16, learning_rate=0.1,
    learning_rate_per_32=False, momentum=0.0, nesterov=False, weight_decay=0.0,
    decay_factor=1.0, decay_epochs=1.0, average_decay=0.0,
    accumulate_steps=accumulate_steps,
  )  # fmt: skip
  devices = mesh.make_training_mesh(
    jax.devices()[:num_devices], 16, 0, accumulate_steps
  )
  model = Perceptron(10, use_batch_norm=use_batch_norm, measured_unit=3)
  state = create_train_state(model, optimizer, jax.random.key(0), (8, 8, 1))
  step = steps.make_train_step(
    devices,
    model=model.clone(train=True, axis_name=mesh.MEMBER),
    optimizer=optimizer,
    prepare=lambda image, index, key: image,
  )
  if accumulate_steps > 1:
    batch = {
      name: value.reshape(accumulate_steps, -1, *value.shape[1:])
      for name, value in batch.items()
    }
  initial = jax.device_get(state)
  placed = jax.device_put(
    batch, mesh.batch_sharding(devices, accumulate_steps > 1)
  )
  replicated = mesh.replicated(devices)
  new = step(
    jax.device_put(state, replicated),
    placed,
    jax.device_put(jax.random.key(0), replicated),
  )
  return initial, *jax.device_get(new)


@pytest.mark.slow
@pytest.mark.parametrize('use_batch_norm', [False, True])
def test_measures_the_input_of_one_sigmoid_on_all_devices(
  batch, use_batch_norm
):
  initial, state, found = one_step(batch, 1, use_batch_norm)
  measured = found['measurements']['sigmoid_input']
  assert measured.shape == (16,)
  if not use_batch_norm:
    _, inputs = forward_float64(initial.params, None, batch['image'])
    np.testing.assert_allclose(measured, inputs[:, 3], rtol=1e-4, atol=1e-5)
    parts, *_ = (one_step(batch, 2, False, accumulate_steps=2)[2],)
    np.testing.assert_allclose(
      np.sort(parts['measurements']['sigmoid_input']),
      np.sort(measured),
      rtol=1e-4,
    )
  else:  # the output of BN, with scale 1 and bias 0
    assert measured.mean() == pytest.approx(0.0, abs=1e-5)
    assert measured.std() == pytest.approx(1.0, abs=0.05)
  _, on_eight, found_on_eight = one_step(batch, 8, use_batch_norm)
  assert_close(on_eight, state)
  assert_close(found_on_eight, found)


def test_percentiles_are_of_all_examples_together():
  rng = np.random.default_rng(0)
  batches = [{'x': rng.normal(size=60)} for _ in range(5)]
  found = metrics.percentiles(batches)
  together = np.concatenate([b['x'] for b in batches])
  assert found == {
    f'x_p{q}': pytest.approx(np.percentile(together, q)) for q in (15, 50, 85)
  }
  assert metrics.percentiles([{}, {}]) == {}


@pytest.mark.slow
def test_a_run_of_figure_1(tmp_path, capsys):
  config = compose.perceptron('batch_norm,digits').to_dict()
  config['batch_size'] = config['norm_batch_size'] = 64
  config['optimizer']['learning_rate'] = 0.5
  config['training'].update(
    num_epochs=10.0, log_every_steps=25, eval_every_steps=100,
    population_batches=8,
  )  # fmt: skip
  result = training.train_and_evaluate(config, str(tmp_path / 'run'))
  assert result['steps'] == 225 and result['top1'] > 80
  # Both statistics are close at the end, and not the same numbers.
  assert result['population_top1'] == pytest.approx(result['top1'], abs=3.0)
  records = read_metrics(str(tmp_path / 'run'))
  evals = [r for r in records if r['kind'] == 'eval']
  assert [r['step'] for r in evals] == [100, 200, 225]
  assert result['max_population_top1'] == max(
    r['population_top1'] for r in evals
  )
  assert all(r['population_loss'] != r['loss'] for r in evals)
  train = [r for r in records if r['kind'] == 'train']
  low, middle, high = (
    np.array([r[f'sigmoid_input_p{q}'] for r in train]) for q in (15, 50, 85)
  )
  assert np.all(low < middle) and np.all(middle < high)
  # Of a standard normal distribution they would be 2.07 apart.
  assert np.all(np.abs(high - low - 2.07) < 1.5)
  assert '; population statistics: top-1 ' in capsys.readouterr().out

  path = checkpoints.find_checkpoint(str(tmp_path / 'run'), None)
  values, _ = checkpoints.evaluate_checkpoints(
    [path], checkpoints.EvaluationOptions(statistics='both')
  )
  assert values['results']['moving averages']['top1'] == result['top1']
  with pytest.raises(UserError, match='--fold is for convolutional networks'):
    checkpoints.evaluate_checkpoints(
      [path], checkpoints.EvaluationOptions(fold=True)
    )


def test_forward_mode_equals_reverse_mode():
  rng = np.random.default_rng(0)
  image, direction = jnp.asarray(rng.normal(size=(2, 8, 4, 4, 1)), 'float32')
  index = jnp.arange(8)
  model = Perceptron(3, train=True)
  variables = model.init(jax.random.key(0), image, index)

  def loss(custom_vjp, image):
    logits, _ = model.clone(custom_vjp=custom_vjp).apply(
      variables, image, index, mutable=['batch_stats', 'measurements']
    )
    return jnp.sum(logits**2)

  gradient = jax.grad(lambda image: loss(True, image))(image)
  _, slope = jax.jvp(lambda image: loss(False, image), (image,), (direction,))
  np.testing.assert_allclose(slope, jnp.vdot(gradient, direction), rtol=1e-4)


def test_bytes_are_real_numbers_and_complex_ones_refused():
  model = Perceptron(3)
  image = np.random.default_rng(0).integers(0, 256, (2, 4, 4, 1), np.uint8)
  variables = model.init(jax.random.key(0), image, None)
  np.testing.assert_array_equal(
    model.apply(variables, image, None),
    model.apply(variables, image.astype(np.float32), None),
  )
  with pytest.raises(TypeError, match='complex64'):
    model.apply(variables, image.astype(np.complex64), None)

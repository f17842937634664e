"""The train step: eight devices do what one does, and the metrics are right."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bn_inception import mesh, steps
from bn_inception.data import augment
from bn_inception.inception import Inception
from bn_inception.optimizer import make_optimizer
from bn_inception.train_state import create_train_state
from tests.conftest import FEW_ROWS

# Relative to the largest value of each array: float32 sums in another order,
# through five normalised layers.
TOLERANCE = 2e-4
BATCH_SIZE = 16
RATE, MOMENTUM = 0.1, 0.9


def make_model(**fields):
  return Inception(
    10, stem='small', stem_stride=1, width=0.125, rows=FEW_ROWS[1:],
    dropout_rate=0.4, **fields,
  )  # fmt: skip


def make_sgd(**fields):
  recipe = {'average_decay': 0.0, 'accumulate_steps': 1} | fields
  return make_optimizer(
    steps_per_epoch=100, batch_size=BATCH_SIZE, learning_rate=RATE,
    learning_rate_per_32=False, momentum=MOMENTUM, nesterov=False,
    weight_decay=0.0, decay_factor=0.96, decay_epochs=1.0, **recipe,
  )  # fmt: skip


@pytest.fixture(scope='module')
def batch():
  rng = np.random.default_rng(0)
  return {
    'image': rng.integers(0, 256, (BATCH_SIZE, 8, 8, 1)).astype(np.uint8),
    'label': rng.integers(0, 10, BATCH_SIZE).astype(np.int32),
    'mask': np.ones(BATCH_SIZE, bool),
    'index': rng.permutation(1000)[:BATCH_SIZE].astype(np.int32),
  }


def scale(image):
  return augment.scale_image(image, (-1.0, 1.0), (0.0,), (1.0,), 'rgb', 0.0)


def prepare(image, index, key):
  return scale(augment.photometric_distortion(image, index, key, 0.5))


@functools.cache
def initial_state(model_fields=(), **optimizer_fields):
  return jax.jit(
    functools.partial(
      create_train_state,
      make_model(**dict(model_fields)),
      make_sgd(**optimizer_fields),
      image_shape=(8, 8, 1),
    )
  )(jax.random.key(0))


def run_steps(
  batch,
  num_devices,
  norm_batch_size,
  num_steps=1,
  model_fields=(),
  prepare=prepare,
  **fields,
):
  accumulate_steps = fields.get('accumulate_steps', 1)
  devices = mesh.make_training_mesh(
    jax.devices()[:num_devices], BATCH_SIZE // accumulate_steps, norm_batch_size
  )
  step = steps.make_train_step(
    devices,
    model=make_model(
      train=True,
      norm_batch_size=norm_batch_size,
      axis_name=mesh.MEMBER,
    ).clone(**dict(model_fields)),
    optimizer=make_sgd(**fields),
    prepare=prepare,
  )
  replicated = mesh.replicated(devices)
  # A copy: the step donates its state.
  initial = initial_state(model_fields, **fields)
  state = jax.device_put(jax.tree.map(jnp.copy, initial), replicated)
  rng = jax.device_put(jax.random.key(7), replicated)
  if accumulate_steps > 1:
    batch = {
      name: value.reshape(accumulate_steps, -1, *value.shape[1:])
      for name, value in batch.items()
    }
  placed = jax.device_put(
    batch, mesh.batch_sharding(devices, accumulate_steps > 1)
  )
  for _ in range(num_steps):
    state, metrics = step(state, placed, rng)
  return jax.device_get((state, metrics))


def assert_close(ours, theirs):
  def check(path, a, b):
    scale = np.abs(b).max() if np.size(b) else 0.0
    np.testing.assert_allclose(
      a, b, rtol=0, atol=TOLERANCE * scale + 1e-7,
      err_msg=jax.tree_util.keystr(path),
    )  # fmt: skip

  jax.tree_util.tree_map_with_path(check, ours, theirs)


SLOWLY = functools.partial(pytest.param, marks=pytest.mark.slow)


@pytest.mark.parametrize('norm_batch_size', [0, SLOWLY(2), SLOWLY(8)])
def test_eight_devices_take_the_step_of_one(batch, norm_batch_size):
  state, metrics = run_steps(batch, 1, norm_batch_size)
  many_state, many_metrics = run_steps(batch, 8, norm_batch_size)
  # The velocity after one step is -rate * gradient: this compares gradients.
  velocity = jax.tree.leaves(state.opt_state)
  assert max(np.abs(v).max() for v in velocity) > 1e-3
  assert_close(many_state, state)
  assert_close(many_metrics, metrics)


@pytest.mark.parametrize('smoothing', [0.0, SLOWLY(0.1)])
def test_gradient_is_that_of_the_mean_loss(batch, smoothing):
  state, metrics = run_steps(batch, 1, 0, label_smoothing=smoothing)
  initial = initial_state()
  # Dropout and distortion as the step draws them.
  key = jax.random.fold_in(jax.random.key(7), 0)
  prepare_key, dropout_key = jax.random.split(key)
  image = prepare(batch['image'], batch['index'], prepare_key)

  def mean_loss(params):
    logits, _ = make_model(train=True).apply(
      {'params': params, 'batch_stats': initial.batch_stats},
      image,
      batch['index'],
      mutable=['batch_stats'],
      rngs={'dropout': dropout_key},
    )
    log_probability = jax.nn.log_softmax(logits)
    of_label = log_probability[jnp.arange(BATCH_SIZE), batch['label']]
    mean = jnp.mean(log_probability, axis=-1)
    return -jnp.mean((1 - smoothing) * of_label + smoothing * mean)

  loss, gradient = jax.jit(jax.value_and_grad(mean_loss))(initial.params)
  np.testing.assert_allclose(metrics['loss_sum'] / BATCH_SIZE, loss, rtol=1e-4)
  np.testing.assert_allclose(
    metrics['gradient_norm'], optax.tree.norm(gradient), rtol=1e-3
  )
  updated = jax.tree.map(lambda p, g: p - RATE * g, initial.params, gradient)
  assert_close(state.params, jax.device_get(updated))
  np.testing.assert_allclose(metrics['learning_rate'], RATE, rtol=1e-6)
  assert metrics['count'] == BATCH_SIZE and state.step == 1


@pytest.mark.slow
def test_polyak_average_follows_the_parameters(batch):
  after_one, _ = run_steps(batch, 1, 0, num_steps=1, average_decay=0.999)
  after_two, _ = run_steps(batch, 1, 0, num_steps=2, average_decay=0.999)
  decay = (1 + 1) / (10 + 1)  # warmed up, at the second update
  expected = jax.tree.map(
    lambda average, new: decay * average + (1 - decay) * new,
    after_one.average_params,
    after_two.params,
  )
  assert_close(after_two.average_params, expected)
  assert after_two.evaluation_variables['params'] is after_two.average_params


@pytest.mark.slow
def test_first_nonfinite_step_is_remembered(batch):
  bad = {**batch, 'image': batch['image'].astype(np.float32)}
  bad['image'][3] = np.inf
  state, metrics = run_steps(bad, 1, 0, num_steps=3)
  assert state.first_nonfinite_step == metrics['first_nonfinite_step'] == 1
  state, _ = run_steps(batch, 1, 0, num_steps=2)
  assert state.first_nonfinite_step == -1
  # A variance that overflows, though batch norm keeps loss and gradient finite.
  huge = {**batch, 'image': batch['image'].astype(np.float32) * 1e20}
  state, metrics = run_steps(huge, 1, 0, prepare=lambda image, *_: image)
  assert np.isfinite(metrics['loss_sum'])
  assert state.first_nonfinite_step == 1


def test_evaluation_counts_are_the_same_on_eight_devices(batch):
  masked = {**batch, 'mask': np.arange(BATCH_SIZE) < 11}
  variables = initial_state().evaluation_variables
  sums = []
  for num_devices in (1, 8):
    devices = mesh.make_evaluation_mesh(jax.devices()[:num_devices])
    step = steps.make_eval_step(devices, model=make_model(), prepare=scale)
    placed = jax.device_put(masked, mesh.batch_sharding(devices))
    here = jax.device_put(variables, mesh.replicated(devices))
    sums.append(jax.device_get(step(here, placed)))
  assert sums[0]['count'] == 11
  for name in 'top1_count', 'top5_count', 'count':
    assert sums[0][name] == sums[1][name]
  np.testing.assert_allclose(
    sums[0]['loss_sum'], sums[1]['loss_sum'], rtol=1e-5
  )


@pytest.mark.slow
def test_accumulated_gradient_is_that_of_the_whole_batch(batch):
  # Without batch statistics micro-batches change nothing but the order of sums.
  plain = (('use_batch_norm', False),)
  whole, whole_metrics = run_steps(batch, 1, 0, model_fields=plain)
  parts, metrics = run_steps(
    batch, 1, 0, model_fields=plain, accumulate_steps=4
  )
  assert_close(parts.params, whole.params)
  assert_close(parts.opt_state, whole.opt_state)
  assert_close(metrics, whole_metrics)


@pytest.mark.slow
def test_micro_batches_have_statistics_of_their_own(batch):
  # Groups of 4 within a batch have the same statistics as micro-batches of 4...
  groups, _ = run_steps(batch, 1, 4)
  parts, _ = run_steps(batch, 1, 0, accumulate_steps=4)
  assert_close(parts.params, groups.params)
  assert_close(parts.opt_state, groups.opt_state)
  # ...and the moving averages are updated once for each of these.
  for state, count in (groups, 1), (parts, 4):
    counts = {
      int(leaf)
      for path, leaf in jax.tree.leaves_with_path(state.batch_stats)
      if path[-1].key == 'num_updates'
    }
    assert counts == {count}
  on_four_devices, _ = run_steps(batch, 4, 0, accumulate_steps=4)
  assert_close(on_four_devices, parts)


def test_collectives_of_a_step_are_one_a_layer_each_way(batch):
  devices = mesh.make_training_mesh(jax.devices(), BATCH_SIZE, 0)
  step = steps.make_train_step(
    devices,
    model=make_model(train=True, axis_name=mesh.MEMBER),
    optimizer=make_sgd(),
    prepare=prepare,
  )
  state = initial_state()
  num_layers = sum(
    path[-1].key == 'num_updates'
    for path, _ in jax.tree.leaves_with_path(state.batch_stats)
  )
  assert num_layers == 8
  program = step.lower(state, batch, jax.random.key(0)).compile().as_text()
  lines = program.splitlines()
  gathers = [
    line for line in lines if re.search(r' all-gather(-start)?\(', line)
  ]
  assert len(gathers) == num_layers
  # The backward sums of a layer are one [2, 1, features] (the compiler may send
  # those of two layers together); gradients and moving averages are reduced at
  # the end, metrics beside them.
  reduces = [
    line.partition(' all-reduce')[0]
    for line in lines
    if re.search(r' all-reduce(-start)?\(', line)
  ]
  shapes = [re.findall(r'f32\[2,1,\d+\]', line) for line in reduces]
  assert sum(len(found) for found in shapes) == num_layers
  assert sum(bool(found) for found in shapes) <= num_layers


def test_statistics_step_returns_those_of_the_mini_batch(batch):
  variables = initial_state().evaluation_variables
  results = []
  for num_devices in (1, 8):
    devices = mesh.make_training_mesh(
      jax.devices()[:num_devices], BATCH_SIZE, 8
    )
    step = steps.make_statistics_step(
      devices,
      model=make_model(train=True, norm_batch_size=8, axis_name=mesh.MEMBER),
      prepare=prepare,
    )
    replicated = mesh.replicated(devices)
    results.append(
      jax.device_get(
        step(
          jax.device_put(variables, replicated),
          jax.device_put(batch, mesh.batch_sharding(devices)),
          jax.device_put(jax.random.key(5), replicated),
        )
      )
    )
  assert_close(results[1], results[0])
  image = prepare(batch['image'], batch['index'], jax.random.key(5))
  kernel = variables['params']['conv1']['conv']['kernel']
  u = np.float64(
    jax.lax.conv_general_dilated(
      image, kernel, (1, 1), 'SAME', dimension_numbers=('NHWC', 'HWIO', 'NHWC')
    )
  ).reshape(2, 8, 8, 8, -1)
  m = 8 * 8 * 8
  stats = results[0]['conv1']['norm']
  np.testing.assert_allclose(
    stats['mean'], u.mean((1, 2, 3)).mean(0), rtol=1e-4, atol=1e-5
  )
  np.testing.assert_allclose(
    stats['var'], u.var((1, 2, 3)).mean(0) * m / (m - 1), rtol=1e-4
  )

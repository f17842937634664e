"""Every example counts exactly once; population statistics equal NumPy's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bn_inception.data.sources import make_source
from bn_inception.evaluation import passes
from bn_inception.experiment import make_experiment, make_setup

pytestmark = pytest.mark.usefixtures('few_rows')


def test_a_wrong_count_is_an_error():
  def eval_step(variables, batch):
    return {'loss_sum': 1.0, 'top1_count': 1, 'top5_count': 1, 'count': batch}

  good = passes.evaluate(eval_step, {}, [3, 4], num_examples=7)
  assert good['examples'] == 7 and good['top1'] == pytest.approx(200 / 7)
  with pytest.raises(
    RuntimeError, match='evaluated 7 examples of a split of 8'
  ):
    passes.evaluate(eval_step, {}, [3, 4], num_examples=8)


def test_a_missing_prediction_is_an_error():
  class Two:
    class_names = ('a', 'b')

    def __len__(self):
      return 2

  def predict_step(variables, index):
    return {
      'log_probabilities': np.full((1, 2), -0.7), 'label': np.zeros(1, int),
      'index': np.array([index]), 'mask': np.array([True]),
    }  # fmt: skip

  probabilities, labels, _ = passes.predict(predict_step, {}, [1, 0], Two())
  assert probabilities.shape == (2, 2) and list(labels) == [0, 0]
  for batches in ([0], [0, 1, 1]):
    with pytest.raises(
      RuntimeError, match='1 of 2 examples were not evaluated'
    ):
      passes.predict(predict_step, {}, batches, Two())


def test_population_statistics_are_plain_averages():
  batches = [1.0, 5.0, 6.0]

  def statistics_step(variables, batch, rng):
    return {'var': jnp.full(2, variables * batch), 'num_updates': jnp.int32(7)}

  stats = passes.estimate_population_statistics(
    statistics_step, 2.0, batches, jax.random.key(0)
  )
  np.testing.assert_allclose(stats['var'], [8.0, 8.0])
  assert stats['num_updates'].dtype == jnp.int32


def test_population_statistics_equal_numpy_over_the_same_batches(digits_config):
  digits_config['augment']['photometric_strength'] = 0.0
  digits_config['norm_batch_size'] = 8
  experiment = make_experiment(digits_config, None)
  setup, source = experiment.setup, experiment.source
  variables = experiment.create_state().evaluation_variables
  found = passes.with_population_statistics(
    setup, variables, source, num_batches=3, seed=4
  )
  assert found['params'] is variables['params']
  kernel = np.asarray(variables['params']['conv1']['conv']['kernel'])
  means, variances = [], []
  for batch in setup.batches.statistics(source, 3, seed=4):
    image = np.float32(batch['image']) / 127.5 - 1
    u = jax.lax.conv_general_dilated(
      image, kernel, (1, 1), 'SAME', dimension_numbers=('NHWC', 'HWIO', 'NHWC')
    )
    for group in np.split(np.float64(u), 2):
      means.append(group.mean((0, 1, 2)))
      variances.append(group.var((0, 1, 2)))
  m = 8 * 8 * 8
  estimated = found['batch_stats']['conv1']['norm']
  np.testing.assert_allclose(
    estimated['mean'], np.mean(means, 0), rtol=1e-5, atol=1e-6
  )
  np.testing.assert_allclose(
    estimated['var'], np.mean(variances, 0) * m / (m - 1), rtol=1e-5
  )


def test_statistics_may_be_of_other_classes(digits_config):
  setup = make_setup(digits_config, jax.devices(), 7, 1)
  source = make_source('digits', 'train')  # of ten classes
  state = setup.abstract_state()
  (batch,) = setup.batches.statistics(source, 1, seed=0)
  stats = jax.eval_shape(
    setup.statistics_step,
    state.evaluation_variables,
    batch,
    jax.random.key(0),
  )
  assert jax.tree.structure(stats) == jax.tree.structure(state.batch_stats)


def test_statistics_of_fewer_examples_than_shards_are_shuffled_globally(
  digits_config,
):
  source = make_source('digits', 'train')

  def first_indices():
    setup = make_setup(digits_config, jax.devices(), 10, 1)
    (batch,) = setup.batches.statistics(source, 1, seed=0)
    return np.asarray(batch['index'])

  digits_config['data'].update(num_shards=2000, shuffle='shards')
  found = first_indices()
  digits_config['data'].update(num_shards=4, shuffle='global')
  np.testing.assert_array_equal(found, first_indices())

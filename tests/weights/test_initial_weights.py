"""Runs that start from the checkpoint of another run."""

import copy
import json

import cv2
import jax
import numpy as np
import pytest
from absl import flags

from bn_inception import training
from bn_inception.batch_norm import warmed_up_decay
from bn_inception.data.sources import make_source
from bn_inception.errors import UserError
from bn_inception.evaluation import checkpoints, inference
from bn_inception.experiment import make_experiment
from bn_inception.programs import presets
from bn_inception.runs import checkpoint, checkpoint_folder
from bn_inception.runs.logbook import read_metrics
from bn_inception.weights.initial_weights import (
  _check_same_network,
  start_from_checkpoint,
)
from configs import compose
from tests.conftest import short_digits_config, use_few_rows

pytestmark = pytest.mark.usefixtures('few_rows')


@pytest.fixture(scope='module')
def run_of_two_steps(tmp_path_factory):
  """Its folder and its config."""
  config = short_digits_config()
  config['training']['num_epochs'] = 2 * 16 / 1442
  config['optimizer']['average_decay'] = 0.5
  workdir = str(tmp_path_factory.mktemp('runs') / 'first')
  with pytest.MonkeyPatch.context() as patch:
    use_few_rows(patch)
    training.train_and_evaluate(config, workdir)
  return workdir, config


@pytest.fixture
def first(run_of_two_steps):
  """The checkpoint of a run of two steps, and a config for a test to change."""
  workdir, config = run_of_two_steps
  return checkpoints.find_checkpoint(workdir, None), copy.deepcopy(config)


def start(path, config, class_names=None, num_channels=None):
  config = json.loads(json.dumps(config))
  experiment = make_experiment(config, None)
  initial = experiment.create_state()
  names = class_names or experiment.source.class_names
  state, taken = start_from_checkpoint(
    initial,
    path,
    config,
    names,
    num_channels or experiment.source.num_channels,
    initial.step.sharding,
  )
  return initial, state, taken


def read_raw(path):
  """What a checkpoint holds, as orbax alone reads it."""
  import orbax.checkpoint as ocp

  return ocp.StandardCheckpointer().restore(f'{path}/state')


def test_weights_and_statistics_are_those_of_the_checkpoint(first):
  path, config = first
  saved = read_raw(path)
  config = copy.deepcopy(config)
  config['seed'] = 1
  config['optimizer']['momentum'] = 0.5
  config['model']['dropout_rate'] = 0.1
  _, state, taken = start(path, config)
  assert taken == f'{path} (step 2 of bn_x5-digits)'
  jax.tree.map(
    np.testing.assert_array_equal, state.params, saved['average_params']
  )
  jax.tree.map(
    np.testing.assert_array_equal, state.average_params, state.params
  )
  norm, saved_norm = (
    stats['conv1']['norm']
    for stats in (state.batch_stats, saved['batch_stats'])
  )
  np.testing.assert_array_equal(norm['mean'], saved_norm['mean'])
  assert saved_norm['num_updates'] == 2 and norm['num_updates'] == 0
  # So much of the checkpoint's averages is left after 1 and 10 updates.
  kept = [warmed_up_decay(0.9997, norm['num_updates'] + t) for t in range(10)]
  assert float(kept[0]) == pytest.approx(0.1)
  assert float(np.prod(kept)) == pytest.approx(1 / 92_378, rel=1e-5)
  assert int(state.step) == 0
  assert not any(np.any(leaf) for leaf in jax.tree.leaves(state.opt_state))


@pytest.mark.parametrize(
  'name, value, message',
  [
    ('params', np.nan, 'params/conv1/conv/kernel[0, 0, 0, 0] is nan'),
    ('batch_stats', -1.0, 'batch_stats/conv1/norm/var[0] is -1.0'),
  ],
)
def test_weights_that_are_no_numbers_are_refused_by_all_that_use_them(
  digits_config, tmp_path, monkeypatch, name, value, message
):
  state = make_experiment(digits_config, None).create_state()
  arrays = getattr(state, name)['conv1']
  if name == 'params':
    arrays['conv']['kernel'] = arrays['conv']['kernel'].at[0, 0, 0].set(value)
  else:
    arrays['norm']['var'] = arrays['norm']['var'].at[0].set(value)
  directory, workdir = str(tmp_path / 'checkpoints'), tmp_path / 'run'
  description = {
    'config': json.loads(json.dumps(digits_config)),
    'class_names': [str(i) for i in range(10)],
    'num_channels': 1,
  }
  with checkpoint.open_checkpoints(directory, 1, 1) as opened:
    checkpoint.save(opened, state, description, top1=None)
  path = digits_config['init_from'] = f'{directory}/0'
  options = checkpoints.EvaluationOptions()
  for use in (
    lambda: training.train_and_evaluate(digits_config, str(workdir)),
    lambda: checkpoints.evaluate_checkpoints([path], options),
    lambda: inference.load(path),
  ):
    with pytest.raises(UserError) as caught:
      use()
    assert f'{path} cannot be used: {message}: ' in str(caught.value)
  assert not workdir.exists()


def test_other_classes_get_a_new_last_layer(first):
  path, config = first
  initial, state, taken = start(path, config, tuple('abcdefghij'))
  assert taken.endswith('; new last layer: 10 -> 10 classes)')
  jax.tree.map(
    np.testing.assert_array_equal,
    state.params['logits'],
    initial.params['logits'],
  )
  kernel = state.params['conv1']['conv']['kernel']
  assert np.any(kernel != initial.params['conv1']['conv']['kernel'])


def test_other_networks_are_refused(first):
  path, config = first
  for changes, message in (
    (
      {'model.nonlinearity': 'sigmoid', 'input_scaling.mean': [1.0]},
      'input_scaling.mean is [0.0], not [1.0]; model.nonlinearity is relu, '
      'not sigmoid)',
    ),
    ({'init_from': '/no'}, 'checkpoint /no does not exist'),
  ):
    changed = json.loads(json.dumps(config))
    for name, value in changes.items():
      section, _, key = name.rpartition('.')
      (changed[section] if section else changed)[key] = value
    with pytest.raises(UserError) as caught:
      start(changed['init_from'] or path, changed)
    assert message in str(caught.value)
  with pytest.raises(UserError, match='colour channels is 1, not 3'):
    start(path, config, num_channels=3)


def test_a_network_without_another_norm_is_told_from_one_with(
  digits_config, tmp_path, monkeypatch
):
  older = copy.deepcopy(digits_config)
  del older['model']['norm']
  monkeypatch.setattr(
    checkpoint,
    'read_description',
    lambda path: {'config': copy.deepcopy(older), 'num_channels': 1},
  )
  _check_same_network('a/checkpoints/9', digits_config, 1)
  digits_config['model'].update(use_batch_norm=False, norm='group')
  with pytest.raises(
    UserError, match="model.norm is '', not group; model.use_"
  ):
    _check_same_network('a/checkpoints/9', digits_config, 1)


def test_other_shapes_are_named(first):
  path, config = first
  config = json.loads(json.dumps(config))
  experiment = make_experiment(config, None)
  initial = experiment.create_state()
  params = copy.deepcopy(initial.params)
  params['conv1']['conv']['kernel'] = np.zeros((3, 3, 3, 8))
  with pytest.raises(UserError) as caught:
    start_from_checkpoint(
      initial.replace(params=params), path, config,
      experiment.source.class_names, 1, initial.step.sharding,
    )  # fmt: skip
  assert 'conv1/conv/kernel is (3, 3, 1, 8), not (3, 3, 3, 8))' in str(
    caught.value
  )


def digit_folder(root, digits, num_train, num_validation):
  """Folders of so many PNG files of each of these digits."""
  for split, name, number in (
    ('train', 'train', num_train), ('test', 'val', num_validation)
  ):  # fmt: skip
    source = make_source('digits', split)
    labels = np.array([source[i][1] for i in range(len(source))])
    for digit in digits:
      folder = root / name / f'digit_{digit}'
      folder.mkdir(parents=True)
      for index in np.flatnonzero(labels == digit)[:number]:
        image, _ = source[int(index)]
        cv2.imwrite(str(folder / f'{index:04}.png'), image)
  return str(root)


@pytest.mark.slow
@pytest.mark.parametrize('network', ['perceptron', 'bn_x5'])
def test_fine_tuning_follows_the_size_of_its_data(tmp_path, network):
  # As ImageNet's config: more shards than the new data have images.
  if network == 'perceptron':
    config = compose.perceptron('batch_norm,digits').to_dict()
    config['input_scaling']['binary_threshold'] = 0.0
  else:
    config = compose.preset(network, 'digits').to_dict()
  config['batch_size'] = config['norm_batch_size'] = 16
  config['source'].update(dataset='image_folder', eval_split='validation')
  config['data'].update(num_shards=100, shuffle='within_shards')
  config['training'].update(
    num_epochs=3.0, log_every_steps=50, eval_every_steps=20_000,
    checkpoint_every_steps=20_000,
  )  # fmt: skip
  first = digit_folder(tmp_path / 'first', range(8), 60, 10)
  workdir = str(tmp_path / 'run')
  training.train_and_evaluate(config, workdir, first)

  data = digit_folder(tmp_path / 'own', (8, 9), 24, 20)
  tuned = compose.from_run(workdir)
  assert tuned.data.num_shards == 100
  tuned.init_from = checkpoints.find_checkpoint(workdir, None)
  tuned.training.num_epochs = 10.0
  tuned = tuned.to_dict()
  experiment = make_experiment(tuned, data)
  batches = [
    frozenset(np.asarray(batch['index']).tolist())
    for batch, _ in zip(experiment.batches(0), range(9), strict=False)
  ]
  epochs = [set(batches[i : i + 3]) for i in (0, 3, 6)]
  assert all(frozenset().union(*epoch) == set(range(48)) for epoch in epochs)
  assert len(set.union(*epochs)) == 9  # no mini-batch comes again
  workdir = str(tmp_path / 'tuned')
  result = training.train_and_evaluate(tuned, workdir, data)
  records = read_metrics(workdir)
  steps = [r['step'] for r in records if r['kind'] == 'eval']
  assert steps == list(range(3, 31, 3))  # once an epoch
  assert result['top1'] >= 80.0 and result['eval_examples'] == 40


@pytest.mark.slow
def test_the_preset_fine_tunes_on_another_data_set(tmp_path, capsys):
  config = compose.perceptron('batch_norm,digits').to_dict()
  config['batch_size'] = config['norm_batch_size'] = 40
  config['training']['num_epochs'] = 2 * 40 / 1442
  workdir = str(tmp_path / 'run')
  training.train_and_evaluate(config, workdir)
  path = checkpoints.find_checkpoint(workdir, None)
  tuned = presets.load(f'configs/fine_tune.py:{path},fashion_mnist')
  assert (
    tuned.name == 'fine_tuned-perceptron_batch_norm-digits-on-fashion_mnist'
  )
  assert tuned.init_from == path and tuned.optimizer.learning_rate == 0.001
  assert tuned.model.hidden_sizes == (100, 100, 100)
  tuned.training.num_epochs = 2 * 40 / 200
  capsys.readouterr()
  result = training.train_and_evaluate(
    tuned.to_dict(), str(tmp_path / 'tuned'), 'tests/tfds'
  )
  assert (result['steps'], result['eval_examples']) == (2, 80)
  assert 'new last layer: 10 -> 10 classes' in capsys.readouterr().out
  same = compose.fine_tune(path)
  assert same.name == 'fine_tuned-perceptron_batch_norm-digits'
  assert same.source.dataset == 'digits'
  with pytest.raises(flags.IllegalFlagValueError, match="'runs/a' is not a ch"):
    compose.fine_tune('runs/a')
  with pytest.raises(flags.IllegalFlagValueError, match='no/run/config.json'):
    compose.fine_tune('no/run/checkpoints/3')


@pytest.mark.slow
def test_a_run_trains_on_from_a_checkpoint_and_can_be_resumed(
  first, run_of_two_steps, tmp_path, capsys
):
  path, config = first
  again = compose.from_run(run_of_two_steps[0])
  assert again.name == 'like-bn_x5-digits'
  assert again.input_scaling.value_range == (-1.0, 1.0)
  again.unlock()
  again.optimizer.learning_rate = 0.0
  again.optimizer.weight_decay = 0.0
  again.init_from = path
  workdir = str(tmp_path / 'second')
  capsys.readouterr()
  training.train_and_evaluate(again.to_dict(), workdir)
  assert f'init from      {path} (step 2 of' in capsys.readouterr().out
  ended = read_raw(checkpoint_folder.find(f'{workdir}/checkpoints'))
  # Nothing was learned from the average that the first run ended with.
  jax.tree.map(
    np.testing.assert_array_equal,
    ended['params'],
    read_raw(path)['average_params'],
  )
  training.train_and_evaluate(again.to_dict(), workdir)
  assert f'resuming from {workdir}' in capsys.readouterr().out
  with pytest.raises(UserError, match='init_from: .*first.* -> '):
    training.train_and_evaluate(again.to_dict() | {'init_from': ''}, workdir)
  (tmp_path / 'config.json').write_text('{')
  for folder in '/no/9', str(tmp_path):
    with pytest.raises(flags.IllegalFlagValueError, match='cannot be read'):
      compose.from_run(folder)

"""Assembly: sections are keyword arguments; the full network takes a step."""

import gc
import re

import jax
import numpy as np
import pytest

from bn_inception import experiment
from bn_inception.data.built_in import DigitsSource, SyntheticSource
from bn_inception.data.sources import describe_data
from bn_inception.errors import UserError
from bn_inception.experiment import (
  TrainingOptions,
  make_experiment,
  make_setup,
  setup_of_checkpoint,
)
from bn_inception.machine import shared_memory
from bn_inception.train_state import count_parameters
from configs import compose


@pytest.mark.parametrize(
  'section',
  ['data', 'augment', 'input_scaling', 'model', 'optimizer', 'training'],
)
def test_a_misspelt_key_fails_at_start_up(digits_config, section):
  digits_config[section]['learning_rat'] = 1.0
  with pytest.raises(UserError, match=rf'key {section}\.learning_rat:'):
    make_experiment(digits_config, None)


def test_keys_of_another_architecture_are_refused(digits_config):
  digits_config['architecture'] = 'perceptron'
  with pytest.raises(
    UserError, match=r'perceptron has no key model\.\w+: .* hidden_sizes, '
  ):
    make_experiment(digits_config, None)


def test_steps_follow_from_epochs(digits_config):
  digits_config['training']['num_epochs'] = 2.5
  experiment = make_experiment(digits_config, None)
  assert experiment.steps_per_epoch == 1442 / 16
  assert experiment.num_steps == round(2.5 * 1442 / 16)


def test_numbers_that_make_no_sense_are_refused(digits_config):
  # Before data are opened, or a folder made.
  digits_config['source']['dataset'] = 'absent'
  digits_config['training']['log_every_steps'] = -1
  with pytest.raises(UserError, match='training.log_every_steps .*got -1'):
    make_experiment(digits_config, None)


def test_more_steps_than_can_be_counted_are_refused(digits_config):
  digits_config['training']['num_epochs'] = 1e6
  digits_config['batch_size'] = digits_config['norm_batch_size'] = 8
  experiment = make_experiment(digits_config, None)
  assert experiment.num_steps == 1e6 * 1442 / 8
  digits_config['source']['dataset'] = 'synthetic'
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(SyntheticSource, '__len__', lambda self: 2**20)
    with pytest.raises(UserError, match=r'131,072,000,000 updates'):
      make_experiment(digits_config, None)


@pytest.mark.parametrize(
  'num_examples, every', [(48, (2, 2, 2)), (48_000, (100, 1500, 1500))]
)
def test_zero_steps_are_an_epoch(digits_config, num_examples, every):
  names = 'log_every_steps', 'eval_every_steps', 'checkpoint_every_steps'
  digits_config['training'].update(dict.fromkeys(names, 0))
  options = TrainingOptions(**digits_config['training'])
  options = options.with_default_intervals(num_examples / 32)
  assert tuple(getattr(options, name) for name in names) == every
  # Numbers stay as they are.
  assert options.with_default_intervals(7.0) == options


def test_splits_of_other_classes_are_refused(digits_config, monkeypatch):
  def open_split(config, dataset, split, data_dir):
    source = DigitsSource(split)
    if split == 'test':
      source.class_names = (*source.class_names[:-1], 'nine')
    return source

  monkeypatch.setattr(experiment, 'open_split', open_split)
  with pytest.raises(UserError, match='train and test .*class 9: 9 -> nine'):
    make_experiment(digits_config, None)


@pytest.mark.parametrize(
  'name, image_size, modules, fewest',
  [
    ('batch_norm', 8, (), 2),
    ('bn_x5', 8, (), 1),
    ('bn_x5', 4, (), 2),  # maps of 1x1 in the last modules
    ('bn_x5', 8, ('5b',), 2),
  ],
)
def test_one_value_for_each_example_needs_two_examples(
  name, image_size, modules, fewest
):
  if name == 'batch_norm':
    config = compose.perceptron('batch_norm,digits').to_dict()
  else:
    config = compose.preset(name, 'digits').to_dict()
    config['model']['per_activation_modules'] = modules
  config['data']['image_size'] = image_size
  config['batch_size'], config['norm_batch_size'] = 4, 1
  facts = {'num_classes': 10, 'num_channels': 1, 'num_examples': 100}
  devices = jax.devices()[:1]
  if fewest == 1:
    make_setup(config, devices, **facts)
    return
  with pytest.raises(UserError, match=r'norm_batch_size 1 .*\[2, 4\]'):
    make_setup(config, devices, **facts)
  config['batch_size'], config['norm_batch_size'] = 1, 0
  with pytest.raises(UserError, match='batch_size 1: '):
    make_setup(config, devices, **facts)


@pytest.mark.parametrize(
  'use_batch_norm, norm_batch_size, shared',
  [(True, 0, 8), (True, 4, 4), (False, 0, 0), (False, 4, 0)],
)
def test_examples_share_statistics_of_a_micro_batch_at_most(
  digits_config, use_batch_norm, norm_batch_size, shared
):
  digits_config['model']['use_batch_norm'] = use_batch_norm
  digits_config['norm_batch_size'] = norm_batch_size
  digits_config['optimizer']['accumulate_steps'] = 2
  setup = make_setup(digits_config, jax.devices()[:2], 10, 1)
  assert (setup.batches.micro_batch_size, setup.norm_batch_size) == (8, shared)
  # Of 4 examples on each device, one device or two share statistics.
  assert setup.device_mesh.shape['member'] == (1 if shared == 4 else 2)


def test_moving_averages_need_no_batch_that_divides(digits_config):
  digits_config['batch_size'], digits_config['norm_batch_size'] = 12, 0
  description = {
    'config': digits_config, 'class_names': ['a', 'b'], 'num_channels': 1,
  }  # fmt: skip
  setup = setup_of_checkpoint(description)
  assert dict(setup.device_mesh.shape) == {'group': 1, 'member': 8}
  assert setup.model.num_classes == 2
  with pytest.raises(UserError, match='12 cannot be divided over 8 devices'):
    setup_of_checkpoint(description, with_batch_statistics=True)


def test_imagenet_needs_no_data():
  config = compose.preset('bn_x30', 'imagenet').to_dict()
  assert describe_data(config) == {
    'num_classes': 1000, 'num_channels': 3, 'num_examples': 1_281_167,
  }  # fmt: skip


def tabulate(config):
  """{path of a module: {column: cell}}; the total's path is empty."""
  setup = make_setup(config, jax.devices()[:1], **describe_data(config))
  rows = [
    [cell.strip() for cell in re.split('[│┃]', line)[1:-1]]
    for line in setup.tabulate().splitlines()
  ]
  head, *rows = [row for row in rows if row]
  return setup, {row[0]: dict(zip(head, row, strict=True)) for row in rows}


def test_the_table_of_modules_has_shapes_and_parameters(
  digits_config, few_rows
):
  setup, table = tabulate(digits_config)
  modules = ['inception_3a', 'inception_3c']
  assert [name for name in table if name.startswith('incep')] == modules
  row = table['inception_3a']
  assert row['inputs'] == 'float32[1,8,8,24]'
  assert row['outputs'] == 'float32[1,8,8,32]'
  # The 1x1 convolutions of four branches, then the 3x3: FLOPs of 64 pixels.
  products = 24 * (8 + 8 + 8 + 4) + 9 * (8 * 8 + 8 * 12 + 12 * 12)
  assert 0.8 < int(row['flops']) / (2 * 64 * products) < 1.2
  number = count_parameters(setup.abstract_state().params)
  assert table['']['params'].startswith(f'{number:,} ')


@pytest.mark.slow
def test_the_table_of_the_imagenet_network():
  config = compose.preset('bn_x5', 'imagenet').to_dict()
  config['model'] |= {'stem': 'dense', 'pool_projection_4cd': 128}
  _, table = tabulate(config)
  assert table['']['params'].startswith('11,285,224 ')


@pytest.mark.parametrize('accumulate_steps', [1, 2])
def test_abstract_arguments_are_those_of_a_run(
  digits_config, few_rows, accumulate_steps
):
  digits_config['norm_batch_size'] = 16 // accumulate_steps
  digits_config['optimizer']['accumulate_steps'] = accumulate_steps
  experiment = make_experiment(digits_config, None)
  batch = next(experiment.batches(0))
  arguments = (experiment.create_state(), batch, experiment.rng)
  source = experiment.source
  setup = make_setup(
    digits_config,
    jax.devices(),
    num_classes=len(source.class_names),
    num_channels=source.num_channels,
    num_examples=len(source),
  )
  abstract = setup.abstract_arguments()
  assert jax.tree.structure(abstract) == jax.tree.structure(arguments)
  for expected, actual in zip(
    jax.tree.leaves(abstract), jax.tree.leaves(arguments), strict=True
  ):
    assert (expected.shape, expected.dtype) == (actual.shape, actual.dtype)
    assert expected.sharding.is_equivalent_to(actual.sharding, actual.ndim)


def live_programs():
  gc.collect()
  live = jax.devices()[0].client.live_executables()
  return [module.name for program in live for module in program.hlo_modules()]


def test_programs_of_steps_end_with_their_setup():
  config = compose.perceptron('batch_norm,digits').to_dict()
  config['augment']['photometric_strength'] = 0.0
  setup = make_setup(config, jax.devices()[:1], 10, 1)
  variables = jax.tree.map(
    lambda x: np.zeros(x.shape, x.dtype),
    setup.abstract_state().evaluation_variables,
  )
  batch = next(setup.batches.statistics(DigitsSource('test'), 1, seed=0))
  name, before = 'jit_statistics_step', live_programs()
  setup.statistics_step(variables, batch, jax.random.key(0))
  assert live_programs().count(name) == before.count(name) + 1
  del setup
  assert live_programs().count(name) == before.count(name)


@pytest.mark.slow
def test_the_program_of_the_initial_state_is_not_kept(digits_config, few_rows):
  experiment = make_experiment(digits_config, None)
  state = experiment.create_state()
  assert state.step == 0
  names = live_programs()
  assert names and 'jit_create_initial_state' not in names


@pytest.mark.slow
def test_the_full_network_takes_a_step_at_224(capsys):
  config = compose.preset('bn_x30', 'imagenet').to_dict()
  config['source']['dataset'] = 'synthetic'
  config['batch_size'] = config['norm_batch_size'] = 8
  config['data'].update(num_shards=16, num_workers=0)
  experiment = make_experiment(config, None)
  state = experiment.create_state()
  assert count_parameters(state.params) == 11_188_288
  before = np.asarray(state.params['conv1']['depthwise']['kernel'])
  batch = next(iter(experiment.batches(0)))
  assert batch['image'].shape == (8, 224, 224, 3)
  state, metrics = experiment.train_step(state, batch, experiment.rng)
  assert state.step == 1 and state.first_nonfinite_step == -1
  # Untrained: about the loss of a uniform guess, log 1000 = 6.9.
  assert 6.0 < metrics['loss_sum'] / 8 < 9.5
  assert 0.1 < metrics['gradient_norm'] < 100
  after = np.asarray(state.params['conv1']['depthwise']['kernel'])
  assert np.abs(after - before).max() > 0


@pytest.fixture
def docker(monkeypatch):
  """64 MB of shared memory, all of it free."""
  monkeypatch.setattr(shared_memory, '_free_bytes', lambda: 64 * 2**20)


def large_config(num_workers):
  """Of batches of 4.6 MB, for a network that is built soon."""
  config = compose.preset('bn_x5', 'imagenet').to_dict()
  config['source'].update(dataset='synthetic', eval_split='test')
  config['data']['num_workers'] = num_workers
  return config


def test_workers_without_shared_memory_are_refused_at_the_start(docker):
  with pytest.raises(UserError) as caught:
    make_experiment(large_config(8), None)
  # Of training 85 batches, and all 7 of the evaluation, of 200 images.
  megabytes = -(-(85 * 32 + 7 * 200) * 224 * 224 * 3 // 2**20) + 2
  assert f'--shm-size={megabytes}m' in str(caught.value)
  assert '--config.data.num_workers=0' in str(caught.value)

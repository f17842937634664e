"""Every key of a config is in the table, and bad values are refused by name."""

import copy
import json
import math

import pytest
from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict

from bn_inception import config_keys
from bn_inception.errors import UserError
from configs import compose, paper, studies

BASES = paper.BASE | paper.PERCEPTRON


def all_configs():
  for network in paper.NETWORKS:
    for task in paper.TASKS:
      yield compose.preset(network, task)
  for task in paper.TASKS:
    for member in paper.ENSEMBLE:
      yield compose.ensemble_member(f'{member},{task}')
    for change in paper.CHANGES:
      yield compose.with_changes('bn_baseline', f'{change},{task}')
      yield compose.without('bn_x5', f'{change},{task}')
  for name in paper.PERCEPTRONS:
    for dataset in paper.PERCEPTRON_DATASETS:
      yield compose.perceptron(f'{name},{dataset}')


def test_the_table_has_every_key_of_the_base_and_no_other():
  assert set(BASES) | {'name'} == set(config_keys.KEYS)
  for key, value in BASES.items():
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    assert (
      isinstance(config_keys.KEYS[key].allowed, config_keys.Number) == is_number
    ), key
    if is_number:
      assert config_keys.KEYS[key].allowed.is_whole == isinstance(value, int), (
        key
      )


def test_every_preset_of_every_task_is_inside():
  configs = list(all_configs())
  assert len(configs) > 100
  for config in configs:
    config = config.to_dict()
    config_keys.check_config(config)
    config_keys.check_config(json.loads(json.dumps(config)))
  for study in studies.STUDIES.values():
    for arm in study.arms:
      for key, value in arm.values.items():
        if not isinstance(value, paper.Times):
          config_keys.check_value(key, value)


def test_what_follows_from_a_key():
  outside = {k for k, key in config_keys.KEYS.items() if not key.changes_result}
  assert outside == {
    'name', 'data.num_workers', 'data.prefetch', 'eval_batch_size',
    'source.keep_in_memory',
  }  # fmt: skip
  assert all(config_keys.may_change(key) for key in outside)
  assert config_keys.may_change('training.num_epochs')
  assert not config_keys.may_change('optimizer.momentum')
  assert not config_keys.may_change('optimizer.unknown')
  values = {
    'name': 'a', 'seed': 1, 'model.width': 2.0, 'model.dropout_rate': 0.4,
    'model.unknown': 3,
  }  # fmt: skip
  identity = {k: v for k, v in values.items() if k != 'name'}
  assert config_keys.identity(values) == identity
  function = {'model.width': 2.0, 'model.unknown': 3}
  assert config_keys.network_identity(values) == function


def test_a_newer_key_counts_only_when_it_changes_something(monkeypatch):
  newer = config_keys.Key(
    config_keys.Numbers(config_keys.Number(0, 9)),
    changes_function=True,
    legacy_value=[1],
  )
  width = config_keys.KEYS['model.width']
  keys = {'model.width': width, 'model.new': newer}
  monkeypatch.setattr(config_keys, 'KEYS', keys)
  old = {'model.width': 2.0}
  for values in config_keys.identity, config_keys.network_identity:
    assert values(old | {'model.new': [1]}) == old
    assert values(old | {'model.new': [2]}) == old | {'model.new': [2]}
  assert config_keys.add_missing(old) == old | {'model.new': [1]}
  assert config_keys.add_missing({'model.new': [2]}) == {'model.new': [2]}


@pytest.mark.parametrize('key', sorted(set(BASES) - {'name'}))
@pytest.mark.parametrize('value', [math.nan, math.inf, 2**63, True, 'abc'])
def test_what_no_number_can_be_is_refused(key, value):
  if isinstance(config_keys.KEYS[key].allowed, config_keys.Number):
    with pytest.raises(UserError, match=f'{key} must be a .*number'):
      config_keys.check_value(key, value)
  elif isinstance(config_keys.KEYS[key].allowed, config_keys.Numbers):
    with pytest.raises(UserError, match=f'{key} must be .*number'):
      config_keys.check_value(key, (value,))
  elif not isinstance(value, config_keys.KEYS[key].allowed.types):
    with pytest.raises(UserError, match=f'{key} must be '):
      config_keys.check_value(key, value)


def test_no_number_may_be_negative():
  for key, (allowed, *_) in config_keys.KEYS.items():
    if isinstance(allowed, config_keys.Number):
      with pytest.raises(UserError, match=key):
        config_keys.check_value(key, -1 if allowed.is_whole else -1e-3)


@pytest.mark.parametrize(
  'key, good, bad',
  [
    ('seed', [0, 2**32 - 1], [2**32, 0.0]),
    ('batch_size', [1], [0, 32.0]),
    ('norm_batch_size', [0], []),
    ('data.prefetch', [1], [0]),
    ('data.num_workers', [0], []),
    ('augment.photometric_strength', [0, 1.0], [2.5]),
    ('input_scaling.std', [(1.0,), [57.0, 1, 2.5]], [(0.0,), (), 1.0, (1, 0)]),
    ('input_scaling.value_range', [(0, 255), [-1.0, 1.0]], [(1, 1), (0,)]),
    ('input_scaling.binary_threshold', [0.0, 255], [256]),
    ('model.hidden_sizes', [(100,)], [(), (0,), (100, 1.5), '100']),
    ('model.epsilon', [1e-5], [0, 1e-50]),
    ('model.dropout_rate', [0.0, 0.99], [1.0]),
    ('model.statistics_decay', [0, 1.0], [1.1]),
    ('name', ['a'], ['']),
    ('source.dataset', ['digits'], ['']),
    ('init_from', [''], []),
    ('model.use_batch_norm', [True], ['false', 1]),
    ('model.width', [0.01], [0.0]),
    ('optimizer.momentum', [0.0, 0.99], [1.0, 1.5]),
    ('optimizer.decay_factor', [1.0, 0.1], [0.0, 1.1]),
    ('optimizer.decay_epochs', [0.05], [0.0]),
    ('optimizer.learning_rate', [0.0, 3.0], [-1e-3, 1e7]),
    ('optimizer.weight_decay', [0.0], [-1e-4]),
    ('optimizer.label_smoothing', [0.0, 0.9], [1.0, -0.1]),
    ('training.num_epochs', [1e-3, 150], [0.0]),
    ('training.eval_every_steps', [0, 20_000], [1.5]),
    ('training.keep_last_checkpoints', [1], [0]),
    ('training.target_accuracy', [0, 100], [101]),
  ],
)
def test_bounds(key, good, bad):
  for value in good:
    config_keys.check_value(key, value)
  for value in bad:
    with pytest.raises(UserError, match=f'{key} must be '):
      config_keys.check_value(key, value)


def test_keys_that_are_unknown_or_missing_are_named():
  whole = compose.preset('bn_x5', 'digits').to_dict()
  for change, message in (
    (lambda c: c['data'].pop('prefetch'), 'lacks data.prefetch'),
    (lambda c: c.pop('model'), 'lacks model$'),
    (lambda c: c.pop('optimizer'), 'lacks optimizer$'),
    (lambda c: c.pop('seed'), 'lacks seed'),
    (lambda c: c.update(optimiser={'momentum': 0.9}), 'optimiser.momentum:'),
    (lambda c: c['optimizer'].update(momentm=0.9), 'optimizer.momentm:'),
    (lambda c: c.update(training=3), 'key training:'),
    (
      lambda c: c['model'].clear(),
      r'lacks model\.dtype, model\.use_batch_norm$',
    ),
    (lambda c: c.update(model=ConfigDict()), r'section model .*to_dict\(\)'),
  ):
    config = copy.deepcopy(whole)
    change(config)
    with pytest.raises(UserError, match=message):
      config_keys.check_config(config)
  for config, message in (
    (compose.preset('bn_x5', 'digits'), r'a ConfigDict: .*to_dict\(\)'),
    ('configs/bn_x5.py', 'plain dict, got a str$'),
  ):
    with pytest.raises(UserError, match=message):
      config_keys.check_config(config)
  # A network has defaults, and keys of its own.
  del whole['model']['remat']
  config_keys.check_config(whole)
  assert 'optimizer.momentum' in flatten_dict(whole, sep='.')

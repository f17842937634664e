"""PyTorch's weights: exact both ways, whatever was put before their names."""

import jax
import numpy as np
import pytest

from bn_inception.batch_norm import warmed_up_decay
from bn_inception.errors import UserError
from bn_inception.inception import Inception
from bn_inception.perceptron import Perceptron
from bn_inception.train_state import count_parameters
from bn_inception.weights.pytorch import (
  CADENE,
  LAYOUTS,
  PYTORCH_MODEL,
  PYTORCHCV,
  from_pytorch,
  strip_prefixes,
  to_pytorch,
)
from tests.weights.networks import assert_identical, export


@pytest.mark.parametrize('layout', LAYOUTS, ids=lambda x: x.name)
def test_export_and_import_are_exact(variables, layout):
  weights = export(variables, layout)
  assert len(weights) == 69 * 7 + 2
  learned = {
    k: v for k, v in weights.items() if k.endswith(('.weight', '.bias'))
  }
  assert count_parameters(learned) == 11_295_240  # as the packages say
  assert all(v.flags.c_contiguous for v in weights.values())
  imported = from_pytorch(weights)
  assert imported.name == layout.name and imported.num_classes == 1000
  assert imported.eval_crop == 'torchvision'
  assert_identical(imported.variables, variables)


def test_biases_go_into_the_moving_means(variables):
  weights, rng = export(variables), np.random.default_rng(1)
  before = weights['inception_4c_double_3x3_1_bn.running_mean'].copy()
  bias = rng.normal(size=160).astype(np.float32)
  weights['inception_4c_double_3x3_1.bias'] = bias
  module = from_pytorch(weights).variables['batch_stats']['inception_4c']
  mean = module['double3x3_a']['norm']['mean']
  np.testing.assert_array_equal(mean, before - bias)


@pytest.mark.parametrize('has_counters', [False, True])
def test_old_files_without_counters_and_with_vectors_of_two_dimensions(
  variables, has_counters
):
  counter = 'num_batches_tracked'
  weights = {
    name: value[None] if '_bn.' in name else value
    for name, value in export(variables).items()
    if not name.endswith(counter)
  }
  if has_counters:  # later versions of PyTorch add them as 0
    weights |= {
      name.replace('running_var', counter): np.int64(0)
      for name in weights
      if name.endswith('running_var')
    }
  imported = from_pytorch(weights).variables
  assert_identical(imported['params'], variables['params'])
  counts = {
    int(leaf)
    for path, leaf in jax.tree.leaves_with_path(imported['batch_stats'])
    if path[-1].key == 'num_updates'
  }
  assert counts == {100_000}
  # Trained on, as its own run would be, it keeps its averages.
  kept = [warmed_up_decay(0.9997, np.int32(100_000 + t)) for t in range(10)]
  assert float(kept[0]) == pytest.approx(0.9997)
  assert float(np.prod(kept)) == pytest.approx(0.997, abs=1e-5)


@pytest.mark.parametrize(
  'name, index, value, message',
  [
    ('inception_4a_3x3_bn.running_var', 3, np.nan, '[3] is nan'),
    ('inception_4a_3x3_bn.running_var', 3, -1.0, '[3] is -1.0'),
    ('inception_3a_1x1.weight', 0, np.inf, '[0, 0, 0, 0] is inf'),
    ('inception_5b_1x1_bn.running_mean', 2, -np.inf, '[2] is -inf'),
    (
      'last_linear.weight',
      (7, 8),
      1e300,
      '[7, 8] is 1e+300, too large for float32',
    ),
    (
      'conv1_7x7_s2_bn.num_batches_tracked',
      (),
      -1,
      ' is -1, not in 0 to 2147483647',
    ),
    (
      'conv1_7x7_s2_bn.num_batches_tracked',
      (),
      2**31,
      ' is 2147483648, not in 0 to 2147483647',
    ),
  ],
)
def test_weights_that_are_no_numbers_are_named(
  variables, name, index, value, message
):
  weights = export(variables)
  array = weights[name]
  weights[name] = np.array(array, np.float64 if array.ndim else np.int64)
  weights[name][index] = value
  with pytest.raises(UserError) as error:
    from_pytorch(weights, path='a.pth')
  assert str(error.value).startswith(f'a.pth cannot be used: {name}{message}: ')


def test_integers_are_no_weights(variables):
  weights = export(variables)
  weights['last_linear.bias'] = weights['last_linear.bias'].astype(np.int8)
  with pytest.raises(UserError, match='last_linear.bias is int8, not float'):
    from_pytorch(weights)
  # Counts may have been made floating with everything else.
  weights = export(variables)
  name = 'conv1_7x7_s2_bn.num_batches_tracked'
  weights[name] = np.float32(8)
  stats = from_pytorch(weights).variables['batch_stats']
  assert stats['conv1']['norm']['num_updates'] == 8


def test_weights_of_a_wrapped_network_are_the_same(variables):
  for layout, part in (CADENE, ''), (PYTORCHCV, 'features.'):
    weights = {'loss.weight': np.ones(3)}
    for name, value in export(variables, layout).items():
      inner = name.replace(part, f'{part}module.', 1) if part else name
      weights[f'module._orig_mod.net.{inner}'] = value
    imported = from_pytorch(weights)
    assert imported.name == layout.name
    assert_identical(imported.variables, variables)
    renamed, left_out = imported.remarks
    assert '485 prefixes' in renamed and 'loss.weight' in left_out


def test_networks_of_another_function_are_not_exported(variables):
  model = Inception(1000, **PYTORCH_MODEL | {'epsilon': 1e-3, 'use_lrn': True})
  with pytest.raises(UserError) as error:
    to_pytorch(variables, model)
  assert 'model.use_lrn is True, not False; model.epsilon is 0.001, not' in str(
    error.value
  )
  with pytest.raises(UserError, match='Perceptron'):
    to_pytorch(variables, Perceptron(10))


# ---- prefixes of names ----

STEMS = ('conv1_7x7_s2', 'features.init_block.conv1')
NETWORK = ('conv1_7x7_s2.weight', 'conv1_7x7_s2_bn.bias', 'last_linear.weight')


@pytest.mark.parametrize(
  'prefix', ['module.', 'model.', '_orig_mod.', 'module._orig_mod.model.net.']
)
def test_prefix_goes_and_the_rest_is_left_out(prefix):
  weights = {f'{prefix}{name}': i for i, name in enumerate(NETWORK)}
  others = {'n_averaged': 7, 'loss.conv1_7x7': 8}
  found, remarks = strip_prefixes(weights | others, STEMS, 'a.pth')
  assert found == dict(zip(NETWORK, range(3), strict=True))
  assert f'3 prefixes: {prefix}conv1_7x7_s2.weight is' in remarks[0]
  assert 'n_averaged, loss.conv1_7x7' in remarks[1]


def test_wrapped_part_of_a_network():
  name = 'features.module.init_block._orig_mod.conv1.conv.weight'
  found, remarks = strip_prefixes({name: 0, 'output.bias': 1}, STEMS, 'a.pth')
  assert found == {
    'features.init_block.conv1.conv.weight': 0,
    'output.bias': 1,
  }
  assert len(remarks) == 1 and name in remarks[0]


@pytest.mark.parametrize('names', [NETWORK, ('submodule.weight', 'conv1.bias')])
def test_own_names_and_those_of_other_networks_stay(names):
  weights = dict.fromkeys(names, 0)
  assert strip_prefixes(weights, STEMS, 'a.pth') == (weights, ())


@pytest.mark.parametrize('prefixes', [('', 'ema.'), ('model.', 'model.ema.')])
def test_two_networks_are_refused(prefixes):
  weights = {f'{prefix}{name}': 0 for prefix in prefixes for name in NETWORK}
  with pytest.raises(UserError) as error:
    strip_prefixes(weights, STEMS, 'a.pth')
  for prefix in prefixes:
    assert f'{prefix}conv1_7x7_s2.weight' in str(error.value)

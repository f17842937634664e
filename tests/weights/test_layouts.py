"""Foreign weights: exact both ways, the same function, and what is refused."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from bn_inception.batch_norm import warmed_up_decay
from bn_inception.data import sources
from bn_inception.errors import UserError
from bn_inception.evaluation.checkpoints import (
  EvaluationOptions,
  evaluate_checkpoints,
)
from bn_inception.inception import Inception
from bn_inception.perceptron import Perceptron
from bn_inception.runs import checkpoint
from bn_inception.train_state import count_parameters
from bn_inception.weights import __main__ as program
from bn_inception.weights import layouts
from bn_inception.weights.layouts import (
  CADENE,
  PYTORCH_LAYOUTS,
  PYTORCH_MODEL,
  PYTORCHCV,
  from_pytorch,
  from_slim,
  to_pytorch,
)
from configs import compose


@pytest.fixture(scope='module')
def variables():
  """Random ones, all different, of the network that PyTorch's is."""
  rng = np.random.default_rng(0)
  image, index = jnp.zeros((1, 32, 32, 3)), jnp.zeros(1, int)
  model = Inception(1000, **PYTORCH_MODEL)
  abstract = jax.eval_shape(model.init, jax.random.key(0), image, index)

  def fill(leaf):
    if leaf.dtype == jnp.int32:
      return np.int32(rng.integers(2**31))
    if leaf.ndim == 1:
      return rng.uniform(0.5, 1.5, leaf.shape).astype(np.float32)
    std = np.sqrt(2 / np.prod(leaf.shape[:-1]))
    return np.float32(std * rng.normal(size=leaf.shape))

  return jax.tree.map(fill, abstract)


def export(variables, layout=CADENE):
  return to_pytorch(variables, Inception(1000, **PYTORCH_MODEL), layout)


def assert_identical(ours, others):
  assert jax.tree.structure(ours) == jax.tree.structure(others)
  for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(others), strict=True):
    assert a.dtype == b.dtype
    np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize('layout', PYTORCH_LAYOUTS, ids=lambda x: x.name)
def test_export_and_import_are_exact(variables, layout):
  weights = export(variables, layout)
  assert len(weights) == 69 * 7 + 2
  learned = {
    k: v for k, v in weights.items() if k.endswith(('.weight', '.bias'))
  }
  assert count_parameters(learned) == 11_295_240  # as the packages say
  assert all(v.flags.c_contiguous for v in weights.values())
  imported = layouts.import_weights(weights)
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
    layouts.import_weights(weights, path='a.pth')
  assert str(error.value).startswith(
    f'a.pth cannot be used: {name}{message}: take'
  )


def test_integers_are_no_weights(variables):
  weights = export(variables)
  weights['last_linear.bias'] = weights['last_linear.bias'].astype(np.int8)
  with pytest.raises(UserError, match='last_linear.bias is of int8, not float'):
    from_pytorch(weights)
  # Counts may have been made floating with everything else.
  weights = export(variables)
  name = 'conv1_7x7_s2_bn.num_batches_tracked'
  weights[name] = np.float32(8)
  stats = from_pytorch(weights).variables['batch_stats']
  assert stats['conv1']['norm']['num_updates'] == 8


def test_missing_and_unknown_weights_are_named_in_one_line(variables):
  weights = export(variables)
  del weights['conv1_7x7_s2.bias'], weights['inception_5b_1x1_bn.running_var']
  weights['last_linear.scale'] = weights['extra'] = np.zeros(1)
  with pytest.raises(UserError) as error:
    from_pytorch(weights)
  assert str(error.value) == (
    'these: not the weights of bninception of pretrainedmodels: missing: '
    'conv1_7x7_s2.bias, inception_5b_1x1_bn.running_var; unknown: extra, '
    'last_linear.scale: give a file that has those, and no others'
  )
  weights |= {f'extra{i}': np.zeros(1) for i in range(9)}
  with pytest.raises(UserError, match='extra2 and 7 more: give') as error:
    from_pytorch(weights, 'a.pth')
  assert str(error.value).startswith('a.pth: not the weights')


def test_weights_of_a_wrapped_network_are_the_same(variables):
  for layout, part in (CADENE, ''), (PYTORCHCV, 'features.'):
    weights = {'loss.weight': np.ones(3)}
    for name, value in export(variables, layout).items():
      inner = name.replace(part, f'{part}module.', 1) if part else name
      weights[f'module._orig_mod.net.{inner}'] = value
    imported = layouts.import_weights(weights)
    assert imported.name == layout.name
    assert_identical(imported.variables, variables)
    renamed, left_out = imported.remarks
    assert '485 prefixes' in renamed and 'loss.weight' in left_out


def test_first_differing_shapes_are_named(variables):
  weights = export(variables)
  for name in ('3a', '3b', '4a', '4b', '5a'):
    weights[f'inception_{name}_1x1_bn.bias'] = np.zeros(7)
  with pytest.raises(UserError) as error:
    from_pytorch(weights)
  message = str(error.value)
  assert 'is (7,), not (' in message and message.endswith('and 2 more')
  assert '\n' not in message


@pytest.mark.parametrize('weights', [{}, {'layer1.0.conv1.weight': np.ones(3)}])
def test_other_networks_are_refused(weights):
  with pytest.raises(UserError, match='no BN-Inception has weights of these'):
    layouts.import_weights(weights)


def test_networks_of_another_function_are_not_exported(variables):
  model = Inception(1000, **PYTORCH_MODEL | {'epsilon': 1e-3, 'use_lrn': True})
  with pytest.raises(UserError) as error:
    to_pytorch(variables, model)
  assert 'model.use_lrn is True, not False; model.epsilon is 0.001, not' in str(
    error.value
  )
  with pytest.raises(UserError, match='the network is a Perceptron: only'):
    to_pytorch(variables, Perceptron(10))


# ---- TF-Slim ----

# fmt: off
SLIM_MODULES = {  # branches as convolutions, and what is pooled
  'Mixed_3b': ([64], [64, 64], [64, 96, 96], 'avg', [32]),
  'Mixed_3c': ([64], [64, 96], [64, 96, 96], 'avg', [64]),
  'Mixed_4a': ([128, 160], [64, 96, 96]),
  'Mixed_4b': ([224], [64, 96], [96, 128, 128], 'avg', [128]),
  'Mixed_4c': ([192], [96, 128], [96, 128, 128], 'avg', [128]),
  'Mixed_4d': ([160], [128, 160], [128, 160, 160], 'avg', [96]),
  'Mixed_4e': ([96], [128, 192], [160, 192, 192], 'avg', [96]),
  'Mixed_5a': ([128, 192], [192, 256, 256]),
  'Mixed_5b': ([352], [192, 320], [160, 224, 224], 'avg', [128]),
  'Mixed_5c': ([352], [192, 320], [192, 224, 224], 'max', [128]),
}
# fmt: on
# Of a branch of so many convolutions in a module without and with a stride.
SLIM_SCOPES = {
  1: ['Conv2d_0a_1x1'],
  2: ['Conv2d_0a_1x1', 'Conv2d_0b_3x3'],
  3: ['Conv2d_0a_1x1', 'Conv2d_0b_3x3', 'Conv2d_0c_3x3'],
}
SLIM_STRIDE_SCOPES = {
  2: ['Conv2d_0a_1x1', 'Conv2d_1a_3x3'],
  3: ['Conv2d_0a_1x1', 'Conv2d_0b_3x3', 'Conv2d_1a_3x3'],
}


class JaxOps:
  """What TF-Slim's network is made of, in lax; the stem as a dense kernel."""

  @staticmethod
  def conv(x, kernel, stride=1):
    numbers = ('NHWC', 'HWIO', 'NHWC')
    strides = (stride, stride)
    return lax.conv_general_dilated(
      x, kernel, strides, 'SAME', dimension_numbers=numbers
    )

  @classmethod
  def separable_conv(cls, x, depthwise, pointwise, stride):
    num_inputs, multiplier = depthwise.shape[2:]
    pointwise = pointwise.reshape(num_inputs, multiplier, -1)
    kernel = jnp.einsum('hwcm,cmo->hwco', depthwise, pointwise)
    return cls.conv(x, kernel, stride)

  @staticmethod
  def max_pool(x, stride):
    return lax.reduce_window(
      x, -jnp.inf, lax.max, (1, 3, 3, 1), (1, stride, stride, 1), 'SAME'
    )

  @staticmethod
  def average_pool(x):
    def window_sum(x):
      return lax.reduce_window(x, 0.0, lax.add, (1, 3, 3, 1), (1,) * 4, 'SAME')

    return window_sum(x) / window_sum(jnp.ones_like(x))

  concat = staticmethod(lambda branches: jnp.concatenate(branches, -1))
  relu = staticmethod(jax.nn.relu)
  mean = staticmethod(lambda x: jnp.mean(x, (1, 2)))


def slim_logits(weights, x, ops):
  """TF-Slim's inception_v2 in evaluation mode, by the names of its variables.

  Args:
    weights: by name, without 'InceptionV2/'.
    x: [N, H, W, 3].
    ops: see `JaxOps`.
  """

  def unit(x, scope, stride=1):
    x = ops.conv(x, weights[f'{scope}/weights'], stride)
    return normalized(x, scope)

  def normalized(x, scope):
    norm = f'{scope}/BatchNorm'
    factor = 1 / np.sqrt(weights[f'{norm}/moving_variance'] + 0.001)
    x = (x - weights[f'{norm}/moving_mean']) * factor
    x = x * weights.get(f'{norm}/gamma', 1.0) + weights[f'{norm}/beta']
    return ops.relu(x)

  stem = 'Conv2d_1a_7x7'
  x = ops.separable_conv(
    x, weights[f'{stem}/depthwise_weights'],
    weights[f'{stem}/pointwise_weights'], 2,
  )  # fmt: skip
  if f'{stem}/biases' in weights:
    x = ops.relu(x + weights[f'{stem}/biases'])
  else:
    x = normalized(x, stem)
  x = unit(ops.max_pool(x, 2), 'Conv2d_2b_1x1')
  x = ops.max_pool(unit(x, 'Conv2d_2c_3x3'), 2)
  for module, row in SLIM_MODULES.items():
    stride = 2 if len(row) == 2 else 1
    scopes = SLIM_STRIDE_SCOPES if stride == 2 else SLIM_SCOPES
    branches = []
    for number, widths in enumerate(row[:3]):
      y = x
      for scope in scopes[len(widths)]:
        is_last = scope == scopes[len(widths)][-1]
        scope = f'{module}/Branch_{number}/{scope}'
        y = unit(y, scope, stride if is_last else 1)
      branches.append(y)
    if stride == 2:
      branches.append(ops.max_pool(x, 2))
    else:
      y = ops.average_pool(x) if row[3] == 'avg' else ops.max_pool(x, 1)
      branches.append(unit(y, f'{module}/Branch_3/Conv2d_0b_1x1'))
    x = ops.concat(branches)
  logits = ops.mean(x) @ weights['Logits/Conv2d_1c_1x1/weights'][0, 0]
  return logits + weights['Logits/Conv2d_1c_1x1/biases']


def make_slim_weights(
  num_classes=1001, has_stem_norm=False, has_gamma=False
) -> dict[str, np.ndarray]:
  """Random variables under TF-Slim's names, without 'InceptionV2/'."""
  rng, weights = np.random.default_rng(0), {}

  def normal(*shape, std):
    return np.float32(std * rng.normal(size=shape))

  def add_norm(scope, size):
    norm = f'{scope}/BatchNorm'
    weights[f'{norm}/beta'] = normal(size, std=0.3)
    weights[f'{norm}/moving_mean'] = normal(size, std=0.3)
    variance = np.float32(rng.uniform(0.5, 2.0, size))
    weights[f'{norm}/moving_variance'] = variance
    if has_gamma:
      weights[f'{norm}/gamma'] = np.float32(rng.uniform(0.5, 1.5, size))

  def add(scope, num_inputs, size):
    width = int(scope[-1])
    std = np.sqrt(2 / (width * width * num_inputs))
    weights[f'{scope}/weights'] = normal(
      width, width, num_inputs, size, std=std
    )
    add_norm(scope, size)

  stem = 'Conv2d_1a_7x7'
  weights[f'{stem}/depthwise_weights'] = normal(7, 7, 3, 8, std=0.2)
  weights[f'{stem}/pointwise_weights'] = normal(1, 1, 24, 64, std=0.2)
  if has_stem_norm:
    add_norm(stem, 64)
  else:
    weights[f'{stem}/biases'] = normal(64, std=0.3)
  add('Conv2d_2b_1x1', 64, 64)
  add('Conv2d_2c_3x3', 64, 192)
  num_inputs = 192
  for module, row in SLIM_MODULES.items():
    scopes = SLIM_STRIDE_SCOPES if len(row) == 2 else SLIM_SCOPES
    branches = [widths for widths in row if isinstance(widths, list)]
    num_outputs = num_inputs if len(row) == 2 else 0
    for number, widths in enumerate(branches):
      size = num_inputs
      names = ['Conv2d_0b_1x1'] if number == 3 else scopes[len(widths)]
      for scope, width in zip(names, widths, strict=True):
        add(f'{module}/Branch_{number}/{scope}', size, width)
        size = width
      num_outputs += size
    num_inputs = num_outputs
  scope = 'Logits/Conv2d_1c_1x1'
  weights[f'{scope}/weights'] = normal(1, 1, 1024, num_classes, std=0.1)
  weights[f'{scope}/biases'] = normal(num_classes, std=0.1)
  return weights


def in_scope(weights):
  return {f'InceptionV2/{name}': value for name, value in weights.items()}


@pytest.mark.slow
@pytest.mark.parametrize(
  'options, size',
  [
    ({}, 64),
    ({'num_classes': 5, 'has_stem_norm': True, 'has_gamma': True}, 75),
  ],
  ids=['published', 'all normalised'],
)
def test_slim_network_is_the_same_function(options, size):
  weights = make_slim_weights(**options)
  x = np.random.default_rng(1).uniform(-1, 1, (2, size, size, 3))
  x = x.astype(np.float32)
  expected = jax.jit(lambda x: slim_logits(weights, x, JaxOps))(x)
  imported = from_slim(in_scope(weights), keep_background=True)
  assert imported.num_classes == weights['Logits/Conv2d_1c_1x1/biases'].size
  model = Inception(imported.num_classes, **imported.model)
  logits = jax.jit(model.apply)(imported.variables, x, jnp.arange(2))
  difference = np.abs(logits - expected).max() / expected.std()
  assert difference < 1e-4


def test_slim_background_is_dropped_of_1001_classes_alone():
  weights = in_scope(make_slim_weights())
  kept = from_slim(weights, keep_background=True).variables['params']['logits']
  imported = layouts.import_weights(weights)
  assert layouts.import_weights(weights, True).num_classes == 1001
  dropped = imported.variables['params']['logits']
  assert imported.num_classes == 1000
  assert imported.input_scaling['value_range'] == (-1.0, 1.0)
  assert imported.eval_crop == 'slim'
  np.testing.assert_array_equal(dropped['kernel'], kept['kernel'][:, 1:])
  np.testing.assert_array_equal(dropped['bias'], kept['bias'][1:])
  assert from_slim(in_scope(make_slim_weights(6))).num_classes == 6


def test_classes_get_the_names_of_a_file_or_of_imagenet(tmp_path):
  names = program.name_classes(1000, None)
  assert names[0] == 'n01440764'
  assert program.name_classes(1001, None) == ['background', *names]
  file = tmp_path / 'names.txt'
  file.write_text('rose\nmarsh marigold\n')
  assert program.name_classes(2, str(file)) == ['rose', 'marsh marigold']
  for number, path, message in (
    (102, None, 'for 102 classes and there are names for 1000: give the names'),
    (3, str(file), 'for 3 classes and .*names.txt has names for 2: give the'),
    (1, str(file), 'for 1 classes and .*names.txt has names for 2: give the'),
    (3, '/no', '/no cannot be read'),
  ):
    with pytest.raises(UserError, match=message):
      program.name_classes(number, path)
  for text, message in (
    ('rose\n\ntulip\n', 'name 2 is empty'),
    ('rose\ntulip\nrose \n', "names 1 and 3 are both 'rose'"),
  ):
    file.write_text(text)
    with pytest.raises(UserError, match=message):
      program.name_classes(3, str(file))


def test_slim_checkpoints_of_training_have_more_variables():
  weights = in_scope(make_slim_weights())
  expected = from_slim(weights).variables
  weights |= {f'{name}/RMSProp_1': value for name, value in weights.items()}
  weights['global_step'] = np.int64(7)
  assert_identical(from_slim(weights).variables, expected)
  weights['InceptionV2/Mixed_6a/weights'] = np.zeros(3)
  del weights['InceptionV2/Conv2d_1a_7x7/depthwise_weights']
  with pytest.raises(UserError) as error:
    from_slim(weights)
  assert str(error.value) == (
    "these: not the weights of TF-Slim's inception_v2: missing: "
    'InceptionV2/Conv2d_1a_7x7/depthwise_weights; unknown: '
    'InceptionV2/Mixed_6a/weights: give a file that has those, and no others'
  )


def test_slim_weights_that_are_no_numbers_are_named():
  weights = in_scope(make_slim_weights(6))
  weights['InceptionV2/Conv2d_2c_3x3/BatchNorm/moving_variance'][5] = -0.5
  weights['InceptionV2/Logits/Conv2d_1c_1x1/biases'][1] = np.nan
  with pytest.raises(UserError) as error:
    from_slim(weights)
  message = str(error.value)
  assert 'Conv2d_2c_3x3/BatchNorm/moving_variance[5] is -0.5' in message
  assert 'and 1 more arrays' in message


# ---- the program ----


def test_bad_files_leave_no_folder(variables, tmp_path):
  source, workdir = str(tmp_path / 'a.safetensors'), tmp_path / 'run'
  weights = export(variables)
  scaling = dict(CADENE.input_scaling)
  names = [f'class {i}' for i in range(1000)]
  for change, notes, message in (
    ({'last_linear.bias': np.full(1000, np.nan, np.float32)}, {}, 'is nan'),
    ({}, {'class_names': names[:-1]}, '1000 classes and .* has names for 999'),
    ({}, {'class_names': [*names[:-1], 'class 7']}, "1000 are both 'class 7'"),
    ({}, {'class_names': 7}, 'note bn_inception.class_names is damaged'),
    ({}, {'input_scaling': scaling | {'std': [0.0]}}, 'input_scaling.std'),
    (
      {},
      {'input_scaling': scaling | {'mean': [float('nan')]}},
      'input_scaling.mean .* got nan',
    ),
    ({}, {'input_scaling': {'mean': [0.0]}}, 'input_scaling is damaged'),
    ({}, {'eval_crop': 'all'}, 'bn_inception.eval_crop \'"all"\' is unknown'),
  ):
    program.files.write_safetensors(
      source,
      weights | change,
      {f'bn_inception.{key}': json.dumps(note) for key, note in notes.items()},
    )
    with pytest.raises(UserError, match=message):
      program.import_file(source, str(workdir), 'synthetic')
    assert not workdir.exists()


def test_places_are_checked_before_files_are_read(tmp_path):
  (tmp_path / 'checkpoints' / '0').mkdir(parents=True)
  (tmp_path / 'file').touch()
  for workdir, message in (
    (tmp_path, 'holds checkpoints: give another --workdir'),
    (tmp_path / 'file', 'cannot be written .Not a directory.'),
  ):
    with pytest.raises(UserError, match=message):
      program.import_file('/no/weights.pth', str(workdir), 'synthetic')
  with pytest.raises(
    UserError, match='cannot be written .*: give another --to'
  ):
    program.export_checkpoint('/no/0', f'{tmp_path}/file/a.safetensors')


@pytest.mark.slow
def test_imported_checkpoint_is_evaluated_and_exported(
  variables, tmp_path, monkeypatch, capsys
):
  files = program.files
  source, workdir = str(tmp_path / 'a.safetensors'), str(tmp_path / 'run')
  files.write_safetensors(source, export(variables), {})
  names = tmp_path / 'names.txt'
  names.write_text(''.join(f'class {i}\n' for i in range(1000)))
  program.import_file(source, workdir, 'synthetic', str(names))
  assert f'python eval.py --workdir={workdir}' in capsys.readouterr().out
  path = checkpoint.find(f'{workdir}/checkpoints')
  assert path.endswith('/0')

  few = functools.partial(sources.SyntheticSource, num_examples=3)
  monkeypatch.setattr(sources, 'SyntheticSource', few)
  result, predictions = evaluate_checkpoints(
    [path], EvaluationOptions(batch_size=8)
  )
  assert result['examples'] == 3 and result['crops'] == 'torchvision'
  (found,) = predictions.values()
  np.testing.assert_allclose(found.probabilities.sum(1), 1.0, rtol=1e-4)

  exported = str(tmp_path / 'b.safetensors')
  program.export_checkpoint(path, exported)
  weights, notes, _ = files.read(exported)
  assert_identical(from_pytorch(weights).variables, variables)
  scaling = json.loads(notes[program.SCALING_NOTE])
  assert scaling['channel_order'] == 'bgr' and scaling['mean'][0] == 104.0
  assert json.loads(notes[program.CLASSES_NOTE])[999] == 'class 999'
  # Input and classes of the exported file are those of the checkpoint.
  again = str(tmp_path / 'again')
  assert notes[program.CROP_NOTE] == 'torchvision'
  notes[program.CROP_NOTE] = 'centre'
  files.write_safetensors(exported, weights, notes)
  program.import_file(exported, again, 'synthetic')
  description = checkpoint.read_description(f'{again}/checkpoints/0')
  assert description['config']['data'].pop('eval_crop') == 'centre'
  expected = checkpoint.read_description(path)
  assert expected['config']['data'].pop('eval_crop') == 'torchvision'
  assert description == expected
  config = compose.of_run(again)
  assert config.data.eval_crop == 'centre'
  assert config.source.dataset == 'synthetic' and config.model.stem == 'dense'
  with pytest.raises(UserError, match='run holds checkpoints: give another'):
    program.import_file(exported, workdir, 'synthetic')
  with pytest.raises(UserError, match='must end with .safetensors'):
    program.export_checkpoint(path, 'b.pth')
  restored = checkpoint.restore

  def diverged(*args):
    state = restored(*args)
    state.params['logits']['bias'] = jnp.full(1000, jnp.nan)
    return state

  monkeypatch.setattr(checkpoint, 'restore', diverged)
  exported = str(tmp_path / 'c.safetensors')
  with pytest.raises(UserError, match=r'0 cannot .*/logits/bias\[0\] is nan'):
    program.export_checkpoint(path, exported)
  assert not (tmp_path / 'c.safetensors').exists()

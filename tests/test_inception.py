"""The network against Figure 5: shapes, parameter counts, options."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from bn_inception import inception, layers
from bn_inception.errors import UserError
from bn_inception.inception import FIGURE_5, Inception
from bn_inception.train_state import count_parameters
from tests.conftest import FEW_ROWS


def shapes_of(model, size, num_channels=3):
  """Output shape of every row, and the parameters' shapes."""
  image = jax.ShapeDtypeStruct((2, size, size, num_channels), jnp.float32)
  index = jax.ShapeDtypeStruct((2,), jnp.int32)
  variables = jax.eval_shape(model.init, jax.random.key(0), image, index)
  logits, captured = jax.eval_shape(
    partial(model.apply, capture_intermediates=True), variables, image, index
  )
  rows = {
    name: values['__call__'][0].shape[1:]
    for name, values in captured['intermediates'].items()
    if name in ('conv1', 'conv2') or name.startswith('inception_')
  }
  return rows, logits.shape, variables['params']


@pytest.mark.parametrize(
  'fields, size, num_values',
  [
    ({}, 224, 49),
    ({'stem': 'small', 'stem_stride': 1}, 8, 4),
    ({'stem': 'small', 'stem_stride': 2}, 28, 16),
    ({'stem': 'small', 'stem_stride': 2}, 7, 1),
    ({'per_activation_modules': ('5a',)}, 224, 1),
  ],
)
def test_the_fewest_values_are_those_of_the_last_maps(fields, size, num_values):
  model = Inception(10, width=0.125, **fields)
  assert model.min_values_per_example(size) == num_values
  height, width, _ = shapes_of(model, size)[0]['inception_5b']
  if not model.per_activation_modules:
    assert height * width == num_values


@pytest.mark.parametrize(
  'stem, pool_projection_4cd, num_parameters',
  [
    ('separable', 96, 11_188_288),
    ('dense', 96, 11_194_984),
    ('separable', 128, 11_278_528),
    ('dense', 128, 11_285_224),
  ],
)
def test_parameter_counts_of_the_imagenet_networks(
  stem, pool_projection_4cd, num_parameters
):
  model = Inception(1000, stem=stem, pool_projection_4cd=pool_projection_4cd)
  params = shapes_of(model, 224)[2]
  assert count_parameters(params) == num_parameters


def test_output_shapes_are_those_of_figure_5():
  rows, logits, _ = shapes_of(Inception(1000), 224)
  # As printed, except that 3c and 4e are printed before their stride; conv1 and
  # conv2 have the max pooling behind them in theirs.
  assert rows == {
    'conv1': (56, 56, 64),
    'conv2': (28, 28, 192),
    'inception_3a': (28, 28, 256),
    'inception_3b': (28, 28, 320),
    'inception_3c': (14, 14, 576),
    'inception_4a': (14, 14, 576),
    'inception_4b': (14, 14, 576),
    'inception_4c': (14, 14, 576),
    'inception_4d': (14, 14, 576),
    'inception_4e': (7, 7, 1024),
    'inception_5a': (7, 7, 1024),
    'inception_5b': (7, 7, 1024),
  }
  assert logits == (2, 1000)


def test_printed_projection_of_128_gives_608_feature_maps():
  rows, _, _ = shapes_of(Inception(1000, pool_projection_4cd=128), 224)
  assert rows['inception_4c'] == rows['inception_4d'] == (14, 14, 608)
  assert rows['inception_4e'] == (7, 7, 1056)


@pytest.mark.parametrize(
  'size, stem_stride, expected', [(28, 1, (28, 14, 7)), (8, 1, (8, 4, 2))]
)
def test_small_stem_runs_the_modules_on_small_images(
  size, stem_stride, expected
):
  model = Inception(10, stem='small', stem_stride=stem_stride, width=0.125)
  rows, logits, _ = shapes_of(model, size, 1)
  sizes = [rows[f'inception_{name}'][0] for name in ('3a', '4a', '5b')]
  assert tuple(sizes) == expected
  assert rows['inception_5b'][-1] == 1024 // 8
  assert logits == (2, 10)


def test_biases_where_there_is_no_normalisation():
  _, _, params = shapes_of(Inception(1000, use_batch_norm=False), 224)
  names = {path[-1].key for path, _ in jax.tree.leaves_with_path(params)}
  assert names == {'kernel', 'bias'}
  normalised = shapes_of(Inception(1000), 224)[2]
  # One bias instead of scale and bias for 9,952 feature maps.
  assert count_parameters(normalised) - count_parameters(params) == 9_952


def test_branches_are_concatenated_in_the_order_of_figure_5():
  rows = (FIGURE_5[0],)
  x = np.random.default_rng(0).normal(size=(2, 6, 6, 1)).astype(np.float32)
  index = jnp.arange(2)
  model = Inception(10, stem='small', stem_stride=1, width=0.125, rows=rows)
  variables = model.init(jax.random.key(0), x, index)

  def output_without(branch):
    variables_now = jax.tree.map(jnp.copy, variables)
    norm = variables_now['params']['inception_3a'][branch]['norm']
    norm['scale'] = norm['scale'] * 0
    _, captured = model.apply(
      variables_now, x, index, capture_intermediates=True
    )
    return captured['intermediates']['inception_3a']['__call__'][0]

  edges = {  # widths 64, 64, 96, 32 of row 3a, divided by 8
    'conv1x1': (0, 8),
    'conv3x3': (8, 16),
    'double3x3_b': (16, 28),
    'projection': (28, 32),
  }
  for branch, (start, stop) in edges.items():
    output = output_without(branch)
    zero = np.all(output == 0, axis=(0, 1, 2))
    assert zero[start:stop].all(), branch
    assert not zero[:start].all() or not zero[stop:].all(), branch


def test_features_of_all_69_units_can_be_captured():
  image = jax.ShapeDtypeStruct((2, 224, 224, 3), jnp.float32)
  model = Inception(1000)
  variables = jax.eval_shape(model.init, jax.random.key(0), image)
  _, captured = jax.eval_shape(
    partial(model.apply, capture_intermediates=True), variables, image
  )
  params = flatten_dict(variables['params'])
  found = flatten_dict(captured['intermediates'])
  units = [path[:-2] for path in params if path[-2:] == ('conv', 'kernel')]
  assert len(units) == 69
  for unit in units:
    (features,) = found[*unit, '__call__']
    assert features.shape[-1] == params[*unit, 'norm', 'scale'].size, unit


def test_captured_features_are_those_of_the_logits():
  x = np.random.default_rng(0).normal(size=(2, 8, 8, 1)).astype(np.float32)
  model = Inception(
    10, stem='small', stem_stride=1, width=0.125, rows=FEW_ROWS[:1]
  )
  variables = model.init(jax.random.key(0), x)
  logits, captured = model.apply(variables, x, capture_intermediates=True)
  module = captured['intermediates']['inception_3a']
  last = ('conv1x1', 'conv3x3', 'double3x3_b', 'projection')
  features = jnp.concatenate([module[n]['__call__'][0] for n in last], -1)
  y = jnp.mean(features, (1, 2))
  kernel = variables['params']['logits']['kernel']
  np.testing.assert_allclose(logits, y @ kernel, rtol=1e-4, atol=1e-5)


def test_linen_uses_need_no_example_index():
  x = jnp.ones((2, 8, 8, 1))
  model = Inception(
    10, train=True, stem='small', stem_stride=1, width=0.125, dropout_rate=0.4,
    rows=FEW_ROWS[:1],
  )  # fmt: skip
  variables = model.init(jax.random.key(0), x)
  table = model.tabulate(jax.random.key(0), x, console_kwargs={'width': 200})
  assert 'inception_3a/conv3x3' in table and 'example_index' not in table
  assert model.clone(train=False).apply(variables, x).shape == (2, 10)
  with pytest.raises(ValueError, match='example_index'):
    model.apply(
      variables, x, mutable=['batch_stats'], rngs={'dropout': jax.random.key(0)}
    )


def test_average_pooling_leaves_padding_out():
  ones = jnp.ones((1, 4, 4, 1))
  np.testing.assert_array_equal(inception.pool3x3(ones, 'avg', 1), ones)
  x = jnp.arange(16.0).reshape(1, 4, 4, 1)
  pooled = inception.pool3x3(x, 'max', 2)
  np.testing.assert_array_equal(pooled[0, ..., 0], [[10, 11], [14, 15]])
  of_caffe = inception.pool3x3(x, 'max', 2, stride_padding='caffe')
  np.testing.assert_array_equal(of_caffe, pooled)


def test_average_pooling_of_caffe_includes_padding():
  ones = jnp.ones((1, 4, 4, 1))
  y = inception.pool3x3(ones, 'avg', 1, average_includes_padding=True)
  np.testing.assert_allclose(9 * y[0, 0, :, 0], [4, 6, 6, 4], rtol=1e-6)
  np.testing.assert_allclose(9 * y[0, 1, :, 0], [6, 9, 9, 6], rtol=1e-6)


@pytest.mark.parametrize('size', [6, 7])
def test_max_pooling_of_caffe_ends_with_the_last_whole_stride(size):
  x = jnp.arange(float(size)).reshape(1, 1, size, 1) + jnp.zeros((1, 3, 1, 1))
  y = inception.pool3x3(x, 'max', 2, stride_padding='caffe')
  expected = {6: [2, 4, 5], 7: [2, 4, 6]}[size]
  np.testing.assert_array_equal(y[0, 0, :, 0], expected)


def test_images_that_caffe_cannot_halve_are_refused():
  model = Inception(
    10, stem='small', width=0.125, rows=FEW_ROWS, stride_padding='caffe',
  )  # fmt: skip
  with pytest.raises(UserError, match='3c gets images of 7 x 7'):
    shapes_of(model, 14)


def test_stem_without_batch_norm_has_a_bias():
  model = Inception(10, use_stem_batch_norm=False, width=0.125, rows=FEW_ROWS)
  params = shapes_of(model, 32)[2]
  assert set(params['conv1']) == {'depthwise', 'conv'}
  assert set(params['conv1']['conv']) == {'kernel', 'bias'}
  assert 'norm' in params['conv2'] and 'norm' in params['conv2_reduce']


@pytest.mark.parametrize(
  'field',
  [
    {'use_lrn': True},
    {'nonlinearity': 'sigmoid'},
    {'stem_stride': 2},
    {'stride_padding': 'caffe'},
    {'average_includes_padding': True},
  ],
)
def test_options_change_the_function(field):
  x = 20 * np.random.default_rng(0).normal(size=(2, 8, 8, 1)).astype(np.float32)
  model = Inception(10, stem='small', stem_stride=1, width=0.125, rows=FEW_ROWS)
  variables = model.init(jax.random.key(0), x, jnp.arange(2))
  plain = model.apply(variables, x, jnp.arange(2))
  other = model.clone(**field).apply(variables, x, jnp.arange(2))
  assert np.abs(plain - other).max() > 1e-5


def test_another_norm_stands_in_for_batch_norm(monkeypatch):
  x = np.random.default_rng(0).normal(size=(2, 8, 8, 1)).astype(np.float32)
  fields = {'stem': 'small', 'width': 0.125, 'rows': FEW_ROWS[:1]}
  bare = Inception(10, use_batch_norm=False, **fields)
  model = bare.clone(norm='group', dtype='bfloat16')
  variables = jax.jit(model.init)(jax.random.key(0), x)
  apply = partial(model.apply, capture_intermediates=True)
  _, captured = jax.jit(apply)(variables, x)
  params = flatten_dict(variables['params'])
  norms = [path[:-1] for path in params if path[-2:] == ('norm', 'scale')]
  assert len(norms) == 10 and 'batch_stats' not in variables
  found = flatten_dict(captured['intermediates'])
  for path in norms:  # each example's groups of four channels
    (y,) = found[*path, '__call__']
    groups = np.float64(y).reshape(2, y.shape[1] * y.shape[2], -1, 4)
    np.testing.assert_allclose(groups.mean((1, 3)), 0, atol=1e-2)
  monkeypatch.setitem(layers.NORMS, 'twice', lambda: lambda wu: 2 * wu)
  twice = bare.clone(norm='twice', use_lrn=False)
  names, found = (
    flatten_dict(jax.eval_shape(m.init, jax.random.key(0), x)['params'])
    for m in (bare, twice)
  )
  assert set(names) - set(found) == {
    path for path in names if path[-2:] == ('conv', 'bias')
  }
  with pytest.raises(UserError, match='model.norm group and model.use_batch_n'):
    Inception(10, norm='group')
  with pytest.raises(UserError, match="model.norm 'layer' .*group, twice"):
    bare.clone(norm='layer')


@pytest.mark.slow
def test_remat_changes_nothing_but_memory():
  x = np.random.default_rng(0).normal(size=(4, 8, 8, 1)).astype(np.float32)
  plain = Inception(
    10, train=True, stem='small', stem_stride=1, width=0.125, rows=FEW_ROWS
  )
  remat = plain.clone(remat=True)
  variables = plain.init(jax.random.key(0), x, jnp.arange(4))

  @partial(jax.jit, static_argnums=0)
  def gradient(model, params):
    def loss(params):
      logits, updates = model.apply(
        {**variables, 'params': params},
        x,
        jnp.arange(4),
        mutable=['batch_stats'],
      )
      return jnp.sum(jnp.square(logits)), updates

    return jax.grad(loss, has_aux=True)(params)

  results = [gradient(model, variables['params']) for model in (plain, remat)]
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=1e-5),
    *results,
  )
  counts = {
    int(leaf)
    for path, leaf in jax.tree.leaves_with_path(results[1][1])
    if path[-1].key == 'num_updates'
  }
  assert counts == {1}  # recomputing does not update the statistics twice


def test_bfloat16_computes_in_bfloat16_and_keeps_float32_state():
  x = np.random.default_rng(0).normal(size=(2, 8, 8, 1)).astype(np.float32)
  model = Inception(
    10,
    stem='small',
    stem_stride=1,
    width=0.125,
    dtype='bfloat16',
    rows=FEW_ROWS[:1],
  )
  variables = model.init(jax.random.key(0), x, jnp.arange(2))
  floats = {
    leaf.dtype
    for leaf in jax.tree.leaves(variables)
    if jnp.issubdtype(leaf.dtype, jnp.floating)
  }
  assert floats == {jnp.dtype('float32')}
  logits, captured = model.apply(
    variables, x, jnp.arange(2), capture_intermediates=True
  )
  module_output = captured['intermediates']['inception_3a']['__call__'][0]
  assert module_output.dtype == jnp.bfloat16
  assert logits.dtype == jnp.float32
  exact = model.clone(dtype='float32').apply(variables, x, jnp.arange(2))
  np.testing.assert_allclose(logits, exact, rtol=0.05, atol=0.05)


@pytest.mark.parametrize(
  'field',
  [
    {'stem': 'tiny'},
    {'nonlinearity': 'tanh'},
    {'dtype': 'float8'},
    {'stride_padding': 'valid'},
  ],
)
def test_unknown_options_are_refused(field):
  with pytest.raises(UserError, match='is unknown: use one of'):
    Inception(10, **field)


@pytest.mark.parametrize('field', [{'dropout_rate': 1.0}, {'width': 0.0}])
def test_impossible_numbers_are_refused(field):
  with pytest.raises(UserError, match=f'model.{next(iter(field))} must be'):
    Inception(10, **field)


def test_per_activation_modules_and_no_scale():
  model = Inception(
    10, stem='small', stem_stride=1, width=0.125,
    per_activation_modules=['5b'], use_scale=False,
  )  # fmt: skip
  _, _, params = shapes_of(model, 8, 1)
  assert set(params['inception_5b']['conv3x3']['norm']) == {'bias'}
  assert params['inception_5b']['conv3x3']['norm']['bias'].shape == (2, 2, 40)
  assert params['inception_5a']['conv3x3']['norm']['bias'].shape == (40,)
  with pytest.raises(UserError, match="no module '6a': use some of 3a, 3b"):
    Inception(10, per_activation_modules=('6a',))


@pytest.mark.parametrize(
  'fields',
  [
    {},
    {'use_scale': False},
    {'stem': 'separable', 'use_lrn': True},
    {'use_stem_batch_norm': False, 'average_includes_padding': True},
  ],
)
def test_folded_network_is_the_same_function(fields):
  fields = {'stem': 'small', 'stem_stride': 1, 'width': 0.125} | fields
  model = Inception(10, rows=FEW_ROWS, **fields)
  rng = np.random.default_rng(0)
  x = rng.normal(size=(3, 16, 16, 1)).astype(np.float32)
  variables = model.init(jax.random.key(0), x, jnp.arange(3))

  def disturb(path, leaf):
    """Statistics, gamma and beta that are not 0 and 1."""
    if path[-1].key in ('var', 'scale'):
      return np.float32(rng.uniform(0.5, 2.0, leaf.shape))
    if path[-1].key in ('mean', 'bias'):
      return np.float32(rng.normal(size=leaf.shape))
    return leaf

  variables = jax.tree_util.tree_map_with_path(disturb, variables)
  folded_model, folded = inception.fold_batch_norm(model, variables)
  assert not folded_model.use_batch_norm
  names = {path[-1].key for path, _ in jax.tree.leaves_with_path(folded)}
  assert names == {'kernel', 'bias'}
  expected = model.apply(variables, x, jnp.arange(3))
  logits = folded_model.apply(folded, x, jnp.arange(3))
  np.testing.assert_allclose(
    logits, expected, rtol=0, atol=1e-5 * np.abs(expected).max()
  )


def test_what_cannot_be_folded_is_refused():
  with pytest.raises(UserError, match='no batch normalization to fold'):
    inception.fold_batch_norm(Inception(10, use_batch_norm=False), {})
  with pytest.raises(UserError, match='per activation cannot be folded .* 5b'):
    model = Inception(10, per_activation_modules=('5b',))
    inception.fold_batch_norm(model, {})


def test_lrn_stands_after_pool_1_and_before_pool_2():
  x = 30 * np.random.default_rng(0).normal(size=(1, 32, 32, 3))
  model = Inception(
    10, stem='dense', width=0.125, use_batch_norm=False, use_lrn=True,
    rows=FEW_ROWS[:1],
  )  # fmt: skip
  variables = model.init(jax.random.key(0), jnp.float32(x), jnp.arange(1))
  _, captured = model.apply(
    variables, jnp.float32(x), capture_intermediates=True
  )
  outputs, params = captured['intermediates'], variables['params']

  def conv1x1(x, unit):
    return np.maximum(
      x @ unit['conv']['kernel'][0, 0] + unit['conv']['bias'], 0
    )

  def output_of(unit):
    return unit['__call__'][0]

  lrn = layers.local_response_normalization
  before_reduce = lrn(output_of(outputs['conv1']))  # with pool 1 in it
  assert before_reduce.shape == (1, 8, 8, 8)
  np.testing.assert_allclose(
    output_of(outputs['conv2_reduce']),
    conv1x1(before_reduce, params['conv2_reduce']),
    rtol=1e-4,
    atol=1e-4,
  )
  before_3a = inception.pool3x3(lrn(output_of(outputs['conv2'])), 'max', 2)
  np.testing.assert_allclose(
    output_of(outputs['inception_3a']['conv1x1']),
    conv1x1(before_3a, params['inception_3a']['conv1x1']),
    rtol=1e-4,
    atol=1e-4,
  )


@pytest.mark.slow
def test_forward_mode_equals_reverse_mode():
  """Of JAX's own derivatives; with the custom ones, JAX names the argument."""
  rng = np.random.default_rng(0)
  image, direction = jnp.asarray(rng.normal(size=(2, 4, 8, 8, 3)), 'float32')
  index = jnp.arange(4)
  model = Inception(
    3, train=True, stem='small', width=0.07, rows=FEW_ROWS[1:], stem_stride=1
  )
  variables = model.init(jax.random.key(0), image, index)

  def loss(custom_vjp, image):
    logits, _ = model.clone(custom_vjp=custom_vjp).apply(
      variables, image, index, mutable=['batch_stats']
    )
    return jnp.sum(logits**2)

  gradient = jax.jit(jax.grad(partial(loss, True)))(image)
  _, slope = jax.jit(partial(jax.jvp, partial(loss, False)))(
    (image,), (direction,)
  )
  size = jnp.abs(gradient * direction).sum()
  np.testing.assert_allclose(
    slope, jnp.vdot(gradient, direction), rtol=0, atol=1e-5 * size
  )
  with pytest.raises(TypeError, match='custom_vjp'):
    jax.jvp(partial(loss, True), (image,), (direction,))


def test_bytes_are_real_numbers_and_complex_ones_refused():
  model = Inception(3, stem='small', width=0.07, rows=FEW_ROWS[1:])
  image = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3), np.uint8)
  index = jnp.arange(2)
  variables = model.init(jax.random.key(0), image, index)
  np.testing.assert_array_equal(
    model.apply(variables, image, index),
    model.apply(variables, image.astype(np.float32), index),
  )
  with pytest.raises(TypeError, match='complex64'):
    model.apply(variables, image.astype(np.complex64), index)


@pytest.mark.slow
def test_map_that_checks_types_has_the_gradient_of_one_device():
  rng = np.random.default_rng(0)
  image = np.float32(rng.normal(size=(16, 16, 16, 3)))
  index = np.arange(16, dtype=np.int32)
  model = Inception(3, train=True, width=0.125, rows=FEW_ROWS, dropout_rate=0.4)
  variables = jax.jit(model.clone(train=False).init)(
    jax.random.key(0), image, index
  )

  def gradients(model, params, image, index):
    def loss(params):
      logits, updates = model.apply(
        {**variables, 'params': params},
        image,
        index,
        mutable=['batch_stats'],
        rngs={'dropout': jax.random.key(1)},
      )
      loss = jnp.sum(logits**2)
      if model.axis_name is not None:
        loss = jax.lax.psum(loss, model.axis_name)
      return loss, updates['batch_stats']

    return jax.grad(loss, has_aux=True)(params)

  arguments = variables['params'], image, index
  expected = jax.jit(partial(gradients, model))(*arguments)
  split = jax.P('data')
  found = jax.jit(
    jax.shard_map(
      partial(gradients, model.clone(axis_name='data')),
      mesh=jax.make_mesh((8,), ('data',), (jax.sharding.AxisType.Auto,)),
      in_specs=(jax.P(), split, split),
      out_specs=jax.P(),
    )
  )(*arguments)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(
      a, b, rtol=0, atol=2e-4 * np.abs(b).max()
    ),
    found,
    expected,
  )

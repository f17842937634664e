"""Published weights of BN-Inception as variables of `Inception`, and back.

Three layouts, told apart by the names of the weights: the PyTorch models of
Cadene (`pretrainedmodels.bninception`) and Semery (`pytorchcv`), and TF-Slim's
`inception_v2`. Each comes with the options of the model that make it the same
function, and with what its input is.

`python -m bn_inception.weights` makes a checkpoint of a file.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from bn_inception.errors import UserError
from bn_inception.inception import FIGURE_5, Inception
from bn_inception.runs.values import check_values
from bn_inception.weights.prefixes import strip_prefixes

Weights = dict[str, np.ndarray]

# The options that decide what function the weights are of.
_COMMON = {
  'stem_stride': 2,
  'width': 1.0,
  'use_batch_norm': True,
  'use_lrn': False,
  'nonlinearity': 'relu',
  'per_activation_modules': (),
}
PYTORCH_MODEL = _COMMON | {
  'stem': 'dense',
  'pool_projection_4cd': 128,
  'use_stem_batch_norm': True,
  'epsilon': 1e-5,
  'use_scale': True,
  'stride_padding': 'caffe',
  'average_includes_padding': True,
}
SLIM_MODEL = _COMMON | {
  'stem': 'separable',
  'pool_projection_4cd': 96,
  'use_stem_batch_norm': False,
  'epsilon': 1e-3,
  'use_scale': False,
  'stride_padding': 'same',
  'average_includes_padding': False,
}

# Files without a count of updates: as after so many, which end the warm-up of
# the moving averages; training on would otherwise forget them at once.
_NUM_UPDATES = 100_000
# Absent before PyTorch 0.4.1; later ones read such files and save them with 0.
_COUNTER = 'num_batches_tracked'

_REDUCTIONS = tuple(row.name for row in FIGURE_5 if row.stride == 2)


class Imported(NamedTuple):
  """A network that somebody else trained.

  Attributes:
    name: of the layout.
    variables: params and batch_stats.
    model: options of `Inception`, less `num_classes`.
    input_scaling: arguments of `augment.scale_image`.
    eval_crop: the rule of `crops.NUM_CROPS` that its accuracy was published of.
    remarks: lines on names that are not as the network gives them.
  """

  name: str
  variables: dict
  model: dict
  input_scaling: dict
  eval_crop: str
  remarks: tuple[str, ...] = ()

  @property
  def num_classes(self) -> int:
    return self.variables['params']['logits']['bias'].size


def import_weights(
  weights: Weights, keep_background: bool = False, path: str | None = None
) -> Imported:
  """Weights of any of the layouts, which their names tell.

  Args:
    weights: by name.
    keep_background: see `from_slim`.
    path: of their file, for messages.

  Raises:
    UserError: if the names are of none of them; see also `from_pytorch`.
  """
  if any(name.startswith('InceptionV2/') for name in weights):
    return from_slim(weights, keep_background, path)
  return from_pytorch(weights, path)


# ---- PyTorch ----


class PytorchLayout(NamedTuple):
  """How a PyTorch model names its weights, and what its input is.

  Attributes:
    name: of the package.
    unit: 'inception_3a/conv1x1' -> the stem of the names of its weights.
    conv, norm: what follows that stem for convolution and batch norm.
    linear: the last layer.
    input_scaling: see `Imported`.
  """

  name: str
  unit: Callable[[str], str]
  conv: str
  norm: str
  linear: str
  input_scaling: dict


_CADENE_NAMES = {
  'conv1': 'conv1_7x7_s2',
  'conv2_reduce': 'conv2_3x3_reduce',
  'conv2': 'conv2_3x3',
  'conv1x1': '1x1',
  'reduce3x3': '3x3_reduce',
  'conv3x3': '3x3',
  'reduce_double3x3': 'double_3x3_reduce',
  'double3x3_a': 'double_3x3_1',
  'double3x3_b': 'double_3x3_2',
  'projection': 'pool_proj',
}


def _cadene_unit(unit: str) -> str:
  *module, name = unit.split('/')
  return '_'.join([*module, _CADENE_NAMES[name]])


_PYTORCHCV_STAGES = (
  ('3a', '3b'),
  ('3c', '4a', '4b', '4c', '4d'),
  ('4e', '5a', '5b'),
)
_PYTORCHCV_MODULES = {
  f'inception_{name}': f'features.stage{stage}.unit{number}.branches'
  for stage, names in enumerate(_PYTORCHCV_STAGES, 1)
  for number, name in enumerate(names, 1)
}
_PYTORCHCV_STEM = {
  'conv1': 'features.init_block.conv1',
  'conv2_reduce': 'features.init_block.conv2.conv1',
  'conv2': 'features.init_block.conv2.conv2',
}
_PYTORCHCV_BRANCHES = {
  'conv1x1': (1, ''),
  'reduce3x3': (2, '.conv1'),
  'conv3x3': (2, '.conv2'),
  'reduce_double3x3': (3, '.conv1'),
  'double3x3_a': (3, '.conv2'),
  'double3x3_b': (3, '.conv3'),
  'projection': (4, '.conv'),
}


def _pytorchcv_unit(unit: str) -> str:
  if unit in _PYTORCHCV_STEM:
    return _PYTORCHCV_STEM[unit]
  module, name = unit.split('/')
  branch, place = _PYTORCHCV_BRANCHES[name]
  branch -= module.endswith(_REDUCTIONS)  # they have no 1x1, the first
  return f'{_PYTORCHCV_MODULES[module]}.branch{branch}{place}'


CADENE = PytorchLayout(
  name='pretrainedmodels',
  unit=_cadene_unit,
  conv='',
  norm='_bn',
  linear='last_linear',
  input_scaling={
    'value_range': (0.0, 255.0),
    'mean': (104.0, 117.0, 128.0),
    'std': (1.0,),
    'channel_order': 'bgr',
    'binary_threshold': 0.0,
  },
)
PYTORCHCV = PytorchLayout(
  name='pytorchcv',
  unit=_pytorchcv_unit,
  conv='.conv',
  norm='.bn',
  linear='output',
  # "All pretrained models require the same ordinary normalization": its README.
  input_scaling={
    'value_range': (0.0, 1.0),
    'mean': (0.485, 0.456, 0.406),
    'std': (0.229, 0.224, 0.225),
    'channel_order': 'rgb',
    'binary_threshold': 0.0,
  },
)
PYTORCH_LAYOUTS = (CADENE, PYTORCHCV)


def from_pytorch(weights: Weights, path: str | None = None) -> Imported:
  """Weights of `pretrainedmodels.bninception` or `pytorchcv`'s bninception.

  Their convolutions have biases, which batch norm subtracts again: they go into
  the moving means.

  Args:
    weights: a state_dict as arrays, for any number of classes; see
      `strip_prefixes` for what may come before the names.
    path: of their file, for messages.

  Raises:
    UserError: for names of another model; for missing and unknown weights; for
      shapes that differ; as of `check_values` and `strip_prefixes`.
  """
  stems = {layout.unit('conv1'): layout for layout in PYTORCH_LAYOUTS}
  weights, remarks = strip_prefixes(weights, stems, path or 'the state_dict')
  layout = next(
    (stems[s] for s in stems if any(name.startswith(s) for name in weights)),
    None,
  )
  if layout is None:
    some = ', '.join(sorted(weights)[:3]) or 'none'
    raise UserError(
      f'{path or "the state_dict"}: no BN-Inception has weights of these names '
      f"({some}, ...): those of pretrainedmodels, pytorchcv and TF-Slim's "
      'inception_v2 can be imported'
    )
  abstract = _abstract_variables(
    PYTORCH_MODEL, _num_rows(weights.get(f'{layout.linear}.weight'))
  )
  expected = jax.eval_shape(partial(_pytorch_weights, layout), abstract)
  counters = {name for name in expected if name.endswith(_COUNTER)}
  weights = _checked(
    weights, expected, counters, f'bninception of {layout.name}', path
  )
  params, stats = {}, {}
  for unit in _units(abstract['params']):
    conv = f'{layout.unit(unit)}{layout.conv}'
    norm = f'{layout.unit(unit)}{layout.norm}'
    params[f'{unit}/conv/kernel'] = weights[f'{conv}.weight'].transpose(
      2, 3, 1, 0
    )
    params[f'{unit}/norm/scale'] = weights[f'{norm}.weight']
    params[f'{unit}/norm/bias'] = weights[f'{norm}.bias']
    mean = weights[f'{norm}.running_mean'] - weights[f'{conv}.bias']
    stats[f'{unit}/norm/mean'] = mean
    stats[f'{unit}/norm/var'] = weights[f'{norm}.running_var']
    count = weights.get(f'{norm}.{_COUNTER}')
    stats[f'{unit}/norm/num_updates'] = np.int32(count or _NUM_UPDATES)
  params['logits/kernel'] = weights[f'{layout.linear}.weight'].T
  params['logits/bias'] = weights[f'{layout.linear}.bias']
  return Imported(
    layout.name,
    _as_variables(params, stats),
    dict(PYTORCH_MODEL),
    dict(layout.input_scaling),
    'torchvision',
    remarks,
  )


def to_pytorch(
  variables: dict, model: Inception, layout: PytorchLayout = CADENE
) -> Weights:
  """The state_dict of a PyTorch model that computes what `model` computes.

  `from_pytorch` of it gives back the variables, bit for bit, but for a count of
  0 updates. The biases of the convolutions are 0. What the input is stays as it was: it is not in there.

  Args:
    variables: params and batch_stats.
    model: the network; `PYTORCH_MODEL` has the options that it must have.
    layout: CADENE or PYTORCHCV.

  Raises:
    UserError: if that PyTorch model is another function, with all differences.
  """
  if not isinstance(model, Inception):
    raise UserError(
      f'the network is a {type(model).__name__}: only Inception has a layout of '
      f'{layout.name} to be written in'
    )
  different = [
    f'model.{name} is {getattr(model, name)}, not {value}'
    for name, value in PYTORCH_MODEL.items()
    if getattr(model, name) != value
  ]
  if different:
    raise UserError(
      f'bninception of {layout.name} is another function than this network '
      f'({"; ".join(different)}): train with those options to export'
    )
  weights = _pytorch_weights(layout, jax.device_get(variables))
  for name, value in weights.items():
    dtype = np.int64 if name.endswith(_COUNTER) else np.float32
    weights[name] = np.array(value, dtype, order='C')
  return weights


def _pytorch_weights(layout: PytorchLayout, variables: dict) -> dict:
  """Of arrays or, under `jax.eval_shape`, of their shapes."""
  params = flatten_dict(variables['params'], sep='/')
  stats = flatten_dict(variables['batch_stats'], sep='/')
  weights = {}
  for unit in _units(variables['params']):
    conv = f'{layout.unit(unit)}{layout.conv}'
    norm = f'{layout.unit(unit)}{layout.norm}'
    bias = params[f'{unit}/norm/bias']
    weights |= {
      f'{conv}.weight': params[f'{unit}/conv/kernel'].transpose(3, 2, 0, 1),
      f'{conv}.bias': np.zeros(bias.shape, np.float32),
      f'{norm}.weight': params[f'{unit}/norm/scale'],
      f'{norm}.bias': bias,
      f'{norm}.running_mean': stats[f'{unit}/norm/mean'],
      f'{norm}.running_var': stats[f'{unit}/norm/var'],
      f'{norm}.{_COUNTER}': stats[f'{unit}/norm/num_updates'],
    }
  weights[f'{layout.linear}.weight'] = params['logits/kernel'].T
  weights[f'{layout.linear}.bias'] = params['logits/bias']
  return weights


# ---- TF-Slim ----

_SLIM = 'InceptionV2/'
_SLIM_STEM = {
  'conv1': 'Conv2d_1a_7x7',
  'conv2_reduce': 'Conv2d_2b_1x1',
  'conv2': 'Conv2d_2c_3x3',
}
# Its modules are named one later than in Figure 5.
_SLIM_MODULES = dict(
  zip(
    [f'inception_{row.name}' for row in FIGURE_5],
    ['3b', '3c', '4a', '4b', '4c', '4d', '4e', '5a', '5b', '5c'],
    strict=True,
  )
)
_SLIM_BRANCHES = {
  'conv1x1': (0, 'Conv2d_0a_1x1'),
  'reduce3x3': (1, 'Conv2d_0a_1x1'),
  'conv3x3': (1, 'Conv2d_0b_3x3'),
  'reduce_double3x3': (2, 'Conv2d_0a_1x1'),
  'double3x3_a': (2, 'Conv2d_0b_3x3'),
  'double3x3_b': (2, 'Conv2d_0c_3x3'),
  'projection': (3, 'Conv2d_0b_1x1'),
}
_SLIM_LOGITS = f'{_SLIM}Logits/Conv2d_1c_1x1'
_NUM_CLASSES_WITH_BACKGROUND = 1001


def _slim_unit(unit: str) -> str:
  if unit in _SLIM_STEM:
    return f'{_SLIM}{_SLIM_STEM[unit]}'
  module, name = unit.split('/')
  branch, scope = _SLIM_BRANCHES[name]
  if module.endswith(_REDUCTIONS):
    branch -= 1  # they have no 1x1, the first
    if name in ('conv3x3', 'double3x3_b'):
      scope = 'Conv2d_1a_3x3'
  return f'{_SLIM}Mixed_{_SLIM_MODULES[module]}/Branch_{branch}/{scope}'


def from_slim(
  weights: Weights, keep_background: bool = False, path: str | None = None
) -> Imported:
  """Weights of TF-Slim's `inception_v2`.

  The stem has a bias and no batch norm if the names say so, as in the published
  checkpoint; batch norm has a scale only if there are gammas.

  Args:
    weights: by name, 'InceptionV2/Conv2d_1a_7x7/depthwise_weights', .... Global
      step, moving averages of weights and slots of the optimizer are left out.
    keep_background: of 1,001 classes keep the first, which is none of
      ImageNet's.
    path: of their file, for messages.

  Raises:
    UserError: as of `from_pytorch`.
  """
  stem, some_norm = (f'{_slim_unit(unit)}/' for unit in ('conv1', 'conv2'))
  options = SLIM_MODEL | {
    'use_stem_batch_norm': f'{stem}biases' not in weights,
    'use_scale': f'{some_norm}BatchNorm/gamma' in weights,
  }
  logits = weights.get(f'{_SLIM_LOGITS}/biases')
  abstract = _abstract_variables(options, _num_rows(logits))
  expected = jax.eval_shape(_slim_weights, abstract)
  weights = {
    name: value
    for name, value in weights.items()
    if name in expected
    or (name.startswith(_SLIM) and name.rpartition('/')[0] not in expected)
  }
  weights = _checked(weights, expected, set(), "TF-Slim's inception_v2", path)
  params, stats = {}, {}
  for unit in _units(abstract['params']):
    name = _slim_unit(unit)
    kernel = 'weights'
    if f'{name}/depthwise_weights' in weights:
      kernel, depthwise = (
        'pointwise_weights', weights[f'{name}/depthwise_weights'],
      )  # fmt: skip
      # TF: [H, W, inputs, multiplier]; linen: a group for each input.
      params[f'{unit}/depthwise/kernel'] = depthwise.reshape(
        *depthwise.shape[:2], 1, -1
      )
    params[f'{unit}/conv/kernel'] = weights[f'{name}/{kernel}']
    if f'{name}/biases' in weights:
      params[f'{unit}/conv/bias'] = weights[f'{name}/biases']
      continue
    params[f'{unit}/norm/bias'] = weights[f'{name}/BatchNorm/beta']
    if options['use_scale']:
      params[f'{unit}/norm/scale'] = weights[f'{name}/BatchNorm/gamma']
    stats[f'{unit}/norm/mean'] = weights[f'{name}/BatchNorm/moving_mean']
    stats[f'{unit}/norm/var'] = weights[f'{name}/BatchNorm/moving_variance']
    stats[f'{unit}/norm/num_updates'] = np.int32(_NUM_UPDATES)
  kernel = weights[f'{_SLIM_LOGITS}/weights'][0, 0]
  bias = weights[f'{_SLIM_LOGITS}/biases']
  if bias.size == _NUM_CLASSES_WITH_BACKGROUND and not keep_background:
    kernel, bias = kernel[:, 1:], bias[1:]
  params['logits/kernel'], params['logits/bias'] = kernel, bias
  return Imported(
    'tf_slim',
    _as_variables(params, stats),
    options,
    {
      'value_range': (-1.0, 1.0),
      'mean': (0.0,),
      'std': (1.0,),
      'channel_order': 'rgb',
      'binary_threshold': 0.0,
    },
    'slim',
  )


def _slim_weights(variables: dict) -> dict:
  """What `from_slim` takes, from shapes: under `jax.eval_shape`."""
  params = flatten_dict(variables['params'], sep='/')
  stats = flatten_dict(variables['batch_stats'], sep='/')
  weights = {}
  for unit in _units(variables['params']):
    name, kernel = _slim_unit(unit), params[f'{unit}/conv/kernel']
    depthwise = params.get(f'{unit}/depthwise/kernel')
    if depthwise is None:
      weights[f'{name}/weights'] = kernel
    else:
      weights[f'{name}/pointwise_weights'] = kernel
      weights[f'{name}/depthwise_weights'] = depthwise.reshape(
        *depthwise.shape[:2], 3, -1
      )
    for theirs, ours in (
      ('biases', params.get(f'{unit}/conv/bias')),
      ('BatchNorm/beta', params.get(f'{unit}/norm/bias')),
      ('BatchNorm/gamma', params.get(f'{unit}/norm/scale')),
      ('BatchNorm/moving_mean', stats.get(f'{unit}/norm/mean')),
      ('BatchNorm/moving_variance', stats.get(f'{unit}/norm/var')),
    ):
      if ours is not None:
        weights[f'{name}/{theirs}'] = ours
  weights[f'{_SLIM_LOGITS}/weights'] = params['logits/kernel'][None, None]
  weights[f'{_SLIM_LOGITS}/biases'] = params['logits/bias']
  return weights


# ---- all layouts ----


def _num_rows(array: np.ndarray | None) -> int:
  """How many classes the last layer has; any number if there is none."""
  return 1000 if array is None or array.ndim == 0 else len(array)


def _abstract_variables(options: dict, num_classes: int) -> dict:
  model = Inception(num_classes, **options)
  image = jnp.zeros((1, 32, 32, 3))
  return jax.eval_shape(model.init, jax.random.key(0), image, jnp.zeros(1, int))


def _units(params: dict) -> list[str]:
  """The paths of the convolutions: 'conv1', 'inception_3a/conv1x1', ...."""
  suffix = '/conv/kernel'
  paths = flatten_dict(params, sep='/')
  return [path.removesuffix(suffix) for path in paths if path.endswith(suffix)]


def _checked(
  weights: Weights,
  expected: dict,
  optional: set[str],
  what: str,
  path: str | None,
) -> Weights:
  """The weights, in float32, if names and shapes are right."""
  missing = sorted(expected.keys() - weights.keys() - optional)
  unknown = sorted(weights.keys() - expected.keys())
  if missing or unknown:
    found = {'missing': missing, 'unknown': unknown}
    lists = '; '.join(f'{k}: {_name_some(v)}' for k, v in found.items() if v)
    raise UserError(
      f'{path or "these"}: not the weights of {what}: {lists}: give a file that '
      'has those, and no others'
    )
  checked, wrong = {}, []
  for name, value in weights.items():
    value, shape = np.asarray(value), expected[name].shape
    if value.shape == (1, *shape):  # as Cadene's first file had vectors
      value = value[0]
    is_counter = expected[name].dtype == np.int32
    kind = np.number if is_counter else np.floating
    if value.shape != shape:
      wrong.append(f'{name} is {value.shape}, not {shape}')
    elif not jnp.issubdtype(value.dtype, kind):
      wrong.append(f'{name} is of {value.dtype}, not {kind.__name__}')
    checked[name] = value
  if wrong:
    more = f' and {len(wrong) - 3} more' if len(wrong) > 3 else ''
    raise UserError(
      f'{f"{path}: " if path else ""}weights of other shapes or types than '
      f'those of {what}: {"; ".join(wrong[:3])}{more}'
    )
  check_values(checked, path or f'weights of {what}')
  return {
    name: value
    if expected[name].dtype == np.int32
    else value.astype(np.float32)
    for name, value in checked.items()
  }


def _name_some(names: list[str]) -> str:
  more = f' and {len(names) - 4} more' if len(names) > 4 else ''
  return ', '.join(names[:4]) + more


def _as_variables(params: dict, stats: dict) -> dict:
  variables = {
    'params': unflatten_dict(params, sep='/'),
    'batch_stats': unflatten_dict(stats, sep='/'),
  }
  return jax.tree.map(lambda x: np.array(x, order='C'), variables)

"""Weights of PyTorch's BN-Inceptions: those of Cadene and Semery, in and out."""

import re
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
from flax.traverse_util import flatten_dict

from bn_inception.errors import UserError
from bn_inception.inception import FIGURE_5, Inception
from bn_inception.weights.imported import (
  COMMON_MODEL,
  NUM_UPDATES,
  Imported,
  Weights,
  abstract_variables,
  check_weights,
  count_rows,
  list_units,
  to_variables,
)

PYTORCH_MODEL = COMMON_MODEL | {
  'stem': 'dense',
  'pool_projection_4cd': 128,
  'use_stem_batch_norm': True,
  'epsilon': 1e-5,
  'use_scale': True,
  'stride_padding': 'caffe',
  'average_includes_padding': True,
}
# Missing in files from before PyTorch 0.4.1; later versions save those with 0.
_COUNTER = 'num_batches_tracked'
_STRIDED = tuple(row.name for row in FIGURE_5 if row.stride == 2)


class Layout(NamedTuple):
  """How a PyTorch model names its weights, and what input it takes.

  Attributes:
    name: of the package.
    unit: 'inception_3a/conv1x1' -> the stem of the names of its weights.
    conv, norm: suffixes of that stem for convolution and batch norm.
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
  branch -= module.endswith(
    _STRIDED
  )  # no 1x1, which is the first branch elsewhere
  return f'{_PYTORCHCV_MODULES[module]}.branch{branch}{place}'


CADENE = Layout(
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
PYTORCHCV = Layout(
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
LAYOUTS = (CADENE, PYTORCHCV)


def from_pytorch(weights: Weights, path: str | None = None) -> Imported:
  """Imports weights of `pretrainedmodels.bninception` or `pytorchcv`'s.

  Their convolutions have biases, which batch norm subtracts again: they become
  part of the moving means.

  Args:
    weights: a state_dict as arrays, for any number of classes; prefixes such as
      'module.' are stripped.
    path: of their file, for messages.

  Raises:
    UserError: for names of another model; as `check_weights` and
      `strip_prefixes`.
  """
  place = path or 'the state_dict'
  layout_of = {layout.unit('conv1'): layout for layout in LAYOUTS}
  weights, remarks = strip_prefixes(weights, layout_of, place)
  layout = next(
    (
      layout
      for stem, layout in layout_of.items()
      if any(name.startswith(stem) for name in weights)
    ),
    None,
  )
  if layout is None:
    some = ', '.join(sorted(weights)[:3]) or 'none'
    raise UserError(
      f'{place}: these are not the names of a known BN-Inception ({some}, ...): '
      "give weights of pretrainedmodels, pytorchcv or TF-Slim's inception_v2"
    )
  abstract = abstract_variables(
    PYTORCH_MODEL, count_rows(weights.get(f'{layout.linear}.weight'))
  )
  expected = jax.eval_shape(partial(_to_weights, layout), abstract)
  counters = frozenset(name for name in expected if name.endswith(_COUNTER))
  weights = check_weights(
    weights, expected, f'bninception of {layout.name}', path, counters
  )
  flat = {
    'params/logits/kernel': weights[f'{layout.linear}.weight'].T,
    'params/logits/bias': weights[f'{layout.linear}.bias'],
  }
  for unit in list_units(abstract['params']):
    conv = f'{layout.unit(unit)}{layout.conv}'
    norm = f'{layout.unit(unit)}{layout.norm}'
    mean = weights[f'{norm}.running_mean'] - weights[f'{conv}.bias']
    count = weights.get(f'{norm}.{_COUNTER}')
    flat |= {
      f'params/{unit}/conv/kernel': weights[f'{conv}.weight'].transpose(
        2, 3, 1, 0
      ),
      f'params/{unit}/norm/scale': weights[f'{norm}.weight'],
      f'params/{unit}/norm/bias': weights[f'{norm}.bias'],
      f'batch_stats/{unit}/norm/mean': mean,
      f'batch_stats/{unit}/norm/var': weights[f'{norm}.running_var'],
      f'batch_stats/{unit}/norm/num_updates': np.int32(count or NUM_UPDATES),
    }
  return Imported(
    layout.name,
    to_variables(flat),
    dict(PYTORCH_MODEL),
    dict(layout.input_scaling),
    'torchvision',
    remarks,
  )


def to_pytorch(
  variables: dict, model: Inception, layout: Layout = CADENE
) -> Weights:
  """The state_dict of a PyTorch model that computes what `model` computes.

  Convolutions get biases of 0. `from_pytorch` gives back the same bits, except
  for a count of 0 updates. The state_dict does not say how the input is scaled.

  Args:
    variables: params and batch_stats.
    model: must have the options of `PYTORCH_MODEL`.
    layout: `CADENE` or `PYTORCHCV`.

  Raises:
    UserError: if that PyTorch model is a different function; lists all options
      that differ.
  """
  if not isinstance(model, Inception):
    raise UserError(
      f'the network is a {type(model).__name__}: only Inception can be exported '
      f'to {layout.name}'
    )
  different = [
    f'model.{name} is {getattr(model, name)}, not {value}'
    for name, value in PYTORCH_MODEL.items()
    if getattr(model, name) != value
  ]
  if different:
    raise UserError(
      f'this network is not the function of bninception of {layout.name} '
      f'({"; ".join(different)}): train with those options to export'
    )
  weights = _to_weights(layout, jax.device_get(variables))
  for name, value in weights.items():
    dtype = np.int64 if name.endswith(_COUNTER) else np.float32
    weights[name] = np.array(value, dtype, order='C')
  return weights


def _to_weights(layout: Layout, variables: dict) -> dict:
  """The state_dict as views; of shapes too, under `jax.eval_shape`."""
  params = flatten_dict(variables['params'], sep='/')
  stats = flatten_dict(variables['batch_stats'], sep='/')
  weights = {
    f'{layout.linear}.weight': params['logits/kernel'].T,
    f'{layout.linear}.bias': params['logits/bias'],
  }
  for unit in list_units(variables['params']):
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
  return weights


# DataParallel and torch.compile add these, around a network or a part of it.
_WRAPPER = re.compile(r'(?<![^.])(module|_orig_mod)\.')


def strip_prefixes(
  weights: dict[str, Any], stems: Iterable[str], place: str
) -> tuple[dict[str, Any], tuple[str, ...]]:
  """Removes what training scripts put in front of a network's own names.

  'module.' and '_orig_mod.' are removed everywhere, and so is what precedes the
  network's first layer, such as 'model.'. Weights without that prefix belong to
  something else and are left out.

  Args:
    weights: by name.
    stems: how the names of the first layer begin, for each known network.
    place: of the weights, for messages.

  Returns:
    The weights, and a line for each kind of change. Without a first layer the
    weights come back unchanged.

  Raises:
    UserError: if there is more than one network.
  """
  any_stem = '|'.join(
    re.escape(stem).replace(r'\.', rf'\.(?:{_WRAPPER.pattern})*')
    for stem in stems
  )
  matches = [re.match(rf'(|.*\.)(?:{any_stem})[._]', name) for name in weights]
  # Longest first: 'model.' is also a prefix of 'model.net.'.
  prefixes = sorted({match[1] for match in matches if match}, key=len)[::-1]
  if not prefixes:
    return weights, ()
  name_of, others = {}, []
  for name in weights:
    prefix = next((p for p in prefixes if name.startswith(p)), None)
    if prefix is None:
      others.append(name)
      continue
    own = _WRAPPER.sub('', name.removeprefix(prefix))
    if own in name_of:
      raise UserError(
        f'{place} holds more than one network (with {name_of[own]} and {name}): '
        'save the state_dict of only one'
      )
    name_of[own] = name
  remarks = []
  renamed = [(name, own) for own, name in name_of.items() if name != own]
  if renamed:
    name, own = renamed[0]
    noun = 'prefix' if len(renamed) == 1 else 'prefixes'
    remarks.append(f'removed {len(renamed)} {noun}: {name} is now {own}')
  if others:
    more = f' and {len(others) - 3} more' if len(others) > 3 else ''
    remarks.append(
      f'left out, not part of the network: {", ".join(others[:3])}{more}'
    )
  return {own: weights[name] for own, name in name_of.items()}, tuple(remarks)

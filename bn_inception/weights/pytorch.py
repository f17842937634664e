"""Weights of PyTorch's BN-Inceptions: those of Cadene and Semery, in and out."""

import re
from collections.abc import Iterable
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np

from bn_inception.errors import UserError
from bn_inception.inception import Inception
from bn_inception.weights.imported import (
  COMMON_MODEL,
  NUM_UPDATES,
  Imported,
  Weights,
  abstract_variables,
  check_weights,
  count_rows,
)
from bn_inception.weights.names import published_names
from bn_inception.weights.state_dict import (
  COUNTER,
  as_saved,
  from_state_dict,
  to_state_dict,
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


class Layout(NamedTuple):
  """How a PyTorch model names its weights, and what input it takes.

  Attributes:
    name: of the package, a field of `Names`.
    conv, norm: come after a unit's name for convolution and batch norm.
    linear: the last layer.
    input_scaling: see `Imported`.
  """

  name: str
  conv: str
  norm: str
  linear: str
  input_scaling: dict

  def unit(self, unit: str) -> str:
    """'inception_3a/conv1x1' -> what the names of its weights begin with."""
    return getattr(published_names(unit), self.name)

  def rename(self, own: str) -> str:
    """'conv1.norm.weight', see `to_state_dict` -> the name in this layout."""
    *unit, part, kind = own.split('.')
    if part == 'logits':
      return f'{self.linear}.{kind}'
    suffix = {'conv': self.conv, 'norm': self.norm}[part]
    return f'{self.unit("/".join(unit))}{suffix}.{kind}'


CADENE = Layout(
  name='pretrainedmodels',
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

  Their convolutions have biases. Batch norm subtracts them again, so they become
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
      "give weights of pretrainedmodels, pytorchcv or TF-Slim's inception_v2, or "
      'a file that this program exported'
    )
  abstract = abstract_variables(
    PYTORCH_MODEL, count_rows(weights.get(f'{layout.linear}.weight'))
  )
  expected = jax.eval_shape(partial(_to_weights, layout), abstract)
  # Files from before PyTorch 0.4.1 lack them; later versions save those with 0.
  counters = frozenset(name for name in expected if name.endswith(COUNTER))
  weights = check_weights(
    weights, expected, f'bninception of {layout.name}', path, counters
  )
  own = {}
  for name in jax.eval_shape(to_state_dict, abstract):
    value = weights.get(layout.rename(name))
    if name.endswith('running_mean'):
      value = value - weights[_bias_of(layout, name)]
    elif name.endswith(COUNTER):
      value = np.int32(value or NUM_UPDATES)
    own[name] = value
  return Imported(
    layout.name,
    from_state_dict(own, abstract),
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
  different = differences(model)
  if different:
    raise UserError(
      f'this network is not the function of bninception of {layout.name} '
      f'({"; ".join(different)}): export it with --layout=bn_inception'
    )
  return as_saved(_to_weights(layout, variables))


def differences(model: nn.Module) -> list[str]:
  """What makes a network another function than PyTorch's BN-Inceptions."""
  if not isinstance(model, Inception):
    return [f'it is a {type(model).__name__}']
  return [
    f'model.{name} is {getattr(model, name)}, not {value}'
    for name, value in PYTORCH_MODEL.items()
    if getattr(model, name) != value
  ]


def _to_weights(layout: Layout, variables: dict) -> dict:
  """The state_dict as views; of shapes too, under `jax.eval_shape`."""
  own = to_state_dict(variables)
  biases = {
    _bias_of(layout, name): np.zeros(value.shape, np.float32)
    for name, value in own.items()
    if name.endswith('running_mean')
  }
  return {layout.rename(name): value for name, value in own.items()} | biases


def _bias_of(layout: Layout, mean: str) -> str:
  """The name of the bias of the convolution whose moving mean has this name."""
  return layout.rename(mean.replace('.norm.running_mean', '.conv.bias'))


# DataParallel and torch.compile add these, around a network or a part of it.
_WRAPPER = re.compile(r'(?<![^.])(module|_orig_mod)\.')


def strip_prefixes(
  weights: dict[str, Any], stems: Iterable[str], place: str
) -> tuple[dict[str, Any], tuple[str, ...]]:
  """Removes the prefixes that training scripts add to a network's own names.

  These are 'module.' and '_orig_mod.', anywhere, and whatever precedes the first
  layer, such as 'model.'. Weights without that prefix are not the network's and
  are left out.

  Args:
    weights: by name.
    stems: what the names of the first layer begin with, by known network.
    place: of the weights, for messages.

  Returns:
    The weights, and a line for each kind of change. Weights without a first layer
    are returned unchanged.

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

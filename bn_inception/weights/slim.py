"""Weights of TF-Slim's `inception_v2`."""

import jax
import numpy as np
from flax.traverse_util import flatten_dict

from bn_inception.weights.imported import (
  COMMON_MODEL,
  NUM_UPDATES,
  Imported,
  Weights,
  abstract_variables,
  check_weights,
  count_rows,
  to_variables,
)
from bn_inception.weights.names import published_names

SCOPE = 'InceptionV2/'
SLIM_MODEL = COMMON_MODEL | {
  'stem': 'separable',
  'pool_projection_4cd': 96,
  'use_stem_batch_norm': False,
  'epsilon': 1e-3,
  'use_scale': False,
  'stride_padding': 'same',
  'average_includes_padding': False,
}
_INPUT_SCALING = {
  'value_range': (-1.0, 1.0),
  'mean': (0.0,),
  'std': (1.0,),
  'channel_order': 'rgb',
  'binary_threshold': 0.0,
}
_ARRAYS = {
  'depthwise/kernel': 'depthwise_weights',
  'conv/kernel': 'weights',
  'conv/bias': 'biases',
  'norm/bias': 'BatchNorm/beta',
  'norm/scale': 'BatchNorm/gamma',
  'norm/mean': 'BatchNorm/moving_mean',
  'norm/var': 'BatchNorm/moving_variance',
}
_LOGITS = f'{SCOPE}Logits/Conv2d_1c_1x1'
_NUM_CLASSES_WITH_BACKGROUND = 1001


def from_slim(
  weights: Weights, keep_background: bool = False, path: str | None = None
) -> Imported:
  """Imports weights of TF-Slim's `inception_v2`.

  The stem has a bias instead of batch norm if the weights have one, as in the
  published checkpoint. Batch norm has a scale only if the weights have gammas.

  Args:
    weights: by name: 'InceptionV2/Conv2d_1a_7x7/depthwise_weights', .... Global
      step, averages of weights and optimizer slots are ignored.
    keep_background: keep the first of 1,001 classes, which ImageNet lacks.
    path: of their file, for messages.

  Raises:
    UserError: as `check_weights`.
  """
  stem, some_norm = (f'{_unit_name(unit)}/' for unit in ('conv1', 'conv2'))
  options = SLIM_MODEL | {
    'use_stem_batch_norm': f'{stem}biases' not in weights,
    'use_scale': f'{some_norm}BatchNorm/gamma' in weights,
  }
  num_classes = count_rows(weights.get(f'{_LOGITS}/biases'))
  ours = flatten_dict(abstract_variables(options, num_classes), sep='/')
  names = {leaf: _name(leaf) for leaf in ours if not _is_counter(leaf)}
  expected = {
    name: jax.ShapeDtypeStruct(_shape(leaf, ours[leaf].shape), np.float32)
    for leaf, name in names.items()
  }
  weights = {
    name: value
    for name, value in weights.items()
    if name in expected
    # Not the optimizer's slots: their names begin with a weight's.
    or (name.startswith(SCOPE) and name.rpartition('/')[0] not in expected)
  }
  weights = check_weights(weights, expected, "TF-Slim's inception_v2", path)
  flat = {
    leaf: np.int32(NUM_UPDATES)
    if _is_counter(leaf)
    else weights[names[leaf]].reshape(abstract.shape)
    for leaf, abstract in ours.items()
  }
  if num_classes == _NUM_CLASSES_WITH_BACKGROUND and not keep_background:
    for leaf in ('params/logits/kernel', 'params/logits/bias'):
      flat[leaf] = flat[leaf][..., 1:]
  return Imported(
    'tf_slim', to_variables(flat), options, dict(_INPUT_SCALING), 'slim'
  )


def _is_counter(leaf: str) -> bool:
  return leaf.endswith('/num_updates')


def _name(leaf: str) -> str:
  """'params/conv2/conv/kernel' -> 'InceptionV2/Conv2d_2c_3x3/weights'."""
  _, *unit, part, kind = leaf.split('/')
  if part == 'logits':
    return f'{_LOGITS}/{"weights" if kind == "kernel" else "biases"}'
  array = _ARRAYS[f'{part}/{kind}']
  if unit == ['conv1'] and array == 'weights':
    array = 'pointwise_weights'
  return f'{_unit_name("/".join(unit))}/{array}'


def _unit_name(unit: str) -> str:
  return f'{SCOPE}{published_names(unit).slim}'


def _shape(leaf: str, shape: tuple[int, ...]) -> tuple[int, ...]:
  """TF-Slim's shape for an array; the values are in the same order."""
  if leaf.endswith('depthwise/kernel'):
    # [H, W, inputs, multiplier]; linen has a group for each of the 3 inputs.
    return (*shape[:2], 3, shape[3] // 3)
  if leaf == 'params/logits/kernel':
    return (1, 1, *shape)
  return shape

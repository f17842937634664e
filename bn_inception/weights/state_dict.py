"""Variables of any of our networks as a PyTorch state_dict, and back.

Names follow the modules: 'params/inception_3a/conv3x3/conv/kernel' becomes
'inception_3a.conv3x3.conv.weight'. Axes are PyTorch's: [outputs, inputs, height,
width] in a convolution, [outputs, inputs] in a linear layer. The perceptron's
inputs stay in our order of pixels: height, width, channel.
"""

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from bn_inception.weights.imported import Weights

COUNTER = 'num_batches_tracked'
_KINDS = {
  'kernel': 'weight',
  'scale': 'weight',
  'bias': 'bias',
  'mean': 'running_mean',
  'var': 'running_var',
  'num_updates': COUNTER,
}
# Of ours in theirs, by the number of axes. Three: normalisation per activation.
_AXES = {0: (), 1: (0,), 2: (1, 0), 3: (2, 0, 1), 4: (3, 2, 0, 1)}


def to_state_dict(variables: dict) -> Weights:
  """PyTorch's arrays by name, as views of ours.

  Args:
    variables: params and batch_stats; under `jax.eval_shape`, their shapes.
  """
  return {
    _name(path): value.transpose(_AXES[value.ndim])
    for path, value in flatten_dict(variables, sep='/').items()
  }


def from_state_dict(weights: Weights, abstract: dict) -> dict:
  """The variables that `to_state_dict` made these weights of.

  Args:
    weights: checked.
    abstract: shapes and dtypes of the variables.
  """
  flat = {}
  for path, leaf in flatten_dict(abstract, sep='/').items():
    axes = np.argsort(_AXES[leaf.ndim]).astype(int)
    value = weights[_name(path)].transpose(axes)
    flat[path] = np.array(value, leaf.dtype, order='C')
  return unflatten_dict(flat, sep='/')


def as_saved(weights: Weights) -> Weights:
  """The arrays in PyTorch's dtypes, each in C order with memory of its own."""
  return {
    name: np.array(
      value, np.int64 if name.endswith(COUNTER) else np.float32, order='C'
    )
    for name, value in jax.device_get(weights).items()
  }


def _name(path: str) -> str:
  _, *modules, kind = path.split('/')
  return '.'.join([*modules, _KINDS.get(kind, kind)])

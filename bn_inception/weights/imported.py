"""A published network, and checks of its weights."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import unflatten_dict

from bn_inception.errors import UserError
from bn_inception.inception import Inception
from bn_inception.runs.values import check_values

Weights = dict[str, np.ndarray]

# Options of `Inception` that all published networks have.
COMMON_MODEL = {
  'stem_stride': 2,
  'width': 1.0,
  'use_batch_norm': True,
  'use_lrn': False,
  'nonlinearity': 'relu',
  'per_activation_modules': (),
}
# For files without a count of updates. During the warm-up of the moving averages
# further training would forget them at once; this is past it.
NUM_UPDATES = 100_000


class Imported(NamedTuple):
  """A published network.

  Attributes:
    name: of the layout.
    variables: params and batch_stats.
    model: options of `Inception` for the same function, without `num_classes`.
    input_scaling: arguments of `augment.scale_image`.
    eval_crop: the key of `crops.NUM_CROPS` behind its published accuracy.
    remarks: lines about weights that were renamed or left out.
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


def count_rows(array: np.ndarray | None) -> int:
  """The number of classes in a last layer; 1,000 if it is missing or a scalar."""
  return 1000 if array is None or array.ndim == 0 else len(array)


def abstract_variables(options: dict, num_classes: int) -> dict:
  """Shapes and dtypes of the variables of `Inception(num_classes, **options)`."""
  model = Inception(num_classes, **options)
  image = jnp.zeros((1, 32, 32, 3))
  return jax.eval_shape(model.init, jax.random.key(0), image, jnp.zeros(1, int))


def to_variables(flat: dict[str, np.ndarray]) -> dict:
  """{'params/conv1/conv/kernel': ...} -> nested, in C order."""
  flat = {path: np.array(value, order='C') for path, value in flat.items()}
  return unflatten_dict(flat, sep='/')


def check_weights(
  weights: Weights,
  expected: dict[str, jax.ShapeDtypeStruct],
  network: str,
  path: str | None,
  optional: frozenset[str] = frozenset(),
) -> Weights:
  """The weights in float32 (int32 counters as they are), checked.

  Args:
    weights: by name.
    expected: shapes by name; counters, which are int32, may have any numeric
      dtype.
    network: for messages.
    path: of the file, for messages.
    optional: names that may be missing.

  Raises:
    UserError: for missing and unknown names, other shapes or dtypes, and values
      that `check_values` refuses.
  """
  missing = sorted(expected.keys() - weights.keys() - optional)
  unknown = sorted(weights.keys() - expected.keys())
  if missing or unknown:
    found = {'missing': missing, 'unknown': unknown}
    lists = '; '.join(f'{k}: {_first(v, 4)}' for k, v in found.items() if v)
    raise UserError(
      f'{path or "these"}: not the weights of {network}: {lists}: give a file '
      'with exactly its weights'
    )
  checked, wrong = {}, []
  for name, value in weights.items():
    value, shape = np.asarray(value), expected[name].shape
    if value.shape == (1, *shape):  # the vectors in Cadene's first file
      value = value[0]
    is_counter = expected[name].dtype == np.int32
    kind = np.number if is_counter else np.floating
    if value.shape != shape:
      wrong.append(f'{name} is {value.shape}, not {shape}')
    elif not jnp.issubdtype(value.dtype, kind):
      wrong.append(f'{name} is {value.dtype}, not {kind.__name__}')
    checked[name] = value
  if wrong:
    raise UserError(
      f'{path or "these"}: not the shapes and dtypes of {network}: '
      f'{_first(wrong, 3, "; ")}: give a file with those of {network}'
    )
  check_values(checked, path or f'weights of {network}')
  return {
    name: value
    if expected[name].dtype == np.int32
    else value.astype(np.float32)
    for name, value in checked.items()
  }


def _first(items: list[str], number: int, separator: str = ', ') -> str:
  more = f' and {len(items) - number} more' if len(items) > number else ''
  return separator.join(items[:number]) + more

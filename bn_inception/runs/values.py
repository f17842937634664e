"""Checks that arrays can be the weights of a network."""

from collections.abc import Mapping

import numpy as np

from bn_inception.errors import UserError
from bn_inception.wording import count

_LARGEST_COUNT = np.iinfo(np.int32).max
_LARGEST_FLOAT = float(np.finfo(np.float32).max)
_VARIANCES = ('running_var', 'moving_variance', '/var')
_COUNTERS = ('num_batches_tracked', '/num_updates')


def check_values(weights: Mapping[str, np.ndarray], what: str) -> None:
  """Raises for NaN, infinities, negative variances and impossible counts.

  Args:
    weights: by name, as in this package ('batch_stats/conv1/norm/var') or in a
      layout of `weights`.
    what: the file or checkpoint, for messages.

  Raises:
    UserError: with the name, index and value of the first bad number, and how
      many more arrays have one.
  """
  wrong = []
  for name, value in weights.items():
    value = np.asarray(value)
    # In float64: the largest float32 is infinity in float16. False for NaN.
    is_good = np.abs(value.astype(np.float64)) <= _LARGEST_FLOAT
    if name.endswith((*_VARIANCES, *_COUNTERS)):
      is_good &= value >= 0
    if name.endswith(_COUNTERS):
      is_good &= value <= _LARGEST_COUNT
    if not is_good.all():
      index = tuple(int(i) for i in np.argwhere(~is_good)[0])
      place = f'[{", ".join(map(str, index))}]' if index else ''
      wrong.append(f'{name}{place} is {value[index]}')
      if name.endswith(_COUNTERS):
        wrong[-1] += f', not in 0 to {_LARGEST_COUNT}'
      elif _LARGEST_FLOAT < abs(float(value[index])) < np.inf:
        wrong[-1] += ', too large for float32'
  if wrong:
    more = (
      f', and {count(len(wrong) - 1, "more array")}' if len(wrong) > 1 else ''
    )
    raise UserError(
      f'{what} cannot be used: {wrong[0]}{more}: use another copy, or one from '
      'before training diverged'
    )

"""Whether numbers can be the weights of a network."""

from collections.abc import Mapping

import numpy as np

from bn_inception.errors import UserError

_LARGEST_COUNT = np.iinfo(np.int32).max
_LARGEST_FLOAT = float(np.finfo(np.float32).max)
_VARIANCES = ('running_var', 'moving_variance', '/var')
_COUNTERS = ('num_batches_tracked', '/num_updates')


def check_values(weights: Mapping[str, np.ndarray], what: str) -> None:
  """Refuses NaN, infinities, negative variances, and counts that are none.

  Args:
    weights: by name: of any of the layouts of `weights`, or of this package's variables,
      'batch_stats/conv1/norm/var'.
    what: they are, for the message.

  Raises:
    UserError: with the name, the index and the value of the first one, and how
      many arrays have some.
  """
  wrong = []
  for name, value in weights.items():
    value = np.asarray(value)
    is_good = np.abs(value) <= _LARGEST_FLOAT  # and so is no NaN
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
      elif _LARGEST_FLOAT < abs(value[index]) < np.inf:
        wrong[-1] += ', too large for float32'
  if wrong:
    more = f', and {len(wrong) - 1} more arrays' if len(wrong) > 1 else ''
    raise UserError(
      f'{what} cannot be used: {wrong[0]}{more}: take another copy, or one from '
      'before the training diverged'
    )

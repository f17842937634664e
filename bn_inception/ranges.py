"""What each value of a config may be, in one table: `VALUES`.

Keys are 'section.key', as in configs/paper.py. What a name may be (a crop, a
nonlinearity) is known where the name is used, and checked there.
"""

import math
import numbers
from collections.abc import Mapping
from typing import NamedTuple

from bn_inception.errors import UserError
from bn_inception.machine import paths


class Number(NamedTuple):
  """A number within bounds.

  Attributes:
    low, high: the bounds, which belong to the range unless excluded.
    is_whole: whether only integers are allowed.
    excludes_low, excludes_high: whether that bound is outside.
  """

  low: float
  high: float
  is_whole: bool = False
  excludes_low: bool = False
  excludes_high: bool = False

  def __str__(self) -> str:
    kind = 'a whole number' if self.is_whole else 'a number'
    low = 'above' if self.excludes_low else 'of at least'
    high = 'below' if self.excludes_high else 'at most'
    return f'{kind} {low} {self.low:.10g} and {high} {self.high:.10g}'

  def problem(self, value) -> str | None:
    """What is wrong with a value, or None."""
    kind = numbers.Integral if self.is_whole else numbers.Real
    is_number = isinstance(value, kind) and not isinstance(value, bool)
    if is_number and math.isfinite(value):
      is_low = value <= self.low if self.excludes_low else value < self.low
      is_high = value >= self.high if self.excludes_high else value > self.high
      if not is_low and not is_high:
        return None
    return f'must be {self}, got {value!r}'


class Numbers(NamedTuple):
  """Several numbers, each in the same range.

  Attributes:
    each: the range.
    count: how many there must be; None: at least one.
    are_different: whether no two may be equal.
  """

  each: Number
  count: int | None = None
  are_different: bool = False

  def problem(self, values) -> str | None:
    """What is wrong with the values, or None."""
    if not isinstance(values, (list, tuple)) or not values:
      return f'must be one number or more, in brackets, got {values!r}'
    if self.count not in (None, len(values)):
      return f'must be {self.count} numbers, got {values!r}'
    for value in values:
      problem = self.each.problem(value)
      if problem:
        return f'{problem} in {values!r}'
    if self.are_different and len(set(values)) < len(values):
      return f'must be different numbers, got {values!r}'
    return None


class Kind(NamedTuple):
  """A value that is no number.

  Attributes:
    types: of the value.
    name: of these types, for a message.
  """

  types: tuple[type, ...]
  name: str

  def problem(self, value) -> str | None:
    """What is wrong with a value, or None."""
    if isinstance(value, self.types):
      return None
    return f'must be {self.name}, got {value!r}'


_MANY = 2**20
_INT32 = 2**31 - 1  # steps are counted on the devices
_SEED = 2**32 - 1  # JAX, without 64-bit mode, drops higher bits in silence
_SHARE = Number(0, 1)
_BELOW_1 = Number(0, 1, excludes_high=True)
_COUNT = Number(1, _MANY, is_whole=True)
_COUNT_OR_0 = Number(0, _MANY, is_whole=True)
_EVERY = Number(0, _INT32, is_whole=True)  # 0: see `TrainingOptions`
_FACTOR = Number(0, 100, excludes_low=True)
_PIXEL = Number(-1e6, 1e6)
_FLAG = Kind((bool,), 'True or False')
_TEXT = Kind((str,), 'a name')
_NAMES = Kind((list, tuple), 'names in brackets')
_PATH = Kind((str,), 'a path')

VALUES: dict[str, Number | Numbers | Kind] = {
  'name': _TEXT,
  'seed': Number(0, _SEED, is_whole=True),
  'architecture': _TEXT,
  'init_from': _PATH,
  'batch_size': _COUNT,
  'eval_batch_size': _COUNT,
  'norm_batch_size': _COUNT_OR_0,
  'source.dataset': _TEXT,
  'source.train_split': _TEXT,
  'source.eval_split': _TEXT,
  'source.keep_in_memory': _FLAG,
  'source.num_holdout': Number(0, _INT32, is_whole=True),
  'data.image_size': Number(1, 8192, is_whole=True),
  'data.shuffle': _TEXT,
  'data.num_shards': Number(1, _INT32, is_whole=True),
  'data.train_crop': _TEXT,
  'data.eval_crop': _TEXT,
  'data.mirror': _FLAG,
  'data.interpolation': _TEXT,
  'data.on_bad_image': _TEXT,
  'data.num_workers': Number(0, 1024, is_whole=True),
  'data.prefetch': Number(1, 1024, is_whole=True),
  'augment.photometric_strength': Number(0, 2),  # beyond, factors are negative
  'input_scaling.binary_threshold': Number(0, 255),
  'input_scaling.value_range': Numbers(_PIXEL, count=2, are_different=True),
  'input_scaling.mean': Numbers(_PIXEL),
  'input_scaling.std': Numbers(Number(1e-6, 1e6)),
  'input_scaling.channel_order': _TEXT,
  'model.stem': _TEXT,
  'model.stem_stride': Number(1, 8, is_whole=True),
  'model.width': Number(0, 100, excludes_low=True),
  'model.pool_projection_4cd': _COUNT,
  'model.use_batch_norm': _FLAG,
  'model.use_stem_batch_norm': _FLAG,
  'model.use_lrn': _FLAG,
  'model.nonlinearity': _TEXT,
  'model.dropout_rate': _BELOW_1,
  'model.epsilon': Number(1e-12, 1),  # float32 has no room for much less
  'model.statistics_decay': _SHARE,
  'model.use_scale': _FLAG,
  'model.per_activation_modules': _NAMES,
  'model.initial_scale': _FACTOR,
  'model.stride_padding': _TEXT,
  'model.average_includes_padding': _FLAG,
  'model.dtype': _TEXT,
  'model.remat': _FLAG,
  'model.hidden_sizes': Numbers(_COUNT),
  'model.initial_std': _FACTOR,
  'model.measured_unit': _COUNT_OR_0,
  'optimizer.learning_rate': Number(0, 1e6),
  'optimizer.learning_rate_per_32': _FLAG,
  'optimizer.momentum': _BELOW_1,
  'optimizer.nesterov': _FLAG,
  'optimizer.weight_decay': Number(0, 100),
  # Of 0 optax makes a constant rate; 1 is how to ask for one.
  'optimizer.decay_factor': Number(1e-6, 1),
  'optimizer.decay_epochs': Number(1e-6, 1e9),
  'optimizer.average_decay': _BELOW_1,
  'optimizer.accumulate_steps': _COUNT,
  'optimizer.schedule': _TEXT,
  'optimizer.warmup_epochs': Number(0, 1e9),
  'optimizer.max_gradient_norm': Number(0, 1e9),
  'training.num_epochs': Number(0, 1e6, excludes_low=True),
  'training.log_every_steps': _EVERY,
  'training.eval_every_steps': _EVERY,
  'training.checkpoint_every_steps': _EVERY,
  'training.keep_last_checkpoints': _COUNT,
  'training.keep_best_checkpoints': _COUNT_OR_0,
  'training.target_accuracy': Number(0, 100),
  'training.population_batches': _COUNT_OR_0,
}


def check_value(key: str, value, name: str | None = None) -> None:
  """Refuses a value that its key cannot have.

  Args:
    key: of `VALUES`, such as 'optimizer.momentum'.
    value: of a config, or from JSON.
    name: of the value in the message; None: the key.

  Raises:
    UserError: with the name and what it may be.
  """
  problem = VALUES[key].problem(value)
  if problem:
    raise UserError(f'{name or key} {problem}')


def check_section(section: str, values: Mapping[str, object]) -> None:
  """As `check_value`, of the keys of a section that are in `VALUES`."""
  for key, value in values.items():
    if f'{section}.{key}' in VALUES:
      check_value(f'{section}.{key}', value)


def expand_paths(config: dict) -> dict:
  """A config with its paths as `paths.expand` gives them.

  Args:
    config: the plain nested dict of configs/.

  Raises:
    UserError: as `paths.expand`; a value that is no path is let pass.
  """
  expanded = {
    key: paths.expand(value, f'--config.{key}')
    for key, value in config.items()
    if VALUES.get(key) is _PATH and isinstance(value, str)
  }
  return config | expanded


def check_config(config: dict) -> None:
  """Refuses a config with a value that makes no sense, or with unknown keys.

  Args:
    config: the plain nested dict of configs/.

  Raises:
    UserError: for the first value that its key cannot have, an unknown key, or
      keys that are missing.
  """
  given = _flat(config)
  for key, value in given.items():
    if key not in VALUES:
      section = key.rpartition('.')[0]
      known = [k for k in VALUES if k.rpartition('.')[0] == section] or VALUES
      raise UserError(
        f"the config's key {key} is unknown: use one of {', '.join(known)}"
      )
    check_value(key, value)
  # What an architecture does not have, or has a default for, may be absent.
  missing = {'model'} - config.keys()
  for key in VALUES.keys() - given.keys():
    section = key.partition('.')[0]
    if section != 'model':
      missing.add(key if section in config else section)
  if missing:
    raise UserError(f'the config lacks {", ".join(sorted(missing))}')


def _flat(config: dict) -> dict[str, object]:
  """{'section.key': value}; a value in the place of a section stays as it is."""
  flat = {}
  for key, value in config.items():
    if isinstance(value, dict):
      flat.update({f'{key}.{leaf}': item for leaf, item in value.items()})
    else:
      flat[key] = value
  return flat

"""`KEYS`, the table of config keys: allowed values, and what each key affects.

Keys are 'section.key', as in configs/paper.py. If a key accepts a name, such as that
of a crop or a nonlinearity, the code that uses the name checks it.
"""

import functools
import math
import numbers
from collections.abc import Mapping
from typing import Any, NamedTuple

from bn_inception.errors import UserError


class Number(NamedTuple):
  """A number within bounds.

  Attributes:
    low, high: the bounds, included unless excluded below.
    is_whole: whether only integers are allowed.
    excludes_low, excludes_high: whether the bound itself is not allowed.
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
    count: how many numbers; None: at least one.
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
  """A value that is not a number.

  Attributes:
    types: the allowed types.
    name: what messages call these types.
    may_be_empty: whether '' is allowed.
  """

  types: tuple[type, ...]
  name: str
  may_be_empty: bool = True

  def problem(self, value) -> str | None:
    """What is wrong with a value, or None."""
    if isinstance(value, self.types) and (value != '' or self.may_be_empty):
      return None
    return f'must be {self.name}, got {value!r}'


_MANY = 2**20
_INT32 = 2**31 - 1  # steps are counted on the devices
_SEED = 2**32 - 1  # without 64-bit mode, JAX silently drops higher bits
_SHARE = Number(0, 1)
_BELOW_1 = Number(0, 1, excludes_high=True)
_COUNT = Number(1, _MANY, is_whole=True)
_COUNT_OR_0 = Number(0, _MANY, is_whole=True)
_EVERY = Number(0, _INT32, is_whole=True)  # 0: see `TrainingOptions`
_FACTOR = Number(0, 100, excludes_low=True)
_PIXEL = Number(-1e6, 1e6)
_FLAG = Kind((bool,), 'True or False')
_TEXT = Kind((str,), 'a name', may_be_empty=False)
_TEXT_OR_EMPTY = Kind((str,), "a name or ''")
_NAMES = Kind((list, tuple), 'names in brackets')
PATH = Kind((str,), 'a path')


class Key(NamedTuple):
  """What a key accepts and affects.

  Attributes:
    allowed: the allowed values.
    may_change: whether it may change when a run resumes.
    changes_result: whether it can change a run's result; if so, the value is
      part of the run's identity.
    changes_function: whether it changes what the network computes from given
      weights; if so, `init_from` needs a checkpoint with the same value.
    legacy_value: for a key newer than the first committed runs, the value (as in
      JSON) that those runs used implicitly. None: those runs have the key.
  """

  allowed: Number | Numbers | Kind
  may_change: bool = False
  changes_result: bool = True
  changes_function: bool = False
  legacy_value: Any = None


# A run that trains longer, or logs and saves at other times, is the same experiment.
_resumable = functools.partial(Key, may_change=True)
_no_effect = functools.partial(_resumable, changes_result=False)
_function = functools.partial(Key, changes_function=True)

KEYS: dict[str, Key] = {
  'name': _no_effect(_TEXT),
  'seed': Key(Number(0, _SEED, is_whole=True)),
  'architecture': _function(_TEXT),
  'init_from': Key(PATH),
  'batch_size': Key(_COUNT),
  'eval_batch_size': _no_effect(_COUNT),
  'norm_batch_size': Key(_COUNT_OR_0),
  'source.dataset': Key(_TEXT),
  'source.train_split': Key(_TEXT),
  'source.eval_split': Key(_TEXT),
  'source.keep_in_memory': _no_effect(_FLAG),
  'source.num_holdout': Key(Number(0, _INT32, is_whole=True)),
  'data.image_size': Key(Number(1, 8192, is_whole=True)),
  'data.shuffle': Key(_TEXT),
  'data.num_shards': Key(Number(1, _INT32, is_whole=True)),
  'data.train_crop': Key(_TEXT),
  'data.eval_crop': Key(_TEXT),
  'data.mirror': Key(_FLAG),
  'data.interpolation': Key(_TEXT),
  'data.on_bad_image': _resumable(_TEXT),
  'data.num_workers': _no_effect(Number(0, 1024, is_whole=True)),
  'data.prefetch': _no_effect(Number(1, 1024, is_whole=True)),
  # Above 2, factors would be negative.
  'augment.photometric_strength': Key(Number(0, 2)),
  'input_scaling.binary_threshold': _function(Number(0, 255)),
  'input_scaling.value_range': _function(
    Numbers(_PIXEL, count=2, are_different=True)
  ),
  'input_scaling.mean': _function(Numbers(_PIXEL)),
  'input_scaling.std': _function(Numbers(Number(1e-6, 1e6))),
  'input_scaling.channel_order': _function(_TEXT),
  'model.stem': _function(_TEXT),
  'model.stem_stride': _function(Number(1, 8, is_whole=True)),
  'model.width': _function(Number(0, 100, excludes_low=True)),
  'model.pool_projection_4cd': _function(_COUNT),
  'model.use_batch_norm': _function(_FLAG),
  'model.use_stem_batch_norm': _function(_FLAG),
  'model.use_lrn': _function(_FLAG),
  'model.norm': _function(_TEXT_OR_EMPTY, legacy_value=''),
  'model.nonlinearity': _function(_TEXT),
  'model.dropout_rate': Key(_BELOW_1),
  # Much smaller values vanish in float32.
  'model.epsilon': _function(Number(1e-12, 1)),
  'model.statistics_decay': Key(_SHARE),
  'model.use_scale': _function(_FLAG),
  'model.per_activation_modules': _function(_NAMES),
  'model.initial_scale': Key(_FACTOR),
  'model.stride_padding': _function(_TEXT),
  'model.average_includes_padding': _function(_FLAG),
  'model.dtype': Key(_TEXT),
  'model.remat': Key(_FLAG),
  'model.hidden_sizes': _function(Numbers(_COUNT)),
  'model.initial_std': Key(_FACTOR),
  'model.measured_unit': Key(_COUNT_OR_0),
  'optimizer.learning_rate': Key(Number(0, 1e6)),
  'optimizer.learning_rate_per_32': Key(_FLAG),
  'optimizer.momentum': Key(_BELOW_1),
  'optimizer.nesterov': Key(_FLAG),
  'optimizer.weight_decay': Key(Number(0, 100)),
  # optax takes 0 as a constant rate; here 1 means that.
  'optimizer.decay_factor': Key(Number(1e-6, 1)),
  'optimizer.decay_epochs': Key(Number(1e-6, 1e9)),
  'optimizer.average_decay': Key(_BELOW_1),
  'optimizer.accumulate_steps': Key(_COUNT),
  'optimizer.schedule': Key(_TEXT, legacy_value='staircase'),
  'optimizer.warmup_epochs': Key(Number(0, 1e9), legacy_value=0.0),
  'optimizer.max_gradient_norm': Key(Number(0, 1e9), legacy_value=0.0),
  'optimizer.label_smoothing': Key(_BELOW_1, legacy_value=0.0),
  'training.num_epochs': _resumable(Number(0, 1e6, excludes_low=True)),
  'training.log_every_steps': _resumable(_EVERY),
  'training.eval_every_steps': _resumable(_EVERY),
  'training.checkpoint_every_steps': _resumable(_EVERY),
  'training.keep_last_checkpoints': _resumable(_COUNT),
  'training.keep_best_checkpoints': _resumable(_COUNT_OR_0),
  'training.target_accuracy': _resumable(Number(0, 100)),
  'training.population_batches': _resumable(_COUNT_OR_0),
}

# Keys of the model that every architecture has.
_OF_ALL_MODELS = 'model.use_batch_norm', 'model.dtype'


def may_change(key: str) -> bool:
  """Whether a run can resume with another value of a key; False for unknown keys."""
  return key in KEYS and KEYS[key].may_change


def add_missing(flat: Mapping[str, Any]) -> dict[str, Any]:
  """Adds the keys that are newer than a run, with the values that it implied."""
  newer = {
    name: key.legacy_value
    for name, key in KEYS.items()
    if key.legacy_value is not None
  }
  return {**newer, **flat}


def identity(flat: Mapping[str, Any]) -> dict[str, Any]:
  """The values that determine the result of a run.

  Args:
    flat: {'section.key': value}, as read from JSON.

  Returns:
    The part of `flat` whose keys change the result, without newer keys that have
    their `legacy_value`.
  """
  return {
    key: value
    for key, value in flat.items()
    if key not in KEYS
    or (KEYS[key].changes_result and value != KEYS[key].legacy_value)
  }


def network_identity(flat: Mapping[str, Any]) -> dict[str, Any]:
  """The values that determine what the network computes from given weights.

  Args:
    flat: as for `identity`.

  Returns:
    The part of `flat` whose keys change the function, without newer keys that have
    their `legacy_value`. Unknown keys of the model are included.
  """
  return {
    key: value
    for key, value in flat.items()
    if (
      KEYS[key].changes_function and value != KEYS[key].legacy_value
      if key in KEYS
      else key.startswith('model.')
    )
  }


def check_value(key: str, value, name: str | None = None) -> None:
  """Raises if a key does not allow a value.

  Args:
    key: a key of `KEYS`, such as 'optimizer.momentum'.
    value: from a config, or from JSON.
    name: what the message calls the value; None: the key.

  Raises:
    UserError: with the name and the allowed values.
  """
  problem = KEYS[key].allowed.problem(value)
  if problem:
    raise UserError(f'{name or key} {problem}')


def check_section(section: str, values: Mapping[str, object]) -> None:
  """Runs `check_value` on the keys of a section that are in `KEYS`."""
  for key, value in values.items():
    if f'{section}.{key}' in KEYS:
      check_value(f'{section}.{key}', value)


def check_config(config: dict) -> None:
  """Raises for impossible values, and for unknown or missing keys.

  Args:
    config: the plain nested dict of configs/.

  Raises:
    UserError: for the first impossible value, an unknown key, or missing keys;
      for anything but plain dicts.
  """
  if not isinstance(config, dict):
    raise UserError(f'the config must be a plain dict, {_got(config)}')
  for section, values in config.items():
    if hasattr(values, 'to_dict'):
      raise UserError(
        f"the config's section {section} must be a plain dict, {_got(values)}"
      )
  given = _flat(config)
  for key, value in given.items():
    if key not in KEYS:
      section = key.rpartition('.')[0]
      known = [k for k in KEYS if k.rpartition('.')[0] == section] or KEYS
      raise UserError(
        f'unknown config key {key}: use one of {", ".join(known)}'
      )
    check_value(key, value)
  # Each architecture has its own keys of `model`, so any of those may be missing.
  missing = {'model'} - config.keys()
  for key in KEYS.keys() - given.keys():
    section = key.partition('.')[0]
    if section != 'model' or key in _OF_ALL_MODELS:
      missing.add(key if section in config else section)
  if missing:
    raise UserError(f'the config lacks {", ".join(sorted(missing))}')


def _got(config) -> str:
  remedy = ': give config.to_dict()' if hasattr(config, 'to_dict') else ''
  return f'got a {type(config).__name__}{remedy}'


def _flat(config: dict) -> dict[str, object]:
  """{'section.key': value}; keys at the top level stay as they are."""
  flat = {}
  for key, value in config.items():
    if isinstance(value, dict):
      flat.update({f'{key}.{leaf}': item for leaf, item in value.items()})
    else:
      flat[key] = value
  return flat

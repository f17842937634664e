"""Files that torch.save wrote: the weights in them, and no code run."""

import argparse
import contextlib
import pickle
import re
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from bn_inception.errors import UserError, one_line

# As training scripts name the weights in what they save: averages before the rest,
# which is what is evaluated.
_KEYS = (
  'state_dict_ema', 'model_ema', 'ema_state_dict', 'ema',
  'state_dict', 'model_state_dict', 'model', 'net', 'network', 'module',
)  # fmt: skip
# Classes and functions, with the names that they have in files, which make values
# and do nothing else: arguments of the script, numbers of NumPy.
_HARMLESS = [
  argparse.Namespace,
  np.ndarray,
  np.dtype,
  *{type(np.dtype(code)) for code in np.typecodes['AllInteger'] + 'efd?'},
  *(
    (function, f'numpy.{core}.multiarray.{name}')
    for core in ('core', '_core')
    for name, function in (
      ('scalar', np._core.multiarray.scalar),
      ('_reconstruct', np._core.multiarray._reconstruct),
    )
  ),
]
_FIRST_WITH_NAMES = (2, 7)  # version of PyTorch; older ones take plain values


def read(path: str) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
  """The arrays by name in a file of torch.save.

  Args:
    path: of a state_dict, or a dictionary that has one at any depth.

  Returns:
    The arrays, floating ones in float32; and a line that says which were taken
    where there were several.

  Raises:
    UserError: if PyTorch is not installed, if the file is damaged or holds
      code, no weights, or several that could be meant; for tensors that are no
      plain arrays.
  """
  saved = _load(path)
  found = dict(_find_weights(saved))
  names = {place: '.'.join(place) for place in found}
  if not found:
    holds = ', '.join(map(str, saved)) if isinstance(saved, dict) else ''
    holds = holds[:100] or f'a {type(saved).__name__}'
    raise UserError(
      f'{path} has no arrays by name in it ({holds}): save the state_dict of the '
      'model'
    )
  chosen = next(iter(found)) if len(found) == 1 else _preferred(found)
  if chosen is None:
    raise UserError(
      f'{path} holds the weights of several things ({", ".join(names.values())}): '
      'save the state_dict of one alone'
    )
  remarks = ()
  if len(found) > 1:
    others = ', '.join(n for place, n in names.items() if place != chosen)
    remarks = (f'imported is {names[chosen]}, and not {others}',)
  arrays = {
    name: _as_array(value, name, path) for name, value in found[chosen].items()
  }
  return arrays, remarks


def _load(path: str) -> Any:
  """What torch.save saved, if it is made of tensors and plain values."""
  try:
    import torch
  except ModuleNotFoundError as error:
    raise UserError(
      f'{path} needs PyTorch to be read: pip install torch, or convert it to '
      'safetensors where PyTorch is'
    ) from error
  version = tuple(map(int, re.findall(r'\d+', torch.__version__)[:2]))
  allowed = contextlib.nullcontext()
  if version >= _FIRST_WITH_NAMES:
    allowed = torch.serialization.safe_globals(_HARMLESS)
  try:
    # Opened here, since torch.load goes by the suffix of a path.
    with allowed, open(path, 'rb') as file:
      # The pickle in it may otherwise run any code.
      return torch.load(file, map_location='cpu', weights_only=True)
  except pickle.UnpicklingError as error:
    found = re.search(r"(?:GLOBAL|class) '?([\w.]+)", str(error))
    if found is None:
      raise UserError(
        f'{path} is damaged: {one_line(error)}: download it again'
      ) from error
    raise UserError(
      f'{path} holds more than arrays ({found[1]}), which could run code and is '
      'not loaded: where it was made, save the state_dict() of the model alone'
    ) from error
  except Exception as error:  # a damaged pickle ends in any of them
    raise UserError(
      f'{path} is damaged or not whole ({one_line(error)}): download it again'
    ) from error


def _find_weights(saved: Any, place: tuple[str, ...] = ()) -> Iterator:
  """(place, arrays by name) for each such dictionary in nested ones."""
  if not isinstance(saved, dict):
    return
  if all(isinstance(name, str) and _is_number(v) for name, v in saved.items()):
    # Without any axis they are counts and rates, such as those of a scheduler.
    if any(np.ndim(value) for value in saved.values()):
      yield place, saved
    return
  for name, value in saved.items():
    if isinstance(name, str):  # an optimizer's state has numbers
      yield from _find_weights(value, (*place, name))


def _is_number(value: Any) -> bool:
  """Whether it is a tensor, an array or a number."""
  return hasattr(value, 'dtype') or isinstance(value, int | float)


def _preferred(places: Iterable[tuple[str, ...]]) -> tuple[str, ...] | None:
  for key in _KEYS:
    for place in places:
      if place and place[-1] == key:
        return place
  return None


def _as_array(value: Any, name: str, path: str) -> np.ndarray:
  """float32 of floating tensors: NumPy has no bfloat16."""
  if not hasattr(value, 'detach'):
    return np.asarray(value)
  try:
    value = value.detach()
    return (value.float() if value.is_floating_point() else value).numpy()
  except (RuntimeError, TypeError) as error:
    raise UserError(
      f'{path}: {name} is no plain tensor ({one_line(error)}): save dense float32 '
      'weights'
    ) from error

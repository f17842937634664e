"""Reads weights from files of torch.save without running code."""

import argparse
import contextlib
import pickle
import re
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from bn_inception.errors import UserError, one_line

# The keys under which training scripts save weights. Averages come first: those
# are evaluated.
_KEYS = (
  'state_dict_ema', 'model_ema', 'ema_state_dict', 'ema',
  'state_dict', 'model_state_dict', 'model', 'net', 'network', 'module',
)  # fmt: skip
# Classes and functions in a pickle that only make values: script arguments and
# NumPy numbers.
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
_FIRST_WITH_NAMES = (2, 7)  # PyTorch before it cannot allow more classes


def read(path: str) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
  """Reads the state_dict in a file of torch.save.

  Args:
    path: of a state_dict, or of a dictionary with one at any depth.

  Returns:
    The arrays by name, floating-point ones in float32; and, if there are several
    state_dicts, a line that names the one used.

  Raises:
    UserError: if PyTorch is not installed; if the file is damaged, or holds code,
      no weights, or several state_dicts to choose from; for tensors that are not
      dense arrays.
  """
  saved = _load(path)
  found = dict(_find_weights(saved))
  names = {place: '.'.join(place) for place in found}
  if not found:
    holds = ', '.join(map(str, saved)) if isinstance(saved, dict) else ''
    holds = holds[:100] or f'a {type(saved).__name__}'
    raise UserError(
      f'{path} holds no arrays by name ({holds}): save the state_dict of the '
      'model'
    )
  chosen = next(iter(found)) if len(found) == 1 else _preferred(found)
  if chosen is None:
    raise UserError(
      f'{path} holds several state_dicts ({", ".join(names.values())}): save only '
      'one'
    )
  remarks = ()
  if len(found) > 1:
    others = ', '.join(n for place, n in names.items() if place != chosen)
    remarks = (f'imported {names[chosen]}, not {others}',)
  arrays = {
    name: _as_array(value, name, path) for name, value in found[chosen].items()
  }
  return arrays, remarks


def _load(path: str) -> Any:
  """What torch.save saved: tensors and plain values, or a UserError."""
  try:
    import torch
  except ModuleNotFoundError as error:
    raise UserError(
      f'{path} is a file of PyTorch, which needs PyTorch: pip install torch, or '
      'convert it to safetensors on a machine that has it'
    ) from error
  version = tuple(map(int, re.findall(r'\d+', torch.__version__)[:2]))
  allowed = contextlib.nullcontext()
  if version >= _FIRST_WITH_NAMES:
    allowed = torch.serialization.safe_globals(_HARMLESS)
  try:
    # Opened here: torch.load would look at the suffix of a path.
    with allowed, open(path, 'rb') as file:
      # weights_only: the pickle could run any code.
      return torch.load(file, map_location='cpu', weights_only=True)
  except pickle.UnpicklingError as error:
    found = re.search(r"(?:GLOBAL|class) '?([\w.]+)", str(error))
    if found is None:
      raise UserError(
        f'{path} is damaged: {one_line(error)}: download it again'
      ) from error
    raise UserError(
      f'{path} holds more than arrays ({found[1]}), which could run code, so it '
      'is not loaded: save only the state_dict() of the model'
    ) from error
  except Exception as error:  # a damaged pickle may raise anything
    raise UserError(
      f'{path} is damaged or incomplete ({one_line(error)}): download it again'
    ) from error


def _find_weights(saved: Any, place: tuple[str, ...] = ()) -> Iterator:
  """(keys, arrays by name) of every state_dict in nested dictionaries."""
  if not isinstance(saved, dict):
    return
  if all(isinstance(name, str) and _is_number(v) for name, v in saved.items()):
    # Scalars only: the counts and rates of something like a scheduler.
    if any(np.ndim(value) for value in saved.values()):
      yield place, saved
    return
  for name, value in saved.items():
    if isinstance(name, str):  # the state of an optimizer has integers
      yield from _find_weights(value, (*place, name))


def _is_number(value: Any) -> bool:
  """Whether `value` is a tensor, an array or a number."""
  return hasattr(value, 'dtype') or isinstance(value, int | float)


def _preferred(places: Iterable[tuple[str, ...]]) -> tuple[str, ...] | None:
  for key in _KEYS:
    for place in places:
      if place and place[-1] == key:
        return place
  return None


def _as_array(value: Any, name: str, path: str) -> np.ndarray:
  """NumPy array; floating-point tensors as float32 (NumPy has no bfloat16)."""
  if not hasattr(value, 'detach'):
    return np.asarray(value)
  try:
    value = value.detach()
    return (value.float() if value.is_floating_point() else value).numpy()
  except (RuntimeError, TypeError) as error:
    raise UserError(
      f'{path}: {name} is not a dense tensor ({one_line(error)}): save dense '
      'float32 weights'
    ) from error

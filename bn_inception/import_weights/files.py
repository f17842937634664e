"""Files of named arrays: safetensors, PyTorch's .pth, TensorFlow's checkpoints.

PyTorch and TensorFlow are needed for their own files only.
"""

import os
import pickle
import re

import numpy as np
import safetensors
import safetensors.numpy

from bn_inception.errors import UserError


def read(path: str) -> tuple[dict[str, np.ndarray], dict[str, str]]:
  """The arrays of a file by name, and what was noted beside them.

  Args:
    path: NAME.safetensors; NAME.pth or NAME.pt, a state_dict of PyTorch; or a
      checkpoint of TensorFlow, as its whole file or the prefix of its files.

  Raises:
    UserError: if there is no such file, if it is damaged, if it holds anything
      but arrays, or if the library that reads it is not installed.
  """
  is_there = os.path.isfile(path) or os.path.isfile(f'{path}.index')
  if not is_there:
    raise UserError(f'{path} does not exist: give a file of weights')
  if path.endswith('.safetensors'):
    return _read_safetensors(path)
  if path.endswith(('.pth', '.pt')):
    return _read_pytorch(path), {}
  return _read_tensorflow(path), {}


def write_safetensors(
  path: str, arrays: dict[str, np.ndarray], notes: dict[str, str]
) -> None:
  """Writes arrays and notes, or nothing.

  Raises:
    UserError: if the file cannot be written.
  """
  try:
    with open(path + '.tmp', 'wb') as file:
      file.write(safetensors.numpy.save(arrays, metadata=notes))
    os.replace(path + '.tmp', path)
  except OSError as error:
    raise UserError(
      f'{path} cannot be written ({error.strerror}): give another --to'
    ) from error


def _read_safetensors(path: str):
  try:
    with safetensors.safe_open(path, 'numpy') as file:
      arrays = {name: file.get_tensor(name) for name in file.keys()}
      return arrays, file.metadata() or {}
  except (safetensors.SafetensorError, TypeError, OSError) as error:
    raise UserError(f'{path} cannot be read: {_one_line(error)}') from error


def _read_pytorch(path: str) -> dict[str, np.ndarray]:
  try:
    import torch
  except ModuleNotFoundError as error:
    raise UserError(
      f'{path} needs PyTorch to be read: pip install torch, or convert it to '
      'safetensors where PyTorch is'
    ) from error
  try:
    # The pickle in it may otherwise run any code.
    state = torch.load(path, map_location='cpu', weights_only=True)
  except pickle.UnpicklingError as error:
    raise UserError(
      f'{path} is damaged, or holds more than arrays, which could run code and '
      'is not loaded: save its state_dict alone'
    ) from error
  except (RuntimeError, EOFError, OSError, ValueError) as error:
    raise UserError(f'{path} cannot be read: {_one_line(error)}') from error
  if isinstance(state, dict) and isinstance(state.get('state_dict'), dict):
    state = state['state_dict']  # as training scripts save it
  if not isinstance(state, dict) or not all(
    isinstance(value, torch.Tensor) for value in state.values()
  ):
    raise UserError(
      f'{path} holds something else than arrays by name: save the state_dict '
      'of the model alone'
    )
  return {
    name: (value.float() if value.is_floating_point() else value).numpy()
    for name, value in state.items()
  }


def _read_tensorflow(path: str) -> dict[str, np.ndarray]:
  try:
    import tensorflow as tf
  except ModuleNotFoundError as error:
    raise UserError(
      f'{path}, as a checkpoint of TensorFlow, needs that to be read: pip '
      'install tensorflow; other files are NAME.safetensors and NAME.pth'
    ) from error
  try:
    reader = tf.train.load_checkpoint(path)
    return {
      name: np.asarray(reader.get_tensor(name))
      for name in reader.get_variable_to_shape_map()
    }
  except (tf.errors.OpError, ValueError, RuntimeError) as error:
    raise UserError(
      f'{path} cannot be read as a checkpoint of TensorFlow: {_one_line(error)}'
    ) from error


def _one_line(error: Exception) -> str:
  return re.sub(r'\s+', ' ', str(error))[:200] or type(error).__name__

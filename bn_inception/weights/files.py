"""Files of named arrays: safetensors, what torch.save writes, TensorFlow's checkpoints.

PyTorch and TensorFlow are needed for their own files only.
"""

import os
import re
from typing import NamedTuple

import numpy as np
import safetensors
import safetensors.numpy

from bn_inception.errors import UserError, one_line
from bn_inception.weights import formats, pytorch_files


class Contents(NamedTuple):
  """What a file holds.

  Attributes:
    arrays: by name.
    notes: beside them, in safetensors.
    remarks: lines on what was taken of the file, where that was a choice.
  """

  arrays: dict[str, np.ndarray]
  notes: dict[str, str]
  remarks: tuple[str, ...]


def read(path: str) -> Contents:
  """The arrays of a file by name; its content says what kind of file it is.

  Args:
    path: of safetensors; of what torch.save wrote, a state_dict or a dictionary
      with one in it; or of a checkpoint of TensorFlow: its whole file, the prefix of
      its files, or one of these.

  Raises:
    UserError: if there is no such file, if it is damaged or holds no arrays by
      name, if it holds code, or if the library that reads it is not installed.
  """
  prefix = re.sub(r'\.(index|meta|data-\d{5}-of-\d{5})$', '', path)
  if not os.path.isfile(prefix) and os.path.isfile(f'{prefix}.index'):
    return Contents(_read_tensorflow(prefix), {}, ())
  if os.path.isdir(path):
    raise UserError(
      f'{path} is a folder: give the file of weights in it, or the prefix of the '
      'files of a checkpoint of TensorFlow'
    )
  if not os.path.exists(path):
    raise UserError(f'{path} does not exist: give a file of weights')
  kind = formats.find_format(path)
  if kind == formats.SAFETENSORS:
    return Contents(*_read_safetensors(path), ())
  if kind == formats.PYTORCH:
    arrays, remarks = pytorch_files.read(path)
    return Contents(arrays, {}, remarks)
  return Contents(_read_tensorflow(path), {}, ())


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
    raise UserError(
      f'{path} cannot be read: {one_line(error)}: download it again'
    ) from error


def _read_tensorflow(path: str) -> dict[str, np.ndarray]:
  try:
    import tensorflow as tf
  except ModuleNotFoundError as error:
    raise UserError(
      f'{path}, as a checkpoint of TensorFlow, needs that to be read: pip '
      'install tensorflow'
    ) from error
  try:
    reader = tf.train.load_checkpoint(path)
    return {
      name: np.asarray(reader.get_tensor(name))
      for name in reader.get_variable_to_shape_map()
    }
  except (tf.errors.OpError, ValueError, RuntimeError) as error:
    raise UserError(
      f'{path} cannot be read as a checkpoint of TensorFlow: {one_line(error)}: '
      'download all of its files again'
    ) from error

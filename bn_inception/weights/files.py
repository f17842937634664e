"""Reads named arrays from safetensors, PyTorch's files and TensorFlow checkpoints.

The content decides which of them a file is, not its name. PyTorch and
TensorFlow are needed only for their own files.
"""

import os
import re
import zipfile
from typing import NamedTuple

import numpy as np
import safetensors
import safetensors.numpy

from bn_inception.errors import UserError, one_line, replacing
from bn_inception.weights import pytorch_files


class Contents(NamedTuple):
  """The contents of a file.

  Attributes:
    arrays: by name.
    notes: the metadata of safetensors.
    remarks: a line about the choice among several sets of weights.
  """

  arrays: dict[str, np.ndarray]
  notes: dict[str, str]
  remarks: tuple[str, ...]


def read(path: str) -> Contents:
  """Reads the arrays of a file.

  Args:
    path: of safetensors; of a state_dict written by torch.save, alone or within
      a dictionary; or of a TensorFlow checkpoint: its single file, the prefix of
      its files, or one of these files.

  Raises:
    UserError: if the file does not exist, is damaged, holds no named arrays or
      holds code, or if the library to read it is not installed.
  """
  prefix = re.sub(r'\.(index|meta|data-\d{5}-of-\d{5})$', '', path)
  if not os.path.isfile(prefix) and os.path.isfile(f'{prefix}.index'):
    return Contents(_read_tensorflow(prefix), {}, ())
  if os.path.isdir(path):
    raise UserError(
      f'{path} is a folder: give the file of weights in it, or the prefix of the '
      'files of a TensorFlow checkpoint'
    )
  if not os.path.exists(path):
    raise UserError(f'{path} does not exist: give a file of weights')
  kind = find_format(path)
  if kind == SAFETENSORS:
    return Contents(*_read_safetensors(path), ())
  if kind == PYTORCH:
    arrays, remarks = pytorch_files.read(path)
    return Contents(arrays, {}, remarks)
  return Contents(_read_tensorflow(path), {}, ())


def write_safetensors(
  path: str, arrays: dict[str, np.ndarray], notes: dict[str, str]
) -> None:
  """Writes the file, or leaves an old one untouched if that fails.

  Raises:
    UserError: if the file cannot be written.
  """
  with replacing(path, 'wb', 'give another --to') as file:
    file.write(safetensors.numpy.save(arrays, metadata=notes))


def _read_safetensors(path: str):
  try:
    with safetensors.safe_open(path, 'numpy') as file:
      arrays = {name: file.get_tensor(name) for name in file.keys()}
      return arrays, file.metadata() or {}
  except (safetensors.SafetensorError, TypeError, OSError) as error:
    raise UserError(
      f'{path} cannot be read: {one_line(error)}: {_AGAIN}'
    ) from error


def _read_tensorflow(path: str) -> dict[str, np.ndarray]:
  try:
    import tensorflow as tf
  except ModuleNotFoundError as error:
    raise UserError(
      f'{path} is a TensorFlow checkpoint, which needs TensorFlow: pip install '
      'tensorflow'
    ) from error
  try:
    reader = tf.train.load_checkpoint(path)
    return {
      name: np.asarray(reader.get_tensor(name))
      for name in reader.get_variable_to_shape_map()
    }
  except (tf.errors.OpError, ValueError, RuntimeError) as error:
    raise UserError(
      f'{path} cannot be read as a TensorFlow checkpoint: {one_line(error)}: '
      'download all of its files again'
    ) from error


# ---- formats ----

SAFETENSORS, PYTORCH, TENSORFLOW = 'safetensors', 'pytorch', 'tensorflow'

_LARGEST_SAFETENSORS_HEADER = 100_000_000  # bytes, by the specification
# In the pickle that torch.save wrote before PyTorch 1.6.
_PYTORCH_MAGIC = b'\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19'
_TENSORFLOW_END = b'\x57\xfb\x80\x8b\x24\x75\x47\xdb'  # of its last table

_AGAIN = 'download it again'
_CONVERT = 'convert it to safetensors'
_UNPACK = 'unpack it and give the file of weights in it'
_WEB_PAGE = (
  'is a web page, not weights',
  f'{_AGAIN}, with a browser if the site asks a question first',
)
_OTHERS = (  # by their first bytes, in lower case
  (b'version https://git-lfs', 'is a Git LFS pointer', 'run git lfs pull'),
  (b'<!doctype', *_WEB_PAGE),
  (b'<html', *_WEB_PAGE),
  (b'<?xml', *_WEB_PAGE),
  (b'{', 'is text (JSON)', 'give the file of weights itself'),
  (b'\x89hdf\r\n', 'is HDF5, the format of Keras', _CONVERT),
  (b'\x93numpy', 'is a single NumPy array', _CONVERT),
  (b'\x1f\x8b', 'is compressed by gzip', _UNPACK),
  (b'bzh', 'is compressed by bzip2', _UNPACK),
  (b'\xfd7zxz', 'is compressed by xz', _UNPACK),
  (b'\x28\xb5\x2f\xfd', 'is compressed by zstd', _UNPACK),
)


def find_format(path: str) -> str:
  """SAFETENSORS, PYTORCH, or TENSORFLOW for its older single-file checkpoints.

  Raises:
    UserError: if the file cannot be read or has another format; says which and
      what to do.
  """
  try:
    with open(path, 'rb') as file:
      start = file.read(512)
      size = file.seek(0, os.SEEK_END)
      file.seek(max(0, size - len(_TENSORFLOW_END)))
      end = file.read()
  except OSError as error:
    raise UserError(
      f'{path} cannot be read ({error.strerror}): give a file of weights'
    ) from error
  if not start:
    raise UserError(f'{path} is empty: {_AGAIN}')
  header_size = int.from_bytes(start[:8], 'little')
  if start[8:9] == b'{' and header_size <= _LARGEST_SAFETENSORS_HEADER:
    return SAFETENSORS
  if start.startswith(b'PK\3\4'):
    return _check_zip(path)
  if start.startswith(b'\x80') and _PYTORCH_MAGIC in start[:32]:
    return PYTORCH
  if end == _TENSORFLOW_END:
    return TENSORFLOW
  what, remedy = _describe_other(start)
  raise UserError(f'{path} {what}: {remedy}')


def _check_zip(path: str) -> str:
  """PYTORCH if torch.save wrote the archive; else a UserError."""
  try:
    with zipfile.ZipFile(path) as archive:
      names = {name.rpartition('/')[2] for name in archive.namelist()}
  except (
    zipfile.BadZipFile,
    OSError,
    ValueError,
    NotImplementedError,
  ) as error:
    raise UserError(
      f'{path} is damaged or incomplete ({error}): {_AGAIN}'
    ) from error
  if 'constants.pkl' in names:
    raise UserError(
      f'{path} is TorchScript, which is a program and is not loaded: load it with '
      'torch.jit.load and save its state_dict()'
    )
  if 'data.pkl' in names:
    return PYTORCH
  is_numpy = all(name.endswith('.npy') for name in names)
  what = 'a NumPy .npz' if is_numpy else "a zip archive, but not torch.save's"
  raise UserError(f'{path} is {what}: {_CONVERT if is_numpy else _UNPACK}')


def _describe_other(start: bytes) -> tuple[str, str]:
  """What a file with these first bytes is, and what to do."""
  text = start.lstrip().lower()
  for magic, what, remedy in _OTHERS:
    if text.startswith(magic):
      return what, remedy
  if start[257:262] == b'ustar':
    return 'is a tar archive', _UNPACK
  if start.startswith(b'\x80'):
    return 'is a pickle, which could run code, so it is not loaded', _CONVERT
  return (
    'is damaged, or not safetensors, a file of torch.save or a TensorFlow '
    f'checkpoint (it begins with {start[:16]!r})',
    f'{_AGAIN}, or {_CONVERT}',
  )

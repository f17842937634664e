"""Which format a file of weights has: told by its content, whatever its name."""

import os
import zipfile

from bn_inception.errors import UserError

SAFETENSORS, PYTORCH, TENSORFLOW = 'safetensors', 'pytorch', 'tensorflow'

_LARGEST_SAFETENSORS_HEADER = 100_000_000  # bytes, by its specification
# torch.save before 1.6: a pickle that starts with this number.
_PYTORCH_MAGIC = b'\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19'
_TENSORFLOW_END = b'\x57\xfb\x80\x8b\x24\x75\x47\xdb'  # of a table

_AGAIN = 'download it again'
_CONVERT = 'convert it to safetensors'
_UNPACK = 'unpack it and give the file of weights in it'
_WEB_PAGE = (
  'is a web page and no weights',
  f'{_AGAIN}, in a browser if its site asks something first',
)
_OTHERS = (  # by how they begin, in lower case
  (b'version https://git-lfs', 'is a pointer of Git LFS', 'run git lfs pull'),
  (b'<!doctype', *_WEB_PAGE),
  (b'<html', *_WEB_PAGE),
  (b'<?xml', *_WEB_PAGE),
  (b'{', 'is text (JSON)', 'give the file of weights itself'),
  (b'\x89hdf\r\n', 'is HDF5, as Keras writes it', _CONVERT),
  (b'\x93numpy', 'is a single array of NumPy', _CONVERT),
  (b'\x1f\x8b', 'is compressed by gzip', _UNPACK),
  (b'bzh', 'is compressed by bzip2', _UNPACK),
  (b'\xfd7zxz', 'is compressed by xz', _UNPACK),
  (b'\x28\xb5\x2f\xfd', 'is compressed by zstd', _UNPACK),
)


def find_format(path: str) -> str:
  """SAFETENSORS, PYTORCH, or TENSORFLOW for its older checkpoints of one file.

  Args:
    path: of a file.

  Raises:
    UserError: with what the file is instead and what to do, or if it cannot be
      read.
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
      f'{path} is damaged or not whole ({error}): {_AGAIN}'
    ) from error
  if 'constants.pkl' in names:
    raise UserError(
      f'{path} is TorchScript, a program, and is not loaded: save the '
      'state_dict() of what torch.jit.load makes of it'
    )
  if 'data.pkl' in names:
    return PYTORCH
  is_numpy = all(name.endswith('.npy') for name in names)
  what = (
    'a .npz of NumPy' if is_numpy else "a zip archive, and not torch.save's"
  )
  raise UserError(f'{path} is {what}: {_CONVERT if is_numpy else _UNPACK}')


def _describe_other(start: bytes) -> tuple[str, str]:
  """What a file is that begins so, and what to do."""
  text = start.lstrip().lower()
  for magic, what, remedy in _OTHERS:
    if text.startswith(magic):
      return what, remedy
  if start[257:262] == b'ustar':
    return 'is a tar archive', _UNPACK
  if start.startswith(b'\x80'):
    return 'is a pickle, which could run code and is not loaded', _CONVERT
  return (
    'is damaged or of another format than safetensors, torch.save and '
    f'checkpoints of TensorFlow (it begins with {start[:16]!r})',
    f'{_AGAIN}, or {_CONVERT}',
  )

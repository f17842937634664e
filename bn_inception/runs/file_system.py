"""Whether a folder can hold checkpoints; asked before anything is trained."""

import os
import shutil

import tensorstore

from bn_inception.errors import UserError


def check_path(path: str) -> None:
  """Raises for a path that TensorStore would misread.

  Args:
    path: of a checkpoint, or any folder above it; need not exist.

  Raises:
    UserError: if TensorStore, which stores the arrays, would take the path for
      another one, or refuse it.
  """
  place = os.path.join(os.path.abspath(path), '')
  try:
    spec = tensorstore.KvStore.Spec({'driver': 'file', 'path': place})
    # Orbax takes 'gs:/' anywhere in a path for a bucket.
    is_literal = spec.to_json()['path'] == place and 'gs:/' not in place
  except (ValueError, RuntimeError):  # RuntimeError: not UTF-8
    is_literal = False
  if not is_literal:
    raise UserError(
      f'{path!r} cannot hold checkpoints: TensorStore takes no path with a '
      "backslash, with bytes that are not UTF-8, or with '.__lock' or 'gs:' at "
      'the end of a name: rename the folder, or give another'
    )


def check_file_system(folder: str) -> None:
  """Raises if Orbax could not write a checkpoint into a folder.

  Some network drives lack an operation that Orbax needs. Tries each of them with
  a small file in a temporary folder.

  Args:
    folder: exists; no other process uses it.

  Raises:
    UserError: with the operation that failed.
  """
  trial = os.path.join(folder, '.trial')
  # As long as the paths of a checkpoint's files.
  begun, ended = (
    os.path.join(trial, name.ljust(120, '.')) for name in ('begun', 'ended')
  )
  operation = 'remove a folder'
  try:
    if os.path.exists(trial):  # left by a killed process
      shutil.rmtree(trial)
    operation = 'make a folder'
    os.makedirs(begun)
    operation = 'write and sync a file'
    for name in 'old', 'new':
      with open(os.path.join(begun, name), 'w') as file:
        file.write(name)
        file.flush()
        os.fsync(file.fileno())
    operation = 'replace a file'
    os.replace(os.path.join(begun, 'new'), os.path.join(begun, 'old'))
    operation = 'sync a folder'
    descriptor = os.open(begun, os.O_RDONLY | os.O_DIRECTORY)
    try:
      os.fsync(descriptor)
    finally:
      os.close(descriptor)
    operation = 'rename a folder'
    os.rename(begun, ended)
    operation = 'remove a folder'
    shutil.rmtree(trial)
  except OSError as error:
    shutil.rmtree(trial, ignore_errors=True)
    raise UserError(
      f'{folder} cannot hold checkpoints: cannot {operation} there '
      f'({error.strerror}): fix the folder, or give another --workdir'
    ) from error

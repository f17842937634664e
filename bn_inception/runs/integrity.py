"""Seals a folder with the SHA-256 of its files, in sha256.json.

Neither disks and file systems nor Orbax notice a flipped bit: Orbax restores an
array with other numbers without an error.
"""

import functools
import hashlib
import json
import os

from bn_inception.wording import count

MANIFEST_FILE = 'sha256.json'


def seal(folder: str) -> None:
  """Writes size and SHA-256 of every file in a complete folder, atomically.

  Raises:
    OSError: if a file cannot be read, or sha256.json cannot be written.
  """
  files = {
    name: {'bytes': size, 'sha256': _digest(os.path.join(folder, name))}
    for name, size, _ in _list_files(folder)
    if name != MANIFEST_FILE
  }
  path = os.path.join(folder, MANIFEST_FILE)
  with open(path + '.tmp', 'w') as file:
    file.write(json.dumps(files, indent=1) + '\n')
  os.replace(path + '.tmp', path)


def is_sealed(folder: str) -> bool:
  """Whether `seal` has finished in this folder."""
  return os.path.exists(os.path.join(folder, MANIFEST_FILE))


def find_damage(folder: str) -> str | None:
  """The damage of the first bad file in a sealed folder; None if intact.

  Added files are not damage. The result is cached until a file's size or time
  changes.
  """
  return _find_damage(folder, _list_files(folder))


@functools.cache
def _find_damage(folder: str, files: tuple[tuple[str, int, int], ...]):
  sizes = {name: size for name, size, _ in files}
  try:
    with open(os.path.join(folder, MANIFEST_FILE)) as file:
      written = [
        (name, values['bytes'], values['sha256'])
        for name, values in json.load(file).items()
      ]
  except OSError as error:
    return f'{MANIFEST_FILE} cannot be read ({error.strerror})'
  # Not text, not JSON, or JSON of another form.
  except (ValueError, AttributeError, KeyError, TypeError):
    return f'{MANIFEST_FILE} is damaged'
  for name, size, digest in written:
    if name not in sizes:
      return f'{name} is missing'
    if sizes[name] != size:
      return f'{name} has {count(sizes[name], "byte", form="")}, not {size}'
    try:
      if _digest(os.path.join(folder, name)) != digest:
        return f'{name} has changed since it was written'
    except OSError as error:
      return f'{name} cannot be read ({error.strerror})'
  return None


def _digest(path: str) -> str:
  with open(path, 'rb') as file:
    return hashlib.file_digest(file, 'sha256').hexdigest()


def _list_files(folder: str) -> tuple[tuple[str, int, int], ...]:
  """(relative path, bytes, time of change) of every file below a folder."""
  found = []
  for root, _, names in os.walk(folder):
    for name in names:
      path = os.path.join(root, name)
      try:
        stat = os.stat(path)
      except FileNotFoundError:  # removed by a running training
        continue
      relative = os.path.relpath(path, folder)
      found.append((relative, stat.st_size, stat.st_mtime_ns))
  return tuple(sorted(found))

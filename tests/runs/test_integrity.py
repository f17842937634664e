"""A sealed folder: every kind of damage to every file is found and named."""

import json
import os
import pathlib
import shutil

import pytest

from bn_inception.runs import integrity

FILES = {'a': b'0123456789', 'inner/b': bytes(range(256)), 'inner/c/d': b''}


@pytest.fixture
def folder(tmp_path):
  for name, content in FILES.items():
    path = tmp_path / 'sealed' / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
  integrity.seal(str(tmp_path / 'sealed'))
  return tmp_path / 'sealed'


def test_the_seal_has_sizes_and_digests_and_a_copy_is_as_good(folder):
  found = json.loads((folder / 'sha256.json').read_text())
  assert found['a'] == {
    'bytes': 10,
    # sha256sum of 0123456789
    'sha256': '84d89877f0d4041efb6bf91a16f0248f2fd573e6af05c19f96bedb9f882f7882',
  }
  assert sorted(found) == sorted(FILES)
  assert sorted(os.listdir(folder)) == ['a', 'inner', 'sha256.json']
  assert integrity.find_damage(str(folder)) is None
  copy = shutil.copytree(folder, folder.parent / 'copy')
  assert integrity.find_damage(str(copy)) is None
  (copy / 'added').write_bytes(b'x')
  assert integrity.find_damage(str(copy)) is None


@pytest.mark.parametrize(
  'damage, message',
  [
    (pathlib.Path.unlink, 'inner/b is missing'),
    (lambda path: os.truncate(path, 255), 'inner/b has 255 bytes, not 256'),
    (lambda path: os.truncate(path, 0), 'inner/b has 0 bytes, not 256'),
    (
      lambda path: path.write_bytes(bytes(257)),
      'inner/b has 257 bytes, not 256',
    ),
    (
      lambda path: path.write_bytes(bytes(256)),
      'inner/b has changed since it was written',
    ),
    (
      lambda path: (path.unlink(), path.mkdir()),
      'inner/b is missing',
    ),
  ],
)
def test_damage_is_named(folder, damage, message):
  damage(folder / 'inner' / 'b')
  assert integrity.find_damage(str(folder)) == message


def test_every_single_bit_counts(folder):
  path = folder / 'a'
  for index in range(10):
    for bit in range(8):
      changed = bytearray(FILES['a'])
      changed[index] ^= 1 << bit
      path.write_bytes(changed)
      os.utime(path, ns=(0, 8 * index + bit))  # the clock may be too coarse
      found = integrity.find_damage(str(folder))
      assert found == 'a has changed since it was written'


def test_a_damaged_seal_is_damage(folder):
  path = folder / 'sha256.json'
  whole = path.read_bytes()
  for index in range(len(whole)):
    changed = bytearray(whole)
    changed[index] ^= 0x80
    path.write_bytes(changed)
    os.utime(path, ns=(0, index))
    assert integrity.find_damage(str(folder)) == 'sha256.json is damaged'
  for content in b'', b'[]', b'{"a": 1}', b'{"a": {"bytes": 10}}':
    path.write_bytes(content)
    assert integrity.find_damage(str(folder)) == 'sha256.json is damaged'
  path.unlink()
  assert not integrity.is_sealed(str(folder))


def test_an_unchanged_folder_is_read_once(folder, monkeypatch):
  read, original = [], integrity._digest

  def digest(path):
    read.append(path)
    return original(path)

  monkeypatch.setattr(integrity, '_digest', digest)
  for _ in range(3):
    assert integrity.find_damage(str(folder)) is None
  assert len(read) == 3
  (folder / 'a').write_bytes(b'012345678x')
  os.utime(folder / 'a', ns=(0, 0))
  assert integrity.find_damage(str(folder)).startswith('a has changed')

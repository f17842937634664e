"""JSON files: damage is named, and only strict JSON is written."""

import subprocess
import sys

import pytest

from bn_inception.errors import UserError
from bn_inception.runs import json_files


def test_damaged_files_are_named(tmp_path):
  with pytest.raises(UserError, match='x.json does not exist'):
    json_files.read_json(str(tmp_path / 'x.json'))
  for content in b'{"a": ', b'\xff\xfe\x00', b'[]', b'null':
    (tmp_path / 'x.json').write_bytes(content)
    with pytest.raises(UserError, match='x.json is damaged'):
      json_files.read_json(str(tmp_path / 'x.json'))


def test_results_are_strict_json(tmp_path):
  with pytest.raises(ValueError, match='not JSON compliant'):
    json_files.write_json(str(tmp_path / 'x.json'), {'loss': float('nan')})
  assert not list(tmp_path.iterdir())


def test_whoever_writes_json_needs_no_jax():
  program = (
    'import sys; import bn_inception.runs.json_files; '
    'assert "jax" not in sys.modules'
  )
  subprocess.run([sys.executable, '-c', program], check=True)

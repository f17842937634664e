"""Building the native convolutions: what is missing is named."""

import os
import pathlib
import subprocess
import sys

import pytest

from bn_inception.errors import UserError
from bn_inception.kernels import native
from bn_inception.kernels.native import __main__ as program


@pytest.fixture
def prefix(tmp_path, monkeypatch):
  """An environment with a header that might be oneDNN's, and no library."""
  (tmp_path / 'include').mkdir()
  (tmp_path / 'include' / 'dnnl.hpp').touch()
  (tmp_path / 'lib').mkdir()
  library = tmp_path / 'lib' / 'convolution.so'
  monkeypatch.setattr(program, 'PREFIX', tmp_path)
  for module in native, program:
    monkeypatch.setattr(module, 'LIBRARY', library)
  return tmp_path


def test_without_the_library_there_are_none(prefix):
  assert native.load.__wrapped__() is False


def test_a_library_that_cannot_be_loaded_is_named(prefix):
  native.LIBRARY.write_text('not a library')
  with pytest.raises(UserError, match='cannot be loaded .*build them again'):
    native.load.__wrapped__()


def test_the_program_ends_in_one_line(tmp_path):
  environment = {
    **os.environ,
    'CXX': 'no-such-compiler',
    'JAX_PLATFORMS': 'cpu',
  }
  done = subprocess.run(
    [sys.executable, '-m', 'bn_inception.kernels.native'],
    cwd=pathlib.Path(__file__).parents[2], env=environment,
    capture_output=True, text=True,
  )  # fmt: skip
  assert done.returncode == 2 and done.stderr.count('\n') == 1
  assert done.stderr.startswith('error: ')


def test_a_run_says_whose_convolutions_it_uses(monkeypatch):
  for is_there, beginning in ((False, "XLA's; python -m "), (True, "oneDNN's")):
    monkeypatch.setattr(native, 'load', lambda found=is_there: found)
    assert native.describe().startswith(beginning)


def test_onednn_that_is_missing_is_named(prefix):
  (prefix / 'include' / 'dnnl.hpp').unlink()
  with pytest.raises(UserError, match='oneDNN is not in .*requirements-native'):
    program.build()


def test_a_compiler_that_is_missing_is_named(prefix, monkeypatch):
  monkeypatch.setenv('CXX', 'no-such-compiler')
  with pytest.raises(UserError, match='no-such-compiler is not installed'):
    program.build()


def test_the_first_error_of_the_compiler_is_told(prefix, monkeypatch):
  compiler = prefix / 'compiler'
  compiler.write_text(
    '#!/bin/sh\necho "in file" >&2\necho "an error" >&2\nexit 1'
  )
  compiler.chmod(0o755)
  monkeypatch.setenv('CXX', str(compiler))
  with pytest.raises(UserError, match=f'{compiler} failed: an error'):
    program.build()


@pytest.mark.peers
def test_it_is_built_into_the_environment():
  program.build()
  assert pathlib.Path(native.LIBRARY).is_file() and native.load()

"""Skips tests without the TPU compiler."""

import importlib.util

import pytest

needs_libtpu = pytest.mark.skipif(
  importlib.util.find_spec('libtpu') is None,
  reason='libtpu is not installed: pip install -r requirements-pod.txt',
)

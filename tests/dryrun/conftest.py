"""A pod made of the CPU devices."""

import jax
import pytest

from bn_inception.dryrun import prediction


@pytest.fixture
def cpu_pod(monkeypatch):
  """Any topology is the CPU devices, whose facts are round numbers."""
  chip = prediction.Chip('CPU', 2**30, 1e9, 1e10)
  monkeypatch.setitem(prediction.CHIPS, 'cpu', chip)
  monkeypatch.setattr(
    prediction,
    'open_topology',
    lambda name: jax.devices()[: int(name.removeprefix('cpu:'))],
  )


@pytest.fixture
def small_config(digits_config):
  """Two images on each of eight devices, which share statistics."""
  digits_config['norm_batch_size'] = 2
  return digits_config

"""What torch.save wrote: which weights are taken, and what is not loaded."""

import argparse
import os
import sys
import zipfile

import numpy as np
import pytest

from bn_inception.errors import UserError
from bn_inception.weights import files

ARRAYS = {
  'a.weight': np.arange(6, dtype=np.float32).reshape(2, 3),
  'a.count': np.array(7),
}


@pytest.fixture
def state():
  import torch

  return {name: torch.tensor(value) for name, value in ARRAYS.items()}


@pytest.fixture
def path(tmp_path):
  return str(tmp_path / 'weights')


def assert_equal(found, expected):
  assert found.keys() == expected.keys()
  for name, value in expected.items():
    assert found[name].dtype == value.dtype
    np.testing.assert_array_equal(found[name], value)


def refusal(path):
  with pytest.raises(UserError) as error:
    files.read(path)
  said = str(error.value)
  assert said.startswith(path) and '\n' not in said
  return said.removeprefix(path)


def test_pytorch_that_is_not_installed(path, monkeypatch):
  monkeypatch.setitem(sys.modules, 'torch', None)
  with zipfile.ZipFile(path, 'w') as archive:
    archive.writestr('archive/data.pkl', b'')
  assert 'needs PyTorch: pip install torch' in refusal(path)


def as_training_scripts_save(state):
  import torch

  average = {'n_averaged': torch.tensor(3)} | state
  parameter = torch.nn.Parameter(state['a.weight'])
  strided = state['a.weight'].T.contiguous().T
  script = {
    'epoch': 3,
    'arch': 'bninception',
    'args': argparse.Namespace(lr=0.1),
    'best_acc1': torch.tensor(70.0),
    'best': np.float64(70.0),
    'numpy_seed': np.arange(3, dtype=np.uint32),
    'optimizer': {'state': {0: {'momentum': torch.ones(3)}}, 'lr': [0.1]},
  }
  return {
    'alone': (state, ARRAYS),
    'imagenet example': (script | {'state_dict': state}, ARRAYS),
    'torchvision': (script | {'model': state}, ARRAYS),
    'net': ({'net': state, 'acc': 93.1}, ARRAYS),
    'deeper': ({'model': {'state_dict': state}}, ARRAYS),
    'any name': ({'weights of today': state}, ARRAYS),
    'average': (
      {'model': state, 'model_ema': average},
      ARRAYS | {'n_averaged': np.array(3)},
    ),
    'parameters': (state | {'a.weight': parameter}, ARRAYS),
    'strided': (state | {'a.weight': strided}, ARRAYS),
    'bfloat16': (state | {'a.weight': state['a.weight'].bfloat16()}, ARRAYS),
    'float64': (state | {'a.weight': state['a.weight'].double()}, ARRAYS),
    'counts as int': (state | {'a.count': 7}, ARRAYS),
    'arrays of NumPy': (ARRAYS, ARRAYS),
  }


@pytest.mark.peers
@pytest.mark.parametrize('is_zip', [True, False])
def test_weights_as_training_scripts_save_them(path, state, is_zip):
  import torch

  for name, (saved, expected) in as_training_scripts_save(state).items():
    torch.save(saved, path, _use_new_zipfile_serialization=is_zip)
    contents = files.read(path)
    assert_equal(contents.arrays, expected)
    said = ('imported model_ema, not model',)
    assert contents.remarks == (said if name == 'average' else ())


@pytest.mark.peers
def test_files_without_weights_are_named(path, state):
  import torch

  for saved, message in (
    ({}, 'no arrays by name (a dict)'),
    (list(state), 'no arrays by name (a list)'),
    ({'state': {0: state}, 'param_groups': []}, '(state, param_groups)'),
    ({'generator': state, 'critic': state}, '(generator, critic)'),
    ({'a': state['a.weight'].to_sparse()}, 'a is not a dense tensor'),
    ({'a': state['a.weight'].to('meta')}, 'a is not a dense tensor'),
  ):
    torch.save(saved, path)
    assert message in refusal(path)


@pytest.mark.peers
@pytest.mark.parametrize('is_zip', [True, False])
def test_damaged_files_are_named(path, state, is_zip):
  import torch

  torch.save(state, path, _use_new_zipfile_serialization=is_zip)
  with open(path, 'rb') as file:
    whole = file.read()
  rng = np.random.default_rng(0)
  num_refused = 0
  for place in rng.integers(20, len(whole), 200):
    damaged = bytearray(whole)
    damaged[place] ^= 0xFF
    with open(path, 'wb') as file:
      file.write(damaged)
    try:
      files.read(path)
    except UserError:
      num_refused += 1
  assert num_refused > 20
  with open(path, 'wb') as file:
    file.write(whole[:-20])
  assert refusal(path).endswith('download it again')


class Command:
  """Makes a folder when it is loaded by pickle."""

  def __init__(self, folder):
    self.folder = folder

  def __reduce__(self):
    return os.mkdir, (self.folder,)


@pytest.mark.peers
@pytest.mark.parametrize('is_zip', [True, False])
def test_code_is_named_and_not_run(tmp_path, path, is_zip):
  import torch

  folder = str(tmp_path / 'made')
  linear = torch.nn.Linear(2, 2)  # a whole module, not its weights
  for saved, name in (
    (Command(folder), 'posix.mkdir'),
    (linear, 'torch.nn.modules.linear.Linear'),
    (np.array([Command(folder)]), 'numpy.dtypes.ObjectDType'),
    (argparse.Namespace(a=Command(folder)), 'posix.mkdir'),
  ):
    torch.save({'a': saved}, path, _use_new_zipfile_serialization=is_zip)
    assert f'({name}), which could run code' in refusal(path)
  assert not os.path.exists(folder)

"""Files of arrays: what is read, and what is said of those that are not."""

import json
import os
import sys

import numpy as np
import pytest

from bn_inception.errors import UserError
from bn_inception.import_weights import files

ARRAYS = {
  'a.weight': np.arange(6, dtype=np.float32).reshape(2, 3),
  'a.count': np.array(7),
}


def assert_equal(found, expected):
  assert found.keys() == expected.keys()
  for name, value in expected.items():
    assert found[name].shape == value.shape
    np.testing.assert_array_equal(found[name], value)


def test_safetensors_come_back_with_their_notes(tmp_path):
  path = str(tmp_path / 'a.safetensors')
  files.write_safetensors(path, ARRAYS, {'scaling': 'none'})
  arrays, notes = files.read(path)
  assert_equal(arrays, ARRAYS)
  assert notes == {'scaling': 'none'}
  assert os.listdir(tmp_path) == ['a.safetensors']


def refusal(path):
  with pytest.raises(UserError) as error:
    files.read(str(path))
  assert '\n' not in str(error.value)
  return str(error.value)


def test_damaged_and_absent_files_are_named(tmp_path):
  path = tmp_path / 'a.safetensors'
  files.write_safetensors(str(path), ARRAYS, {})
  path.write_bytes(path.read_bytes()[:-5])
  assert refusal(path).startswith(f'{path} cannot be read: ')
  path.write_bytes(b'no')
  assert refusal(path).startswith(f'{path} cannot be read: ')
  assert refusal(tmp_path / 'b.pth').endswith('give a file of weights')
  with pytest.raises(UserError, match='cannot be written .No such file'):
    files.write_safetensors(str(tmp_path / 'c' / 'a'), ARRAYS, {})


def test_bfloat16_is_read(tmp_path):
  path = tmp_path / 'a.safetensors'
  header = json.dumps(
    {'a': {'dtype': 'BF16', 'shape': [1], 'data_offsets': [0, 2]}}
  ).encode()
  path.write_bytes(len(header).to_bytes(8, 'little') + header + b'\x80\x3f')
  assert files.read(str(path))[0]['a'].astype(np.float32) == 1.0


@pytest.mark.parametrize(
  'name, module, said',
  [
    ('a.pth', 'torch', 'needs PyTorch to be read: pip install torch'),
    ('a.ckpt', 'tensorflow', 'a checkpoint of TensorFlow, needs that'),
  ],
)
def test_library_that_is_not_installed(
  tmp_path, monkeypatch, name, module, said
):
  monkeypatch.setitem(sys.modules, module, None)
  (tmp_path / name).write_bytes(b'')
  assert said in refusal(tmp_path / name)


@pytest.mark.peers
def test_pytorch_files(tmp_path):
  import torch

  path = str(tmp_path / 'a.pth')
  state = {name: torch.tensor(value) for name, value in ARRAYS.items()}
  torch.save(state, path)
  assert_equal(files.read(path)[0], ARRAYS)
  torch.save({'epoch': 3, 'state_dict': state}, path)
  assert_equal(files.read(path)[0], ARRAYS)
  torch.save({'a.weight': state['a.weight'].bfloat16()}, path)
  assert files.read(path)[0]['a.weight'].dtype == np.float32
  torch.save(list(state), path)
  assert 'something else than arrays by name' in refusal(path)
  (tmp_path / 'a.pth').write_bytes(b'')
  assert 'cannot be read: ' in refusal(path)
  (tmp_path / 'a.pth').write_bytes(b'PK\3\4 no archive')
  assert 'cannot be read: ' in refusal(path)


class Command:
  """Makes a folder when it is loaded by pickle."""

  def __init__(self, folder):
    self.folder = folder

  def __reduce__(self):
    return os.mkdir, (self.folder,)


@pytest.mark.peers
def test_pytorch_files_do_not_run_code(tmp_path):
  import torch

  path, folder = str(tmp_path / 'a.pth'), str(tmp_path / 'made')
  torch.save({'a.weight': Command(folder)}, path)
  assert 'could run code and is not loaded' in refusal(path)
  assert not os.path.exists(folder)
  torch.save(torch.nn.Linear(2, 2), path)  # a whole module, not its weights
  assert 'could run code and is not loaded' in refusal(path)


@pytest.mark.peers
def test_tensorflow_checkpoints(tmp_path):
  import tensorflow as tf

  prefix, variables = str(tmp_path / 'a.ckpt'), list(ARRAYS.values())
  tf.raw_ops.SaveV2(
    prefix=prefix,
    tensor_names=list(ARRAYS),
    shape_and_slices=['', ''],
    tensors=[tf.constant(v) for v in variables],
  )
  assert not os.path.exists(prefix) and os.path.exists(f'{prefix}.index')
  assert_equal(files.read(prefix)[0], ARRAYS)
  single = str(tmp_path / 'b.ckpt')  # the older kind, of one file
  tf.raw_ops.Save(
    filename=single,
    tensor_names=list(ARRAYS),
    data=[tf.constant(v) for v in variables],
  )
  assert_equal(files.read(single)[0], ARRAYS)
  (tmp_path / 'c.ckpt').write_bytes(b'no')
  assert 'cannot be read as a checkpoint' in refusal(tmp_path / 'c.ckpt')

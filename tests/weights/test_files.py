"""Files of arrays: what is read, and what is said of those that are not."""

import gzip
import io
import json
import os
import sys
import tarfile
import zipfile

import numpy as np
import pytest

from bn_inception.errors import UserError
from bn_inception.weights import files

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
  arrays, notes, remarks = files.read(path)
  assert_equal(arrays, ARRAYS)
  assert notes == {'scaling': 'none'} and remarks == ()
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
  assert refusal(path).endswith('download it again')
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


def test_suffixes_do_not_matter(tmp_path):
  path = str(tmp_path / 'a.ckpt')
  files.write_safetensors(path, ARRAYS, {})
  assert_equal(files.read(path).arrays, ARRAYS)


def test_folders_are_named(tmp_path):
  assert f'{tmp_path} is a folder: give the file' in refusal(tmp_path)


def test_tensorflow_that_is_not_installed(tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, 'tensorflow', None)
  for name in ('a.ckpt.index', 'a.ckpt.data-00000-of-00001'):
    (tmp_path / name).touch()
    for given in (name, 'a.ckpt'):
      said = refusal(tmp_path / given)
      assert said.startswith(f'{tmp_path}/a.ckpt is a TensorFlow checkpoint')


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
  assert_equal(files.read(prefix).arrays, ARRAYS)
  assert_equal(files.read(f'{prefix}.index').arrays, ARRAYS)
  single = str(tmp_path / 'b.pth')  # the older kind, of one file
  tf.raw_ops.Save(
    filename=single,
    tensor_names=list(ARRAYS),
    data=[tf.constant(v) for v in variables],
  )
  assert_equal(files.read(single).arrays, ARRAYS)
  (tmp_path / 'a.ckpt.index').write_bytes(b'no')
  assert 'cannot be read as a TensorFlow checkpoint' in refusal(prefix)


# ---- formats ----


def zip_of(*names):
  buffer = io.BytesIO()
  with zipfile.ZipFile(buffer, 'w') as archive:
    for name in names:
      archive.writestr(name, b'')
  return buffer.getvalue()


def tar_of_one_file():
  buffer = io.BytesIO()
  with tarfile.open(fileobj=buffer, mode='w') as archive:
    archive.addfile(tarfile.TarInfo('plain.pth'))
  return buffer.getvalue()


def npz():
  buffer = io.BytesIO()
  np.savez(buffer, a=np.ones(1))
  return buffer.getvalue()


OLD_PYTORCH = b'\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.'


@pytest.mark.parametrize(
  'content, expected',
  [
    ((2).to_bytes(8, 'little') + b'{}', files.SAFETENSORS),
    (zip_of('archive/data.pkl', 'archive/version'), files.PYTORCH),
    (OLD_PYTORCH, files.PYTORCH),
    (b'\x80\x04\x95\x0d' + bytes(7) + OLD_PYTORCH[2:], files.PYTORCH),
    (b'\0\1two' + b'\x57\xfb\x80\x8b\x24\x75\x47\xdb', files.TENSORFLOW),
  ],
)
def test_content_counts_and_no_suffix(tmp_path, content, expected):
  path = tmp_path / 'weights'
  path.write_bytes(content)
  assert files.find_format(str(path)) == expected


@pytest.mark.parametrize(
  'content, what, remedy',
  [
    (b'', 'is empty', 'download it again'),
    (zip_of('a/data.pkl')[:-9], 'incomplete', 'download it again'),
    (b'version https://git-lfs.github.com/spec/v1', 'Git LFS', 'git lfs pull'),
    (b'\n<!DOCTYPE html><html>', 'a web page', 'download it again'),
    (b'<HTML lang="en">', 'a web page', 'download it again'),
    (b'<?xml version="1.0"?><Error>', 'a web page', 'download it again'),
    (b'{"weight_map": {}}', 'JSON', 'the file of weights itself'),
    (b'404: Not Found', "'404: Not Found'", 'download it again'),
    (b'\n\x0cBN-Inception\xa2\x06', 'BN-Inception', 'convert it'),  # Caffe
    (b'\x89HDF\r\n\x1a\n', 'HDF5', 'convert it to safetensors'),
    (b'\x93NUMPY\x01\x00', 'single NumPy array', 'convert it to safetensors'),
    (npz(), '.npz', 'convert it to safetensors'),
    (b'\x80\x04\x95', 'a pickle, which could run code', 'convert it'),
    (zip_of('a/data.pkl', 'a/constants.pkl'), 'TorchScript', 'state_dict()'),
    (zip_of('plain.pth'), 'a zip archive', 'unpack it'),
    (gzip.compress(b'any', mtime=0), 'compressed by gzip', 'unpack it'),
    (tar_of_one_file(), 'a tar archive', 'unpack it'),
  ],
)
def test_others_are_named_with_a_remedy(tmp_path, content, what, remedy):
  path = tmp_path / 'weights.safetensors'
  path.write_bytes(content)
  with pytest.raises(UserError) as error:
    files.find_format(str(path))
  said = str(error.value)
  assert said.startswith(f'{path} ') and '\n' not in said
  found, _, advice = said.removeprefix(f'{path} ').rpartition(': ')
  assert what in found and remedy in advice


def test_file_that_may_not_be_read_is_named(tmp_path):
  with pytest.raises(UserError, match='absent cannot be read .No such file'):
    files.find_format(str(tmp_path / 'absent'))

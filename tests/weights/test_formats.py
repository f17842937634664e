"""Formats of weights by content: what is taken, and what is said of the others."""

import gzip
import io
import tarfile
import zipfile

import numpy as np
import pytest

from bn_inception.errors import UserError
from bn_inception.weights.formats import (
  PYTORCH,
  SAFETENSORS,
  TENSORFLOW,
  find_format,
)


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
    ((2).to_bytes(8, 'little') + b'{}', SAFETENSORS),
    (zip_of('archive/data.pkl', 'archive/version'), PYTORCH),
    (OLD_PYTORCH, PYTORCH),
    (b'\x80\x04\x95\x0d' + bytes(7) + OLD_PYTORCH[2:], PYTORCH),
    (b'\0\1two' + b'\x57\xfb\x80\x8b\x24\x75\x47\xdb', TENSORFLOW),
  ],
)
def test_content_counts_and_no_suffix(tmp_path, content, expected):
  path = tmp_path / 'weights'
  path.write_bytes(content)
  assert find_format(str(path)) == expected


@pytest.mark.parametrize(
  'content, what, remedy',
  [
    (b'', 'is empty', 'download it again'),
    (zip_of('a/data.pkl')[:-9], 'not whole', 'download it again'),
    (b'version https://git-lfs.github.com/spec/v1', 'Git LFS', 'git lfs pull'),
    (b'\n<!DOCTYPE html><html>', 'a web page', 'download it again'),
    (b'<HTML lang="en">', 'a web page', 'download it again'),
    (b'<?xml version="1.0"?><Error>', 'a web page', 'download it again'),
    (b'{"weight_map": {}}', 'JSON', 'the file of weights itself'),
    (b'404: Not Found', "'404: Not Found'", 'download it again'),
    (b'\n\x0cBN-Inception\xa2\x06', 'BN-Inception', 'convert it'),  # Caffe
    (b'\x89HDF\r\n\x1a\n', 'HDF5', 'convert it to safetensors'),
    (b'\x93NUMPY\x01\x00', 'single array', 'convert it to safetensors'),
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
    find_format(str(path))
  said = str(error.value)
  assert said.startswith(f'{path} ') and '\n' not in said
  found, _, advice = said.removeprefix(f'{path} ').rpartition(': ')
  assert what in found and remedy in advice


def test_file_that_may_not_be_read_is_named(tmp_path):
  with pytest.raises(UserError, match='absent cannot be read .No such file'):
    find_format(str(tmp_path / 'absent'))

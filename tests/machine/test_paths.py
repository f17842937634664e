"""Paths with ~, bucket addresses, and unknown home folders."""

import pwd

import pytest

from bn_inception.errors import UserError
from bn_inception.machine import paths


@pytest.mark.parametrize(
  'given, expected',
  [
    ('~/run', '/home/u/run'),
    ('~', '/home/u'),
    ('~root/run', f'{pwd.getpwnam("root").pw_dir}/run'),
    ('runs/~/a~b', 'runs/~/a~b'),
    ('./~', './~'),
    ('a/gs://b', 'a/gs://b'),
    ('lr=1:b', 'lr=1:b'),
    ('./gs:/a', './gs:/a'),
    ('file:///data/a', '/data/a'),
    ('file:/data/a', '/data/a'),
    ('file://localhost/data/a', '/data/a'),
    ('', ''),
  ],
)
def test_local_paths_are_expanded(monkeypatch, given, expected):
  monkeypatch.setenv('HOME', '/home/u')
  assert paths.expand(given, '--workdir') == expected


@pytest.mark.parametrize(
  'address',
  [
    'gs://b/a',
    'gs:/b/a',
    's3://b',
    'hdfs://host/a',
    'file://host/a',
    'x+y://a',
  ],
)
def test_addresses_are_refused(address):
  with pytest.raises(UserError, match='^--out=.*mount') as caught:
    paths.expand(address, '--out')
  assert '\n' not in str(caught.value)


def test_data_may_be_in_buckets_that_epath_reads():
  for address in ('gs://b/a', 's3://b/a'):
    assert paths.expand(address, '--data_dir', may_be_bucket=True) == address
  for address in ('gs:/b/a', 'hdfs://b/a', 'file://host/a'):
    with pytest.raises(UserError, match='--data_dir'):
      paths.expand(address, '--data_dir', may_be_bucket=True)


def test_an_unknown_home_folder_is_refused(monkeypatch):
  with pytest.raises(UserError, match='no user nobody-here'):
    paths.expand('~nobody-here/a', '--workdir')

  def has_no_entry(uid):
    raise KeyError(uid)

  monkeypatch.delenv('HOME')
  monkeypatch.setattr(pwd, 'getpwuid', has_no_entry)
  with pytest.raises(UserError, match='--workdir=~/a: HOME is not set'):
    paths.expand('~/a', '--workdir')
  assert paths.expand('a', '--workdir') == 'a'

"""Every program's flags for files and folders are path flags."""

import ast
import pathlib
import re

import pytest
from absl import flags

from bn_inception.errors import UserError
from bn_inception.programs import path_flags

ROOT = pathlib.Path(__file__).parents[2]
PROGRAMS = [
  *ROOT.glob('*.py'), *ROOT.glob('bn_inception/**/*.py'),
  *ROOT.glob('benchmarks/*.py'),
]  # fmt: skip
_NAME = re.compile(r'(dir|from|out|output|file|folder|path|images|weights)$')
_HELP = re.compile(
  r'(Folder|folder|File|file|Checkpoint|Page) (of|for|to|with)'
)
# What it says about files is how they are read or made, not where they are.
NO_PATHS = {
  'measure',
  'statistics_dataset',
  'statistics_split',
  'config',
  'layout',
}


def defined_flags():
  """(place, function, name, text) of every call that defines a flag."""
  for path in PROGRAMS:
    for node in ast.walk(ast.parse(path.read_text())):
      if not isinstance(node, ast.Call):
        continue
      function = ast.unparse(node.func).rpartition('.')[2]
      if not re.match('DEFINE_|define_paths?$', function) or not node.args:
        continue
      if not isinstance(node.args[0], ast.Constant):
        continue
      texts = [ast.unparse(argument) for argument in node.args[1:]]
      yield path.name, function, node.args[0].value, ' '.join(texts)


FLAGS = list(defined_flags())


def test_flags_for_paths_are_path_flags():
  found = {
    (place, name)
    for place, function, name, text in FLAGS
    if function.startswith('DEFINE_')
    and function not in ('DEFINE_bool', 'DEFINE_integer', 'DEFINE_float')
    and (_NAME.search(name) or _HELP.search(text))
    and name not in NO_PATHS
  }
  assert found == set()
  paths = {name for _, function, name, _ in FLAGS if function[0] == 'd'}
  assert {
    'workdir',
    'data_dir',
    'checkpoint',
    'from',
    'runs',
    'output',
  } <= paths


def make_flags(is_multi=False, may_be_bucket=False):
  values = flags.FlagValues()
  parser = path_flags.PathParser('at', may_be_bucket)
  serializer = flags.ArgumentSerializer()
  if is_multi:
    flags.DEFINE_multi(parser, serializer, 'at', [], '', flag_values=values)
  else:
    flags.DEFINE(parser, 'at', None, '', values, serializer)
  return values


def test_values_are_expanded(monkeypatch):
  monkeypatch.setenv('HOME', '/home/u')
  one, several = make_flags(), make_flags(is_multi=True)
  one(['program', '--at=~/a'])
  several(['program', '--at=~/a', '--at', 'b', '--at=file:///c'])
  assert one.at == '/home/u/a' and several.at == ['/home/u/a', 'b', '/c']
  data = make_flags(may_be_bucket=True)
  data(['program', '--at=gs://a/b'])
  assert data.at == 'gs://a/b'
  with pytest.raises(UserError, match='--at=gs://a/b: '):
    one(['program', '--at=gs://a/b'])

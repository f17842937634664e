"""The floors: a file imports only from floors below its own."""

import ast
import pathlib

import pytest

FLOORS = [
  {'arrays', 'errors', 'machine.streams'},
  {'machine.launchers', 'machine.paths', 'machine.rendezvous'},
  {'machine.path_flags', 'ranges'},
  {
    'machine.accelerators', 'data.augment', 'batch_norm', 'data.crops', 'machine.distributed', 'dryrun.hlo_text', 'kernels.host',
    'weights.formats', 'weights.prefixes',
    'weights.pytorch_files', 'runs.integrity', 'machine.interruption', 'runs.logbook',
    'mesh', 'metrics', 'kernels.native',
    'optimizer', 'data.order', 'evaluation.predictions', 'data.resizing', 'evaluation.scores', 'machine.shared_memory',
    'data.imagenet', 'data.listing', 'data.progress',
    'data.source',
  },
  {
    'claims.transform', 'kernels.convolution', 'data.facts', 'data.images',
    'weights.files', 'data.built_in', 'data.copies',
  },
  {'layers', 'kernels.pooling', 'data.finding', 'data.in_memory'},
  {'inception', 'perceptron', 'data.folders', 'data.prepared'},
  {'data.sources'},
  {
    'claims.perceptrons', 'weights.layouts', 'data.input_pipeline', 'data.check',
    'data.shrink', 'train_state',
  },
  {'runs.checkpoint', 'claims.networks', 'steps'},
  {'experiment', 'runs.run_directory'},
  {'evaluation.passes', 'weights.initial_weights'},
  {'evaluation.report', 'evaluation.inference', 'training'},
  {'command_line', 'study.runs'},
  {'study.flags', 'study.results'},
  {'study.sections'},
  {'study.figures', 'study.page'},
  {
    'claims.__main__', 'dryrun.__main__', 'weights.__main__', 'kernels.native.__main__',
    'data.__main__', 'study.__main__', 'study.report',
  },
]  # fmt: skip
FLOOR_OF = {name: i for i, names in enumerate(FLOORS) for name in names}
ROOT = pathlib.Path(__file__).parent.parent
FLAG_MODULES = {'absl', 'ml_collections', 'configs'}
PROGRAMS = {  # these may see flags
  'command_line', 'claims.__main__', 'dryrun.__main__', 'weights.__main__',
  'kernels.native.__main__', 'machine.path_flags', 'study.report', 'data.__main__', 'study.__main__', 'study.flags', 'study.results',
  'study.runs',
}  # fmt: skip


def find_modules():
  """'data.folders' -> its path; a package is named as its folder."""
  root = ROOT / 'bn_inception'
  modules = {}
  for path in root.rglob('*.py'):
    name = '.'.join(path.relative_to(root).with_suffix('').parts)
    modules[name.removesuffix('.__init__')] = path
  for package in ['__init__', *WINGS]:
    del modules[package]
  return modules


MODULES = find_modules()


def imported(path):
  """(package, name) of every import in a file."""
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Import):
      yield from ((alias.name, alias.name) for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
      yield from ((node.module, alias.name) for alias in node.names)


def test_every_module_has_a_floor_and_a_test():
  assert set(MODULES) == set(FLOOR_OF)
  tests = {p.stem for p in (ROOT / 'tests').glob('test_*.py')}
  untested = {'data.source', 'data.__main__'}
  untested |= {'weights.__main__', 'kernels.native.__main__'}  # with theirs
  untested |= {'study.flags'}  # with study
  expected = {f'test_{m.replace(".", "_")}' for m in set(MODULES) - untested}
  assert expected - tests == set()


@pytest.mark.parametrize('module', sorted(MODULES))
def test_imports_go_down_the_floors(module):
  for package, name in imported(MODULES[module]):
    top, _, rest = package.partition('.')
    if top != 'bn_inception':
      assert top not in FLAG_MODULES or module in PROGRAMS, package
      continue
    # from PACKAGE import MODULE, or from MODULE import NAME
    inner = f'{rest}.{name}' if rest else name
    other = inner if inner in MODULES else rest
    assert FLOOR_OF[other] < FLOOR_OF[module], f'{module} imports {other}'


def test_configs_import_only_each_other():
  allowed = {'absl', 'collections', 'configs', 'ml_collections', 'typing'}
  allowed |= {'json', 'pathlib'}  # to read the config of an earlier run
  for path in (ROOT / 'configs').glob('*.py'):
    assert {p.split('.')[0] for p, _ in imported(path)} <= allowed, path

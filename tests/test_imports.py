"""The floors: a file imports only from floors below its own."""

import ast
import pathlib

import pytest

FLOORS = [
  {'arrays', 'errors', 'streams'},
  {'launchers', 'paths', 'rendezvous'},
  {'path_flags', 'ranges'},
  {
    'accelerators', 'augment', 'batch_norm', 'crops', 'distributed', 'hlo_text', 'host',
    'import_weights.formats', 'import_weights.prefixes',
    'import_weights.pytorch_files', 'integrity', 'interruption', 'logbook',
    'mesh', 'metrics', 'native',
    'optimizer', 'order', 'predictions', 'resizing', 'scores', 'shared_memory',
    'sources.imagenet', 'sources.listing', 'sources.progress',
    'sources.source',
  },
  {
    'claims_transform', 'convolution', 'data_facts', 'images',
    'import_weights.files', 'sources.built_in', 'sources.copies',
  },
  {'layers', 'pooling', 'sources.finding', 'sources.in_memory'},
  {'inception', 'perceptron', 'sources.folders', 'sources.prepared'},
  {'sources'},
  {
    'claims_perceptron', 'import_weights', 'input_pipeline', 'sources.check',
    'sources.shrink', 'train_state',
  },
  {'checkpoint', 'claims_networks', 'steps'},
  {'experiment', 'run_directory'},
  {'evaluation', 'initial_weights'},
  {'evaluation_report', 'inference', 'training'},
  {'command_line', 'study_runs'},
  {'study_flags', 'study_results'},
  {'report_sections'},
  {'report_figures', 'report_page'},
  {
    'claims', 'dryrun', 'import_weights.__main__', 'native.__main__',
    'sources.__main__', 'study', 'report',
  },
]  # fmt: skip
FLOOR_OF = {name: i for i, names in enumerate(FLOORS) for name in names}
ROOT = pathlib.Path(__file__).parent.parent
FLAG_MODULES = {'absl', 'ml_collections', 'configs'}
PROGRAMS = {  # these may see flags
  'command_line', 'claims', 'dryrun', 'import_weights.__main__',
  'native.__main__', 'path_flags', 'report', 'sources.__main__', 'study', 'study_flags', 'study_results',
  'study_runs',
}  # fmt: skip


def find_modules():
  """'sources.folders' -> its path; a package is named as its folder."""
  root = ROOT / 'bn_inception'
  modules = {}
  for path in root.rglob('*.py'):
    name = '.'.join(path.relative_to(root).with_suffix('').parts)
    modules[name.removesuffix('.__init__')] = path
  del modules['__init__']
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
  untested = {'sources.source', 'sources.__main__'}
  untested |= {'import_weights.__main__', 'native.__main__'}  # with theirs
  untested |= {'study_flags'}  # with study
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

"""The floors: a file imports only from floors below its own."""

import ast
import pathlib

import pytest

FLOORS = [
  {'errors'},
  {
    'augment', 'batch_norm', 'crops', 'logbook', 'mesh', 'metrics', 'optimizer',
  },
  {'claims_transform', 'layers', 'sources'},
  {'claims_perceptron', 'inception', 'input_pipeline'},
  {'claims_networks', 'train_state'},
  {'steps', 'checkpoint'},
  {'experiment', 'run_directory'},
  {'evaluation'},
  {'training'},
  {'command_line'},
  {'claims'},
]  # fmt: skip
FLOOR_OF = {name: i for i, names in enumerate(FLOORS) for name in names}
ROOT = pathlib.Path(__file__).parent.parent
FLAG_MODULES = {'absl', 'ml_collections', 'configs'}
PROGRAMS = {'command_line', 'claims'}  # these may see flags


def imported(path):
  """(package, name) of every import in a file."""
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Import):
      yield from ((alias.name, alias.name) for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
      yield from ((node.module, alias.name) for alias in node.names)


def test_every_module_has_a_floor_and_a_test():
  modules = {p.stem for p in (ROOT / 'bn_inception').glob('*.py')} - {
    '__init__'
  }
  assert modules == set(FLOOR_OF)
  tests = {p.stem for p in (ROOT / 'tests').glob('test_*.py')}
  assert {f'test_{name}' for name in modules - {'errors'}} - tests == set()


@pytest.mark.parametrize('module', sorted(FLOOR_OF))
def test_imports_go_down_the_floors(module):
  for package, name in imported(ROOT / 'bn_inception' / f'{module}.py'):
    if package == 'bn_inception':
      other = name
    elif package.startswith('bn_inception.'):
      other = package.split('.')[1]
    else:
      sees_flags = package.split('.')[0] in FLAG_MODULES
      assert not sees_flags or module in PROGRAMS, package
      continue
    assert FLOOR_OF[other] < FLOOR_OF[module], f'{module} imports {other}'


def test_configs_import_only_each_other():
  allowed = {'absl', 'collections', 'configs', 'ml_collections', 'typing'}
  for path in (ROOT / 'configs').glob('*.py'):
    assert {p.split('.')[0] for p, _ in imported(path)} <= allowed, path

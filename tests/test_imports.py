"""The layout: files and wings of `bn_inception/` import only from lower floors.

A wing is a folder. Inside it any file may import any other, but not in circles.
Programs (`__main__` of a wing, and PROGRAMS) may import everything that is no
program.
"""

import ast
import pathlib

import pytest

FLOORS = [
  {'batch_norm', 'errors', 'metrics', 'wording'},
  {'config_keys', 'machine', 'mesh'},
  {'kernels', 'optimizer'},
  {'data', 'layers', 'train_state'},
  {'inception', 'perceptron', 'programs', 'steps'},
  {'experiment'},
  {'runs'},
  {'claims', 'dryrun', 'evaluation', 'study', 'weights'},
  {'training'},
  {'eval', 'plot', 'train'},
]
FLOOR_OF = {room: i for i, rooms in enumerate(FLOORS) for room in rooms}
PROGRAMS = {'eval', 'plot', 'study.report', 'train'}
ROOT = pathlib.Path(__file__).parent.parent
FLAG_MODULES = {'absl', 'ml_collections', 'configs'}
SEE_FLAGS = {
  'evaluation.flags',
  'study.flags',
}  # with programs and what runs them
SEE_FLAGS |= {
  f'programs.{name}'
  for name in (
    'command_line', 'config_flag', 'path_flags', 'presets', 'process',
  )
}  # fmt: skip


def find_modules():
  """'data.folders' -> its path; a package is named as its folder."""
  root = ROOT / 'bn_inception'
  modules = {}
  for path in root.rglob('*.py'):
    name = '.'.join(path.relative_to(root).with_suffix('').parts)
    modules[name.removesuffix('.__init__')] = path
  del modules['__init__']
  return modules


MODULES = find_modules()


def is_program(module):
  return module.endswith('__main__') or module in PROGRAMS


def room_of(module):
  return module.partition('.')[0]


def imported(path):
  """(package, name) of every import in a file."""
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Import):
      yield from ((alias.name, alias.name) for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
      yield from ((node.module, alias.name) for alias in node.names)


def imported_modules(module):
  """Those of this package."""
  for package, name in imported(MODULES[module]):
    top, _, rest = package.partition('.')
    if top == 'bn_inception':
      # from PACKAGE import MODULE, or from MODULE import NAME
      inner = f'{rest}.{name}' if rest else name
      yield inner if inner in MODULES else rest


def test_every_room_has_a_floor_and_every_module_a_test():
  assert {room_of(m) for m in MODULES} == set(FLOOR_OF)
  tests = ROOT / 'tests'
  wings = {m for m in MODULES if MODULES[m].name == '__init__.py'}
  untested = wings - {'kernels.native'}
  untested |= {'data.source', 'data.__main__'}
  untested |= {'kernels.native.__main__'}  # with kernels.native
  untested |= {'evaluation.flags', 'study.flags'}  # with their programs
  untested |= {'eval', 'train'}  # with command_line
  for module in sorted(set(MODULES) - untested):
    *folders, name = module.split('.')
    name = folders[-1] if name == '__main__' else name
    assert (tests.joinpath(*folders) / f'test_{name}.py').exists(), module


@pytest.mark.parametrize('module', sorted(MODULES))
def test_imports_go_down_the_floors(module):
  for other in imported_modules(module):
    assert not is_program(other), f'{module} imports {other}'
    if is_program(module) or room_of(module) == room_of(other):
      continue
    lower = FLOOR_OF[room_of(other)] < FLOOR_OF[room_of(module)]
    assert lower, f'{module} imports {other}'


@pytest.mark.parametrize('wing', sorted({room_of(m) for m in MODULES}))
def test_no_circle_in_a_wing(wing):
  left = {
    module: {m for m in imported_modules(module) if room_of(m) == wing}
    for module in MODULES
    if room_of(module) == wing
  }
  while left:
    free = {module for module, others in left.items() if not others & set(left)}
    assert free, f'circle among {sorted(left)}'
    left = {m: others for m, others in left.items() if m not in free}


@pytest.mark.parametrize('module', sorted(MODULES))
def test_only_programs_see_flags(module):
  if is_program(module) or module in SEE_FLAGS:
    return
  tops = {package.partition('.')[0] for package, _ in imported(MODULES[module])}
  assert not tops & FLAG_MODULES


def test_configs_import_only_each_other():
  allowed = {'absl', 'collections', 'configs', 'ml_collections', 'typing'}
  allowed |= {'json', 'pathlib'}  # to read the config of an earlier run
  for path in (ROOT / 'configs').glob('*.py'):
    assert {p.split('.')[0] for p, _ in imported(path)} <= allowed, path

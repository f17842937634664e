"""The installed commands run this package's programs."""

import pathlib
import tomllib

from bn_inception import scripts

ROOT = pathlib.Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / 'pyproject.toml').read_text())


def test_every_command_runs_a_program(monkeypatch):
  monkeypatch.setattr(scripts.interruption, 'watch', lambda: None)
  ran = []
  monkeypatch.setattr(
    scripts.runpy, 'run_module', lambda name, **_: ran.append(name)
  )
  for command in PROJECT['project']['scripts'].values():
    module, _, function = command.partition(':')
    assert module == 'bn_inception.scripts'
    getattr(scripts, function)()
  assert len(ran) == 8
  for name in ran:
    path = ROOT.joinpath(*name.split('.'))
    is_there = (path / '__main__.py').exists() or path.with_suffix(
      '.py'
    ).exists()
    assert is_there, name


def test_every_folder_with_code_is_in_the_wheel():
  folders = {p.parent for p in (ROOT / 'bn_inception').rglob('*.py')}
  names = {'.'.join(folder.relative_to(ROOT).parts) for folder in folders}
  packages = set(PROJECT['tool']['setuptools']['packages'])
  assert packages == names | {'bn_inception.configs'}
  # No module of the top level but the package.
  assert 'py-modules' not in PROJECT['tool']['setuptools']

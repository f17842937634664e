"""The package as it is installed: its commands, its configs, and no more."""

import os
import pathlib
import shutil
import subprocess
import sys
import tomllib

import pytest

from bn_inception.programs import scripts

ROOT = pathlib.Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / 'pyproject.toml').read_text())


def test_every_command_runs_a_program(monkeypatch):
  monkeypatch.setattr(scripts.interruption, 'watch', lambda: None)
  ran = []
  monkeypatch.setattr(
    scripts.runpy, 'run_module', lambda name, **_: ran.append(name)
  )
  for command in PROJECT['project']['scripts'].values():
    module, _, function = command.partition(':')
    assert module == 'bn_inception.programs.scripts'
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


@pytest.mark.slow
def test_the_wheel_has_programs_and_configs(tmp_path):
  source, wheels, home = (tmp_path / name for name in ('src', 'wheels', 'home'))
  for folder in 'bn_inception', 'configs':
    shutil.copytree(ROOT / folder, source / folder)
  for name in 'pyproject.toml', 'README.md', 'LICENSE':
    shutil.copy(ROOT / name, source)
  pip = '-m', 'pip', 'wheel', '--no-deps', '--quiet'
  subprocess.run([sys.executable, *pip, '-w', wheels, source], check=True)
  [wheel] = wheels.iterdir()
  shutil.unpack_archive(wheel, home / 'site', 'zip')
  tops = {path.name for path in (home / 'site').iterdir()}
  assert {name for name in tops if 'dist-info' not in name} == {'bn_inception'}

  def run(*command):
    done = subprocess.run(
      [sys.executable, '-m', *command],
      cwd=home,
      env={**os.environ, 'JAX_PLATFORMS': 'cpu', 'PYTHONPATH': 'site'},
      capture_output=True,
      text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout

  epochs = '--config.training.num_epochs=0.1'
  config = '--config=configs/mnist.py:batch_norm,digits'
  run('bn_inception.train', config, epochs, '--workdir=a')
  assert 'top-1' in run('bn_inception.eval', '--workdir=a')
  assert (home / 'a' / 'evaluation_test_2.json').exists()
  listed = run('bn_inception.study', '--study=figure1', '--quick', '--list')
  assert [line.split()[:3] for line in listed.splitlines()] == (
    [['python', '-m', 'bn_inception.train']] * 2
  )
  assert 'bn_inception.study.report' in run(
    'bn_inception.study.report', '--help'
  )

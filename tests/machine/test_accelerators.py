"""Unused and missing accelerators, on simulated machines."""

import os
import pathlib
import subprocess
import sys
import types

import jax
import pytest

from bn_inception.machine import accelerators

ROOT = pathlib.Path(__file__).parents[2]
JAX = jax.__version__


@pytest.fixture
def on_machine(tmp_path, monkeypatch):
  """A function that returns the remarks on a simulated machine."""
  monkeypatch.syspath_prepend(tmp_path)

  def remarks(installed, files=(), backend='cpu', platforms=None):
    for name, version in installed.items():
      folder = tmp_path / f'{name.replace("-", "_")}-{version}.dist-info'
      folder.mkdir()
      (folder / 'METADATA').write_text(f'Name: {name}\nVersion: {version}\n')
    own_jax = types.SimpleNamespace(
      __version__=JAX,
      default_backend=lambda: backend,
      config=types.SimpleNamespace(jax_platforms=platforms),
    )
    own_glob = types.SimpleNamespace(
      glob=lambda pattern: [
        f for f in files if pathlib.PurePath(f).match(pattern)
      ]
    )
    monkeypatch.setattr(accelerators, 'jax', own_jax)
    monkeypatch.setattr(accelerators, 'glob', own_glob)
    return accelerators.remarks()

  return remarks


@pytest.mark.parametrize(
  'plugin, extra',
  [
    ('jax-cuda12-plugin', 'cuda12'),
    ('jax-cuda13-plugin', 'cuda13'),
    ('jax-rocm7-plugin', 'rocm7-local'),
    ('libtpu', 'tpu'),
  ],
)
def test_a_plugin_for_another_jax_is_named_with_the_remedy(
  on_machine, plugin, extra
):
  (line,) = on_machine({plugin: '0.0.7'})
  assert line.startswith(f'{plugin} 0.0.7 is not used')
  assert line.endswith(f"pip install 'jax[{extra}]=={JAX}'")


def test_a_plugin_without_its_hardware(on_machine):
  (line,) = on_machine({'jax-cuda13-plugin': JAX}, ['/dev/vfio/vfio'])
  assert line.startswith(f'jax-cuda13-plugin {JAX} finds no NVIDIA GPU')


def test_a_plugin_that_does_not_start(on_machine):
  (line,) = on_machine({'jax-cuda12-plugin': JAX}, ['/dev/nvidiactl'])
  assert 'although there is /dev/nvidiactl: JAX_PLATFORMS=cuda' in line


@pytest.mark.parametrize(
  'path, extra',
  [
    ('/dev/nvidia0', 'cuda12'),
    ('/dev/accel0', 'tpu'),
    ('/dev/vfio/0', 'tpu'),
    ('/dev/kfd', 'rocm7-local'),
  ],
)
def test_hardware_without_a_plugin(on_machine, path, extra):
  (line,) = on_machine({}, [path])
  assert path in line and line.endswith(f"pip install 'jax[{extra}]=={JAX}'")


def test_nothing_is_said_if_there_is_only_a_cpu_or_it_was_requested(
  on_machine,
):
  assert on_machine({}) == []
  found = {'libtpu': '0.0.7', 'jax-metal': '0.1'}
  assert 'pip uninstall jax-metal' in on_machine(found)[1]
  assert on_machine({}, platforms='cpu') == []
  assert on_machine({}, backend='tpu') == []


def fail_to_find_devices(monkeypatch, platforms, error):
  def fail():
    raise error

  monkeypatch.setattr(jax, 'devices', fail)
  monkeypatch.setattr(
    type(jax.config), 'jax_platforms', property(lambda config: platforms)
  )


def test_missing_devices_are_explained(monkeypatch):
  plugins = {'jax-cuda13-plugin': '0.9', 'libtpu': '0.1'}
  monkeypatch.setattr(accelerators, 'version_of', plugins.get)
  monkeypatch.delenv('CUDA_VISIBLE_DEVICES', raising=False)
  fail_to_find_devices(monkeypatch, 'cuda', AssertionError())
  line = accelerators.explain_missing(AssertionError())
  assert "JAX_PLATFORMS='cuda'" in line and 'no NVIDIA GPU found;' in line
  assert 'jax-cuda13-plugin 0.9, libtpu 0.1)' in line
  assert 'unset JAX_PLATFORMS' in line
  assert line.endswith(f"install the plugin: pip install 'jax[cuda12]=={JAX}'")
  monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '')
  assert "with CUDA_VISIBLE_DEVICES=''" in accelerators.explain_missing(
    RuntimeError()
  )


@pytest.mark.parametrize('platforms, remedy', [
  ('tpu,cpu', 'unset JAX_PLATFORMS'), ('', 'set JAX_PLATFORMS=cpu'),
])  # fmt: skip
def test_devices_in_use_are_explained(platforms, remedy, monkeypatch):
  monkeypatch.delenv('CUDA_VISIBLE_DEVICES', raising=False)
  error = RuntimeError(
    "Unable to initialize backend 'tpu': ABORTED: The TPU is already in use by "
    "process with pid 9. (set JAX_PLATFORMS='' to automatically choose)\nmore"
  )
  fail_to_find_devices(monkeypatch, platforms, error)
  line = accelerators.explain_missing(error)
  assert '(ABORTED: The TPU is already in use by process with pid 9; ' in line
  assert remedy in line and '\n' not in line


def test_an_unknown_platform_gets_no_install_command(monkeypatch):
  error = RuntimeError('Unknown backend cuba')
  fail_to_find_devices(monkeypatch, 'cuba', error)
  line = accelerators.explain_missing(error)
  assert "JAX_PLATFORMS='cuba'" in line and 'unset JAX_PLATFORMS' in line
  assert 'pip install' not in line


def test_other_errors_are_not_explained():
  assert accelerators.explain_missing(ValueError()) is None
  assert (
    accelerators.explain_missing(AssertionError()) is None
  )  # there are devices


@pytest.mark.slow
def test_a_missing_platform_gets_one_line():
  program = """
import jax
from bn_inception.programs import command_line
command_line.run(jax.devices)
"""
  done = subprocess.run(
    [sys.executable, '-c', program], cwd=ROOT, capture_output=True, text=True,
    env={**os.environ, 'JAX_PLATFORMS': 'cuba'},
  )  # fmt: skip
  assert done.returncode == 2
  assert done.stderr.count('\n') == 1 and "JAX_PLATFORMS='cuba'" in done.stderr

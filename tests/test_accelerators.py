"""Accelerators that are there and not used: what is installed is made up."""

import pathlib
import types

import jax
import pytest

from bn_inception import accelerators

JAX = jax.__version__


@pytest.fixture
def on_machine(tmp_path, monkeypatch):
  """A function: the remarks on a machine that has these."""
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
  assert line.startswith(f'jax-cuda13-plugin {JAX} sees no NVIDIA GPU')


def test_a_plugin_that_does_not_start(on_machine):
  (line,) = on_machine({'jax-cuda12-plugin': JAX}, ['/dev/nvidiactl'])
  assert 'although there is /dev/nvidiactl: JAX_PLATFORMS=cuda' in line


@pytest.mark.parametrize(
  'path, extra',
  [
    ('/dev/nvidia0', 'cuda13'),
    ('/dev/accel0', 'tpu'),
    ('/dev/vfio/0', 'tpu'),
    ('/dev/kfd', 'rocm7-local'),
  ],
)
def test_hardware_without_a_plugin(on_machine, path, extra):
  (line,) = on_machine({}, [path])
  assert path in line and line.endswith(f"pip install 'jax[{extra}]=={JAX}'")


def test_nothing_is_said_where_the_cpu_is_all_there_is_or_is_asked_for(
  on_machine,
):
  assert on_machine({}) == []
  found = {'libtpu': '0.0.7', 'jax-metal': '0.1'}
  assert 'pip uninstall jax-metal' in on_machine(found)[1]
  assert on_machine({}, platforms='cpu') == []
  assert on_machine({}, backend='tpu') == []

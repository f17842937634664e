"""Explains why JAX does not use an accelerator, or has no device at all."""

import dataclasses
import glob
import importlib.metadata
import os
import re

import jax
from packaging.requirements import Requirement


@dataclasses.dataclass(frozen=True)
class _Kind:
  """A kind of accelerator.

  Attributes:
    name: name in messages.
    platform: JAX's name.
    plugins: distribution -> extra of jax that requires it; the usual one first.
    files: glob patterns of device files that exist with the hardware.
  """

  name: str
  platform: str
  plugins: dict[str, str]
  files: tuple[str, ...]


_KINDS = (
  _Kind(
    'NVIDIA GPU', 'cuda',
    {'jax-cuda12-plugin': 'cuda12', 'jax-cuda13-plugin': 'cuda13'},
    ('/dev/nvidia[0-9]*', '/dev/nvidiactl'),
  ),
  _Kind(
    'TPU', 'tpu', {'libtpu': 'tpu'}, ('/dev/accel[0-9]*', '/dev/vfio/[0-9]*')
  ),
  _Kind('AMD GPU', 'rocm', {'jax-rocm7-plugin': 'rocm7-local'}, ('/dev/kfd',)),
)  # fmt: skip


def remarks() -> list[str]:
  """Lines that say why JAX runs on the CPU although an accelerator seems to be there.

  One line for each installed plugin and each accelerator without one; none if an
  accelerator is in use or JAX_PLATFORMS is set. Initialises JAX's devices.
  """
  if jax.default_backend() != 'cpu' or jax.config.jax_platforms:
    return []
  lines = []
  for kind in _KINDS:
    installed = [name for name in kind.plugins if version_of(name)]
    lines += [_explain_plugin(kind, name) for name in installed]
    if not installed:
      lines += _explain_hardware(kind)
  if version := version_of('jax-metal'):
    lines.append(
      f'jax-metal {version} is not used, as it does not support jax '
      f'{jax.__version__}: pip uninstall jax-metal'
    )
  return lines


def explain_missing(error: Exception) -> str | None:
  """One line if JAX has no devices, as with JAX_PLATFORMS=cuda on a CPU.

  Returns None if JAX has devices, so that the error has another cause.
  """
  if not isinstance(error, (RuntimeError, AssertionError)):
    return None
  try:
    jax.devices()
  except (RuntimeError, AssertionError) as failure:
    reason = str(failure).partition('\n')[0]
  else:
    return None
  # JAX's own advice is in parentheses; the text is empty if it sees no GPU.
  reason = re.sub(
    r"^Unable to initialize backend '.*?': | \((set|you) .*", '', reason
  )
  reason = reason.rstrip('.') or 'no NVIDIA GPU found'
  if (visible := os.environ.get('CUDA_VISIBLE_DEVICES')) is not None:
    reason += f', with CUDA_VISIBLE_DEVICES={visible!r}'
  plugins = [
    f'{name} {version}'
    for kind in _KINDS
    for name in kind.plugins
    if (version := version_of(name))
  ]
  given = jax.config.jax_platforms
  begin, remedy = (
    (f"with JAX_PLATFORMS='{given}' JAX has no device", 'unset JAX_PLATFORMS')
    if given
    else ('JAX has no device', 'set JAX_PLATFORMS=cpu')
  )
  return (
    f'{begin} ({reason}; plugins installed: {", ".join(plugins) or "none"}): '
    f'{remedy} to use the devices of this host{_or_install(given or "")}'
  )


def _or_install(platforms: str) -> str:
  """', or install ...' for the plugins of these platforms; '' if there are none."""
  extras = {
    'cuda': 'cuda12',
    'gpu': 'cuda12',
    'tpu': 'tpu',
    'rocm': 'rocm7-local',
  }
  asked = platforms.replace(' ', '').split(',') if platforms else list(extras)
  wanted = dict.fromkeys(extras[p] for p in asked if p in extras)
  commands = ' or '.join(_install(extra) for extra in wanted)
  return f', or install the plugin: {commands}' if commands else ''


def version_of(distribution: str) -> str | None:
  """The installed version of a distribution, or None."""
  try:
    return importlib.metadata.version(distribution)
  except importlib.metadata.PackageNotFoundError:
    return None


def _explain_plugin(kind: _Kind, plugin: str) -> str:
  found, extra = f'{plugin} {version_of(plugin)}', kind.plugins[plugin]
  if not _is_for_this_jax(plugin, extra):
    return (
      f'{found} is not used, as it does not support jax {jax.__version__}: '
      f'{_install(extra)}'
    )
  if not (files := _files_of(kind)):
    return (
      f'{found} finds no {kind.name}: there is no {" or ".join(kind.files)}'
    )
  return (
    f'{found} is not used, although there is {files[0]}: '
    f"JAX_PLATFORMS={kind.platform} python -c 'import jax; jax.devices()' says why"
  )


def _is_for_this_jax(plugin: str, extra: str) -> bool:
  """Whether the installed version is one that the extra of jax requires."""
  for text in importlib.metadata.requires('jax') or ():
    wanted = Requirement(text)
    if wanted.name == plugin and wanted.marker.evaluate({'extra': extra}):
      return wanted.specifier.contains(version_of(plugin), prereleases=True)
  return True


def _explain_hardware(kind: _Kind) -> list[str]:
  extra = next(iter(kind.plugins.values()))
  return [
    f'there seems to be a {kind.name} ({path}), but no JAX plugin for it: '
    f'{_install(extra)}'
    for path in _files_of(kind)[:1]
  ]


def _install(extra: str) -> str:
  return f"pip install 'jax[{extra}]=={jax.__version__}'"


def _files_of(kind: _Kind) -> list[str]:
  return [path for pattern in kind.files for path in sorted(glob.glob(pattern))]

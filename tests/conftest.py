"""Eight CPU devices for all tests, and small stand-ins for slow things."""

import functools
import os
import pathlib
import subprocess
import tempfile

# All processes of the tests compile the same program once. Set before JAX is
# imported: it reads this then.
os.environ.setdefault('JAX_COMPILATION_CACHE_DIR', tempfile.mkdtemp())

import absl.flags
import jax
import pytest

jax.config.update('jax_platforms', 'cpu')
jax.config.update('jax_num_cpu_devices', 8)
jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.5)
# What Rich asks about the terminal: tests are the same in every one.
for _name in (
  'TERM',
  'COLUMNS',
  'FORCE_COLOR',
  'TTY_COMPATIBLE',
  'TTY_INTERACTIVE',
):
  os.environ.pop(_name, None)
absl.flags.FLAGS(['pytest'])  # Grain's worker processes read absl's flags

from bn_inception import inception  # noqa: E402
from configs import compose  # noqa: E402

FEW_ROWS = (inception.FIGURE_5[0], inception.FIGURE_5[2])


@pytest.fixture(autouse=True, scope='session')
def eight_devices():
  assert jax.device_count() == 8


@pytest.fixture
def few_rows(monkeypatch):
  """Networks of two modules instead of ten: the same code, compiled sooner."""
  use_few_rows(monkeypatch)


def use_few_rows(monkeypatch):
  small = functools.partial(inception.Inception, rows=FEW_ROWS)
  monkeypatch.setattr(inception, 'Inception', small)


@pytest.fixture
def digits_config():
  """The digits preset, for a run of six steps of 16 examples."""
  return short_digits_config()


def short_digits_config():
  config = compose.preset('bn_x5', 'digits').to_dict()
  config['batch_size'] = config['norm_batch_size'] = 16
  config['training'].update(
    num_epochs=6 * 16 / 1442,
    log_every_steps=2,
    eval_every_steps=3,
    checkpoint_every_steps=3,
  )
  return config


class SmallDisk:
  """A file system of its own, in memory, that can be filled."""

  def __init__(self, path: pathlib.Path):
    self.path = path

  def remount(self, options: str) -> None:
    subprocess.run(['mount', '-o', f'remount,{options}', self.path], check=True)

  def fill(self, room: int) -> None:
    """Takes what is free but for `room` KiB."""
    free = os.statvfs(self.path)
    size = free.f_bavail * free.f_frsize - 1024 * room
    (self.path / 'filler').write_bytes(bytes(size))

  def empty(self) -> None:
    (self.path / 'filler').unlink()


@pytest.fixture
def small_disk(tmp_path):
  """A `SmallDisk` of 1 MiB."""
  path = tmp_path / 'disk'
  path.mkdir()
  command = ['mount', '-t', 'tmpfs', '-o', 'size=1m', 'tmpfs', path]
  try:
    subprocess.run(command, check=True, capture_output=True, text=True)
  except (OSError, subprocess.CalledProcessError) as error:
    pytest.skip(f'a file system cannot be mounted here: {error}')
  try:
    yield SmallDisk(path)
  finally:
    subprocess.run(['umount', '--lazy', path], check=True)

"""Options of the compiler; memory that is kept, or given back."""

import ctypes
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bn_inception import steps
from bn_inception.kernels.host import compiler_options, release_memory
from bn_inception.mesh import make_evaluation_mesh

ROOT = pathlib.Path(__file__).parents[2]
on_glibc = pytest.mark.skipif(sys.platform != 'linux', reason='of glibc')


class OtherDevice:
  platform = 'tpu'


class OtherMesh:
  devices = np.array([OtherDevice()])


def test_on_a_cpu_less_memory_is_used():
  """Four values that could be computed at once, but need not be there at once."""

  def add_four(x, kernel):
    # Convolutions, since XLA may fuse products: what a fusion needs is not counted.
    def convolve(y):
      return jax.lax.conv_general_dilated(
        y, kernel, (1, 1), 'SAME', dimension_numbers=('NHWC', 'HWIO', 'NHWC')
      )

    parts = [convolve(jnp.sin(x + i)) for i in range(4)]
    return sum(jnp.sum(convolve(part)) for part in parts)

  options = compiler_options(make_evaluation_mesh(jax.devices()[:1]))
  x = jax.ShapeDtypeStruct((4, 32, 32, 8), jnp.float32)
  kernel = jax.ShapeDtypeStruct((3, 3, 8, 8), jnp.float32)
  memory = [
    jax.jit(add_four, compiler_options=o)
    .lower(x, kernel)
    .compile()
    .memory_analysis()
    for o in (None, options)
  ]
  default, own = (m.temp_size_in_bytes for m in memory)
  assert own <= 0.75 * default


def test_other_devices_have_none():
  assert compiler_options(OtherMesh()) == {}


def resident_bytes() -> int:
  pages = int(pathlib.Path('/proc/self/statm').read_text().split()[1])
  return 4096 * pages


# A product of 64 MB, ten times: how many pages the last four asked for.
PRODUCT = """
import resource, sys
import jax, jax.numpy as jnp
from bn_inception.kernels import host
if sys.argv[1] == 'kept':
  host.keep_memory()
  host.run_steps_in_main_thread()
multiply = jax.jit(lambda x: (x @ x.T) @ x)
x = jnp.ones((2**12, 16))
def faults():
  return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
def take_steps(n):
  for _ in range(n):
    multiply(x).block_until_ready()
take_steps(6)  # until everything has found its place
before = faults()
take_steps(4)
print(faults() - before)
"""


@on_glibc
@pytest.mark.parametrize('kind, is_kept', [('kept', True), ('given', False)])
def test_a_step_uses_the_memory_of_the_one_before(kind, is_kept):
  done = subprocess.run(
    [sys.executable, '-c', PRODUCT, kind],
    cwd=ROOT, capture_output=True, text=True,
    env={**os.environ, 'XLA_FLAGS': ''},  # of one device
  )  # fmt: skip
  num_pages = 4 * 2**26 // 4096
  assert (int(done.stdout) < 0.3 * num_pages) == is_kept, done.stderr


def test_programs_keep_memory():
  program = """
from jax._src import xla_bridge
from bn_inception.programs import command_line
from bn_inception.kernels import host
command_line.define_process_flags()  # as train.py
has_devices = xla_bridge.backends_are_initialized
host.keep_memory = lambda: print('kept', has_devices())
command_line.run(lambda: print('running'))
"""
  done = subprocess.run(
    [sys.executable, '-c', program], cwd=ROOT, capture_output=True, text=True
  )
  assert done.stdout == 'kept False\nrunning\n', done.stderr


@on_glibc
def test_freed_memory_goes_back_to_the_system():
  library = ctypes.CDLL(None)
  library.malloc.restype = ctypes.c_void_p
  library.free.argtypes = [ctypes.c_void_p]
  size, num_blocks = 100_000, 2_000  # not so large that each is mapped
  blocks = [library.malloc(size) for _ in range(num_blocks)]
  for block in blocks:
    ctypes.memset(block, 1, size)
  for block in blocks[:-1]:  # the last one keeps the others
    library.free(block)
  kept = resident_bytes()
  release_memory()
  assert resident_bytes() < kept - 0.9 * size * num_blocks
  library.free(blocks[-1])


def test_steps_are_compiled_with_these_options(monkeypatch):
  found = []

  def jit(function, **keywords):
    found.append(keywords['compiler_options'])

  devices = make_evaluation_mesh(jax.devices()[:1])
  monkeypatch.setattr(jax, 'jit', jit)
  steps.make_eval_step(devices, model=None, prepare=None)
  assert found == [compiler_options(devices)] != [{}]


def test_the_limit_of_open_files_becomes_the_hard_one():
  program = (
    'import resource\n'
    'from bn_inception.kernels import host\n'
    'resource.setrlimit(resource.RLIMIT_NOFILE, (200, 300))\n'
    'assert host.max_open_files() == 200\n'
    'host.allow_open_files()\n'
    'assert resource.getrlimit(resource.RLIMIT_NOFILE) == (300, 300)\n'
    'host.allow_open_files()\n'
    'assert host.max_open_files() == 300\n'
  )
  subprocess.run([sys.executable, '-c', program], check=True, cwd=ROOT)

"""How programs use the memory and the processors of the host."""

import ctypes
import os
import pathlib
import resource

import jax
from jax.sharding import Mesh

# XLA:CPU orders a program for many cores by default: what could run at once
# comes first. In its other order, of little memory, values are used while they
# are in the cache: a training step of a narrow network takes 0.75 as long on 2
# cores, and BN-Inception's has 13 % less in memory.
_ON_CPU = {'xla_cpu_scheduler_type': 'CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED'}
# Of mallopt, in malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4
_MANY_FILES = 2**16
_CONTAINER_LIMITS = (
  '/sys/fs/cgroup/memory.max',
  '/sys/fs/cgroup/memory/memory.limit_in_bytes',
)


def compiler_options(device_mesh: Mesh) -> dict:
  """For `jax.jit`; accelerators have XLA's own."""
  return _ON_CPU if device_mesh.devices.flat[0].platform == 'cpu' else {}


def keep_memory() -> None:
  """Has a step on the CPU use again the memory of the one before.

  XLA:CPU asks for all that a step needs at once (0.65 GB for BN-Inception and 16
  images), and the C library gives so large a block back to the system after each
  step, which clears it, page by page, for the next: an eighth of the time. Only
  the main thread's memory can be kept: see `run_steps_in_main_thread`. Where the C
  library is not glibc, its memory stays as it is.
  """
  set_option = getattr(ctypes.CDLL(None), 'mallopt', None)
  if set_option is not None:
    set_option(_M_MMAP_MAX, 0)
    set_option(_M_TRIM_THRESHOLD, -1)


def run_steps_in_main_thread() -> None:
  """Has the call of a compiled step on the CPU return when it is computed.

  Has to be called before JAX makes its devices. Programs do not: of small steps
  they would do a fifth less, since nothing is done beside them.
  """
  jax.config.update('jax_cpu_enable_async_dispatch', False)


def release_memory() -> None:
  """Gives back to the system what compilers have freed.

  The C library keeps it otherwise, in an arena of each of their threads: 0.7 GB
  after BN-Inception's training step. Does nothing where it is not glibc's.
  """
  trim = getattr(ctypes.CDLL(None), 'malloc_trim', None)
  if trim is not None:
    trim(0)


def allow_open_files() -> None:
  """Raises this process's limit of open files, and its workers', to the hard one.

  Many systems start programs with 1,024, which is what ImageNet's shards are.
  """
  soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
  # Some systems have a hard limit of a billion, and libraries with loops over it.
  wanted = (
    _MANY_FILES if hard == resource.RLIM_INFINITY else min(hard, _MANY_FILES)
  )
  if soft != resource.RLIM_INFINITY and soft < wanted:
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def max_open_files() -> int:
  """How many files this process may have open."""
  soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
  return _MANY_FILES if soft == resource.RLIM_INFINITY else soft


def memory_bytes() -> int:
  """What this process may use at most: the machine's, or its container's."""
  total = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')
  for path in _CONTAINER_LIMITS:
    if os.path.exists(path):
      text = pathlib.Path(path).read_text().strip()
      total = min(total, int(text)) if text.isdecimal() else total  # or 'max'
  return total

"""Sets up a process: quiet libraries, compilation cache, open files, signals."""

import os

import jax
from absl import logging

from bn_inception.data.directories import is_folder
from bn_inception.errors import UserError
from bn_inception.kernels import host
from bn_inception.machine import interruption, paths

CACHE_FOLDER = '~/.cache/bn_inception'  # of compiled programs


def prepare() -> None:
  """Quietens libraries, and turns on the cache of compiled programs.

  The cache is in $JAX_COMPILATION_CACHE_DIR, or in `CACHE_FOLDER`.
  """
  # Orbax and Grain narrate at the level of info.
  logging.set_verbosity(logging.WARNING)
  os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '2')
  # Grain's workers, when they are stopped early, leave shared memory to Python's
  # resource tracker, a process, which frees it and says so.
  os.environ.setdefault('PYTHONWARNINGS', 'ignore:resource_tracker')
  if 'TFDS_DATA_DIR' in os.environ:  # TFDS, imported later, takes ~ as it is
    folder = os.environ['TFDS_DATA_DIR']
    os.environ['TFDS_DATA_DIR'] = os.path.expanduser(folder)
  cache = jax.config.jax_compilation_cache_dir
  if cache != '':  # '' turns the cache off
    keep_compiled_programs(cache or CACHE_FOLDER)
  host.allow_open_files()


def prepare_alone() -> None:
  """Sets up what only a process that runs alone can have."""
  host.keep_memory()  # unsafe if other processes wait in a step
  interruption.watch(can_unwind=True)  # several processes would hang


def keep_compiled_programs(folder: str) -> None:
  """Turns on the cache in a folder; prints why if that is impossible."""
  try:
    folder = paths.expand(
      folder, '$JAX_COMPILATION_CACHE_DIR', may_be_bucket=True
    )
    if '://' in folder:
      is_folder(folder)  # complains about a bucket that cannot be asked
    else:
      os.makedirs(folder, exist_ok=True)
  except (OSError, UserError) as error:
    why = f'{folder}: {error.strerror}' if isinstance(error, OSError) else error
    print(f'compiled programs are not kept: {why}')
    folder = None
  jax.config.update('jax_compilation_cache_dir', folder)

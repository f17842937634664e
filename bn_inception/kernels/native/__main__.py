"""Builds the native convolutions for CPUs.

    pip install -r requirements-native.txt
    python -m bn_inception.kernels.native

compiles convolution.cc with g++ (or $CXX) against the headers of jaxlib and of
oneDNN, in a few seconds, into the Python environment in use.
"""

from bn_inception.machine import interruption

if __name__ == '__main__':
  interruption.watch()  # the other imports take seconds

import os
import pathlib
import subprocess

import jax

from bn_inception.errors import UserError
from bn_inception.kernels.native import LIBRARY, PREFIX
from bn_inception.programs import command_line

SOURCE = pathlib.Path(__file__).with_name('convolution.cc')
_REMEDY = 'pip install -r requirements-native.txt, then give this command again'


def build() -> None:
  """Compiles the library, and says where it is.

  Raises:
    UserError: if oneDNN or a compiler is not there, or does not work.
  """
  include, folder = PREFIX / 'include', PREFIX / 'lib'
  if not (include / 'dnnl.hpp').exists():
    raise UserError(f'oneDNN is not in {PREFIX}: {_REMEDY}')
  compiler = os.environ.get('CXX', 'g++')
  command = [
    compiler, '-std=c++17', '-O2', '-shared', '-fPIC', '-fopenmp',
    f'-I{jax.ffi.include_dir()}', f'-I{include}', str(SOURCE),
    f'-L{folder}', '-Wl,-rpath,$ORIGIN', '-ldnnl', '-o', str(LIBRARY),
  ]  # fmt: skip
  try:
    subprocess.run(command, check=True, capture_output=True, text=True)
  except FileNotFoundError as error:
    raise UserError(
      f'{compiler} is not installed: install it, or name another with CXX'
    ) from error
  except subprocess.CalledProcessError as error:
    lines = error.stderr.splitlines() or ['']
    first = next((line for line in lines if 'error' in line), lines[0])
    raise UserError(f'{compiler} failed: {first}') from error
  print(f'built {LIBRARY}')


if __name__ == '__main__':
  command_line.run(build)

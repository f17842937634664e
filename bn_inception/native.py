"""The optional native convolutions for CPUs: builds and loads convolution.cc.

    pip install -r requirements-native.txt
    python -m bn_inception.native

compiles it with g++ (or $CXX) against the headers of jaxlib and oneDNN in a few
seconds, into the Python environment in use. Without that step everything works,
slower on CPUs.
"""

import ctypes
import functools
import os
import pathlib
import subprocess
import sys

import jax

from bn_inception.errors import UserError

SOURCE = pathlib.Path(__file__).with_name('convolution.cc')
PREFIX = pathlib.Path(sys.prefix)
# XLA's interface changes with jax, which refuses a library made for another one.
LIBRARY = PREFIX / 'lib' / f'bn_inception_convolution_jax_{jax.__version__}.so'
FORWARD = 'bn_inception_convolve'
INPUT_GRADIENT = 'bn_inception_convolve_input_gradient'
KERNEL_GRADIENT = 'bn_inception_convolve_kernel_gradient'
_SYMBOLS = {
  FORWARD: 'ConvolveForward',
  INPUT_GRADIENT: 'ConvolveInputGradient',
  KERNEL_GRADIENT: 'ConvolveKernelGradient',
}
_REMEDY = 'pip install -r requirements-native.txt, then give this command again'


@functools.cache
def load() -> bool:
  """Whether there are native convolutions; XLA knows them from now on."""
  if not LIBRARY.exists():
    return False
  # Else the threads of OpenMP, between convolutions, keep XLA's from the cores:
  # that cost a seventh of the speed of training.
  os.environ.setdefault('OMP_WAIT_POLICY', 'passive')
  library = ctypes.CDLL(str(LIBRARY))
  for name, symbol in _SYMBOLS.items():
    handler = jax.ffi.pycapsule(getattr(library, symbol))
    jax.ffi.register_ffi_target(name, handler, platform='cpu')
  return True


def describe() -> str:
  """Whose convolutions this process uses, and how to get faster ones."""
  if jax.default_backend() != 'cpu':
    return "XLA's"
  if load():
    return "oneDNN's, in float32"
  return "XLA's; python -m bn_inception.native builds faster ones"


def build() -> None:
  """Compiles the library.

  Raises:
    UserError: if oneDNN or a compiler is not there, or does not work.
  """
  include, folder = PREFIX / 'include', PREFIX / 'lib'
  if not (include / 'dnnl.hpp').exists():
    raise UserError(f'oneDNN is not in {PREFIX}: {_REMEDY}')
  compiler = os.environ.get('CXX', 'g++')
  command = [
    compiler, '-std=c++17', '-O2', '-shared', '-fPIC',
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


if __name__ == '__main__':
  build()
  print(f'built {LIBRARY}')

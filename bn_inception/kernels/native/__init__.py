"""The optional native convolutions for CPUs.

`python -m bn_inception.kernels.native` builds them from convolution.cc. Without them
everything works, slower on CPUs.
"""

import ctypes
import functools
import os
import pathlib
import sys

import jax

from bn_inception.errors import UserError

PREFIX = pathlib.Path(sys.prefix)
# XLA's interface changes with jax, which refuses a library made for another one.
LIBRARY = PREFIX / 'lib' / f'bn_inception_convolution_jax_{jax.__version__}.so'
# What XLA calls them; `convolution.py` has their arguments.
FORWARD = 'bn_inception_convolve'
INPUT_GRADIENT = 'bn_inception_convolve_input_gradient'
KERNEL_GRADIENT = 'bn_inception_convolve_kernel_gradient'
_SYMBOLS = {
  FORWARD: 'ConvolveForward',
  INPUT_GRADIENT: 'ConvolveInputGradient',
  KERNEL_GRADIENT: 'ConvolveKernelGradient',
}


@functools.cache
def load() -> bool:
  """Whether there are native convolutions; XLA knows them from now on.

  Raises:
    UserError: if they are there and cannot be loaded.
  """
  if not LIBRARY.exists():
    return False
  # Else the threads of OpenMP spin for a while after each convolution, on cores
  # that XLA's want.
  os.environ.setdefault('OMP_WAIT_POLICY', 'passive')
  try:
    library = ctypes.CDLL(str(LIBRARY))
  except OSError as error:
    raise UserError(
      f'the native convolutions cannot be loaded ({error}): delete {LIBRARY}, or '
      'build them again with python -m bn_inception.kernels.native'
    ) from error
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
  return "XLA's; python -m bn_inception.kernels.native builds faster ones"

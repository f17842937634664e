"""Three ways to compute a mini-batch's mean and variance: accuracy and cost.

  python benchmarks/batch_statistics.py

Prints the tables of results/batch_statistics.md. All reduce in float32:

* naive: one pass, var = E[x^2] - E[x]^2
* shifted: one pass over d = x - s, where s is the mean of the first example;
  mean = s + E[d], var = E[d^2] - E[d]^2. Since the first is one of n examples,
  (s - mean)^2 <= (n - 1) * var, so that cancellation costs a factor of the
  order of n.
* two passes: var = E[(x - mean)^2]

Where libtpu is installed, the compiler for TPU v5e counts bytes too; that needs
no TPU.
"""

import importlib.util
import os
import pathlib
import statistics
import sys
import time
from collections.abc import Sequence
from functools import partial
from unittest import mock

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies

from bn_inception import batch_norm
from bn_inception.batch_norm import BatchStats
from bn_inception.programs import markdown

AXES = (0, 1, 2)
SHAPES = (
  (32, 56, 56, 64),
  (32, 28, 28, 192),
  (32, 14, 14, 576),
  (32, 7, 7, 1024),
)
# 206 MB in bfloat16: more than the 128 MiB on the chip of a TPU v5e.
LARGE_SHAPE = (512, 56, 56, 64)
NUM_RUNS = 61
UNIT_ROUNDOFF = 2.0**-24  # of float32, 6.0e-8


def naive(x):
  x = x.astype(jnp.float32)
  mean = jnp.mean(x, AXES)
  return BatchStats(mean, jnp.mean(jnp.square(x), AXES) - jnp.square(mean))


def shifted(x):
  # Not clipped at 0: the tables are to show whether it becomes negative.
  x = x.astype(jnp.float32)
  shift = jnp.mean(x[0], (0, 1))
  d = x - shift
  mean = jnp.mean(d, AXES)
  var = jnp.mean(jnp.square(d), AXES) - jnp.square(mean)
  return BatchStats(shift + mean, var)


two_pass = partial(batch_norm.batch_statistics, axes=AXES)


VARIANTS = {'naive': naive, 'shifted': shifted, 'two passes': two_pass}


def print_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
  print(f'\n{markdown.table(head, rows)}', flush=True)


def print_accuracy() -> None:
  """Largest relative error of the variance against float64."""
  rng = np.random.default_rng(0)
  noise = rng.normal(size=(32, 14, 14, 16))
  inputs = {
    f'mean = {ratio} std': ratio + noise for ratio in (0, 10, 100, 1000, 10_000)
  }
  for outlier in (100, 1000):
    name = f'first example = {outlier}, others mean 0 std 1'
    inputs[name] = noise.copy()
    inputs[name][0] = outlier
  rows = []
  for name, values in inputs.items():
    for dtype in (jnp.float32, jnp.bfloat16):
      x = jnp.asarray(values, dtype)
      exact = np.asarray(x, np.float64).var(AXES)
      # Far from zero bfloat16 rounds all values to one: no relative error.
      known = exact > 0
      cells = []
      for variant in VARIANTS.values():
        var = np.asarray(jax.jit(variant)(x).var)
        negative = ', negative' if var.min() < 0 else ''
        if known.all():
          error = np.max(np.abs(var - exact) / exact)
          cells.append(f'{error:.1e}{negative}')
        else:
          error = np.max(np.abs(var - exact))
          cells.append(f'(absolute) {error:.1e}{negative}')
      rows.append([name, jnp.dtype(dtype).name, *cells])
  print_table(['input', 'dtype', *VARIANTS], rows)


def print_constant() -> None:
  """Smallest and largest variance of inputs that have none."""
  constants = np.float32(np.random.default_rng(0).uniform(1, 2000, 1024))
  x = jnp.broadcast_to(constants, (32, 7, 7, 1024))
  ratios = [
    np.asarray(jax.jit(variant)(x).var) / constants**2
    for variant in VARIANTS.values()
  ]
  rows = [
    [f'{name} var / mean^2', *(f'{extreme(ratio):.1e}' for ratio in ratios)]
    for name, extreme in (('smallest', np.min), ('largest', np.max))
  ]
  print_table(['constant input', *VARIANTS], rows)


def print_bound() -> None:
  """The shifted variance's worst case: one example far from n - 1 others.

  Columns: how much of the bound (s - mean)^2 <= (n - 1) * var is used, in
  float64; and the largest relative error of the variance, also in units of
  n * 2^-24.
  """
  rows = []
  rng = np.random.default_rng(0)
  for num_examples in (2, 8, 32, 128, 512):
    used = error = 0.0
    for outlier in (1e1, 1e2, 1e3, 1e4, 1e5):
      x = rng.normal(size=(num_examples, 14, 14, 16)).astype(np.float32)
      x[0] = outlier
      exact = np.float64(x)
      mean, var = exact.mean(AXES), exact.var(AXES)
      square = np.square(exact[0].mean((0, 1)) - mean)
      used = max(used, np.max(square / ((num_examples - 1) * var)))
      computed = np.asarray(jax.jit(shifted)(x).var)
      error = max(error, np.max(np.abs(computed - var) / var))
    units = error / (num_examples * UNIT_ROUNDOFF)
    rows.append(
      [str(num_examples), f'{used:.7f}', f'{error:.1e}', f'{units:.1f}']
    )
  head = ['n', '(s - mean)^2 / ((n - 1) var)', 'error', 'error / (n 2^-24)']
  print_table(head, rows)


def forward(variant):
  """Batch norm without its gradient."""

  def norm(x, scale, bias, dy):
    return batch_norm.normalize(x, variant(x), scale, bias, 1e-3)

  return jax.jit(norm)


def derived_gradient(variant):
  """Batch norm whose gradient JAX derives through the statistics."""

  def loss(x, scale, bias, dy):
    y = forward(variant)(x, scale, bias, dy)
    return jnp.sum(y * dy), y

  return jax.jit(jax.grad(loss, (0, 1, 2), has_aux=True))


def custom_gradient(variant):
  """The library's batch norm with its own gradient, on other statistics."""

  def loss(x, scale, bias, dy):
    with mock.patch.object(
      batch_norm, 'batch_statistics', lambda x, axes, axis_name: variant(x)
    ):
      y, _ = batch_norm.batch_normalize(x, scale, bias, 1e-3, AXES)
    return jnp.sum(y * dy), y

  return jax.jit(jax.grad(loss, (0, 1, 2), has_aux=True))


def median_seconds(functions: dict, arguments: tuple) -> dict[str, float]:
  """Medians of interleaved runs."""
  seconds = {name: [] for name in functions}
  for function in functions.values():
    jax.block_until_ready(function(*arguments))
  for _ in range(NUM_RUNS):
    for name, function in functions.items():
      start = time.perf_counter()
      jax.block_until_ready(function(*arguments))
      seconds[name].append(time.perf_counter() - start)
  return {name: statistics.median(values) for name, values in seconds.items()}


def compiled_bytes(function, arguments) -> float:
  return function.lower(*arguments).compile().cost_analysis()['bytes accessed']


def print_cost(title: str, functions: dict, baseline: str) -> None:
  """Median time, and bytes in parentheses, relative to the baseline."""
  rows = []
  rng = np.random.default_rng(0)
  for shape in SHAPES:
    x, dy = (jnp.float32(rng.normal(size=shape)) for _ in range(2))
    arguments = (x, jnp.ones(shape[-1]), jnp.zeros(shape[-1]), dy)
    seconds = median_seconds(functions, arguments)
    sizes = {n: compiled_bytes(f, arguments) for n, f in functions.items()}
    cells = [
      f'{seconds[n] / seconds[baseline]:.2f} ({sizes[n] / sizes[baseline]:.2f})'
      for n in functions
    ]
    label = f'{shape}: {1e3 * seconds[baseline]:.1f} ms'
    label += f', {sizes[baseline] / 1e6:.0f} MB'
    rows.append([label, *cells])
  print_table([title, *functions], rows)


def print_tpu_bytes(functions: dict, baseline: str) -> None:
  """Bytes by the count of the compiler for TPU v5e, relative to the baseline.

  It counts accesses to on-chip memory too. The compiler copies activations that
  fit there first, so that only `LARGE_SHAPE` tells of the main memory.
  """
  if importlib.util.find_spec('libtpu') is None:
    print('\nlibtpu is not installed: no bytes for TPU')
    return
  os.environ['TPU_SKIP_MDS_QUERY'] = '1'  # there is no TPU to ask about
  device = topologies.get_topology_desc('v5e:2x2', 'tpu').devices[0]
  sharding = jax.sharding.SingleDeviceSharding(device)
  rows = []
  for shape in (*SHAPES, LARGE_SHAPE):
    for dtype in (jnp.float32, jnp.bfloat16):
      x = jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)
      scale = jax.ShapeDtypeStruct(shape[-1:], jnp.float32, sharding=sharding)
      arguments = (x, scale, scale, x)
      sizes = {n: compiled_bytes(f, arguments) for n, f in functions.items()}
      cells = [f'{sizes[n] / sizes[baseline]:.2f}' for n in functions]
      label = f'{shape}: {sizes[baseline] / 1e6:.0f} MB'
      rows.append([label, jnp.dtype(dtype).name, *cells])
  print_table(['TPU v5e, with gradient', 'dtype', *functions], rows)


if __name__ == '__main__':
  jax.config.update('jax_platforms', 'cpu')
  print_accuracy()
  print_constant()
  print_bound()
  print_cost(
    'forward', {n: forward(v) for n, v in VARIANTS.items()}, 'two passes'
  )
  derived = {f'derived, {n}': derived_gradient(v) for n, v in VARIANTS.items()}
  custom = {f'ours, {n}': custom_gradient(v) for n, v in VARIANTS.items()}
  print_cost('with gradient', derived | custom, 'derived, two passes')
  print_tpu_bytes(derived | custom, 'derived, two passes')

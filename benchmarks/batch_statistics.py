"""Three ways to compute a mini-batch's mean and variance: accuracy and cost.

  python benchmarks/batch_statistics.py

Prints the tables of docs/batch_norm.md. All reduce in float32:

* naive: one pass, var = E[x^2] - E[x]^2
* shifted: one pass over d = x - s, where s is the mean of the first example;
  mean = s + E[d], var = E[d^2] - E[d]^2. Since the first is one of n examples,
  (s - mean)^2 <= (n - 1) * var, so that cancellation costs at most a factor n.
* two passes: var = E[(x - mean)^2]
"""

import pathlib
import statistics
import sys
import time
from functools import partial
from unittest import mock

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))

import jax
import jax.numpy as jnp
import numpy as np

from bn_inception import batch_norm
from bn_inception.batch_norm import BatchStats

AXES = (0, 1, 2)
SHAPES = (
  (32, 56, 56, 64),
  (32, 28, 28, 192),
  (32, 14, 14, 576),
  (32, 7, 7, 1024),
)
NUM_RUNS = 9


def naive(x):
  x = x.astype(jnp.float32)
  mean = jnp.mean(x, AXES)
  return BatchStats(mean, jnp.mean(jnp.square(x), AXES) - jnp.square(mean))


def shifted(x):
  x = x.astype(jnp.float32)
  shift = jnp.mean(x[0], (0, 1))
  d = x - shift
  mean = jnp.mean(d, AXES)
  var = jnp.mean(jnp.square(d), AXES) - jnp.square(mean)
  return BatchStats(shift + mean, jnp.maximum(var, 0.0))


two_pass = partial(batch_norm.batch_statistics, axes=AXES)


VARIANTS = {'naive': naive, 'shifted': shifted, 'two passes': two_pass}


def print_accuracy() -> None:
  """Largest relative error of the variance against float64."""
  rng = np.random.default_rng(0)
  noise = rng.normal(size=(32, 14, 14, 16))
  inputs = {
    f'mean = {ratio} std': (ratio + noise, jnp.float32)
    for ratio in (0, 10, 100, 1000, 10_000)
  }
  inputs['mean = 10 std, bfloat16'] = (10 + noise, jnp.bfloat16)
  outlier = noise.copy()
  outlier[0] = 1000.0
  inputs['first example = 1000 std'] = (outlier, jnp.float32)
  print(f'| input | {" | ".join(VARIANTS)} |')
  print(f'| --- |{" --- |" * len(VARIANTS)}')
  for name, (values, dtype) in inputs.items():
    x = jnp.asarray(values, dtype)
    exact = np.asarray(x, np.float64).var(AXES)
    cells = []
    for variant in VARIANTS.values():
      var = np.asarray(jax.jit(variant)(x).var)
      error = np.max(np.abs(var - exact) / exact)
      cells.append(f'{error:.1e}{", negative" if var.min() < 0 else ""}')
    print(f'| {name} | {" | ".join(cells)} |')


def forward(variant):
  """Batch norm without its gradient."""

  def norm(x, scale, bias, dy):
    return batch_norm.normalize(x, variant(x), scale, bias, 1e-3)

  return jax.jit(norm)


def derived_gradient(variant):
  """Batch norm whose gradient JAX derives through the statistics."""

  def loss(x, scale, bias, dy):
    return jnp.sum(forward(variant)(x, scale, bias, dy) * dy)

  return jax.jit(jax.grad(loss, (0, 1, 2)))


def custom_gradient(variant):
  """The library's batch norm with its own gradient, on other statistics."""

  def loss(x, scale, bias, dy):
    with mock.patch.object(
      batch_norm, 'batch_statistics', lambda x, axes, axis_name: variant(x)
    ):
      y, _ = batch_norm.batch_normalize(x, scale, bias, 1e-3, AXES)
    return jnp.sum(y * dy)

  return jax.jit(jax.grad(loss, (0, 1, 2)))


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
  print(f'\n| {title} | ' + ' | '.join(functions) + ' |')
  print(f'| --- |{" --- |" * len(functions)}')
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
    milliseconds = 1e3 * seconds[baseline]
    print(
      f'| {shape}: {milliseconds:.1f} ms | {" | ".join(cells)} |', flush=True
    )


if __name__ == '__main__':
  print_accuracy()
  print_cost(
    'forward', {n: forward(v) for n, v in VARIANTS.items()}, 'two passes'
  )
  derived = {'derived, two passes': derived_gradient(two_pass)}
  custom = {f'ours, {n}': custom_gradient(v) for n, v in VARIANTS.items()}
  print_cost('with gradient', derived | custom, 'derived, two passes')

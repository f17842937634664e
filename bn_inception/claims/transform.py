"""Claims about the transform alone: Sections 2, 3 and 3.3, on synthetic data.

Each experiment is a function without arguments that returns a `Claim`. The
`criterion` was fixed before the numbers were seen.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bn_inception.batch_norm import batch_statistics, normalize

Array = jax.Array


class Claim(NamedTuple):
  """A claim of the paper, and what was measured.

  Attributes:
    sentence: what the paper says, in our words.
    criterion: what the numbers must satisfy for the claim to hold.
    numbers: the measurements; NaN and infinities are allowed.
    held: whether they satisfy the criterion.
    finding: one line for the reader.
    draw: draws into a matplotlib figure; None: the claim has no figure.
  """

  sentence: str
  criterion: str
  numbers: dict[str, float]
  held: bool
  finding: str
  draw: Callable[[Any], None] | None = None


def relative_error(value: Array, expected: Array) -> float:
  """|value - expected| / |expected|, in Euclidean norms."""
  value, expected = np.float64(value), np.float64(expected)
  return float(np.linalg.norm(value - expected) / np.linalg.norm(expected))


@partial(jax.jit, static_argnames=('full_gradient', 'scales', 'num_steps'))
def descend(
  u: Array,
  target: Array,
  learning_rate: float,
  full_gradient: bool,
  scales: bool,
  num_steps: int,
) -> dict[str, Array]:
  """Gradient descent on a weight and a bias in front of a normalisation.

  x = weight * u + bias, loss = mean (Norm(x) - target)^2 / 2, from weight 1 and
  bias 0.

  Args:
    u, target: [m].
    learning_rate: constant.
    full_gradient: whether to differentiate through the statistics.
    scales: whether the norm divides by the standard deviation, and the weight is
      learned; otherwise it only centres.
    num_steps: of the descent.

  Returns:
    'weight', 'bias', 'loss' and 'gradient' (the largest component), each
    [num_steps], before each step.
  """

  def loss_of(params):
    weight = params['weight'] if scales else 1.0
    x = weight * u + params['bias']
    stats = batch_statistics(x, (0,))
    if not scales:
      stats = stats._replace(var=jnp.ones_like(stats.var))
    if not full_gradient:
      stats = jax.lax.stop_gradient(stats)
    x_hat = normalize(x, stats, None, None, epsilon=0.0)
    return jnp.mean(jnp.square(x_hat - target)) / 2

  def step(params, _):
    loss, grads = jax.value_and_grad(loss_of)(params)
    largest = jnp.maximum(*(jnp.abs(g) for g in grads.values()))
    record = {**params, 'loss': loss, 'gradient': largest}
    new = jax.tree.map(lambda p, g: p - learning_rate * g, params, grads)
    return new, record

  start = {'weight': jnp.float32(1), 'bias': jnp.float32(0)}
  return jax.lax.scan(step, start, length=num_steps)[1]


def bias_example() -> Claim:
  """Section 2: b grows without bound if the step ignores dE[x]/db."""
  num_steps, rate = 1000, 0.1
  rng = np.random.default_rng(0)
  u = rng.normal(size=256)
  u = np.float32((u - u.mean()) / u.std())
  run = partial(descend, u, learning_rate=rate, num_steps=num_steps)
  runs = {
    'centred, ignored': run(u + 1, full_gradient=False, scales=False),
    'centred, full': run(u + 1, full_gradient=True, scales=False),
    'scaled, ignored': run(2 * u + 1, full_gradient=False, scales=True),
    'scaled, full': run(2 * u + 1, full_gradient=True, scales=True),
    'scaled to smaller, ignored': run(
      u / 2 + 1, full_gradient=False, scales=True
    ),
  }
  numbers = {'b expected, centred, ignored': (num_steps - 1) * rate}
  for name, records in runs.items():
    r = {key: np.float64(value) for key, value in records.items()}
    numbers[f'b, {name}'] = r['bias'][-1]
    if name.startswith('scaled'):
      numbers[f'w, {name}'] = r['weight'][-1]
    spread = np.ptp(r['loss']) / r['loss'][0]
    numbers[f'loss change, {name}'] = spread
    numbers[f'gradient growth, {name}'] = r['gradient'].max() / r['gradient'][0]
  second_half = {
    name: float(r['bias'][-1] - r['bias'][num_steps // 2])
    for name, r in runs.items()
  }
  expected = numbers['b expected, centred, ignored']
  held = (
    abs(numbers['b, centred, ignored'] / expected - 1) < 1e-3
    and second_half['scaled, ignored'] > 1
    and numbers['w, scaled, ignored'] > 2
    and all(
      numbers[f'loss change, {kind}, {gradient}'] < 1e-4
      for kind in ('centred', 'scaled')
      for gradient in ('ignored', 'full')
    )
    and abs(numbers['b, centred, full']) < 1e-3
    and abs(numbers['b, scaled, full']) < 1e-3
    and abs(numbers['w, scaled, full'] - 1) < 1e-3
    and numbers['gradient growth, scaled to smaller, ignored'] > 2
  )

  def draw(figure):
    left, right = figure.subplots(1, 2)
    for name in list(runs)[:4]:
      style = '-' if name.endswith('ignored') else '--'
      left.plot(runs[name]['bias'], style, label=name)
      right.plot(runs[name]['loss'], style, label=name)
    left.set(xlabel='steps', ylabel='b')
    right.set(xlabel='steps', ylabel='loss', ylim=(0, None))
    for axes in (left, right):
      axes.grid(alpha=0.3)
      axes.legend()

  return Claim(
    'Steps that treat the statistics as constants move b forever without '
    'changing the loss; also dividing by the standard deviation makes it worse; '
    'the full gradient prevents it.',
    'ignored: b = steps x rate within 0.1 % (centred), w > 2 and b up by more '
    'than 1 in the second half (scaled), loss constant within 1e-4, gradient '
    'grows more than twofold where the target is smaller; full: w and b move '
    'less than 1e-3',
    numbers,
    held,
    f'After {num_steps} steps b = {numbers["b, centred, ignored"]:.1f} if the '
    f'statistics are constants, {numbers["b, centred, full"]:.1e} with the full '
    'gradient. '
    'With scaling both w and b drift (to '
    f'{numbers["w, scaled, ignored"]:.1f} and '
    f'{numbers["b, scaled, ignored"]:.1f}: b more slowly, since w divides its '
    'gradient); where the target is smaller, w falls to 0 and the gradient '
    f'grows {numbers["gradient growth, scaled to smaller, ignored"]:.0f}-fold.',
    draw,
  )


def _loss_of_layer(
  weight: Array, u: Array, coefficients: Array, epsilon: float
) -> tuple[Array, Array]:
  """A smooth loss of BN(W u), and BN(W u)."""
  x = u @ weight
  y = normalize(x, batch_statistics(x, (0,)), None, None, epsilon)
  return jnp.sum(coefficients * y + jnp.sin(y)), y


def compare_scaled(
  weight: Array, u: Array, coefficients: Array, factor: float, epsilon: float
) -> dict[str, float]:
  """Relative errors of the three equations of Section 3.3 at one factor a.

  Returns:
    'output': of BN((aW)u) = BN(Wu); 'input gradient': of the same equality;
    'weight gradient': of the gradient at aW being 1/a of that at W; 'cosine': the
    largest |cosine| between a unit's weights and their gradient.
  """
  loss = jax.value_and_grad(_loss_of_layer, (0, 1), has_aux=True)
  (_, y), (d_weight, d_input) = loss(weight, u, coefficients, epsilon)
  (_, y_scaled), (d_weight_scaled, d_input_scaled) = loss(
    factor * weight, u, coefficients, epsilon
  )
  w, g = np.float64(weight), np.float64(d_weight)
  cosine = (w * g).sum(0) / np.linalg.norm(w, axis=0)
  cosine /= np.linalg.norm(g, axis=0)
  return {
    'output': relative_error(y_scaled, y),
    'input gradient': relative_error(d_input_scaled, d_input),
    'weight gradient': relative_error(factor * d_weight_scaled, d_weight),
    'cosine': float(np.abs(cosine).max()),
  }


def scale_invariance() -> Claim:
  """Section 3.3: BN is invariant to the scale of the weights."""
  rng = np.random.default_rng(0)
  weight = np.float32(rng.normal(size=(20, 10)) / np.sqrt(20))
  u = np.float32(1 + rng.normal(size=(256, 20)))
  coefficients = np.float32(rng.normal(size=(256, 10)))
  compare = partial(compare_scaled, weight, u, coefficients)
  numbers, exact = {}, []
  for factor in (0.01, 0.1, 10.0, 100.0):
    errors = compare(factor, 0.0)
    exact += errors.values()
    numbers |= {f'{key}, a={factor:g}': v for key, v in errors.items()}
  for factor in (0.1, 10.0):
    for key, value in compare(factor, 1e-3).items():
      numbers[f'{key}, a={factor:g}, epsilon=1e-3'] = value
  negative = compare(-1.0, 0.0)
  numbers['output, a=-1'] = negative['output']
  flipped = _loss_of_layer(-weight, u, coefficients, 0.0)[1]
  original = _loss_of_layer(weight, u, coefficients, 0.0)[1]
  numbers['output, a=-1, sign turned'] = relative_error(-flipped, original)
  return Claim(
    'Scaling the weights by a changes neither the output nor the gradient with '
    'respect to the input, and divides that with respect to the weights by a; '
    'so the weights of a unit and their gradient are orthogonal.',
    'epsilon = 0, a > 0: all four relative errors below 1e-4 (float32)',
    numbers,
    max(exact) < 1e-4,
    f'Largest error {max(exact):.0e}. It needs a > 0 (a = -1 flips the sign) '
    'and epsilon = 0: at 1e-3 and a = 0.1 the output is off by '
    f'{numbers["output, a=0.1, epsilon=1e-3"]:.1%}.',
  )


def identity_and_moments() -> Claim:
  """Section 3: moments of x_hat, and the scale and shift that undo it."""
  rng = np.random.default_rng(0)
  std = np.float32([0.03, 0.3, 1.0, 30.0])
  x = np.float32(2 + std * rng.normal(size=(512, 4)))
  stats = batch_statistics(x, (0,))
  numbers = {}
  for epsilon in (0.0, 1e-3):
    x_hat = np.float64(normalize(x, stats, None, None, epsilon))
    recovered = normalize(x, stats, jnp.sqrt(stats.var), stats.mean, epsilon)
    expected = np.float64(stats.var) / (np.float64(stats.var) + epsilon)
    label = f'epsilon={epsilon:g}'
    numbers[f'|mean of x_hat|, {label}'] = float(np.abs(x_hat.mean(0)).max())
    numbers[f'error of mean x_hat^2 = var / (var + epsilon), {label}'] = float(
      np.abs(np.square(x_hat).mean(0) - expected).max()
    )
    numbers[f'smallest mean x_hat^2, {label}'] = float(
      np.square(x_hat).mean(0).min()
    )
    numbers[f'error of the identity, {label}'] = float(
      (np.abs(recovered - x).max(0) / std).max()
    )
  exact = [
    numbers['|mean of x_hat|, epsilon=0'],
    numbers['error of mean x_hat^2 = var / (var + epsilon), epsilon=0'],
    numbers['error of mean x_hat^2 = var / (var + epsilon), epsilon=0.001'],
    numbers['error of the identity, epsilon=0'],
  ]
  return Claim(
    'x_hat sums to 0 and has mean square 1 (neglecting epsilon), and gamma = '
    'sqrt(Var), beta = E restore x.',
    'all errors below 1e-4; for the identity in units of the standard deviation '
    'and at epsilon = 0',
    numbers,
    max(exact) < 1e-4,
    f'Largest error {max(exact):.0e}. Epsilon = 1e-3 is not negligible for a '
    'feature with standard deviation 0.03: mean x_hat^2 = '
    f'{numbers["smallest mean x_hat^2, epsilon=0.001"]:.2f}.',
  )


@jax.custom_vjp
def inverse_square_root(matrix: Array) -> Array:
  """M^(-1/2) of a symmetric positive definite matrix.

  The derivative is written out (Daleckii and Krein), since that of eigenvectors
  divides by differences of eigenvalues.
  """
  return _inverse_square_root_forward(matrix)[0]


def _inverse_square_root_forward(matrix):
  eigenvalues, vectors = jnp.linalg.eigh(matrix)
  root = jnp.sqrt(eigenvalues)
  return (vectors / root) @ vectors.T, (root, vectors)


def _inverse_square_root_backward(residuals, d_output):
  root, vectors = residuals
  divided = -1 / (jnp.outer(root, root) * (root[:, None] + root))
  inner = vectors.T @ d_output @ vectors
  return (vectors @ (divided * inner) @ vectors.T,)


inverse_square_root.defvjp(
  _inverse_square_root_forward, _inverse_square_root_backward
)


def decorrelate(x: Array, kind: str, epsilon: float) -> Array:
  """Centres and decorrelates the features of x over the batch.

  Args:
    x: [m, d], with m > d.
    kind: 'zca': Cov^(-1/2) (x - E[x]), the whitening of Section 2; 'pca': the
      principal components, each divided by its std; 'rotation': the principal
      components as they are.
    epsilon: added to the diagonal of the covariance.

  Returns:
    [m, d].
  """
  centred = x - batch_statistics(x, (0,)).mean
  covariance = centred.T @ centred / len(x) + epsilon * jnp.eye(x.shape[1])
  if kind == 'zca':
    return centred @ inverse_square_root(covariance)
  eigenvalues, vectors = jnp.linalg.eigh(covariance)
  components = centred @ vectors
  return components / jnp.sqrt(eigenvalues) if kind == 'pca' else components

"""Small perceptrons on scikit-learn's digits, for the claims about networks.

Plain functions on a list of layers, not `bn_inception.perceptron`: the claims
need any function of the batch as the norm, noise after it, and gradients at the
inputs of the nonlinearities. The batch norm is `bn_inception.batch_norm`'s.
"""

import functools
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bn_inception import layers
from bn_inception.batch_norm import batch_statistics, normalize
from bn_inception.claims.transform import decorrelate
from bn_inception.data import sources

Array = jax.Array
Params = list[dict[str, Array]]

EPSILON = 1e-3


class Network(NamedTuple):
  """A perceptron: norm and nonlinearity after every layer except the last.

  Attributes:
    sizes: of the input, the hidden layers and the output.
    norm: 'none', 'batch', or a kind of `decorrelate`.
    nonlinearity: a key of `NONLINEARITIES`.
  """

  sizes: tuple[int, ...]
  norm: str
  nonlinearity: str = 'sigmoid'


NONLINEARITIES = layers.NONLINEARITIES | {'linear': lambda x: x}


@functools.cache
def load_digits() -> tuple[np.ndarray, np.ndarray]:
  """The training split: float32 [1442, 64] in [0, 1], int32 [1442]."""
  source = sources.make_source('digits', 'train')
  pairs = [source[i] for i in range(len(source))]
  images = np.stack([image.reshape(-1) for image, _ in pairs])
  return np.float32(images / 255), np.int32([label for _, label in pairs])


def make_batches(
  num_steps: int, batch_size: int, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
  """Random mini-batches: images [steps, batch, 64] and labels [steps, batch]."""
  images, labels = load_digits()
  rng = np.random.default_rng(seed)
  chosen = rng.integers(len(labels), size=(num_steps, batch_size))
  return images[chosen], labels[chosen]


def initial_params(
  sizes: tuple[int, ...], factor: float = 1.0, seed: int = 0
) -> Params:
  """Gaussian weights with std factor / sqrt(fan-in); scales 1, biases 0."""
  rng = np.random.default_rng(seed)
  return [
    {
      'weight': jnp.float32(
        factor / np.sqrt(fan_in) * rng.normal(size=(fan_in, fan_out))
      ),
      'scale': jnp.ones(fan_out),
      'bias': jnp.zeros(fan_out),
    }
    for fan_in, fan_out in zip(sizes[:-1], sizes[1:], strict=True)
  ]


def apply_norm(norm: str, x: Array, layer: dict[str, Array]) -> Array:
  """scale * norm(x) + bias; x + bias without a norm."""
  scale, bias = layer['scale'], layer['bias']
  if norm == 'none':
    return x + bias
  if norm == 'batch':
    return normalize(x, batch_statistics(x, (0,)), scale, bias, EPSILON)
  return scale * decorrelate(x, norm, EPSILON) + bias


def moving_noise(x: Array, key: Array) -> Array:
  """Adds noise whose mean and std change at every step (Santurkar et al. 2018).

  Each unit draws mean ~ U(-0.5, 0.5) and std ~ U(1, 1.25) for the step. Each
  example is then scaled by std +- 0.1 and shifted by mean +- 0.1.
  """
  keys = jax.random.split(key, 4)
  uniform = partial(jax.random.uniform, shape=x.shape)
  mean = jax.random.uniform(keys[0], x.shape[1:], minval=-0.5, maxval=0.5)
  deviation = jax.random.uniform(keys[1], x.shape[1:], minval=1, maxval=1.25)
  offset = mean + uniform(keys[2], minval=-0.1, maxval=0.1)
  factor = deviation + uniform(keys[3], minval=-0.1, maxval=0.1)
  return factor * x + offset


def forward(
  network: Network,
  params: Params,
  x: Array,
  noise_key: Array | None = None,
  offsets: list[Array] | None = None,
) -> tuple[Array, list[Array]]:
  """The logits [N, 10], and the inputs [N, units] of every nonlinearity.

  Args:
    network: its norm and nonlinearity.
    params: see `initial_params`.
    x: [N, features].
    noise_key: for `moving_noise` after every norm; None: no noise.
    offsets: added to the inputs of the nonlinearities; at 0 their gradients are
      the gradients of the inputs.
  """
  inputs = []
  for i, layer in enumerate(params[:-1]):
    x = apply_norm(network.norm, x @ layer['weight'], layer)
    if noise_key is not None:
      x = moving_noise(x, jax.random.fold_in(noise_key, i))
    if offsets is not None:
      x = x + offsets[i]
    inputs.append(x)
    x = NONLINEARITIES[network.nonlinearity](x)
  return x @ params[-1]['weight'] + params[-1]['bias'], inputs


def cross_entropy(logits: Array, labels: Array) -> Array:
  """Mean over the batch, in nats.

  Not optax's, which rounds differently: training at high rates is chaotic, and
  the published numbers would change.
  """
  log_p = jax.nn.log_softmax(logits)
  return -jnp.mean(jnp.take_along_axis(log_p, labels[:, None], 1))


@partial(jax.jit, static_argnames=('network', 'has_noise', 'measure'))
def train(
  network: Network,
  params: Params,
  batches: tuple[Array, Array],
  learning_rate: float,
  has_noise: bool = False,
  measure: Callable | None = None,
) -> tuple[Params, Any]:
  """SGD without momentum, one step per batch.

  Args:
    network, params: what to train.
    batches: images [steps, batch, 64] and labels [steps, batch].
    learning_rate: constant.
    has_noise: apply `moving_noise` after every norm.
    measure: (network, params, grads, noise_key) -> dict of arrays, called before
      every step.

  Returns:
    The last parameters; 'loss' [steps] and the measurements [steps, ...].
  """
  base = jax.random.key(0)

  def step(params, batch):
    i, (image, label) = batch
    noise_key = jax.random.fold_in(base, i) if has_noise else None

    def loss_of(params):
      logits, _ = forward(network, params, image, noise_key)
      return cross_entropy(logits, label)

    loss, grads = jax.value_and_grad(loss_of)(params)
    record = {'loss': loss}
    if measure is not None:
      record |= measure(network, params, grads, noise_key)
    new = jax.tree.map(lambda p, g: p - learning_rate * g, params, grads)
    return new, record

  num_steps = len(batches[0])
  return jax.lax.scan(step, params, (jnp.arange(num_steps), batches))


def measure_inputs(
  network: Network, params: Params, grads: Params, noise_key: Array | None
) -> dict[str, Array]:
  """Statistics of the nonlinearities' inputs, and norms of weights and gradients.

  On the first 250 examples. 'mean', 'std' and 'percentiles' are of the last
  hidden layer; 'saturated', the share with |x| > 4, and 'slope', the mean of
  g'(x) / g'(0) for the sigmoid g, are of each hidden layer.
  """
  _, inputs = forward(network, params, load_digits()[0][:250], noise_key)
  last = inputs[-1]
  slope = [4 * jax.nn.sigmoid(x) * jax.nn.sigmoid(-x) for x in inputs]
  return {
    'mean': jnp.mean(last, 0),
    'std': jnp.std(last, 0),
    'percentiles': jnp.percentile(last[:, 0], jnp.array([15.0, 50.0, 85.0])),
    'saturated': jnp.stack([jnp.mean(jnp.abs(x) > 4) for x in inputs]),
    'slope': jnp.stack([jnp.mean(s) for s in slope]),
    'weight norm': jnp.stack([jnp.linalg.norm(p['weight']) for p in params]),
    'gradient norm': jnp.stack([jnp.linalg.norm(g['weight']) for g in grads]),
  }


def weight_gradient(
  network: Network, params: Params, image: Array, label: Array
) -> Array:
  """The gradient with respect to all weights, as one vector."""

  def loss_of(params):
    return cross_entropy(forward(network, params, image)[0], label)

  grads = jax.grad(loss_of)(params)
  return jnp.concatenate([g['weight'].ravel() for g in grads])

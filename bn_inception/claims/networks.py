"""Claims about networks: Sections 1 to 3.4, on perceptrons and digits.

Each experiment is a function without arguments that returns a `Claim`. The
`criterion` was fixed before the numbers were seen.
"""

import functools
import time
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from bn_inception.batch_norm import batch_statistics, normalize
from bn_inception.claims.perceptrons import (
  EPSILON,
  NONLINEARITIES,
  Network,
  Params,
  apply_norm,
  cross_entropy,
  forward,
  initial_params,
  load_digits,
  make_batches,
  measure_inputs,
  train,
  weight_gradient,
)
from bn_inception.claims.transform import Claim

FIGURE_1_SIZES = (64, 100, 100, 100, 10)  # Section 4.1, on 8x8 pixels
NAMES = {'none': 'without BN', 'batch': 'with BN'}


@functools.cache
def recorded_run(
  norm: str, learning_rate: float, has_noise: bool = False
) -> dict[str, np.ndarray]:
  """Measurements of 1,000 steps of the Figure 1 network, batch size 60."""
  network = Network(FIGURE_1_SIZES, norm)
  _, records = train(
    network,
    initial_params(FIGURE_1_SIZES),
    make_batches(1000, 60),
    learning_rate,
    has_noise,
    measure_inputs,
  )
  return jax.tree.map(np.float64, records)


def final_loss(records: dict[str, np.ndarray]) -> float:
  """The mean training loss of the last 100 steps."""
  return float(records['loss'][-100:].mean())


def spread_over_batches(norm: str, sizes: tuple[int, ...]) -> float:
  """How much an example's normalised value varies over 50 random batches of 128.

  Std over batches of the first layer's normalised features, for one example that
  is in every batch, divided by their std over examples.
  """
  images = make_batches(50, 128, seed=1)[0]
  images[:, 0] = load_digits()[0][0]
  first = initial_params(sizes)[0]
  values = jax.vmap(lambda x: apply_norm(norm, x @ first['weight'], first))
  z = np.float64(values(images))
  return float(z[:, 0].std(0).mean() / z.std(1).mean())


def whitening() -> Claim:
  """Section 2: full whitening with its derivative, compared with BN."""
  kinds = ('none', 'batch', 'zca', 'pca', 'rotation')
  rates, chunk, num_chunks = (0.3, 1.0, 3.0, 10.0), 25, 16
  sizes = (64, 32, 32, 10)
  images, labels = make_batches(chunk * num_chunks, 128)
  state = {(k, r): initial_params(sizes) for k in kinds for r in rates}
  losses = {key: [] for key in state}
  seconds = {kind: [] for kind in kinds}
  for kind in kinds:  # compiles before the clock runs
    network = Network(sizes, kind)
    batches = (images[:chunk], labels[:chunk])
    jax.block_until_ready(train(network, state[kind, 1.0], batches, 1.0))
  for start in range(0, chunk * num_chunks, chunk):
    batches = (images[start : start + chunk], labels[start : start + chunk])
    for kind, rate in state:
      begin = time.perf_counter()
      new, records = jax.block_until_ready(
        train(Network(sizes, kind), state[kind, rate], batches, rate)
      )
      seconds[kind].append((time.perf_counter() - begin) / chunk)
      state[kind, rate] = new
      losses[kind, rate].append(np.float64(records['loss']).mean())
  numbers = {}
  for kind in kinds:
    numbers[f'milliseconds per step, {kind}'] = 1e3 * np.median(seconds[kind])
  for kind in kinds:
    numbers[f'time against BN, {kind}'] = np.median(seconds[kind]) / np.median(
      seconds['batch']
    )
  best = {}
  for kind in kinds:
    at_rate = {rate: losses[kind, rate][-1] for rate in rates}
    best[kind] = min(
      rates, key=lambda rate: np.nan_to_num(at_rate[rate], nan=9)
    )
    for rate in rates:
      numbers[f'loss, {kind}, rate {rate:g}'] = at_rate[rate]
  spreads = {kind: spread_over_batches(kind, sizes) for kind in kinds[1:]}
  for kind, spread in spreads.items():
    numbers[f'spread over batches / over examples, {kind}'] = spread
  ratio = numbers['time against BN, zca']
  zca, batch = (losses[k, best[k]][-1] for k in ('zca', 'batch'))

  def draw(figure):
    axes = figure.subplots()
    steps = chunk * (1 + np.arange(num_chunks))
    for kind in kinds:
      axes.plot(
        steps, losses[kind, best[kind]], label=f'{kind}, {best[kind]:g}'
      )
    axes.set(xlabel='steps', ylabel='training loss', yscale='log')
    axes.grid(alpha=0.3)
    axes.legend(title='norm, best rate')

  return Claim(
    'Full whitening of every layer, with its derivative, is too expensive; '
    'normalising each feature by itself already speeds up training.',
    'a step of ZCA whitening takes more than twice the time of a BN step, and '
    'BN ends with a lower loss than no norm, each at its best rate of 0.3, 1, 3 '
    'and 10',
    numbers,
    ratio > 2 and batch < losses['none', best['none']][-1],
    f'A step of ZCA takes as long as {ratio:.1f} of BN at 32 units; after '
    f'{chunk * num_chunks} steps the loss is {zca:.1e} with ZCA and {batch:.1e} '
    'with BN. PCA '
    f'ends at {losses["pca", best["pca"]][-1]:.1e}, the rotation alone at '
    f'{losses["rotation", best["rotation"]][-1]:.1e}: their axes change from '
    'batch to batch (spread of a value over batches / over examples '
    f'{spreads["pca"]:.2f}; ZCA {spreads["zca"]:.2f}, BN '
    f'{spreads["batch"]:.2f}). Without a norm it is '
    f'{losses["none", best["none"]][-1]:.1e}.',
    draw,
  )


def layer_singular_values(network: Network, params: Params) -> np.ndarray:
  """Singular values of the second layer's Jacobian for 64 examples [64, width].

  The layer maps the input of one nonlinearity to the input of the next, x_hat to
  z_hat. The statistics are those of 1,000 examples, held constant.
  """
  x = load_digits()[0][:1000]
  _, inputs = forward(network, params, x)
  nonlinearity = NONLINEARITIES[network.nonlinearity]
  layer = params[1]
  stats = batch_statistics(nonlinearity(inputs[0]) @ layer['weight'], (0,))

  def one(x):
    z = nonlinearity(x) @ layer['weight']
    if network.norm == 'batch':
      z = normalize(z, stats, layer['scale'], None, EPSILON)
    return z

  jacobians = jax.vmap(jax.jacfwd(one))(inputs[0][:64])
  return np.linalg.svd(np.float64(jacobians), compute_uv=False)


def jacobian_singular_values() -> Claim:
  """Section 3.3: the conjecture that the singular values are near 1."""
  numbers, values = {}, {}
  batches = make_batches(300, 60)
  for nonlinearity in ('linear', 'sigmoid', 'relu'):
    for norm in NAMES:
      network = Network((64, 64, 64, 64, 10), norm, nonlinearity)
      params = initial_params(network.sizes)
      trained, _ = train(network, params, batches, 0.1)
      for when, p in (('at first', params), ('trained', trained)):
        s = layer_singular_values(network, p)
        label = f'{nonlinearity}, {NAMES[norm]}, {when}'
        values[label] = s
        numbers[f'median, {label}'] = np.median(s)
        numbers[f'root mean square, {label}'] = np.sqrt(np.mean(s**2))
        numbers[f'share in [1/2, 2], {label}'] = np.mean((s > 0.5) & (s < 2))
  with_bn = [
    value
    for key, value in numbers.items()
    if key.startswith('share') and 'with BN' in key
  ]

  def draw(figure):
    panels = figure.subplots(1, 3, sharey=True)
    for axes, nonlinearity in zip(
      panels, ('linear', 'sigmoid', 'relu'), strict=True
    ):
      for norm, color in (('none', 'C0'), ('batch', 'C1')):
        for when, style in (('at first', '--'), ('trained', '-')):
          label = f'{NAMES[norm]}, {when}'
          sorted_values = values[f'{nonlinearity}, {label}'].mean(0)
          axes.plot(sorted_values, style, color=color, label=label)
      axes.axhline(1, color='k', linewidth=0.5)
      axes.set(xlabel='rank', title=nonlinearity, yscale='log', ylim=(1e-3, 20))
    panels[0].set(ylabel='singular value, mean over examples')
    panels[0].legend()

  return Claim(
    'Conjecture: BN may bring the singular values of the Jacobian of a layer '
    'close to 1.',
    'with BN, more than half of the singular values lie between 1/2 and 2, for '
    'linear, sigmoid and ReLU layers, before and after training',
    numbers,
    min(with_bn) > 0.5,
    f'With BN {min(with_bn):.0%} to {max(with_bn):.0%} lie between 1/2 and 2: '
    'their root mean square is of order 1, but a square Gaussian matrix has '
    'singular values down to 0, and ReLU removes half of them.',
    draw,
  )


def shift_per_step(records: dict[str, np.ndarray]) -> tuple[float, float]:
  """How far the inputs of the last hidden nonlinearity move per step.

  The Wasserstein distance between Gaussians with the moments before and after a
  step, averaged over units and steps.

  Returns:
    The shift, and the shift in units of the std before the step.
  """
  mean, std = records['mean'], records['std']
  distance = np.hypot(np.diff(mean, axis=0), np.diff(std, axis=0))
  return float(distance.mean()), float((distance / std[:-1]).mean())


def internal_covariate_shift() -> Claim:
  """Section 2, Figure 1: the inputs of a layer move less with BN."""
  numbers, held, factors = {}, True, []
  for rate in (0.5, 5.0):
    shifts = {}
    for norm, name in NAMES.items():
      records = recorded_run(norm, rate)
      label = f'{name}, rate {rate:g}'
      shifts[norm] = shift_per_step(records)
      numbers[f'shift per step, {label}'] = shifts[norm][0]
      numbers[f'shift per step in deviations, {label}'] = shifts[norm][1]
      numbers[f'range of the means, {label}'] = float(
        np.ptp(records['mean'], axis=0).mean()
      )
      numbers[f'loss, {label}'] = final_loss(records)
    factors.append(np.divide(shifts['none'], shifts['batch']))
    held &= bool((factors[-1] > 1).all())

  def draw(figure):
    panels = figure.subplots(1, 2, sharey=True)
    for axes, (norm, name) in zip(panels, NAMES.items(), strict=True):
      percentiles = recorded_run(norm, 5.0)['percentiles']
      axes.plot(percentiles, label=['15 %', '50 %', '85 %'])
      axes.set(xlabel='steps', title=f'{name}, rate 5')
      axes.grid(alpha=0.3)
    panels[0].set(ylabel='input of one sigmoid, last hidden layer')
    panels[0].legend()

  return Claim(
    "The distribution of a layer's inputs changes while the layers below are "
    'trained; BN reduces that.',
    'the inputs of the last hidden nonlinearity move less per step with BN, in '
    'absolute terms and in units of their std, at rates 0.5 and 5',
    numbers,
    held,
    f'Without BN they move {factors[0][0]:.0f} times as far per step at rate '
    f'0.5 and {factors[1][0]:.0f} times at rate 5 (in units of their std, which '
    f'is small at first: {factors[0][1]:.0f} and {factors[1][1]:.0f} times).',
    draw,
  )


def noise_after_bn() -> Claim:
  """Santurkar et al. (2018): shift added after BN does not hurt training."""
  rates = (0.5, 5.0)
  variants = {
    'without BN': ('none', False),
    'with BN': ('batch', False),
    'with BN and noise': ('batch', True),
  }
  runs, numbers, held = {}, {}, True
  for rate in rates:
    loss = {}
    for name, (norm, has_noise) in variants.items():
      label = f'{name}, rate {rate:g}'
      records = runs[label] = recorded_run(norm, rate, has_noise)
      shift, in_deviations = shift_per_step(records)
      loss[name] = final_loss(records)
      below = np.flatnonzero(records['loss'] < 0.5)
      numbers[f'shift per step, {label}'] = shift
      numbers[f'shift per step in deviations, {label}'] = in_deviations
      numbers[f'loss, {label}'] = loss[name]
      numbers[f'steps to loss 0.5, {label}'] = (
        below[0] if len(below) else np.nan
      )
    half_way = np.sqrt(loss['without BN'] * loss['with BN'])
    held &= bool(loss['with BN and noise'] < half_way)

  def draw(figure):
    panels = figure.subplots(1, 2, sharey=True)
    for axes, rate in zip(panels, rates, strict=True):
      for name in variants:
        axes.plot(runs[f'{name}, rate {rate:g}']['loss'], label=name)
      axes.set(xlabel='steps', yscale='log', title=f'rate {rate:g}')
      axes.grid(alpha=0.3)
    panels[0].set(ylabel='training loss')
    panels[0].legend()

  def three(quantity, rate):
    """Without BN, with BN, with BN and noise."""
    return ' / '.join(
      f'{numbers[f"{quantity}, {name}, rate {rate}"]:.3g}' for name in variants
    )

  return Claim(
    'A later argument against covariate shift as the explanation: noise with '
    'changing mean and variance after every BN does not hurt training.',
    'at rates 0.5 and 5 the final loss with noise is closer to that with BN '
    'than to that without, on a logarithmic scale',
    numbers,
    held,
    'Without BN / with BN / with BN and noise: shift per step '
    f'{three("shift per step", 0.5)} at rate 0.5 and '
    f'{three("shift per step", 5)} at rate 5; steps to loss 0.5 '
    f'{three("steps to loss 0.5", 0.5)} and {three("steps to loss 0.5", 5)}; '
    f'final loss {three("loss", 0.5)} and {three("loss", 5)}.',
    draw,
  )


def gradient_estimate() -> Claim:
  """Section 1: the mini-batch gradient estimates the full gradient."""
  images, labels = load_digits()
  batch_sizes, num_batches = (4, 16, 64, 256), 64
  numbers, slopes, errors = {}, {}, {}
  for norm, name in NAMES.items():
    network = Network((64, 32, 32, 10), norm)
    params = initial_params(network.sizes)
    gradient = jax.jit(
      jax.vmap(partial(weight_gradient, network, params), (0, 0))
    )
    full = np.float64(gradient(images[None], labels[None]))[0]
    errors[name] = []
    for size in batch_sizes:
      estimates = np.float64(gradient(*make_batches(num_batches, size)))
      error = np.sqrt(np.square(estimates - full).sum(1).mean())
      errors[name].append(error / np.linalg.norm(full))
      numbers[f'relative error, {name}, {size} examples'] = errors[name][-1]
    slopes[name] = np.polyfit(np.log(batch_sizes), np.log(errors[name]), 1)[0]
    numbers[f'slope, {name}'] = slopes[name]

  def draw(figure):
    axes = figure.subplots()
    for name in errors:
      axes.loglog(batch_sizes, errors[name], marker='o', label=name)
    axes.set(xlabel='examples in the mini-batch', ylabel='relative error')
    axes.grid(alpha=0.3)
    axes.legend()

  return Claim(
    'The gradient of a mini-batch estimates that of the training set, better '
    'for larger batches.',
    'the relative error falls whenever the batch grows, and without BN as a '
    'power -0.5 +- 0.05 of its size',
    numbers,
    abs(slopes['without BN'] + 0.5) < 0.05
    and all((np.diff(e) < 0).all() for e in errors.values()),
    f'Slope {slopes["without BN"]:.2f} without BN and '
    f'{slopes["with BN"]:.2f} with BN, whose full gradient uses the statistics '
    'of the whole training set, so that small batches are biased.',
    draw,
  )


def profile(network: Network, params: Params) -> tuple[np.ndarray, np.ndarray]:
  """How a change grows upwards and a gradient downwards, layer by layer.

  Returns:
    changes: of the inputs of every nonlinearity, relative to their std over the
      batch, per relative change of the first layer's weights in a random
      direction.
    gradients: norms of the gradients with respect to the same inputs.
  """
  images, labels = make_batches(1, 128)
  image, label = images[0], labels[0]
  rng = np.random.default_rng(1)
  weight = params[0]['weight']
  direction = jnp.float32(rng.normal(size=weight.shape))
  direction *= jnp.linalg.norm(weight) / jnp.linalg.norm(direction)

  @jax.jit
  def both(params):
    def inputs_of(weight):
      first = {**params[0], 'weight': weight}
      return forward(network, [first, *params[1:]], image)[1]

    inputs, tangents = jax.jvp(inputs_of, (params[0]['weight'],), (direction,))
    offsets = [jnp.zeros_like(x) for x in inputs]
    gradients = jax.grad(
      lambda offsets: cross_entropy(
        forward(network, params, image, offsets=offsets)[0], label
      )
    )(offsets)
    return (
      jnp.stack(
        [
          jnp.linalg.norm(t) / jnp.linalg.norm(x - jnp.mean(x, 0))
          for t, x in zip(tangents, inputs, strict=True)
        ]
      ),
      jnp.stack([jnp.linalg.norm(g) for g in gradients]),
    )

  changes, gradients = both(params)
  return np.float64(changes), np.float64(gradients)


def depth() -> Claim:
  """Sections 1 and 3.3: what twenty layers do to changes and gradients."""
  num_layers = 20
  numbers, curves, worse = {}, {}, []
  sizes = (64,) * (num_layers + 1) + (10,)
  factors = {'sigmoid': (0.5, 1.0, 4.0), 'relu': (0.7, 2**0.5, 2.8)}
  for nonlinearity, factor in [(n, f) for n in factors for f in factors[n]]:
    decades = {}
    for norm, name in NAMES.items():
      label = f'{nonlinearity} x {factor:.2g}, {name}'
      changes, gradients = profile(
        Network(sizes, norm, nonlinearity), initial_params(sizes, factor)
      )
      curves[label] = gradients / gradients[-1]
      # float32 cannot represent smaller gradients.
      first = max(gradients[0], np.finfo(np.float32).tiny)
      decades[norm] = np.log10(first / gradients[-1])
      numbers[f'decades of gradient, last to first layer, {label}'] = decades[
        norm
      ]
      numbers[f'growth of a change, first to last layer, {label}'] = (
        changes[-1] / changes[0]
      )
    if not abs(decades['batch']) < abs(decades['none']):
      worse.append(f'{nonlinearity} x {factor:.2g}')

  def draw(figure):
    panels = figure.subplots(1, 2, sharey=True)
    for axes, nonlinearity in zip(panels, factors, strict=True):
      for label, curve in curves.items():
        if label.startswith(nonlinearity):
          style = '-' if label.endswith('with BN') else '--'
          axes.plot(1 + np.arange(num_layers), curve, style, label=label)
      axes.set(xlabel='layer', yscale='log')
      axes.grid(alpha=0.3)
      axes.legend(fontsize='small')
    panels[0].set(ylabel='norm of the gradient / that of the last layer')

  growth = 'growth of a change, first to last layer, relu x 1.4'
  per_layer = 10 ** (
    numbers['decades of gradient, last to first layer, relu x 1.4, with BN']
    / (num_layers - 1)
  )
  return Claim(
    'In deep networks changes are amplified and gradients vanish or explode; BN '
    'prevents this.',
    'for each of six initialisations of 20 layers (weights with std factor / '
    'sqrt(64)), the first and last gradient differ by fewer decades with BN',
    numbers,
    not worse,
    f'Fewer decades with BN for {6 - len(worse)} of 6, more for: '
    f'{", ".join(worse) or "none"}. With BN the scale of the weights does not '
    f'matter, but ReLU gradients grow {per_layer:.2f}-fold per layer, which '
    'He initialisation (x 1.4) avoids, and a change in the first layer grows '
    f'{numbers[growth + ", with BN"]:.0f}-fold (without BN '
    f'{numbers[growth + ", without BN"]:.1f}).',
    draw,
  )


def saturation() -> Claim:
  """Sections 2 and 3.3: BN keeps sigmoids out of saturation."""
  numbers, held = {}, True
  for rate in (0.5, 5.0, 50.0):
    share = {}
    for norm, name in NAMES.items():
      records = recorded_run(norm, rate)
      label = f'{name}, rate {rate:g}'
      share[norm] = records['saturated'].mean()
      numbers[f'share with |x| > 4, {label}'] = share[norm]
      numbers[f"mean g'(x) / g'(0), {label}"] = records['slope'].mean()
      numbers[f'loss, {label}'] = final_loss(records)
    held &= share['batch'] < share['none']
  without, with_bn = (
    [numbers[f'share with |x| > 4, {name}, rate {r}'] for r in (0.5, 5, 50)]
    for name in NAMES.values()
  )

  def draw(figure):
    panels = figure.subplots(1, 3, sharey=True)
    for axes, rate in zip(panels, (0.5, 5.0, 50.0), strict=True):
      for norm, name in NAMES.items():
        axes.plot(recorded_run(norm, rate)['saturated'].mean(1), label=name)
      axes.set(xlabel='steps', title=f'rate {rate:g}')
      axes.grid(alpha=0.3)
    panels[0].set(ylabel='share of sigmoid inputs with |x| > 4')
    panels[0].legend()

  return Claim(
    'Without BN the inputs of sigmoids saturate during training, with BN they '
    'do not.',
    'over 1,000 steps and three layers a smaller share of inputs has |x| > 4 '
    'with BN than without, at rates 0.5, 5 and 50',
    numbers,
    bool(held),
    f'At rates 0.5, 5 and 50: without BN {without[0]:.2%}, {without[1]:.1%} '
    f'and {without[2]:.1%}; with BN {with_bn[0]:.2%}, {with_bn[1]:.1%} and '
    f'{with_bn[2]:.1%}. At rate 50 the loss ends at '
    f'{numbers["loss, without BN, rate 50"]:.0f} and '
    f'{numbers["loss, with BN, rate 50"]:.0f}: neither trains.',
    draw,
  )


def weight_norms() -> Claim:
  """Section 3.3: larger weights get smaller gradients and stop growing."""
  numbers, growth = {}, {}
  for norm, name in NAMES.items():
    for rate in (0.5, 5.0, 50.0):
      records = recorded_run(norm, rate)
      # The hidden layers: the last one has no BN.
      norms = records['weight norm'][:, :-1].mean(1)
      half = len(norms) // 2
      label = f'{name}, rate {rate:g}'
      growth[label] = (norms[half] - norms[0], norms[-1] - norms[half])
      numbers[f'|W| at the end / at first, {label}'] = norms[-1] / norms[0]
      numbers[f'growth in the first half, {label}'] = growth[label][0]
      numbers[f'growth in the second half, {label}'] = growth[label][1]
      numbers[f'loss, {label}'] = final_loss(records)
  network = Network(FIGURE_1_SIZES, 'batch')
  params = initial_params(FIGURE_1_SIZES)
  larger = [{**p, 'weight': 10 * p['weight']} for p in params[:-1]]
  images, labels = make_batches(1, 60)
  gradient = jax.jit(
    lambda params: weight_gradient(network, params, images[0], labels[0])
  )
  num_hidden = sum(p['weight'].size for p in params[:-1])
  small, large = (
    np.linalg.norm(np.float64(gradient(p))[:num_hidden])
    for p in (params, [*larger, params[-1]])
  )
  numbers['gradient at 10 W / gradient at W'] = large / small
  moderate, plain, high = (
    growth[label]
    for label in ('with BN, rate 5', 'without BN, rate 5', 'with BN, rate 50')
  )
  return Claim(
    'With BN larger weights get smaller gradients, which stabilises the growth '
    'of the weights at high learning rates.',
    'weights ten times as large get 1/10 of the gradient within 2 %; at rate '
    '50 |W| grows less than half as much in the second half of training as in '
    'the first, and the final loss is below chance level (2.30)',
    numbers,
    abs(10 * large / small - 1) < 0.02
    and high[1] < high[0] / 2
    and numbers['loss, with BN, rate 50'] < np.log(10),
    f'Gradient at 10 W: {large / small:.4f} of that at W. |W| grows by '
    f'{moderate[0]:.1f}, then {moderate[1]:.1f} at rate 5 (without BN '
    f'{plain[0]:.1f}, then {plain[1]:.1f}) and by {high[0]:.0f}, then '
    f'{high[1]:.0f} at rate 50, where the loss ends at '
    f'{numbers["loss, with BN, rate 50"]:.0f}: the output layer has no BN.',
  )


def batch_mates() -> Claim:
  """Section 3.4: an example's output depends on the rest of its batch."""
  network = Network((64, 64, 64, 10), 'batch')
  params, _ = train(
    network, initial_params(network.sizes), make_batches(500, 60), 0.5
  )
  images, _ = load_digits()
  batch_sizes, num_draws, num_examples = (2, 4, 8, 16, 32, 64, 128), 100, 32
  rng = np.random.default_rng(0)

  @jax.jit
  def first_outputs(batches):
    return jax.vmap(lambda x: forward(network, params, x)[0][0])(batches)

  everything = np.float64(forward(network, params, images)[0])
  between_examples = everything.std(0).mean()
  numbers, spreads = {}, []
  for size in batch_sizes:
    mates = rng.integers(
      num_examples, len(images), (num_examples * num_draws, size)
    )
    mates[:, 0] = np.repeat(np.arange(num_examples), num_draws)
    logits = np.float64(first_outputs(images[mates]))
    logits = logits.reshape(num_examples, num_draws, -1)
    spreads.append(logits.std(1).mean() / between_examples)
    numbers[f'spread over batches / over examples, {size}'] = spreads[-1]
    decided = everything[:num_examples].argmax(-1)
    numbers[f'share of decisions changed, {size}'] = np.mean(
      logits.argmax(-1) != decided[:, None]
    )
  slope = np.polyfit(np.log(batch_sizes[2:]), np.log(spreads[2:]), 1)[0]
  numbers['slope from 8 examples on'] = slope

  def draw(figure):
    axes = figure.subplots()
    axes.loglog(batch_sizes, spreads, marker='o')
    axes.set(
      xlabel='examples in the mini-batch',
      ylabel='spread of a logit over batches / over examples',
    )
    axes.grid(alpha=0.3)

  return Claim(
    'In training an example is seen together with random others, so its output '
    'is not a function of the example alone.',
    'at 32 examples the output of one example varies over batches by more than '
    '1 % of its variation over examples, and less in larger batches',
    numbers,
    spreads[batch_sizes.index(32)] > 0.01
    and bool((np.diff(spreads[1:]) < 0).all()),
    f'{spreads[2]:.0%} at 8 examples, {spreads[4]:.0%} at 32, '
    f'{spreads[6]:.0%} at 128 (slope {slope:.2f}). Whether this noise '
    'regularises is not measured here.',
    draw,
  )

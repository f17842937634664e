"""Second derivatives of the layer, and JAX's own derivatives of it.

f(x, scale, bias) = sum of w g(y)^2 + sum of u (mean^2 + var^2), of the layer's y
after a nonlinearity g, and of its updated batch_stats. Compared is the product of
f's Hessian with a vector: reverse mode over reverse mode, as a gradient penalty
has it, against central differences of the gradient of the plain formula in
float64. `python tests/test_batch_norm_derivatives.py` prints the table of
docs/batch_norm.md.
"""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from bn_inception.batch_norm import BatchNorm, batch_normalize
from bn_inception.kernels.convolution import convolve
from bn_inception.kernels.pooled_batch_norm import pool_first
from bn_inception.kernels.pooling import pool3x3
from bn_inception.programs import markdown

EPSILON = 1e-3
SHAPE = (16, 4, 5, 3)
NONLINEARITIES = {
  'none': lambda y: y,
  'relu': nn.relu,
  'sigmoid': nn.sigmoid,
  'gelu': nn.gelu,
  'silu': nn.silu,
}
MODES = {
  # name: the layer's fields, and whether it pools
  'whole batch': ({}, False),
  'groups of 2': ({'norm_batch_size': 2}, False),
  'groups of 8': ({'norm_batch_size': 8}, False),
  'per activation': ({'per_activation': True}, False),
  'pooled': ({}, True),
  'pooled, groups of 2': ({'norm_batch_size': 2}, True),
}
LAYOUTS = ('one device', 'four, check_vma=False', 'four, check_vma=True')
AXES = ('group', 'member')  # of 2 x 2 devices


def draw(mode):
  """(x, scale, bias), a direction of each, and w and u of the loss; float64."""
  rng = np.random.default_rng(0)
  shape = SHAPE[1:] if MODES[mode][0].get('per_activation') else SHAPE[-1:]
  # Half of the scales are negative, and none near 0.
  scale = rng.choice([-1, 1], shape) * rng.uniform(0.5, 1.5, shape)
  if len(shape) == 1:
    scale[:2] = 0.8, -1.2
  primals = (1 + 2 * rng.normal(size=SHAPE), scale, rng.normal(size=shape))
  direction = tuple(rng.normal(size=value.shape) for value in primals)
  outputs = (SHAPE[0], 2, 3, SHAPE[-1]) if MODES[mode][1] else SHAPE
  return primals, direction, rng.normal(size=outputs), rng.normal(size=shape)


def plain_loss(mode, g, x, scale, bias, w, u):
  """f, in the words of the paper."""
  fields, is_pooled = MODES[mode]
  size = fields.get('norm_batch_size', len(x))
  axes = (1,) if fields.get('per_activation') else (1, 2, 3)
  groups = x.reshape(-1, size, *x.shape[1:])
  mean = groups.mean(axes, keepdims=True)
  var = jnp.square(groups - mean).mean(axes, keepdims=True)
  y = scale * (groups - mean) / jnp.sqrt(var + EPSILON) + bias
  y = y.reshape(x.shape)
  if is_pooled:
    y = nn.max_pool(y, (3, 3), (2, 2), 'SAME')
  m = groups.size // mean.size
  mean, var = (s.reshape(len(groups), *u.shape).mean(0) for s in (mean, var))
  mean, var = 0.9 * mean, 0.1 + 0.9 * var * m / (m - 1)
  return jnp.sum(w * g(y) ** 2) + jnp.sum(u * (mean**2 + var**2))


def finite_differences(mode, g):
  """The Hessian of f times the direction, in float64."""
  step = 1e-5
  primals, direction, *weights = draw(mode)
  with jax.enable_x64(True):
    gradient = jax.jit(jax.grad(partial(plain_loss, mode, g), (0, 1, 2)))
    ahead, behind = (
      gradient(
        *(p + s * d for p, d in zip(primals, direction, strict=True)), *weights
      )
      for s in (step, -step)
    )
    return [
      np.asarray(a - b) / (2 * step) for a, b in zip(ahead, behind, strict=True)
    ]


def layer_terms(mode, g, is_mapped, x, scale, bias, w, u, custom_vjp=True):
  """Both sums of f, of the layer: this device's part of the first; the second."""
  fields, is_pooled = MODES[mode]
  axis_name = 'member' if 'norm_batch_size' in fields else AXES
  layer = BatchNorm(
    train=True,
    epsilon=EPSILON,
    axis_name=axis_name if is_mapped else None,
    custom_vjp=custom_vjp,
    **fields,
  )
  if is_pooled:
    pool = partial(pool3x3, kind='max', stride=2, custom_vjp=custom_vjp)
    layer = pool_first(layer, pool)
  variables = {
    'params': {'scale': scale, 'bias': bias},
    'batch_stats': {
      'mean': jnp.zeros_like(u),
      'var': jnp.ones_like(u),
      'num_updates': jnp.int32(0),
    },
  }
  y, updates = layer.apply(variables, x, mutable=['batch_stats'])
  mean, var = (updates['batch_stats'][name] for name in ('mean', 'var'))
  for axis in AXES if is_mapped else ():  # over the groups
    mean, var = jax.lax.pmean((mean, var), axis)
  return jnp.sum(w * g(y) ** 2), jnp.sum(u * (mean**2 + var**2))


def hessian_vector_product(
  mode, layout, nonlinearities, dtype=jnp.float32, u_factor=1.0, **keywords
):
  """Name of nonlinearity -> the products for x, scale and bias, of the layer."""
  is_mapped, is_typed = layout != LAYOUTS[0], layout == LAYOUTS[2]

  def total(value):
    return jax.lax.psum(value, AXES) if is_mapped else value

  def product(name, primals, direction, w, u):
    def loss(*primals):
      own, shared = layer_terms(
        mode, NONLINEARITIES[name], is_mapped, *primals, w, u, **keywords
      )
      if is_mapped and not is_typed:
        return own + shared / 4  # gradients are those of the sum over devices
      return total(own) + shared

    def slope(*primals):
      dx, *others = jax.grad(loss, (0, 1, 2))(*primals)
      along = jnp.vdot(dx, direction[0])
      along = total(along) if is_typed else along
      return along + sum(map(jnp.vdot, others, direction[1:]))

    dx, *others = jax.grad(slope, (0, 1, 2))(*primals)
    return dx, *(others if is_typed else total(others))

  def products(*arguments):
    return {name: product(name, *arguments) for name in nonlinearities}

  if is_mapped:
    split = P(AXES)
    likes_x = (split, P(), P())
    products = jax.shard_map(
      products,
      mesh=jax.make_mesh(
        (2, 2), AXES, (AxisType.Auto,) * 2, devices=jax.devices()[:4]
      ),
      in_specs=(likes_x, likes_x, split, P()),
      out_specs=dict.fromkeys(nonlinearities, likes_x),
      check_vma=is_typed,
    )
  with jax.enable_x64(dtype == jnp.float64):
    *others, u = draw(mode)
    arguments = jax.tree.map(
      lambda value: jnp.asarray(value, dtype), (*others, u_factor * u)
    )
    return jax.device_get(jax.jit(products)(*arguments))


def largest_error(found, expected):
  """Relative to the largest value of each array."""
  return max(
    np.abs(a - b).max() / np.abs(b).max()
    for a, b in zip(found, expected, strict=True)
  )


def errors_of(mode, layout, nonlinearities, **keywords):
  found = hessian_vector_product(mode, layout, nonlinearities, **keywords)
  return {
    name: largest_error(product, finite_differences(mode, NONLINEARITIES[name]))
    for name, product in found.items()
  }


@pytest.mark.parametrize('layout', LAYOUTS)
@pytest.mark.parametrize('mode', MODES)
def test_second_derivatives(mode, layout):
  errors = errors_of(mode, layout, ['silu'])
  assert errors['silu'] < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize('layout', LAYOUTS)
@pytest.mark.parametrize('mode', MODES)
def test_second_derivatives_behind_every_nonlinearity(mode, layout):
  errors = errors_of(mode, layout, NONLINEARITIES)
  assert max(errors.values()) < 3e-5, errors


@pytest.mark.parametrize('mode', MODES)
def test_second_derivatives_in_float64(mode):
  errors = errors_of(mode, LAYOUTS[0], ['relu'], dtype=jnp.float64)
  assert errors['relu'] < 1e-7


@pytest.mark.parametrize('layout', LAYOUTS)
def test_second_derivatives_of_jax(layout):
  errors = errors_of('groups of 8', layout, ['silu'], custom_vjp=False)
  assert errors['silu'] < 1e-5


def test_gradient_of_a_gradients_square():
  x = jnp.array([[1.0], [2.0], [4.0], [8.0]])
  w = jnp.array([[1.0], [-2.0], [3.0], [1.0]])

  def f(x):
    return jnp.sum(w * batch_normalize(x, None, None, EPSILON, (0,))[0] ** 2)

  gradient = jax.grad(lambda x: jnp.sum(jax.grad(f)(x) ** 2))(x)
  np.testing.assert_allclose(
    gradient[:, 0], [0.827, -0.596, 0.092, -0.324], atol=5e-4
  )


def test_jvp_of_the_gradient_is_the_hessian_of_jax():
  primals, (v, *_), w, _ = draw('whole batch')
  x, scale, bias, v, w = (jnp.float32(a) for a in (*primals, v, w))

  def loss(custom_vjp, x):
    y, _ = batch_normalize(
      x, scale, bias, EPSILON, (0, 1, 2), custom_vjp=custom_vjp
    )
    return jnp.sum(w * y**3)

  found, expected = (
    jax.jvp(jax.grad(partial(loss, custom_vjp)), (x,), (v,))[1]
    for custom_vjp in (True, False)
  )
  np.testing.assert_allclose(
    found, expected, rtol=0, atol=1e-5 * np.abs(expected).max()
  )


def test_gradient_through_the_updated_batch_stats():
  rng = np.random.default_rng(0)
  x = np.float32(2 + 3 * rng.normal(size=(6, 2, 5)))
  goals = rng.normal(size=(2, 5))
  layer = BatchNorm(train=True)
  variables = layer.init(jax.random.key(0), x)

  def regulariser(x):
    _, updates = layer.apply(variables, x, mutable=['batch_stats'])
    stats = updates['batch_stats']
    found = jnp.stack([stats['mean'], stats['var']])
    return jnp.sum(jnp.square(found - goals)) / 2, found

  gradient, found = jax.grad(regulariser, has_aux=True)(x)
  d_mean, d_var = 0.9 * (np.float64(found) - goals)
  m = 6 * 2
  centred = x - np.float64(x).mean((0, 1))
  expected = d_mean / m + 2 * centred * d_var / (m - 1)
  np.testing.assert_allclose(gradient, expected, rtol=1e-4, atol=1e-5)


ONE = ((1, 1), (1, 1))


def two_layers(custom_vjp, params, x):
  """Two layers of convolution, normalisation and ReLU, and one max pooling."""
  for i, kernel in enumerate(params['kernels']):
    z = convolve(x, kernel, 1, ONE, custom_vjp)
    y, _ = batch_normalize(
      z,
      params['scales'][i],
      params['biases'][i],
      EPSILON,
      (0, 1, 2),
      custom_vjp=custom_vjp,
    )
    x = nn.relu(y)
  return jnp.mean(pool3x3(x, 'max', 2, custom_vjp=custom_vjp), (1, 2))


def hessian_times_vector(logits, params, x, label):
  loss = partial(cross_entropy, logits)
  slope = jax.grad(loss)

  def along(params):
    return sum(
      jnp.vdot(g, jnp.cos(p))
      for g, p in zip(
        jax.tree.leaves(slope(params, x, label)),
        jax.tree.leaves(jax.lax.stop_gradient(params)),
        strict=True,
      )
    )

  return jax.grad(along)(params)


def gradient_penalty(logits, params, x, label):
  def penalty(params):
    dx = jax.grad(lambda x: cross_entropy(logits, params, x, label))(x)
    return jnp.sum(dx**2)

  return jax.grad(penalty)(params)


def maml(logits, params, x, label):
  def after_a_step(params):
    gradient = jax.grad(partial(cross_entropy, logits))(
      params, x[:4], label[:4]
    )
    params = jax.tree.map(lambda p, g: p - 0.5 * g, params, gradient)
    return cross_entropy(logits, params, x[4:], label[4:])

  return jax.grad(after_a_step)(params)


def cross_entropy(logits, params, x, label):
  chosen = jax.nn.log_softmax(logits(params, x))[jnp.arange(len(x)), label]
  return -jnp.mean(chosen)


@pytest.mark.parametrize('use', [hessian_times_vector, gradient_penalty, maml])
def test_uses_of_second_derivatives_equal_those_of_jax(use):
  rng = np.random.default_rng(0)
  x = jnp.asarray(rng.normal(size=(8, 6, 6, 3)), jnp.float32)
  label = jnp.asarray(rng.integers(0, 4, 8))
  sizes = [(3, 3, 3, 5), (3, 3, 5, 4)]
  params = {
    'kernels': [0.3 * rng.normal(size=size) for size in sizes],
    'scales': [rng.normal(size=size[-1]) for size in sizes],
    'biases': [rng.normal(size=size[-1]) for size in sizes],
  }
  params = jax.tree.map(jnp.float32, params)
  ours, jaxs = (
    jax.jit(partial(use, partial(two_layers, custom_vjp)))(params, x, label)
    for custom_vjp in (True, False)
  )
  largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(jaxs))
  for own, expected in zip(
    jax.tree.leaves(ours), jax.tree.leaves(jaxs), strict=True
  ):
    np.testing.assert_allclose(own, expected, rtol=0, atol=2e-5 * largest)


@pytest.mark.parametrize('mode', ['groups of 8', 'per activation', 'pooled'])
def test_forward_mode_equals_reverse_mode(mode):
  def f(custom_vjp, *primals):
    g = NONLINEARITIES['silu']
    return sum(
      layer_terms(mode, g, False, *primals, w, u, custom_vjp=custom_vjp)
    )

  primals, direction, w, u = jax.tree.map(jnp.float32, draw(mode))
  slopes = jax.jit(jax.grad(partial(f, True), (0, 1, 2)))(*primals)
  expected = sum(map(jnp.vdot, slopes, direction))
  size = sum(
    jnp.abs(s * d).sum() for s, d in zip(slopes, direction, strict=True)
  )
  own = partial(f, False)
  _, found = jax.jit(partial(jax.jvp, own))(primals, direction)
  np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6 * size)
  _, linear = jax.linearize(own, *primals)
  np.testing.assert_allclose(linear(*direction), expected, atol=1e-6 * size)
  jacobian = jax.jit(jax.jacfwd(own, 1))(*primals)
  np.testing.assert_allclose(
    jacobian, slopes[1], rtol=0, atol=1e-5 * np.abs(slopes[1]).max()
  )
  # `hessian` is forward mode over reverse mode.
  found = jax.jit(jax.hessian(own, 2))(*primals)
  expected = jax.jit(jax.jacrev(jax.grad(partial(f, True), 2), 2))(*primals)
  np.testing.assert_allclose(
    found, expected, rtol=0, atol=1e-5 * np.abs(expected).max()
  )


def print_table():
  rows = []
  for mode in MODES:
    columns = [
      [(LAYOUTS[0], jnp.float64)],
      [(LAYOUTS[0], jnp.float32)],
      [(layout, jnp.float32) for layout in LAYOUTS[1:]],
    ]
    cells = [
      max(
        max(errors_of(mode, layout, NONLINEARITIES, dtype=dtype).values())
        for layout, dtype in column
      )
      for column in columns
    ]
    rows.append([mode, *(f'{cell:.1e}' for cell in cells)])
  head = ['mode', 'float64', 'float32', '4 devices, float32']
  print(markdown.table(head, rows))


if __name__ == '__main__':
  jax.config.update('jax_num_cpu_devices', 8)
  print_table()

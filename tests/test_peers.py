"""Batch normalization against PyTorch's: `make test-peers`.

`BatchNorm2d` over the whole batch is what PyTorch's `SyncBatchNorm` computes
over all processes. Its `momentum` is the weight of the *new* value; its running
variance is unbiased, like ours.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from bn_inception import batch_norm, mesh
from bn_inception.batch_norm import BatchNorm
from tests import test_batch_norm_derivatives as derivatives

pytestmark = pytest.mark.peers

AXES = (0, 1, 2)
EPSILON = 1e-3
SHAPE = (32, 5, 6, 7)


@pytest.fixture(scope='module')
def case():
  rng = np.random.default_rng(0)
  return {
    'x': np.float32(3 + 2 * rng.normal(size=SHAPE)),
    'dy': np.float32(rng.normal(size=SHAPE)),
    'scale': np.float32(rng.normal(size=SHAPE[-1])),
    'bias': np.float32(rng.normal(size=SHAPE[-1])),
  }


@pytest.fixture(scope='module')
def theirs(case):
  """One training step of PyTorch's layer, then its evaluation."""
  import torch

  # Our first update weighs the old value by (1 + 0) / (10 + 0).
  layer = torch.nn.BatchNorm2d(SHAPE[-1], eps=EPSILON, momentum=0.9)
  with torch.no_grad():
    layer.weight.copy_(torch.tensor(case['scale']))
    layer.bias.copy_(torch.tensor(case['bias']))
  x = torch.tensor(case['x'].transpose(0, 3, 1, 2), requires_grad=True)
  dy = torch.tensor(case['dy'].transpose(0, 3, 1, 2))

  def to_nhwc(tensor):
    return tensor.detach().numpy().transpose(0, 2, 3, 1)

  def gradients(y):
    parameters = (x, layer.weight, layer.bias)
    dx, dscale, dbias = torch.autograd.grad(y, parameters, dy)
    return to_nhwc(dx), dscale.numpy(), dbias.numpy()

  y = layer(x)
  dx, dscale, dbias = gradients(y)
  evaluated = layer.eval()(x)
  evaluated_dx, evaluated_dscale, evaluated_dbias = gradients(evaluated)
  return {
    'y': to_nhwc(y),
    'dx': dx,
    'dscale': dscale,
    'dbias': dbias,
    'mean': layer.running_mean.numpy(),
    'var': layer.running_var.numpy(),
    'evaluated': to_nhwc(evaluated),
    'evaluated_dx': evaluated_dx,
    'evaluated_dscale': evaluated_dscale,
    'evaluated_dbias': evaluated_dbias,
  }


def function_step(x, dy, scale, bias):
  """`batch_normalize` and its gradients on one device's part of the batch."""
  first_decay = batch_norm.warmed_up_decay(0.9997, jnp.int32(0))

  def loss(x, scale, bias):
    y, stats = batch_norm.batch_normalize(
      x, scale, bias, EPSILON, AXES, mesh.MEMBER
    )
    return jnp.sum(y * dy), (y, stats)

  (dx, dscale, dbias), (y, stats) = jax.grad(loss, (0, 1, 2), has_aux=True)(
    x, scale, bias
  )
  num_values = np.prod(SHAPE[:-1])
  moving = batch_norm.update_moving_average(
    batch_norm.BatchStats(jnp.zeros(SHAPE[-1]), jnp.ones(SHAPE[-1])),
    batch_norm.unbiased(stats, num_values),
    first_decay,
  )
  sums = jax.lax.psum({'dscale': dscale, 'dbias': dbias}, mesh.AXES)
  return {'y': y, 'dx': dx}, sums | moving._asdict()


def layer_step(x, dy, scale, bias):
  """`BatchNorm` on one device's part of the batch: training, then evaluation."""
  layer = BatchNorm(train=True, axis_name=mesh.MEMBER, epsilon=EPSILON)
  start = layer.init(jax.random.key(0), x)['batch_stats']

  def apply(layer, stats):
    def loss(x, scale, bias):
      variables = {
        'params': {'scale': scale, 'bias': bias},
        'batch_stats': stats,
      }
      y, updates = layer.apply(variables, x, mutable=['batch_stats'])
      return jnp.sum(y * dy), (y, updates['batch_stats'])

    return jax.grad(loss, (0, 1, 2), has_aux=True)(x, scale, bias)

  (dx, dscale, dbias), (y, stats) = apply(layer, start)
  (evaluated_dx, evaluated_dscale, evaluated_dbias), (evaluated, _) = apply(
    layer.clone(train=False), stats
  )
  sums = jax.lax.psum(
    {
      'dscale': dscale,
      'dbias': dbias,
      'evaluated_dscale': evaluated_dscale,
      'evaluated_dbias': evaluated_dbias,
    },
    mesh.AXES,
  )
  per_example = {
    'y': y,
    'dx': dx,
    'evaluated': evaluated,
    'evaluated_dx': evaluated_dx,
  }
  return per_example, sums | {'mean': stats['mean'], 'var': stats['var']}


@pytest.mark.parametrize('num_devices', [1, 8])
@pytest.mark.parametrize('step', [function_step, layer_step])
def test_step_and_evaluation_equal_pytorch(case, theirs, step, num_devices):
  split = P(mesh.AXES)
  mapped = jax.shard_map(
    step,
    mesh=mesh.make_evaluation_mesh(jax.devices()[:num_devices]),
    in_specs=(split, split, P(), P()),
    out_specs=(split, P()),
    check_vma=False,
  )
  per_example, shared = jax.jit(mapped)(
    case['x'], case['dy'], case['scale'], case['bias']
  )
  for name, ours in (per_example | shared).items():
    size = np.abs(theirs[name]).max()
    np.testing.assert_allclose(
      ours, theirs[name], rtol=0, atol=1e-5 * size, err_msg=name
    )


def double_backward(mode, name):
  """PyTorch's counterpart of `hessian_vector_product`, in float64."""
  import torch
  from torch.nn import functional

  fields, is_pooled = derivatives.MODES[mode]
  primals, direction, w, _ = jax.tree.map(torch.tensor, derivatives.draw(mode))
  nonlinearity = {
    'none': lambda y: y,
    'relu': functional.relu,
    'sigmoid': torch.sigmoid,
    'gelu': lambda y: functional.gelu(y, approximate='tanh'),
    'silu': functional.silu,
  }[name]
  primals = [value.requires_grad_() for value in primals]
  x, scale, bias = primals

  def normalize(x):
    """Of one group, [N, H, W, C]; its features are dimension 1 for PyTorch."""
    if fields.get('per_activation'):
      flat, shape = x.reshape(len(x), -1), x.shape
      arguments = scale.flatten(), bias.flatten(), True, 0.0, EPSILON
      y = functional.batch_norm(flat, None, None, *arguments)
      return y.reshape(shape)
    x = x.permute(0, 3, 1, 2)
    y = functional.batch_norm(x, None, None, scale, bias, True, 0.0, EPSILON)
    return y.permute(0, 2, 3, 1)

  size = fields.get('norm_batch_size', len(x))
  y = torch.cat([normalize(group) for group in x.split(size)])
  if is_pooled:  # 4 x 5 to 2 x 3, as 'SAME' pads
    y = functional.pad(y.permute(0, 3, 1, 2), (1, 1, 0, 1), value=-torch.inf)
    y = functional.max_pool2d(y, 3, 2).permute(0, 2, 3, 1)
  loss = (w * nonlinearity(y) ** 2).sum()
  gradients = torch.autograd.grad(loss, primals, create_graph=True)
  slope = sum((g * v).sum() for g, v in zip(gradients, direction, strict=True))
  return [g.numpy() for g in torch.autograd.grad(slope, primals)]


@pytest.mark.parametrize('layout', derivatives.LAYOUTS)
@pytest.mark.parametrize('mode', derivatives.MODES)
def test_second_derivatives_equal_pytorchs(mode, layout):
  # PyTorch's running statistics have no gradient.
  found = derivatives.hessian_vector_product(
    mode, layout, derivatives.NONLINEARITIES, u_factor=0.0
  )
  errors = {
    name: derivatives.largest_error(product, double_backward(mode, name))
    for name, product in found.items()
  }
  assert max(errors.values()) < 3e-5, errors

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

from bn_inception import mesh
from bn_inception.batch_norm import BatchNorm

pytestmark = pytest.mark.peers

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
  y = layer(x)
  y.backward(torch.tensor(case['dy'].transpose(0, 3, 1, 2)))
  evaluated = layer.eval()(x)

  def to_nhwc(tensor):
    return tensor.detach().numpy().transpose(0, 2, 3, 1)

  return {
    'y': to_nhwc(y),
    'dx': to_nhwc(x.grad),
    'dscale': layer.weight.grad.numpy(),
    'dbias': layer.bias.grad.numpy(),
    'mean': layer.running_mean.numpy(),
    'var': layer.running_var.numpy(),
    'evaluated': to_nhwc(evaluated),
  }


@pytest.mark.parametrize('num_devices', [1, 8])
def test_step_and_evaluation_equal_pytorch(case, theirs, num_devices):
  layer = BatchNorm(train=True, axis_name=mesh.MEMBER, epsilon=EPSILON)
  split = P(mesh.AXES)

  def per_device(x, dy, scale, bias):
    start = BatchNorm(train=False).init(jax.random.key(0), x)['batch_stats']

    def own_loss(x, scale, bias):
      y, updates = layer.apply(
        {'params': {'scale': scale, 'bias': bias}, 'batch_stats': start},
        x,
        mutable=['batch_stats'],
      )
      return jnp.sum(y * dy), (y, updates['batch_stats'])

    (dx, dscale, dbias), (y, stats) = jax.grad(
      own_loss, (0, 1, 2), has_aux=True
    )(x, scale, bias)
    sums = jax.lax.psum({'dscale': dscale, 'dbias': dbias}, mesh.AXES)
    evaluated = BatchNorm(train=False, epsilon=EPSILON).apply(
      {'params': {'scale': scale, 'bias': bias}, 'batch_stats': stats}, x
    )
    statistics = {'mean': stats['mean'], 'var': stats['var']}
    return {'y': y, 'dx': dx, 'evaluated': evaluated}, sums | statistics

  mapped = jax.shard_map(
    per_device,
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

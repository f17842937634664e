"""The paper's Figure 5 as one would first write it with linen: the reference.

One `nn.Conv` and one `nn.BatchNorm` after the other, with the names and shapes
of `bn_inception.inception.Inception`, so that both take the same parameters. It
is what the benchmarks and the tests of equality compare with.
"""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from bn_inception.inception import FIGURE_5, Row

Array = jax.Array
LEARNING_RATE, MOMENTUM, L2 = 0.01, 0.9, 4e-5
STATISTICS_DECAY = 0.9997


class LinenUnit(nn.Module):
  """ReLU(BN(Wu)), with a separable convolution where there is a multiplier."""

  num_features: int
  kernel_size: int
  train: bool
  strides: int = 1
  depth_multiplier: int = 0
  dtype: str = 'float32'

  @nn.compact
  def __call__(self, x: Array) -> Array:
    """[N, H, W, C] -> [N, ceil(H / strides), ceil(W / strides), features]."""
    kernel_size, strides = (self.kernel_size,) * 2, (self.strides,) * 2
    if self.depth_multiplier:
      num_inputs = x.shape[-1]
      x = nn.Conv(
        num_inputs * self.depth_multiplier, kernel_size, strides,
        feature_group_count=num_inputs, use_bias=False, dtype=self.dtype,
        name='depthwise',
      )(x)  # fmt: skip
      kernel_size = strides = (1, 1)
    x = nn.Conv(
      self.num_features, kernel_size, strides, use_bias=False,
      dtype=self.dtype, name='conv',
    )(x)  # fmt: skip
    x = nn.BatchNorm(
      not self.train, momentum=STATISTICS_DECAY, epsilon=1e-3, dtype=self.dtype,
      name='norm',
    )(x)  # fmt: skip
    return nn.relu(x)


def pool(x: Array, kind: str, stride: int) -> Array:
  window, strides = (3, 3), (stride, stride)
  if kind == 'max':
    return nn.max_pool(x, window, strides, 'SAME')
  return nn.avg_pool(x, window, strides, 'SAME', count_include_pad=False)


class LinenModule(nn.Module):
  """A row of Figure 5."""

  row: Row
  train: bool
  dtype: str = 'float32'

  @nn.compact
  def __call__(self, x: Array) -> Array:
    row, branches = self.row, []

    def unit(num_features, kernel_size, name, strides=1):
      return LinenUnit(
        num_features, kernel_size, self.train, strides, dtype=self.dtype,
        name=name,
      )  # fmt: skip

    if row.conv1x1:
      branches.append(unit(row.conv1x1, 1, 'conv1x1')(x))
    y = unit(row.reduce3x3, 1, 'reduce3x3')(x)
    branches.append(unit(row.conv3x3, 3, 'conv3x3', row.stride)(y))
    y = unit(row.reduce_double3x3, 1, 'reduce_double3x3')(x)
    y = unit(row.double3x3, 3, 'double3x3_a')(y)
    branches.append(unit(row.double3x3, 3, 'double3x3_b', row.stride)(y))
    y = pool(x, row.pool, row.stride)
    if row.projection:
      y = unit(row.projection, 1, 'projection')(y)
    return jnp.concatenate([*branches, y], axis=-1)


class LinenInception(nn.Module):
  """BN-Inception; `stem` is 'separable', 'dense' or 'small'."""

  num_classes: int
  train: bool = False
  stem: str = 'separable'
  stem_stride: int = 2
  width: float = 1.0
  dtype: str = 'float32'
  rows: tuple[Row, ...] = FIGURE_5

  @nn.compact
  def __call__(self, image: Array) -> Array:
    """Logits [N, num_classes] of scaled images [N, H, W, C]."""
    x = image.astype(self.dtype)

    def scale(width):
      return max(1, round(width * self.width)) if width else 0

    is_small, is_separable = self.stem == 'small', self.stem == 'separable'
    x = LinenUnit(
      scale(64), 3 if is_small else 7, self.train, self.stem_stride,
      depth_multiplier=8 if is_separable else 0, dtype=self.dtype,
      name='conv1',
    )(x)  # fmt: skip
    x = x if is_small else pool(x, 'max', 2)
    x = LinenUnit(
      scale(64), 1, self.train, dtype=self.dtype, name='conv2_reduce'
    )(x)
    x = LinenUnit(scale(192), 3, self.train, dtype=self.dtype, name='conv2')(x)
    x = x if is_small else pool(x, 'max', 2)
    for row in self.rows:
      name = f'inception_{row.name}'
      row = Row(
        *(scale(v) if isinstance(v, int) else v for v in row[:-1]), row.stride
      )
      x = LinenModule(row, self.train, self.dtype, name=name)(x)
    x = jnp.mean(x, axis=(1, 2))
    x = nn.Dense(self.num_classes, dtype=self.dtype, name='logits')(x)
    return x.astype(jnp.float32)


def make_training(model: LinenInception) -> tuple[Callable, Callable]:
  """Plain training: cross-entropy, momentum, L2.

  Returns:
    (create, step): create(key, x) makes (variables, optimizer state) for images
    like x [N, H, W, C]; step(state, x, labels) is (state, loss), of scaled
    images and int [N], and overwrites the state.
  """
  optimizer = optax.chain(
    optax.add_decayed_weights(L2), optax.sgd(LEARNING_RATE, MOMENTUM)
  )

  def create(key, x):
    variables = model.init(key, x)
    return variables, optimizer.init(variables['params'])

  def step(state, x, labels):
    variables, optimizer_state = state

    def loss_of(params):
      logits, changed = model.apply(
        {**variables, 'params': params}, x, mutable=['batch_stats']
      )
      losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
      return losses.mean(), changed

    params = variables['params']
    gradient = jax.value_and_grad(loss_of, has_aux=True)
    (loss, changed), gradients = gradient(params)
    updates, optimizer_state = optimizer.update(
      gradients, optimizer_state, params
    )
    params = optax.apply_updates(params, updates)
    return ({'params': params, **changed}, optimizer_state), loss

  return create, jax.jit(step, donate_argnums=0)

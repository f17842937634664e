"""BN-Inception: the network of the paper's Figure 5, as a table and a loop."""

from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from bn_inception import batch_norm, config_keys, layers
from bn_inception.arrays import as_real
from bn_inception.errors import UserError, check_choice
from bn_inception.kernels.convolution import convolve
from bn_inception.kernels.pooling import STRIDE_PADDINGS, pool3x3
from bn_inception.layers import NONLINEARITIES

Array = jax.Array


class Row(NamedTuple):
  """One Inception module of Figure 5: the widths of its four branches.

  A width of 0 means that the branch has no such convolution; without a
  projection the pooled input is passed through.
  """

  name: str
  conv1x1: int
  reduce3x3: int
  conv3x3: int
  reduce_double3x3: int
  double3x3: int
  pool: str
  projection: int
  stride: int


# 4c and 4d: the figure prints projections of 128, which would give 608 feature
# maps where it prints 576; 96 agrees with the printed outputs, and is a field
# of the model (`pool_projection_4cd`).
FIGURE_5 = (
  #   name 1x1 3x3red 3x3 dblred dbl3x3 pool proj stride     output at 224x224
  Row('3a',  64,  64,  64,  64,  96, 'avg',  32, 1),  #  28 x 28 x  256
  Row('3b',  64,  64,  96,  64,  96, 'avg',  64, 1),  #  28 x 28 x  320
  Row('3c',   0, 128, 160,  64,  96, 'max',   0, 2),  #  14 x 14 x  576
  Row('4a', 224,  64,  96,  96, 128, 'avg', 128, 1),  #  14 x 14 x  576
  Row('4b', 192,  96, 128,  96, 128, 'avg', 128, 1),  #  14 x 14 x  576
  Row('4c', 160, 128, 160, 128, 160, 'avg',  96, 1),  #  14 x 14 x  576
  Row('4d',  96, 128, 192, 160, 192, 'avg',  96, 1),  #  14 x 14 x  576
  Row('4e',   0, 128, 192, 192, 256, 'max',   0, 2),  #   7 x  7 x 1024
  Row('5a', 352, 192, 320, 160, 224, 'avg', 128, 1),  #   7 x  7 x 1024
  Row('5b', 352, 192, 320, 192, 224, 'max', 128, 1),  #   7 x  7 x 1024
)  # fmt: skip

STEMS = ('separable', 'dense', 'small')


class InceptionModule(nn.Module):
  """Four branches on one input, concatenated: 1x1 | 3x3 | double 3x3 | pool.

  Attributes:
    row: the widths, already scaled.
    unit: makes a `ConvUnit`: unit(features, kernel size, strides=, name=).
    pool: see `pool3x3`: pool(x, kind, stride).
    custom_vjp: see `convolve`.
  """

  row: Row
  unit: Any
  pool: Any = pool3x3
  custom_vjp: bool = True

  @nn.compact
  def __call__(self, x: Array) -> Array:
    """[N, H, W, C] -> [N, ceil(H / stride), ceil(W / stride), sum of widths]."""
    row = self.row
    # What is 1x1 and reads x, by the name of its branch. The average over 3x3
    # commutes with the projection behind it, which is cheaper first.
    first = {
      'conv1x1': row.conv1x1,
      'reduce3x3': row.reduce3x3,
      'reduce_double3x3': row.reduce_double3x3,
      'projection': row.projection if row.pool == 'avg' else 0,
    }
    first = {name: width for name, width in first.items() if width}
    units = {
      name: self.unit(width, 1, name=name) for name, width in first.items()
    }
    y = self._multiply(units, x)
    branches = [y['conv1x1']] if row.conv1x1 else []

    conv3x3 = self.unit(row.conv3x3, 3, strides=row.stride, name='conv3x3')
    branches.append(conv3x3(y['reduce3x3']))

    double_a = self.unit(row.double3x3, 3, name='double3x3_a')
    double_b = self.unit(
      row.double3x3, 3, strides=row.stride, name='double3x3_b'
    )
    branches.append(double_b(double_a(y['reduce_double3x3'])))

    if 'projection' in y:
      y = y['projection']
    else:
      y = self.pool(x, row.pool, row.stride)
    if y.shape[1:3] != branches[0].shape[1:3]:
      raise UserError(
        f'at {row.name} an image has come down to {x.shape[1]} x {x.shape[2]}, '
        "which model.stride_padding 'caffe' cannot halve: make "
        'data.image_size a multiple of 32'
      )
    if row.projection and row.pool != 'avg':
      y = self.unit(row.projection, 1, name='projection')(y)
    branches.append(y)
    return jnp.concatenate(branches, axis=-1)

  def _multiply(self, units: dict, x: Array) -> dict[str, Array]:
    """All units of 1x1 on one input, as one product; by name."""
    weights = [unit.weights(x.shape[-1]) for unit in units.values()]
    kernel = jnp.concatenate([kernel for kernel, _ in weights], axis=-1)
    z = convolve(x, kernel, 1, ((0, 0), (0, 0)), self.custom_vjp)
    ends = np.cumsum([unit.num_features for unit in units.values()])
    parts = jnp.split(z, ends[:-1], axis=-1)
    y = {}
    for (name, unit), part, (_, bias) in zip(
      units.items(), parts, weights, strict=True
    ):
      if name == 'projection':
        part = self.pool(part, self.row.pool, self.row.stride)
      y[name] = unit.activate(part, bias)
    return y


class Inception(nn.Module):
  """The paper's networks: Inception, BN-Inception and everything between.

  Parameters are float32 under names that follow Figure 5:
  `inception_3a/conv3x3/conv/kernel`, `inception_3a/conv3x3/norm/scale`, ...

  Attributes:
    num_classes: outputs of the final linear layer.
    train: use mini-batch statistics and dropout.
    stem: 'separable' (the paper's 7x7, depth multiplier 8), 'dense' (a plain
      7x7), or 'small' (a 3x3 and no pooling, for images of up to 64x64).
    stem_stride: stride of the first convolution.
    width: multiplies every number of feature maps.
    pool_projection_4cd: see FIGURE_5; 96, or 128 as printed.
    use_batch_norm: normalise the input of every nonlinearity; otherwise
      convolutions have biases.
    use_stem_batch_norm: also for the first convolution, which TF-Slim leaves
      out by accident.
    use_lrn: local response normalisation after pool 1 and before pool 2.
    nonlinearity: 'relu' or 'sigmoid'.
    dropout_rate: before the linear layer.
    norm_batch_size, axis_name, statistics_decay, epsilon, use_scale: see
      `BatchNorm`.
    per_activation_modules: names of modules, such as '5b', whose normalisation
      is per activation (Section 4.2.3); their size is then that of the image
      that the parameters were made for.
    initial_scale: multiplies the initial weights of the convolutions (Section
      4.2.3 has larger ones).
    stride_padding: where the stride is 2, 'same' as TensorFlow pads, or 'caffe'
      as Caffe and PyTorch do: see `layers.padding` and `pooling`.
    average_includes_padding: see `pool3x3`.
    dtype: of the computation ('float32', 'bfloat16'); logits are float32.
    remat: recompute each module in the backward pass instead of keeping its
      activations.
    rows: the modules; shorter tables make small networks for tests.
    custom_vjp: False for JAX's own derivatives of normalisation, convolutions
      and pooling, which cost more and also have forward mode: `jvp`, `jacfwd`,
      `linearize`, `hessian`.
  """

  num_classes: int
  train: bool = False
  stem: str = 'separable'
  stem_stride: int = 2
  width: float = 1.0
  pool_projection_4cd: int = 96
  use_batch_norm: bool = True
  use_stem_batch_norm: bool = True
  use_lrn: bool = False
  nonlinearity: str = 'relu'
  dropout_rate: float = 0.0
  norm_batch_size: int = 0
  axis_name: Any = None
  statistics_decay: float = 0.9997
  epsilon: float = 1e-3
  use_scale: bool = True
  per_activation_modules: tuple[str, ...] = ()
  initial_scale: float = 1.0
  stride_padding: str = 'same'
  average_includes_padding: bool = False
  dtype: str = 'float32'
  remat: bool = False
  rows: tuple[Row, ...] = FIGURE_5
  custom_vjp: bool = True

  def __post_init__(self):
    for name, valid in (
      ('stem', STEMS),
      ('nonlinearity', tuple(NONLINEARITIES)),
      ('stride_padding', STRIDE_PADDINGS),
      ('dtype', ('float32', 'bfloat16')),
    ):
      check_choice(f'model.{name}', getattr(self, name), valid)
    # A list from a JSON file would make the module unhashable.
    self.per_activation_modules = tuple(self.per_activation_modules)
    names = [row.name for row in self.rows]
    for name in self.per_activation_modules:
      if name not in names:
        raise UserError(
          f"model.per_activation_modules: no module '{name}': use some of "
          f'{", ".join(names)}'
        )
    for name in ('stem_stride', 'width', 'dropout_rate', 'initial_scale'):
      config_keys.check_value(f'model.{name}', getattr(self, name))
    super().__post_init__()

  def fewest_values(self, image_size: int) -> int:
    """How many values each example gives a batch-norm layer's statistics.

    Args:
      image_size: height and width of the images.

    Returns:
      Of the layer with the fewest: height x width of the last maps, or 1 if a
      module's normalisation is per activation.
    """
    if self.per_activation_modules:
      return 1
    num_pools = 0 if self.stem == 'small' else 2
    for stride in (
      self.stem_stride, *[2] * num_pools, *[row.stride for row in self.rows]
    ):  # fmt: skip
      image_size = -(-image_size // stride)
    return image_size**2

  @nn.compact
  def __call__(self, image: Array, example_index: Array) -> Array:
    """Logits of a batch of scaled images.

    Args:
      image: [N, H, W, C], real.
      example_index: int [N], the examples' positions in their source: keys
        the dropout masks.

    Returns:
      Logits, float32 [N, num_classes].

    Raises:
      TypeError: for complex numbers.
    """
    unit = self._make_unit()
    module = nn.remat(InceptionModule) if self.remat else InceptionModule
    x = self._stem(as_real(image).astype(self.dtype), unit)
    for row in self.rows:
      row = self._scaled(row)
      row_unit = unit
      if row.name in self.per_activation_modules:
        row_unit = self._make_unit(per_activation=True)
      x = module(
        row,
        row_unit,
        self._pool,
        self.custom_vjp,
        name=f'inception_{row.name}',
      )(x)
    x = jnp.mean(x, axis=(1, 2))  # the 7x7 average pool
    x = layers.Dropout(self.dropout_rate, self.train)(x, example_index)
    x = nn.Dense(
      self.num_classes,
      dtype=self.dtype,
      kernel_init=layers.lecun_truncated_normal,
      name='logits',
    )(x)
    return x.astype(jnp.float32)

  @property
  def _pool(self):
    return partial(
      pool3x3,
      stride_padding=self.stride_padding,
      average_includes_padding=self.average_includes_padding,
      custom_vjp=self.custom_vjp,
    )

  def _make_unit(self, per_activation: bool = False, is_stem: bool = False):
    norm = None
    if self.use_batch_norm and (self.use_stem_batch_norm or not is_stem):
      norm = partial(
        batch_norm.BatchNorm,
        train=self.train,
        norm_batch_size=self.norm_batch_size,
        axis_name=self.axis_name,
        statistics_decay=self.statistics_decay,
        epsilon=self.epsilon,
        use_scale=self.use_scale,
        per_activation=per_activation,
        custom_vjp=self.custom_vjp,
      )
    return partial(
      layers.ConvUnit,
      nonlinearity=NONLINEARITIES[self.nonlinearity],
      make_norm=norm,
      dtype=self.dtype,
      initial_scale=self.initial_scale,
      stride_padding=self.stride_padding,
      custom_vjp=self.custom_vjp,
    )

  def _num_features(self, full_width: int) -> int:
    return max(1, round(full_width * self.width)) if full_width else 0

  def _scaled(self, row: Row) -> Row:
    if row.name in ('4c', '4d'):
      row = row._replace(projection=self.pool_projection_4cd)
    widths = {
      name: self._num_features(value)
      for name, value in row._asdict().items()
      if name not in ('name', 'pool', 'stride')
    }
    return row._replace(**widths)

  def _stem(self, x: Array, unit) -> Array:
    """The rows of Figure 5 before the first Inception module."""
    has_pools = self.stem != 'small'
    pool = partial(self._pool, kind='max', stride=2) if has_pools else None
    conv1 = partial(
      self._make_unit(is_stem=True),
      strides=self.stem_stride,
      pool=pool,
      name='conv1',
    )
    num_features = self._num_features(64)
    if self.stem == 'separable':
      x = conv1(num_features, 7, depth_multiplier=8)(x)
    elif self.stem == 'dense':
      x = conv1(num_features, 7)(x)
    else:
      x = conv1(num_features, 3)(x)
    if self.use_lrn:
      x = layers.local_response_normalization(x)
    x = unit(num_features, 1, name='conv2_reduce')(x)
    conv2 = partial(unit, self._num_features(192), 3, name='conv2')
    if not self.use_lrn:
      return conv2(pool=pool)(x)
    x = layers.local_response_normalization(conv2()(x))
    return pool(x) if has_pools else x


def fold_batch_norm(
  model: Inception, variables: dict
) -> tuple[Inception, dict]:
  """The same function of the image without batch-norm layers (Algorithm 2, 11).

  With s = scale / sqrt(var + epsilon), the convolution before a layer becomes
  W' = s W (per output feature map) with the bias b' = bias - s * mean.

  Args:
    model: in evaluation mode, with batch normalization.
    variables: its params and batch_stats.

  Returns:
    (model, variables) of the network with biases in its convolutions.

  Raises:
    UserError: if the model has no batch normalization, or some per activation,
      which is another map at every position and so no convolution.
  """
  if not model.use_batch_norm:
    raise UserError('this network has no batch normalization to fold')
  if model.per_activation_modules:
    raise UserError(
      'batch normalization per activation cannot be folded into a convolution: '
      f'modules {", ".join(model.per_activation_modules)} have it'
    )

  def fold(params: dict, stats: dict) -> dict:
    if 'norm' not in params:
      return {
        name: fold(value, stats[name]) if name in stats else value
        for name, value in params.items()
      }
    norm, stats = params['norm'], stats['norm']
    factor = norm.get('scale', 1.0) * jax.lax.rsqrt(
      stats['var'] + model.epsilon
    )
    others = {k: v for k, v in params.items() if k not in ('norm', 'conv')}
    conv = {
      'kernel': params['conv']['kernel'] * factor,
      'bias': norm['bias'] - factor * stats['mean'],
    }
    return {**others, 'conv': conv}

  folded = fold(variables['params'], variables['batch_stats'])
  return model.clone(use_batch_norm=False), {
    'params': folded,
    'batch_stats': {},
  }

"""BN-Inception: the network of the paper's Figure 5, as a table and a loop."""

from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from bn_inception import batch_norm, config_keys, layers
from bn_inception.batch_norm import as_real
from bn_inception.errors import UserError, check_choice
from bn_inception.kernels.convolution import joined_1x1
from bn_inception.kernels.pooling import STRIDE_PADDINGS, pool3x3
from bn_inception.layers import NONLINEARITIES, NORMS

Array = jax.Array


class Row(NamedTuple):
  """One Inception module of Figure 5: the widths of its four branches.

  A width of 0 omits the convolution; without a projection, the branch is the pooled
  input.
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
# maps where it prints 576. 96 agrees with the printed outputs; the field
# `pool_projection_4cd` of the model sets it.
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
  """Four branches on one input, concatenated:

    1x1 | 1x1 - 3x3 | 1x1 - 3x3 - 3x3 | pool - 1x1

  Attributes:
    row: the widths, already scaled.
    make_unit: make_unit(features, kernel size, stride=, name=) -> `ConvUnit`.
    pool: pool(x, kind, stride), see `pool3x3`.
    custom_vjp: see `convolve`.
  """

  row: Row
  make_unit: Any
  pool: Any = pool3x3
  custom_vjp: bool = True

  @nn.compact
  def __call__(self, x: Array) -> Array:
    """[N, H, W, C] -> [N, ceil(H / stride), ceil(W / stride), sum of widths]."""
    row, make_unit = self.row, self.make_unit
    first = self._apply_1x1_units(x)
    branches = []

    if row.conv1x1:
      branches.append(first['conv1x1'])

    y = first['reduce3x3']
    y = make_unit(row.conv3x3, 3, stride=row.stride, name='conv3x3')(y)
    branches.append(y)

    y = first['reduce_double3x3']
    y = make_unit(row.double3x3, 3, name='double3x3_a')(y)
    y = make_unit(row.double3x3, 3, stride=row.stride, name='double3x3_b')(y)
    branches.append(y)

    if 'projection' in first:
      y = first['projection']
    else:
      y = self.pool(x, row.pool, row.stride)
      if row.projection:
        y = make_unit(row.projection, 1, name='projection')(y)
    branches.append(y)

    self._check_sizes(x, branches)
    return jnp.concatenate(branches, axis=-1)

  def _apply_1x1_units(self, x: Array) -> dict[str, Array]:
    """Outputs of the 1x1 units that read x, by name.

    One matrix product computes all their convolutions. They include the projection
    after an average pool: the two commute, and pooling the projected maps costs less.
    """
    row = self.row
    widths = {
      'conv1x1': row.conv1x1,
      'reduce3x3': row.reduce3x3,
      'reduce_double3x3': row.reduce_double3x3,
      'projection': row.projection if row.pool == 'avg' else 0,
    }
    units = {
      name: self.make_unit(width, 1, name=name)
      for name, width in widths.items()
      if width
    }
    kernels = [unit.weights(x.shape[-1])[0] for unit in units.values()]
    products = dict(
      zip(units, joined_1x1(x, kernels, self.custom_vjp), strict=True)
    )
    if 'projection' in products:
      products['projection'] = self.pool(
        products['projection'], row.pool, row.stride
      )
    return {name: unit(x, products[name]) for name, unit in units.items()}

  def _check_sizes(self, x: Array, branches: list[Array]) -> None:
    if branches[-1].shape[1:3] != branches[0].shape[1:3]:
      raise UserError(
        f'module {self.row.name} gets images of {x.shape[1]} x {x.shape[2]}, '
        "which stride_padding 'caffe' cannot halve: use an image size that is a "
        'multiple of 32'
      )


class Inception(nn.Module):
  """The paper's networks: Inception, BN-Inception and everything in between.

  Parameters are float32 under names that follow Figure 5:
  `inception_3a/conv3x3/conv/kernel`, `inception_3a/conv3x3/norm/scale`, ...

  Attributes:
    num_classes: outputs of the final linear layer.
    train: use mini-batch statistics and dropout.
    stem: 'separable' (the paper's 7x7, depth multiplier 8), 'dense' (a plain
      7x7), or 'small' (a 3x3 and no pooling, for images up to 64x64).
    stem_stride: stride of the first convolution.
    width: multiplies every number of feature maps.
    pool_projection_4cd: see FIGURE_5; 96, or 128 as printed.
    use_batch_norm: normalise the input of every nonlinearity; otherwise
      convolutions have biases.
    use_stem_batch_norm: also normalise the first convolution, which TF-Slim does
      not, by accident.
    use_lrn: local response normalisation after pool 1 and before pool 2.
    norm: a name in `layers.NORMS`, to use instead of batch normalization; '' =
      none. Requires `use_batch_norm=False`.
    nonlinearity: a name in `layers.NONLINEARITIES`.
    dropout_rate: rate of the dropout before the linear layer.
    norm_batch_size, axis_name, statistics_decay, epsilon, use_scale: see
      `BatchNorm`.
    per_activation_modules: names of modules, such as '5b', whose normalisation
      is per activation (Section 4.2.3); the network then accepts only images of
      the size that it was initialised with.
    initial_scale: multiplies the initial weights of the convolutions (larger in
      Section 4.2.3).
    stride_padding: how to pad where the stride is 2: 'same', as in TensorFlow, or
      'caffe', as in Caffe and PyTorch; see `layers.padding` and `pool3x3`.
    average_includes_padding: see `pool3x3`.
    dtype: of the computation ('float32', 'bfloat16'); logits are float32.
    remat: recompute each module in the backward pass instead of keeping its
      activations.
    rows: the modules; tests use shorter tables.
    custom_vjp: False for JAX's own derivatives of normalisation, convolutions
      and pooling, which cost more but support forward mode (`jvp`, `jacfwd`,
      `linearize`, `hessian`).
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
  norm: str = ''
  nonlinearity: str = 'relu'
  dropout_rate: float = 0.0
  norm_batch_size: int = 0
  axis_name: Any = None
  statistics_decay: float = batch_norm.STATISTICS_DECAY
  epsilon: float = batch_norm.EPSILON
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
      ('norm', ('', *NORMS)),
      ('nonlinearity', tuple(NONLINEARITIES)),
      ('stride_padding', STRIDE_PADDINGS),
      ('dtype', ('float32', 'bfloat16')),
    ):
      check_choice(f'model.{name}', getattr(self, name), valid)
    if self.norm and self.use_batch_norm:
      raise UserError(
        f'model.norm {self.norm} and model.use_batch_norm cannot be combined: '
        'set only one of them'
      )
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

  @nn.compact
  def __call__(self, image: Array, example_index: Array | None = None) -> Array:
    """Logits of a batch of scaled images.

    Args:
      image: [N, H, W, C], real.
      example_index: int [N], the examples' positions in their source: the keys of
        their dropout masks. Required only to train with dropout.

    Returns:
      Logits, float32 [N, num_classes].

    Raises:
      TypeError: for complex numbers.
      ValueError: for dropout without `example_index`.
    """
    x = self._stem(as_real(image).astype(self.dtype))
    module = nn.remat(InceptionModule) if self.remat else InceptionModule
    for row in self.rows:
      x = module(
        self._scaled(row),
        self._unit_factory(row.name in self.per_activation_modules),
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

  def _stem(self, x: Array) -> Array:
    """The rows of Figure 5 before the first Inception module."""
    is_small = self.stem == 'small'
    pool = None if is_small else partial(self._pool, kind='max', stride=2)
    x = self._unit_factory(is_first=True)(
      self._num_features(64),
      3 if is_small else 7,
      stride=self.stem_stride,
      depth_multiplier=8 if self.stem == 'separable' else 0,
      pool=pool,
      name='conv1',
    )(x)
    if self.use_lrn:
      x = layers.local_response_normalization(x)
    make_unit = self._unit_factory()
    x = make_unit(self._num_features(64), 1, name='conv2_reduce')(x)
    conv2 = partial(make_unit, self._num_features(192), 3, name='conv2')
    if not self.use_lrn:
      return conv2(pool=pool)(x)
    x = layers.local_response_normalization(conv2()(x))
    return x if is_small else pool(x)

  def _unit_factory(self, per_activation: bool = False, is_first: bool = False):
    """Returns make_unit(features, kernel size, ...) -> `ConvUnit`."""
    make_norm = NORMS[self.norm] if self.norm else None
    if self.use_batch_norm and (self.use_stem_batch_norm or not is_first):
      make_norm = partial(
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
      make_norm=make_norm,
      dtype=self.dtype,
      initial_scale=self.initial_scale,
      stride_padding=self.stride_padding,
      custom_vjp=self.custom_vjp,
    )

  @property
  def _pool(self):
    return partial(
      pool3x3,
      stride_padding=self.stride_padding,
      average_includes_padding=self.average_includes_padding,
      custom_vjp=self.custom_vjp,
    )

  def _scaled(self, row: Row) -> Row:
    if row.name in ('4c', '4d'):
      row = row._replace(projection=self.pool_projection_4cd)
    widths = {
      name: self._num_features(value)
      for name, value in row._asdict().items()
      if name not in ('name', 'pool', 'stride')
    }
    return row._replace(**widths)

  def _num_features(self, full_width: int) -> int:
    return max(1, round(full_width * self.width)) if full_width else 0

  def min_values_per_example(self, image_size: int) -> int:
    """The least number of values that one example adds to any statistic.

    Args:
      image_size: height and width of the images.

    Returns:
      height x width of the last feature maps, or 1 if a module's normalisation is
      per activation.
    """
    if self.per_activation_modules:
      return 1
    num_pools = 0 if self.stem == 'small' else 2
    for stride in (
      self.stem_stride, *[2] * num_pools, *[row.stride for row in self.rows]
    ):  # fmt: skip
      image_size = -(-image_size // stride)
    return image_size**2


def fold_batch_norm(
  model: Inception, variables: dict
) -> tuple[Inception, dict]:
  """Folds batch normalization into the convolutions (Algorithm 2, line 11).

  With s = scale / sqrt(var + epsilon), the convolution before a layer becomes
  W' = s W (per output feature map) with the bias b' = bias - s * mean.

  Args:
    model: in evaluation mode, with batch normalization.
    variables: its params and batch_stats.

  Returns:
    (model, variables): a network with biases and no batch-norm layers, which
    computes the same function.

  Raises:
    UserError: if the model has no batch normalization, or has it per activation:
      that differs between positions, and a convolution cannot.
  """
  if not model.use_batch_norm:
    raise UserError('this network has no batch normalization to fold')
  if model.per_activation_modules:
    raise UserError(
      'batch normalization per activation cannot be folded into a convolution: '
      f'modules {", ".join(model.per_activation_modules)} use it'
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

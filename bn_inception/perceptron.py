"""The network of Section 4.1 and Figure 1: fully connected layers of sigmoids."""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from bn_inception import batch_norm, config_keys
from bn_inception.batch_norm import as_real
from bn_inception.errors import UserError, check_choice
from bn_inception.layers import NONLINEARITIES

Array = jax.Array


class Perceptron(nn.Module):
  """Hidden layers y = g(BN(Wu)), or g(Wu + b), and a linear layer.

  In training it sows 'sigmoid_input' [N] into the collection `measurements`: for
  each example, the input of one unit's nonlinearity in the last hidden layer.
  Figure 1 (b, c) plots its percentiles.

  Attributes:
    num_classes: outputs of the final linear layer.
    train: use mini-batch statistics, and sow measurements.
    hidden_sizes: units of each hidden layer; the paper has three of 100.
    use_batch_norm: normalise the input of every nonlinearity; otherwise the
      layers have biases.
    nonlinearity: 'sigmoid' or 'relu'.
    initial_std: std of the Gaussian initial weights; biases start at 0.
    measured_unit: which unit of the last hidden layer is sown.
    norm_batch_size, axis_name, statistics_decay, epsilon, use_scale,
      custom_vjp: see `BatchNorm`.
    dtype: of the computation ('float32', 'bfloat16'); logits are float32.
  """

  num_classes: int
  train: bool = False
  hidden_sizes: tuple[int, ...] = (100, 100, 100)
  use_batch_norm: bool = True
  nonlinearity: str = 'sigmoid'
  initial_std: float = 0.1
  measured_unit: int = 0
  norm_batch_size: int = 0
  axis_name: Any = None
  statistics_decay: float = batch_norm.STATISTICS_DECAY
  epsilon: float = batch_norm.EPSILON
  use_scale: bool = True
  dtype: str = 'float32'
  custom_vjp: bool = True

  def __post_init__(self):
    # A list from a JSON file would make the module unhashable.
    self.hidden_sizes = tuple(self.hidden_sizes)
    for name, valid in (
      ('nonlinearity', tuple(NONLINEARITIES)),
      ('dtype', ('float32', 'bfloat16')),
    ):
      check_choice(f'model.{name}', getattr(self, name), valid)
    for name in ('hidden_sizes', 'measured_unit', 'initial_std'):
      config_keys.check_value(f'model.{name}', getattr(self, name))
    if self.measured_unit >= self.hidden_sizes[-1]:
      raise UserError(
        f'model.measured_unit must be below {self.hidden_sizes[-1]}, the size '
        f'of the last hidden layer, got {self.measured_unit}'
      )
    super().__post_init__()

  @nn.compact
  def __call__(self, image: Array, example_index: Array | None = None) -> Array:
    """Logits, float32 [N, num_classes], of scaled images [N, H, W, C].

    `example_index` is unused: there is no dropout.

    Raises:
      TypeError: for complex numbers.
    """
    del example_index
    dense = partial(
      nn.Dense,
      kernel_init=nn.initializers.normal(self.initial_std),
      dtype=self.dtype,
    )
    x = as_real(image).astype(self.dtype).reshape(len(image), -1)
    for i, size in enumerate(self.hidden_sizes, 1):
      x = dense(size, use_bias=not self.use_batch_norm, name=f'hidden_{i}')(x)
      if self.use_batch_norm:
        x = self._make_norm()(name=f'norm_{i}')(x)
      if self.train and i == len(self.hidden_sizes):
        self.sow('measurements', 'sigmoid_input', x[:, self.measured_unit])
      x = NONLINEARITIES[self.nonlinearity](x)
    return dense(self.num_classes, name='logits')(x).astype(jnp.float32)

  def _make_norm(self):
    return partial(
      batch_norm.BatchNorm,
      train=self.train,
      norm_batch_size=self.norm_batch_size,
      axis_name=self.axis_name,
      statistics_decay=self.statistics_decay,
      epsilon=self.epsilon,
      use_scale=self.use_scale,
      custom_vjp=self.custom_vjp,
    )

  def min_values_per_example(self, image_size: int) -> int:
    """The least number of values that one example adds to any statistic: 1."""
    del image_size
    return 1

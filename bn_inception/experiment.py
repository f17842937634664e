"""Builds what a config, a plain nested dict, describes.

Each section of the config except `source` holds the keyword arguments of one
function: `data` -> `InputOptions`, `augment` -> `photometric_distortion`,
`input_scaling` -> `scale_image`, `model` -> `Inception` or `Perceptron`
(as `architecture` says), `optimizer` -> `make_optimizer`, `training` ->
`TrainingOptions`. `config_keys` holds the valid values.

`make_setup` builds a `Setup` from them: the network, the recipe, the devices and the
batch sizes. `make_experiment` adds the data of a training run. To write your own
training loop:

  experiment = make_experiment(config, data_dir)
  state = experiment.create_state()
  for batch in experiment.batches(0):
    state, metrics = experiment.train_step(state, batch, experiment.rng)
"""

import dataclasses
import inspect
from collections.abc import Callable, Sequence
from functools import cached_property, partial

import flax.linen as nn
import jax
import jax.numpy as jnp

from bn_inception import config_keys, inception, mesh, perceptron, steps
from bn_inception.data import augment, data_facts
from bn_inception.data.batches import Batches
from bn_inception.data.input_pipeline import DeviceBatches, InputOptions
from bn_inception.data.order import repeated_pair_fraction
from bn_inception.data.sources import Source, open_split
from bn_inception.errors import UserError, check_choice
from bn_inception.optimizer import Optimizer, make_optimizer
from bn_inception.train_state import TrainState, create_train_state

# The most updates between two log records, unless the config sets an interval.
MAX_LOG_STEPS = 100
# The step is an int32 on the devices.
_MAX_STEPS = 2**31 - 1


@dataclasses.dataclass(frozen=True)
class TrainingOptions:
  """How long to train, and what to do on the way.

  Attributes:
    num_epochs: passes over the training split.
    log_every_steps, eval_every_steps, checkpoint_every_steps: in updates; 0:
      once an epoch, see `with_default_intervals`.
    keep_last_checkpoints, keep_best_checkpoints: see `open_checkpoints`.
    target_accuracy: top-1 in percent, for the result "steps to target".
    population_batches: number of training mini-batches whose averaged statistics
      are the population statistics (Algorithm 2). Every evaluation then reports
      the accuracy with them and with moving averages; 0: moving averages only.
  """

  num_epochs: float
  log_every_steps: int
  eval_every_steps: int
  checkpoint_every_steps: int
  keep_last_checkpoints: int
  keep_best_checkpoints: int
  target_accuracy: float
  population_batches: int

  def __post_init__(self):
    config_keys.check_section('training', dataclasses.asdict(self))

  def with_default_intervals(self, steps_per_epoch: float) -> 'TrainingOptions':
    """Replaces each interval of 0 by one epoch, rounded to whole updates.

    For log records it is at most `MAX_LOG_STEPS`.

    Args:
      steps_per_epoch: training examples / global batch, not rounded.
    """
    epoch = max(1, round(steps_per_epoch))
    return dataclasses.replace(
      self,
      log_every_steps=self.log_every_steps or min(epoch, MAX_LOG_STEPS),
      eval_every_steps=self.eval_every_steps or epoch,
      checkpoint_every_steps=self.checkpoint_every_steps or epoch,
    )

  def num_steps(self, steps_per_epoch: float) -> int:
    """Number of updates in the whole run.

    Raises:
      UserError: if an int32 cannot count them.
    """
    num_steps = max(1, round(self.num_epochs * steps_per_epoch))
    if num_steps > _MAX_STEPS:
      raise UserError(
        f'training.num_epochs {self.num_epochs:g} is {num_steps:,} updates: at '
        f'most {_MAX_STEPS:,} can be counted'
      )
    return num_steps


@dataclasses.dataclass(frozen=True)
class Setup:
  """A config on some devices: the network, the recipe, the steps and the batches.

  `make_setup` makes one for training, `setup_of_checkpoint` one for evaluation. Each
  step compiles at its first call; its program lives as long as the setup. (So a step
  must not refer to the setup: JAX's caches would then keep both forever.)

  Attributes:
    config: the plain nested dict of configs/.
    batches: makes the input of `train_step` and the other steps.
    model: the network, in evaluation mode.
    optimizer: see `make_optimizer`.
    norm_batch_size: how many examples share batch statistics in training; 0
      without batch normalization.
    scale: image -> the network's input.
    distort_and_scale: (image, index, key) -> the network's input in training.
  """

  config: dict
  batches: Batches
  model: nn.Module
  optimizer: Optimizer
  norm_batch_size: int
  scale: Callable[[jax.Array], jax.Array]
  distort_and_scale: Callable[[jax.Array, jax.Array, jax.Array], jax.Array]

  @property
  def device_mesh(self) -> jax.sharding.Mesh:
    """The devices; in training, in groups that share batch statistics."""
    return self.batches.device_mesh

  @property
  def replicated(self) -> jax.sharding.Sharding:
    """The sharding of states and variables: a copy on every device."""
    return mesh.replicated(self.device_mesh)

  @cached_property
  def train_step(self) -> Callable:
    """(state, batch, rng) -> (state, metrics): see `steps.train_step`."""
    return steps.make_train_step(
      self.device_mesh,
      optimizer=self.optimizer,
      model=self._training_model,
      prepare=self.distort_and_scale,
    )

  @cached_property
  def eval_step(self) -> Callable:
    """(variables, batch) -> sums: see `steps.eval_step`."""
    return steps.make_eval_step(
      self.device_mesh, model=self.model, prepare=self.scale
    )

  @cached_property
  def predict_step(self) -> Callable:
    """(variables, batch) -> probabilities: see `steps.predict_step`."""
    return steps.make_predict_step(
      self.device_mesh, model=self.model, prepare=self.scale
    )

  @cached_property
  def statistics_step(self) -> Callable:
    """(variables, batch, rng) -> batch_stats: see `steps.statistics_step`."""
    return steps.make_statistics_step(
      self.device_mesh,
      model=self._training_model,
      prepare=self.distort_and_scale,
    )

  @property
  def _training_model(self) -> nn.Module:
    return self.model.clone(train=True, axis_name=mesh.MEMBER)

  def create_state(self, key: jax.Array) -> TrainState:
    """The initial state, on every device.

    Args:
      key: of the initial weights.
    """

    # A local function, so that its compiled program is freed after the call. It
    # would otherwise take 100 MB of host memory until the end of the run.
    def create_initial_state(key):
      return self._create_state(key)

    # With the sharding that the step returns; otherwise the second step recompiles.
    return jax.jit(create_initial_state, out_shardings=self.replicated)(key)

  def _create_state(self, key: jax.Array) -> TrainState:
    size = self.batches.options.image_size
    shape = (size, size, self.batches.num_channels)
    return create_train_state(self.model, self.optimizer, key, shape)

  def abstract_state(self) -> TrainState:
    """The shapes and dtypes of the state, to restore checkpoints."""
    return jax.eval_shape(self._create_state, jax.random.key(0))

  def abstract_arguments(self) -> tuple[TrainState, dict, jax.Array]:
    """Shapes, dtypes and shardings of `train_step`'s arguments, to compile it."""
    state, rng = jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(
        x.shape, x.dtype, sharding=self.replicated
      ),
      (self.abstract_state(), jax.eval_shape(jax.random.key, 0)),
    )
    return state, self.batches.abstract_training(), rng

  def tabulate(self) -> str:
    """A table of the modules: shapes, forward FLOPs and parameters, for one image."""
    size = self.batches.options.image_size
    # XLA does not know the FLOPs of native convolutions.
    model = self.model.clone(custom_vjp=False)
    return model.tabulate(
      jax.random.key(0),
      jnp.zeros((1, size, size, self.batches.num_channels)),
      depth=1,
      compute_flops=True,
      console_kwargs={'width': 140, 'force_terminal': False},
    )


def make_setup(
  config: dict,
  devices: Sequence[jax.Device],
  num_classes: int,
  num_channels: int,
  num_examples: int | None = None,
  with_batch_statistics: bool = True,
) -> Setup:
  """Builds the setup of a config; opens no data.

  Args:
    config: the plain nested dict of configs/, see `config_keys.check_config`.
    devices: the devices to run on, or those of a topology to compile for.
    num_classes, num_channels: of the data.
    num_examples: size of the training split; None if the setup is not for training.
    with_batch_statistics: group the devices by the examples that share batch
      statistics. With moving averages no groups are needed, and any number of
      devices works.

  Raises:
    UserError: for invalid values or a batch that cannot be divided.
  """
  batch_size = config['batch_size']
  optimizer = make_optimizer(
    steps_per_epoch=None if num_examples is None else num_examples / batch_size,
    batch_size=batch_size,
    **config['optimizer'],
  )
  options = InputOptions(**config['data'])
  model = make_model(config, num_classes)
  norm_batch_size = 0
  if config['model']['use_batch_norm']:
    micro_batch_size = batch_size // optimizer.accumulate_steps
    norm_batch_size = config['norm_batch_size'] or micro_batch_size
  device_mesh = mesh.make_evaluation_mesh(devices)
  if with_batch_statistics:
    # Section 3: a variance needs m > 1 values.
    needs_two = model.min_values_per_example(options.image_size) == 1
    device_mesh = mesh.make_training_mesh(
      devices,
      batch_size,
      norm_batch_size,
      optimizer.accumulate_steps,
      min_norm_batch_size=2 if norm_batch_size and needs_two else 1,
    )
  scale = partial(augment.scale_image, **config['input_scaling'])
  distort = partial(augment.photometric_distortion, **config['augment'])

  def distort_and_scale(image, index, key):
    return scale(distort(image, index, key))

  # A wrong number of channels fails here instead of in the first step.
  image = jax.ShapeDtypeStruct((1, 1, 1, num_channels), 'uint8')
  jax.eval_shape(distort_and_scale, image, jnp.zeros(1, int), jax.random.key(0))
  return Setup(
    config=config,
    batches=Batches(
      options=options,
      num_channels=num_channels,
      batch_size=batch_size,
      accumulate_steps=optimizer.accumulate_steps,
      eval_batch_size=config['eval_batch_size'],
      seed=config['seed'],
      device_mesh=device_mesh,
    ),
    model=model,
    optimizer=optimizer,
    norm_batch_size=norm_batch_size,
    scale=scale,
    distort_and_scale=distort_and_scale,
  )


def setup_of_checkpoint(
  description: dict, with_batch_statistics: bool = False
) -> Setup:
  """A setup on all devices, to restore a checkpoint and apply its network.

  Args:
    description: see `checkpoint.read_description`.
    with_batch_statistics: see `make_setup`.

  Raises:
    UserError: as `make_setup`.
  """
  return make_setup(
    description['config'],
    jax.devices(),
    len(description['class_names']),
    description['num_channels'],
    with_batch_statistics=with_batch_statistics,
  )


def make_model(config: dict, num_classes: int) -> nn.Module:
  """The network of a config, in evaluation mode.

  Raises:
    UserError: if there is no such architecture, or if it lacks a key.
  """
  architectures = {
    'inception': inception.Inception,
    'perceptron': perceptron.Perceptron,
  }
  check_choice('architecture', config['architecture'], tuple(architectures))
  architecture = architectures[config['architecture']]
  names = inspect.signature(architecture).parameters
  for name in config['model']:
    if name not in names:
      known = [k for k in names if f'model.{k}' in config_keys.KEYS]
      raise UserError(
        f'{config["architecture"]} has no key model.{name}: it has '
        f'{", ".join(sorted(known))}'
      )
  return architecture(
    num_classes=num_classes,
    norm_batch_size=config['norm_batch_size'],
    **config['model'],
  )


@dataclasses.dataclass(frozen=True)
class Experiment:
  """A training run: a setup, its data, and how long to train.

  Attributes:
    setup: see `Setup`.
    source: the training split.
    eval_source: the evaluation split.
    options: its intervals are all positive.
    num_steps: number of updates in the whole run.
    repeated_pair_fraction: how poorly the order mixes examples: see `order`.
  """

  setup: Setup
  source: Source
  eval_source: Source
  options: TrainingOptions
  num_steps: int
  repeated_pair_fraction: float

  @property
  def batch_size(self) -> int:
    """The global batch."""
    return self.setup.batches.batch_size

  @property
  def steps_per_epoch(self) -> float:
    """Training examples / global batch, not rounded."""
    return len(self.source) / self.batch_size

  @property
  def train_step(self) -> Callable:
    """(state, batch, rng) -> (state, metrics): see `steps.train_step`."""
    return self.setup.train_step

  @cached_property
  def rng(self) -> jax.Array:
    """Key of augmentation and dropout, on every device."""
    _, key = self._keys()
    return mesh.replicate(key, self.setup.device_mesh)

  def create_state(self) -> TrainState:
    """The initial state."""
    key, _ = self._keys()
    return self.setup.create_state(key)

  def _keys(self) -> jax.Array:
    """Two keys: for the initial weights and for the steps."""
    return jax.random.split(jax.random.key(self.setup.config['seed']))

  def batches(self, first_step: int) -> DeviceBatches:
    """The batches from `first_step`, counted from 0, to the end of the run."""
    return self.setup.batches.training(self.source, first_step, self.num_steps)


def make_experiment(config: dict, data_dir: str | None = None) -> Experiment:
  """Builds a training run on all devices.

  Args:
    config: the plain nested dict of configs/.
    data_dir: folder of TFDS data sets or of images; None: TFDS's default.

  Raises:
    UserError: for invalid values, missing data, splits with different classes, or
      a batch that cannot be divided.
  """
  config_keys.check_config(config)  # before data are opened
  names = config['source']
  source, eval_source = (
    open_split(config, names['dataset'], names[split], data_dir)
    for split in ('train_split', 'eval_split')
  )
  setup = make_setup(
    config,
    jax.devices(),
    len(source.class_names),
    source.num_channels,
    len(source),
  )
  data_facts.check_same_classes(
    source, names['train_split'], eval_source, names['eval_split']
  )
  batches = setup.batches
  steps_per_epoch = len(source) / batches.batch_size
  options = TrainingOptions(**config['training']).with_default_intervals(
    steps_per_epoch
  )
  num_steps = options.num_steps(steps_per_epoch)
  batches.check_shared_memory(
    num_steps, eval_source, options.population_batches
  )
  return Experiment(
    setup=setup,
    source=source,
    eval_source=eval_source,
    options=options,
    num_steps=num_steps,
    repeated_pair_fraction=repeated_pair_fraction(
      len(source),
      batches.options.num_shards,
      batches.options.shuffle,
      config['seed'],
      setup.norm_batch_size or batches.batch_size,
    ),
  )

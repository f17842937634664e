"""From a config, a plain nested dict, to everything that a program needs.

Each section of the config but `source` is the keyword arguments of one function:
`data` -> `InputOptions`, `augment` -> `photometric_distortion`, `input_scaling`
-> `scale_image`, `model` -> `Inception` or `Perceptron` (`architecture` says
which), `optimizer` -> `make_optimizer`, `training` -> `TrainingOptions`. What
their values may be is in `config_keys`.
"""

import dataclasses
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import flax.linen as nn
import jax

from bn_inception import config_keys, inception, mesh, perceptron, steps
from bn_inception.data import augment
from bn_inception.data import facts as data_facts
from bn_inception.data.crops import NUM_CROPS
from bn_inception.data.in_memory import InMemory
from bn_inception.data.input_pipeline import (
  DeviceBatches,
  InputOptions,
  abstract_training_batch,
  evaluation_batches,
  evaluation_load,
  training_batches,
  training_load,
)
from bn_inception.data.order import met_again_fraction
from bn_inception.data.sources import Source, make_source
from bn_inception.errors import UserError, check_choice
from bn_inception.machine import distributed, shared_memory
from bn_inception.optimizer import Optimizer, make_optimizer
from bn_inception.train_state import TrainState, create_train_state

# Of updates between two records where they follow the length of an epoch.
MAX_LOG_STEPS = 100
# On the devices a step is an int32.
_MAX_STEPS = 2**31 - 1


@dataclasses.dataclass(frozen=True)
class TrainingOptions:
  """How long to train, and what to do on the way.

  Attributes:
    num_epochs: passes over the training split.
    log_every_steps, eval_every_steps, checkpoint_every_steps: in updates; 0:
      once an epoch, see `at_steps`.
    keep_last_checkpoints, keep_best_checkpoints: see `open_checkpoints`.
    target_accuracy: top-1 in percent, for the result "steps to target".
    population_batches: training mini-batches to take population statistics from
      (Algorithm 2) at every evaluation, which then has the numbers with them
      beside those with moving averages; 0: moving averages only.
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

  def at_steps(self, steps_per_epoch: float) -> 'TrainingOptions':
    """The same options with a number of updates for every 0.

    Evaluations and checkpoints come once an epoch, as near as whole updates
    allow; so do records, but never fewer than one in `MAX_LOG_STEPS`.

    Args:
      steps_per_epoch: training examples / global batch; need not be whole.
    """
    epoch = max(1, round(steps_per_epoch))
    return dataclasses.replace(
      self,
      log_every_steps=self.log_every_steps or min(epoch, MAX_LOG_STEPS),
      eval_every_steps=self.eval_every_steps or epoch,
      checkpoint_every_steps=self.checkpoint_every_steps or epoch,
    )


@dataclasses.dataclass(frozen=True)
class Evaluator:
  """A split, and the step that evaluates a network on it.

  Attributes:
    source: the split.
    model: the network, in evaluation mode.
    make_eval_step: model -> ((variables, batch) -> sums).
    make_predict_step: model -> ((variables, batch) -> probabilities).
    batches: () -> one pass over the split, on the devices.
    abstract_state: shapes of the train state, for restoring checkpoints.
    device_mesh: the devices.
  """

  source: Source
  model: nn.Module
  make_eval_step: Callable
  make_predict_step: Callable
  batches: Callable[[], Iterator[dict]]
  abstract_state: TrainState
  device_mesh: jax.sharding.Mesh


@dataclasses.dataclass(frozen=True)
class StatisticsPass:
  """Training mini-batches to take population statistics from (Algorithm 2).

  Attributes:
    step: (variables, batch, rng) -> batch_stats of one mini-batch.
    batches: (number) -> so many mini-batches, as in training.
    rng: key of the distortions.
    batch_size: examples in each.
  """

  step: Callable
  batches: Callable[[int], Iterator[dict]]
  rng: jax.Array
  batch_size: int


@dataclasses.dataclass(frozen=True)
class Experiment:
  """A training run, assembled.

  Attributes:
    options: see `TrainingOptions`; without zeros for "once an epoch".
    batch_size: global batch.
    num_steps: updates of the whole run.
    steps_per_epoch: training examples / global batch.
    source: the training split.
    met_again_fraction: how badly its order mixes: see `order`.
    create_state: () -> the initial state.
    batches: (first step) -> the batches from there to the end.
    train_step: (state, batch, rng) -> (state, metrics).
    rng: key of augmentation and dropout.
    evaluator: of the evaluation split.
    statistics_pass: for population statistics at every evaluation; None: no BN,
      or they are not wanted.
  """

  options: TrainingOptions
  batch_size: int
  num_steps: int
  steps_per_epoch: float
  source: Source
  met_again_fraction: float
  create_state: Callable[[], TrainState]
  batches: Callable[[int], DeviceBatches]
  train_step: Callable
  rng: jax.Array
  evaluator: Evaluator
  statistics_pass: StatisticsPass | None


@dataclasses.dataclass(frozen=True)
class Update:
  """One update of a training run, on devices that need not be here.

  Attributes:
    device_mesh: the devices, in groups that share statistics.
    optimizer: see `make_optimizer`.
    create_state: (key of the initial weights) -> the initial state.
    train_step: (state, batch, rng) -> (state, metrics).
    abstract_arguments: () -> the arguments of `train_step` as shapes, types and
      places, from which it can be compiled.
  """

  device_mesh: jax.sharding.Mesh
  optimizer: Optimizer
  create_state: Callable[[jax.Array], TrainState]
  train_step: Callable
  abstract_arguments: Callable[[], tuple]


def make_update(
  config: dict,
  devices: Sequence[jax.Device],
  num_classes: int,
  num_channels: int,
  num_examples: int,
) -> Update:
  """Assembles what a run does in every step; opens no data.

  Args:
    config: the plain nested dict of configs/.
    devices: to train on; those of a topology description will do.
    num_classes, num_channels, num_examples: of the training split.

  Raises:
    UserError: for values that make no sense, or a batch that cannot be
      divided.
  """
  config_keys.check_config(config)
  optimizer = _make_optimizer(config, num_examples)
  device_mesh = _make_training_mesh(config, devices)
  options = InputOptions(**config['data'])
  model = make_model(config, num_classes)
  replicated = mesh.replicated(device_mesh)
  shape = (options.image_size, options.image_size, num_channels)

  def create_state(key):
    # Defined here, so that its program ends with the call: it would take 100 MB
    # of the host's memory to the end of the run.
    def create_initial_state(key):
      return create_train_state(model, optimizer, key, shape)

    # Placed as the step returns it; otherwise the second step compiles again.
    return jax.jit(create_initial_state, out_shardings=replicated)(key)

  def abstract_arguments():
    rng = jax.eval_shape(jax.random.key, 0)
    state, rng = jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=replicated),
      (jax.eval_shape(create_state, rng), rng),
    )
    batch = abstract_training_batch(
      options,
      config['batch_size'],
      num_channels,
      mesh.split_batch(device_mesh, optimizer.accumulate_steps > 1),
      optimizer.accumulate_steps,
    )
    return state, batch, rng

  return Update(
    device_mesh=device_mesh,
    optimizer=optimizer,
    create_state=create_state,
    train_step=steps.make_train_step(
      device_mesh,
      model=model.clone(train=True, axis_name=mesh.MEMBER),
      optimizer=optimizer,
      prepare=_training_input(config, num_channels),
    ),
    abstract_arguments=abstract_arguments,
  )


def make_evaluation_batches(
  config: dict, source: Source, device_mesh: jax.sharding.Mesh
) -> DeviceBatches:
  """One pass over a source, padded and masked, on the devices.

  The network sees `eval_batch_size` inputs at a time, whatever the crops.
  """
  options = InputOptions(**config['data'])
  batch_size = _evaluation_batch_size(config, device_mesh)
  return DeviceBatches(
    evaluation_batches(source, options, batch_size),
    mesh.split_batch(device_mesh),
  )


def _evaluation_batch_size(config: dict, device_mesh: jax.sharding.Mesh) -> int:
  """In images, a multiple of the devices."""
  num_devices = device_mesh.devices.size
  num_crops = NUM_CROPS[config['data']['eval_crop']]
  num_images = max(1, config['eval_batch_size'] // num_crops)
  return -(-num_images // num_devices) * num_devices


def limit_workers(
  config: dict, source: Source, device_mesh: jax.sharding.Mesh
) -> None:
  """Lowers `data.num_workers` to those whose batches shared memory holds.

  For programs that have no flag for it; says so in one line.

  Args:
    config: of a run, to be changed.
    source, device_mesh: to be evaluated, and where.
  """
  options = InputOptions(**config['data'])
  batch_size = _evaluation_batch_size(config, device_mesh)
  loads = (
    evaluation_load(options, batch_size, source),
    _statistics_load(config, source.num_channels),
  )
  wanted, prefetch = options.num_workers, options.prefetch
  fitting = min(
    shared_memory.fitting_workers(wanted, prefetch, [load]) for load in loads
  )
  if fitting < wanted:
    needed = max(
      shared_memory.needed_bytes(wanted, prefetch, [load]) for load in loads
    )
    print(
      f'{shared_memory.PLACE} has room for {fitting} of {wanted} worker '
      f'processes: all need `docker run --shm-size={-(-needed // 2**20)}m`'
    )
    config['data']['num_workers'] = fitting


def _statistics_load(
  config: dict, num_channels: int, num_batches: int = sys.maxsize
) -> shared_memory.Load:
  micro_batch = config['batch_size'] // config['optimizer']['accumulate_steps']
  return training_load(
    InputOptions(**config['data']), micro_batch, num_channels, num_batches
  )


def _check_shared_memory(
  config: dict, source: Source, evaluator: Evaluator, num_steps: int
) -> None:
  """Training batches stay while evaluations come and go."""
  options = InputOptions(**config['data'])
  if options.num_workers == 0:
    return
  num_processes = distributed.processes_on_this_host()
  num_channels, num_batches = (
    source.num_channels, config['training']['population_batches'],
  )  # fmt: skip
  training = training_load(
    options, config['batch_size'], num_channels, num_steps
  )
  batch_size = _evaluation_batch_size(config, evaluator.device_mesh)
  for other in (
    evaluation_load(options, batch_size, evaluator.source),
    _statistics_load(config, num_channels, num_batches),
  ):
    shared_memory.check(
      options.num_workers,
      options.prefetch,
      [training, other],
      num_processes,
    )


def make_evaluator(
  config: dict, source: Source, device_mesh: jax.sharding.Mesh
) -> Evaluator:
  """Assembles the evaluation of one split.

  Raises:
    UserError: if its config makes no sense.
  """
  scale = partial(augment.scale_image, **config['input_scaling'])
  return Evaluator(
    source=source,
    model=make_model(config, len(source.class_names)),
    make_eval_step=lambda model: steps.make_eval_step(
      device_mesh, model=model, prepare=scale
    ),
    make_predict_step=lambda model: steps.make_predict_step(
      device_mesh, model=model, prepare=scale
    ),
    batches=lambda: make_evaluation_batches(config, source, device_mesh),
    abstract_state=make_abstract_state(
      config, len(source.class_names), source.num_channels
    ),
    device_mesh=device_mesh,
  )


def make_abstract_state(
  config: dict, num_classes: int, num_channels: int
) -> TrainState:
  """The shapes of a run's train state, for restoring its checkpoints."""
  size = config['data']['image_size']
  create = partial(
    create_train_state,
    make_model(config, num_classes),
    # Shapes do not depend on the schedule, so that any epoch length will do.
    _make_optimizer(config, num_examples=1),
    image_shape=(size, size, num_channels),
  )
  return jax.eval_shape(create, jax.random.key(0))


def make_model(config: dict, num_classes: int) -> nn.Module:
  """The network of a config, in evaluation mode.

  Raises:
    UserError: if there is no such architecture.
  """
  architectures = {
    'inception': inception.Inception,
    'perceptron': perceptron.Perceptron,
  }
  check_choice('architecture', config['architecture'], tuple(architectures))
  return architectures[config['architecture']](
    num_classes=num_classes,
    norm_batch_size=config['norm_batch_size'],
    **config['model'],
  )


def make_statistics_pass(
  config: dict,
  num_classes: int,
  num_channels: int,
  data_dir: str | None,
  dataset: str,
  split: str,
  seed: int,
) -> StatisticsPass:
  """Assembles the mini-batches, as large and as distorted as in training.

  Labels have no influence, so that another data set may have other classes.

  Args:
    config: of the run.
    num_classes, num_channels: that its network is for.
    data_dir: where TFDS data sets are; None: TFDS's default.
    dataset, split: usually those of training; others adapt the statistics to
      another domain (Section 5).
    seed: of order and distortions.

  Raises:
    UserError: if the data are missing or of other channels, or the batch cannot
      be divided.
  """
  batch_size = config['batch_size'] // config['optimizer']['accumulate_steps']
  device_mesh = _make_training_mesh(config, jax.devices())
  source = open_split(config, dataset, split, data_dir)
  if source.num_channels != num_channels:
    raise UserError(
      f'{source.name} has images of {source.num_channels} channels and the '
      f'network takes {num_channels}: take statistics from another data set'
    )
  options = InputOptions(**config['data'])
  if options.num_shards > len(
    source
  ):  # a smaller data set than that of training
    options = dataclasses.replace(options, shuffle='global')
  model = make_model(config, num_classes)
  return StatisticsPass(
    step=steps.make_statistics_step(
      device_mesh,
      model=model.clone(train=True, axis_name=mesh.MEMBER),
      prepare=_training_input(config, num_channels),
    ),
    batches=lambda num_batches: DeviceBatches(
      training_batches(source, options, batch_size, seed, 0, num_batches),
      mesh.split_batch(device_mesh),
    ),
    rng=mesh.replicate(jax.random.key(seed), device_mesh),
    batch_size=batch_size,
  )


def make_experiment(config: dict, data_dir: str | None) -> Experiment:
  """Assembles a training run on all devices.

  Args:
    config: the plain nested dict of configs/.
    data_dir: where TFDS data sets are; None: TFDS's default.

  Raises:
    UserError: for values that make no sense, data that are missing or whose
      splits do not fit each other, or a batch that cannot be divided.
  """
  config_keys.check_config(config)  # before data are opened
  batch_size, seed = config['batch_size'], config['seed']
  names = config['source']
  source = open_split(config, names['dataset'], names['train_split'], data_dir)
  update = make_update(
    config,
    jax.devices(),
    num_classes=len(source.class_names),
    num_channels=source.num_channels,
    num_examples=len(source),
  )
  device_mesh, optimizer = update.device_mesh, update.optimizer
  eval_source = open_split(
    config, names['dataset'], names['eval_split'], data_dir
  )
  _check_splits(names, source, eval_source)
  evaluator = make_evaluator(config, eval_source, device_mesh)
  steps_per_epoch = len(source) / batch_size
  options = TrainingOptions(**config['training']).at_steps(steps_per_epoch)
  input_options = InputOptions(**config['data'])
  num_steps = _count_steps(options.num_epochs, steps_per_epoch)
  _check_shared_memory(config, source, evaluator, num_steps)
  weights_key, steps_key = jax.random.split(jax.random.key(seed))
  statistics_pass = None
  if options.population_batches and config['model']['use_batch_norm']:
    statistics_pass = make_statistics_pass(
      config,
      len(source.class_names),
      source.num_channels,
      data_dir,
      names['dataset'],
      names['train_split'],
      seed,
    )
  return Experiment(
    options=options,
    batch_size=batch_size,
    num_steps=num_steps,
    steps_per_epoch=steps_per_epoch,
    source=source,
    met_again_fraction=met_again_fraction(
      len(source),
      input_options.num_shards,
      input_options.shuffle,
      seed,
      examples_sharing_statistics(config) or batch_size,
    ),
    create_state=lambda: update.create_state(weights_key),
    batches=lambda first_step: DeviceBatches(
      training_batches(
        source,
        input_options,
        batch_size,
        seed,
        first_step,
        num_steps,
        optimizer.accumulate_steps,
      ),
      mesh.split_batch(device_mesh, optimizer.accumulate_steps > 1),
    ),
    train_step=update.train_step,
    rng=mesh.replicate(steps_key, device_mesh),
    evaluator=evaluator,
    statistics_pass=statistics_pass,
  )


def _count_steps(num_epochs: float, steps_per_epoch: float) -> int:
  num_steps = max(1, round(num_epochs * steps_per_epoch))
  if num_steps > _MAX_STEPS:
    raise UserError(
      f'training.num_epochs {num_epochs:g} is {num_steps:,} updates: at most '
      f'{_MAX_STEPS:,} can be counted'
    )
  return num_steps


def examples_sharing_statistics(config: dict) -> int:
  """How many examples share batch statistics in training; 0 without BN."""
  if not config['model']['use_batch_norm']:
    return 0
  micro_batch = config['batch_size'] // config['optimizer']['accumulate_steps']
  return config['norm_batch_size'] or micro_batch


def open_split(
  config: dict, dataset: str, split: str, data_dir: str | None
) -> Source:
  """A split of a data set, usually that of the config; see `make_source`."""
  # What the run held out means nothing for another data set.
  names = config['source']
  num_holdout = names['num_holdout'] if dataset == names['dataset'] else 0
  source = make_source(dataset, split, data_dir, num_holdout)
  if names['keep_in_memory']:
    return InMemory(source, max(1, config['data']['num_workers']))
  return source


def _check_splits(names: dict, source: Source, eval_source: Source) -> None:
  different = data_facts.first_difference(
    data_facts.describe_network(source),
    data_facts.describe_network(eval_source),
  )
  if different:
    raise UserError(
      f'the splits {names["train_split"]} and {names["eval_split"]} of '
      f'{source.name} are of other classes or images ({different}): give splits '
      'that fit each other'
    )


def _make_training_mesh(
  config: dict, devices: Sequence[jax.Device]
) -> jax.sharding.Mesh:
  norm_batch_size, fewest = 0, 1
  if config['model']['use_batch_norm']:
    norm_batch_size = config['norm_batch_size']
    # Section 3: a variance needs m > 1 values.
    model = make_model(config, num_classes=1)
    if model.fewest_values(config['data']['image_size']) == 1:
      fewest = 2
  return mesh.make_training_mesh(
    devices,
    config['batch_size'],
    norm_batch_size,
    config['optimizer']['accumulate_steps'],
    fewest,
  )


def _make_optimizer(config: dict, num_examples: int) -> Optimizer:
  batch_size = config['batch_size']
  return make_optimizer(
    steps_per_epoch=num_examples / batch_size,
    batch_size=batch_size,
    **config['optimizer'],
  )


def _training_input(config: dict, num_channels: int) -> Callable:
  """(image, index, key) -> the network's input: distorted, then scaled."""
  distort = partial(augment.photometric_distortion, **config['augment'])
  scale = partial(augment.scale_image, **config['input_scaling'])

  def prepare(image, index, key):
    return scale(distort(image, index, key))

  # Tried on nothing, so that a misspelt key fails here and not in the step.
  image = jax.ShapeDtypeStruct((1, 1, 1, num_channels), 'uint8')
  jax.eval_shape(prepare, image, jax.numpy.zeros(1, int), jax.random.key(0))
  return prepare

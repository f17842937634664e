"""Evaluates checkpoints on a data set, alone or as an ensemble."""

import dataclasses
import os
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from bn_inception import config_keys, inception
from bn_inception.data import data_facts, imagenet
from bn_inception.data.crops import NUM_CROPS
from bn_inception.data.sources import Source, open_split
from bn_inception.errors import UserError, check_choice
from bn_inception.evaluation import scores
from bn_inception.evaluation.passes import predict, with_population_statistics
from bn_inception.evaluation.predictions import Predictions, average
from bn_inception.experiment import Setup, setup_of_checkpoint
from bn_inception.machine import accelerators, shared_memory
from bn_inception.metrics import MOVING, NONE, POPULATION
from bn_inception.runs import checkpoint, checkpoint_folder, run_directory
from bn_inception.wording import count

# What `EvaluationOptions.statistics` may be -> kinds of statistics.
STATISTICS = {
  'moving': (MOVING,),
  'population': (POPULATION,),
  'both': (MOVING, POPULATION),
}


@dataclasses.dataclass(frozen=True)
class PopulationOptions:
  """Where population statistics come from.

  Attributes:
    num_batches: how many mini-batches to average. The paper says several; Wu &
      Johnson (2021) take 200.
    seed: for the order and the distortions of the images.
    dataset, split: None: those of training. Others adapt the statistics to
      another domain (Section 5).
  """

  num_batches: int = 200
  seed: int = 0
  dataset: str | None = None
  split: str | None = None

  def __post_init__(self):
    # In a config, 0 means none.
    allowed = config_keys.KEYS['training.population_batches'].allowed._replace(
      low=1
    )
    problem = allowed.problem(self.num_batches)
    if problem:
      raise UserError(f'statistics_batches {problem}')
    config_keys.check_value('seed', self.seed, 'statistics_seed')


def find_checkpoint(workdir: str, step: int | None) -> str:
  """The path of a run's checkpoint.

  Args:
    workdir: the run directory.
    step: None: the newest intact checkpoint; prints a line for each newer,
      damaged one.

  Raises:
    UserError: if the folder does not exist or has no such checkpoint.
  """
  if not os.path.isdir(workdir):
    raise UserError(
      f'workdir {workdir} does not exist: train first, or give --workdir'
    )
  directory = os.path.join(workdir, run_directory.CHECKPOINTS_FOLDER)
  path = checkpoint_folder.find(directory, step)
  if step is not None:
    return path
  chosen, wrong = checkpoint_folder.newest_intact(directory)
  for path, damage in wrong.items():
    print(f'checkpoint {path} is damaged ({damage}): using {chosen}')
  return chosen


def choose(
  given: Sequence[str], workdir: str, step: int | None
) -> Sequence[str]:
  """The checkpoints of --checkpoint, or else the run's: see `find_checkpoint`."""
  if given and step is not None:
    raise UserError(
      '--step chooses in --workdir: leave it out with --checkpoint'
    )
  return given or [find_checkpoint(workdir, step)]


@dataclasses.dataclass(frozen=True)
class EvaluationOptions:
  """What to evaluate checkpoints on, and how.

  Attributes:
    dataset, split: None: those of the run.
    data_dir: where the data are; None: TFDS's default.
    batch_size: network inputs at a time; None: the run's.
    crops: a rule of `crops.NUM_CROPS`; None: the run's.
    statistics: for the batch-norm layers: 'moving' averages, those of the
      'population', or 'both'.
    population: see `PopulationOptions`.
    fold: fold batch norm into the convolutions.
    dtype: of the computation; '': the run's.
    real: report accuracy by the ReaL labels of ImageNet's validation set, too.
    is_named: name the images in the predictions, which takes another pass.
  """

  dataset: str | None = None
  split: str | None = None
  data_dir: str | None = None
  batch_size: int | None = None
  crops: str | None = None
  statistics: str = 'moving'
  population: PopulationOptions = PopulationOptions()
  fold: bool = False
  dtype: str = ''
  real: bool = False
  is_named: bool = False

  def __post_init__(self):
    if self.batch_size is not None:
      config_keys.check_value('eval_batch_size', self.batch_size, 'batch_size')
    if self.crops is not None:
      check_choice('crops', self.crops, tuple(NUM_CROPS))
    check_choice('statistics', self.statistics, tuple(STATISTICS))


@dataclasses.dataclass(frozen=True)
class Member:
  """A checkpoint ready for evaluation: everything checked, nothing run.

  Attributes:
    path: of the checkpoint.
    usual: the run's own `dataset`, `crops` and `dtype`.
    setup: of its run, changed to the options.
    source: the split to evaluate on.
    facts: for the result: `dataset`, `split`, `examples`, `data` (where they
      are), `crops`, `num_crops`, `folded` and `dtype`; the same for all members
      of an ensemble.
    kinds: of statistics.
    population: the options, with the run's values for None.
    statistics_source: data for the population statistics; None: not wanted.
    names: str [N], of the images; '' if not wanted.
    real_labels: of the images; None: not wanted.
  """

  path: str
  usual: dict
  setup: Setup
  source: Source
  facts: dict
  kinds: tuple[str, ...]
  population: PopulationOptions
  statistics_source: Source | None
  names: np.ndarray
  real_labels: list[frozenset[int]] | None


def evaluate_checkpoints(
  paths: Sequence[str], options: EvaluationOptions
) -> tuple[dict, dict[str, Predictions]]:
  """`prepare`, then `evaluate_members`."""
  return evaluate_members(prepare(paths, options))


def prepare(paths: Sequence[str], options: EvaluationOptions) -> list[Member]:
  """Opens checkpoints and data, and checks them before anything runs.

  Args:
    paths: of the checkpoints; several are an ensemble.
    options: see `EvaluationOptions`.

  Raises:
    UserError: if a checkpoint or data are missing, or do not fit together.
  """
  opened = {}
  members = [_prepare_member(path, options, opened) for path in paths]
  first = members[0]
  for other in members[1:]:
    if other.kinds != first.kinds:
      raise UserError(
        'an ensemble has one kind of statistics, and only some of these networks '
        'have batch normalization: save the predictions of each, then average '
        'those'
      )
    for name in ('dataset', 'split', 'examples', 'crops', 'dtype'):
      ours, theirs = first.facts[name], other.facts[name]
      if ours != theirs:
        raise UserError(
          f'an ensemble has one {name}, but {first.path} has {ours} and '
          f'{other.path} has {theirs}: choose one with flags, or save the '
          'predictions of each, then average those'
        )
  for remark in accelerators.remarks():
    print(remark)
  return members


def evaluate_members(
  members: Sequence[Member],
) -> tuple[dict, dict[str, Predictions]]:
  """Evaluates checkpoints on all devices; several as an ensemble.

  An ensemble's class probabilities are the mean of its members' (Section 4.2.3).

  Args:
    members: from `prepare`.

  Returns:
    A result and the predictions of the ensemble by kind of statistics. The result
    has the `facts` of a `Member`; `images_per_second`, of one network; `results`:
    for each kind `scores.summary`, with `scores.label_set_summary` as `real` if
    wanted; `members`: for each checkpoint its path as `checkpoint`, its `name`,
    `trained_on`, `step` and own `results`, with the source of its statistics.
  """
  evaluated = [_evaluate_member(member) for member in members]
  records = [one.record for one in evaluated]
  first = members[0]
  predictions = {
    kind: average([one.predictions[kind] for one in evaluated])
    for kind in first.kinds
  }
  results = records[0]['results']
  if len(members) > 1:
    results = {
      kind: scores.summary(mean.log_probabilities, mean.labels)
      for kind, mean in predictions.items()
    }
  if first.real_labels is not None:
    results = {
      kind: result
      | {
        'real': scores.label_set_summary(
          predictions[kind].log_probabilities, first.real_labels
        )
      }
      for kind, result in results.items()
    }
  speeds = [o.images_per_second for o in evaluated if o.images_per_second]
  return {
    **first.facts,
    'images_per_second': min(speeds, default=None),
    'results': results,
    'members': records,
  }, predictions


class _Evaluated(NamedTuple):
  """A member's share of the result.

  Attributes:
    record: see `members` of `evaluate_members`.
    predictions: for each kind of statistics.
    images_per_second: None: not measured.
  """

  record: dict
  predictions: dict[str, Predictions]
  images_per_second: float | None


def _prepare_member(
  path: str, options: EvaluationOptions, opened: dict
) -> Member:
  """A `Member`; `opened` holds the splits that earlier members opened."""
  description = checkpoint.read_description(path)
  config = description['config']
  names = config['source']
  usual = {
    'dataset': names['dataset'],
    'crops': config['data']['eval_crop'],
    'dtype': config['model']['dtype'],
  }
  split = _apply(options, config)
  kinds = _statistics_kinds(config, options.statistics)
  if options.fold and config['architecture'] == 'perceptron':
    raise UserError('--fold is for convolutional networks: leave it out')
  if options.fold and kinds == (NONE,):
    raise UserError(
      f'{path} has no batch normalization to fold: leave out --fold'
    )
  key = names['dataset'], split, names['num_holdout'], names['keep_in_memory']
  if key not in opened:
    source = open_split(config, names['dataset'], split, options.data_dir)
    opened[key] = source, *_name_images(source, options)
    for remark in source.remarks():
      print(f'{split}: {remark}')
  source, image_names, real_labels = opened[key]
  _check_fit(path, description, source)
  setup = limit_workers(
    setup_of_checkpoint(description, with_batch_statistics=POPULATION in kinds),
    source,
  )
  population = dataclasses.replace(
    options.population,
    dataset=options.population.dataset or usual['dataset'],
    split=options.population.split or names['train_split'],
  )
  statistics_source = None
  if POPULATION in kinds:
    statistics_source = _open_statistics_source(
      setup, population, options.data_dir
    )
  return Member(
    path=path,
    usual=usual,
    setup=setup,
    source=source,
    facts={
      'dataset': source.name,
      'split': split,
      'examples': len(source),
      'data': source.origin(),
      'crops': config['data']['eval_crop'],
      'num_crops': NUM_CROPS[config['data']['eval_crop']],
      'folded': options.fold,
      'dtype': config['model']['dtype'],
    },
    kinds=kinds,
    population=population,
    statistics_source=statistics_source,
    names=image_names,
    real_labels=real_labels,
  )


def _open_statistics_source(
  setup: Setup, population: PopulationOptions, data_dir: str | None
) -> Source:
  source = open_split(
    setup.config, population.dataset, population.split, data_dir
  )
  if source.num_channels != setup.batches.num_channels:
    raise UserError(
      f'{source.name} has images of {count(source.num_channels, "channel")} and the '
      f'network takes {setup.batches.num_channels}: take statistics from another data '
      'set'
    )
  return source


def limit_workers(setup: Setup, source: Source) -> Setup:
  """Lowers `data.num_workers` to those whose batches fit into shared memory.

  For programs without a flag for it. Prints a line if it lowers the number.

  Args:
    setup: to evaluate with.
    source: to evaluate on.
  """
  batches = setup.batches
  wanted, prefetch = batches.options.num_workers, batches.options.prefetch
  loads = batches.evaluation_loads(source)
  fitting = min(
    shared_memory.fitting_workers(wanted, prefetch, [load]) for load in loads
  )
  if fitting == wanted:
    return setup
  needed = max(
    shared_memory.needed_bytes(wanted, prefetch, [load]) for load in loads
  )
  print(
    f'{shared_memory.PLACE} has room for {fitting} of {wanted} worker '
    f'processes: all need `docker run --shm-size={-(-needed // 2**20)}m`'
  )
  options = dataclasses.replace(batches.options, num_workers=fitting)
  return dataclasses.replace(
    setup, batches=dataclasses.replace(batches, options=options)
  )


def _name_images(
  source: Source, options: EvaluationOptions
) -> tuple[np.ndarray, list[frozenset[int]] | None]:
  """`names` and `real_labels` of a `Member`."""
  if not (options.is_named or options.real):
    return np.array([''] * len(source)), None
  names = np.array([source.file_name(i) for i in range(len(source))])
  if not options.real:
    return names, None
  return names, imagenet.real_labels(names, source.class_names)


def _evaluate_member(member: Member) -> _Evaluated:
  # A setup of its own, so that its compiled steps are freed before the next
  # member's are made.
  setup = dataclasses.replace(member.setup)
  state = checkpoint.restore_weights(
    member.path, setup.abstract_state(), setup.replicated
  )
  name, step = setup.config['name'], int(state.step)
  results, predictions = {}, {}
  for kind in member.kinds:
    variables, origin = state.evaluation_variables, {}
    if kind == POPULATION:
      variables = with_population_statistics(
        setup,
        variables,
        member.statistics_source,
        member.population.num_batches,
        member.population.seed,
      )
      origin = _origin_of_statistics(member)
    values, labels, speed = _predict(
      setup, variables, member.source, member.facts['folded']
    )
    predictions[kind] = Predictions(
      values,
      labels,
      member.names,
      np.array(member.source.class_names),
      f'{name} at step {step} ({kind})',
    )
    results[kind] = scores.summary(values, labels) | origin
  record = {
    'checkpoint': os.path.abspath(member.path),
    'name': name,
    'trained_on': member.usual['dataset'],
    'step': step,
    'results': results,
  }
  return _Evaluated(record, predictions, speed)


def _apply(options: EvaluationOptions, config: dict) -> str:
  """Changes a run's config to the options; returns the split to evaluate on."""
  names = config['source']
  if options.dataset not in (None, names['dataset']):
    names.update(dataset=options.dataset, num_holdout=0)
  if options.batch_size is not None:
    config['eval_batch_size'] = options.batch_size
  if options.crops is not None:
    config['data']['eval_crop'] = options.crops
  if options.dtype:
    config['model']['dtype'] = options.dtype
  return options.split or names['eval_split']


def _statistics_kinds(config: dict, statistics: str) -> tuple[str, ...]:
  if config['model']['use_batch_norm']:
    return STATISTICS[statistics]
  if POPULATION in STATISTICS[statistics]:
    raise UserError(
      'this network has no batch normalization, so it has no statistics: leave '
      'out --statistics'
    )
  return (NONE,)


def _origin_of_statistics(member: Member) -> dict:
  """What population statistics were taken from, for the result."""
  population = dataclasses.asdict(member.population)
  return {
    **{f'statistics_{name}': value for name, value in population.items()},
    'statistics_batch_size': member.setup.batches.micro_batch_size,
    'norm_batch_size': member.setup.norm_batch_size,
  }


def _predict(setup: Setup, variables: dict, source: Source, fold: bool):
  if fold:
    model, variables = inception.fold_batch_norm(setup.model, variables)
    setup = dataclasses.replace(setup, model=model)
  return predict(
    setup.predict_step, variables, setup.batches.evaluation(source), source
  )


def _check_fit(path: str, description: dict, source: Source) -> None:
  different = data_facts.first_difference(
    description, data_facts.describe_network(source)
  )
  if different:
    raise UserError(
      f'checkpoint {path} does not fit the data of {source.name} ({different}): '
      'evaluate on the data set that it was trained on, with --dataset and '
      '--data_dir'
    )

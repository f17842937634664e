"""The studies as tables: which configs to train with which seeds.

Data only; `python -m bn_inception.study` trains them, and
`python -m bn_inception.study.report` draws the figures and tables.
"""

from typing import Any, NamedTuple

from configs.paper import CHANGES, NETWORKS, TRIAL_CHANGES, Times


class Paper(NamedTuple):
  """What the paper reports for a network.

  Attributes:
    steps: number of steps to 72.2 % accuracy; None if it never gets there.
    best: the highest validation accuracy, as text.
  """

  steps: float | None
  best: str


class Arm(NamedTuple):
  """One config of a study, trained with every seed on every task.

  Attributes:
    name: its name in tables and figures.
    config: a file of configs/, without .py.
    argument: what follows the colon, without the task.
    values: replace values of the config, or multiply them (`Times`).
    paper: the paper's result for it, if any.
  """

  name: str
  config: str
  argument: str = ''
  values: dict[str, Any] = {}
  paper: Paper | None = None


class Study(NamedTuple):
  """A comparison of several arms.

  Attributes:
    title: one line.
    arms: the first one is the reference for the others.
    tasks: names in `paper.TASKS`; each is compared separately.
    seeds: for initial weights, order, distortions and dropout.
    section: what the report shows, a key of `bn_inception.study.sections.SECTIONS`.
  """

  title: str
  arms: tuple[Arm, ...]
  tasks: tuple[str, ...] = ('fashion_mnist_5k',)
  seeds: tuple[int, ...] = (0, 1, 2)
  section: str = 'accuracies'


_RATE = 'optimizer.learning_rate'
_PLAIN = Arm('without BN', 'mnist', 'plain')
_BATCH_NORM = Arm('with BN', 'mnist', 'batch_norm')

_FIGURE_1_RATES = 0.03, 0.1, 0.3, 1.0, 3.0, 10.0
# On held-out training images: no choice is made on the test set.
_FIGURE_1_SEARCH = {
  'training.num_epochs': 10.0,
  'source.num_holdout': 10_000,
  'source.eval_split': 'train_holdout',
}


def _with_rates(arm: Arm, rates: tuple[float, ...], **values) -> list[Arm]:
  return [
    Arm(
      f'{arm.name}, {rate:g}', arm.config, arm.argument, {_RATE: rate, **values}
    )
    for rate in rates
  ]


def _batches_of_128(norm_batch_size: int) -> dict[str, Any]:
  return {
    'batch_size': 128,
    'norm_batch_size': norm_batch_size,
    'optimizer.learning_rate_per_32': True,
  }


# From Figure 3 and, for the networks that failed, Section 4.2.2.
_PAPER = {
  'inception': Paper(31.0e6, '72.2 %'),
  'bn_baseline': Paper(13.3e6, '72.7 %'),
  'bn_x5': Paper(2.1e6, '73.0 %'),
  'bn_x30': Paper(2.7e6, '74.8 %'),
  'bn_x5_sigmoid': Paper(None, '69.8 %'),
  'inception_x5': Paper(None, 'reached machine infinity'),
  'inception_sigmoid': Paper(None, 'chance, 0.1 %'),
}
_ARMS = {
  name: Arm(network.title, 'network', name, paper=_PAPER.get(name))
  for name, network in NETWORKS.items()
}
_BOTH_WEIGHTS = ('fashion_mnist_5k', 'fashion_mnist_5k_xavier')

STUDIES = {
  'figure1': Study(
    'Figure 1: a small network on MNIST, with and without batch normalization',
    (_PLAIN, _BATCH_NORM),
    tasks=('mnist', 'fashion_mnist'),
    section='figure_1',
  ),
  'figure1_small_rates': Study(
    'Figure 1 at learning rates that are small for both networks',
    tuple(
      arm
      for rate in (0.03, 0.1)
      for network in (_PLAIN, _BATCH_NORM)
      for arm in _with_rates(network, (rate,))
    ),
    tasks=('mnist',),
    section='figure_1',
  ),
  'figure2': Study(
    'Figures 2 and 3: the networks with BN and without, and those that fail without',
    tuple(_ARMS.values()),
    tasks=_BOTH_WEIGHTS,
    section='figure_2',
  ),
  'leave_one_out': Study(
    'BN-x5 without each of its changes',
    (
      _ARMS['bn_x5'],
      *(Arm(f'without {name}', 'bn_x5_without', name) for name in CHANGES),
    ),
    section='differences',
  ),
  'add_one_in': Study(
    'BN-Baseline with each of the changes of BN-x5',
    (
      _ARMS['bn_baseline'],
      *(Arm(f'with {name}', 'bn_baseline_with', name) for name in CHANGES),
    ),
    section='differences',
  ),
  'batch_statistics': Study(
    'How many examples of a batch of 128 share statistics, in BN-x5',
    (
      Arm('32 share statistics', 'bn_x5', values=_batches_of_128(32)),
      Arm('8 share statistics', 'bn_x5', values=_batches_of_128(8)),
      Arm('all 128 share statistics', 'bn_x5', values=_batches_of_128(0)),
    ),
    section='batch_statistics',
  ),
  'learning_rates': Study(
    'The learning rate times 1, 5, 30 and 100, with BN (and the other changes) '
    'and without',
    (
      Arm('BN-x1', 'bn_x5_without', 'increase_learning_rate'),
      _ARMS['bn_x5'],
      _ARMS['bn_x30'],
      Arm('BN-x100', 'bn_x5', values={_RATE: Times(100 / 5)}),
      _ARMS['inception'],
      _ARMS['inception_x5'],
      Arm('Inception-x30', 'inception', values={_RATE: Times(30)}),
      Arm('Inception-x100', 'inception', values={_RATE: Times(100)}),
    ),
    section='learning_rates',
  ),
  # The searches that gave the learning rates of paper.py.
  'figure1_rates': Study(
    'The learning rate of Figure 1: the best of each network, in a fifth of the steps',
    tuple(_with_rates(_PLAIN, _FIGURE_1_RATES, **_FIGURE_1_SEARCH))
    + tuple(_with_rates(_BATCH_NORM, _FIGURE_1_RATES, **_FIGURE_1_SEARCH)),
    tasks=('mnist',),
    seeds=(100,),
    section='rate_search',
  ),
  'base_rate': Study(
    'The base learning rate: the best one of Inception, which has no BN',
    tuple(_with_rates(_ARMS['inception'], (0.001, 0.003, 0.01, 0.03, 0.1))),
    tasks=_BOTH_WEIGHTS,
    seeds=(100,),
    section='rate_search',
  ),
}

if TRIAL_CHANGES:
  STUDIES['trial_changes'] = Study(
    'BN-x5 with each of the trial changes',
    (
      _ARMS['bn_x5'],
      *(Arm(f'with {name}', 'bn_x5_with', name) for name in TRIAL_CHANGES),
    ),
    section='differences',
  )

# The split for the final evaluation of the last checkpoint, for tasks that track
# accuracy on another split.
FINAL_SPLITS = {
  'fashion_mnist_5k': 'test',
  'fashion_mnist_5k_xavier': 'test',
}

# --quick: a trial of everything, minutes on two cores.
QUICK_TASK = 'digits'
QUICK_SEEDS = (0,)
QUICK_VALUES = {
  'training.num_epochs': 1.0,
  'training.log_every_steps': 7,
  'training.eval_every_steps': 14,
  'training.checkpoint_every_steps': 42,
  'training.keep_last_checkpoints': 1,
  'training.keep_best_checkpoints': 0,
  'training.population_batches': 4,
  'source.num_holdout': 100,  # of the digits' 1,442
}
# Environment of the training processes. On CPUs a quick run spends most of its time
# compiling; without these settings it takes half as long again.
QUICK_ENVIRONMENT = {
  'JAX_DISABLE_MOST_OPTIMIZATIONS': 'true',
  'XLA_FLAGS': '--xla_cpu_use_fusion_emitters=false',
}

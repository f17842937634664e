"""Puts the tables of paper.py together: task, network, changes, command line."""

import json
import pathlib
from collections.abc import Iterable

from absl import flags
from ml_collections import ConfigDict

from configs import paper

# Raised for a misspelt name: absl reports it as a bad flag value, in one line.
BadValue = flags.IllegalFlagValueError


def preset(network: str, task: str) -> ConfigDict:
  """The config of a network of Figure 3 on a task."""
  changes = _lookup('network', paper.NETWORKS, network).changes
  return _compose(network, task, changes, name=network)


def without(network: str, argument: str) -> ConfigDict:
  """A network less some of its changes: 'remove_dropout,...[,task]'."""
  names, task = _split(argument)
  included = _lookup('network', paper.NETWORKS, network).changes
  kept = {name: included[name] for name in included if name not in names}
  return _compose(network, task, kept, '-'.join([f'{network}_without', *names]))


def with_changes(network: str, argument: str) -> ConfigDict:
  """A network plus some changes: 'remove_dropout,...[,task]'."""
  names, task = _split(argument)
  changes = {name: paper.CHANGES[name] for name in names}
  return _compose(network, task, changes, '-'.join([f'{network}_with', *names]))


def ensemble_member(argument: str) -> ConfigDict:
  """One of the six networks of Section 4.2.3: 'MEMBER[,task]'."""
  member, _, task = argument.partition(',')
  values = _lookup('member', paper.ENSEMBLE, member)
  # Members differ in their initial weights and in the order of the examples, too.
  changes = {
    **paper.NETWORKS['bn_x30'].changes,
    'member': values | {'seed': int(member)},
  }
  return _compose('bn_x30', task or 'imagenet', changes, f'ensemble-{member}')


def perceptron(argument: str) -> ConfigDict:
  """The networks of Figure 1: 'plain' or 'batch_norm', and a data set."""
  name, _, dataset = argument.partition(',')
  dataset = dataset or 'mnist'
  updates = (
    {'source.dataset': dataset},
    _lookup('perceptron', paper.PERCEPTRONS, name),
    _lookup('data set', paper.PERCEPTRON_DATASETS, dataset),
  )
  base = {k: v for k, v in paper.BASE.items() if not k.startswith('model.')}
  values = _update(base | paper.PERCEPTRON, updates)
  return _nest(f'perceptron_{name}-{dataset}', values)


def of_run(workdir: str) -> ConfigDict:
  """The config in the folder of a run, to fine-tune it on data of any size."""
  if not workdir:
    raise BadValue('give the run after the colon: configs/of_run.py:runs/a')
  path = pathlib.Path(workdir, 'config.json')
  try:
    values = json.loads(path.expanduser().read_text())
  except (OSError, ValueError, RuntimeError) as error:  # of ~ without a home
    raise BadValue(
      f'{path} cannot be read ({error}): give the folder of a run, such as '
      'runs/digits'
    ) from error
  config = ConfigDict(_with_tuples(values))
  config.name = f'like-{config.name}'
  config.init_from = ''
  # What was chosen for the size of the run's own data follows that of the new.
  config.data.shuffle = 'global'
  for what in 'log', 'eval', 'checkpoint':
    config.training[f'{what}_every_steps'] = 0  # once an epoch
  return config.lock()


def _with_tuples(value):
  """JSON's lists as tuples, which alone can be overridden."""
  if isinstance(value, dict):
    return {key: _with_tuples(item) for key, item in value.items()}
  return tuple(value) if isinstance(value, list) else value


def _compose(network: str, task: str, changes: dict, name: str) -> ConfigDict:
  updates = (
    _lookup('task', paper.TASKS, task),
    paper.NETWORKS[network].values,
    *changes.values(),
  )
  return _nest(f'{name}-{task}', _update(paper.BASE, updates))


def _update(base: dict, updates: Iterable[dict]) -> dict:
  """The base, with what each update replaces or multiplies."""
  values = dict(base)
  for update in updates:
    for key, value in update.items():
      if key not in values:
        raise KeyError(f'{key} is in no base of paper.py')
      is_relative = isinstance(value, paper.Times)
      values[key] = values[key] * value.factor if is_relative else value
  return values


def _nest(name: str, values: dict) -> ConfigDict:
  """{'a.b': 1} as a locked config with the section a."""
  config = ConfigDict({'name': name})
  for key, value in values.items():
    section, _, leaf = key.rpartition('.')
    if section and section not in config:
      config[section] = ConfigDict()
    (config[section] if section else config)[leaf] = value
  return config.lock()


def _split(argument: str) -> tuple[list[str], str]:
  """'change,change,task' -> ([change, change], task); the task may be absent."""
  names = argument.split(',')
  task = names.pop() if names[-1] in paper.TASKS else 'imagenet'
  for name in names:
    if name not in paper.CHANGES:
      raise BadValue(
        f"unknown change or task '{name}': the changes are "
        f'{", ".join(paper.CHANGES)}; the tasks, which come last, are '
        f'{", ".join(paper.TASKS)}'
      )
  if not names:
    raise BadValue(f'name a change: one of {", ".join(paper.CHANGES)}')
  return names, task


def _lookup(kind: str, table: dict, name: str):
  if name not in table:
    raise BadValue(f"unknown {kind} '{name}': use one of {', '.join(table)}")
  return table[name]

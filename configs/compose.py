"""Builds configs from the tables of paper.py and records where each value comes from.

A config is a stack of layers: the base, the task, the network, its changes. Each
layer replaces or multiplies values of the layers before it.
"""

import json
import pathlib
from collections.abc import Iterable
from typing import Any

from absl import flags
from ml_collections import ConfigDict

from configs import paper

# Raised for a misspelt name: absl reports it as a bad flag value, in one line.
BadValue = flags.IllegalFlagValueError
# The name of a layer, and its values.
Layer = tuple[str, dict[str, Any]]


def preset(network: str, task: str) -> ConfigDict:
  """The config of a network of Figure 3 on a task."""
  changes = _lookup('network', paper.NETWORKS, network).changes
  return _compose(network, task, _change_layers(changes), network)


def network(argument: str) -> ConfigDict:
  """Like `preset`, with one argument: 'NETWORK[,TASK]'."""
  name, _, task = argument.partition(',')
  return preset(name, task or 'imagenet')


def without(network: str, argument: str) -> ConfigDict:
  """A network without some of its changes: 'remove_dropout,...[,TASK]'."""
  included = _lookup('network', paper.NETWORKS, network).changes
  names, task = _split(argument, included)
  kept = {name: included[name] for name in included if name not in names}
  name = '-'.join([f'{network}_without', *names])
  return _compose(network, task, _change_layers(kept), name)


def with_changes(network: str, argument: str) -> ConfigDict:
  """A network with additional changes: 'remove_dropout,...[,TASK]'."""
  included = _lookup('network', paper.NETWORKS, network).changes
  tables = paper.CHANGES | paper.TRIAL_CHANGES
  possible = {k: v for k, v in tables.items() if k not in included}
  names, task = _split(argument, possible)
  changes = included | {name: possible[name] for name in names}
  name = '-'.join([f'{network}_with', *names])
  return _compose(network, task, _change_layers(changes), name)


def ensemble_member(argument: str) -> ConfigDict:
  """One of the six networks of Section 4.2.3: 'MEMBER[,TASK]'."""
  member, _, task = argument.partition(',')
  values = _lookup('member', paper.ENSEMBLE, member)
  # Members also differ in their initial weights and the order of the examples.
  layers = [
    *_change_layers(paper.NETWORKS['bn_x30'].changes),
    (f'ensemble member {member}', values | {'seed': int(member)}),
  ]
  return _compose('bn_x30', task or 'imagenet', layers, f'ensemble-{member}')


def perceptron(argument: str) -> ConfigDict:
  """A network of Figure 1: 'plain' or 'batch_norm', then '[,DATASET]'."""
  name, _, dataset = argument.partition(',')
  dataset = dataset or 'mnist'
  network = _lookup('perceptron', paper.PERCEPTRONS, name)
  values = _lookup('data set', paper.PERCEPTRON_DATASETS, dataset)
  layers = [
    ('base', _perceptron_base()),
    (f'task {dataset}', {'source.dataset': dataset, **values}),
    (f'network {name}', network),
  ]
  return _make(f'perceptron_{name}-{dataset}', layers)


def from_run(workdir: str) -> ConfigDict:
  """The config of an earlier run, adapted to fine-tune on data of any size."""
  if not workdir:
    raise BadValue('give the run after the colon: configs/from_run.py:runs/a')
  name, layers = _read_run_layers(workdir)
  return _make(f'like-{name}', layers)


def fine_tune(argument: str) -> ConfigDict:
  """A network from a checkpoint on other data: 'CHECKPOINT[,DATASET]'."""
  checkpoint, _, dataset = argument.partition(',')
  path = pathlib.Path(checkpoint)
  if path.parent.name != 'checkpoints':
    raise BadValue(
      f"'{checkpoint}' is not a checkpoint: give one after the colon, such as "
      'configs/fine_tune.py:runs/a/checkpoints/9'
    )
  name, layers = _read_run_layers(str(path.parent.parent))
  values = paper.FINE_TUNING | {'init_from': checkpoint}
  if dataset:
    name = f'{name}-on-{dataset}'
    values |= {'source.dataset': dataset, 'source.num_holdout': 0}
  return _make(f'fine_tuned-{name}', [*layers, ('fine_tune', values)])


def _read_run_layers(workdir: str) -> tuple[str, list[Layer]]:
  """The name of a run, and its config as layers, adapted to data of any size."""
  path = pathlib.Path(workdir, 'config.json')
  try:
    saved = json.loads(path.expanduser().read_text())
    architecture = saved['architecture']
  # RuntimeError: ~ for a user without a home folder.
  except (OSError, ValueError, RuntimeError) as error:
    raise BadValue(
      f'{path} cannot be read ({error}): give the folder of a run, such as '
      'runs/digits'
    ) from error
  except (KeyError, TypeError) as error:
    raise BadValue(
      f'{path} does not hold the config of a run: give the folder of a run, '
      'such as runs/digits'
    ) from error
  is_perceptron = architecture == 'perceptron'
  new_data = {
    # These depend on the size of the data.
    'data.shuffle': 'global',
    'training.log_every_steps': 0,  # once an epoch
    'training.eval_every_steps': 0,
    'training.checkpoint_every_steps': 0,
    'init_from': '',
  }
  layers = [
    # The base fills in the keys that are newer than the run.
    ('base', _perceptron_base() if is_perceptron else paper.BASE),
    (f'run {workdir}', _flatten(saved)),
    ('from_run', new_data),
  ]
  return saved.get('name', 'run'), layers


def origins(config: ConfigDict) -> dict[str, str]:
  """{'section.key': the layers that its value comes from}.

  A value that was changed after the config was made here, or that belongs to a config
  made elsewhere, has the origin 'config file'.
  """
  recorded = getattr(config, '_origins', {})
  found = {}
  for key, value in _flatten(config.to_dict()).items():
    origin, original = recorded.get(key, (None, None))
    is_same = origin is not None and value == original
    found[key] = origin if is_same else 'config file'
  return found


def _compose(
  network: str, task: str, changes: Iterable[Layer], name: str
) -> ConfigDict:
  layers = [
    ('base', paper.BASE),
    (f'task {task}', _lookup('task', paper.TASKS, task)),
    (f'network {network}', paper.NETWORKS[network].values),
    *changes,
  ]
  return _make(f'{name}-{task}', layers)


def _change_layers(changes: dict[str, dict]) -> list[Layer]:
  return [(f'change {name}', values) for name, values in changes.items()]


def _perceptron_base() -> dict[str, Any]:
  base = {k: v for k, v in paper.BASE.items() if not k.startswith('model.')}
  return base | paper.PERCEPTRON


def _make(name: str, layers: list[Layer]) -> ConfigDict:
  """Merges layers into a locked config; the first layer has all keys."""
  (base, base_values), *updates = layers
  values = {'name': name, **base_values}
  origins = dict.fromkeys(values, base)
  for layer, update in updates:
    for key, value in update.items():
      if key not in values:
        raise BadValue(
          f'{layer} sets {key}, which is not in BASE or PERCEPTRON of paper.py'
        )
      if isinstance(value, paper.Times):
        origins[key] = f'{origins[key]} x {value.factor:g} by {layer}'
        values[key] = values[key] * value.factor
      else:
        origins[key], values[key] = layer, value
  values['name'], origins['name'] = name, 'preset'
  config = _nest(values)
  recorded = {key: (origins[key], value) for key, value in values.items()}
  # ConfigDict's own __setattr__ would make it a key of the config.
  object.__setattr__(config, '_origins', recorded)
  return config.lock()


def _nest(values: dict[str, Any]) -> ConfigDict:
  """Turns {'a.b': 1} into a config with the section a."""
  config = ConfigDict()
  for key, value in values.items():
    section, _, leaf = key.rpartition('.')
    if section and section not in config:
      config[section] = ConfigDict()
    (config[section] if section else config)[leaf] = value
  return config


def _flatten(config: dict, prefix: str = '') -> dict[str, Any]:
  """The inverse of `_nest`; makes tuples of JSON's lists, so that flags can set them."""
  flat = {}
  for key, value in config.items():
    if isinstance(value, dict):
      flat |= _flatten(value, f'{prefix}{key}.')
    else:
      flat[prefix + key] = tuple(value) if isinstance(value, list) else value
  return flat


def _split(argument: str, changes: dict[str, dict]) -> tuple[list[str], str]:
  """'change,change,task' -> ([change, change], task); the task may be absent."""
  names = argument.split(',')
  task = names.pop() if names[-1] in paper.TASKS else 'imagenet'
  for name in names:
    if name not in changes:
      raise BadValue(
        f"unknown change or task '{name}': the changes are "
        f'{", ".join(changes) or "none"}; the tasks, which come last, are '
        f'{", ".join(paper.TASKS)}'
      )
  if not names:
    raise BadValue(f'name a change: one of {", ".join(changes) or "none"}')
  return names, task


def _lookup(kind: str, table: dict, name: str):
  if name not in table:
    raise BadValue(f"unknown {kind} '{name}': use one of {', '.join(table)}")
  return table[name]

"""The runs of a study of configs/studies.py, and how far each of them is.

A run is identified by `RESULTS_VERSION` and a hash of its config, so that results of
another version or with other values are never mixed up with it. Runs that several
studies share are trained once.
"""

import dataclasses
import hashlib
import json
import os
import pathlib
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from flax.traverse_util import flatten_dict

from bn_inception import config_keys
from bn_inception.errors import UserError
from bn_inception.programs import config_flag, presets
from bn_inception.programs.presets import paper, studies
from bn_inception.runs import json_files, logbook, run_directory
from bn_inception.steps import RESULTS_VERSION

LOG_FILE, EVALUATION_FILE = 'train.log', 'evaluation.json'

_REMEDY = 'restore it, or remove the folder to train the run again'
# The statuses of a run.
NOT_BEGUN, BEGUN, TRAINED, FINISHED = (
  'not begun', 'begun', 'trained', 'finished'
)  # fmt: skip
# The folders of the first runs have a hash of the code instead of the version; it
# also depended on Python's version.
_NAMES_OF_VERSIONS = {1: ('v1', 'a10698ab', '79088d3f')}
_STATISTICS_BATCHES = 100
_DIGITS = 8  # hexadecimal digits of a hash


@dataclasses.dataclass(frozen=True)
class Run:
  """One arm of a study with one seed, for one task.

  Attributes:
    arm: name of the arm.
    task: a task of configs/paper.py, or the data set of the perceptrons.
    seed: see `studies.Study`.
    config: the plain nested dict, resolved.
    arguments: arguments of the training program that give this config.
    split: split of the final evaluation; None: the one evaluated while training.
    identity: 'vVERSION-VALUES', such as 'v1-89a19a24'.
    folder: its run directory.
  """

  arm: str
  task: str
  seed: int
  config: dict
  arguments: tuple[str, ...]
  split: str | None
  identity: str
  folder: str

  def status(self) -> str:
    """NOT_BEGUN, BEGUN, TRAINED (but not evaluated) or FINISHED."""
    result = self.result()
    if result is None:
      return BEGUN if self.records() else NOT_BEGUN
    has_evaluation = os.path.exists(self.path(EVALUATION_FILE))
    return FINISHED if result['diverged'] or has_evaluation else TRAINED

  def result(self) -> dict | None:
    """The content of result.json; None if absent.

    Raises:
      UserError: if it is damaged, as `evaluation`, `records` and `status` do.
    """
    result = self._read_json(run_directory.RESULT_FILE)
    if result is not None and not isinstance(result.get('diverged'), bool):
      path = self.path(run_directory.RESULT_FILE)
      raise UserError(
        f"{path} is damaged (it lacks 'diverged', true or false): {_REMEDY}"
      )
    return result

  def evaluation(self) -> dict | None:
    """The content of evaluation.json; None if absent, as after divergence."""
    return self._read_json(EVALUATION_FILE)

  def records(self) -> list[dict]:
    """See `logbook.read_metrics`."""
    return logbook.read_metrics(self.folder, _REMEDY)

  def path(self, name: str) -> str:
    """The path of a file in the run's folder."""
    return os.path.join(self.folder, name)

  def _read_json(self, name: str) -> dict | None:
    path = self.path(name)
    if not os.path.exists(path):
      return None
    return json_files.read_json(path, _REMEDY)

  def train_command(self, data_dir: str | None) -> list[str]:
    """Arguments of Python."""
    command = [
      '-m',
      'bn_inception.train',
      *self.arguments,
      f'--workdir={self.folder}',
    ]
    return _with_data_dir(command, data_dir)

  def evaluate_command(self, data_dir: str | None) -> list[str]:
    """Arguments of Python."""
    has_batch_norm = self.config['model']['use_batch_norm']
    command = [
      '-m',
      'bn_inception.eval',
      f'--workdir={self.folder}',
      f'--output={self.path(EVALUATION_FILE)}',
    ]
    if has_batch_norm:
      command += [
        '--statistics=both',
        f'--statistics_batches={_STATISTICS_BATCHES}',
      ]
    if self.split is not None:
      command.append(f'--split={self.split}')
    return _with_data_dir(command, data_dir)

  def shell_line(self, data_dir: str | None) -> str:
    """Both commands as one line, for any scheduler."""
    return ' && '.join(
      shlex.join(['python', *command])
      for command in (
        self.train_command(data_dir), self.evaluate_command(data_dir)
      )
    )  # fmt: skip


def _with_data_dir(command: list[str], data_dir: str | None) -> list[str]:
  return command if data_dir is None else [*command, f'--data_dir={data_dir}']


def find_study(name: str) -> studies.Study:
  """The study of this name.

  Raises:
    UserError: if the name is unknown.
  """
  if name not in studies.STUDIES:
    raise UserError(
      f"there is no study '{name}': use some of {', '.join(studies.STUDIES)}"
    )
  return studies.STUDIES[name]


@dataclasses.dataclass(frozen=True)
class Selection:
  """A selection of the runs of a study, and where they are stored.

  Attributes:
    root: folder of the run directories.
    is_quick: selects the small version, see `studies.QUICK_TASK`.
    tasks, seeds: replace those of the study if not empty.
    values: values to set in every config, such as {'model.dtype': 'bfloat16'}.
  """

  root: str
  is_quick: bool = False
  tasks: tuple[str, ...] = ()
  seeds: tuple[int, ...] = ()
  values: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def list_runs(name: str, selection: Selection) -> list[Run]:
  """The runs of a study, sorted by task, seed and arm.

  Args:
    name: name of the study.
    selection: which of its runs.

  Raises:
    UserError: if there is no study of this name.
  """
  study = find_study(name)
  tasks, seeds, values = study.tasks, study.seeds, selection.values
  if selection.is_quick:
    tasks, seeds = (studies.QUICK_TASK,), studies.QUICK_SEEDS
    values = {**studies.QUICK_VALUES, **values}
  return [
    make_run(arm, task, seed, selection.root, values)
    for task in selection.tasks or tasks
    for seed in selection.seeds or seeds
    for arm in study.arms
  ]


def make_run(
  arm: studies.Arm, task: str, seed: int, root: str, values: Mapping[str, Any]
) -> Run:
  """One run, whose folder is found in `root` by its identity or named anew.

  Args:
    arm, task, seed, root: see `Run` and `list_runs`.
    values: values to set after those of the arm.

  Raises:
    UserError: if there is no such task, or for an unknown key or bad value.
  """
  argument = ','.join(filter(None, (arm.argument, task)))
  name = f'{presets.path_of(arm.config)}:{argument}'
  config = presets.load(name).to_dict()
  overrides = {'seed': seed}
  for key, value in {**arm.values, **values}.items():
    if isinstance(value, paper.Times):
      value = flatten_dict(config, sep='.')[key] * value.factor
    overrides[key] = value
  for key, value in overrides.items():
    _replace(config, key, value)
  config = config_flag.expand_paths(config)
  config_keys.check_config(config)
  values_digits = values_hash(config)
  flags = [f'--config.{key}={value}' for key, value in overrides.items()]
  return Run(
    arm=arm.name,
    task=task,
    seed=seed,
    config=json.loads(json.dumps(config)),
    arguments=(f'--config={name}', *flags),
    split=studies.FINAL_SPLITS.get(task),
    identity=f'v{RESULTS_VERSION}-{values_digits}',
    folder=_find_folder(root, f'{config["name"]}-seed{seed}', values_digits),
  )


def _replace(config: dict, key: str, value) -> None:
  section, _, leaf = key.rpartition('.')
  keys = config.get(section) if section else config
  if not isinstance(keys, dict):
    section, keys = '', config
  if leaf not in keys or section != key.rpartition('.')[0]:
    prefix = f'{section}.' if section else ''
    possible = ', '.join(prefix + name for name in sorted(keys))
    raise UserError(f"the config has no key '{key}': use one of {possible}")
  keys[leaf] = value


def _find_folder(root: str, name: str, values_digits: str) -> str:
  """The folder in `root` whose name ends in the identity, or a new name."""
  own = f'v{RESULTS_VERSION}'
  for version in _NAMES_OF_VERSIONS.get(RESULTS_VERSION, (own,)):
    found = sorted(pathlib.Path(root).glob(f'*-{version}-{values_digits}'))
    if found:
      return str(found[0])
  return os.path.join(root, f'{name}-{own}-{values_digits}')


def others(runs: Sequence[Run], root: str) -> list[str]:
  """Run directories in `root` that belong to none of the runs."""
  own = {os.path.abspath(run.folder) for run in runs}
  return sorted(
    str(path.parent)
    for path in pathlib.Path(root).glob(f'*/{run_directory.CONFIG_FILE}')
    if os.path.abspath(path.parent) not in own
  )


def values_hash(config: dict) -> str:
  """Hash, 8 hexadecimal digits, of all values that a result depends on."""
  flat = flatten_dict(json.loads(json.dumps(config)), sep='.')
  content = json.dumps(config_keys.identity(flat), sort_keys=True)
  return hashlib.sha256(content.encode()).hexdigest()[:_DIGITS]

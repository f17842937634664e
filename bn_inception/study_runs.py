"""Which runs a study of configs/studies.py consists of, and how far each is.

A run is known by its identity, two hashes: of the code that trains and of every
value of its config. Results of other code or other values are never taken for it,
and runs that several studies have in common are trained once.
"""

import ast
import dataclasses
import hashlib
import importlib
import json
import os
import pathlib
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from bn_inception import logbook, ranges, run_directory
from bn_inception.errors import UserError
from configs import compose, paper, studies
from configs.studies import Arm, Study

LOG_FILE, EVALUATION_FILE = 'train.log', 'evaluation.json'

# How far a run is.
NOT_BEGUN, BEGUN, TRAINED, FINISHED = (
  'not begun', 'begun', 'trained', 'finished'
)  # fmt: skip
# What trains and evaluates; whatever these import is the code of a run.
_PROGRAM_MODULES = 'training', 'evaluation'
_STATISTICS_BATCHES = 100
_DIGITS = 8  # of a hash
# Values that have no influence on what a run finds.
_NOT_OF_IDENTITY = frozenset(
  {
    'name',
    'data.num_workers',
    'data.prefetch',
    'eval_batch_size',
    'source.keep_in_memory',
  }
)


@dataclasses.dataclass(frozen=True)
class Run:
  """One arm of a study with one seed, for one task.

  Attributes:
    arm: its name.
    task: of configs/paper.py, or the data set of the perceptrons.
    seed: see `studies.Study`.
    config: the plain nested dict, resolved.
    arguments: of train.py, from which it follows.
    split: where it is evaluated at the end; None: where it was followed.
    identity: 'CODE-VALUES', in hexadecimal digits.
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
      return BEGUN if logbook.read_metrics(self.folder) else NOT_BEGUN
    has_evaluation = os.path.exists(self._path(EVALUATION_FILE))
    return FINISHED if result['diverged'] or has_evaluation else TRAINED

  def result(self) -> dict | None:
    """What result.json holds; None while there is none."""
    path = self._path(run_directory.RESULT_FILE)
    return run_directory.read_json(path) if os.path.exists(path) else None

  def evaluation(self) -> dict | None:
    """What evaluation.json holds; None while there is none, or after divergence."""
    path = self._path(EVALUATION_FILE)
    return run_directory.read_json(path) if os.path.exists(path) else None

  def records(self) -> list[dict]:
    """See `logbook.read_metrics`."""
    return logbook.read_metrics(self.folder)

  def _path(self, name: str) -> str:
    return os.path.join(self.folder, name)

  def train_command(self, data_dir: str | None) -> list[str]:
    command = ['train.py', *self.arguments, f'--workdir={self.folder}']
    return _with_data_dir(command, data_dir)

  def evaluate_command(self, data_dir: str | None) -> list[str]:
    has_batch_norm = self.config['model']['use_batch_norm']
    command = [
      'eval.py',
      f'--workdir={self.folder}',
      f'--output={self._path(EVALUATION_FILE)}',
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


def find_study(name: str) -> Study:
  """The study of this name.

  Raises:
    UserError: if there is none.
  """
  if name not in studies.STUDIES:
    raise UserError(
      f"there is no study '{name}': use some of {', '.join(studies.STUDIES)}"
    )
  return studies.STUDIES[name]


@dataclasses.dataclass(frozen=True)
class Selection:
  """Which runs of a study are meant, and where they are.

  Attributes:
    root: folder of the run directories.
    is_quick: the small version, see `studies.QUICK_TASK`.
    tasks, seeds: instead of the study's.
    values: replaced in every config, such as {'model.dtype': 'bfloat16'}.
  """

  root: str
  is_quick: bool = False
  tasks: tuple[str, ...] = ()
  seeds: tuple[int, ...] = ()
  values: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def list_runs(
  name: str, selection: Selection, code: str | None = None
) -> list[Run]:
  """The runs of a study: of every task, seed by seed, all arms.

  Args:
    name: of the study.
    selection: of its runs.
    code: hash of the code that trained; None: this code's.

  Raises:
    UserError: for a name that is not there.
  """
  study = find_study(name)
  tasks, seeds, values = study.tasks, study.seeds, selection.values
  if selection.is_quick:
    tasks, seeds = (studies.QUICK_TASK,), studies.QUICK_SEEDS
    values = {**studies.QUICK_VALUES, **values}
  code = code or code_hash()
  return [
    make_run(arm, task, seed, selection.root, values, code)
    for task in selection.tasks or tasks
    for seed in selection.seeds or seeds
    for arm in study.arms
  ]


def make_run(
  arm: Arm,
  task: str,
  seed: int,
  root: str,
  values: Mapping[str, Any],
  code: str,
) -> Run:
  """One run, found in `root` by its identity, or to be made there.

  Args:
    arm, task, seed, root: see `Run` and `list_runs`.
    values: replace those of the arm.
    code: hash of the code.

  Raises:
    UserError: if there is no such task, or for a value that its key cannot have.
  """
  argument = ','.join(filter(None, (arm.argument, task)))
  module = importlib.import_module(f'configs.{arm.config}')
  try:
    config = module.get_config(argument).to_dict()
  except compose.BadValue as error:
    raise UserError(str(error)) from error
  overrides = {'seed': seed}
  for key, value in {**arm.values, **values}.items():
    if isinstance(value, paper.Times):
      value = run_directory.flatten(config)[key] * value.factor
    overrides[key] = value
  for key, value in overrides.items():
    _replace(config, key, value)
  ranges.check_config(config)
  identity = f'{code}-{values_hash(config)}'
  flags = [f'--config.{key}={value}' for key, value in overrides.items()]
  return Run(
    arm=arm.name,
    task=task,
    seed=seed,
    config=json.loads(json.dumps(config)),
    arguments=(f'--config=configs/{arm.config}.py:{argument}', *flags),
    split=studies.FINAL_SPLITS.get(task),
    identity=identity,
    folder=_find_folder(root, config['name'], seed, identity),
  )


def _replace(config: dict, key: str, value) -> None:
  *sections, leaf = key.split('.')
  for section in sections:
    config = config.get(section, {})
  if leaf not in config:
    raise UserError(f"the config has no key '{key}'")
  config[leaf] = value


def _find_folder(root: str, name: str, seed: int, identity: str) -> str:
  """The folder that ends in the identity, whatever it is called."""
  found = sorted(pathlib.Path(root).glob(f'*-{identity}'))
  return str(found[0] if found else os.path.join(
    root, f'{name}-seed{seed}-{identity}'
  ))  # fmt: skip


def others(runs: Sequence[Run], root: str) -> list[str]:
  """Run directories in `root` that are of no run: of other code or values."""
  own = {os.path.abspath(run.folder) for run in runs}
  return sorted(
    str(path.parent)
    for path in pathlib.Path(root).glob(f'*/{run_directory.CONFIG_FILE}')
    if os.path.abspath(path.parent) not in own
  )


def codes(root: str) -> list[str]:
  """The hashes of code of which `root` has finished runs."""
  return sorted(
    {
      path.parent.name.split('-')[-2]
      for path in pathlib.Path(root).glob(f'*-*-*/{run_directory.RESULT_FILE}')
    }
  )


def values_hash(config: dict) -> str:
  """8 hexadecimal digits of all values of a config that a result depends on."""
  flat = run_directory.flatten(json.loads(json.dumps(config)))
  values = {k: v for k, v in flat.items() if k not in _NOT_OF_IDENTITY}
  content = json.dumps(values, sort_keys=True)
  return hashlib.sha256(content.encode()).hexdigest()[:_DIGITS]


def code_hash() -> str:
  """8 hexadecimal digits of the modules that train and evaluate.

  Comments, docstrings and layout have no influence.
  """
  digest = hashlib.sha256()
  for name, path in sorted(_code_of_runs().items()):
    digest.update(f'{name}\n{_essence(path)}\n'.encode())
  return digest.hexdigest()[:_DIGITS]


def _code_of_runs() -> dict[str, pathlib.Path]:
  """'sources.folders' -> its path, of all that training and evaluation import."""
  package = pathlib.Path(__file__).parent
  found, waiting = {}, list(_PROGRAM_MODULES)
  while waiting:
    name = waiting.pop()
    path = package.joinpath(*name.split('.'))
    path = path / '__init__.py' if path.is_dir() else path.with_suffix('.py')
    if name in found or not path.exists():  # a function, not a module
      continue
    found[name] = path
    for node in ast.walk(ast.parse(path.read_text())):
      if isinstance(node, ast.ImportFrom):
        top, _, inner = node.module.partition('.')
        if top == package.name:
          waiting += [inner] if inner else []
          waiting += [f'{inner}.{a.name}'.removeprefix('.') for a in node.names]
  kernels = package / 'native' / 'convolution.cc'
  return found | {kernels.name: kernels}


def _essence(path: pathlib.Path) -> str:
  """Python without comments, docstrings and layout; other text as it is."""
  text = path.read_text()
  if path.suffix != '.py':
    return text
  tree = ast.parse(text)
  for node in ast.walk(tree):
    has_docstring = isinstance(
      node, ast.Module | ast.ClassDef | ast.FunctionDef
    ) and ast.get_docstring(node)
    if has_docstring:
      del node.body[0]
  return ast.unparse(tree)

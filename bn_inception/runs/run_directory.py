"""The folder of a run: lock, config, data, manifest, result.

A run directory holds config.json, data.json, manifest.json, metrics.jsonl, tb/,
checkpoints/, result.json and learning_curve.png, and damaged_checkpoints/ if
there were any. Rerunning the command resumes the run. Another config or other data is
an error that lists the differences.

data.json has the facts of the data (see `data.data_facts`). Checkpoints have them too,
but a run may diverge before it has any.
"""

import contextlib
import datetime
import fcntl
import functools
import itertools
import os
import pathlib
import platform
import re
import subprocess
from collections.abc import Iterator

import jax
from flax.traverse_util import flatten_dict

from bn_inception import config_keys
from bn_inception.data import data_facts
from bn_inception.errors import UserError, check_writable, writing
from bn_inception.kernels import native
from bn_inception.machine import accelerators
from bn_inception.runs import checkpoint_folder, file_system
from bn_inception.runs.json_files import read_json, write_json
from bn_inception.runs.logbook import DROPPED_FILE, METRICS_FILE

CONFIG_FILE, DATA_FILE = 'config.json', 'data.json'
MANIFEST_FILE = 'manifest.json'
RESULT_FILE, CHECKPOINTS_FOLDER = 'result.json', 'checkpoints'

# The files at the top of a run directory.
_OWN_FILES = (
  CONFIG_FILE, DATA_FILE, MANIFEST_FILE, RESULT_FILE, METRICS_FILE,
  DROPPED_FILE, 'learning_curve.png', '.lock',
)  # fmt: skip

_PACKAGES = (
  'jax', 'jaxlib', 'libtpu', 'flax', 'optax', 'orbax-checkpoint', 'numpy',
  'grain', 'tensorflow-datasets', 'opencv-python-headless',
  'nvidia-nvimgcodec-cu13',
)  # fmt: skip


def differences(old: dict, new: dict) -> list[str]:
  """'key: old -> new' for each key that must not differ but does."""
  old, new = (
    config_keys.add_missing(flatten_dict(config, sep='.'))
    for config in (old, new)
  )
  return [
    f'{key}: {_text_of(old, key)} -> {_text_of(new, key)}'
    for key in sorted(old.keys() | new.keys())
    if not config_keys.may_change(key) and old.get(key) != new.get(key)
  ]


def _text_of(flat: dict, key: str) -> str:
  return str(flat.get(key, 'absent')) or "''"


def check_output(path: str, remedy: str) -> None:
  """Raises if an output cannot be written, or would replace a file of a run.

  Raises:
    UserError: as `errors.check_writable`; for a file of a run; for any file in a
      checkpoint.
  """
  real = pathlib.Path(path).resolve()
  for folder in real.parents:
    first, *rest = real.relative_to(folder).parts
    is_own = first in _OWN_FILES and not rest
    # A checkpoint's folder is named after its step, or STEP.1 if set aside.
    if first in (CHECKPOINTS_FOLDER, checkpoint_folder.DAMAGED_FOLDER) and rest:
      is_own = re.fullmatch(r'\d+(\.\d+)?', rest[0])
    if is_own and (folder / CONFIG_FILE).exists():
      raise UserError(f'{path} is a file of the run in {folder}: {remedy}')
  check_writable(path, remedy)


@contextlib.contextmanager
def open_run(workdir: str, config: dict, data: dict) -> Iterator[None]:
  """Locks a run directory, after checking that this run may use it.

  Writes nothing but the lock: see `record_start`.

  Args:
    workdir: made if absent.
    config: the config as read from JSON, with lists instead of tuples.
    data: facts of both splits: see `data.data_facts.describe`.

  Raises:
    UserError: if another process trains here, if the folder holds a run with
      another config or other data, or if it cannot be written or cannot hold
      checkpoints.
  """
  file_system.check_path(workdir)
  with writing(f'workdir {workdir}', 'give another --workdir'):
    os.makedirs(workdir, exist_ok=True)
    lock = open(os.path.join(workdir, '.lock'), 'w')
  with lock:
    try:
      fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
      raise UserError(
        f'another process is training in {workdir}: wait for it, or give '
        'another --workdir'
      ) from error
    except OSError as error:  # NFS, Lustre and FUSE may have no locks
      print(
        f'workdir {workdir} cannot be locked ({error.strerror}): do not start a '
        'second run in it'
      )
    check_same_run(workdir, _read_saved(workdir), config, data)
    file_system.check_file_system(workdir)
    yield


def _read_saved(workdir: str) -> dict:
  """The config and facts that a resumed run must have, for `check_same_run`.

  Before the first checkpoint or result the data may still change: the user may
  have fixed a damaged image.
  """
  path_of = functools.partial(os.path.join, workdir)
  has_checkpoints = checkpoint_folder.list_steps(path_of(CHECKPOINTS_FOLDER))
  saved = {}
  if has_checkpoints or os.path.exists(path_of(RESULT_FILE)):
    saved = _read_if_there(path_of(DATA_FILE))
  if has_checkpoints or os.path.exists(path_of(METRICS_FILE)):
    saved['config'] = _read_if_there(path_of(CONFIG_FILE))
  return saved


def _read_if_there(path: str) -> dict:
  return read_json(path) if os.path.exists(path) else {}


def check_same_run(place: str, saved: dict, config: dict, data: dict) -> None:
  """Raises if a folder or checkpoint belongs to a different run.

  Args:
    place: the folder or checkpoint, for messages.
    saved: the stored `config` and facts of the data; missing ones are skipped.
    config, data: those of this run: see `open_run`.

  Raises:
    UserError: with the differences in config or data.
  """
  changed = differences(saved['config'], config) if saved.get('config') else []
  if changed:
    raise UserError(
      f'{place} belongs to a run with another config ({"; ".join(changed)}): give '
      f'another --workdir, such as {_free_name(place)}, or the config of that run'
    )
  different = data_facts.first_difference(saved, data)
  if different:
    raise UserError(
      f'{place} belongs to a run on other data ({different}): give another '
      '--workdir, or the --data_dir with the data of that run'
    )


def _free_name(place: str) -> str:
  """RUN or RUN/checkpoints/STEP -> RUN-2, or the next number that is free."""
  run = re.sub(rf'/{CHECKPOINTS_FOLDER}/\d+$', '', os.path.normpath(place))
  names = (f'{run}-{number}' for number in itertools.count(2))
  return next(name for name in names if not os.path.exists(name))


def record_start(workdir: str, config: dict, data: dict, origin: dict) -> None:
  """Writes config and data, and adds this start to the manifest.

  Args:
    workdir, config, data: see `open_run`, which has locked the folder.
    origin: of the data: see `Source.origin`.

  Raises:
    UserError: if a file cannot be written.
  """
  write_json(os.path.join(workdir, CONFIG_FILE), config)
  write_json(os.path.join(workdir, DATA_FILE), data)
  path = os.path.join(workdir, MANIFEST_FILE)
  starts = read_json(path)['starts'] if os.path.exists(path) else []
  write_json(path, {'starts': [*starts, manifest() | {'data': origin}]})


def read_origin(workdir: str, remedy: str) -> dict:
  """`Source.origin` of a run's first start; {} if it is unknown.

  Raises:
    UserError: if the manifest is damaged; ends with `remedy`.
  """
  path = os.path.join(workdir, MANIFEST_FILE)
  if not os.path.exists(path):
    return {}
  starts = read_json(path, remedy).get('starts') or [{}]
  return starts[0].get('data', {})


def manifest() -> dict:
  """Versions, commit and devices of this process."""
  return {
    'time': datetime.datetime.now().astimezone().isoformat(timespec='seconds'),
    'python': platform.python_version(),
    'platform': platform.platform(),
    'packages': {name: accelerators.version_of(name) for name in _PACKAGES},
    'commit': _commit(),
    'devices': [device.device_kind for device in jax.devices()],
    'native_convolutions': native.load(),
    'process_count': jax.process_count(),
  }


def _commit(path: str = os.path.abspath(__file__)) -> str | None:
  """The commit of the code that `path` belongs to; ends with '+' if changed.

  Returns:
    None if git does not track the file: it may be installed in an environment
    inside another project's clone.
  """
  folder, name = os.path.split(path)
  is_tracked = ['ls-files', '--error-unmatch', name]
  describe = ['describe', '--always', '--abbrev=40', '--dirty=+', '--exclude=*']
  try:
    _, commit = (
      subprocess.check_output(
        ['git', '-C', folder, *command], text=True, stderr=subprocess.DEVNULL
      )
      for command in (is_tracked, describe)
    )
  except (OSError, subprocess.CalledProcessError):
    return None  # git may not be installed
  return commit.strip()

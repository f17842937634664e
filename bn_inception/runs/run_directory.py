"""The folder of a run: lock, config, data, manifest, result.

A run directory holds config.json, data.json, manifest.json, metrics.jsonl, tb/,
checkpoints/, result.json and learning_curve.png, and damaged_checkpoints/ if
there were any. Giving the same command again resumes the run; another config, or
other data, are refused with what differs.

data.json has the facts of the data (see `data_facts`). Checkpoints
describe the same ones, but a run may end by diverging before it has any.
"""

import contextlib
import datetime
import fcntl
import functools
import json
import os
import pathlib
import platform
import re
import subprocess
from collections.abc import Iterator

import jax

from bn_inception import config_keys
from bn_inception.data import facts as data_facts
from bn_inception.errors import UserError, check_writable, writing
from bn_inception.kernels import native
from bn_inception.machine import accelerators
from bn_inception.runs import checkpoint
from bn_inception.runs.logbook import DROPPED_FILE, METRICS_FILE

CONFIG_FILE, DATA_FILE = 'config.json', 'data.json'
MANIFEST_FILE = 'manifest.json'
RESULT_FILE, CHECKPOINTS_FOLDER = 'result.json', 'checkpoints'

# What a run directory has at its top, for `check_output`.
_OWN_FILES = (
  CONFIG_FILE, DATA_FILE, MANIFEST_FILE, RESULT_FILE, METRICS_FILE,
  DROPPED_FILE, 'learning_curve.png', '.lock',
)  # fmt: skip

_PACKAGES = (
  'jax', 'jaxlib', 'libtpu', 'flax', 'optax', 'orbax-checkpoint', 'numpy',
  'grain', 'tensorflow-datasets', 'opencv-python-headless',
  'nvidia-nvimgcodec-cu13',
)  # fmt: skip


def flatten(config: dict, prefix: str = '') -> dict[str, object]:
  """{'a': {'b': 1}} -> {'a.b': 1}."""
  flat = {}
  for key, value in config.items():
    if isinstance(value, dict):
      flat.update(flatten(value, f'{prefix}{key}.'))
    else:
      flat[prefix + key] = value
  return flat


def differences(old: dict, new: dict) -> list[str]:
  """Lines 'key: old -> new' for what differs and must not."""
  old, new = (config_keys.complete(flatten(config)) for config in (old, new))
  return [
    f'{key}: {old.get(key, "absent")} -> {new.get(key, "absent")}'
    for key in sorted(old.keys() | new.keys())
    if not config_keys.may_change(key) and old.get(key) != new.get(key)
  ]


def write_json(path: str, value: dict, **remedy: str) -> None:
  """Writes the whole file or nothing of it.

  Args:
    path, value: of the file, and what JSON can hold.
    **remedy: as of `errors.writing`.

  Raises:
    UserError: if it cannot be written.
  """
  text = json.dumps(value, indent=2, allow_nan=False)
  with writing(path, **remedy):
    with open(path + '.tmp', 'w') as file:
      file.write(text + '\n')
    os.replace(path + '.tmp', path)


def read_json(
  path: str, remedy: str = 'restore it, or give another --workdir'
) -> dict:
  """The object in a JSON file.

  Args:
    path: of the file.
    remedy: what to do about a damaged file.

  Raises:
    UserError: if it is absent or damaged.
  """
  try:
    with open(path) as file:
      value = json.load(file)
  except FileNotFoundError as error:
    raise UserError(f'{path} does not exist') from error
  except ValueError as error:  # no JSON, or not even text
    raise UserError(f'{path} is damaged ({error}): {remedy}') from error
  if not isinstance(value, dict):
    raise UserError(f'{path} is damaged (no object): {remedy}')
  return value


def check_output(path: str, remedy: str) -> None:
  """Refuses an output that cannot be written or would replace a run's own file.

  Args:
    path, remedy: as of `errors.check_writable`.

  Raises:
    UserError: as `errors.check_writable`, or for a file of a run, or one in a
      checkpoint.
  """
  real = pathlib.Path(path).resolve()
  for folder in real.parents:
    first, *rest = real.relative_to(folder).parts
    is_own = first in _OWN_FILES and not rest
    if first in (CHECKPOINTS_FOLDER, checkpoint.DAMAGED_FOLDER) and rest:
      is_own = re.fullmatch(r'\d+(\.\d+)?', rest[0])
    if is_own and (folder / CONFIG_FILE).exists():
      raise UserError(f'{path} is a file of the run in {folder}: {remedy}')
  check_writable(path, remedy)


@contextlib.contextmanager
def open_run(workdir: str, config: dict, data: dict) -> Iterator[None]:
  """Locks a run directory for a run with this config on these data.

  Writes nothing there: see `record_start`.

  Args:
    workdir: made if absent.
    config: as JSON gives it back: lists, not tuples.
    data: facts of both splits: see `data_facts.describe`.

  Raises:
    UserError: if another process trains here, if the folder holds a run with
      another config or on other data, or if it cannot be written or hold
      checkpoints.
  """
  checkpoint.check_path(workdir)
  try:
    os.makedirs(workdir, exist_ok=True)
    lock = open(os.path.join(workdir, '.lock'), 'w')
  except OSError as error:
    raise UserError(
      f'workdir {workdir} cannot be written ({error.strerror}): give another '
      '--workdir'
    ) from error
  with lock:
    try:
      fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
      raise UserError(
        f'another process is training in {workdir}: wait for it, or give '
        'another --workdir'
      ) from error
    except OSError as error:  # NFS, Lustre and FUSE can be without locks
      print(
        f'workdir {workdir} cannot be locked ({error.strerror}): a second run in '
        'it would not be noticed'
      )
    check_same_run(workdir, _read_saved(workdir), config, data)
    checkpoint.check_file_system(workdir)
    yield


def _read_saved(workdir: str) -> dict:
  """What a folder says of its run, for `check_same_run`.

  Without a checkpoint or a result the run begins anew: its data may still be put
  right, as when an image turned out to be damaged.
  """
  path_of = functools.partial(os.path.join, workdir)
  has_checkpoints = checkpoint.list_steps(path_of(CHECKPOINTS_FOLDER))
  saved = {}
  if has_checkpoints or os.path.exists(path_of(RESULT_FILE)):
    saved = _read_if_there(path_of(DATA_FILE))
  if has_checkpoints or os.path.exists(path_of(METRICS_FILE)):
    saved['config'] = _read_if_there(path_of(CONFIG_FILE))
  return saved


def _read_if_there(path: str) -> dict:
  return read_json(path) if os.path.exists(path) else {}


def check_same_run(place: str, saved: dict, config: dict, data: dict) -> None:
  """Compares a run with what a folder or a checkpoint says of its own.

  Args:
    place: of the folder or checkpoint, for the message.
    saved: `config` and facts of the data; what is absent is not compared.
    config, data: of the run, as of `open_run`.

  Raises:
    UserError: for another config or other data; with what differs.
  """
  changed = differences(saved['config'], config) if saved.get('config') else []
  if changed:
    raise UserError(
      f'{place} belongs to a run with another config ({"; ".join(changed)}): give '
      'another --workdir, or the config of that run'
    )
  different = data_facts.first_difference(saved, data)
  if different:
    raise UserError(
      f'{place} belongs to a run on other data ({different}): give another '
      '--workdir, or the --data_dir with the data of that run'
    )


def record_start(workdir: str, config: dict, data: dict, origin: dict) -> None:
  """Writes what a run consists of, and adds this start to the manifest.

  Args:
    workdir, config, data: as of `open_run`, whose lock is held.
    origin: where the data come from: see `Source.origin`.

  Raises:
    UserError: if it cannot be written.
  """
  write_json(os.path.join(workdir, CONFIG_FILE), config)
  write_json(os.path.join(workdir, DATA_FILE), data)
  path = os.path.join(workdir, MANIFEST_FILE)
  starts = read_json(path)['starts'] if os.path.exists(path) else []
  write_json(path, {'starts': [*starts, manifest() | {'data': origin}]})


def read_origin(workdir: str, remedy: str) -> dict:
  """Where the data of a run's first start came from; {} if it is not known.

  Args:
    workdir: of the run; may have no manifest.
    remedy: what to do about a damaged one.

  Returns:
    What `Source.origin` returned.

  Raises:
    UserError: if the manifest is damaged.
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
  """The commit of this code, with '+' for uncommitted changes.

  Args:
    path: a file of it.

  Returns:
    None where git has no such file: the code may be installed in an environment
    that lies in another project's clone.
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
    return None  # also without git
  return commit.strip()

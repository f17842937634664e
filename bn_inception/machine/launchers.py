"""Reads from environment variables which processes a scheduler started."""

import os
import re
from typing import NamedTuple

from bn_inception.errors import UserError

ALONE = 'give --num_processes=1 to run a single process'


class Launch(NamedTuple):
  """One of several processes that a scheduler started.

  Attributes:
    name: name of the scheduler.
    num_processes: number of processes that it started.
    process_id: which of them this is.
    local_device_ids: this process's devices on its host; None: all.
    jax_name: JAX's name for the scheduler; None if JAX does not know it.
  """

  name: str
  num_processes: int
  process_id: int
  local_device_ids: list[int] | None
  jax_name: str | None


class _Launcher(NamedTuple):
  """The names of a scheduler's environment variables.

  Attributes:
    name: name of the scheduler.
    num_processes: number of processes.
    process_id: which of them this is.
    num_local: number of processes on this host.
    local_id: which of those this is.
    first_host: tells JAX where the first process is.
    jax_name: JAX's name for the scheduler.
    jax_needs: other variables that JAX reads.
  """

  name: str
  num_processes: str
  process_id: str
  num_local: str
  local_id: str
  first_host: str = ''
  jax_name: str | None = None
  jax_needs: tuple[str, ...] = ()


_SLURM = _Launcher(
  'SLURM', 'SLURM_NTASKS', 'SLURM_PROCID', 'SLURM_STEP_TASKS_PER_NODE',
  'SLURM_LOCALID', 'SLURM_STEP_NODELIST', 'slurm',
  ('SLURM_JOB_ID', 'SLURM_LOCALID'),
)  # fmt: skip
# In order of precedence: Open MPI's mpirun may run inside a SLURM job, and SLURM
# scripts often set torchrun's variables for PyTorch. Open MPI sets the variable of
# the first host only before version 5.
_LAUNCHERS = (
  _Launcher(
    'Open MPI', 'OMPI_COMM_WORLD_SIZE', 'OMPI_COMM_WORLD_RANK',
    'OMPI_COMM_WORLD_LOCAL_SIZE', 'OMPI_COMM_WORLD_LOCAL_RANK',
    'OMPI_MCA_orte_hnp_uri', 'ompi', ('OMPI_COMM_WORLD_LOCAL_RANK',),
  ),
  _SLURM,
  _Launcher('MPICH', 'PMI_SIZE', 'PMI_RANK', 'MPI_LOCALNRANKS', 'MPI_LOCALRANKID'),
  _Launcher('torchrun', 'WORLD_SIZE', 'RANK', 'LOCAL_WORLD_SIZE', 'LOCAL_RANK'),
)  # fmt: skip


def find() -> Launch | None:
  """Which of several processes this is; None if no scheduler started several.

  Prints a note if a SLURM job has several tasks but this process is not one of them,
  as in a shell from `salloc` or in a batch script.

  Raises:
    UserError: if a variable is missing or not a number.
  """
  for launcher in _LAUNCHERS:
    num_processes = _count(launcher)
    if num_processes > 1:
      return _read(launcher, num_processes)
  _note_unused_tasks()
  return None


def _count(launcher: _Launcher) -> int:
  """The number of processes that were started together with this one."""
  if launcher is _SLURM:
    return _count_tasks()
  if launcher.jax_name is None and launcher.process_id not in os.environ:
    return 1  # many programs set WORLD_SIZE
  return _integer(launcher.num_processes, 1)


def _count_tasks() -> int:
  """The number of tasks in the SLURM step; 1 outside of one."""
  if _SLURM.first_host not in os.environ:
    return 1
  # In salloc's shell, which is a step, SLURM_NTASKS is still the job's.
  return _integer('SLURM_STEP_NUM_TASKS', _integer('SLURM_NTASKS', 1))


def _note_unused_tasks() -> None:
  num_tasks = _integer('SLURM_NTASKS', 1)
  has_several = max(num_tasks, _integer('SLURM_JOB_NUM_NODES', 1)) > 1
  is_torn = _SLURM.first_host in os.environ and not (
    {'SLURM_NTASKS', 'SLURM_STEP_NUM_TASKS'} & set(os.environ)
  )
  if has_several or is_torn:
    print(
      'this process runs alone: it is in a SLURM job, but was not started by '
      'srun as one of several tasks',
      flush=True,
    )


def _read(launcher: _Launcher, num_processes: int) -> Launch:
  needed = (launcher.num_processes, launcher.process_id, *launcher.jax_needs)
  missing = [name for name in needed if name not in os.environ]
  if missing:
    raise UserError(
      f'{launcher.num_processes} is {num_processes}, but '
      f'{" and ".join(missing)} {"is" if len(missing) == 1 else "are"} not set: '
      f'start the program with {launcher.name}, or {ALONE}'
    )
  process_id = _integer(launcher.process_id, 0)
  if not 0 <= process_id < num_processes:
    raise UserError(
      f'{launcher.process_id} is {process_id}, but there are {num_processes} '
      f'processes: {ALONE}'
    )
  is_alone_on_host = re.fullmatch(
    r'1(\(x\d+\))?', os.environ.get(launcher.num_local, '')
  )
  local_device_ids = None
  if not is_alone_on_host and launcher.local_id in os.environ:
    local_device_ids = [_integer(launcher.local_id, 0)]
  return Launch(
    launcher.name,
    num_processes,
    process_id,
    local_device_ids,
    launcher.jax_name if launcher.first_host in os.environ else None,
  )


def _integer(name: str, default: int) -> int:
  text = os.environ.get(name)
  if text is None:
    return default
  if not text.isdecimal():
    raise UserError(f"{name} is '{text}', which is not a number: {ALONE}")
  return int(text)

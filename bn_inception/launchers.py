"""What a scheduler's variables say of the processes that it started."""

import os
import re
from typing import NamedTuple

from bn_inception.errors import UserError

ALONE = 'give --num_processes=1 to run in this process alone'


class Launch(NamedTuple):
  """One of several processes that a scheduler started.

  Attributes:
    name: of the scheduler.
    num_processes: that it started.
    process_id: which of them this is.
    local_device_ids: of this host's devices those of this process; None: all.
    jax_name: JAX's name of the scheduler; None: JAX does not know it.
  """

  name: str
  num_processes: int
  process_id: int
  local_device_ids: list[int] | None
  jax_name: str | None


class _Launcher(NamedTuple):
  """The names of a scheduler's variables."""

  name: str
  num_processes: str
  process_id: str
  on_this_host: str  # how many
  which_on_this_host: str
  jax_name: str | None = None
  jax_needs: tuple[str, ...] = ()


_SLURM = _Launcher(
  'SLURM', 'SLURM_NTASKS', 'SLURM_PROCID', 'SLURM_STEP_TASKS_PER_NODE',
  'SLURM_LOCALID', 'slurm', ('SLURM_JOB_ID', 'SLURM_STEP_NODELIST', 'SLURM_LOCALID'),
)  # fmt: skip
# mpirun may run in a job of SLURM, and jobs of SLURM set torchrun's variables for
# PyTorch's sake.
_LAUNCHERS = (
  _Launcher(
    'Open MPI', 'OMPI_COMM_WORLD_SIZE', 'OMPI_COMM_WORLD_RANK',
    'OMPI_COMM_WORLD_LOCAL_SIZE', 'OMPI_COMM_WORLD_LOCAL_RANK', 'ompi',
    ('OMPI_COMM_WORLD_LOCAL_RANK',),
  ),
  _SLURM,
  _Launcher(
    'MPICH', 'PMI_SIZE', 'PMI_RANK', 'MPI_LOCALNRANKS', 'MPI_LOCALRANKID',
  ),
  _Launcher(
    'torchrun', 'WORLD_SIZE', 'RANK', 'LOCAL_WORLD_SIZE', 'LOCAL_RANK',
  ),
)  # fmt: skip
# By Open MPI before version 5: where JAX reads the first host's address.
_OPEN_MPI_ADDRESS = 'OMPI_MCA_orte_hnp_uri'


def find() -> Launch | None:
  """Which of several processes this is; None: no scheduler started several.

  Where SLURM gave a job several tasks and did not start this process as one of
  them, as in a shell of `salloc` or in a batch script, it says so.

  Raises:
    UserError: if a variable is missing or no number.
  """
  for launcher in _LAUNCHERS:
    num_processes = _count(launcher)
    if num_processes > 1:
      return _read(launcher, num_processes)
  return None


def _count(launcher: _Launcher) -> int:
  """How many processes it started together with this one."""
  if launcher is _SLURM:
    return _count_tasks()
  if launcher.jax_name is None and launcher.process_id not in os.environ:
    return 1  # many things set a WORLD_SIZE
  return _integer(launcher.num_processes, 1)


def _count_tasks() -> int:
  num_tasks, in_step = _integer('SLURM_NTASKS', 1), 1
  is_in_step = 'SLURM_STEP_NODELIST' in os.environ
  if is_in_step:
    # In the step that is salloc's shell, SLURM_NTASKS is still the job's.
    in_step = _integer('SLURM_STEP_NUM_TASKS', num_tasks)
  in_job = max(num_tasks, _integer('SLURM_JOB_NUM_NODES', 1))
  is_torn = is_in_step and not {'SLURM_NTASKS', 'SLURM_STEP_NUM_TASKS'} & set(
    os.environ
  )
  if in_step == 1 and (in_job > 1 or is_torn):
    print(
      'this process runs alone: it is in a job of SLURM, but is not one of '
      'several tasks that srun started',
      flush=True,
    )
  return in_step


def _read(launcher: _Launcher, num_processes: int) -> Launch:
  needed = (launcher.num_processes, launcher.process_id, *launcher.jax_needs)
  missing = [name for name in needed if name not in os.environ]
  if missing:
    raise UserError(
      f'{launcher.name} is said to have started {num_processes} processes, but '
      f'{" and ".join(missing)} {"is" if len(missing) == 1 else "are"} not set, '
      f'as in a shell that it did not start itself: start the program with it, '
      f'or {ALONE}'
    )
  process_id = _integer(launcher.process_id, 0)
  if not 0 <= process_id < num_processes:
    raise UserError(
      f'{launcher.process_id} is {process_id} and there are {num_processes} '
      f'processes: {ALONE}'
    )
  has_host_alone = re.fullmatch(
    r'1(\(x\d+\))?', os.environ.get(launcher.on_this_host, '')
  )
  local_id = None
  if not has_host_alone and launcher.which_on_this_host in os.environ:
    local_id = _integer(launcher.which_on_this_host, 0)
  is_old = _OPEN_MPI_ADDRESS in os.environ
  is_known = launcher.jax_name is not None and (
    launcher.jax_name != 'ompi' or is_old
  )
  return Launch(
    launcher.name,
    num_processes,
    process_id,
    None if local_id is None else [local_id],
    launcher.jax_name if is_known else None,
  )


def _integer(name: str, default: int) -> int:
  text = os.environ.get(name)
  if text is None:
    return default
  if not text.isdecimal():
    raise UserError(f"{name} is '{text}' and not a number: {ALONE}")
  return int(text)

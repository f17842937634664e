"""Schedulers' environment variables, complete and incomplete."""

import os

import pytest

from bn_inception.errors import UserError
from bn_inception.machine import launchers
from bn_inception.machine.launchers import Launch

PREFIXES = ('SLURM_', 'OMPI_', 'PMI_', 'MPI_LOCAL')
# As srun sets them for the third of four tasks, two a node; and, in a batch
# script, sbatch for the script itself.
STEP = {
  'SLURM_JOB_ID': '77', 'SLURM_STEP_NODELIST': 'node[1-2]', 'SLURM_NTASKS': '4',
  'SLURM_STEP_NUM_TASKS': '4', 'SLURM_PROCID': '2', 'SLURM_LOCALID': '0',
  'SLURM_STEP_TASKS_PER_NODE': '2(x2)', 'SLURM_JOB_NUM_NODES': '2',
}  # fmt: skip
BATCH = {
  'SLURM_JOB_ID': '77', 'SLURM_NTASKS': '4', 'SLURM_PROCID': '0',
  'SLURM_LOCALID': '0', 'SLURM_JOB_NUM_NODES': '2',
}  # fmt: skip
MPIRUN = {
  'OMPI_COMM_WORLD_SIZE': '2', 'OMPI_COMM_WORLD_RANK': '1',
  'OMPI_COMM_WORLD_LOCAL_RANK': '0', 'OMPI_COMM_WORLD_LOCAL_SIZE': '1',
}  # fmt: skip
OLD_MPIRUN = MPIRUN | {'OMPI_MCA_orte_hnp_uri': '4096.0;tcp://10.0.0.1:1'}
HYDRA = {'PMI_SIZE': '2', 'PMI_RANK': '1'}
TORCHRUN = {
  'WORLD_SIZE': '8', 'RANK': '5', 'LOCAL_RANK': '1', 'LOCAL_WORLD_SIZE': '4',
}  # fmt: skip
ALONE = 'runs alone'


@pytest.fixture
def set_variables(monkeypatch):
  def replace(variables):
    for name in list(os.environ):
      if name.startswith(PREFIXES) or name in TORCHRUN:
        monkeypatch.delenv(name)
    for name, value in variables.items():
      monkeypatch.setenv(name, value)

  return replace


def without(variables, *names):
  return {name: v for name, v in variables.items() if name not in names}


@pytest.mark.parametrize('variables, expected', [
  (STEP, Launch('SLURM', 4, 2, [0], 'slurm')),
  # One task a node has all of its devices.
  (STEP | {'SLURM_STEP_TASKS_PER_NODE': '1(x4)'},
   Launch('SLURM', 4, 2, None, 'slurm')),
  (OLD_MPIRUN, Launch('Open MPI', 2, 1, None, 'ompi')),
  (MPIRUN, Launch('Open MPI', 2, 1, None, None)),  # version 5
  (HYDRA, Launch('MPICH', 2, 1, None, None)),
  (TORCHRUN, Launch('torchrun', 8, 5, [1], None)),
  (STEP | OLD_MPIRUN, Launch('Open MPI', 2, 1, None, 'ompi')),
  (STEP | TORCHRUN, Launch('SLURM', 4, 2, [0], 'slurm')),
])  # fmt: skip
def test_processes_match_the_schedulers_variables(
  variables, expected, set_variables, capsys
):
  set_variables(variables)
  assert launchers.find() == expected
  assert capsys.readouterr().out == ''


@pytest.mark.parametrize('variables, said', [
  ({}, ''),
  ({'SLURM_JOB_ID': '77'}, ''),  # ssh to a node of the job
  (STEP | {'SLURM_NTASKS': '1', 'SLURM_STEP_NUM_TASKS': '1',
           'SLURM_JOB_NUM_NODES': '1'}, ''),  # srun --pty
  (BATCH, ALONE),
  (without(BATCH, 'SLURM_NTASKS'), ALONE),
  (BATCH | {'SLURM_NTASKS': '1', 'SLURM_JOB_NUM_NODES': '1'}, ''),
  # The shell of salloc as a step of its own.
  (STEP | {'SLURM_STEP_NUM_TASKS': '1', 'SLURM_PROCID': '0'}, ALONE),
  ({'SLURM_JOB_ID': '77', 'SLURM_STEP_NODELIST': 'node1'}, ALONE),
  ({'OMPI_COMM_WORLD_SIZE': '1', 'OMPI_COMM_WORLD_RANK': '0'}, ''),
  ({'WORLD_SIZE': '2'}, ''),
  ({'PMI_SIZE': '1', 'PMI_RANK': '0'}, ''),
])  # fmt: skip
def test_one_process_runs_alone_and_says_so_if_unexpected(
  variables, said, set_variables, capsys
):
  set_variables(variables)
  assert launchers.find() is None
  out = capsys.readouterr().out
  assert out.count('\n') == bool(said) and said in out


@pytest.mark.parametrize('variables, message', [
  (without(STEP, 'SLURM_PROCID', 'SLURM_LOCALID'),
   'SLURM_PROCID and SLURM_LOCALID are not set'),
  (without(STEP, 'SLURM_NTASKS'), 'SLURM_NTASKS is not set'),
  (without(STEP, 'SLURM_JOB_ID'), 'SLURM_JOB_ID is not set'),
  (STEP | {'SLURM_PROCID': '4'}, 'SLURM_PROCID is 4,.* 4 processes'),
  (STEP | {'SLURM_STEP_NUM_TASKS': '4(x2)'}, r"NUM_TASKS is '4\(x2\)'"),
  ({'OMPI_COMM_WORLD_SIZE': '2'},
   'OMPI_COMM_WORLD_RANK and OMPI_COMM_WORLD_LOCAL_RANK are not set'),
  (TORCHRUN | {'RANK': '-1'}, "RANK is '-1'"),
])  # fmt: skip
def test_incomplete_variables_are_an_error_with_a_remedy(
  variables, message, set_variables
):
  set_variables(variables)
  with pytest.raises(UserError, match=f'{message}.*--num_processes=1'):
    launchers.find()

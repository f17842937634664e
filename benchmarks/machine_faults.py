"""Faults of machines that runs start on, for benchmarks/faults.py.

Each function gets a row, for its results, a laboratory, the random numbers and
whether to be quick.
"""

import os
import signal
import textwrap

from benchmarks.fault_runs import (
  InTerminal,
  Listened,
  Process,
  Run,
  free_port,
)
from benchmarks.fault_trials import (
  Fault,
  at_step,
  send,
  try_faults,
  try_refused,
)

HUNG_UP = 128 + signal.SIGHUP
NO_COORDINATOR_SECONDS = 360  # a process waits for 300
# As Lustre without -o flock, and some mounts of NFS and FUSE.
NO_FLOCK = """
  import errno, fcntl, os
  def flock(*_):
    raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
  fcntl.flock = flock
"""


def lose_terminal(row, lab, rng, quick):
  del quick
  fault = Fault(at_step(rng.randrange(12, 45)), _hang_up, [HUNG_UP])
  try_faults(row, Run(lab, 'terminal', make_process=InTerminal), [fault])


def close_stdout(row, lab, rng, quick):
  """As `| head`: the run goes on."""
  del quick
  fault = Fault(at_step(rng.randrange(12, 45)), _hang_up, [0])
  try_faults(row, Run(lab, 'stdout', make_process=Listened), [fault])


def refuse_locks(row, lab, rng, quick):
  del quick
  folder = lab.folder / 'no_flock'
  folder.mkdir()
  (folder / 'sitecustomize.py').write_text(textwrap.dedent(NO_FLOCK))
  path = os.pathsep.join([str(folder), os.environ.get('PYTHONPATH', '')])
  run = Run(lab, 'unlocked', variables={'PYTHONPATH': path.strip(os.pathsep)})
  kill = send(signal.SIGKILL)
  fault = Fault(at_step(rng.randrange(12, 45)), kill, [-signal.SIGKILL])
  try_faults(row, run, [fault])


def name_like_a_pattern(row, lab, rng, quick):
  del quick
  kill = send(signal.SIGKILL)
  fault = Fault(at_step(rng.randrange(12, 45)), kill, [-signal.SIGKILL])
  try_faults(row, Run(lab, 'lr=[0.1,0.2]*{a,b}?'), [fault])


def shrink_shared_memory(row, lab, rng, quick):
  """More workers than have room for their batches."""
  del rng, quick
  run = lab.stopped().copy('shared_memory')

  def start():
    # In a name space of its own: the machine keeps its shared memory.
    mount = 'mount -t tmpfs -o size=64m tmpfs /dev/shm && exec "$@"'
    command = [
      'unshare', '--mount', 'sh', '-c', mount, 'sh', *run.command(),
      '--config.data.num_workers=1000',
    ]  # fmt: skip
    process = Process(command, run.environment)
    process.wait()
    return [process]

  try_refused(row, run, start)


def miss_coordinator(row, lab, rng, quick):
  """The second of two processes, whose first one nobody starts."""
  del rng, quick
  run = lab.stopped().copy('no_coordinator')

  def start():
    process = Process(
      [
        *run.command(), '--num_processes=2', '--process_id=1',
        f'--coordinator_address=127.0.0.1:{free_port()}',
      ], run.environment,
    )  # fmt: skip
    process.wait(NO_COORDINATOR_SECONDS)
    row.seconds = process.end_time - process.start_time
    return [process]

  try_refused(row, run, start)


def set_half_of_slurm(row, lab, rng, quick):
  """As in a shell on a node of a job: it is not one of the job's tasks."""
  del quick
  kill = send(signal.SIGKILL)
  fault = Fault(at_step(rng.randrange(12, 45)), kill, [-signal.SIGKILL])
  variables = {
    'SLURM_JOB_ID': '7', 'SLURM_NTASKS': '4', 'SLURM_NODELIST': 'node[1-4]',
  }  # fmt: skip
  try_faults(row, Run(lab, 'half_slurm', variables=variables), [fault])


def tear_tasks_of_slurm(row, lab, rng, quick):
  """One of several tasks that does not know which."""
  del rng, quick
  variables = {
    'SLURM_JOB_ID': '7', 'SLURM_NTASKS': '4',
    'SLURM_STEP_NODELIST': 'node[1-4]',
  }  # fmt: skip
  run = lab.stopped().copy('torn_slurm')

  def start():
    process = Process(run.command(), run.environment | variables)
    process.wait()
    return [process]

  try_refused(row, run, start)


def _hang_up(run, processes):
  del run
  processes[0].hang_up()


FAULTS = {
  'terminal': ('terminal closed', lose_terminal),
  'stdout': ('stdout closed, as by `head`', close_stdout),
  'no_flock': ('a folder that cannot be locked; SIGKILL', refuse_locks),
  'pattern': ('workdir `lr=[0.1,0.2]*{a,b}?`; SIGKILL', name_like_a_pattern),
  'shared_memory': (
    '64 MB of /dev/shm, too many workers',
    shrink_shared_memory,
  ),
  'no_coordinator': ('the first of two processes absent', miss_coordinator),
  'half_slurm': ("SLURM's job without its tasks; SIGKILL", set_half_of_slurm),
  'torn_slurm': ("SLURM's task without its number", tear_tasks_of_slurm),
}

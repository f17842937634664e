"""Several processes: the same numbers in every layout, and shared values."""

import json
import os
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest

from bn_inception.errors import UserError
from bn_inception.experiment import make_setup
from bn_inception.machine import distributed, launchers, rendezvous
from bn_inception.runs import checkpoint, checkpoint_folder
from tests.machine import layout_steps
from tests.ports import free_port

TESTS = pathlib.Path(__file__).parents[1]
LAYOUTS = {'1x1': (1, 1), '1x4': (1, 4), '2x2': (2, 2), '4x1': (4, 1)}


@pytest.fixture(scope='module')
def layouts(tmp_path_factory):
  """The folder of layout_steps.py, and its results by layout."""
  folder, results = tmp_path_factory.mktemp('layouts'), {}
  environment = {
    **os.environ,
    'PYTHONPATH': str(TESTS.parent),
    'JAX_COMPILATION_CACHE_DIR': str(folder / 'cache'),
    'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
  }
  for name, (num_processes, num_devices) in LAYOUTS.items():
    port = free_port()
    processes = [
      subprocess.Popen(
        [
          sys.executable, TESTS / 'machine' / 'layout_steps.py', folder,
          str(num_processes), str(i), str(num_devices), str(port),
        ],
        env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True,
      ) for i in range(num_processes)
    ]  # fmt: skip
    for process in processes:
      said, _ = process.communicate(timeout=600)
      assert process.returncode == 0, said
    results[name] = json.loads((folder / f'{name}.json').read_text())
  return folder, results


@pytest.mark.slow
@pytest.mark.parametrize('layout', ['1x4', '2x2', '4x1'])
def test_steps_equal_those_on_one_device(layouts, layout):
  _, results = layouts
  found, reference = results[layout], results['1x1']
  assert found['devices'] == 4 and len(found['each']) == 20
  # Relative to the largest value of each array; float32 has 1.2e-7. What comes
  # from the forward pass is continuous in its roundings.
  steps = [*found['each'], found['all']]
  assert 0.0 < max(step['statistics'] for step in steps) < 1e-5
  # Gradients are not: an activation within rounding of ReLU's kink, or two of a
  # max pool within rounding of each other, is seen from another side in another
  # order of summation. Of 12 seeds two had one such step among 20, in which
  # one gradient of the ReLU's unit was 0.3 % off, and 0.03 %.
  differences = sorted(step['state'] for step in found['each'])
  assert differences[-3] < 1e-5 and differences[-1] < 1e-2
  assert found['all']['state'] < (1e-5 if differences[-1] < 1e-5 else 1e-2)
  for name in 'examples', 'top1', 'top5':
    assert found['evaluation'][name] == reference['evaluation'][name]
  assert found['evaluation']['examples'] == 355
  assert found['evaluation']['loss'] == pytest.approx(
    reference['evaluation']['loss'], rel=1e-5
  )


@pytest.mark.slow
@pytest.mark.parametrize('layout', LAYOUTS)
def test_a_checkpoint_of_any_layout_is_read_by_another(
  layouts, few_rows, layout
):
  folder, _ = layouts
  path = checkpoint_folder.find(str(folder / layout))
  assert checkpoint.read_description(path) == {'layout': layout}
  setup = make_setup(layout_steps.make_config(), jax.devices(), 10, 1)
  state = checkpoint.restore(path, setup.abstract_state(), setup.replicated)
  expected = layout_steps.saved_leaves(str(folder), 20)
  for leaf, saved in zip(jax.tree.leaves(state), expected, strict=True):
    np.testing.assert_array_equal(leaf, saved)


def test_one_process_agrees_with_itself():
  assert distributed.is_first()
  assert distributed.from_first(lambda: {'a': [1]}) == {'a': [1]}
  assert distributed.gather([3, 1]) == [3, 1]
  assert distributed.processes_on_this_host() == 1
  assert not distributed.is_loss_of_process(ValueError('Gloo failed'))


@pytest.mark.parametrize(
  'arguments, message',
  [
    (('h:1', None, None), '--num_processes and --process_id'),
    ((None, 2, 1), '--coordinator_address'),
    ((None, 1, 1), '--coordinator_address'),
    (('h:1', 2, None), '^--process_id'),
    (('h:1', 2, 2), '--process_id is 2 .*--num_processes=2'),
    (('h:1', 2, -1), '--process_id is -1 .*--num_processes=2'),
    (('h:1', 0, 0), '--num_processes is 0: give at least 1'),
    (('h', 2, 1), "--coordinator_address is 'h': give HOST:PORT"),
  ],
)
def test_bad_flags_are_named(arguments, message, monkeypatch):
  monkeypatch.setattr(launchers, 'find', lambda: None)
  with pytest.raises(UserError, match=message):
    distributed.initialize(*arguments, {})


@pytest.fixture
def joined(monkeypatch):
  """The calls that meet other processes and join JAX."""
  calls = []
  monkeypatch.setattr(
    rendezvous, 'meet', lambda *arguments: calls.append(arguments)
  )
  monkeypatch.setattr(
    jax.distributed, 'initialize',
    lambda *arguments, **keywords: calls.append((*arguments, keywords)),
  )  # fmt: skip
  monkeypatch.setenv('no_grpc_proxy', '')  # and is restored
  monkeypatch.setenv('no_proxy', 'localhost')
  monkeypatch.delenv('JAX_LOCAL_DEVICE_IDS', raising=False)
  monkeypatch.setattr(distributed.glob, 'glob', lambda pattern: [])
  return calls


def test_one_process_has_no_others(joined, monkeypatch):
  launch = launchers.Launch('SLURM', 4, 2, None, 'slurm')
  monkeypatch.setattr(launchers, 'find', lambda: launch)
  distributed.initialize('nowhere', 1, 0, {})
  distributed.initialize(None, 1, None, {})  # the way out of a SLURM job
  monkeypatch.setattr(launchers, 'find', lambda: None)
  distributed.initialize(None, None, None, {})
  assert joined == []


SLURM = {
  'SLURM_JOB_ID': '4097', 'SLURM_STEP_NODELIST': 'node[07-08]',
  'SLURM_NTASKS': '2', 'SLURM_PROCID': '1', 'SLURM_LOCALID': '0',
}  # fmt: skip
OPEN_MPI = {'OMPI_MCA_orte_hnp_uri': '8192.0;tcp://10.0.0.1,10.1.0.1:34911'}


@pytest.mark.parametrize(
  'name, jax_name, environment, address',
  [
    ('SLURM', 'slurm', SLURM, 'node07:61441'),
    ('Open MPI', 'ompi', OPEN_MPI, '10.0.0.1:61442'),
  ],
)
def test_jax_says_where_a_scheduler_started_the_first_process(
  name, jax_name, environment, address, joined, monkeypatch
):
  sizes = {'OMPI_COMM_WORLD_SIZE': '2', 'OMPI_COMM_WORLD_RANK': '1'}
  monkeypatch.delenv('JAX_COORDINATOR_PORT', raising=False)
  for variable, value in (sizes | environment).items():
    monkeypatch.setenv(variable, value)
  launch = launchers.Launch(name, 2, 1, [3], jax_name)
  monkeypatch.setattr(launchers, 'find', lambda: launch)
  distributed.initialize(None, None, None, {'a': 'b'})
  (met, member), (*arguments, keywords) = joined
  assert str(met) == address
  assert member == (1, 2, {'jax': jax.__version__, 'a': 'b'})
  assert arguments == [address, 2, 1, [3]]
  assert keywords['cluster_detection_method'] == 'deactivate'
  # gRPC uses no proxy for it, and JAX does not warn about proxies.
  assert os.environ['no_grpc_proxy'] == f'localhost,{met.host}'
  assert not jax._src.distributed._CHECK_PROXY_ENVS.value


def test_the_address_is_enough_if_a_launcher_provides_the_rest(
  joined, monkeypatch
):
  launch = launchers.Launch('torchrun', 8, 5, [1], None)
  monkeypatch.setattr(launchers, 'find', lambda: launch)
  with pytest.raises(UserError, match='torchrun .*8 .*--coordinator_address'):
    distributed.initialize(None, None, None, {})
  distributed.initialize('[::1]:80', None, None, {})
  assert joined[1][:4] == ('[::1]:80', 8, 5, [1])


def test_variables_that_jax_cannot_read_are_an_error(joined, monkeypatch):
  launch = launchers.Launch('SLURM', 2, 1, None, 'slurm')
  monkeypatch.setattr(launchers, 'find', lambda: launch)
  for variable, value in (SLURM | {'SLURM_JOB_ID': 'x'}).items():
    monkeypatch.setenv(variable, value)
  with pytest.raises(UserError, match="SLURM says .*'x'.*--num_processes=1"):
    distributed.initialize(None, None, None, {})


def test_a_tpu_machine_asks_jax_for_the_others(joined, monkeypatch):
  monkeypatch.setattr(launchers, 'find', lambda: None)
  monkeypatch.setattr(
    distributed.glob, 'glob',
    lambda pattern: ['/dev/accel0'] if 'accel' in pattern else [],
  )  # fmt: skip
  found = ['worker0:8482', 4, 3, []]
  monkeypatch.setattr(
    distributed.clusters.ClusterEnv,
    'auto_detect_unset_distributed_params',
    lambda *arguments: found,
  )
  for is_installed in (False, True):
    monkeypatch.setattr(
      distributed.importlib.util,
      'find_spec',
      lambda name, found=is_installed: found or None,
    )
    distributed.initialize(None, None, None, {})
    assert len(joined) == 2 * is_installed
  assert joined[1][:4] == ('worker0:8482', 4, 3, None)
  found[:] = [None, None, None, []]  # a host that belongs to no pod
  distributed.initialize(None, None, None, {})
  found[:] = ['worker0:8482', 1, 0, []]
  distributed.initialize(None, None, None, {})
  assert len(joined) == 2


def test_a_failure_of_jax_to_join_is_an_error(joined, monkeypatch):
  def fail(*arguments, **keywords):
    raise ValueError('DEADLINE_EXCEEDED: Barrier timed out\nmore')

  monkeypatch.setattr(jax.distributed, 'initialize', fail)
  with pytest.raises(
    UserError, match=r'\(DEADLINE_EXCEEDED: Barrier timed out'
  ):
    distributed.initialize('127.0.0.1:1', 2, 1, {})


MEET = """
import sys
from bn_inception.programs import command_line
from bn_inception.machine import distributed, rendezvous
rendezvous.TIMEOUT_SECONDS = float(sys.argv.pop(1))
command_line.define_process_flags()
command_line.run(lambda: print(distributed.gather([3])))
"""


def start(process_id, port, seconds, **environment):
  return subprocess.Popen(
    [
      sys.executable, '-c', MEET, str(seconds), f'--process_id={process_id}',
      '--num_processes=2', f'--coordinator_address=localhost:{port}',
    ],
    env={**os.environ, 'JAX_PLATFORMS': 'cpu', 'XLA_FLAGS': '', **environment},
    cwd=TESTS.parent, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
  )  # fmt: skip


@pytest.mark.slow
def test_processes_meet_without_a_proxy():
  """The web proxy is an address at which nobody listens."""
  names = ('http_proxy', 'https_proxy', 'grpc_proxy')
  port, proxy = free_port(), dict.fromkeys(names, 'http://127.0.0.1:9')
  second, first = (start(i, port, 60, **proxy) for i in (1, 0))
  try:
    (said, errors), _ = first.communicate(timeout=90), second.communicate()
  finally:
    first.kill(), second.kill()
  assert (first.returncode, second.returncode) == (0, 0), errors
  assert said.splitlines()[-1] == '[3, 3]'


@pytest.mark.slow
@pytest.mark.parametrize('process_id', [0, 1])
def test_a_process_that_waits_in_vain_ends_with_one_line(process_id):
  alone = start(process_id, free_port(), 1)
  said, errors = alone.communicate(timeout=60)
  assert alone.returncode == 2
  assert said.startswith(f'process {process_id}: waiting for ')
  assert errors.count('\n') == 1
  assert f'process {process_id} waited 1 s for ' in errors

"""Several processes: the same numbers in every layout, and what they agree on."""

import json
import os
import pathlib
import socket
import subprocess
import sys

import jax
import layout_steps
import numpy as np
import pytest

from bn_inception import checkpoint, distributed, mesh
from bn_inception.errors import UserError
from bn_inception.experiment import make_abstract_state

TESTS = pathlib.Path(__file__).parent
LAYOUTS = {'1x1': (1, 1), '1x4': (1, 4), '2x2': (2, 2), '4x1': (4, 1)}


def free_port() -> int:
  with socket.socket() as s:
    s.bind(('127.0.0.1', 0))
    return s.getsockname()[1]


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
          sys.executable, TESTS / 'layout_steps.py', folder,
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


@pytest.mark.distributed
@pytest.mark.parametrize('layout', ['1x4', '2x2', '4x1'])
def test_every_step_and_all_of_them_are_those_of_one_device(layouts, layout):
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


@pytest.mark.distributed
@pytest.mark.parametrize('layout', LAYOUTS)
def test_a_checkpoint_of_any_layout_is_read_by_another(
  layouts, few_rows, layout
):
  folder, _ = layouts
  path = checkpoint.find(str(folder / layout))
  assert checkpoint.read_description(path) == {'layout': layout}
  state = checkpoint.restore(
    path,
    make_abstract_state(layout_steps.make_config(), 10, 1),
    mesh.replicated(mesh.make_evaluation_mesh(jax.devices())),
  )
  expected = layout_steps.saved_leaves(str(folder), 20)
  for leaf, saved in zip(jax.tree.leaves(state), expected, strict=True):
    np.testing.assert_array_equal(leaf, saved)


def test_one_process_agrees_with_itself():
  assert distributed.is_first()
  assert distributed.from_first(lambda: {'a': [1]}) == {'a': [1]}
  assert distributed.gather([3, 1]) == [3, 1]
  assert distributed.processes_on_this_host() == 1
  assert not distributed.is_loss_of_process(ValueError('Gloo failed'))


def test_bad_flags_are_named():
  for arguments, message in (
    (('h:1', None, None), 'give --coordinator_address, --num_processes and'),
    ((None, 2, 1), 'give --coordinator_address, --num_processes and'),
    (('h:1', 2, 2), '--process_id must be between 0 and 1, got 2'),
    (('h:1', 2, -1), '--process_id must be between 0 and 1, got -1'),
  ):
    with pytest.raises(UserError, match=message):
      distributed.initialize(*arguments)
  distributed.initialize('nowhere:1', 1, 0)  # one process has no others


SLURM = {'SLURM_STEP_NODELIST': 'node[1-2]', 'SLURM_NTASKS': '2'}


@pytest.mark.parametrize(
  'environment, is_cluster',
  [
    ({}, False),
    (SLURM, True),
    (SLURM | {'SLURM_NTASKS': '1'}, False),
    ({'SLURM_NTASKS': '2'}, False),  # in the batch script, outside srun
    ({'OMPI_COMM_WORLD_SIZE': '4'}, True),
    ({'OMPI_COMM_WORLD_SIZE': '1'}, False),
  ],
)
def test_clusters_are_noticed(monkeypatch, environment, is_cluster):
  for name in (*SLURM, 'OMPI_COMM_WORLD_SIZE'):
    monkeypatch.delenv(name, raising=False)
  for name, value in environment.items():
    monkeypatch.setenv(name, value)
  monkeypatch.setattr(distributed.glob, 'glob', lambda pattern: [])
  calls = []
  monkeypatch.setattr(
    jax.distributed, 'initialize', lambda *a, **kw: calls.append((a, kw))
  )
  distributed.initialize(None, None, None)
  assert len(calls) == is_cluster
  for arguments, keywords in calls:  # left to JAX to find
    assert arguments == (None, None, None)
    assert keywords['cluster_detection_method'] is None


def test_a_tpu_machine_asks_jax_for_the_others(monkeypatch):
  for name in (*SLURM, 'OMPI_COMM_WORLD_SIZE'):
    monkeypatch.delenv(name, raising=False)
  monkeypatch.setattr(
    distributed.glob, 'glob',
    lambda pattern: ['/dev/accel0'] if 'accel' in pattern else [],
  )  # fmt: skip
  for is_installed in (False, True):
    monkeypatch.setattr(
      distributed.importlib.util,
      'find_spec',
      lambda name, found=is_installed: found or None,
    )
    assert distributed._is_started_by_cluster() == is_installed


def test_processes_that_do_not_come_are_an_error(monkeypatch):
  def fail(*arguments, **keywords):
    raise ValueError('DEADLINE_EXCEEDED: Barrier timed out\nmore')

  monkeypatch.setattr(jax.distributed, 'initialize', fail)
  with pytest.raises(
    UserError, match=r'cannot be reached \(DEADLINE_EXCEEDED: Barrier timed out'
  ):
    distributed.initialize('127.0.0.1:1', 2, 1)

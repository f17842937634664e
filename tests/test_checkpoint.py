"""Checkpoints: exact, on other devices, and what is said of bad ones."""

import os
import re
import shutil

import jax
import numpy as np
import pytest
from test_steps import initial_state

from bn_inception import checkpoint, mesh
from bn_inception.errors import UserError

DESCRIPTION = {'config': {'seed': 3}, 'class_names': ['a', 'b']}


def placed(num_devices, step=0):
  devices = mesh.make_evaluation_mesh(jax.devices()[:num_devices])
  state = initial_state(average_decay=0.99)
  state = state.replace(
    step=state.step + step,
    params=jax.tree.map(lambda x: x + step, state.params),
  )
  return jax.device_put(state, mesh.replicated(devices))


@pytest.fixture(scope='module')
def directory(tmp_path_factory):
  """Checkpoints of steps 1 to 6, of which the second is the best."""
  path = str(tmp_path_factory.mktemp('run') / 'checkpoints')
  accuracies = dict(enumerate([10.0, 30.0, 20.0, None, 25.0, None], 1))
  for steps in (1, 2, 3), (4, 5, 6):  # a run that was resumed
    with checkpoint.open_checkpoints(
      path, keep_last=2, keep_best=1
    ) as checkpoints:
      for step in steps:
        checkpoint.save(
          checkpoints, placed(8, step), DESCRIPTION, accuracies[step]
        )
  return path


def test_the_last_and_the_best_are_kept(directory):
  steps = sorted(
    int(name) for name in os.listdir(directory) if name.isdecimal()
  )
  assert steps == [2, 5, 6]
  assert checkpoint.find(directory) == os.path.join(directory, '6')
  assert checkpoint.find(directory, 2) == os.path.join(directory, '2')
  with pytest.raises(UserError, match='no checkpoint of step 3.*are 2, 5, 6'):
    checkpoint.find(directory, 3)


@pytest.mark.parametrize('num_devices', [1, 2, 8])
def test_state_is_restored_exactly_on_other_devices(directory, num_devices):
  devices = mesh.make_evaluation_mesh(jax.devices()[:num_devices])
  abstract = jax.eval_shape(lambda: initial_state(average_decay=0.99))
  sharding = mesh.replicated(devices)
  path = checkpoint.find(directory)
  restored = checkpoint.restore(path, abstract, sharding)
  jax.tree.map(np.testing.assert_array_equal, restored, placed(1, step=6))
  shardings = {leaf.sharding for leaf in jax.tree.leaves(restored)}
  assert shardings == {sharding}
  assert checkpoint.read_description(path) == DESCRIPTION


def restore(path):
  abstract = jax.eval_shape(lambda: initial_state(average_decay=0.99))
  devices = mesh.make_evaluation_mesh(jax.devices()[:1])
  return checkpoint.restore(str(path), abstract, mesh.replicated(devices))


def test_bad_folders_are_named(directory, tmp_path):
  with pytest.raises(UserError, match='no checkpoint in .*: train first'):
    checkpoint.find(str(tmp_path))
  with pytest.raises(UserError, match='checkpoint .*absent does not exist'):
    restore(tmp_path / 'absent')
  with pytest.raises(
    UserError, match=f'{re.escape(str(tmp_path))} is not a che'
  ):
    restore(tmp_path)
  damaged = tmp_path / '6'
  shutil.copytree(checkpoint.find(directory), damaged)
  for root, _, names in os.walk(damaged / 'state'):
    for name in names:
      open(os.path.join(root, name), 'w').close()
  with pytest.raises(UserError, match='6 cannot be read') as caught:
    restore(damaged)
  assert '\n' not in str(caught.value)


def test_another_network_is_refused(directory):
  other = initial_state(average_decay=0.99)
  params = {**other.params, 'logits': {'kernel': np.zeros((3, 7), np.float32)}}
  devices = mesh.make_evaluation_mesh(jax.devices()[:1])
  with pytest.raises(UserError, match='cannot be read'):
    checkpoint.restore(
      checkpoint.find(directory),
      jax.eval_shape(lambda: other.replace(params=params)),
      mesh.replicated(devices),
    )

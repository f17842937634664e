"""Checkpoints: exact, on other devices, and what is said of bad ones."""

import os
import pathlib
import re
import shutil
import threading

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from etils import epath

from bn_inception import mesh
from bn_inception.errors import UserError
from bn_inception.runs import checkpoint, checkpoint_folder, integrity
from bn_inception.train_state import TrainState
from tests.test_steps import initial_state

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
  assert all(integrity.is_sealed(f'{directory}/{step}') for step in steps)
  # Nothing is left of those that are gone.
  assert sorted(os.listdir(directory)) == ['2', '5', '6']
  assert checkpoint_folder.find(directory) == os.path.join(directory, '6')
  assert checkpoint_folder.find(directory, 2) == os.path.join(directory, '2')


@pytest.mark.parametrize('num_devices', [1, 2, 8])
def test_state_is_restored_exactly_on_other_devices(directory, num_devices):
  devices = mesh.make_evaluation_mesh(jax.devices()[:num_devices])
  abstract = jax.eval_shape(lambda: initial_state(average_decay=0.99))
  sharding = mesh.replicated(devices)
  path = checkpoint_folder.find(directory)
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
  with pytest.raises(UserError, match='checkpoint .*absent does not exist'):
    restore(tmp_path / 'absent')
  with pytest.raises(
    UserError, match='checkpoint .*/7 does not exist: there are'
  ):
    restore(pathlib.Path(directory, '7'))
  (tmp_path / 'a.pth').touch()
  with pytest.raises(
    UserError, match='a.pth is a file.*bn_inception.weights --from'
  ):
    restore(tmp_path / 'a.pth')
  with pytest.raises(
    UserError, match=f'{re.escape(str(tmp_path))} is not a che'
  ):
    restore(tmp_path)
  damaged = tmp_path / '6'
  shutil.copytree(checkpoint_folder.find(directory), damaged)
  (damaged / 'sha256.json').unlink()
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
      checkpoint_folder.find(directory),
      jax.eval_shape(lambda: other.replace(params=params)),
      mesh.replicated(devices),
    )


def small_state(step):
  kernel = np.random.default_rng(step).normal(size=(64, 32))
  return TrainState(
    step=jnp.int32(step),
    params={'kernel': jnp.asarray(kernel, jnp.float32)},
    batch_stats={},
    opt_state=(),
    average_params={},
    first_nonfinite_step=jnp.int32(-1),
  )


def restore_small(path):
  device = mesh.make_evaluation_mesh(jax.devices()[:1])
  abstract = jax.eval_shape(lambda: small_state(0))
  return checkpoint.restore(str(path), abstract, mesh.replicated(device))


def save_small(directory, *steps, keep_last=3):
  with checkpoint.open_checkpoints(
    str(directory), keep_last, keep_best=1
  ) as checkpoints:
    for step in steps:
      checkpoint.save(checkpoints, small_state(step), DESCRIPTION, None)


@pytest.fixture(scope='module')
def small_run(tmp_path_factory):
  path = tmp_path_factory.mktemp('small') / 'checkpoints'
  save_small(path, 1, 2, 3)
  return path


@pytest.fixture
def small(small_run, tmp_path):
  """A run's checkpoints of steps 1 to 3, to be damaged."""
  return shutil.copytree(small_run, tmp_path / 'run' / 'checkpoints')


NAMES = ('lr=[0.1,0.2]', '[!a] *?{b}%20#c:d=e,é\n', '-~')


@pytest.mark.parametrize('name', NAMES)
def test_a_folder_of_any_name_holds_checkpoints(tmp_path, name):
  directory = tmp_path / name / 'checkpoints'
  save_small(directory, 1)
  jax.tree.map(
    np.testing.assert_array_equal,
    restore_small(directory / '1'),
    small_state(1),
  )
  assert checkpoint.read_description(f'{directory}/1') == DESCRIPTION


@pytest.mark.parametrize('name', ['gs', 's3', 'az', 'hf'])
def test_a_folder_of_this_machine_is_no_bucket(name):
  path = f'/{name}/run/checkpoints'
  assert str(epath.Path(path)) == f'{name}://run/checkpoints'
  assert str(checkpoint._LiteralPath(path)) == path


@pytest.mark.parametrize('name', ['state/d/*', 'description/metadata'])
def test_what_cannot_be_read_back_is_not_called_saved(
  tmp_path, monkeypatch, name
):
  def lose(path, abstract_state):
    for file in pathlib.Path(path).glob(name):
      os.truncate(file, 0)
    check(path, abstract_state)

  check = checkpoint._check_restorable
  directory = tmp_path / 'checkpoints'
  save_small(directory, 1, keep_last=1)
  monkeypatch.setattr(checkpoint, '_check_restorable', lose)
  with pytest.raises(UserError) as caught:
    save_small(directory, 2, keep_last=1)
  place = tmp_path / 'damaged_checkpoints' / '2'
  assert 'checkpoint of step 2 could not be written' in str(caught.value)
  assert f'cannot be read back, see {place}: ' in str(caught.value)
  assert 'older checkpoints (1)' in str(caught.value)
  assert not integrity.is_sealed(str(place))
  assert checkpoint_folder.newest_intact(str(directory)) == (
    f'{directory}/1',
    {},
  )


def list_files(path):
  return sorted(p for p in path.rglob('*') if p.is_file())


def flip(path, index=None, bit=0):
  content = bytearray(path.read_bytes())
  content[len(content) // 2 if index is None else index] ^= 1 << bit
  path.write_bytes(content)


def flip_array(path):
  """Damages the array of a checkpoint; returns the file."""
  data = max((path / 'state').rglob('d/*'), key=lambda p: p.stat().st_size)
  flip(data, index=1900)
  return data.relative_to(path)


def test_orbax_alone_restores_other_numbers_without_a_word(small):
  file = flip_array(small / '3')
  device = mesh.make_evaluation_mesh(jax.devices()[:1])
  target = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(
      x.shape, x.dtype, sharding=mesh.replicated(device)
    ),
    jax.eval_shape(lambda: small_state(0)),
  )
  with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
    restored = checkpointer.restore(
      small / '3', ocp.args.Composite(state=ocp.args.StandardRestore(target))
    )
  changed = (
    restored['state'].params['kernel'] != small_state(3).params['kernel']
  )
  assert np.sum(changed) >= 1
  with pytest.raises(UserError) as caught:
    restore_small(small / '3')
  damage = f'{file} has changed since it was written'
  assert f'{small}/3 is damaged: {damage}' in str(caught.value)


def test_a_flipped_bit_in_any_file_is_named(small):
  path = small / '3'
  files = list_files(path)
  assert len(files) >= 17
  for file in files:
    content = file.read_bytes()
    name = file.relative_to(path)
    flip(file, bit=6)
    for read in restore_small, checkpoint.read_description:
      with pytest.raises(UserError, match='3 is damaged: ') as caught:
        read(str(path))
      message = str(caught.value)
      assert '\n' not in message
      # A flip in the seal may also be one in a digest, or in a name.
      if name.name != 'sha256.json':
        assert f': {name} has changed since it was written: ' in message
    file.write_bytes(content)
  jax.tree.map(
    np.testing.assert_array_equal, restore_small(path), small_state(3)
  )


@pytest.mark.parametrize(
  'damage, message',
  [
    (pathlib.Path.unlink, 'is missing'),
    (lambda path: os.truncate(path, 0), 'has 0 bytes, not'),
    (
      lambda path: os.truncate(path, path.stat().st_size - 1),
      r'has \d+ bytes, not',
    ),
  ],
)
def test_a_missing_or_short_file_is_named(small, damage, message):
  for index, file in enumerate(list_files(small / '3')):
    if file.name == 'sha256.json':
      continue
    path = shutil.copytree(small / '3', small.parent / str(index) / '3')
    damage(path / file.relative_to(small / '3'))
    with pytest.raises(
      UserError, match=f': {file.relative_to(small / "3")} {message}'
    ):
      checkpoint.read_description(str(path))


def test_a_checkpoint_without_a_seal_is_read_with_one_line(small, capsys):
  (small / '2' / 'sha256.json').unlink()
  assert checkpoint.read_description(str(small / '2')) == DESCRIPTION
  restore_small(small / '2')
  assert capsys.readouterr().out == (
    f'checkpoint {small}/2 is not verified: it has no sha256.json\n'
  )


def test_an_older_damaged_one_is_not_left_to_orbax(small, capsys):
  (small / '1' / 'metrics' / 'metrics').write_bytes(b'{')
  with pytest.raises(UserError, match=r'checkpoints cannot be opened \(.*JSON'):
    checkpoint.open_checkpoints(str(small), 3, 1)
  assert checkpoint_folder.choose_to_resume(str(small)) == f'{small}/3'
  assert 'metrics/metrics has 1 byte, not' in capsys.readouterr().out
  save_small(small, 4)
  assert checkpoint_folder.list_steps(str(small)) == [2, 3, 4]


def test_what_a_killed_save_has_left_is_no_checkpoint(small, capfd):
  for step in 3, 4:
    left = small / f'{step}.orbax-checkpoint-tmp' / 'state.orbax-checkpoint-tmp'
    left.mkdir(parents=True)
    (left / 'manifest.ocdbt').write_bytes(b'half')
  assert checkpoint_folder.list_steps(str(small)) == [1, 2, 3]
  assert checkpoint_folder.choose_to_resume(str(small)) == f'{small}/3'
  save_small(small, 4)
  assert sorted(os.listdir(small)) == ['2', '3', '4']
  assert capfd.readouterr() == ('', '')


def test_saving_does_not_wait_for_the_seal(tmp_path, monkeypatch):
  begin, threads, original = threading.Event(), [], integrity.seal

  def seal(folder):
    assert begin.wait(20)
    threads.append(threading.current_thread())
    original(folder)

  monkeypatch.setattr(integrity, 'seal', seal)
  with checkpoint.open_checkpoints(str(tmp_path), 2, 1) as checkpoints:
    checkpoint.save(checkpoints, small_state(1), DESCRIPTION, None)
    checkpoints.check()
    assert not threads  # and here we are
    begin.set()
    checkpoints.wait()
    assert integrity.find_damage(f'{tmp_path}/1') is None
  assert threads[0] is not threading.main_thread()


def assert_unwritten(caught, step, directory, older_steps):
  message = str(caught.value)
  assert message.startswith(f'the checkpoint of step {step} could not be')
  assert f'{directory} (No space left on device)' in message
  assert str(older_steps)[1:-1] in message.partition('; ')[2]
  assert '\n' not in message and message.endswith('to resume')


def test_a_seal_that_cannot_be_written_is_an_error(tmp_path, monkeypatch):
  def seal(folder):
    raise OSError(28, os.strerror(28))

  with checkpoint.open_checkpoints(str(tmp_path), 2, 1) as checkpoints:
    checkpoint.save(checkpoints, small_state(1), DESCRIPTION, None)
    checkpoints.wait()
    monkeypatch.setattr(integrity, 'seal', seal)
    checkpoint.save(checkpoints, small_state(2), DESCRIPTION, None)
    with pytest.raises(UserError) as caught:
      checkpoint.save(checkpoints, small_state(3), DESCRIPTION, None)
    assert_unwritten(caught, 2, tmp_path, [1])
    checkpoints.check()  # once is enough
  assert checkpoint_folder.newest_intact(str(tmp_path))[0] == f'{tmp_path}/1'


@pytest.mark.parametrize('room', range(0, 80, 16))
def test_a_full_disk_at_any_moment_of_a_save(small_disk, capfd, room):
  """`room`: what is left when step 2 is saved, in KiB; it needs 72."""
  directory = small_disk.path / 'checkpoints'
  with checkpoint.open_checkpoints(str(directory), 1, 0) as checkpoints:
    checkpoint.save(checkpoints, small_state(1), DESCRIPTION, None)
    checkpoints.wait()
    small_disk.fill(room)
    with pytest.raises(UserError) as caught:
      checkpoint.save(checkpoints, small_state(2), DESCRIPTION, None)
      checkpoints.wait()
  assert_unwritten(caught, 2, directory, [1])
  assert capfd.readouterr().err == ''
  assert checkpoint_folder.newest_intact(str(directory))[0] == f'{directory}/1'
  small_disk.empty()
  assert checkpoint_folder.choose_to_resume(str(directory)) == f'{directory}/1'
  save_small(directory, 2, 3)
  assert sorted(os.listdir(directory)) == ['1', '2', '3']
  assert checkpoint_folder.newest_intact(str(directory)) == (
    f'{directory}/3',
    {},
  )


def test_a_disk_that_became_read_only_or_a_folder_that_is_gone(
  small_disk, capfd
):
  directory = small_disk.path / 'checkpoints'
  with checkpoint.open_checkpoints(str(directory), 2, 1) as checkpoints:
    checkpoint.save(checkpoints, small_state(1), DESCRIPTION, None)
    checkpoints.wait()
    small_disk.remount('ro')
    with pytest.raises(
      UserError,
      match=r'step 2 could not be .* \(Read-only file system\); the older .* \(1\)',
    ):
      checkpoint.save(checkpoints, small_state(2), DESCRIPTION, None)
    small_disk.remount('rw')
    shutil.rmtree(directory)
    with pytest.raises(
      UserError,
      match=r'step 2 could not be .* \(it was removed\); there is no older one',
    ):
      checkpoint.save(checkpoints, small_state(2), DESCRIPTION, None)
  assert not directory.exists()
  assert capfd.readouterr().err == ''


def test_ctrl_c_while_restoring_is_no_damage(tmp_path, monkeypatch):
  (tmp_path / 'state').mkdir()

  def interrupted(*args, **kwargs):
    try:
      raise KeyboardInterrupt
    except KeyboardInterrupt as error:
      raise ValueError('an array') from error

  monkeypatch.setattr(checkpoint.ocp.Checkpointer, 'restore', interrupted)
  with pytest.raises(KeyboardInterrupt):
    checkpoint.read_description(str(tmp_path))

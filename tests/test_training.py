"""The training loop on real digits, with two modules and eight devices."""

import copy
import functools
import json
import os
import shutil
import signal
import time

import cv2
import jax
import numpy as np
import pytest

from bn_inception import training
from bn_inception.data.sources import make_source
from bn_inception.errors import UserError
from bn_inception.evaluation import checkpoints
from bn_inception.experiment import make_experiment
from bn_inception.machine.interruption import Interrupted
from bn_inception.runs import (
  checkpoint,
  checkpoint_folder,
  integrity,
  learning_curve,
  logbook,
  profiler,
  recorder,
)
from configs import compose
from tests import conftest

pytestmark = pytest.mark.usefixtures('few_rows')


def final_state(workdir, config):
  setup = make_experiment(config, None).setup
  path = checkpoint_folder.find(os.path.join(workdir, 'checkpoints'))
  return checkpoint.restore(path, setup.abstract_state(), setup.replicated)


def with_epochs(config, num_steps):
  config = copy.deepcopy(config)
  config['training']['num_epochs'] = num_steps * 16 / 1442
  return config


def test_a_run_leaves_all_that_it_promises(
  tmp_path, digits_config, capsys, monkeypatch
):
  workdir, released = str(tmp_path / 'run'), []
  monkeypatch.setattr(training, 'release_memory', lambda: released.append(1))
  monkeypatch.setattr(profiler, 'SKIPPED_STEPS', 1)
  monkeypatch.setattr(profiler, 'PROFILED_STEPS', 1)
  profile = str(tmp_path / 'profile')
  result = training.train_and_evaluate(digits_config, workdir, profile=profile)
  assert released == [1]  # what the compiler took, after the first step
  assert sorted(os.listdir(workdir)) == [
    '.lock', 'checkpoints', 'config.json', 'data.json',
    'learning_curve.png', 'manifest.json', 'metrics.jsonl', 'result.json', 'tb',
  ]  # fmt: skip
  with open(f'{workdir}/result.json') as file:
    assert json.load(file) == result
  assert result['config'] == json.loads(json.dumps(digits_config))
  assert result['steps'] == 6 and result['examples'] == 96
  assert result['epochs'] == 96 / 1442 and result['paper_steps'] == 3
  assert result['eval_examples'] == 355
  assert result['statistics'] == 'moving averages'
  assert result['diverged'] is False and result['steps_to_target'] is None
  assert result['images_per_second'] > 0
  assert result['wall_seconds'] > result['seconds_to_first_step'] > 0
  assert 0 <= result['input_wait_fraction'] < 1
  assert result['replaced_examples'] == 0
  records = logbook.read_metrics(workdir)
  evals = [r for r in records if r['kind'] == 'eval']
  assert [r['step'] for r in evals] == [3, 6]
  assert result['top1'] == evals[-1]['top1']
  assert result['max_top1'] == max(r['top1'] for r in evals)
  train = [r for r in records if r['kind'] == 'train']
  assert [r['step'] for r in train] == [2, 3, 4, 6]
  rates = [r['learning_rate'] for r in train]
  np.testing.assert_allclose(rates, 0.015, rtol=1e-6)
  output = capsys.readouterr().out
  for line in (
    'data           digits: 1,442 images of 10 classes (train), 355 (test)\n',
    'devices        8 x cpu',
    'convolutions   ',
    'batch          16 examples',
    'normalisation  16 examples share statistics',
    'order          within_shards, 16 shards: 15 % of the pairs in a mini-batch',
    'learning rate  0.015, x 0.96 every 0.356 epochs, momentum 0.9',
    'L2             4e-05 on kernels',
    'steps          6 = 0.0665742 epochs = 3 steps of the paper (32 examples',
    f'profile of steps 2 to 2: open {profile}/',
    'evaluation at step 6: top-1',
  ):
    assert line in output
  assert list(final_state(workdir, digits_config).step[None]) == [6]

  # The same command again: nothing left to do, nothing lost.
  again = training.train_and_evaluate(digits_config, workdir)
  assert again == result


def test_a_resumed_run_is_bit_identical(tmp_path, digits_config):
  whole, resumed = str(tmp_path / 'whole'), str(tmp_path / 'resumed')
  training.train_and_evaluate(digits_config, whole)
  training.train_and_evaluate(with_epochs(digits_config, 4), resumed)
  training.train_and_evaluate(digits_config, resumed)
  states = [final_state(path, digits_config) for path in (whole, resumed)]
  jax.tree.map(np.testing.assert_array_equal, *states)
  # A run of four steps logs its last; else the records are the same.
  keys = ('kind', 'step', 'loss', 'top1')
  records = [
    {tuple(r[key] for key in keys) for r in logbook.read_metrics(path)
     if r['kind'] == 'eval'}
    for path in (whole, resumed)
  ]  # fmt: skip
  assert records[0] <= records[1]


@pytest.fixture(scope='module')
def whole_run(tmp_path_factory):
  """An undisturbed run of `digits_config`."""
  with pytest.MonkeyPatch.context() as patch:
    conftest.use_few_rows(patch)
    path = tmp_path_factory.mktemp('whole') / 'run'
    training.train_and_evaluate(conftest.short_digits_config(), str(path))
  return path


def assert_same_end(workdir, whole_run, config):
  states = [final_state(str(path), config) for path in (workdir, whole_run)]
  jax.tree.map(np.testing.assert_array_equal, *states)
  results = [
    json.loads((path / 'result.json').read_text())
    for path in (workdir, whole_run)
  ]
  assert results[0]['loss'] == results[1]['loss']


def flip_array(path):
  data = max((path / 'state').rglob('d/*'), key=lambda p: p.stat().st_size)
  content = bytearray(data.read_bytes())
  content[len(content) // 2] ^= 1
  data.write_bytes(content)
  return data.relative_to(path)


@pytest.mark.slow
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(
  tmp_path, digits_config, whole_run, capsys
):
  workdir = shutil.copytree(whole_run, tmp_path / 'run')
  for place in '6', '6.1':
    file = flip_array(workdir / 'checkpoints' / '6')
    line = (
      f'checkpoint {workdir}/checkpoints/6 is damaged ({file} has changed '
      'since it was written): '
    )
    path = checkpoints.find_checkpoint(str(workdir), None)
    assert path == f'{workdir}/checkpoints/3'
    assert capsys.readouterr().out == f'{line}using {path}\n'
    training.train_and_evaluate(digits_config, str(workdir))
    output = capsys.readouterr().out
    assert f'{line}moved to {workdir}/damaged_checkpoints/{place}\n' in output
    assert f'resuming from {path}\n' in output
    assert_same_end(workdir, whole_run, digits_config)
  assert sorted(os.listdir(workdir / 'damaged_checkpoints')) == ['6', '6.1']

  for step in '3', '6':
    flip_array(workdir / 'checkpoints' / step)
  with pytest.raises(UserError, match=r'all checkpoints in .* \(6: .*; 3: '):
    training.train_and_evaluate(digits_config, str(workdir))
  with pytest.raises(UserError, match=r'all checkpoints in .* \(6: .*; 3: '):
    checkpoints.find_checkpoint(str(workdir), None)
  assert sorted(os.listdir(workdir / 'checkpoints')) == ['3', '6']


def at_step_4(workdir, happens):
  """A Logbook.write before which, when checkpoint 3 is done, it happens."""
  original = logbook.Logbook.write

  def write(self, kind, step, **values):
    if step == 4:
      while not integrity.is_sealed(f'{workdir}/checkpoints/3'):
        time.sleep(0.01)
      happens()
    original(self, kind, step, **values)

  return write


@pytest.mark.slow
def test_a_full_disk_ends_a_run_in_one_line_and_it_goes_on(
  small_disk, digits_config, whole_run, capfd, monkeypatch
):
  workdir = small_disk.path / 'run'
  small_disk.remount('size=8m')
  with monkeypatch.context() as patch:
    fill = functools.partial(small_disk.fill, room=4)  # for the log
    patch.setattr(logbook.Logbook, 'write', at_step_4(workdir, fill))
    with pytest.raises(UserError) as caught:
      training.train_and_evaluate(digits_config, str(workdir))
  assert capfd.readouterr().err == ''
  assert str(caught.value).startswith(
    f'the checkpoint of step 6 could not be written to {workdir}/checkpoints '
    '(No space left on device); the older checkpoints (3)'
  )
  path = checkpoints.find_checkpoint(str(workdir), None)
  assert path == f'{workdir}/checkpoints/3'
  small_disk.empty()
  training.train_and_evaluate(digits_config, str(workdir))
  assert_same_end(workdir, whole_run, digits_config)
  assert sorted(os.listdir(workdir / 'checkpoints')) == ['3', '6']
  assert not (workdir / 'damaged_checkpoints').exists()


@pytest.mark.slow
def test_a_run_notices_that_its_folder_is_gone(
  tmp_path, digits_config, monkeypatch, capfd
):
  workdir = tmp_path / 'run'
  remove = functools.partial(shutil.rmtree, workdir)
  monkeypatch.setattr(logbook.Logbook, 'write', at_step_4(workdir, remove))
  with pytest.raises(UserError) as caught:
    training.train_and_evaluate(digits_config, str(workdir))
  assert str(caught.value) == (
    f'{workdir}/metrics.jsonl was removed or moved during the run: give the '
    'same command again'
  )
  assert not workdir.exists() and capfd.readouterr().err == ''


def colour_folder(root, num_train=64, num_test=16):
  """Digits in colours as PNG files, in folders of two classes."""
  for split, number in (('train', num_train), ('test', num_test)):
    source = make_source('digits', split)
    for index in range(number):
      digit = source[index][0][..., 0]
      image = np.stack([digit, digit // 2, 255 - digit], axis=-1)
      folder = root / split / ('even', 'odd')[index % 2]
      folder.mkdir(parents=True, exist_ok=True)
      cv2.imwrite(str(folder / f'{index:03}.png'), image[..., ::-1])
  return str(root)


@pytest.fixture
def folder_config(digits_config):
  """Trains on `colour_folder`; unusual input, so that it must be recorded."""
  digits_config['source'].update(dataset='image_folder', eval_split='test')
  digits_config['data'].update(num_shards=4)
  digits_config['input_scaling'] = {
    'value_range': (0.0, 1.0), 'mean': (0.4, 0.2, 0.1), 'std': (0.5, 0.5, 0.2),
    'channel_order': 'bgr', 'binary_threshold': 0.0,
  }  # fmt: skip
  digits_config['training'].update(num_epochs=6 * 16 / 64)
  return digits_config


@pytest.fixture
def small_run(tmp_path):
  """Train on a folder of images with it, and the files that say what a run is."""
  config = compose.perceptron('batch_norm,digits').to_dict()
  config.update(batch_size=16, norm_batch_size=16)
  config['source'].update(dataset='image_folder', eval_split='test')
  config['input_scaling']['binary_threshold'] = 0.0
  config['training']['num_epochs'] = 0.5
  workdir = tmp_path / 'run'

  def train(data_dir):
    return training.train_and_evaluate(config, str(workdir), str(data_dir))

  def read():
    names = 'config', 'data', 'manifest', 'result'
    files = [workdir / f'{name}.json' for name in names]
    files.append(workdir / 'metrics.jsonl')
    return {file: file.exists() and file.read_bytes() for file in files}

  return train, read, workdir


def test_other_data_are_refused_in_one_line(tmp_path, small_run):
  train, read, workdir = small_run
  data = tmp_path / 'data'
  colour_folder(data)
  result = train(data)
  assert result['steps'] == 2
  before = read()

  def refused(other, difference):
    with pytest.raises(UserError, match=f'{workdir}.*{difference}.*--workdir'):
      train(other)

  names = 'rename', 'l', 'more', 'fewer', 'reordered'
  renamed, larger, more, fewer, reordered = (tmp_path / name for name in names)
  shutil.copytree(data, renamed)
  for split in 'train', 'test':
    (renamed / split / 'even').rename(renamed / split / 'zero')
  shutil.copytree(data, larger)
  shutil.copy(data / 'train/odd/033.png', larger / 'train/odd/new.png')
  shutil.copytree(data, more)
  shutil.copytree(data / 'train/odd', more / 'train/other')
  shutil.copytree(data, fewer)
  (fewer / 'test/odd/003.png').unlink()
  shutil.copytree(data, reordered)
  (reordered / 'train/odd/003.png').rename(reordered / 'train/odd/z.png')
  for _ in range(2):
    refused(renamed, 'class 0: even -> odd')
    refused(larger, 'training examples: 64 -> 65')
    refused(more, 'number of classes: 2 -> 3')
    refused(fewer, 'evaluation examples: 16 -> 15')
    refused(reordered, 'files of the training split')
    assert read() == before
    # A run of an earlier version has no data.json, but describes its checkpoints.
    (workdir / 'data.json').unlink(missing_ok=True)
    before = read()
  # Where the data lie does not matter.
  shutil.copytree(data, tmp_path / 'copy')
  assert train(tmp_path / 'copy') == result
  facts = json.loads((workdir / 'data.json').read_text())
  assert facts.pop('fingerprint') != facts.pop('eval_fingerprint')
  assert facts == {
    'dataset': 'image_folder', 'split': 'train', 'num_examples': 64,
    'class_names': ['even', 'odd'], 'num_channels': 3,
    'eval_split': 'test', 'num_eval_examples': 16,
  }  # fmt: skip
  # A run may have ended by diverging before its first checkpoint.
  shutil.rmtree(workdir / 'checkpoints')
  diverged = result | {'diverged': True, 'first_nonfinite_step': 2}
  (workdir / 'result.json').write_text(json.dumps(diverged))
  before = read()
  refused(renamed, 'class 0: even -> odd')
  assert train(data) == diverged and read() == before


def test_checkpoints_that_describe_less_are_resumed(
  tmp_path, small_run, monkeypatch
):
  train, read, workdir = small_run
  colour_folder(tmp_path / 'data')
  result = train(tmp_path / 'data')
  assert all(read().values())
  (workdir / 'data.json').unlink()
  read_description = checkpoint.read_description

  def read_older(path):
    description = read_description(path)
    names = 'config', 'class_names', 'num_channels'
    assert set(description) > set(names)
    return {name: description[name] for name in names}

  monkeypatch.setattr(checkpoint, 'read_description', read_older)
  assert train(tmp_path / 'data') == result


@pytest.mark.slow
def test_a_bad_image_ends_a_run_or_is_replaced(tmp_path, folder_config, capsys):
  data_dir, workdir = colour_folder(tmp_path / 'data'), str(tmp_path / 'run')
  bad = tmp_path / 'data' / 'train' / 'odd' / '033.png'
  bad.write_bytes(b'')
  with pytest.raises(UserError, match=f'{bad}: an image of 0 bytes: '):
    training.train_and_evaluate(folder_config, workdir, data_dir)
  folder_config['data']['on_bad_image'] = 'skip'
  result = training.train_and_evaluate(folder_config, workdir, data_dir)
  assert result['steps'] == 6 and result['replaced_examples'] in (1, 2)
  assert (
    capsys.readouterr().out.count(f'replaced a bad image: {bad}\n')
    == (result['replaced_examples'])
  )
  records = logbook.read_metrics(workdir)
  replaced = [r for r in records if r['kind'] == 'replaced']
  assert len(replaced) == result['replaced_examples']
  source = make_source('image_folder', 'train', data_dir)
  assert {source.describe(int(r['index'])) for r in replaced} == {str(bad)}
  starts = json.loads((tmp_path / 'run' / 'manifest.json').read_text())[
    'starts'
  ]
  assert starts[-1]['data'] == {
    'dataset': 'image_folder', 'examples': 64, 'folder': f'{data_dir}/train',
  }  # fmt: skip


@pytest.mark.slow
def test_evaluation_scales_the_input_as_training_did(tmp_path, folder_config):
  data_dir, workdir = colour_folder(tmp_path / 'data'), str(tmp_path / 'run')
  result = training.train_and_evaluate(folder_config, workdir, data_dir)
  path = checkpoints.find_checkpoint(workdir, None)
  description = checkpoint.read_description(path)

  def loss_with(channel_order):
    scaling = description['config']['input_scaling']
    scaling['channel_order'] = channel_order
    with pytest.MonkeyPatch.context() as patch:
      patch.setattr(checkpoint, 'read_description', lambda path: description)
      options = checkpoints.EvaluationOptions(data_dir=data_dir)
      values, _ = checkpoints.evaluate_checkpoints([path], options)
    return values['results']['moving averages']['loss']

  stored = description['config']['input_scaling']['channel_order']
  assert loss_with(stored) == pytest.approx(result['loss'], rel=1e-5)
  assert abs(loss_with('rgb') - result['loss']) > 1e-3


def test_divergence_is_a_result(tmp_path, digits_config, capsys):
  config = digits_config
  config['optimizer']['learning_rate'] = 1e6
  config['model']['use_batch_norm'] = False
  config['training'].update(checkpoint_every_steps=1, log_every_steps=1)
  workdir = str(tmp_path / 'run')
  result = training.train_and_evaluate(config, workdir)
  assert result['diverged'] is True
  assert result['first_nonfinite_step'] == result['steps'] == 2
  assert result['top1'] is None and result['statistics'] == 'none'
  assert 'diverged: loss or gradient was not finite at step 2' in (
    capsys.readouterr().out
  )
  # Giving the command again does not train again.
  log = (tmp_path / 'run' / 'metrics.jsonl').read_bytes()
  assert training.train_and_evaluate(config, workdir) == result
  assert (tmp_path / 'run' / 'metrics.jsonl').read_bytes() == log
  # The last checkpoint is the last finite state.
  state = final_state(workdir, config)
  assert state.step == 1
  assert all(np.isfinite(x).all() for x in jax.tree.leaves(state.params))


@pytest.mark.slow
def test_target_is_reached_at_the_first_evaluation_above_it(
  tmp_path, digits_config
):
  digits_config['training']['target_accuracy'] = 0.0
  result = training.train_and_evaluate(digits_config, str(tmp_path / 'run'))
  assert result['steps_to_target'] == 3


@pytest.mark.slow
def test_a_config_may_have_numbers_of_numpy(tmp_path, digits_config):
  digits_config['seed'] = np.int64(3)
  digits_config['init_from'] = str(tmp_path / 'absent')
  with pytest.raises(UserError, match=f'{tmp_path}/absent does not exist'):
    training.train_and_evaluate(digits_config, str(tmp_path / 'run'))


def test_a_folder_with_another_run_is_refused(tmp_path, digits_config):
  training.train_and_evaluate(with_epochs(digits_config, 1), str(tmp_path))
  before = (tmp_path / 'metrics.jsonl').read_bytes()
  digits_config['optimizer']['momentum'] = 0.5
  with pytest.raises(UserError, match='optimizer.momentum: 0.9 -> 0.5'):
    training.train_and_evaluate(digits_config, str(tmp_path))
  assert (tmp_path / 'metrics.jsonl').read_bytes() == before


def test_a_batch_that_does_not_divide_leaves_no_folder(tmp_path, digits_config):
  digits_config['batch_size'] = 20
  with pytest.raises(UserError, match='batch_size 20 cannot be divided over 8'):
    training.train_and_evaluate(digits_config, str(tmp_path / 'run'))
  assert not (tmp_path / 'run').exists()


@pytest.mark.slow
def test_accumulation_trains_and_resumes(tmp_path, digits_config, capsys):
  digits_config['optimizer']['accumulate_steps'] = 2
  digits_config['norm_batch_size'] = 0
  whole, resumed = str(tmp_path / 'whole'), str(tmp_path / 'resumed')
  training.train_and_evaluate(digits_config, whole)
  output = capsys.readouterr().out
  assert 'batch          16 examples in 2 micro-batches' in output
  assert 'normalisation  8 examples share statistics' in output
  training.train_and_evaluate(with_epochs(digits_config, 3), resumed)
  training.train_and_evaluate(digits_config, resumed)
  states = [final_state(path, digits_config) for path in (whole, resumed)]
  assert states[0].step == 6
  jax.tree.map(np.testing.assert_array_equal, *states)


def test_a_run_without_its_records_is_refused_at_once(
  tmp_path, small_run, monkeypatch
):
  train, read, workdir = small_run
  colour_folder(tmp_path / 'data')
  result = train(tmp_path / 'data')
  path = workdir / 'metrics.jsonl'
  lines = path.read_text().splitlines(keepends=True)

  def fail(*arguments):
    raise AssertionError('it was evaluated or trained')

  def refused(content, message):
    path.unlink(missing_ok=True)
    if content is not None:
      path.write_text(content)
    before = read()
    with (
      pytest.raises(UserError, match=message),
      monkeypatch.context() as patch,
    ):
      patch.setattr(training, '_create_or_restore', fail)
      train(tmp_path / 'data')
    assert read() == before

  refused(None, f'{path} is gone')
  (start,) = (line for line in lines if json.loads(line)['kind'] == 'start')
  for content in '', start:
    refused(content, f'{path} .* ends at step 0, .* step 2: (?!.*step 0 away)')
  # With an earlier checkpoint that the records reach, there is another way.
  step_1 = {'kind': 'train', 'step': 1}
  shutil.copytree(workdir / 'checkpoints/2', workdir / 'checkpoints/1')
  refused(json.dumps(step_1) + '\n', 'ends at step 1, .* after step 1 away')
  shutil.rmtree(workdir / 'checkpoints/1')
  path.write_text(''.join(lines))
  assert train(tmp_path / 'data') == result


@pytest.mark.slow
def test_nothing_is_lost_where_files_are_missing(tmp_path, digits_config):
  config = with_epochs(digits_config, 2)
  workdir = tmp_path / 'run'
  training.train_and_evaluate(config, str(workdir))
  log = (workdir / 'metrics.jsonl').read_bytes()

  # Another config is refused even if config.json was removed.
  (workdir / 'config.json').unlink()
  config['optimizer']['momentum'] = 0.5
  with pytest.raises(UserError, match='another config .*momentum'):
    training.train_and_evaluate(config, str(workdir))
  assert not (workdir / 'config.json').exists()
  config['optimizer']['momentum'] = 0.9

  shutil.move(workdir / 'metrics.jsonl', tmp_path / 'log')
  with pytest.raises(UserError, match='metrics.jsonl is gone'):
    training.train_and_evaluate(config, str(workdir))
  shutil.move(tmp_path / 'log', workdir / 'metrics.jsonl')

  shutil.rmtree(workdir / 'checkpoints')
  with pytest.raises(
    UserError, match='finished run whose checkpoints are gone'
  ):
    training.train_and_evaluate(config, str(workdir))
  assert (workdir / 'metrics.jsonl').read_bytes() == log


def test_a_failing_evaluation_costs_no_steps(
  tmp_path, digits_config, monkeypatch
):
  def fail(*arguments):
    raise RuntimeError('a bad image')

  monkeypatch.setattr(training, 'evaluate', fail)
  digits_config['training']['checkpoint_every_steps'] = 100
  with pytest.raises(RuntimeError, match='a bad image'):
    training.train_and_evaluate(digits_config, str(tmp_path))
  assert final_state(str(tmp_path), digits_config).step == 3


@pytest.mark.slow
def test_a_run_that_was_shortened_is_evaluated(tmp_path, digits_config):
  digits_config['training'].update(eval_every_steps=100, num_epochs=1.0)
  workdir = str(tmp_path)
  stop_after = 4

  class Stopped(Exception):
    pass

  original = logbook.Logbook.write

  def write(self, kind, step, **values):
    if step > stop_after:
      raise Stopped
    original(self, kind, step, **values)

  with pytest.MonkeyPatch.context() as patch, pytest.raises(Stopped):
    patch.setattr(logbook.Logbook, 'write', write)
    training.train_and_evaluate(digits_config, workdir)
  result = training.train_and_evaluate(with_epochs(digits_config, 3), workdir)
  assert result['steps'] == 3 and result['top1'] is not None


def test_an_evaluation_that_is_not_finite_does_not_end_a_run(
  tmp_path, digits_config, monkeypatch
):
  def diverged(*arguments):
    return {'loss': float('nan'), 'top1': 1.0, 'top5': 2.0, 'examples': 355}

  monkeypatch.setattr(training, 'evaluate', diverged)
  result = training.train_and_evaluate(digits_config, str(tmp_path))
  assert result['steps'] == 6 and result['diverged'] is False
  assert result['loss'] is None and result['top1'] == 1.0


@pytest.mark.slow
def test_learning_curve_is_drawn_while_it_trains(tmp_path, monkeypatch):
  config = compose.perceptron('batch_norm,digits').to_dict()
  config['batch_size'] = config['norm_batch_size'] = 64
  config['training'].update(
    num_epochs=6 * 64 / 1442, eval_every_steps=3, checkpoint_every_steps=6
  )
  monkeypatch.setattr(recorder, 'SECONDS_BETWEEN_DRAWINGS', 0.0)
  drawn = []

  def draw(records, path, title):
    drawn.append((records[-1]['kind'], records[-1]['step'], path, title))
    clock[0] += 1000.0  # it takes long, so that the second one comes later

  clock, now = [0.0], time.monotonic
  monkeypatch.setattr(time, 'monotonic', lambda: now() + clock[0])
  monkeypatch.setattr(learning_curve, 'draw', draw)
  training.train_and_evaluate(config, str(tmp_path / 'run'))
  path = str(tmp_path / 'run' / 'learning_curve.png')
  name = config['name']
  # Evaluations are at steps 3 and 6; the last one is at the end of the run.
  assert drawn == [('eval', step, path, name) for step in (3, 6)]


def test_learning_curve_is_drawn_when_a_run_is_stopped(tmp_path, monkeypatch):
  config = compose.perceptron('batch_norm,digits').to_dict()
  config['batch_size'] = config['norm_batch_size'] = 64
  config['training'].update(num_epochs=1.0, checkpoint_every_steps=100)
  workdir, drawn = str(tmp_path / 'run'), []

  def draw(records, path, title):
    saved = checkpoint_folder.list_steps(f'{workdir}/checkpoints')
    drawn.append((records[-1]['step'], path, saved))

  monkeypatch.setattr(learning_curve, 'draw', draw)
  monkeypatch.setattr(
    training.StopRequests,
    'reached',
    lambda self, step: signal.SIGTERM if step == 2 else None,
  )
  with pytest.raises(Interrupted, match='SIGTERM after step 2'):
    training.train_and_evaluate(config, workdir)
  # What stops a run may kill it soon: the checkpoint comes first.
  assert drawn == [(2, f'{workdir}/learning_curve.png', [2])]

"""train.py and eval.py as a user runs them: real processes, real digits."""

import itertools
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time

import cv2
import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from bn_inception.experiment import setup_of_checkpoint
from bn_inception.programs import command_line, presets
from bn_inception.programs.presets import paper
from bn_inception.runs import checkpoint, checkpoint_folder
from bn_inception.runs.logbook import read_metrics
from tests.ports import free_port

ROOT = pathlib.Path(__file__).parents[2]
TRAIN = [sys.executable, 'train.py']
EVAL = [sys.executable, 'eval.py']
EVALUATION = [sys.executable, '-m', 'bn_inception.evaluation']
SHORT = [
  '--config.training.num_epochs=4',  # 180 steps
  '--config.training.log_every_steps=15',
  '--config.training.eval_every_steps=90',
  '--config.training.checkpoint_every_steps=45',
]


@pytest.fixture(scope='module')
def environment(tmp_path_factory):
  """One device, and compiled programs shared by the processes of a test."""
  return {
    **os.environ,
    'JAX_PLATFORMS': 'cpu',
    'JAX_COMPILATION_CACHE_DIR': str(tmp_path_factory.mktemp('cache')),
    'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
  }


def final_state(workdir):
  path = checkpoint_folder.find(str(workdir / 'checkpoints'))
  setup = setup_of_checkpoint(checkpoint.read_description(path))
  return checkpoint.restore(path, setup.abstract_state(), setup.replicated)


@pytest.fixture(scope='module')
def run(environment):
  """Runs a command in the repository, with other variables if given."""

  def run(command, **variables):
    return subprocess.run(
      command,
      cwd=ROOT,
      env=environment | variables,
      capture_output=True,
      text=True,
    )

  return run


@pytest.fixture(scope='module')
def whole(tmp_path_factory, run):
  """The folder of a run of 180 steps, and its result."""
  workdir = tmp_path_factory.mktemp('runs') / 'whole'
  done = run([*TRAIN, *SHORT, f'--workdir={workdir}'])
  assert done.returncode == 0, done.stderr
  return workdir, json.loads((workdir / 'result.json').read_text())


@pytest.mark.slow
def test_killed_run_ends_as_if_it_had_not_been(
  tmp_path, environment, run, whole
):
  workdir, result = whole
  killed = tmp_path / 'killed'
  process = subprocess.Popen(
    [*TRAIN, *SHORT, f'--workdir={killed}'],
    cwd=ROOT,
    env=environment,
    stdout=subprocess.DEVNULL,
  )
  # After a checkpoint was finished and before the next one.
  while not (
    (killed / 'checkpoints' / '45' / 'sha256.json').exists()
    and max(r['step'] for r in read_metrics(str(killed))) >= 60
  ):
    assert process.poll() is None
    time.sleep(0.01)
  process.send_signal(signal.SIGKILL)
  process.wait()
  assert not (killed / 'result.json').exists()
  again = run([*TRAIN, *SHORT, f'--workdir={killed}'])
  assert again.returncode == 0, again.stderr
  assert 'resuming from' in again.stdout
  jax.tree.map(
    np.testing.assert_array_equal, final_state(workdir), final_state(killed)
  )
  other = json.loads((killed / 'result.json').read_text())
  assert result['top1'] == other['top1'] > 80.0
  assert result['loss'] == other['loss']


@pytest.mark.slow
def test_an_evaluation_writes_what_it_is_asked_for(tmp_path, run, whole):
  workdir, result = whole
  refused = run([*EVAL, f'--workdir={workdir}', '--output=eval.py/x.json'])
  assert refused.returncode == 2 and 'top-1' not in refused.stdout
  assert refused.stderr.startswith('error: eval.py/x.json cannot be written')
  saved = tmp_path / 'new' / 'a.npz'
  paths = [str(workdir / 'checkpoints' / step) for step in ('135', '180')]
  ensemble = run(
    [
      *EVAL, '--checkpoint', *paths, f'--output={tmp_path}/new/a.json',
      f'--save_predictions={saved}',
    ]
  )  # fmt: skip
  assert ensemble.returncode == 0, ensemble.stderr
  written = sorted(path.name for path in saved.parent.iterdir())
  assert written == ['a.csv', 'a.json', 'a.npz']
  values = json.loads((tmp_path / 'new' / 'a.json').read_text())
  assert [member['checkpoint'] for member in values['members']] == paths
  evaluated = run([*EVAL, f'--workdir={workdir}'])
  assert evaluated.returncode == 0, evaluated.stderr
  values = json.loads((workdir / 'evaluation_test_180.json').read_text())
  moving = values['results']['moving averages']
  assert moving['top1'] == result['top1'] and values['examples'] == 355
  assert f'top-1       {moving["top1"]:.2f} %' in evaluated.stdout


@pytest.mark.slow
def test_on_eight_devices_the_same_examples_are_right(tmp_path, run, whole):
  workdir, result = whole
  for num_devices in ('1', '8'):
    done = run(
      [
        *EVAL,
        f'--workdir={workdir}',
        f'--output={tmp_path}/{num_devices}.json',
      ],
      JAX_NUM_CPU_DEVICES=num_devices,
    )
    assert done.returncode == 0, done.stderr
  one, eight = (
    json.loads((tmp_path / f'{n}.json').read_text())['results'][
      'moving averages'
    ]
    for n in (1, 8)
  )
  for name in 'examples', 'top1', 'top5':
    assert eight[name] == one[name]
  assert one['top1'] == result['top1']
  assert eight['loss'] == pytest.approx(one['loss'], 1e-5)
  by_class = [(tmp_path / f'{n}.csv').read_text() for n in (1, 8)]
  assert by_class[0] == by_class[1]


@pytest.mark.slow
def test_average_and_classify(tmp_path, run, whole):
  workdir, result = whole
  saved = f'{tmp_path}/a.npz'
  checkpoint_flag = f'--checkpoint={workdir}/checkpoints/180'
  done = run([*EVAL, checkpoint_flag, '--save_predictions', saved])
  assert done.returncode == 0, done.stderr
  # The mean of a network and itself, without running it.
  output = f'{tmp_path}/mean.json'
  mean = run([*EVALUATION, 'average', saved, saved, f'--output={output}'])
  assert mean.returncode == 0, mean.stderr
  summary = json.loads(pathlib.Path(output).read_text())['results']
  assert summary['top1'] == result['top1']
  assert summary['loss'] == pytest.approx(result['loss'], rel=1e-5)
  shown = run([*EVALUATION, 'classify', checkpoint_flag, 'docs/seven.png'])
  assert shown.returncode == 0, shown.stderr
  name, *classes = shown.stdout.splitlines()
  assert name == 'docs/seven.png' and len(classes) == 5
  assert classes[0].endswith(' %  7')


@pytest.mark.slow
def test_a_damaged_checkpoint_is_named_and_the_older_one_used(
  tmp_path, run, whole
):
  workdir = tmp_path / 'copy'
  shutil.copytree(whole[0], workdir)
  step = workdir / 'checkpoints' / '180'
  for path in (step / 'state').glob('**/d/*'):
    damaged = bytearray(path.read_bytes())
    damaged[30] ^= 1
    path.write_bytes(damaged)
  unreadable = run([*EVAL, f'--checkpoint={step}'])
  assert unreadable.returncode == 2
  assert unreadable.stderr.count('\n') == 1
  assert 'checkpoints/180 is damaged: state/' in unreadable.stderr
  before = run([*EVAL, f'--workdir={workdir}'])
  assert before.returncode == 0, before.stderr
  assert f'using {workdir}/checkpoints/135' in before.stdout
  assert (workdir / 'evaluation_test_135.json').exists() and step.exists()


@pytest.mark.slow
def test_another_config_is_refused_in_the_folder_of_a_run(run, whole):
  refused = run([*TRAIN, f'--workdir={whole[0]}', '--config.seed=1'])
  assert refused.returncode == 2
  assert '(seed: 0 -> 1)' in refused.stderr


@pytest.mark.parametrize(
  'command, message',
  [
    (
      [*TRAIN, '--config=configs/bn_x5.py:mnst'],
      "unknown task 'mnst': use one of imagenet, fashion_mnist, ",
    ),
    (
      [*TRAIN, '--config.optimizer.learning_rat=1'],
      "config.optimizer has no key 'learning_rat': it has accumulate_steps, ",
    ),
    (
      [*TRAIN, '--config=configs/paper.py:digits'],
      'configs/paper.py has no function get_config',
    ),
    (
      [*TRAIN, '--config=configs/none.py', '--print_config'],
      'use one of configs/bn_baseline.py, configs/bn_baseline_with.py, ',
    ),
    (
      [*TRAIN, '--diff=configs/bn_x5.py:none'],
      "--diff=configs/bn_x5.py:none: unknown task 'none'",
    ),
    ([*TRAIN, '--flagfile=/missing'], "'/missing'"),
    ([*TRAIN, '--config.batch_size=many'], 'invalid literal for int()'),
    ([*TRAIN, '--workdr=x'], "Unknown command line flag 'workdr'"),
    ([*TRAIN, 'digits'], "unexpected argument 'digits'"),
    (
      [*TRAIN, '--config=configs/bn_x5.py:imagenet', '--data_dir=tests/tfds'],
      'tests/tfds holds no copy of imagenet2012 (it has fashion_mnist:3.0.1): ',
    ),
    (
      [*TRAIN, '--config=configs/bn_x5.py:fashion_mnist', '--data_dir=/no'],
      'data_dir /no does not exist',
    ),
    (
      [*EVAL, '--workdir=/no/run'],
      'workdir /no/run does not exist: train first',
    ),
    ([*EVAL, '--checkpoint=tests'], 'tests is not a checkpoint: give a folder'),
    (
      [*EVAL, '--checkpoint', '--fold'],
      '--checkpoint needs a value or several: --checkpoint runs/a/',
    ),
    (
      [*EVAL, '--checkpoint=tests', '--statistics_batches=3'],
      '--statistics_batches has no effect with --statistics=moving: give ',
    ),
    ([*EVAL, 'a.jpg', '--fold'], "unexpected argument 'a.jpg'"),
    (EVALUATION, 'give a command: average or classify'),
    ([*EVALUATION, 'average'], 'give one file or more'),
    ([*EVALUATION, 'average', 'a.npz', ''], 'an argument is empty'),
    (
      [*EVALUATION, 'average', 'a.npz', '--fold'],
      "Unknown command line flag 'fold'",
    ),
    (
      [*EVALUATION, 'average', 'a.npz', '--output=a.npz'],
      'a.npz would be two files in one: give another --output',
    ),
    (
      [*EVALUATION, 'average', 'a.npz', '--output=eval.py/x.json'],
      'eval.py/x.json cannot be written (Not a directory): give another',
    ),
    ([*EVALUATION, 'classify', '--workdir=tests'], 'give one image or more'),
    (
      [*EVALUATION, 'classify', 'a.jpg', '--checkpoint=tests'],
      'tests is not a checkpoint: give a folder',
    ),
    (
      [*EVALUATION, 'classify', 'a.jpg', '--checkpoint=tests', '--step=9'],
      '--step chooses in --workdir: leave it out with --checkpoint',
    ),
    (
      [*EVAL, '--output=gs://a/b.json'],
      '--output=gs://a/b.json: gs: ',
    ),
    ([*TRAIN, '--init_from='], '--init_from is empty: give it a value'),
    (
      [*TRAIN, '--init_from=/no/9'],
      'checkpoint /no/9 does not exist',
    ),
    (
      [*TRAIN, '--config=configs/from_run.py:'],
      'give the run after the colon: configs/from_run.py:runs/a',
    ),
    (
      [*TRAIN, '--config=configs/from_run.py:/no'],
      '/no/config.json cannot be read',
    ),
  ],
)
def test_bad_input_gets_one_line(tmp_path, environment, command, message):
  if command[1] == 'train.py':
    command = [*command, f'--workdir={tmp_path}/run']
  if command[2] == 'digits':
    command = command[:3]
  done = subprocess.run(
    command, cwd=ROOT, env=environment, capture_output=True, text=True
  )
  assert done.returncode == 2
  lines = done.stderr.splitlines()
  assert len(lines) == 1 and lines[0].startswith('error: ')
  assert message in lines[0]
  offered = lines[0].rpartition('use one of ')[2]
  assert not re.search('configs/(compose|paper|studies).py', offered)
  assert not (tmp_path / 'run').exists()


@pytest.mark.parametrize(
  'program, count',
  [
    ('train.py', 11), ('eval.py', 21), ('study', 11),
    *(
      pytest.param(program, count, marks=pytest.mark.slow)
      for program, count in (
        ('study.report', 8), ('claims', 3), ('dryrun', 4), ('weights', 8),
        ('data', 0), ('evaluation', 0), ('kernels.native', 0),
      )
    ),
  ],
)  # fmt: skip
def test_help_explains_every_flag_with_an_example(environment, program, count):
  is_module = not program.endswith('.py')
  command = ['-m', f'bn_inception.{program}'] if is_module else [program]
  done = subprocess.run(
    [sys.executable, *command, '--help'],
    cwd=ROOT,
    env=environment,
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0 and done.stderr == ''
  text = ' '.join(done.stdout.split()).partition(' flags: ')[2]
  text = text.partition('Try --helpfull')[0]
  descriptions = re.split(r' --(?:\[no\])?(?=[a-z_]+: )', ' ' + text)[1:]
  flags = {d.partition(':')[0]: d for d in descriptions}
  assert len(flags) == count
  for name, description in flags.items():
    assert f'Example: --{name}' in description, name
    assert "'None'" not in description
  if 'config' in flags:
    words = set(re.split('[,;.]? ', flags['config']))
    assert {*presets.names(), *paper.TASKS} <= words


@pytest.mark.slow
def test_a_full_disk_gets_one_line(small_disk, environment):
  done = subprocess.run(
    [
      *TRAIN,
      *SHORT,
      '--config.training.checkpoint_every_steps=1',
      f'--workdir={small_disk.path}/run',
    ],
    cwd=ROOT,
    env=environment,
    capture_output=True,
    text=True,
  )
  assert done.returncode == 2
  assert done.stderr.startswith(
    'error: the checkpoint of step 1 could not be written to '
    f'{small_disk.path}/run/checkpoints (No space left on device); '
  )
  assert done.stderr.count('\n') == 1
  assert 'result:' not in done.stdout


@pytest.mark.slow
def test_a_bad_image_in_a_worker_process_gets_one_line(tmp_path, environment):
  for split, class_name in itertools.product(('train', 'test'), 'ab'):
    folder = tmp_path / 'data' / split / class_name
    folder.mkdir(parents=True)
    for i in range(8):
      cv2.imwrite(str(folder / f'{i}.png'), np.full((8, 8, 3), 9 * i, np.uint8))
  bad = tmp_path / 'data' / 'train' / 'a' / '3.png'
  bad.write_bytes(b'')
  values = {
    'source.dataset': 'image_folder', 'data.num_workers': 2,
    'data.num_shards': 2, 'batch_size': 8, 'norm_batch_size': 8,
  }  # fmt: skip
  done = subprocess.run(
    [
      *TRAIN, f'--workdir={tmp_path}/run', f'--data_dir={tmp_path}/data',
      *(f'--config.{name}={value}' for name, value in values.items()),
    ],
    cwd=ROOT, env=environment, capture_output=True, text=True,
  )  # fmt: skip
  assert done.returncode == 2
  (line,) = done.stderr.splitlines()
  assert line.startswith(f'error: {bad}: an image of 0 bytes: ')


# SIGINT is ignored by a shell's background processes, and by what they start.
_LIKE_A_TERMINAL = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.SIG_DFL)
os.execv(sys.executable, [sys.executable, '-u', *sys.argv[1:]])
"""


def interrupt(command, environment, seconds=None, line=None):
  """Sends SIGINT, by default as soon as something answers; what comes of it.

  Args:
    command, environment: of Python.
    seconds: to wait for.
    line: to wait for.

  Returns:
    Exit status and stderr.
  """
  process = subprocess.Popen(
    [sys.executable, '-c', _LIKE_A_TERMINAL, *command],
    cwd=ROOT,
    env=environment,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )
  if seconds is not None:
    time.sleep(seconds)
  elif line is None:
    while len(os.listdir(f'/proc/{process.pid}/task')) < 2:  # the thread
      time.sleep(0.01)
  else:
    while line not in process.stdout.readline():
      assert process.poll() is None
  process.send_signal(signal.SIGINT)
  _, stderr = process.communicate(timeout=120)
  return process.returncode, stderr


@pytest.mark.parametrize('program', ['train.py', '-m bn_inception.study'])
def test_ctrl_c_while_modules_are_imported_gets_one_line(environment, program):
  found = interrupt([*program.split(), '--status'], environment)
  assert found == (130, 'interrupted\n')


@pytest.mark.slow
def test_ctrl_c_while_compiling_gets_one_line(tmp_path, environment):
  command = ['train.py', f'--workdir={tmp_path}/run']
  # Nothing of it is in the cache.
  environment = environment | {'JAX_COMPILATION_CACHE_DIR': str(tmp_path / 'c')}
  found = interrupt(command, environment, line='compiling the training step')
  assert found == (130, 'interrupted: nothing to save yet\n')
  assert list((tmp_path / 'run' / 'checkpoints').iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize('seconds', [3.0, 4.0, 5.0, 6.0])
def test_ctrl_c_gets_one_line_at_any_time(tmp_path, environment, seconds):
  command = ['-m', 'bn_inception.claims', f'--output={tmp_path}/a.json']
  found = interrupt(command, environment, seconds=seconds)
  assert found == (130, 'interrupted\n')


@pytest.mark.slow
def test_ctrl_c_ends_a_process_that_waits_for_others(tmp_path, environment):
  command = [
    'train.py', f'--workdir={tmp_path}/run', '--num_processes=2',
    '--process_id=0', f'--coordinator_address=127.0.0.1:{free_port()}',
  ]  # fmt: skip
  found = interrupt(command, environment, line='process 0: waiting for the oth')
  assert found == (130, 'interrupted\n')


def run_train(environment, *arguments, cwd=ROOT):
  done = subprocess.run(
    [sys.executable, ROOT / 'train.py', *arguments],
    cwd=cwd, env=environment, capture_output=True, text=True,
  )  # fmt: skip
  assert (done.returncode, done.stderr) == (0, '')
  return [re.split('  +', line) for line in done.stdout.splitlines()]


def test_print_config_says_where_each_value_is_from(tmp_path, environment):
  # Also where Python leaves out the folder of the program.
  lines = run_train(
    {**environment, 'PYTHONSAFEPATH': '1'},
    *('--print_config', '--config.seed=3', '--init_from=/a/9'),
    cwd=tmp_path,
  )
  values = presets.load('configs/bn_x5.py:digits').to_dict()
  assert [line[0] for line in lines] == sorted(flatten_dict(values, sep='.'))
  rows = {key: rest for key, *rest in lines}
  assert rows['seed'] == ['3', 'command line']
  assert rows['init_from'] == ["'/a/9'", 'command line']
  assert rows['optimizer.momentum'] == ['0.9', 'base']
  assert rows['model.dropout_rate'] == ['0.0', 'change remove_dropout']
  assert list(tmp_path.iterdir()) == []


def test_diff_prints_what_differs(environment):
  head, *rows = run_train(
    environment,
    *('--config=configs/bn_x5.py:digits', '--config.seed=3'),
    '--diff=configs/bn_x5_without.py:remove_dropout,digits',
  )
  assert head == ['', '--config', '--diff']
  assert [row[0] for row in rows] == ['model.dropout_rate', 'name', 'seed']
  assert rows[0][1:] == ['0.0', '0.4'] and rows[2][1:] == ['3', '0']


def test_a_program_that_ends_with_a_text_says_it(environment):
  script = (
    'import sys; from bn_inception.programs import command_line; '
    "command_line.run(lambda: sys.exit('no data here'))"
  )
  done = subprocess.run(
    [sys.executable, '-c', script], env=environment, capture_output=True,
    text=True, cwd=ROOT,
  )  # fmt: skip
  assert (done.returncode, done.stderr) == (1, 'no data here\n')


def test_flags_of_several_values_are_repeated():
  arguments = [
    'eval.py', '--checkpoint', 'a/1', 'b,c/1', '--fold', '--checkpoint=d/1',
    'e/1', '--step', '9',
  ]  # fmt: skip
  assert command_line._repeat_flags(arguments, ('checkpoint',)) == [
    'eval.py', '--checkpoint=a/1', '--checkpoint=b,c/1', '--fold',
    '--checkpoint=d/1', '--checkpoint=e/1', '--step', '9',
  ]  # fmt: skip


def test_flags_may_be_in_a_file(tmp_path, monkeypatch, capsys):
  (tmp_path / 'a.flags').write_text(
    '--config=configs/mnist.py:plain\n--workdir=~/a\n'
  )
  monkeypatch.setenv('HOME', str(tmp_path))
  assert command_line._read_flag_files(
    ['train.py', '--flagfile=~/a.flags', '--config.seed=1']
  ) == [
    'train.py', '--config=configs/mnist.py:plain', '--workdir=~/a',
    '--config.seed=1',
  ]  # fmt: skip
  with pytest.raises(SystemExit) as stopped:
    command_line._read_flag_files(['train.py', '--flagfile=/no/where'])
  assert stopped.value.code == 2
  assert "'/no/where'" in capsys.readouterr().err


@pytest.mark.slow
def test_a_run_from_another_folder_with_ones_own_config(tmp_path, environment):
  (tmp_path / 'mine.py').write_text(
    'from configs import compose\n'
    'def get_config():\n'
    "  config = compose.perceptron('batch_norm,digits')\n"
    '  config.training.num_epochs = 0.05\n'
    '  return config\n'
  )

  def run(*arguments):
    return subprocess.run(
      [sys.executable, ROOT / 'train.py', *arguments],
      cwd=tmp_path,
      env={**environment, 'HOME': str(tmp_path / 'home')},
      capture_output=True,
      text=True,
    )

  done = run('--config=mine.py', '--workdir=~/a')
  assert done.returncode == 0, done.stderr
  again = run('--config=~/../mine.py', f'--workdir={tmp_path}/home/a')
  assert again.returncode == 0, again.stderr
  assert 'first step after' in done.stdout
  assert 'first step after' not in again.stdout
  assert not (tmp_path / '~').exists()
  default = run('--config.training.num_epochs=many')
  assert "could not convert string to float: 'many'" in default.stderr
  environment = environment | {'TFDS_DATA_DIR': '~/tfds'}
  no_data = run('--config=configs/bn_x5.py:fashion_mnist')
  assert f'error: {tmp_path}/home/tfds holds no copy' in no_data.stderr

"""docs/extending.md: its entries are added to a copy, its commands and code run."""

import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sys
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bn_inception import layers
from bn_inception.evaluation import checkpoints
from bn_inception.experiment import make_experiment
from bn_inception.runs import checkpoint, json_files
from configs import compose, studies

ROOT = pathlib.Path(__file__).parent.parent
BLOCKS = re.findall(
  r'```(\w+)\n(.*?)```',
  (ROOT / 'docs' / 'extending.md').read_text(),
  re.DOTALL,
)
COMMANDS = [
  line
  for kind, block in BLOCKS
  if kind == 'bash'
  for line in block.splitlines()
]
FILES = {
  'TRIAL_CHANGES': 'configs/paper.py',
  'NETWORKS': 'configs/paper.py',
  'STUDIES': 'configs/studies.py',
  'NONLINEARITIES': 'bn_inception/layers.py',
  'NORMS': 'bn_inception/layers.py',
}
TABLE = re.compile(r'([A-Z_]+) = {\n')
# Each block sees the names of those before.
CODE = [
  block
  for kind, block in BLOCKS
  if kind == 'python' and not TABLE.match(block) and 'get_config' not in block
]


def write_checkpoint(root):
  """An untrained network, as if `make train` had made it."""
  config = compose.preset('bn_x5', 'digits').to_dict()
  config['batch_size'] = config['norm_batch_size'] = 16
  state = make_experiment(config).create_state()
  description = {
    'config': config,
    'num_channels': 1,
    'class_names': [str(i) for i in range(10)],
  }
  folder = root / 'runs' / 'digits'
  with checkpoint.open_checkpoints(str(folder / 'checkpoints'), 1, 0) as saved:
    step = jax.device_put(jnp.int32(1802), state.step.sharding)
    checkpoint.save(saved, state.replace(step=step), description, None)
  json_files.write_json(str(folder / 'config.json'), config)
  (root / 'docs').symlink_to(ROOT / 'docs')


def test_code_runs_in_order(tmp_path, monkeypatch, few_rows, capsys):
  write_checkpoint(tmp_path)
  monkeypatch.chdir(tmp_path)
  monkeypatch.setitem(layers.NORMS, 'instance', None)
  scope = {}
  for block in CODE:
    exec(block, scope)
  assert scope['model'].norm == 'instance'
  assert int(scope['state'].step) == scope['experiment'].num_steps == 23
  loss, evaluated = capsys.readouterr().out.splitlines()[-2:]
  assert 0 < float(loss) < np.log(10) and "'examples': 355" in evaluated
  probabilities = jax.nn.softmax(scope['logits'])
  np.testing.assert_allclose(scope['probabilities'], probabilities, rtol=1e-4)
  assert scope['features'].shape == (1, 8, 8, 8)


@pytest.fixture
def house(tmp_path):
  """A copy of this project to which the document's entries were added."""
  for name in 'configs', 'bn_inception':
    shutil.copytree(ROOT / name, tmp_path / name)
  shutil.copy(ROOT / 'train.py', tmp_path)
  (tmp_path / 'tests').symlink_to(ROOT / 'tests')
  for kind, block in BLOCKS:
    if kind == 'python' and 'get_config' in block:
      (tmp_path / 'smooth.py').write_text(block)
    if kind != 'python' or not TABLE.match(block):
      continue
    name = TABLE.match(block)[1]
    path = tmp_path / FILES[name]
    text = path.read_text().replace(
      f'\n{name} = {{}}\n', f'\n{name} = {{\n}}\n'
    )
    before, head, after = text.partition(f'\n{name} = {{\n')
    assert head, name
    path.write_text(f'{before}\n{block}{after}')
  return tmp_path


def run_in(folder, arguments):
  done = subprocess.run(
    [sys.executable, *arguments],
    cwd=folder,
    env={**os.environ, **studies.QUICK_ENVIRONMENT, 'JAX_PLATFORMS': 'cpu'},
    capture_output=True,
    text=True,
  )
  assert (done.returncode, done.stderr) == (0, ''), arguments
  return done.stdout


RESOLVE = """
import sys
from bn_inception import config_keys, layers
from bn_inception.programs import presets
from bn_inception.experiment import make_model
for argument in sys.argv[1:]:
  name, config = argument.split('=', 1)[1], None
  config = presets.load(name).to_dict()
  config_keys.check_config(config)
  make_model(config, 10)
  print(config['name'], config['optimizer']['label_smoothing'])
print(*[arm.name for arm in presets.studies.STUDIES['smoothing'].arms], sep=',')
print(*[arm.name for arm in presets.studies.STUDIES['trial_changes'].arms], sep=',')
print(*layers.NONLINEARITIES, *layers.NORMS)
"""


def test_entries_are_found(house, few_rows):
  write_checkpoint(house)
  named = [
    word
    for command in COMMANDS
    for word in shlex.split(command)
    if word.startswith('--config=')
  ]
  lines = run_in(house, ['-c', RESOLVE, *named]).splitlines()
  assert lines == [
    'bn_x5-digits 0.0',
    'smooth-digits 0.1',
    'smooth-digits 0.1',
    'bn_x5_with-smooth_labels-digits 0.1',
    'bn_baseline_with-smooth_labels-digits 0.1',
    'group_norm-digits 0.0',
    'inception-digits 0.0',
    'fine_tuned-bn_x5-digits-on-fashion_mnist 0.0',
    'BN-x5,0.1,0.2',
    'BN-x5,with smooth_labels',
    'gelu relu sigmoid rms group',
  ]


@pytest.mark.slow
@pytest.mark.parametrize(
  'command',
  # A study is run by the test of its report.
  [c for c, after in pairwise([*COMMANDS, '']) if '.report' not in after],
)
def test_commands_run(house, command):
  program, *arguments = shlex.split(command)
  assert program == 'python'
  if '1802' in command:
    write_checkpoint(house)
  if arguments[0] == 'train.py' and '--diff' not in command:
    arguments += ['--config.training.num_epochs=0.03', '--workdir=runs/new']
    run_in(house, arguments)
    assert checkpoints.find_checkpoint(str(house / 'runs/new'), None)
    return
  if '.report' in command:  # of the runs of the command before
    run_in(house, shlex.split(COMMANDS[COMMANDS.index(command) - 1])[1:])
  output = run_in(house, arguments)
  if '--diff' in command:
    assert 'optimizer.label_smoothing' in output
  if '.report' in command:
    assert '| 0.2 |' in (house / 'report' / 'report.md').read_text()

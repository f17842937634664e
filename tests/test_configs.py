"""The tables and their composition, against the paper's numbers."""

import functools
import importlib
import json
import os
import pathlib
import shutil
import subprocess
import sys

import pytest
from absl import flags
from flax.traverse_util import flatten_dict

from bn_inception.programs.presets import compose, paper

ROOT = pathlib.Path(__file__).parent.parent

flatten = functools.partial(flatten_dict, sep='.')

IMAGENET_RATES = {  # Section 4.2.2
  'inception': 0.0015,
  'bn_baseline': 0.0015,
  'bn_x5': 0.0075,
  'bn_x30': 0.045,
  'bn_x5_sigmoid': 0.0075,
  'inception_x5': 0.0075,
  'inception_sigmoid': 0.0015,
}


def preset(network, task):
  return flatten(compose.preset(network, task).to_dict())


@pytest.mark.parametrize('network', IMAGENET_RATES)
def test_the_paper_s_networks_have_a_file_of_at_most_15_lines(network):
  module = importlib.import_module(f'configs.{network}')
  for task in paper.TASKS:
    assert module.get_config(task) == compose.preset(network, task)
  assert module.get_config() == compose.preset(network, 'imagenet')
  assert f'--config=configs/{network}.py' in module.__doc__
  assert 'Paper: ' in module.__doc__
  code = pathlib.Path(module.__file__).read_text().splitlines()
  assert len(code) <= 15


@pytest.mark.parametrize('network', paper.NETWORKS)
def test_one_file_takes_every_network(network):
  module = importlib.import_module('configs.network')
  for task in paper.TASKS:
    config = module.get_config(f'{network},{task}')
    assert config == compose.preset(network, task)
  assert module.get_config(network) == compose.preset(network, 'imagenet')
  with pytest.raises(compose.BadValue, match='use one of inception, bn_base'):
    module.get_config()


@pytest.mark.parametrize('network, rate', IMAGENET_RATES.items())
def test_learning_rates_of_the_paper(network, rate):
  config = preset(network, 'imagenet')
  assert config['optimizer.learning_rate'] == pytest.approx(rate, rel=1e-12)


def test_bn_x5_is_inception_with_bn_and_the_seven_changes():
  before, after = preset('inception', 'imagenet'), preset('bn_x5', 'imagenet')
  changed = {k: (before[k], after[k]) for k in before if before[k] != after[k]}
  del changed['name']
  assert changed == {
    'model.use_batch_norm': (False, True),
    'optimizer.learning_rate': (0.0015, pytest.approx(0.0075)),
    'model.dropout_rate': (0.4, 0.0),
    'optimizer.weight_decay': (2e-4, pytest.approx(4e-5)),
    'optimizer.decay_epochs': (8.0, pytest.approx(8 / 6)),
    'model.use_lrn': (True, False),
    'data.shuffle': ('shards', 'within_shards'),
    'augment.photometric_strength': (1.0, 0.5),
  }
  baseline = preset('bn_baseline', 'imagenet')
  assert {k for k in before if before[k] != baseline[k]} == {
    'name',
    'model.use_batch_norm',
  }


@pytest.mark.parametrize('task', paper.TASKS)
@pytest.mark.parametrize('change', paper.CHANGES)
def test_ablations_undo_and_add_exactly_one_change(change, task):
  keys = set(paper.CHANGES[change]) | {'name'}
  full, base = preset('bn_x5', task), preset('bn_baseline', task)
  without = flatten(compose.without('bn_x5', f'{change},{task}').to_dict())
  added = flatten(
    compose.with_changes('bn_baseline', f'{change},{task}').to_dict()
  )
  assert {k for k in full if full[k] != without[k]} == keys
  assert {k for k in base if base[k] != added[k]} == keys
  for key in paper.CHANGES[change]:
    assert without[key] == base[key] and added[key] == full[key]


def test_the_ensemble_has_six_modifications_of_bn_x30():
  base = preset('bn_x30', 'digits')
  allowed = {
    'name', 'seed', 'model.initial_scale', 'model.dropout_rate',
    'model.per_activation_modules',
  }  # fmt: skip
  members = []
  for number in '123456':
    config = flatten(compose.ensemble_member(f'{number},digits').to_dict())
    assert config['name'] == f'ensemble-{number}-digits'
    assert config['seed'] == int(number)
    changed = {k: config[k] for k in base if base[k] != config[k]}
    assert set(changed) <= allowed and len(changed) > 2
    assert config['model.dropout_rate'] in (0.0, 0.05, 0.1)
    members.append({k: v for k, v in changed.items() if 'model' in k})
  assert all(a != b for i, a in enumerate(members) for b in members[:i])
  module = importlib.import_module('configs.ensemble')
  config = module.get_config('3')
  assert config.source.dataset == 'imagenet2012'
  assert config.optimizer.learning_rate == pytest.approx(0.045)


def test_several_changes_and_their_name():
  argument = 'remove_dropout,reduce_weight_decay,digits'
  config = compose.without('bn_x5', argument)
  assert config.name == (
    'bn_x5_without-remove_dropout-reduce_weight_decay-digits'
  )
  assert config.model.dropout_rate == 0.4
  assert config.optimizer.weight_decay == 2e-4
  assert compose.without('bn_x5', 'remove_dropout').source.dataset == (
    'imagenet2012'
  )


@pytest.mark.parametrize(
  'make, message',
  [
    (
      lambda: compose.preset('bn_x5', 'mnst'),
      "unknown task 'mnst': use one of i",
    ),
    (
      lambda: compose.preset('bnx5', 'digits'),
      "unknown network 'bnx5': use one",
    ),
    (lambda: compose.without('bn_x5', 'remove_dropot'), "task 'remove_dropot'"),
    (
      lambda: compose.without('bn_x5', 'remove_dropout,mnst'),
      "task 'mnst': the",
    ),
    (
      lambda: compose.without('bn_x5', 'digits'),
      'name a change: one of increase',
    ),
    (lambda: compose.with_changes('bn_baseline', ''), "change or task ''"),
    (
      lambda: compose.with_changes('bn_x5', 'remove_dropout'),
      "change or task 'remove_dropout': the changes are none",
    ),
    (
      lambda: compose.ensemble_member('7'),
      "unknown member '7': use one of 1, 2, 3",
    ),
    (lambda: compose.ensemble_member('1,mnst'), "unknown task 'mnst'"),
  ],
)
def test_misspelt_names_list_the_valid_ones(make, message):
  with pytest.raises(flags.IllegalFlagValueError, match=message):
    make()


@pytest.mark.parametrize('dataset', paper.PERCEPTRON_DATASETS)
def test_perceptrons_are_those_of_section_4_1(dataset):
  module = importlib.import_module('configs.mnist')
  plain = flatten(module.get_config(f'plain,{dataset}').to_dict())
  normalised = flatten(module.get_config(f'batch_norm,{dataset}').to_dict())
  changed = {k for k in plain if plain[k] != normalised[k]}
  # Each has the best rate of its own search.
  assert changed == {
    'name', 'model.use_batch_norm', 'optimizer.learning_rate'
  }  # fmt: skip
  assert plain['batch_size'] == 60
  assert plain['training.num_epochs'] * 60_000 / 60 == 50_000
  assert plain['model.hidden_sizes'] == (100, 100, 100)
  assert plain['source.dataset'] == dataset
  assert module.get_config().source.dataset == 'mnist'
  with pytest.raises(flags.IllegalFlagValueError, match='unknown data set'):
    module.get_config('plain,cifar')
  with pytest.raises(flags.IllegalFlagValueError, match='unknown perceptron'):
    module.get_config('bn')


def test_configs_are_locked():
  config = compose.preset('bn_x5', 'digits')
  with pytest.raises(AttributeError):
    config.optimizer.learning_rat = 1.0


def test_the_config_of_a_run_in_the_home_folder(tmp_path, monkeypatch):
  values = compose.preset('bn_x5', 'digits').to_dict()
  (tmp_path / 'config.json').write_text(json.dumps(values))
  monkeypatch.setenv('HOME', str(tmp_path.parent))
  config = compose.from_run(f'~/{tmp_path.name}')
  assert config.name == 'like-bn_x5-digits'
  with pytest.raises(compose.BadValue, match='give the folder of a run'):
    compose.from_run('~nobody-here/a')


def test_the_config_of_an_older_run_is_completed(tmp_path):
  for config in (
    compose.preset('bn_x5', 'digits'), compose.perceptron('batch_norm,digits')
  ):  # fmt: skip
    values = config.to_dict()
    values['model'].pop('epsilon')
    values['optimizer'].pop('nesterov')
    values['data']['mirror'] = True
    (tmp_path / 'config.json').write_text(json.dumps(values))
    found = compose.from_run(str(tmp_path))
    assert found.model.epsilon == 1e-3 and found.optimizer.nesterov is False
    assert found.data.mirror is True and found.training.log_every_steps == 0
    assert flatten(found.to_dict()).keys() == flatten(config.to_dict()).keys()
    origins = compose.origins(found)
    assert origins['model.epsilon'] == 'base'
    assert origins['data.mirror'] == f'run {tmp_path}'
    assert origins['data.shuffle'] == 'from_run'
  values['model']['unheard_of'] = 1
  (tmp_path / 'config.json').write_text(json.dumps(values))
  with pytest.raises(compose.BadValue, match='sets model.unheard_of'):
    compose.from_run(str(tmp_path))
  (tmp_path / 'config.json').write_text('[]')
  with pytest.raises(compose.BadValue, match='does not hold the config of a r'):
    compose.from_run(str(tmp_path))


def test_origins_are_the_layers_of_a_config(monkeypatch):
  monkeypatch.setitem(paper.TRIAL_CHANGES, 'tried', {'model.width': 0.5})
  config = compose.with_changes('bn_x5', 'tried,digits')
  config.seed = 3
  found = compose.origins(config)
  assert found.keys() == flatten(config.to_dict()).keys()
  expected = {
    'optimizer.momentum': 'base',
    'source.dataset': 'task digits',
    'model.use_batch_norm': 'network bn_x5',
    'model.dropout_rate': 'change remove_dropout',
    'optimizer.learning_rate': 'task digits x 5 by change '
    'increase_learning_rate',
    'model.width': 'change tried',
    'seed': 'config file',
    'name': 'preset',
  }
  assert {key: found[key] for key in expected} == expected
  found = compose.origins(compose.ensemble_member('2,digits'))
  assert found['model.dropout_rate'] == 'ensemble member 2'
  found = compose.origins(compose.perceptron('plain,digits'))
  assert found['optimizer.learning_rate'] == 'network plain'
  assert found['data.image_size'] == 'task digits'


# One line each, before the line that begins so.
ENTRIES = (
  ('paper.py', 'TRIAL_CHANGES = {', "  'tried': {'optimizer.nesterov': True},"),
  ('paper.py', 'CHANGES = {', "  'eighth': {'optimizer.momentum': 0.8},"),
  (
    'paper.py',
    'NETWORKS = {',
    "  'bn_x9': Network('BN-x9', _BATCH_NORM, {'x9': {'model.width': 9.0}}),",
  ),
  (
    'studies.py',
    'STUDIES = {',
    "  'mine': Study('My study', (Arm('my arm', 'mnist', 'batch_norm'),), "
    "('digits',), (0,)),",
  ),
  (
    'studies.py',
    "  'figure1': Study(",
    "    'Figure 1', (_PLAIN, Arm('an arm', 'mnist', 'plain', {_RATE: 0.2})),",
  ),
)


@pytest.fixture
def house(tmp_path):
  """A copy of this project to which the entries were added."""
  shutil.copytree(ROOT / 'configs', tmp_path / 'configs')
  for name in 'bn_inception', 'tests':
    (tmp_path / name).symlink_to(ROOT / name)
  for name, head, line in ENTRIES:
    path = tmp_path / 'configs' / name
    text = path.read_text().replace(f'{head}}}', f'{head}\n}}')
    before, found, after = text.partition(f'\n{head}\n')
    assert found, head
    if head.startswith(' '):  # instead of the title and the arms
      after = after.partition('(_PLAIN, _BATCH_NORM),\n')[2]
    path.write_text(f'{before}{found}{line}\n{after}')
  return tmp_path


def run_in(folder, *command):
  done = subprocess.run(
    [sys.executable, *command],
    cwd=folder,
    env={**os.environ, 'JAX_PLATFORMS': 'cpu'},
    capture_output=True,
    text=True,
  )
  assert (done.returncode, done.stderr) == (0, '')
  return done.stdout


MADE_UP = """
from bn_inception.programs.presets import studies
from bn_inception.study import report, runs
from tests.study import study_files
selection = runs.Selection('runs', is_quick=True)
names = ['leave_one_out', 'trial_changes', 'figure2', 'figure1']
for name in names:
  study_files.write_many(runs.list_runs(name, selection))
report.make_report(names, selection, 'report')
"""


def test_one_entry_in_one_file_is_enough(house):
  run_in(house, '-c', MADE_UP)
  sections = (house / 'report' / 'report.md').read_text().split('\n## ')[1:]
  for study, row in (
    ('leave_one_out', 'without eighth'),
    ('trial_changes', 'with tried'),
    ('figure2', 'BN-x9'),
    ('figure1', 'an arm'),
  ):
    [section] = [s for s in sections if s.startswith(f'{study}\n')]
    assert f'| {row} |' in section, row


@pytest.mark.slow
def test_a_study_of_one_s_own_is_trained_and_reported(house):
  flags = '--study=mine', '--quick', '--runs=runs'
  run_in(house, '-m', 'bn_inception.study', *flags)
  run_in(house, '-m', 'bn_inception.study.report', *flags, '--out=report')
  text = (house / 'report' / 'report.md').read_text()
  assert '## mine' in text and 'My study' in text and '| my arm |' in text

"""Studies as lists of runs: what they consist of, and which results are theirs."""

import functools
import json
import os
import pathlib
import shlex
import sys

import pytest
from flax.traverse_util import flatten_dict

from bn_inception import config_keys
from bn_inception.errors import UserError
from bn_inception.programs import presets
from bn_inception.programs.presets import compose, paper, studies
from bn_inception.steps import RESULTS_VERSION
from bn_inception.study import archive
from bn_inception.study import runs as study_runs
from bn_inception.study.runs import BEGUN, FINISHED, NOT_BEGUN, TRAINED

flatten = functools.partial(flatten_dict, sep='.')

COMMITTED = pathlib.Path(__file__).parents[2] / 'results' / 'study'
VERSION = f'v{RESULTS_VERSION}'


def runs_of(name, root='runs', **options):
  selection = study_runs.Selection(str(root), **options)
  return study_runs.list_runs(name, selection)


def write_result(run, root, **values):
  folder = root / run.folder.rpartition('/')[2]
  folder.mkdir(parents=True, exist_ok=True)
  (folder / 'config.json').write_text(json.dumps(run.config))
  (folder / 'metrics.jsonl').write_text('{"kind": "start", "step": 1}\n')
  if values:
    (folder / 'result.json').write_text(json.dumps(values))
  return folder


def test_figure_2_is_the_seven_networks_with_both_initial_weights():
  runs = runs_of('figure2')
  assert len(runs) == 7 * 2 * 3
  names = {run.config['name'] for run in runs}
  tasks = 'fashion_mnist_5k', 'fashion_mnist_5k_xavier'
  assert names == {f'{n}-{t}' for n in paper.NETWORKS for t in tasks}
  assert {run.seed for run in runs} == {0, 1, 2}
  first = runs[0]
  expected = compose.preset('inception', 'fashion_mnist_5k').to_dict()
  assert first.config == json.loads(json.dumps(expected))
  scales = {run.task: run.config['model']['initial_scale'] for run in runs}
  assert scales == {tasks[0]: 1.0, tasks[1]: pytest.approx(0.5**0.5)}


@pytest.mark.parametrize(
  'name, first', [('leave_one_out', 'bn_x5'), ('add_one_in', 'bn_baseline')]
)
def test_ablations_are_one_run_for_each_change(name, first):
  runs = [run for run in runs_of(name) if run.seed == 1]
  assert len(runs) == 1 + len(paper.CHANGES)
  reference = flatten(runs[0].config)
  assert reference['name'] == f'{first}-fashion_mnist_5k'
  for run, change in zip(runs[1:], paper.CHANGES, strict=True):
    values = flatten(run.config)
    changed = {k for k in values if values[k] != reference[k]} - {'name'}
    assert changed == set(paper.CHANGES[change])


def test_learning_rates_are_the_paper_s_multiples():
  runs = [run for run in runs_of('learning_rates') if run.seed == 0]
  base = runs[4].config['optimizer']['learning_rate']
  assert runs[4].config['name'] == 'inception-fashion_mnist_5k'
  factors = [run.config['optimizer']['learning_rate'] / base for run in runs]
  assert factors == pytest.approx([1, 5, 30, 100] * 2)
  assert [r.config['model']['use_batch_norm'] for r in runs] == (
    [True] * 4 + [False] * 4
  )


def test_runs_that_studies_share_are_the_same(tmp_path):
  of_figure = {r.folder for r in runs_of('figure2')}
  others = {r.folder for r in runs_of('learning_rates')}
  assert len(of_figure & others) == 4 * 3  # BN-x5, BN-x30, Inception, -x5
  # By another name too: the folder is found by what the run is.
  run = runs_of('leave_one_out', tmp_path)[0]
  folder = tmp_path / f'other-seed0-{run.identity}'
  folder.mkdir()
  assert runs_of('figure2', tmp_path)[2].folder == str(folder)


@pytest.mark.filterwarnings('ignore:the load_module:DeprecationWarning')
def test_arguments_give_the_config_of_the_run(monkeypatch):
  from absl import flags
  from ml_collections import config_flags

  for run in runs_of('learning_rates') + runs_of('figure1', is_quick=True):
    # Where ml_collections finds the overrides.
    monkeypatch.setattr('sys.argv', ['train.py', *run.arguments])
    values = flags.FlagValues()
    holder = config_flags.DEFINE_config_file('config', flag_values=values)
    values(sys.argv)
    found = json.loads(json.dumps(holder.value.to_dict()))
    assert found == run.config


def test_other_values_and_other_versions_are_other_runs(tmp_path, monkeypatch):
  run = runs_of('figure2', tmp_path)[0]
  values = study_runs.values_hash(run.config)
  assert run.identity == f'{VERSION}-{values}'
  assert run.folder == str(
    tmp_path / f'inception-fashion_mnist_5k-seed0-{VERSION}-{values}'
  )
  changed = json.loads(json.dumps(run.config))
  changed['optimizer']['momentum'] = 0.8
  assert study_runs.values_hash(changed) != values
  changed = run.config | {'name': 'x', 'eval_batch_size': 7}
  assert study_runs.values_hash(changed) == values
  write_result(run, tmp_path, diverged=True)
  assert runs_of('figure2', tmp_path)[0].status() == FINISHED
  assert study_runs.others([run], str(tmp_path)) == []
  monkeypatch.setattr(study_runs, 'RESULTS_VERSION', RESULTS_VERSION + 1)
  other = runs_of('figure2', tmp_path)
  assert other[0].status() == NOT_BEGUN
  assert study_runs.others(other, str(tmp_path)) == [run.folder]


@pytest.mark.parametrize('code', ['a10698ab', '79088d3f'])
def test_folders_that_name_a_hash_of_the_code_are_of_version_1(tmp_path, code):
  run = runs_of('figure2', tmp_path)[0]
  values = run.identity.partition('-')[2]
  folder = tmp_path / f'inception-fashion_mnist_5k-seed0-{code}-{values}'
  folder.mkdir()
  assert runs_of('figure2', tmp_path)[0].folder == str(folder)


def test_committed_runs_are_those_of_the_studies():
  runs = [run for name in studies.STUDIES for run in runs_of(name)]
  assert {run.identity for run in runs} == set(archive.read(str(COMMITTED)))


def test_a_newer_key_counts_only_when_it_changes_something(monkeypatch):
  run = runs_of('figure2')[0]
  newer = config_keys.KEYS['model.per_activation_modules']._replace(
    legacy_value=[]
  )
  monkeypatch.setitem(config_keys.KEYS, 'model.new', newer)
  config = json.loads(json.dumps(run.config))
  config['model']['new'] = []
  assert study_runs.values_hash(config) == study_runs.values_hash(run.config)
  config['model']['new'] = [2]
  assert study_runs.values_hash(config) != study_runs.values_hash(run.config)


def test_status_says_how_far_a_run_is(tmp_path):
  run = runs_of('figure2', tmp_path)[0]
  assert run.status() == NOT_BEGUN and run.result() is None
  folder = write_result(run, tmp_path)
  assert run.status() == BEGUN
  write_result(run, tmp_path, diverged=False, top1=50.0)
  assert run.status() == TRAINED and run.evaluation() is None
  (folder / 'evaluation.json').write_text('{"results": {}}')
  assert run.status() == FINISHED
  assert run.evaluation() == {'results': {}}
  assert run.result()['top1'] == 50.0


def test_commands_of_a_run():
  run = runs_of('leave_one_out', seeds=[7])[2]
  train, evaluate = run.shell_line('/data/a b').split(' && ')
  assert shlex.split(train) == [
    'python', '-m', 'bn_inception.train',
    '--config=configs/bn_x5_without.py:remove_dropout,fashion_mnist_5k',
    '--config.seed=7', f'--workdir={run.folder}', '--data_dir=/data/a b',
  ]  # fmt: skip
  assert shlex.split(evaluate) == [
    'python', '-m', 'bn_inception.eval', f'--workdir={run.folder}',
    f'--output={run.folder}/evaluation.json', '--statistics=both',
    '--statistics_batches=100', '--split=test', '--data_dir=/data/a b',
  ]  # fmt: skip
  plain = runs_of('figure2', tasks=['imagenet'])[0].evaluate_command(None)
  assert not any('statistics' in word or 'split' in word for word in plain)


def test_a_folder_with_other_configs_does_not_change_a_study(
  tmp_path, monkeypatch
):
  before = runs_of('leave_one_out')[1]
  monkeypatch.chdir(tmp_path)
  assert runs_of('leave_one_out')[1].arguments == before.arguments
  (tmp_path / 'configs').mkdir()
  (tmp_path / 'configs' / 'bn_x5_without.py').write_text('')
  run = runs_of('leave_one_out')[1]
  assert run.config == before.config
  name = run.arguments[0].removeprefix('--config=').partition(':')[0]
  assert os.path.samefile(name, presets.FOLDER / 'bn_x5_without.py')


def test_a_home_folder_is_no_other_value(monkeypatch):
  monkeypatch.setenv('HOME', '/home/u')
  short, whole = (
    runs_of('figure1', values={'init_from': path})[0]
    for path in ('~/a/9', '/home/u/a/9')
  )
  assert short.identity == whole.identity and short.config == whole.config
  assert short.config['init_from'] == '/home/u/a/9'


def test_names_that_are_not_there():
  with pytest.raises(
    UserError, match="no study 'figure3': use some of figure1"
  ):
    runs_of('figure3')


def test_every_study_resolves_for_every_task_and_quickly():
  for name, study in studies.STUDIES.items():
    names = [arm.name for arm in study.arms]
    assert len(set(names)) == len(names)
    assert runs_of(name) and runs_of(name, is_quick=True)
  quick = runs_of('figure2', is_quick=True)
  assert len(quick) == 7
  assert quick[0].config['training']['num_epochs'] == 1.0

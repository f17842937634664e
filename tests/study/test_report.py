"""The program: which runs, and what is written."""

import csv
import json
import pathlib
import shutil
import subprocess
import sys

import pytest

from bn_inception.claims import __main__ as claims
from bn_inception.errors import UserError
from bn_inception.steps import RESULTS_VERSION
from bn_inception.study import report
from bn_inception.study import runs as study_runs
from configs import studies
from configs.studies import Arm, Study
from tests.study.study_files import write_run

ROOT = pathlib.Path(__file__).parents[2]
RESULTS = ROOT / 'results' / 'study'


def quick_runs(name, root):
  selection = study_runs.Selection(str(root), is_quick=True)
  return study_runs.list_runs(name, selection)


def finish(runs):
  for run in runs:
    has_batch_norm = run.config['model']['use_batch_norm']
    population = {30: 52.0, 60: 62.0} if has_batch_norm else None
    write_run(run, {30: 50.0, 60: 60.0}, population, 61.0, 63.0)


@pytest.fixture
def runs(tmp_path):
  found = quick_runs('figure2', tmp_path / 'runs')
  finish(found[:2])
  write_run(found[5], {}, diverged_at=41, wall_seconds=900.0)
  return found


def make(tmp_path, out='out', root='runs', names=('figure2',), **more):
  folder = tmp_path / out
  report.make_report(
    list(names),
    study_runs.Selection(str(tmp_path / root), is_quick=True),
    str(folder),
    **more,
  )
  return folder


def read_csv(path):
  with open(path, newline='') as file:
    return list(csv.DictReader(file))


def test_all_studies_without_most_of_their_runs(runs, tmp_path, capsys):
  out = make(tmp_path, names=list(studies.STUDIES))
  names = {path.name for path in out.iterdir()}
  assert names == {
    'report.html', 'report.md', 'figures', 'tables', 'figure2.jsonl',
  }  # fmt: skip
  printed = capsys.readouterr().out
  assert (
    'figure2              3 of 7 runs' in printed and 'report.html' in printed
  )
  # BN-x5 and the two without BN are of other studies too.
  assert 'learning_rates       2 of 8 runs' in printed
  rows = read_csv(out / 'tables' / 'runs.csv')
  assert len(rows) == sum(len(s.arms) for s in studies.STUDIES.values())
  text = (out / 'report.md').read_text()
  assert all(f'## {name}\n' in text for name in studies.STUDIES)


def test_links_name_the_line_of_a_run(runs, tmp_path):
  out = make(tmp_path)
  text = (out / 'report.md').read_text()
  names = [pathlib.Path(runs[i].folder).name for i in (0, 1, 5)]
  for name in names:
    assert f'seed 0: [{name}](figure2.jsonl#{name})' in text
  lines = (out / 'figure2.jsonl').read_text().splitlines()
  assert [json.loads(line)['name'] for line in lines] == names
  assert '1 run; diverged at step 41' in text


def contents(folder):
  return {
    str(path.relative_to(folder)): path.read_bytes()
    for path in folder.rglob('*')
    if path.is_file()
  }


def test_report_can_be_made_again_from_its_own_archive(runs, tmp_path):
  out = make(tmp_path, names=['figure2', 'learning_rates'])
  first = contents(out)
  assert len(first) > 10
  shutil.rmtree(tmp_path / 'runs')
  make(tmp_path, root='out', names=['figure2', 'learning_rates'])
  assert contents(out) == first
  again = make(
    tmp_path, out='again', root='out', names=['figure2', 'learning_rates']
  )
  assert contents(again) == first


def test_report_of_the_committed_archive_is_the_committed_one(
  tmp_path, monkeypatch
):
  drawn = []
  monkeypatch.setattr(
    report.report_figures, 'draw', lambda plot, _: drawn.append(plot)
  )
  selection = study_runs.Selection(str(RESULTS))
  report.make_report(list(studies.STUDIES), selection, str(tmp_path))
  made = (tmp_path / 'report.md').read_text()
  assert made == (RESULTS / 'report.md').read_text()
  for path in sorted(RESULTS.glob('*.jsonl')):
    assert (tmp_path / path.name).read_bytes() == path.read_bytes()
  tables = sorted(RESULTS.glob('tables/*.csv'))
  assert {p.name for p in tables} == {p.name for p in tmp_path.glob('tables/*')}
  for path in tables:
    for row, committed in zip(
      read_csv(tmp_path / 'tables' / path.name), read_csv(path), strict=True
    ):
      assert list(map(_number, row.values())) == list(
        map(_number, committed.values())
      )
  figures = {
    f'{name}.svg'
    for plot in drawn
    for name in report.report_figures.file_names(plot).values()
  }
  assert figures == {path.name for path in RESULTS.glob('figures/*')}


def _number(text):
  """Numbers may differ in their last digits between versions of SciPy."""
  try:
    return pytest.approx(float(text), rel=1e-9)
  except ValueError:
    return text


def test_tables_have_texts_and_numbers(runs, tmp_path):
  tables = make(tmp_path) / 'tables'
  rows = read_csv(tables / 'figure2_digits_population.csv')
  assert [row['network'] for row in rows] == [run.arm for run in runs]
  best = 'best validation accuracy (%)'
  assert rows[1][best] == '62.00 (one seed)'
  assert float(rows[1][f'{best}: mean']) == 62.0
  assert float(rows[1]['steps to the target: mean']) == 60.0
  assert rows[1]['names of runs'] == pathlib.Path(runs[1].folder).name
  assert rows[5][best] == 'diverged at step 41' and rows[2]['runs'] == 'not run'
  points = read_csv(tables / 'curves.csv')
  assert {p['plot'] for p in points} == {'figure2_digits'}
  assert [(p['statistics'], p['label'], float(p['mean'])) for p in points[:4]] == [
    ('population', 'Inception', 50.0), ('population', 'Inception', 60.0),
    ('population', 'BN-Baseline', 52.0), ('population', 'BN-Baseline', 62.0),
  ]  # fmt: skip
  each = read_csv(tables / 'runs.csv')
  assert [row['status'] for row in each[:3]] == [
    'finished',
    'finished',
    'not begun',
  ]
  assert each[5]['diverged_at'] == '41' and each[5]['file'] == 'figure2.jsonl'
  assert each[1]['final top1, population'] == '63.0'


def test_costs_count_shared_runs_once(runs, tmp_path):
  text = (make(tmp_path, names=['figure2', 'learning_rates'], cores_per_run=2)
          / 'report.md').read_text()  # fmt: skip
  # Half an hour, twice, and a quarter, of two cores.
  assert '| figure2 | 3 of 7 | 1 | 1.25 | 2.50 |' in text
  assert '| learning_rates | 2 of 8 | 1 | 0.75 | 1.50 |' in text
  assert '| all | 3 of 11 | 1 | 1.25 | 2.50 |' in text
  assert 'times the 2 core(s)' in text


def test_facts_are_of_the_manifests(runs, tmp_path):
  text = (make(tmp_path) / 'report.md').read_text()
  assert '- runs: 3, of 2026-01-02 to 2026-01-02' in text
  assert '- commit: c0ffee0000\n' in text and '- devices: 2 x cpu\n' in text
  assert '- versions: python 3.11.9, jax 0.10.2\n' in text
  assert f'- results version: {RESULTS_VERSION}\n' in text


def test_a_study_of_ones_own_is_shown(tmp_path, monkeypatch):
  arms = (
    Arm('three', 'bn_x5', values={'optimizer.learning_rate': 0.3}),
    Arm('plain', 'inception'),
  )
  study = Study('Mine', arms, ('digits',), (0, 1))
  monkeypatch.setitem(studies.STUDIES, 'mine', study)
  runs = study_runs.list_runs('mine', study_runs.Selection(str(tmp_path)))
  write_run(runs[0], {30: 50.0}, {30: 52.0}, 61.0, 63.0)
  write_run(runs[2], {30: 50.0}, {30: 54.0}, 61.0, 65.0)
  report.make_report(
    ['mine'], study_runs.Selection(str(tmp_path)), str(tmp_path / 'out')
  )
  three, plain = read_csv(tmp_path / 'out' / 'tables' / 'mine_digits.csv')
  assert three['arm'] == 'three' and plain['arm'] == 'plain'
  assert float(three['final, population (%): mean']) == 64.0
  assert float(three['best validation, moving averages (%): mean']) == 50.0
  assert float(three['validation at the end, population (%): mean']) == 53.0
  assert plain['final, moving averages (%)'] == plain['runs'] == 'not run'
  text = (tmp_path / 'out' / 'report.md').read_text()
  assert '## mine\n\nMine.\n' in text


def test_committed_results_are_no_default():
  done = subprocess.run(
    [sys.executable, '-m', 'bn_inception.study.report', '--helpfull'],
    cwd=ROOT, capture_output=True, text=True,
  )  # fmt: skip
  assert done.returncode == 0 and "(default: 'results" not in done.stdout
  assert claims.DEFAULT_OUTPUT.startswith('runs/')


def test_folder_without_runs(tmp_path):
  with pytest.raises(UserError, match='absent holds no finished runs of'):
    make(tmp_path, root='absent')


def test_runs_of_another_version_are_not_taken(runs, tmp_path, monkeypatch):
  monkeypatch.setattr(study_runs, 'RESULTS_VERSION', RESULTS_VERSION + 1)
  with pytest.raises(UserError, match='but 3 others: .* another version'):
    make(tmp_path)


def test_unknown_study(runs, tmp_path):
  with pytest.raises(
    UserError, match="no study 'figure3': use some of figure1, "
  ):
    make(tmp_path, names=['figure3'])


@pytest.mark.parametrize('content', ['{', '{}', '[]', '{"starts": [{}]}', None])
@pytest.mark.parametrize(
  'name',
  [
    'config.json', 'manifest.json', 'metrics.jsonl', 'result.json',
    'evaluation.json',
  ],
)  # fmt: skip
def test_damage_is_named_and_the_report_is_made(
  runs, tmp_path, monkeypatch, capsys, name, content
):
  monkeypatch.setattr(report.report_figures, 'draw', lambda *_: None)
  path = pathlib.Path(runs[0].folder) / name
  path.unlink()
  if content is not None:
    path.write_text(content + '\n')
  out = make(tmp_path)
  is_counted = name in ('manifest.json', 'metrics.jsonl', 'evaluation.json')
  is_absent = content is None and name in ('result.json', 'evaluation.json')
  printed = capsys.readouterr().out
  count = 3 if is_counted and not is_absent else 2
  assert f'{count} of 7 runs' in printed
  text = (out / 'report.md').read_text()
  if is_absent:  # not finished, which the report says in its own way
    assert 'damaged' not in text and 'damaged' not in printed
    return
  assert f'damaged: {path} ' in printed
  assert f'- damaged: {path.parent.name}/{name} ' in text
  assert str(tmp_path) not in text


def test_a_seed_that_lacks_a_number_is_not_counted_in_its_mean(tmp_path):
  selection = study_runs.Selection(str(tmp_path / 'runs'), tasks=('digits',))
  runs = study_runs.list_runs('leave_one_out', selection)
  for run in runs:
    population = {60: 60.0 + run.seed}
    write_run(run, {60: 60.0}, population, 61.0, 70.0 + run.seed)
  path = pathlib.Path(runs[0].folder) / 'evaluation.json'
  results = {'moving averages': {'top1': 61.0}}
  path.write_text(json.dumps({'split': 'test', 'results': results}))
  report.make_report(['leave_one_out'], selection, str(tmp_path / 'out'))
  tables = tmp_path / 'out' / 'tables'
  row, other, *_ = read_csv(tables / 'leave_one_out_digits.csv')
  assert row['final accuracy (%)'] == '71.50 ± 6.35, 2 of 3 seeds'
  assert row['runs'] == '3 runs; 1 damaged'
  assert other['minus BN-x5 (points)'] == '+0.00 ± 0.00, 2 of 3 seeds'
  assert other['runs'] == '3 runs'
  assert [row['status'] for row in read_csv(tables / 'runs.csv')][:2] == [
    'damaged', 'finished',
  ]  # fmt: skip


def test_folder_that_cannot_be_written(runs, tmp_path):
  (tmp_path / 'file').write_text('')
  with pytest.raises(UserError, match='cannot be written .*give another --out'):
    make(tmp_path, out='file')
  # It is said before runs are read, which may be absent too.
  with pytest.raises(UserError, match='cannot be written .*give another --out'):
    make(tmp_path, root='no_runs', out='file')


def test_program_ends_in_one_line(tmp_path):
  done = subprocess.run(
    [sys.executable, '-m', 'bn_inception.study.report', f'--runs={tmp_path}'],
    cwd=ROOT,
    capture_output=True,
    text=True,
  )
  assert done.returncode == 2
  assert done.stderr.startswith(f'error: {tmp_path} holds no finished runs')
  assert (
    f'`python -m bn_inception.study --study=figure1 --runs={tmp_path}`'
    in (done.stderr)
  )
  assert done.stderr.count('\n') == 1

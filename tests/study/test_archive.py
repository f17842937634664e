"""The archive: lines have what the report needs of runs, each run once."""

import json
import math
import pathlib

import pytest

from bn_inception.errors import UserError
from bn_inception.study import archive
from bn_inception.study.results import read_groups, read_outcome
from tests.study.study_files import study_runs, write_run


def write(outcomes_of, folder):
  return archive.write(outcomes_of, str(folder), 'give another --out')


def outcomes(runs):
  return [read_outcome(run)[0] for run in runs.values()]


@pytest.fixture
def runs(tmp_path):
  found = study_runs('figure2', tmp_path / 'runs', seeds=(0,))
  found = {arm: run for (arm, _), run in found.items()}
  found = {arm: found[arm] for arm in ('Inception', 'BN-x5', 'Inception-x5')}
  write_run(found['Inception'], {100: 0.1 + 0.2, 200: 60.0})
  write_run(found['BN-x5'], {100: 40.0}, {100: 50.0}, 60.0, 61.0)
  write_run(found['Inception-x5'], {}, diverged_at=41)
  return found


def test_a_run_is_the_same_from_its_line(runs, tmp_path):
  write({'figure2': outcomes(runs)}, tmp_path)
  lines = archive.read(str(tmp_path))
  assert set(lines) == {run.identity for run in runs.values()}
  for run in runs.values():
    (first, _), (second, problems) = (
      read_outcome(run), read_outcome(run, lines[run.identity])
    )  # fmt: skip
    assert problems == []
    assert (first.name, first.finals, first.config, first.split) == (
      second.name, second.finals, second.config, second.split,
    )  # fmt: skip
    for kind in ('train', 'eval'):
      rows = [
        {k: v for k, v in record.items() if k != 'seconds'}
        for record in first.records
        if record['kind'] == kind
      ]
      assert [r for r in second.records if r['kind'] == kind] == rows
    assert first.result.pop('config') == run.config
    assert first.result == second.result


def test_line_wins_and_its_damage_is_named(runs, tmp_path):
  write({'figure2': outcomes(runs)}, tmp_path)
  path = tmp_path / 'figure2.jsonl'
  contents = [json.loads(line) for line in path.read_text().splitlines()]
  contents[0]['evaluation']['results']['none']['top1'] = 123.0
  contents[1]['config']['seed'] = 9
  path.write_text('\n'.join(map(json.dumps, contents)))
  (groups,) = read_groups(
    runs.values(), archive=archive.read(str(tmp_path))
  ).values()
  inception, bn_x5, diverged = groups
  assert inception.outcomes[0].finals == {} and bn_x5.outcomes == ()
  assert diverged.state() == '1 run; diverged at step 41'
  for group, file in ((inception, 'evaluation.json'), (bn_x5, 'config.json')):
    [line] = group.problems[0]
    name = pathlib.Path(group.runs[0].folder).name
    assert line.startswith(f'{path}#{name}: {file} ')


def test_shared_runs_are_stored_once(runs, tmp_path):
  first, second, third = outcomes(runs)
  files = write(
    {'figure2': [first, second], 'learning_rates': [second, third]}, tmp_path
  )
  assert files == {
    first.name: 'figure2.jsonl',
    second.name: 'figure2.jsonl',
    third.name: 'learning_rates.jsonl',
  }
  assert len(archive.read(str(tmp_path))) == 3
  # Written again, it is replaced where it is, and the others stay.
  second.result['steps'] = 7
  before = (tmp_path / 'learning_rates.jsonl').read_text()
  files = write({'learning_rates': [second]}, tmp_path)
  assert files == {second.name: 'figure2.jsonl'}
  lines = (tmp_path / 'figure2.jsonl').read_text().splitlines()
  assert [json.loads(line)['result']['steps'] for line in lines] == [200, 7]
  assert (tmp_path / 'learning_rates.jsonl').read_text() == before


def test_lines_tell_nothing_of_the_folders_of_the_machine(runs, tmp_path):
  for run in runs.values():
    folder = pathlib.Path(run.folder)
    manifest = json.loads((folder / 'manifest.json').read_text())
    manifest['starts'][0]['data'] = {'examples': 9, 'folder': str(tmp_path)}
    (folder / 'manifest.json').write_text(json.dumps(manifest))
  path = pathlib.Path(runs['BN-x5'].path('evaluation.json'))
  members = [{'checkpoint': f'{run.folder}/checkpoints/3'}]
  content = json.loads(path.read_text()) | {'members': members}
  path.write_text(json.dumps(content))
  write({'figure2': outcomes(runs)}, tmp_path)
  text = (tmp_path / 'figure2.jsonl').read_text()
  assert str(tmp_path) not in text and text.count('"examples":9') == 3


def test_numbers_that_json_does_not_have(runs, tmp_path):
  found = outcomes(runs)
  found[0].result['loss'] = math.nan
  found[1].evaluation['results']['population']['loss'] = math.inf
  write({'figure2': found}, tmp_path)
  text = (tmp_path / 'figure2.jsonl').read_text()
  first, second, _ = (
    json.loads(line, parse_constant=pytest.fail) for line in text.splitlines()
  )
  assert first['result']['loss'] is None
  assert second['evaluation']['results']['population']['loss'] is None


@pytest.mark.parametrize(
  'change',
  [
    lambda text: text[:50],
    lambda text: '[]\n',
    lambda text: '{"name": "a"}\n',
    lambda text: text.replace('"step":[100,', '"step":[100,150,'),
    lambda text: text.replace('"diverged":false', '"diverged":"no"'),
    lambda text: text.replace('"evaluation":{', '"evaluation":null,"x":{'),
  ],
)
def test_damaged_line_is_named(runs, tmp_path, change):
  write({'figure2': outcomes(runs)}, tmp_path)
  path = tmp_path / 'figure2.jsonl'
  first, second, *_ = path.read_text().splitlines(keepends=True)
  damaged = change(first)
  assert damaged != first
  path.write_text(second + damaged)
  with pytest.raises(UserError, match=f'line 2 of {path} is damaged'):
    archive.read(str(tmp_path))

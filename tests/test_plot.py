"""One figure of several runs: its curves, and what is wrong with its input."""

import json
import os
import subprocess
import sys

import pytest

from bn_inception import plot
from bn_inception.errors import UserError


@pytest.fixture
def workdirs(tmp_path):
  """Two runs of the same name, whose accuracies end at 20 and 40 %."""
  folders = []
  for factor in (10, 20):
    folder = tmp_path / str(factor) / 'digits'
    folder.mkdir(parents=True)
    records = [
      {'kind': 'train', 'step': 1, 'loss': 2.5, 'top1': 0.0},
      {'kind': 'eval', 'step': 1, 'top1': factor * 1.0},
      {'kind': 'eval', 'step': 2, 'top1': factor * 2.0},
      # They were not finite.
      {'kind': 'eval', 'step': 3, 'top1': None, 'loss': None},
    ]
    lines = ''.join(json.dumps(record) + '\n' for record in records)
    (folder / 'metrics.jsonl').write_text(lines)
    folders.append(str(folder))
  return folders


def test_every_run_is_a_curve(workdirs):
  made = plot.make_plot(workdirs, 'eval/top1')
  (curves,) = made.variants.values()
  found = [[(p.x, p.value) for p in curve.points] for curve in curves]
  assert found == [[(1, 10.0), (2, 20.0)], [(1, 20.0), (2, 40.0)]]
  # Where names are not unique, paths are.
  assert [curve.label for curve in curves] == workdirs
  (one,) = plot.make_plot(workdirs[:1], 'train/loss').variants.values()
  assert one[0].label == 'digits' and one[0].points[0].value == 2.5


@pytest.mark.parametrize(
  'name, start', [('a.html', b'<!doctype html>'), ('a.svg', b'<?xml'), ('a.png', b'\x89PNG')]
)  # fmt: skip
def test_suffix_is_the_format(workdirs, tmp_path, name, start):
  plot.draw(workdirs, 'eval/top1', str(tmp_path / name))
  assert (tmp_path / name).read_bytes().startswith(start)


@pytest.mark.parametrize(
  'metric, out, named',
  [
    ('eval/top1', 'a.gif', r'a\.gif.*\.html, \.svg'),
    ('eval/top2', 'a.svg', r"'eval/top2'.*eval/top1, train/loss, train/top1"),
    ('eval/loss', 'a.svg', r'leave it out, or .* eval/top1, train/loss, tr'),
    ('eval/top1', 'absent/a.html', r'absent/a\.html cannot be written.*--out'),
  ],
)
def test_bad_input(workdirs, tmp_path, metric, out, named):
  with pytest.raises(UserError, match=named):
    plot.draw(workdirs, metric, str(tmp_path / out))


def test_run_without_numbers(tmp_path):
  record = {'kind': 'eval', 'step': 3, 'top1': None}
  (tmp_path / 'metrics.jsonl').write_text(json.dumps(record) + '\n')
  with pytest.raises(
    UserError, match="no numbers of 'eval/top1': leave it out$"
  ):
    plot.make_plot([str(tmp_path)], 'eval/top1')


def test_files_of_runs_are_not_replaced(workdirs):
  with open(f'{workdirs[0]}/config.json', 'w') as file:
    file.write('{}')
  path = f'{workdirs[0]}/learning_curve.png'
  with pytest.raises(UserError, match=f'{path} is a file of the run'):
    plot.draw(workdirs, 'eval/top1', path)


def test_folder_without_metrics(workdirs, tmp_path):
  with pytest.raises(UserError, match=r'none/metrics\.jsonl is missing'):
    plot.make_plot([*workdirs, str(tmp_path / 'none')], 'eval/top1')


def test_program_takes_runs_before_and_after_flags(workdirs, tmp_path):
  command = [sys.executable, '-m', 'bn_inception.plot']
  environment = os.environ | {'JAX_PLATFORMS': 'cpu'}
  arguments = [workdirs[0], '--out', 'a.svg', workdirs[1]]
  environment['PYTHONPATH'] = os.getcwd()
  done = subprocess.run(
    [*command, *arguments], cwd=tmp_path, env=environment, text=True,
    capture_output=True,
  )  # fmt: skip
  assert done.returncode == 0, done.stderr
  text = (tmp_path / 'a.svg').read_text()
  assert 'top-1 accuracy' in text
  done = subprocess.run(
    command, cwd=tmp_path, env=environment, capture_output=True, text=True
  )
  assert done.returncode == 2
  assert done.stderr.count('\n') == 1 and 'run directory' in done.stderr

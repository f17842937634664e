"""The benchmark of input pipelines: photographs, ratios, a short run."""

import dataclasses
import importlib.util
import json
import pathlib
import subprocess
import sys

import pytest

from benchmarks import photographs, readers, results
from bn_inception.data.sources import make_source

ROOT = pathlib.Path(__file__).parent.parent
SETUP = readers.Setup('ours, files', '', 0, 2, 32, 'bilinear', 4, 'uint8')


def test_photographs_have_the_size_of_imagenets(tmp_path):
  facts = photographs.write_folder(tmp_path / 'full', 8)
  assert (facts['height'], facts['width']) == (375, 500)
  assert 90e3 < facts['mean_bytes'] < 120e3
  paths = sorted((tmp_path / 'full').glob('train/*/*.jpg'))
  assert len({path.read_bytes() for path in paths}) == 8

  facts = photographs.write_folder(tmp_path / 'shrunk', 8, short_side=256)
  assert (facts['height'], facts['width']) == (256, 341)


def test_copies_hold_the_same_files(tmp_path):
  photographs.write_folder(tmp_path, 9)
  photographs.write_array_records(tmp_path)
  files = make_source('image_folder', 'train', str(tmp_path))
  records = make_source('imagenet2012', 'train', str(tmp_path / 'prepared'))
  assert [files[i] for i in range(9)] == [records[i] for i in range(9)]


def make_row(reader, workers, speeds, not_run=None):
  setup = dataclasses.replace(SETUP, reader=reader, workers=workers)
  return results.Row('photos', setup, not_run, speeds, [1.0] * len(speeds))


def test_ratios_are_of_the_best_and_of_rounds(capsys, tmp_path):
  rows = [
    make_row('ours, ArrayRecord', 0, [100.0, 50.0, 90.0]),
    make_row('ours, ArrayRecord', 1, [80.0, 80.0, 80.0]),
    make_row('tf.data', 2, [50.0, 100.0, 30.0]),
    make_row('torch', 0, [], 'torch is not installed'),
  ]
  (ratio,) = results.ratios(rows)
  assert (ratio['ours'], ratio['other']) == (
    'ours, ArrayRecord, 0 workers',
    'tf.data, 2 threads',
  )  # fmt: skip
  assert ratio['images_per_second'] == {
    'median': 2.0, 'lowest': 0.5, 'highest': 3.0
  }  # fmt: skip
  results.print_results(rows)
  output = capsys.readouterr().out
  assert len({len(line) for line in output.splitlines()[1:7]}) == 1
  assert 'not run: photos, torch, 0 workers: torch is not installed' in output
  results.write_output(str(tmp_path / 'a.json'), results.summarize(rows))
  written = json.loads((tmp_path / 'a.json').read_text())
  assert written['results'][0]['rounds'] == [100.0, 50.0, 90.0]
  assert written['results'][3]['not_run'] == 'torch is not installed'


def run(tmp_path, *arguments):
  output = tmp_path / 'results.json'
  program = [sys.executable, '-m', 'benchmarks.input_pipeline']
  quick = '--rounds=1 --seconds=0.1 --warm_up=0 --num_photographs=4'.split()
  finished = subprocess.run(
    [*program, *quick, '--batch_size=4', f'--output={output}', *arguments],
    cwd=ROOT,
    capture_output=True,
    text=True,
    timeout=200,
  )
  assert finished.returncode == 0, finished.stderr
  return json.loads(output.read_text())['results']


def test_a_short_run(tmp_path):
  chosen = ('decode crop', 'ours, ArrayRecord', 'tf.data')
  decode, ours, tf_data = run(
    tmp_path, '--cores=1', '--workers=0', *(f'--reader={r}' for r in chosen)
  )
  assert decode['images_per_second']['median'] > 0
  assert ours['images_per_second']['median'] > 0
  if importlib.util.find_spec('tensorflow') is None:
    assert 'pip install -r requirements-bench.txt' in tf_data['not_run']


@pytest.mark.peers
@pytest.mark.parametrize('interpolation', ['bilinear', 'bicubic'])
def test_all_readers_run(tmp_path, interpolation):
  rows = run(
    tmp_path, '--workers=0,1', f'--interpolation={interpolation}',
    '--short_side=256',
  )  # fmt: skip
  assert {row['reader'] for row in rows} == set(readers.READERS)
  assert all('not_run' not in row for row in rows), rows

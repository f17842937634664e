"""The program: table, file, and what is refused."""

import dataclasses
import json
import os
import pathlib
import subprocess
import sys

import pytest

from bn_inception.dryrun import __main__ as dryrun
from bn_inception.dryrun import prediction
from bn_inception.errors import UserError
from tests.dryrun.libtpu import needs_libtpu

ROOT = pathlib.Path(__file__).parents[2]


def test_output_is_checked_before_anything_is_compiled(tmp_path):
  (tmp_path / 'file').touch()
  with pytest.raises(UserError, match='file/x.json cannot be written'):
    dryrun.dry_run({}, ['no:1x1'], output=f'{tmp_path}/file/x.json')


def test_table_and_file(small_config, few_rows, cpu_pod, tmp_path, capsys):
  output = tmp_path / 'new' / 'out.json'
  small_config['batch_size'] = 1
  predictions = dryrun.dry_run(
    small_config, ['cpu:8'], images_per_chip=2, output=str(output)
  )
  assert [p.batch_size for p in predictions] == [16]
  printed = capsys.readouterr().out
  assert 'This is a prediction: no TPU has run it.' in printed
  assert dryrun.to_markdown(predictions) in printed
  written = json.loads(output.read_text())
  assert written['what'].startswith('predictions')
  assert written['config']['model']['use_batch_norm'] is True
  assert [p['batch_size'] for p in written['predictions']] == [16]
  assert 'jax' in written['packages']


def test_a_column_for_each_topology():
  first = prediction.Prediction(
    topology='v5e:2x2',
    chip='TPU v5e',
    num_chips=4,
    batch_size=512,
    sharing_statistics=32,
    chips_sharing_statistics=1,
    compile_seconds=12.3,
    argument_bytes=2**28,
    temporary_bytes=2**30,
    code_bytes=2**27,
    memory_bytes=3 * 2**29,
    hbm_bytes=2**34,
    flops=128 * 11.5e9,
    bytes_accessed=128 * 400e6,
    hbm_traffic_bytes=128 * 100_000_000,
    collectives={'all-reduce': {'count': 3, 'bytes': 45_000_000}},
    seconds_for_flops=0.008,
    seconds_for_hbm=0.016,
    images_per_second_per_chip=8000.0,
    hours=1.6667,
  )
  second = dataclasses.replace(
    first, topology='v5e:1x1', num_chips=1, batch_size=128, collectives={},
    sharing_statistics=0, seconds_for_flops=0.02,
  )  # fmt: skip
  table = dryrun.to_markdown([first, second]).splitlines()
  cells = [[c.strip() for c in line.split('|')[1:-1]] for line in table]
  assert cells[0] == ['a prediction', 'v5e:2x2', 'v5e:1x1']
  rows = {row[0]: row[1:] for row in cells[2:]}
  assert rows == {
    'chips': ['4 x TPU v5e', '1 x TPU v5e'],
    'global batch': ['512', '128'],
    'images per chip': ['128', '128'],
    'examples sharing statistics': ['32', 'no BN'],
    '... spread over chips': ['1', '1'],
    'memory: state and batch': ['0.25 GiB'] * 2,
    'memory: temporary': ['1.00 GiB'] * 2,
    'memory: program': ['0.12 GiB'] * 2,
    'memory of the chip': ['1.50 of 16.00 GiB'] * 2,
    'GFLOPs per image': ['11.50'] * 2,
    'MB accessed per image, compiler': ['400.0'] * 2,
    'MB of HBM per image': ['100.0'] * 2,
    'collectives per step': ['3 all-reduce, 45.0 MB', 'none'],
    'ms per step at peak FLOP/s': ['8.00', '20.00'],
    'ms per step at peak HBM': ['16.00'] * 2,
    'bound by': ['HBM', 'FLOPs'],
    'images/s per chip, roofline': ['8,000'] * 2,
    'hours for 6M x 32 images, roofline': ['1.67'] * 2,
    'seconds to compile': ['12'] * 2,
  }


def test_the_committed_table_is_made_of_the_committed_numbers():
  written = json.loads((ROOT / 'results' / 'dry_run.json').read_text())
  predictions = [prediction.Prediction(**p) for p in written['predictions']]
  page = (ROOT / 'results' / 'dry_run.md').read_text()
  assert dryrun.to_markdown(predictions) in page


def test_a_batch_that_does_not_divide_is_refused_before_compiling(
  digits_config, cpu_pod, capsys
):
  digits_config['batch_size'] = 12
  digits_config['norm_batch_size'] = 0
  with pytest.raises(UserError, match='12 cannot be divided over 8 devices'):
    dryrun.dry_run(digits_config, ['cpu:4', 'cpu:8'])
  assert 'compiling' not in capsys.readouterr().out


def run_program(*arguments):
  return subprocess.run(
    [sys.executable, '-m', 'bn_inception.dryrun', *arguments],
    cwd=ROOT,
    env={**os.environ, 'JAX_PLATFORMS': 'cpu'},
    capture_output=True,
    text=True,
  )


def test_program_ends_in_one_line():
  # Without the compiler that is what is missing; with it, the topology.
  failed = run_program('--topology=v5e:3x3')
  assert failed.returncode == 2
  assert failed.stderr.startswith('error: ') and failed.stderr.count('\n') == 1


@pytest.mark.peers
@needs_libtpu
def test_the_tpu_compiler_on_a_small_network(tmp_path):
  output = tmp_path / 'out.json'
  done = run_program(
    '--config=configs/bn_x30.py:digits',
    '--topology=v5e:2x2,v5e:2x4',
    '--images_per_chip=16',
    f'--output={output}',
  )
  assert done.returncode == 0, done.stderr
  small, large = json.loads(output.read_text())['predictions']
  assert (small['num_chips'], large['num_chips']) == (4, 8)
  # 32 examples share statistics: two chips, which average them.
  assert small['chips_sharing_statistics'] == 2
  assert 0 < small['memory_bytes'] < small['hbm_bytes']
  # Some of the traffic stays on the chip.
  assert 0 < small['hbm_traffic_bytes'] < small['bytes_accessed']
  for key in ('collectives', 'flops', 'hbm_traffic_bytes'):
    assert small[key] == large[key], key

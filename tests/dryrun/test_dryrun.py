"""The dry run: on eight CPU devices, and with the TPU compiler if it is here."""

import dataclasses
import importlib.util
import json
import os
import pathlib
import re
import subprocess
import sys

import jax
import pytest

from bn_inception.dryrun import __main__ as dryrun
from bn_inception.errors import UserError
from bn_inception.experiment import make_setup
from configs import compose

ROOT = pathlib.Path(__file__).parents[2]
needs_libtpu = pytest.mark.skipif(
  importlib.util.find_spec('libtpu') is None,
  reason='libtpu is not installed: pip install -r requirements-pod.txt',
)


@pytest.fixture
def cpu_pod(monkeypatch):
  """Any topology is the CPU devices, whose facts are round numbers."""
  chip = dryrun.Chip('CPU', 2**30, 1e9, 1e10)
  monkeypatch.setitem(dryrun.CHIPS, 'cpu', chip)
  monkeypatch.setattr(
    dryrun,
    'open_topology',
    lambda name: jax.devices()[: int(name.removeprefix('cpu:'))],
  )


@pytest.fixture
def small_config(digits_config):
  """Two images on each of eight devices, which share statistics."""
  digits_config['norm_batch_size'] = 2
  return digits_config


def predict(config):
  setup = make_setup(config, jax.devices(), **dryrun.describe_data(config))
  return setup, dryrun.predict(setup, 'cpu:8')


@pytest.mark.slow
def test_prediction_is_of_the_compiled_step(small_config, few_rows, cpu_pod):
  setup, predicted = predict(small_config)
  state, batch, _ = setup.abstract_arguments()
  state_bytes = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state))
  # Of 16 examples each device holds 2: image, label, mask and index.
  batch_bytes = 2 * (8 * 8 * 1 + 4 + 1 + 4)
  key_bytes = 8
  assert predicted.argument_bytes == state_bytes + batch_bytes + key_bytes
  # The state is overwritten: only the metrics, and XLA:CPU's table of pointers
  # to all results, need room of their own.
  own = predicted.memory_bytes - predicted.argument_bytes
  own -= predicted.temporary_bytes + predicted.code_bytes
  assert 0 < own < 2000
  # Nothing but averages of gradients and statistics, and sums of metrics.
  (opcode,) = predicted.collectives
  averaged = sum(
    leaf.size
    for leaf in jax.tree.leaves((state.params, state.batch_stats))
    if leaf.dtype == 'float32'  # not the counters of batch norm
  )
  num_bytes = predicted.collectives[opcode]['bytes']
  assert opcode == 'all-reduce'
  assert 4 * averaged <= num_bytes <= 4 * averaged + 64
  assert predicted.num_chips == 8 and predicted.images_per_chip == 2
  assert predicted.sharing_statistics == 2
  assert predicted.chips_sharing_statistics == 1
  assert predicted.flops > 0 and predicted.hbm_traffic_bytes > state_bytes
  assert predicted.bytes_accessed > state_bytes


def test_speed_is_that_of_the_scarcer_resource(small_config, few_rows, cpu_pod):
  _, predicted = predict(small_config)
  assert predicted.seconds_for_flops == predicted.flops / 1e10
  assert predicted.seconds_for_hbm == predicted.hbm_traffic_bytes / 1e9
  longer = max(predicted.seconds_for_flops, predicted.seconds_for_hbm)
  assert predicted.images_per_second_per_chip == pytest.approx(2 / longer)
  assert predicted.hours == pytest.approx(6e6 * 32 / (16 / longer) / 3600)


@pytest.mark.slow
def test_micro_batches_are_all_counted(small_config, few_rows, cpu_pod):
  _, single = predict(small_config)
  small_config['batch_size'] = 32
  small_config['optimizer']['accumulate_steps'] = 2
  _, double = predict(small_config)
  # The compiler by itself counts one of the two.
  assert double.flops == pytest.approx(2 * single.flops, rel=0.1)
  assert double.collectives == single.collectives


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
  first = dryrun.Prediction(
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


def test_a_batch_that_does_not_divide_is_refused_before_compiling(
  digits_config, cpu_pod, capsys
):
  digits_config['batch_size'] = 12
  digits_config['norm_batch_size'] = 0
  with pytest.raises(UserError, match='12 cannot be divided over 8 devices'):
    dryrun.dry_run(digits_config, ['cpu:4', 'cpu:8'])
  assert 'compiling' not in capsys.readouterr().out


def test_what_does_not_fit_is_one_line(digits_config, few_rows, monkeypatch):
  class Lowered:
    def compile(self):
      raise jax.errors.JaxRuntimeError(
        'RESOURCE_EXHAUSTED: total (20.00G) exceeds available HBM (15.75G)\nmore'
      )

  class Step:
    def lower(self, *arguments):
      return Lowered()

  setup = make_setup(
    digits_config, jax.devices()[:1], **dryrun.describe_data(digits_config)
  )
  monkeypatch.setattr(type(setup), 'train_step', Step())
  monkeypatch.setitem(dryrun.CHIPS, 'cpu', dryrun.Chip('CPU', 1, 1.0, 1.0))
  with pytest.raises(UserError, match=r'v5e:2x2: .*20.00G.*remat') as error:
    dryrun.predict(setup, 'v5e:2x2')
  assert '\n' not in str(error.value)


def test_imagenet_needs_no_data():
  config = compose.preset('bn_x30', 'imagenet').to_dict()
  assert dryrun.describe_data(config) == {
    'num_classes': 1000, 'num_channels': 3, 'num_examples': 1_281_167,
  }  # fmt: skip


def test_a_device_of_which_nothing_is_known_is_refused():
  with pytest.raises(UserError, match="'cpu'.*TPU v5e, TPU v5p"):
    dryrun.find_chip(jax.devices()[0])


def test_without_the_compiler_it_says_what_to_install(monkeypatch):
  monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
  with pytest.raises(UserError, match='pip install -r requirements-pod.txt'):
    dryrun.open_topology('v5e:2x2')


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


@pytest.mark.pod
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


@pytest.mark.pod
@needs_libtpu
@pytest.mark.parametrize(
  'topology', ['v5e:2x2', 'v5p:2x2x1', 'v6e:2x2', 'v4:2x2x1']
)
def test_memory_of_the_chips_is_what_the_compiler_says(topology):
  device = dryrun.open_topology(topology)[0]
  too_large = jax.ShapeDtypeStruct(
    (200, 2**30), 'uint8', sharding=jax.sharding.SingleDeviceSharding(device)
  )
  with pytest.raises(jax.errors.JaxRuntimeError) as error:
    jax.jit(lambda x: x.sum()).lower(too_large).compile()
  available = re.search(r'available HBM \(([\d.]+)G\)', str(error.value))[1]
  assert dryrun.find_chip(device).hbm_bytes == int(float(available) * 2**30)


@pytest.mark.pod
@needs_libtpu
def test_one_chip_is_a_topology():
  assert len(dryrun.open_topology('v5e:1x1')) == 1

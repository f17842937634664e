"""Predictions: on eight CPU devices, and with the TPU compiler if it is here."""

import importlib.util
import re

import jax
import pytest

from bn_inception.data.sources import describe_data
from bn_inception.dryrun import prediction
from bn_inception.errors import UserError
from bn_inception.experiment import make_setup
from tests.dryrun.libtpu import needs_libtpu


def predict(config):
  setup = make_setup(config, jax.devices(), **describe_data(config))
  return setup, prediction.predict(setup, 'cpu:8')


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
    digits_config, jax.devices()[:1], **describe_data(digits_config)
  )
  monkeypatch.setattr(type(setup), 'train_step', Step())
  monkeypatch.setitem(
    prediction.CHIPS, 'cpu', prediction.Chip('CPU', 1, 1.0, 1.0)
  )
  with pytest.raises(UserError, match=r'v5e:2x2: .*20.00G.*remat') as error:
    prediction.predict(setup, 'v5e:2x2')
  assert '\n' not in str(error.value)


def test_a_device_of_which_nothing_is_known_is_refused():
  with pytest.raises(UserError, match="'cpu'.*TPU v5e, TPU v5p"):
    prediction.find_chip(jax.devices()[0])


def test_without_the_compiler_it_says_what_to_install(monkeypatch):
  monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
  with pytest.raises(UserError, match='pip install -r requirements-pod.txt'):
    prediction.open_topology('v5e:2x2')


@pytest.mark.peers
@needs_libtpu
@pytest.mark.parametrize(
  'topology', ['v5e:2x2', 'v5p:2x2x1', 'v6e:2x2', 'v4:2x2x1']
)
def test_memory_of_the_chips_is_what_the_compiler_says(topology):
  device = prediction.open_topology(topology)[0]
  too_large = jax.ShapeDtypeStruct(
    (200, 2**30), 'uint8', sharding=jax.sharding.SingleDeviceSharding(device)
  )
  with pytest.raises(jax.errors.JaxRuntimeError) as error:
    jax.jit(lambda x: x.sum()).lower(too_large).compile()
  available = re.search(r'available HBM \(([\d.]+)G\)', str(error.value))[1]
  assert prediction.find_chip(device).hbm_bytes == int(float(available) * 2**30)


@pytest.mark.peers
@needs_libtpu
def test_one_chip_is_a_topology():
  assert len(prediction.open_topology('v5e:1x1')) == 1

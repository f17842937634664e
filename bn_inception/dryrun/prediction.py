"""Compiles a training step for a TPU pod elsewhere, and reads what it needs."""

import dataclasses
import importlib.util
import os
import re
import time
from collections.abc import Sequence
from typing import NamedTuple

import jax
from jax.experimental import topologies

from bn_inception import mesh
from bn_inception.dryrun import hlo_text
from bn_inception.errors import UserError
from bn_inception.experiment import Setup
from bn_inception.optimizer import PAPER_BATCH_SIZE

PAPER_STEPS = 6_000_000  # BN-x30, to its best accuracy (Figure 3)
GIB = 2**30


class Chip(NamedTuple):
  """What JAX sees as one device.

  Attributes:
    name: for display.
    hbm_bytes: main memory (HBM) that a program may use.
    hbm_bytes_per_second: bandwidth of the HBM.
    flops_per_second: the peak, in bfloat16.
  """

  name: str
  hbm_bytes: int
  hbm_bytes_per_second: float
  flops_per_second: float


# By JAX's `device_kind`. Memory: what libtpu 0.0.42.1 reports as available when a
# program does not fit. The rest: cloud.google.com/tpu/docs, "System
# architecture"; half of it for v4, whose two cores are two devices here.
CHIPS = {
  'TPU v5 lite': Chip('TPU v5e', int(15.75 * GIB), 819e9, 197e12),
  'TPU v5': Chip('TPU v5p', int(95.74 * GIB), 2765e9, 459e12),
  'TPU v6 lite': Chip('TPU v6e', int(31.25 * GIB), 1640e9, 918e12),
  'TPU v4': Chip('TPU v4, one core', int(15.25 * GIB), 614e9, 137.5e12),
}
EXAMPLE_TOPOLOGIES = 'v5e:4x4, v5p:2x2x2 or v6e:8x8'


@dataclasses.dataclass(frozen=True)
class Prediction:
  """What one training step needs; memory and work are those of one chip.

  Attributes:
    topology, chip: their names.
    num_chips, batch_size: of the pod.
    sharing_statistics: examples in a normalisation batch; 0 without BN.
    chips_sharing_statistics: chips that hold one normalisation batch.
    compile_seconds: on this machine.
    argument_bytes: the state, which is updated in place, and the batch.
    temporary_bytes: activations and gradients.
    code_bytes: the program.
    memory_bytes: all of these, and the results that are not in place.
    hbm_bytes: the chip's.
    flops: counted by the compiler.
    bytes_accessed: counted by the compiler; includes on-chip memory.
    hbm_traffic_bytes: of the HBM only: see `hlo_text`.
    collectives: opcode -> {'count': ..., 'bytes': ...}.
    seconds_for_flops, seconds_for_hbm: at the peaks of the chip.
    images_per_second_per_chip: if a step takes only the longer of these, which
      is a roofline.
    hours: for the paper's BN-x30 at that speed.
  """

  topology: str
  chip: str
  num_chips: int
  batch_size: int
  sharing_statistics: int
  chips_sharing_statistics: int
  compile_seconds: float
  argument_bytes: int
  temporary_bytes: int
  code_bytes: int
  memory_bytes: int
  hbm_bytes: int
  flops: float
  bytes_accessed: float
  hbm_traffic_bytes: int
  collectives: dict[str, dict[str, int]]
  seconds_for_flops: float
  seconds_for_hbm: float
  images_per_second_per_chip: float
  hours: float

  @property
  def images_per_chip(self) -> float:
    return self.batch_size / self.num_chips


def open_topology(name: str) -> Sequence[jax.Device]:
  """The devices of a pod to compile for; the pod itself is not needed.

  Args:
    name: generation and chips along each axis, such as v5e:4x4.

  Raises:
    UserError: if the compiler is not installed or does not know the pod.
  """
  if importlib.util.find_spec('libtpu') is None:
    raise UserError(
      'the TPU compiler is not installed: pip install -r requirements-pod.txt'
    )
  # Without a TPU and its host, libtpu would otherwise wait for a metadata server,
  # refuse a second process, and print warnings.
  os.environ['TPU_SKIP_MDS_QUERY'] = '1'
  os.environ['ALLOW_MULTIPLE_LIBTPU_LOAD'] = '1'
  os.environ.setdefault('TPU_ACCELERATOR_TYPE', 'v5litepod-4')
  os.environ.setdefault('TPU_WORKER_HOSTNAMES', 'localhost')
  os.environ.setdefault('TPU_MIN_LOG_LEVEL', '3')
  os.environ.setdefault('TPU_STDERR_LOG_LEVEL', '3')
  # A host has 2x2 chips, except in pods of one chip.
  is_single = re.fullmatch(r'\w+:1(x1)*', name)
  bounds = {'chips_per_host_bounds': (1, 1, 1)} if is_single else {}
  try:
    description = topologies.get_topology_desc(name, 'tpu', **bounds)
  except jax.errors.JaxRuntimeError as error:
    reason = str(error).splitlines()[0]
    raise UserError(
      f"unknown topology '{name}' ({reason}): use one such as {EXAMPLE_TOPOLOGIES}"
    ) from error
  return description.devices


def find_chip(device: jax.Device) -> Chip:
  """The memory and speed of a device; a UserError if they are unknown."""
  if device.device_kind not in CHIPS:
    known = ', '.join(chip.name for chip in CHIPS.values())
    raise UserError(
      f"the memory and speed of '{device.device_kind}' are unknown: use one of "
      f'{known}'
    )
  return CHIPS[device.device_kind]


def predict(setup: Setup, topology: str) -> Prediction:
  """Compiles a training step and reads what it needs from the result.

  Args:
    setup: on the devices of the pod.
    topology: name of the pod, for the report.

  Raises:
    UserError: if it does not fit into memory.
  """
  chip = find_chip(setup.device_mesh.devices.flat[0])
  start = time.monotonic()
  compiled = _compile(setup, topology)
  seconds = time.monotonic() - start
  memory, costs = compiled.memory_analysis(), compiled.cost_analysis()
  count = hlo_text.count(compiled.as_text())
  # The compiler counts the body of a loop once; with accumulated gradients the
  # loop over micro-batches is nearly the whole step.
  accumulate_steps = setup.optimizer.accumulate_steps
  factor = accumulate_steps if accumulate_steps in count.loops else 1
  flops = factor * costs['flops']
  seconds_for_flops = flops / chip.flops_per_second
  seconds_for_hbm = count.hbm_bytes / chip.hbm_bytes_per_second
  num_chips = setup.device_mesh.devices.size
  batch_size = setup.batches.batch_size
  rate = batch_size / max(seconds_for_flops, seconds_for_hbm)
  return Prediction(
    topology=topology,
    chip=chip.name,
    num_chips=num_chips,
    batch_size=batch_size,
    sharing_statistics=setup.norm_batch_size,
    chips_sharing_statistics=setup.device_mesh.shape[mesh.MEMBER],
    compile_seconds=round(seconds, 1),
    argument_bytes=memory.argument_size_in_bytes,
    temporary_bytes=memory.temp_size_in_bytes,
    code_bytes=memory.generated_code_size_in_bytes,
    memory_bytes=(
      memory.argument_size_in_bytes
      + memory.output_size_in_bytes
      - memory.alias_size_in_bytes
      + memory.temp_size_in_bytes
      + memory.generated_code_size_in_bytes
    ),
    hbm_bytes=chip.hbm_bytes,
    flops=flops,
    bytes_accessed=factor * costs['bytes accessed'],
    hbm_traffic_bytes=count.hbm_bytes,
    collectives={
      opcode: {'count': number, 'bytes': count.collective_bytes[opcode]}
      for opcode, number in sorted(count.collectives.items())
    },
    seconds_for_flops=seconds_for_flops,
    seconds_for_hbm=seconds_for_hbm,
    images_per_second_per_chip=rate / num_chips,
    hours=PAPER_STEPS * PAPER_BATCH_SIZE / rate / 3600,
  )


def _compile(setup: Setup, topology: str) -> jax.stages.Compiled:
  lowered = setup.train_step.lower(*setup.abstract_arguments())
  try:
    return lowered.compile()
  except jax.errors.JaxRuntimeError as error:
    reason = str(error).splitlines()[0]
    if 'RESOURCE_EXHAUSTED' not in reason:
      raise
    raise UserError(
      f'{topology}: the step does not fit ({reason}): use a smaller batch, or '
      '--config.model.remat=True'
    ) from error

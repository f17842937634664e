r"""Predicts how a training run uses a TPU pod, on a machine without one.

    pip install -r requirements-pod.txt
    python -m bn_inception.dryrun --config=configs/bn_x30.py:imagenet \
        --topology=v5e:4x4,v5e:16x16 --images_per_chip=128 [--output=FILE]

Compiles the training step of the config for the pod with the TPU compiler,
minutes for each topology, and reads from the result what a step needs: memory,
FLOPs, bytes, collectives. The speed is a roofline, what the peak FLOP/s and the
memory of the chip allow: real programs reach neither. Needs no data.
"""

from bn_inception.machine import interruption

if __name__ == '__main__':
  interruption.watch()  # the other imports take seconds

import dataclasses
import importlib.util
import os
import re
import time
from collections.abc import Sequence
from typing import NamedTuple

import jax
from absl import flags
from jax.experimental import topologies

from bn_inception import command_line, config_keys, mesh
from bn_inception.data import imagenet
from bn_inception.dryrun import hlo_text
from bn_inception.errors import UserError
from bn_inception.experiment import (
  Update,
  examples_sharing_statistics,
  make_update,
  open_split,
)
from bn_inception.machine import streams
from bn_inception.machine.path_flags import define_path
from bn_inception.runs.run_directory import check_output, manifest, write_json
from bn_inception.training import PAPER_BATCH_SIZE

PAPER_STEPS = 6_000_000  # of BN-x30, to its best accuracy (Figure 3)
GIB = 2**30
DEFAULT_CONFIG = 'configs/bn_x30.py:imagenet'


class Chip(NamedTuple):
  """What JAX sees as one device.

  Attributes:
    name: for people.
    hbm_bytes: main memory that a program may use.
    hbm_bytes_per_second: of the main memory.
    flops_per_second: the peak, in bfloat16.
  """

  name: str
  hbm_bytes: int
  hbm_bytes_per_second: float
  flops_per_second: float


# By JAX's `device_kind`. Memory: what libtpu 0.0.42.1 says is available when a
# program does not fit. The rest: cloud.google.com/tpu/docs, "System
# architecture"; of v4 half, since the compiler is asked for its two cores as two
# devices.
CHIPS = {
  'TPU v5 lite': Chip('TPU v5e', int(15.75 * GIB), 819e9, 197e12),
  'TPU v5': Chip('TPU v5p', int(95.74 * GIB), 2765e9, 459e12),
  'TPU v6 lite': Chip('TPU v6e', int(31.25 * GIB), 1640e9, 918e12),
  'TPU v4': Chip('TPU v4, one core', int(15.25 * GIB), 614e9, 137.5e12),
}
_EXAMPLE_TOPOLOGIES = 'v5e:4x4, v5p:2x2x2 or v6e:8x8'


@dataclasses.dataclass(frozen=True)
class Prediction:
  """What one training step needs; sizes and work are of one chip.

  Attributes:
    topology, chip: their names.
    num_chips, batch_size: of the whole pod.
    sharing_statistics: examples in a normalisation batch; 0 without BN.
    chips_sharing_statistics: chips that hold one normalisation batch.
    compile_seconds: what the compilation took here.
    argument_bytes: the state, which the step overwrites, and the batch.
    temporary_bytes: activations and gradients.
    code_bytes: the program.
    memory_bytes: all of these, and results that overwrite no argument.
    hbm_bytes: what the chip has.
    flops: by the compiler's count.
    bytes_accessed: by the compiler's count, of memory on the chip too.
    hbm_traffic_bytes: of the main memory only: see `hlo_text`.
    collectives: opcode -> {'count': ..., 'bytes': ...}.
    seconds_for_flops, seconds_for_hbm: at the peaks of the chip.
    images_per_second_per_chip: if a step takes the longer of these and nothing
      else: a roofline.
    hours: for the examples of the paper's BN-x30 at that speed.
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
  """The devices of a pod that is not here, which only serve to compile for.

  Args:
    name: such as v5e:4x4, a generation and the chips along each axis.

  Raises:
    UserError: if the compiler is not installed or does not know the pod.
  """
  if importlib.util.find_spec('libtpu') is None:
    raise UserError(
      'the TPU compiler is not installed: pip install -r requirements-pod.txt'
    )
  # There is no TPU to ask about or to lock, nor any host to name; without these
  # libtpu waits for answers, refuses a second process, and complains.
  os.environ['TPU_SKIP_MDS_QUERY'] = '1'
  os.environ['ALLOW_MULTIPLE_LIBTPU_LOAD'] = '1'
  os.environ.setdefault('TPU_ACCELERATOR_TYPE', 'v5litepod-4')
  os.environ.setdefault('TPU_WORKER_HOSTNAMES', 'localhost')
  os.environ.setdefault('TPU_MIN_LOG_LEVEL', '3')
  os.environ.setdefault('TPU_STDERR_LOG_LEVEL', '3')
  # A host has 2x2 chips, but for pods of a single one.
  is_single = re.fullmatch(r'\w+:1(x1)*', name)
  bounds = {'chips_per_host_bounds': (1, 1, 1)} if is_single else {}
  try:
    description = topologies.get_topology_desc(name, 'tpu', **bounds)
  except jax.errors.JaxRuntimeError as error:
    reason = str(error).splitlines()[0]
    raise UserError(
      f"no topology '{name}' ({reason}): use one such as {_EXAMPLE_TOPOLOGIES}"
    ) from error
  return description.devices


def find_chip(device: jax.Device) -> Chip:
  """The facts of a device's chip.

  Raises:
    UserError: if they are not in the table.
  """
  if device.device_kind not in CHIPS:
    known = ', '.join(chip.name for chip in CHIPS.values())
    raise UserError(
      f"nothing is known of the memory and speed of '{device.device_kind}': "
      f'use one of {known}'
    )
  return CHIPS[device.device_kind]


def describe_data(config: dict) -> dict[str, int]:
  """num_classes, num_channels and num_examples of the training split.

  Those of ImageNet are known without its data. (The number of examples only
  sets constants of the schedule, so that parts of it pass for the whole.)

  Raises:
    UserError: for other data sets that are not here.
  """
  names = config['source']
  if names['dataset'] == imagenet.NAME:
    return {
      'num_classes': len(imagenet.class_names()),
      'num_channels': 3,
      'num_examples': imagenet.NUM_EXAMPLES['train'],
    }
  source = open_split(config, names['dataset'], names['train_split'], None)
  return {
    'num_classes': len(source.class_names),
    'num_channels': source.num_channels,
    'num_examples': len(source),
  }


def predict(update: Update, config: dict, topology: str) -> Prediction:
  """Compiles a training step and reads the result.

  Args:
    update: the step, on the devices of the pod.
    config: that it was made from.
    topology: name of the pod, for the report.

  Raises:
    UserError: if it does not fit into memory.
  """
  chip = find_chip(update.device_mesh.devices.flat[0])
  start = time.monotonic()
  compiled = _compile(update, topology)
  seconds = time.monotonic() - start
  memory, costs = compiled.memory_analysis(), compiled.cost_analysis()
  count = hlo_text.count(compiled.as_text())
  # The compiler counts the body of a loop once; nearly all of a step that
  # accumulates gradients is the body of the loop over micro-batches.
  accumulate_steps = update.optimizer.accumulate_steps
  factor = accumulate_steps if accumulate_steps in count.loops else 1
  flops = factor * costs['flops']
  seconds_for_flops = flops / chip.flops_per_second
  seconds_for_hbm = count.hbm_bytes / chip.hbm_bytes_per_second
  num_chips, batch_size = update.device_mesh.devices.size, config['batch_size']
  rate = batch_size / max(seconds_for_flops, seconds_for_hbm)
  return Prediction(
    topology=topology,
    chip=chip.name,
    num_chips=num_chips,
    batch_size=batch_size,
    sharing_statistics=examples_sharing_statistics(config),
    chips_sharing_statistics=update.device_mesh.shape[mesh.MEMBER],
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


def _compile(update: Update, topology: str) -> jax.stages.Compiled:
  lowered = update.train_step.lower(*update.abstract_arguments())
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


def report_lines(prediction: Prediction) -> dict[str, str]:
  """Name -> value of the lines of the report."""
  p = prediction
  counts = [
    f'{value["count"]} {opcode}, {value["bytes"] / 1e6:.1f} MB'
    for opcode, value in p.collectives.items()
  ]
  bound = 'FLOPs' if p.seconds_for_flops > p.seconds_for_hbm else 'HBM'
  return {
    'chips': f'{p.num_chips} x {p.chip}',
    'global batch': f'{p.batch_size:,}',
    'images per chip': f'{p.images_per_chip:g}',
    'examples sharing statistics': str(p.sharing_statistics or 'no BN'),
    '... spread over chips': str(p.chips_sharing_statistics),
    'memory: state and batch': f'{p.argument_bytes / GIB:.2f} GiB',
    'memory: temporary': f'{p.temporary_bytes / GIB:.2f} GiB',
    'memory: program': f'{p.code_bytes / GIB:.2f} GiB',
    'memory of the chip': f'{p.memory_bytes / GIB:.2f} of '
    f'{p.hbm_bytes / GIB:.2f} GiB',
    'GFLOPs per image': f'{p.flops / p.images_per_chip / 1e9:.2f}',
    'MB accessed per image, compiler': _megabytes(p, p.bytes_accessed),
    'MB of HBM per image': _megabytes(p, p.hbm_traffic_bytes),
    'collectives per step': '; '.join(counts) or 'none',
    'ms per step at peak FLOP/s': f'{1e3 * p.seconds_for_flops:.2f}',
    'ms per step at peak HBM': f'{1e3 * p.seconds_for_hbm:.2f}',
    'bound by': bound,
    'images/s per chip, roofline': f'{p.images_per_second_per_chip:,.0f}',
    'hours for 6M x 32 images, roofline': f'{p.hours:.2f}',
    'seconds to compile': f'{p.compile_seconds:.0f}',
  }


def _megabytes(prediction: Prediction, num_bytes: float) -> str:
  """Of one image."""
  return f'{num_bytes / prediction.images_per_chip / 1e6:.1f}'


def to_markdown(predictions: Sequence[Prediction]) -> str:
  """A table with a column for each topology."""
  columns = [report_lines(prediction) for prediction in predictions]
  rows = [['a prediction', *(p.topology for p in predictions)]]
  rows += [[name, *(c[name] for c in columns)] for name in columns[0]]
  widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
  rows.insert(1, ['-' * width for width in widths])
  return '\n'.join(
    f'| {" | ".join(c.ljust(w) for c, w in zip(row, widths, strict=True))} |'
    for row in rows
  )


_CAVEAT = """
This is a prediction: no TPU has run it. Memory and FLOPs are the compiler's, HBM
traffic is counted in the compiled program. The speed is a roofline, not to be
reached: time for collectives, the vector unit and input is neglected, and the
peak FLOP/s are bfloat16's, which convolutions of float32 also run in by default.
"""


def write_results(
  path: str, config: dict, predictions: Sequence[Prediction]
) -> None:
  """Writes the numbers, with the config and the versions, as JSON.

  Raises:
    UserError: if the file cannot be written.
  """
  described = manifest()
  value = {
    'what': 'predictions by the compiler; nothing was run on a TPU',
    'packages': described['packages'],
    'commit': described['commit'],
    'chips': {chip.name: chip._asdict() for chip in CHIPS.values()},
    'config': config,
    'predictions': [dataclasses.asdict(p) for p in predictions],
  }
  try:
    os.makedirs(os.path.dirname(path) or '.', exist_ok=True)
    write_json(path, value)
  except OSError as error:
    raise UserError(
      f'{path} cannot be written ({error.strerror}): give another --output'
    ) from error


def dry_run(
  config: dict,
  topology_names: Sequence[str],
  images_per_chip: int | None = None,
  output: str | None = None,
) -> list[Prediction]:
  """Compiles for each topology, prints the table, writes the numbers.

  Args:
    config: the plain nested dict of configs/.
    topology_names: see `open_topology`.
    images_per_chip: sets the global batch for each of them; None: the config's.
    output: path of the JSON file, written anew after each; None: no file.

  Raises:
    UserError: for whatever the caller can mend.
  """
  if output is not None:
    check_output(output, 'give another --output')
  updates = {}
  for name in topology_names:  # what is wrong shows before minutes of work
    devices = open_topology(name)
    find_chip(devices[0])
    batch_size = config['batch_size']
    if images_per_chip is not None:
      batch_size = images_per_chip * len(devices)
    own = config | {'batch_size': batch_size}
    updates[name] = own, make_update(own, devices, **describe_data(own))
  predictions = []
  for name, (own, update) in updates.items():
    print(f'compiling for {name} ...', flush=True)
    predictions.append(predict(update, own, name))
    if output is not None:
      write_results(output, config, predictions)
  print(f'\n{to_markdown(predictions)}\n{_CAVEAT}')
  if output is not None:
    print(f'written: {output}')
  return predictions


def define_flags() -> None:
  """The program's flags, in the program but not on import."""
  flags.DEFINE_multi_string(
    'topology',
    None,
    'Pod to compile for, GENERATION:SHAPE; several with commas, or several '
    f'times. Example: --topology={_EXAMPLE_TOPOLOGIES.split(",")[0]}',
    required=True,
  )
  flags.DEFINE_integer(
    'batch_size',
    None,
    'Global batch: --config.batch_size. Example: --batch_size=4096',
  )
  flags.DEFINE_integer(
    'images_per_chip',
    None,
    'Global batch for each pod, by its chips, instead of --batch_size. '
    'Example: --images_per_chip=128',
  )
  define_path(
    'output',
    None,
    'JSON file to write; default: none. Example: --output=dry_run.json',
  )


def main() -> None:
  # There may be a TPU here, which this program leaves alone.
  jax.config.update('jax_platforms', 'cpu')
  values = flags.FLAGS
  config = config_keys.expand_paths(values.config.to_dict())
  if values.batch_size is not None:
    if values.images_per_chip is not None:
      raise UserError('give either --batch_size or --images_per_chip')
    config['batch_size'] = values.batch_size
  if values.output is not None:
    streams.go_on_without_stdout()
  names = [name for part in values.topology for name in part.split(',')]
  dry_run(config, names, values.images_per_chip, values.output)


if __name__ == '__main__':
  define_flags()
  command_line.run(main, DEFAULT_CONFIG)

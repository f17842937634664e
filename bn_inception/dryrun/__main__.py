r"""Predicts how a training run uses a TPU pod, on a machine without one.

    pip install -r requirements-pod.txt
    python -m bn_inception.dryrun --config=configs/bn_x30.py:imagenet \
        --topology=v5e:4x4,v5e:16x16 --images_per_chip=128 [--output=FILE]

Compiles the config's training step for each pod with the TPU compiler, which
takes minutes, and reads from the result what a step needs: memory, FLOPs, bytes,
collectives. The speed is a roofline, what the chip's peak FLOP/s and memory
bandwidth allow; real programs reach neither. Needs no data.
"""

from bn_inception.machine import interruption

if __name__ == '__main__':
  interruption.watch()  # the other imports take seconds

import dataclasses
from collections.abc import Sequence

import jax
from absl import flags

from bn_inception import config_keys
from bn_inception.data.sources import describe_data
from bn_inception.dryrun import prediction
from bn_inception.dryrun.prediction import GIB, Prediction
from bn_inception.errors import make_parent_folder
from bn_inception.experiment import make_setup
from bn_inception.machine import streams
from bn_inception.programs import command_line, config_flag, markdown
from bn_inception.programs.path_flags import define_path
from bn_inception.runs.json_files import write_json
from bn_inception.runs.run_directory import check_output, manifest

DEFAULT_CONFIG = 'configs/bn_x30.py:imagenet'
_REMEDY = 'give another --output'


def report_lines(p: Prediction) -> dict[str, str]:
  """The lines of the report: name -> value."""
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


def _megabytes(p: Prediction, num_bytes: float) -> str:
  """MB per image, as text."""
  return f'{num_bytes / p.images_per_chip / 1e6:.1f}'


def to_markdown(predictions: Sequence[Prediction]) -> str:
  """A table with a column for each topology."""
  columns = [report_lines(p) for p in predictions]
  head = ['a prediction', *(p.topology for p in predictions)]
  rows = [[name, *(c[name] for c in columns)] for name in columns[0]]
  return markdown.table(head, rows, align=True)


_CAVEAT = """
This is a prediction: no TPU has run it. Memory and FLOPs are the compiler's, HBM
traffic is counted in the compiled program. The speed is a roofline that no
program reaches: it leaves out collectives, the vector unit and input. The peak
FLOP/s are those of bfloat16, which float32 convolutions use by default as well.
"""


def write_results(
  path: str, config: dict, predictions: Sequence[Prediction]
) -> None:
  """Writes the numbers, the config and the versions as JSON.

  Raises:
    UserError: if the file cannot be written.
  """
  described = manifest()
  value = {
    'what': 'predictions of the compiler; nothing ran on a TPU',
    'packages': described['packages'],
    'commit': described['commit'],
    'chips': {chip.name: chip._asdict() for chip in prediction.CHIPS.values()},
    'config': config,
    'predictions': [dataclasses.asdict(p) for p in predictions],
  }
  make_parent_folder(path, _REMEDY)
  write_json(path, value, _REMEDY)


def dry_run(
  config: dict,
  topology_names: Sequence[str],
  images_per_chip: int | None = None,
  output: str | None = None,
) -> list[Prediction]:
  """Compiles for each topology, prints the table, writes the numbers.

  Args:
    config: a plain nested dict, as from configs/.
    topology_names: see `open_topology`.
    images_per_chip: sets each pod's global batch; None: the config's.
    output: path of a JSON file, rewritten after each topology; None: no file.

  Raises:
    UserError: for anything the user can fix.
  """
  if output is not None:
    check_output(output, _REMEDY)
  setups = {}
  for name in topology_names:  # errors come before minutes of work
    devices = prediction.open_topology(name)
    prediction.find_chip(devices[0])
    batch_size = config['batch_size']
    if images_per_chip is not None:
      batch_size = images_per_chip * len(devices)
    own = config | {'batch_size': batch_size}
    config_keys.check_config(own)
    setups[name] = make_setup(own, devices, **describe_data(own))
  predictions = []
  for name, setup in setups.items():
    print(f'compiling for {name} ...', flush=True)
    predictions.append(prediction.predict(setup, name))
    if output is not None:
      write_results(output, config, predictions)
  print(f'\n{to_markdown(predictions)}\n{_CAVEAT}')
  if output is not None:
    print(f'written: {output}')
  return predictions


def define_flags() -> None:
  """Defines the flags; not done on import."""
  flags.DEFINE_multi_string(
    'topology',
    None,
    'Pod to compile for, GENERATION:SHAPE; repeat it or use commas for more. '
    f'Example: --topology={prediction.EXAMPLE_TOPOLOGIES.split(",")[0]}',
    required=True,
  )
  flags.DEFINE_integer(
    'images_per_chip',
    None,
    'Examples per chip; sets the global batch of each pod, instead of '
    '--config.batch_size. Example: --images_per_chip=128',
  )
  define_path(
    'output',
    None,
    'JSON file to write; default: none. Example: --output=dry_run.json',
  )


def main() -> None:
  # Leaves a TPU alone if this machine has one.
  jax.config.update('jax_platforms', 'cpu')
  values = flags.FLAGS
  config = config_flag.expand_paths(values.config.to_dict())
  if values.output is not None:
    streams.continue_without_stdout()
  names = [name for part in values.topology for name in part.split(',')]
  dry_run(config, names, values.images_per_chip, values.output)


if __name__ == '__main__':
  define_flags()
  command_line.run(main, DEFAULT_CONFIG)

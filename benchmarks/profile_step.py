"""Where the time of a training step goes on a CPU, by kind of operation.

  python -m benchmarks.profile_step --contender='ours' --batch_size=16

Traces some steps with JAX's profiler, and adds up the times of the operations of
the compiled program: by opcode and by the layer that they come from. Operations
may run at the same time, so that the times can add up to more than the step.
"""

import collections
import glob
import re
import tempfile
import time

import jax
from absl import flags

from benchmarks import contenders
from benchmarks.results import print_table
from bn_inception.errors import UserError
from bn_inception.programs import command_line

NUM_STEPS = 4
_OPERATION = re.compile(r'^\s*(?:ROOT )?%?([\w.-]+) = (.*)$')
_OPCODE = re.compile(r'(?:^|[\s})])([a-z][a-z0-9-]*)\(')
_TARGET = re.compile(r'custom_call_target="([^"]*)"')
_SOURCE = re.compile(r'op_name="([^"]*)"')


def describe_operations(text: str) -> dict[str, tuple[str, str]]:
  """Name -> (opcode, the path in JAX that it comes from)."""
  found = {}
  for line in text.splitlines():
    match = _OPERATION.match(line)
    if match is None:
      continue
    name, rest = match.groups()
    opcode, target = _OPCODE.search(rest), _TARGET.search(rest)
    source = _SOURCE.search(rest)
    kind = target[1] if target else opcode[1] if opcode else '?'
    found[name] = kind, source[1] if source else ''
  return found


def kind_of(opcode: str, source: str) -> str:
  """For the table: what an operation does."""
  is_backward = 'transpose(' in source
  way = 'backward' if is_backward else 'forward'
  if 'convolve' in opcode or opcode in ('convolution', 'dot'):
    return f'{opcode}, {way}'
  for word, kind in (
    ('norm', 'batch norm'), ('max_pool', 'max pool'), ('reduce_window', 'pool'),
    ('select_and_scatter', 'max pool'), ('pool', 'pool'), ('relu', 'relu'),
    ('concatenate', 'concatenate'), ('conv', 'around convolutions'),
  ):  # fmt: skip
    if word in source:
      return f'{kind}, {way}'
  return f'{opcode}, {source.split("/")[-1][:30]}'


def read_trace(folder: str) -> dict[str, float]:
  """Operation -> its seconds, of all threads."""
  seconds = collections.Counter()
  for path in glob.glob(
    f'{glob.escape(folder)}/**/*.xplane.pb', recursive=True
  ):
    profile = jax.profiler.ProfileData.from_file(path)
    for plane in profile.planes:
      for line in plane.lines:
        for event in line.events:
          seconds[event.name] += event.duration_ns / 1e9
  return seconds


def main() -> None:
  values = flags.FLAGS
  if values.contender not in contenders.NAMES:
    raise UserError(
      f"there is no contender '{values.contender}': use one of "
      f'{", ".join(contenders.NAMES)}'
    )
  setup = contenders.Setup(
    values.contender, values.task, values.batch_size, values.image_size
  )
  with tempfile.TemporaryDirectory() as folder:
    run = contenders.make(setup)
    run(2)
    start = time.perf_counter()
    run(NUM_STEPS)
    step_seconds = (time.perf_counter() - start) / NUM_STEPS
    with jax.profiler.trace(folder):
      run(NUM_STEPS)
    seconds = read_trace(folder)
  operations = {}
  for compiled in jax.local_devices()[0].client.live_executables():
    for module in compiled.hlo_modules():
      operations |= describe_operations(module.to_string())
  by_kind, count = collections.Counter(), collections.Counter()
  for name, value in seconds.items():
    if name in operations:
      kind = kind_of(*operations[name])
      by_kind[kind] += value / NUM_STEPS
      count[kind] += 1
  total = sum(by_kind.values())
  lines = [
    [kind, str(count[kind]), f'{1e3 * value:.1f}', f'{100 * value / total:.1f}']
    for kind, value in by_kind.most_common(values.rows)
  ]
  print(
    f'{setup.name}, batch {setup.batch_size}: {1e3 * step_seconds:.0f} ms a '
    f'step, {setup.batch_size / step_seconds:.1f} images/s; operations add up '
    f'to {1e3 * total:.0f} ms'
  )
  print_table(['operations', 'number', 'ms a step', '%'], lines)
  if values.list:
    longest = sorted(
      ((v, n) for n, v in seconds.items() if n in operations), reverse=True
    )
    for value, name in longest[: values.list]:
      opcode, source = operations[name]
      print(f'{1e3 * value / NUM_STEPS:7.1f} ms  {name}  {opcode}  {source}')


if __name__ == '__main__':
  flags.DEFINE_string('contender', 'ours', 'One of benchmarks/contenders.py.')
  flags.DEFINE_string('task', 'train', 'train or inference.')
  flags.DEFINE_integer('batch_size', 16, 'Examples in a step.')
  flags.DEFINE_integer('image_size', 224, 'Height and width.')
  flags.DEFINE_integer('rows', 25, 'Of the table.')
  flags.DEFINE_integer('list', 0, 'So many single operations too.')
  command_line.run(main)

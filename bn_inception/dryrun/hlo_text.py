"""Reads an unstable text format, libtpu's and XLA's HLO; may break with either.

Counts memory traffic and collectives in a compiled program. The compiler's own
count, `bytes accessed`, does not separate a chip's main memory (HBM) from its
on-chip memory. The text does: the layout of a buffer outside the HBM names a
memory space, such as S(1) in `bf16[128,64]{1,0:T(8,128)(2,1)S(1)}`.

Counts the instructions of the entry computation, and those of loop bodies as
often as they run. A fusion counts as its operands and results; what happens
inside is free. An operand of which it reads only a part counts in full.
"""

import collections
import dataclasses
import math
import re

COLLECTIVES = (
  'all-reduce', 'all-gather', 'reduce-scatter', 'all-to-all',
  'collective-permute', 'collective-broadcast',
)  # fmt: skip
# They move no data: they rename buffers, or their values need no memory.
_NO_TRAFFIC = (
  'parameter', 'constant', 'tuple', 'get-tuple-element', 'bitcast', 'iota',
  'opt-barrier', 'after-all', 'partition-id', 'replica-id',
)  # fmt: skip
# The compiler's name for adjacent buffers seen as one.
_CONCAT_BITCAST = 'custom_call_target="ConcatBitcast"'

_ARRAY = re.compile(r'([a-z]+)(\d*)\w*\[([\d,]*)\](?:\{([\d,]*):?([^}]*)\})?')
_TILE = re.compile(r'T\(([\d,]+)\)')
_MEMORY_SPACE = re.compile(r'S\([1-9]\d*\)')
_COMPUTATION = re.compile(r'(ENTRY )?%?([\w.-]+) (?:\(.*\) -> .* )?\{$')
_INSTRUCTION = re.compile(r'\s+(?:ROOT )?%?([\w.-]+) = (.*)$')
_OPERAND = re.compile(r'%([\w.-]+)')
_INNER = re.compile(r'\b(?:calls|body|to_apply)=%?([\w.-]+)')
_TRIP_COUNT = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')


@dataclasses.dataclass(frozen=True)
class Buffer:
  """An array in memory.

  Attributes:
    num_bytes: including the padding to whole tiles of the layout.
    is_in_hbm: in the main memory, not on the chip or in the host.
  """

  num_bytes: int
  is_in_hbm: bool


@dataclasses.dataclass(frozen=True)
class Instruction:
  """`%name = type opcode(operands), attributes`.

  Attributes:
    opcode: what it does.
    results: the arrays of its type, in order if it is a tuple.
    operands: names of instructions of the same computation.
    attributes: the rest of the line.
  """

  opcode: str
  results: tuple[Buffer, ...]
  operands: tuple[str, ...]
  attributes: str


@dataclasses.dataclass
class Count:
  """What a program does on each device in one run.

  Attributes:
    hbm_bytes: read from and written to the main memory.
    all_bytes: the same for all memories.
    collectives: opcode -> number.
    collective_bytes: opcode -> bytes of the operands.
    loops: iterations of each loop; 1 where the text does not say.
  """

  hbm_bytes: int = 0
  all_bytes: int = 0
  collectives: collections.Counter = dataclasses.field(
    default_factory=collections.Counter
  )
  collective_bytes: collections.Counter = dataclasses.field(
    default_factory=collections.Counter
  )
  loops: list[int] = dataclasses.field(default_factory=list)


def parse_buffers(type_text: str) -> tuple[Buffer, ...]:
  """The arrays of a type, such as `(f32[2]{0}, bf16[4,8]{1,0:T(8,128)S(1)})`.

  Tokens and other types without a size have 0 bytes.
  """
  buffers = []
  for match in _ARRAY.finditer(type_text):
    kind, bits, shape, order, layout = match.groups(default='')
    sizes = [int(size) for size in shape.split(',') if size]
    tile = _TILE.search(layout)
    if tile:
      # The innermost axes, first in the order, are padded to whole tiles.
      lengths = [int(length) for length in tile[1].split(',')]
      axes = [int(axis) for axis in order.split(',') if axis]
      sizes = [sizes[axis] for axis in axes]
      sizes += [1] * (len(lengths) - len(sizes))
      for i, length in enumerate(reversed(lengths)):
        sizes[i] = -(-sizes[i] // length) * length
    num_bits = 8 if kind == 'pred' else int(bits or 0)
    buffers.append(
      Buffer(
        num_bytes=math.ceil(math.prod(sizes) * num_bits / 8),
        is_in_hbm=_MEMORY_SPACE.search(layout) is None,
      )
    )
  return tuple(buffers)


def _split_at_closing(text: str) -> tuple[str, str]:
  """'(a(b), c) rest' -> ('(a(b), c)', ' rest')."""
  depth = 0
  for match in re.finditer(r'[()]', text):
    depth += 1 if match[0] == '(' else -1
    if depth == 0:
      return text[: match.end()], text[match.end() :]
  raise ValueError(f'unbalanced parentheses: {text[:200]}')


def parse_instruction(text: str) -> Instruction:
  """Parses what follows `%name = ` in a line.

  Raises:
    ValueError: if it is not an instruction.
  """
  if text.startswith('('):
    type_text, rest = _split_at_closing(text)
  else:
    type_text, _, rest = text.partition(' ')
  opcode, parenthesis, rest = rest.strip().partition('(')
  if not parenthesis:
    raise ValueError(f'not an instruction: {text[:200]}')
  operands, attributes = _split_at_closing(f'({rest}')
  return Instruction(
    opcode,
    parse_buffers(type_text),
    tuple(_OPERAND.findall(operands)),
    attributes,
  )


def parse(text: str) -> tuple[dict[str, dict[str, Instruction]], str]:
  """The computations of a compiled program.

  Args:
    text: as `compiled.as_text()` gives it.

  Returns:
    (computation -> name -> instruction, the name of the entry computation)

  Raises:
    ValueError: if the text has no entry computation, or cannot be read.
  """
  computations, entry, current = {}, None, None
  for line in text.splitlines():
    if current is None:
      header = _COMPUTATION.match(line)
      if header:
        current = computations.setdefault(header[2], {})
        entry = header[2] if header[1] else entry
    elif line.startswith('}'):
      current = None
    else:
      instruction = _INSTRUCTION.match(line)
      if instruction:
        current[instruction[1]] = parse_instruction(instruction[2])
  if entry is None:
    raise ValueError('the text has no entry computation')
  return computations, entry


def count(text: str) -> Count:
  """Memory traffic and collectives of a compiled program on each device.

  Args:
    text: as `compiled.as_text()` gives it.

  Raises:
    ValueError: if it cannot be read.
  """
  computations, entry = parse(text)
  total = Count()
  _add_computation(total, computations, entry, times=1, is_fused=False)
  return total


def _add_computation(
  total: Count,
  computations: dict[str, dict[str, Instruction]],
  name: str,
  times: int,
  is_fused: bool,
) -> None:
  """Adds `times` runs of a computation to `total`.

  Args:
    total: modified.
    computations: see `parse`.
    name: of the computation.
    times: how often it runs.
    is_fused: it is inside an instruction whose traffic is already counted, so
      only its collectives are added.
  """
  computation = computations[name]
  for instruction in computation.values():
    opcode = instruction.opcode
    operands = [
      buffer
      for operand in instruction.operands
      for buffer in computation[operand].results
    ]
    base = opcode.removesuffix('-start')
    if base in COLLECTIVES:
      total.collectives[base] += times
      num_bytes = sum(buffer.num_bytes for buffer in operands)
      total.collective_bytes[base] += times * num_bytes
    is_step = opcode in ('while', 'call', 'conditional')
    if not (is_fused or is_step):
      for buffer in _traffic(instruction, operands):
        total.all_bytes += times * buffer.num_bytes
        total.hbm_bytes += times * buffer.num_bytes * buffer.is_in_hbm
    inner_times = times
    if opcode == 'while':
      trip_count = _TRIP_COUNT.search(instruction.attributes)
      total.loops.append(int(trip_count[1]) if trip_count else 1)
      inner_times *= total.loops[-1]
    if is_step or opcode in ('fusion', 'async-start'):
      for inner in _INNER.findall(instruction.attributes):
        _add_computation(
          total, computations, inner, inner_times, is_fused or not is_step
        )


def _traffic(instruction: Instruction, operands: list[Buffer]) -> list[Buffer]:
  """The buffers that an instruction reads and writes, possibly repeated."""
  opcode, results = instruction.opcode, list(instruction.results)
  is_end = opcode.endswith(('-done', '-update'))  # counted at the start
  if (
    opcode in _NO_TRAFFIC or is_end or _CONCAT_BITCAST in instruction.attributes
  ):
    return []
  if opcode == 'copy-start':
    return results[:2]  # destination, source, context
  if opcode.endswith('-start') and opcode != 'all-reduce-start':
    # Its results begin with the operands and may end with contexts.
    results = results[len(operands) : len(operands) + 1]
  if opcode.removesuffix('-start') in ('slice', 'dynamic-slice', 'gather'):
    # It reads only the part that it returns.
    part = Buffer(results[0].num_bytes, operands[0].is_in_hbm)
    return [part, *operands[1:], *results]
  if opcode == 'dynamic-update-slice':
    # In place: it writes only the part.
    part = Buffer(operands[1].num_bytes, results[0].is_in_hbm)
    return [part, *operands[1:]]
  return operands + results

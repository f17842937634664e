"""Counted by hand: programs as the compilers print them."""

import jax
import jax.numpy as jnp
import pytest

from bn_inception.dryrun import hlo_text
from bn_inception.dryrun.hlo_text import Buffer, parse_buffers


@pytest.mark.parametrize(
  'text, num_bytes, is_in_hbm',
  [
    ('f32[]', 4, True),
    ('bf16[3,5]{1,0}', 30, True),
    ('pred[7]{0}', 7, True),
    ('s4[6]{0}', 3, True),
    ('f8e4m3fn[10]{0}', 10, True),
    ('c64[2]{0}', 16, True),
    ('f32[0,8]{1,0}', 0, True),
    # The innermost axis, 64, is padded to 128; the next, 5, to 8.
    ('bf16[5,64]{1,0:T(8,128)(2,1)}', 8 * 128 * 2, True),
    ('bf16[5,64]{1,0:T(8,128)(2,1)S(1)}', 8 * 128 * 2, False),
    # Innermost is axis 0, then axis 3; axes 2 and 1 are not padded.
    ('f32[100,7,6,9]{0,3,2,1:T(8,128)}', 128 * 16 * 6 * 7 * 4, True),
    ('f32[96]{0:T(128)S(6)}', 128 * 4, False),
    ('s32[]{:T(128)}', 128 * 4, True),
    ('f32[8]{0:S(5)}', 32, False),  # in the host's memory
  ],
)
def test_size_and_place_of_an_array(text, num_bytes, is_in_hbm):
  assert parse_buffers(text) == (Buffer(num_bytes, is_in_hbm),)


def test_tuples_hold_arrays_and_tokens_hold_nothing():
  text = '(f32[2]{0}, (u8[3]{0:S(1)}, /*index=2*/token[]), s32[4]{0})'
  sizes = [buffer.num_bytes for buffer in parse_buffers(text)]
  assert sizes == [8, 3, 0, 16]


def test_instruction():
  instruction = hlo_text.parse_instruction(
    '(f32[4]{0:T(128)}, f32[]) fusion(%a.1, %b-2), kind=kLoop, calls=%inside, '
    'metadata={op_name="jit(f)/(x)"}'
  )
  assert instruction.opcode == 'fusion'
  assert instruction.operands == ('a.1', 'b-2')
  assert instruction.results == (Buffer(512, True), Buffer(4, True))
  assert 'calls=%inside' in instruction.attributes


# x of 16 x 128 float32 has 8192 bytes; y is as large, on the chip.
PROGRAM = """HloModule toy, is_scheduled=true, entry_computation_layout={()->()}

%inside (p: f32[16,128]) -> f32[16,128] {
  %p = f32[16,128]{1,0:T(8,128)} parameter(0)
  ROOT %twice = f32[16,128]{1,0:T(8,128)} add(%p, %p)
}

ENTRY %main (x: f32[16,128]) -> f32[16,128] {
  %x = f32[16,128]{1,0:T(8,128)} parameter(0), metadata={op_name="x"}
LINES
}
"""


def count(*lines):
  return hlo_text.count(PROGRAM.replace('LINES', '\n'.join(lines)))


FUSION = (
  '  %y = f32[16,128]{1,0:T(8,128)S(1)} fusion(%x), kind=kLoop, calls=%inside'
)


@pytest.mark.parametrize(
  'lines, hbm_bytes, all_bytes',
  [
    # Reads x; what is inside is not counted.
    ([FUSION], 8192, 16384),
    # Reads x twice, writes z.
    (['  ROOT %z = f32[16,128]{1,0:T(8,128)} add(%x, %x)'], 24576, 24576),
    # Two results, of which one is on the chip.
    (
      [
        '  %z = (f32[16,128]{1,0:T(8,128)}, f32[16,128]{1,0:T(8,128)S(1)}) '
        'fusion(%x), kind=kLoop, calls=%inside'
      ],
      16384,
      24576,
    ),
    # Names only.
    (
      [
        '  %t = (f32[16,128]{1,0:T(8,128)}) tuple(%x)',
        '  %g = f32[16,128]{1,0:T(8,128)} get-tuple-element(%t), index=0',
        '  %b = f32[2048]{0:T(1024)} bitcast(%g)',
        '  %c = f32[16,128]{1,0:T(8,128)S(1)} custom-call(%x, %x), '
        'custom_call_target="ConcatBitcast"',
      ],
      0,
      0,
    ),
    # Into the chip: one side is in the main memory, and counts once.
    (
      [
        '  %s = (f32[16,128]{1,0:T(8,128)S(1)}, f32[16,128]{1,0:T(8,128)}, '
        'u32[]{:S(2)}) copy-start(%x)',
        '  %d = f32[16,128]{1,0:T(8,128)S(1)} copy-done(%s)',
      ],
      8192,
      16384,
    ),
    # Half of x, into the chip.
    (
      [
        '  %s = ((f32[16,128]{1,0:T(8,128)}), f32[8,128]{1,0:T(8,128)S(1)}, '
        's32[]{:S(2)}) slice-start(%x), slice={[0:8], [0:128]}',
        '  %d = f32[8,128]{1,0:T(8,128)S(1)} slice-done(%s)',
      ],
      4096,
      8192,
    ),
    # Writes 8 of the 16 rows in place, after reading them and the position.
    (
      [
        '  %h = f32[8,128]{1,0:T(8,128)} slice(%x), slice={[0:8], [0:128]}',
        '  %i = s32[]{:T(128)} constant(0)',
        '  %u = f32[16,128]{1,0:T(8,128)} dynamic-update-slice(%x, %h, %i, %i)',
      ],
      2 * 4096 + 2 * 4096 + 2 * 512,
      2 * 4096 + 2 * 4096 + 2 * 512,
    ),
  ],
)
def test_traffic(lines, hbm_bytes, all_bytes):
  counted = count(*lines)
  assert (counted.hbm_bytes, counted.all_bytes) == (hbm_bytes, all_bytes)
  assert not counted.collectives and not counted.loops


def test_collectives_count_once_with_the_bytes_of_their_operands():
  counted = count(
    '  %r = (f32[16,128]{1,0}, f32[16,128]{1,0}) all-reduce(%x, %x), '
    'replica_groups={{0,1}}, to_apply=%inside',
    '  %s = f32[16,128]{1,0} all-reduce-start(%x), to_apply=%inside',
    '  %d = f32[16,128]{1,0} all-reduce-done(%s)',
    '  %g = (f32[16,128]{1,0}, f32[32,128]{1,0}) all-gather-start(%x)',
    '  %e = f32[32,128]{1,0} all-gather-done(%g)',
  )
  assert counted.collectives == {'all-reduce': 2, 'all-gather': 1}
  assert counted.collective_bytes == {
    'all-reduce': 3 * 8192, 'all-gather': 8192,
  }  # fmt: skip
  # All operands and results, in the main memory: 2 + 2, 1 + 1 and 1 + 2.
  assert counted.hbm_bytes == 9 * 8192


LOOP = """
%body (t: (s32[], f32[16,128])) -> (s32[], f32[16,128]) {
  %t = (s32[], f32[16,128]{1,0}) parameter(0)
  %v = f32[16,128]{1,0} get-tuple-element(%t), index=1
  %w = f32[16,128]{1,0} all-reduce(%v), to_apply=%inside
  %n = s32[] get-tuple-element(%t), index=0
  ROOT %o = (s32[], f32[16,128]{1,0}) tuple(%n, %w)
}

%test (t: (s32[], f32[16,128])) -> pred[] {
  %t = (s32[], f32[16,128]{1,0}) parameter(0)
  ROOT %less = pred[] constant(true)
}

ENTRY"""


@pytest.mark.parametrize(
  'config, times',
  [(', backend_config={"known_trip_count":{"n":"5"}}', 5), ('', 1)],
)
def test_the_body_of_a_loop_counts_as_often_as_it_runs(config, times):
  text = PROGRAM.replace('\nENTRY', LOOP).replace(
    'LINES',
    '  %c = s32[] constant(0)\n'
    '  %s = (s32[], f32[16,128]{1,0}) tuple(%c, %x)\n'
    '  %l = (s32[], f32[16,128]{1,0}) while(%s), condition=%test, body=%body'
    + config,
  )
  counted = hlo_text.count(text)
  assert counted.loops == [times]
  assert counted.collectives == {'all-reduce': times}
  assert counted.hbm_bytes == times * 2 * 8192


def test_calls_count_their_inside_and_fusions_their_collectives():
  called = '%y = f32[16,128]{1,0} call(%x), to_apply=%inside'
  counted = count(f'  {called}')
  assert counted.hbm_bytes == 3 * 8192
  text = PROGRAM.replace('add(%p, %p)', 'all-reduce(%p), to_apply=%other')
  counted = hlo_text.count(text.replace('LINES', FUSION))
  assert counted.collectives == {'all-reduce': 1}
  assert counted.hbm_bytes == 8192


def test_text_that_is_no_program_is_refused():
  with pytest.raises(ValueError, match='no entry computation'):
    hlo_text.count('HloModule nothing\n')
  with pytest.raises(ValueError, match='unbalanced'):
    count('  %y = f32[2]{0} add(%x, %x')


def test_a_program_compiled_here():
  def scaled_sums(x, w):
    def body(total, row):
      return total + jnp.sum(row @ w), None

    return jax.lax.scan(body, 0.0, x)[0]

  x, w = jnp.ones((6, 32, 64)), jnp.ones((64, 64))
  compiled = jax.jit(scaled_sums).lower(x, w).compile()
  counted = hlo_text.count(compiled.as_text())
  assert counted.loops == [6]
  # Every run reads w and a row, and writes and reads their product.
  least = 6 * 4 * (64 * 64 + 32 * 64 + 2 * 32 * 64)
  assert least <= counted.hbm_bytes == counted.all_bytes < 3 * least

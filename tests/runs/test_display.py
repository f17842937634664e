"""Progress on terminals of any width, and without one."""

import io
import re

import pytest
from rich.console import Console

from bn_inception.runs.display import ProgressDisplay, format_seconds


def test_plain_lines_where_there_is_no_terminal(capsys):
  with ProgressDisplay(0, 100, 50.0, seconds_between_lines=0) as display:
    display.update(75, 0.5, 91.25, 1234.5, 0.034, 3725.0)
    display.message('evaluation')
  lines = capsys.readouterr().out.splitlines()
  assert lines == [
    'step 75/100  epoch 1.50  loss 0.5000  accuracy 91.25 %  1234 images/s  '
    '3 % waiting for input  '
    '1:02:05 left',
    'evaluation',
  ]


@pytest.mark.parametrize('kind', ['dumb', 'unknown'])
def test_plain_lines_on_a_terminal_that_cannot_go_back(
  kind, capsys, monkeypatch
):
  monkeypatch.setenv('FORCE_COLOR', '1')  # stdout is a terminal to Rich
  monkeypatch.setenv('TERM', kind)
  with ProgressDisplay(0, 100, 50.0, seconds_between_lines=0) as display:
    display.compiling()
    for step in (50, 75):
      display.update(step, 0.5, 91.25, 1234.5, 0.034, 65.0)
  lines = capsys.readouterr().out.splitlines()
  assert [line.split('  ')[0] for line in lines] == [
    'compiling the training step ...',
    'step 50/100',
    'step 75/100',
  ]


def test_live_display_on_a_terminal(capsys, monkeypatch):
  monkeypatch.setenv('FORCE_COLOR', '1')
  monkeypatch.setenv('COLUMNS', '120')
  with ProgressDisplay(0, 100, 50.0) as display:
    display.update(75, 0.5, 91.25, 1234.5, 0.034, 65.0)
    display.message('evaluation of [all]')
  output = capsys.readouterr().out
  assert 'step 75/100' in output and '1:05 left' in output
  assert 'evaluation of [all]' in output


def last_line(width, *, last_step, seconds_left, steps_per_epoch=50.0):
  """What a terminal of so many columns shows at the end."""
  console = Console(
    file=io.StringIO(), width=width, force_terminal=True, color_system=None
  )
  with ProgressDisplay(
    0, last_step, steps_per_epoch, console=console
  ) as display:
    display.update(last_step // 2, 0.5, 91.25, 1234.5, 0.034, seconds_left)
  text = re.sub(r'\x1b\[[0-9;?]*[A-Za-z]', '', console.file.getvalue())
  return re.split(r'[\r\n]+', text.strip())[-1].rstrip()


@pytest.mark.parametrize(
  'width, line',
  [
    (40, 'step 50/100  accuracy 91.25 %  1:05 left'),
    (39, 'step 50/100  1:05 left'),
    (60, 'step 50/100  loss 0.5000  accuracy 91.25 %  1:05 left'),
    (
      79,
      'step 50/100  epoch 1.00  loss 0.5000  accuracy 91.25 %  1:05 left',
    ),
    (
      80,
      'step 50/100  epoch 1.00  loss 0.5000  accuracy 91.25 %  1234 images/s  '
      '1:05 left',
    ),
  ],
)
def test_narrow_terminals_have_fewer_fields(width, line):
  assert last_line(width, last_step=100, seconds_left=65.0) == line


def test_the_fields_of_imagenet_fit_into_80_columns():
  found = last_line(
    80, last_step=6_000_000, seconds_left=359_999.0, steps_per_epoch=40_000.0
  )
  for field in ('step 3000000/6000000', 'epoch 75.00', 'loss 0.5000'):
    assert field in found
  assert found.endswith('accuracy 91.25 %  99:59:59 left')


def test_wide_terminals_have_a_bar():
  found = last_line(140, last_step=100, seconds_left=65.0)
  bar, _, text = found.partition('step')
  assert set(bar.strip()) <= set('━╸╺ ') and len(bar) == 21
  assert text.endswith('3 % waiting for input  1:05 left')


def test_compiling_is_said_where_there_is_no_terminal(capsys):
  with ProgressDisplay(0, 100, 50.0) as display:
    display.compiling()
  assert capsys.readouterr().out == 'compiling the training step ...\n'


def test_seconds_are_read_as_hours():
  assert format_seconds(3725.4) == '1:02:05' and format_seconds(65) == '1:05'

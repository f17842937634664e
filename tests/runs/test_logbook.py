"""What a run writes down."""

import errno
import io
import json
import re
import shutil

import pytest
from rich.console import Console

from bn_inception.errors import UserError
from bn_inception.runs import logbook


def test_records_come_back_and_later_ones_are_dropped_on_resume(tmp_path):
  workdir = str(tmp_path)
  with logbook.Logbook(workdir, 0) as book:
    for step in (10, 20, 30):
      book.write('train', step, loss=1.0 / step)
    book.write('eval', 20, top1=float('nan'))
  assert [r['step'] for r in logbook.read_metrics(workdir)] == [10, 20, 30, 20]
  with open(tmp_path / 'metrics.jsonl', 'a') as file:
    file.write('{"kind": "train", "st')  # a killed process
  with logbook.Logbook(workdir, 20) as book:
    assert [r['step'] for r in book.records] == [10, 20, 20]
    dropped = (tmp_path / 'metrics_dropped.jsonl').read_text()
    assert json.loads(dropped) == {'kind': 'train', 'step': 30, 'loss': 1 / 30}
    book.write('train', 30, loss=0.5)
  records = logbook.read_metrics(workdir)
  assert records[-1] == {'kind': 'train', 'step': 30, 'loss': 0.5}
  assert records[2] == {'kind': 'eval', 'step': 20, 'top1': None}
  assert len(records) == 4
  for line in (tmp_path / 'metrics.jsonl').read_text().splitlines():
    json.loads(line, parse_constant=pytest.fail)


def test_a_damaged_line_is_an_error(tmp_path):
  for content in (
    b'{"step": 1}\n{"st\n{"step": 3}\n',
    b'\xff\n',
    b'{}\n',
    b'{"step": 1}\n',
    b'{"kind": "eval", "step": null}\n',
    b'1\n',
  ):
    (tmp_path / 'metrics.jsonl').write_bytes(content)
    with pytest.raises(UserError, match='metrics.jsonl is damaged'):
      logbook.read_metrics(str(tmp_path))


def test_tensorboard_events_are_written(tmp_path):
  with logbook.Logbook(str(tmp_path), 0) as book:
    book.write('train', 1, loss=2.5)
  events = list((tmp_path / 'tb').iterdir())
  assert len(events) == 1 and b'train/loss' in events[0].read_bytes()


def test_a_folder_named_as_a_bucket_is_a_folder(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  for workdir in 'gs:a', 's3:a':
    (tmp_path / workdir).mkdir()
    with logbook.Logbook(workdir, 0) as book:
      book.write('train', 1, loss=2.5)
    assert len(list((tmp_path / workdir / 'tb').iterdir())) == 1


def test_a_full_disk_is_one_line_and_loses_no_written_record(small_disk):
  workdir = small_disk.path / 'run'
  workdir.mkdir()
  small_disk.fill(32)
  with pytest.raises(UserError) as caught:
    with logbook.Logbook(str(workdir), 0) as book:
      for step in range(1, 2000):
        book.write('train', step, loss=1.0, top1=2.0, images_per_second=3.0)
  assert re.match(
    rf'{workdir}/(metrics.jsonl|tb) cannot be written \(No space left',
    str(caught.value),
  )
  steps = [r['step'] for r in logbook.read_metrics(str(workdir))]
  assert steps == list(range(1, len(steps) + 1)) and 50 < len(steps) < 1000
  with pytest.raises(UserError, match='No space left on device'):
    logbook.Logbook(str(workdir), len(steps))
  small_disk.empty()
  with logbook.Logbook(str(workdir), len(steps)) as book:
    book.write('train', len(steps) + 1, loss=1.0)
  records = logbook.read_metrics(str(workdir))
  assert [r['step'] for r in records] == list(range(1, len(steps) + 2))


def test_no_file_is_opened_to_append(tmp_path, monkeypatch):
  def refuse(path, mode='r', **options):
    if 'a' in mode:
      raise OSError(errno.EOPNOTSUPP, 'no appending')
    return open(path, mode, **options)

  monkeypatch.setattr(logbook, 'open', refuse, raising=False)
  for first_step in 0, 1, 0, 0:  # records are dropped twice
    with logbook.Logbook(str(tmp_path), first_step) as book:
      book.write('train', first_step + 1, loss=float(first_step))
  assert [r['step'] for r in logbook.read_metrics(str(tmp_path))] == [1]
  dropped = (tmp_path / 'metrics_dropped.jsonl').read_text().splitlines()
  assert [json.loads(line)['step'] for line in dropped] == [1, 2, 1]


def test_a_removed_log_is_an_error(tmp_path):
  with pytest.raises(UserError, match='metrics.jsonl was removed or moved'):
    with logbook.Logbook(str(tmp_path), 0) as book:
      book.write('train', 1, loss=1.0)
      shutil.move(tmp_path / 'metrics.jsonl', tmp_path / 'elsewhere')
      book.write('train', 2, loss=1.0)


def test_plain_lines_where_there_is_no_terminal(capsys):
  with logbook.ProgressDisplay(
    0, 100, 50.0, seconds_between_lines=0
  ) as display:
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
  with logbook.ProgressDisplay(
    0, 100, 50.0, seconds_between_lines=0
  ) as display:
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
  with logbook.ProgressDisplay(0, 100, 50.0) as display:
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
  with logbook.ProgressDisplay(
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
  with logbook.ProgressDisplay(0, 100, 50.0) as display:
    display.compiling()
  assert capsys.readouterr().out == 'compiling the training step ...\n'


def test_learning_curve_is_a_picture_of_the_records(tmp_path):
  records = [
    {'kind': kind, 'step': step, 'loss': 1 / step, 'top1': 50.0}
    for kind in ('train', 'eval')
    for step in range(1, 5)
  ]
  path = tmp_path / 'curve.png'
  logbook.draw_learning_curve(records, str(path), 'a run')
  assert path.read_bytes().startswith(b'\x89PNG')
  assert list(tmp_path.iterdir()) == [path]
  empty = tmp_path / 'empty.png'
  logbook.draw_learning_curve([], str(empty), 'a run')
  assert path.stat().st_size > empty.stat().st_size + 1000

"""What a run writes down."""

import errno
import json
import re
import shutil

import pytest

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


def test_a_loss_that_is_not_finite_prints_nothing(tmp_path, capfd, caplog):
  with logbook.Logbook(str(tmp_path), 0) as book:
    book.write('train', 1, loss=float('nan'), top1=float('inf'), top5=2.0)
  (events,) = (tmp_path / 'tb').iterdir()
  assert b'train/top5' in events.read_bytes()
  assert capfd.readouterr() == ('', '') and not caplog.records


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

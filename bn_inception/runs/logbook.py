"""The metrics of a run: metrics.jsonl and TensorBoard events.

Every line of metrics.jsonl has a `kind` ('train', 'eval', 'start': the first step
of a process, or 'replaced': a bad example) and a `step`, the updates done so far.
"""

import json
import math
import os
import socket
import time
from typing import TextIO

from tensorboardX import summary
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.record_writer import RecordWriter

from bn_inception.errors import UserError, replacing, writing

METRICS_FILE, DROPPED_FILE = 'metrics.jsonl', 'metrics_dropped.jsonl'


def read_metrics(
  workdir: str, remedy: str = 'restore it, or give another --workdir'
) -> list[dict]:
  """The records of a run's metrics.jsonl; [] if there is no such file.

  Ignores an unfinished last line, which a killed process may leave.

  Raises:
    UserError: if another line is damaged; ends with `remedy`.
  """
  path = os.path.join(workdir, METRICS_FILE)
  if not os.path.exists(path):
    return []
  try:
    with open(path) as file:
      lines = file.read().split('\n')
    # Whatever follows the last newline is empty or incomplete.
    records = [json.loads(line) for line in lines[:-1]]
    if not all(map(_is_record, records)):
      raise ValueError('a record without a kind and a step')
  except ValueError as error:  # not JSON, or not even text
    raise UserError(f'{path} is damaged ({error}): {remedy}') from error
  return records


def _is_record(value) -> bool:
  return (
    isinstance(value, dict)
    and isinstance(value.get('kind'), str)
    and isinstance(value.get('step'), int)
  )


def open_at_end(path: str) -> TextIO:
  """Opens a text file to append to; makes it if absent.

  Seeks to the end: some network drives have no append mode.
  """
  file = open(path, 'w', opener=_without_truncating)
  file.seek(0, os.SEEK_END)
  return file


def _without_truncating(path: str, flags: int) -> int:
  return os.open(path, flags & ~os.O_TRUNC, 0o666)


class Logbook:
  """Writes the metrics of a run; a context manager.

  Args:
    workdir: the run directory.
    first_step: where the run resumes. Records of later steps, written after the
      checkpoint that it resumes from, move to metrics_dropped.jsonl; they will be
      written again.
    is_writing: False in processes that leave the files to another one.

  Attributes:
    records: all records of the run; without `is_writing`, of this process.

  Raises:
    UserError: if a file cannot be written; so do `write` and leaving the context.
  """

  def __init__(self, workdir: str, first_step: int, is_writing: bool = True):
    self.records, self._file, self._events = [], None, None
    if is_writing:
      self._open(workdir, first_step)

  def _open(self, workdir: str, first_step: int) -> None:
    records = read_metrics(workdir)
    kept = [r for r in records if r['step'] <= first_step]
    dropped = [r for r in records if r['step'] > first_step]
    self._path = os.path.join(workdir, METRICS_FILE)
    if dropped:
      path = os.path.join(workdir, DROPPED_FILE)
      with writing(path), open_at_end(path) as file:
        file.writelines(json.dumps(record) + '\n' for record in dropped)
    with replacing(self._path) as file:
      file.writelines(json.dumps(record) + '\n' for record in kept)
    with writing(self._path):
      self._file = open_at_end(self._path)
    self._events = _Events(os.path.join(workdir, 'tb'), first_step + 1)
    self.records = kept

  def write(self, kind: str, step: int, **values: float) -> None:
    """Records numbers of a step; NaN and infinities become null."""
    record = {'kind': kind, 'step': step}
    for name, value in values.items():
      record[name] = value if math.isfinite(value) else None
    self.records.append(record)
    if self._file is None:
      return
    with writing(self._path):
      try:
        os.stat(self._path)
      except FileNotFoundError as error:
        # The rest of the run would go into a file without a name.
        raise UserError(
          f'{self._path} was removed or moved during the run: give the same '
          'command again'
        ) from error
      self._file.write(json.dumps(record) + '\n')
      self._file.flush()
    self._events.write(kind, step, values)

  def __enter__(self):
    return self

  def __exit__(self, exception_type, exception, traceback):
    if self._file is None:
      return
    try:
      with writing(self._path), self._file:
        self._events.close()
    except UserError:
      if exception is None:
        raise
      # The same full disk, probably, that `exception` is about.


class _Events:
  """TensorBoard's events, flushed every two minutes.

  Not tensorboardX's SummaryWriter: it writes in a thread, and after a full disk
  has ended the thread, the next call blocks forever.

  Args:
    folder: made if absent.
    first_step: TensorBoard hides older events of this and later steps.
  """

  def __init__(self, folder: str, first_step: int):
    self._folder, self._next_flush = folder, -math.inf
    name = f'events.out.tfevents.{int(time.time())}.{socket.gethostname()}'
    with writing(folder):
      os.makedirs(folder, exist_ok=True)
      # Absolute, since tensorboardX takes a folder 'gs:a' for a bucket.
      self._writer = RecordWriter(os.path.join(os.path.abspath(folder), name))
    self._add(file_version='brain.Event:2')
    self._add(step=first_step, session_log=SessionLog(status=SessionLog.START))

  def write(self, kind: str, step: int, values: dict[str, float]) -> None:
    # tensorboardX prints a warning of its own about NaN and infinities.
    finite = {k: v for k, v in values.items() if math.isfinite(v)}
    for name, value in finite.items():
      self._add(step=step, summary=summary.scalar(f'{kind}/{name}', value))
    now = time.monotonic()
    if now >= self._next_flush:  # a flush waits for the disk
      self._next_flush = now + 120.0
      with writing(self._folder):
        self._writer.flush()

  def close(self) -> None:
    with writing(self._folder):
      self._writer.close()

  def _add(self, **fields) -> None:
    event = Event(wall_time=time.time(), **fields)
    with writing(self._folder):
      self._writer.write(event.SerializeToString())

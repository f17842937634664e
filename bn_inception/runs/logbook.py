"""What a run tells while it runs: metrics.jsonl, TensorBoard events, progress.

Every line of metrics.jsonl has a `kind` ('train', 'eval', 'start': the first step
of a process, or 'replaced': a bad example) and a `step`, the updates done so far.
"""

import json
import math
import os
import socket
import sys
import time
from typing import TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from tensorboardX import summary
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.record_writer import RecordWriter

from bn_inception.errors import UserError, writing

_BAR_WIDTH, _TEXT = 20, TextColumn('{task.description}')
# What a narrow terminal does without, in this order.
_DISPENSABLE = ('wait', 'speed', 'epoch', 'loss', 'accuracy')
METRICS_FILE, DROPPED_FILE = 'metrics.jsonl', 'metrics_dropped.jsonl'


def read_metrics(
  workdir: str, remedy: str = 'restore it, or give another --workdir'
) -> list[dict]:
  """The records of a run's metrics.jsonl; [] if there is none.

  A last line that a killed process left unfinished is passed over.

  Args:
    workdir: the run directory.
    remedy: what to do about a damaged file.

  Raises:
    UserError: if another line is damaged.
  """
  path = os.path.join(workdir, METRICS_FILE)
  if not os.path.exists(path):
    return []
  try:
    with open(path) as file:
      lines = file.read().split('\n')
    # What follows the last newline is empty, or was cut short.
    records = [json.loads(line) for line in lines[:-1]]
    if not all(map(_is_record, records)):
      raise ValueError('a record without a kind and a step')
  except ValueError as error:  # no JSON, or not even text
    raise UserError(f'{path} is damaged ({error}): {remedy}') from error
  return records


def _is_record(value) -> bool:
  return (
    isinstance(value, dict)
    and isinstance(value.get('kind'), str)
    and isinstance(value.get('step'), int)
  )


def open_at_end(path: str) -> TextIO:
  """A text file to add to, made if absent.

  Not in the mode for it, which some network drives do not have.
  """
  file = open(path, 'w', opener=_open_as_it_is)
  file.seek(0, os.SEEK_END)
  return file


def _open_as_it_is(path: str, flags: int) -> int:
  return os.open(path, flags & ~os.O_TRUNC, 0o666)


class Logbook:
  """Writes metrics of a run; a context manager.

  Args:
    workdir: the run directory.
    first_step: the run goes on from here; records of later steps, written
      after the checkpoint that is resumed, come again, and the old ones go to
      metrics_dropped.jsonl.
    is_writing: otherwise nothing is read or written: another process does.

  Attributes:
    records: all of the run so far; of this process where it writes nothing.

  Raises:
    UserError: if it cannot be written, as `write` and the end do.
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
    with writing(self._path):
      with open(self._path + '.tmp', 'w') as file:
        file.writelines(json.dumps(record) + '\n' for record in kept)
      os.replace(self._path + '.tmp', self._path)
      self._file = open_at_end(self._path)
    self._events = _Events(os.path.join(workdir, 'tb'), first_step + 1)
    self.records = kept

  def write(self, kind: str, step: int, **values: float) -> None:
    """Records numbers of a step; a non-finite one becomes null."""
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
        # The open file would take the rest of the run with it.
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
      # A full disk refuses again what it has refused before.


class _Events:
  """TensorBoard's events, on the disk within two minutes.

  tensorboardX's SummaryWriter writes in a thread, and when a full disk has ended
  that, the next call of it waits for ever.

  Args:
    folder: made if absent.
    first_step: events of this and later steps, by earlier runs, are void.
  """

  def __init__(self, folder: str, first_step: int):
    self._folder, self._next_flush = folder, -math.inf
    name = f'events.out.tfevents.{int(time.time())}.{socket.gethostname()}'
    with writing(folder):
      os.makedirs(folder, exist_ok=True)
      # tensorboardX takes the folder 'gs:a' for a bucket, but not '/runs/gs:a'.
      self._writer = RecordWriter(os.path.join(os.path.abspath(folder), name))
    self._add(file_version='brain.Event:2')
    self._add(step=first_step, session_log=SessionLog(status=SessionLog.START))

  def write(self, kind: str, step: int, values: dict[str, float]) -> None:
    for name, value in values.items():
      self._add(step=step, summary=summary.scalar(f'{kind}/{name}', value))
    now = time.monotonic()
    if now >= self._next_flush:  # it waits for the disk
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


class ProgressDisplay:
  """A live line on a terminal; plain lines elsewhere. A context manager.

  Args:
    first_step, last_step: where the run starts and ends.
    steps_per_epoch: training examples / global batch.
    seconds_between_lines: of plain output.
    console: to write to; None: stdout.
  """

  def __init__(
    self,
    first_step: int,
    last_step: int,
    steps_per_epoch: float,
    seconds_between_lines: float = 5.0,
    console: Console | None = None,
  ):
    self._last_step, self._steps_per_epoch = last_step, steps_per_epoch
    self._pause, self._last_line = seconds_between_lines, -math.inf
    console = console or Console(file=sys.stdout)
    self._live = None
    if console.is_interactive:  # a dumb terminal shows no live line
      self._bar = BarColumn(_BAR_WIDTH)
      self._live = Progress(self._bar, _TEXT, console=console)
      self._task = self._live.add_task(
        'compiling the training step ...', total=last_step, completed=first_step
      )

  def compiling(self) -> None:
    """Says so, as it may take minutes; the live line does already."""
    if not self._live:
      print('compiling the training step ...', flush=True)

  def update(
    self, step: int, loss: float, top1: float, images_per_second: float,
    input_wait_fraction: float, seconds_left: float,
  ) -> None:  # fmt: skip
    """Shows where training is."""
    fields = {
      'step': f'step {step}/{self._last_step}',
      'epoch': f'epoch {step / self._steps_per_epoch:.2f}',
      'loss': f'loss {loss:.4f}',
      'accuracy': f'accuracy {top1:.2f} %',
      'speed': f'{images_per_second:.0f} images/s',
      'wait': f'{100 * input_wait_fraction:.0f} % waiting for input',
      'left': f'{format_seconds(seconds_left)} left',
    }
    now = time.monotonic()
    if self._live:
      self._show(step, fields)
    elif now - self._last_line >= self._pause or step == self._last_step:
      self._last_line = now
      print('  '.join(fields.values()), flush=True)

  def _show(self, step: int, fields: dict[str, str]) -> None:
    """As many fields as the terminal has columns for, and the bar."""
    columns = self._live.console.width
    for name in _DISPENSABLE:
      if len('  '.join(fields.values())) <= columns:
        break
      del fields[name]
    text = '  '.join(fields.values())
    has_bar = _BAR_WIDTH + 1 + len(text) <= columns
    self._live.columns = (self._bar, _TEXT) if has_bar else (_TEXT,)
    self._live.update(self._task, completed=step, description=text)

  def message(self, text: str) -> None:
    """A line that stays."""
    if self._live:
      self._live.console.print(text, highlight=False, markup=False)
    else:
      print(text, flush=True)

  def __enter__(self):
    if self._live:
      self._live.start()
    return self

  def __exit__(self, *exception):
    if self._live:
      self._live.stop()


def format_seconds(seconds: float) -> str:
  """'1:02:03' or '2:03'."""
  minutes, seconds = divmod(round(seconds), 60)
  hours, minutes = divmod(minutes, 60)
  if hours:
    return f'{hours}:{minutes:02}:{seconds:02}'
  return f'{minutes}:{seconds:02}'


def draw_learning_curve(records: list[dict], path: str, title: str) -> None:
  """A picture of training loss and evaluation accuracy against steps.

  Args:
    records: of `read_metrics`.
    path: of the PNG file.
    title: above the picture.
  """
  import matplotlib

  matplotlib.use('agg')
  from matplotlib import pyplot

  def series(kind: str, name: str):
    chosen = [r for r in records if r['kind'] == kind and r[name] is not None]
    return [r['step'] for r in chosen], [r[name] for r in chosen]

  figure, (left, right) = pyplot.subplots(1, 2, figsize=(10, 4))
  left.plot(*series('train', 'loss'), linewidth=1, label='training')
  left.plot(*series('eval', 'loss'), marker='.', label='evaluation')
  left.set(xlabel='steps', ylabel='cross-entropy', yscale='log')
  right.plot(*series('train', 'top1'), linewidth=1, label='training')
  right.plot(*series('eval', 'top1'), marker='.', label='evaluation')
  right.set(xlabel='steps', ylabel='top-1 accuracy (%)')
  for axes in (left, right):
    axes.grid(alpha=0.3)
    axes.legend()
  figure.suptitle(title)
  figure.tight_layout()
  with writing(path):
    # Whoever looks at it meanwhile sees the old one or the new one.
    figure.savefig(path + '.tmp', dpi=120, format='png')
    os.replace(path + '.tmp', path)
  pyplot.close(figure)

"""Training progress on the terminal."""

import math
import sys
import time

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

_BAR_WIDTH, _TEXT = 20, TextColumn('{task.description}')
# The fields that a narrow terminal leaves out, in this order.
_DISPENSABLE = ('wait', 'speed', 'epoch', 'loss', 'accuracy')


class ProgressDisplay:
  """A live line on a terminal, plain lines elsewhere; a context manager.

  Args:
    first_step, last_step: where the run starts and ends.
    steps_per_epoch: training examples / global batch.
    seconds_between_lines: of plain output, at least.
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
    """Prints that compiling begins; the live line already shows it."""
    if not self._live:
      print('compiling the training step ...', flush=True)

  def update(
    self, step: int, loss: float, top1: float, images_per_second: float,
    input_wait_fraction: float, seconds_left: float,
  ) -> None:  # fmt: skip
    """Shows the current step and its numbers."""
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
    """Shows as many fields as fit into the terminal, and then the bar."""
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
    """Prints a line that stays, above the live line."""
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

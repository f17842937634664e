"""Tells how training goes: records, lines on the terminal, the learning curve."""

import contextlib
import os
import time
from collections.abc import Iterator

from bn_inception import metrics
from bn_inception.experiment import Experiment
from bn_inception.machine import distributed
from bn_inception.runs import learning_curve
from bn_inception.runs.display import ProgressDisplay
from bn_inception.runs.logbook import Logbook
from bn_inception.wording import count

SECONDS_BETWEEN_DRAWINGS = 30.0  # of the learning curve, at least


@contextlib.contextmanager
def open_recorder(
  experiment: Experiment, workdir: str, first_step: int, entry_time: float
) -> Iterator['Recorder']:
  """A recorder for the steps after `first_step`; see `Recorder`."""
  with (
    Logbook(workdir, first_step, distributed.is_first()) as book,
    ProgressDisplay(
      first_step, experiment.num_steps, experiment.steps_per_epoch
    ) as display,
  ):
    yield Recorder(experiment, workdir, book, display, entry_time)


class Recorder:
  """Writes to the logbook, and says on the terminal, what happens in training.

  Args:
    experiment, workdir: of the run.
    book, display: to write to.
    entry_time: when this process began with the run, as `time.monotonic`.
  """

  def __init__(
    self,
    experiment: Experiment,
    workdir: str,
    book: Logbook,
    display: ProgressDisplay,
    entry_time: float,
  ):
    self._experiment, self._workdir = experiment, workdir
    self._book, self._display = book, display
    self._entry_time = entry_time
    self._earlier = book.records[-1]['seconds'] if book.records else 0.0
    self._next_drawing = time.monotonic() + SECONDS_BETWEEN_DRAWINGS
    # Where the interval between two records began; None: with compilation.
    self._interval_start, self._interval_step = None, None

  @property
  def records(self) -> list[dict]:
    """Those of the whole run, with earlier processes."""
    return self._book.records

  @property
  def _seconds(self) -> float:
    """Spent on the run so far, by all its processes one after the other."""
    return self._earlier + time.monotonic() - self._entry_time

  def message(self, text: str) -> None:
    """Prints a line."""
    self._display.message(text)

  def compiling(self) -> None:
    """The first step is about to compile."""
    self._display.compiling()

  def first_step(self, step: int) -> None:
    """The first step of this process is done."""
    seconds = time.monotonic() - self._entry_time
    self._book.write(
      'start', step, seconds_to_first_step=seconds, seconds=self._seconds
    )
    self._display.message(
      f'first step after {seconds:.1f} s, including start and compilation'
    )

  def begin_interval(self, step: int) -> None:
    """The next `training` measures the speed from here."""
    self._interval_start, self._interval_step = time.monotonic(), step

  def replaced(self, step: int, indices: list[int]) -> None:
    """Bad examples of this process's batches were replaced by others."""
    for index in distributed.gather(indices):
      self._book.write('replaced', step, index=index)
      self._display.message(
        f'replaced a bad image: {self._experiment.source.describe(index)}'
      )

  def training(
    self, step: int, fetched: list[dict], wait_seconds: float
  ) -> None:
    """An interval of training is over.

    Args:
      step: the last one.
      fetched: the metrics of each step since the last call: see
        `steps.train_step`.
      wait_seconds: how long the interval waited for input.
    """
    speed = self._speed(step, wait_seconds)
    averages = metrics.divide_by_count(metrics.add_sums(fetched))
    measured = metrics.percentiles([f['measurements'] for f in fetched])
    latest = fetched[-1]
    bad_step = int(latest['first_nonfinite_step'])
    self._book.write(
      'train',
      step,
      **averages,
      **measured,
      learning_rate=float(latest['learning_rate']),
      gradient_norm=float(latest['gradient_norm']),
      first_nonfinite_step=bad_step,
      seconds=self._seconds,
      **speed,
    )
    if bad_step >= 0:
      self._display.message(
        f'diverged: loss or gradient was not finite at step {bad_step}'
      )
      return
    if speed:
      rate = speed['images_per_second']
      left = (self._experiment.num_steps - step) * self._experiment.batch_size
      self._display.update(
        step,
        averages['loss'],
        averages['top1'],
        rate,
        speed['input_wait_fraction'],
        left / rate,
      )

  def _speed(self, step: int, wait_seconds: float) -> dict[str, float]:
    """{} for the first interval, which would measure compilation."""
    if self._interval_start is None:
      return {}
    seconds = time.monotonic() - self._interval_start
    num_examples = (step - self._interval_step) * self._experiment.batch_size
    return {
      'images_per_second': num_examples / seconds,
      'input_wait_fraction': wait_seconds / seconds,
    }

  def evaluation(self, step: int, values: dict, population: dict) -> None:
    """The network was evaluated.

    Args:
      step: when.
      values: from `passes.evaluate`, with moving averages.
      population: the same with population statistics; {} if not taken.
    """
    note = ''
    if population:
      note = f'; population statistics: top-1 {population["top1"]:.2f} %'
      population = {
        f'population_{name}': population[name]
        for name in ('loss', 'top1', 'top5')
      }
    self._book.write(
      'eval', step, **values, **population, seconds=self._seconds
    )
    self._display.message(
      f'evaluation at step {step}: top-1 {values["top1"]:.2f} %, top-5 '
      f'{values["top5"]:.2f} %, loss {values["loss"]:.4f} '
      f'({count(values["examples"], "example", form="")}){note}'
    )
    if distributed.is_first() and time.monotonic() >= self._next_drawing:
      self.draw()

  def draw(self) -> None:
    """Draws the learning curve so far, at most for 1 % of the time."""
    start = time.monotonic()
    draw_learning_curve(self._experiment, self.records, self._workdir)
    end = time.monotonic()
    pause = max(SECONDS_BETWEEN_DRAWINGS, 100 * (end - start))
    self._next_drawing = end + pause


def draw_learning_curve(
  experiment: Experiment, records: list[dict], workdir: str
) -> None:
  """Draws the learning curve of a run into its folder."""
  path = os.path.join(workdir, 'learning_curve.png')
  learning_curve.draw(records, path, experiment.setup.config['name'])

r"""Draws the curves of several runs in one figure.

  python -m bn_inception.plot runs/bn_x5 runs/bn_x30 --out=curves.html
  python -m bn_inception.plot runs/* --metric=train/loss --out=loss.svg

An HTML file is interactive and needs no network.
"""

from bn_inception.machine import interruption

if __name__ == '__main__':
  interruption.watch()  # the other imports take seconds

import os
from collections.abc import Sequence

from absl import flags

from bn_inception.errors import UserError, writing
from bn_inception.machine import paths
from bn_inception.programs import command_line
from bn_inception.programs.path_flags import define_path
from bn_inception.runs import run_directory
from bn_inception.runs.logbook import METRICS_FILE, read_metrics
from bn_inception.study import charts, figures
from bn_inception.study.plots import Curve, Plot, Point

_HTML, _REMEDY = '.html', 'give another --out'
_SUFFIXES = _HTML, '.svg', '.png', '.pdf'
_LABELS = {
  'top1': 'top-1 accuracy (%)', 'top5': 'top-5 accuracy (%)',
  'loss': 'cross-entropy',
}  # fmt: skip


def draw(workdirs: Sequence[str], metric: str, out: str) -> None:
  """Writes a figure with a curve for each run.

  Args:
    workdirs: run directories.
    metric: KIND/NAME of a number in metrics.jsonl, as in TensorBoard.
    out: file to write; its suffix is the format.

  Raises:
    UserError: if a folder lacks metrics or this metric, for an unknown suffix, or
      if `out` cannot be written or is a file of a run.
  """
  if not out.endswith(_SUFFIXES):
    raise UserError(
      f'{out} has no known suffix: end --out with one of {", ".join(_SUFFIXES)}'
    )
  run_directory.check_output(out, _REMEDY)
  plot = make_plot(workdirs, metric)
  if out.endswith(_HTML):
    chart = charts.make_chart(plot, metric)
    chart.update_layout(title=plot.title, margin={'t': 50}, height=None)
    with writing(out, _REMEDY):
      chart.write_html(out, config=charts.CONFIG)
  else:
    figures.save(figures.make_figure(plot, metric), out)


def make_plot(workdirs: Sequence[str], metric: str) -> Plot:
  """A curve for each run, against its steps; see `draw`."""
  curves = tuple(
    Curve(label, number, number, _read_points(workdir, metric))
    for number, (label, workdir) in enumerate(
      zip(_labels(workdirs), workdirs, strict=True)
    )
  )
  _, _, name = metric.partition('/')
  y_label = _LABELS.get(name.removeprefix('population_'), name)
  return Plot('curves', metric, 'steps', y_label, {metric: curves})


def _labels(workdirs: Sequence[str]) -> list[str]:
  """The folders' names, or their paths where two have the same name."""
  names = [os.path.basename(os.path.abspath(workdir)) for workdir in workdirs]
  return names if len(set(names)) == len(names) else list(workdirs)


def _read_points(workdir: str, metric: str) -> tuple[Point, ...]:
  records = read_metrics(workdir, remedy='restore it, or leave this run out')
  if not records:
    path = os.path.join(workdir, METRICS_FILE)
    raise UserError(
      f'{path} is missing or empty: give the directory of a run that has begun'
    )
  kind, _, name = metric.partition('/')
  points = tuple(
    Point(record['step'], record[name], record[name], record[name], 1)
    for record in records
    if record['kind'] == kind and _is_number(record.get(name))
  )
  if not points:
    found = {
      f'{record["kind"]}/{key}'
      for record in records
      for key in record.keys() - {'kind', 'step'}
      if _is_number(record[key])
    }
    others = f', or give one of {", ".join(sorted(found))} as --metric'
    raise UserError(
      f"{workdir} has no numbers of '{metric}': leave it out"
      f'{others if found else ""}'
    )
  return points


def _is_number(value) -> bool:
  return isinstance(value, int | float) and not isinstance(value, bool)


def define_flags() -> None:
  """The program's flags, in the program but not on import."""
  flags.DEFINE_string(
    'metric',
    'eval/top1',
    'KIND/NAME of a number in metrics.jsonl. Example: --metric=train/loss',
  )
  define_path(
    'out',
    'curves.html',
    f'File to write: {", ".join(_SUFFIXES)}. Example: --out=curves.svg',
  )


def main(workdirs: Sequence[str]) -> None:
  if not workdirs:
    raise UserError('give one run directory or more, such as runs/digits')
  values = flags.FLAGS
  expanded = [paths.expand(workdir, 'RUN') for workdir in workdirs]
  draw(expanded, values.metric, values.out)
  print(f'written to {values.out}')


if __name__ == '__main__':
  define_flags()
  command_line.run(main, takes_arguments=True)

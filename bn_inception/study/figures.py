"""The plots of the report as SVG files.

Colours are told apart by the colour-blind, and series by dashes and markers too;
the page has the same ones, lighter on a dark ground.
"""

import os

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from bn_inception.errors import writing
from bn_inception.study.plots import FILE_SUFFIXES, Bar, Curve, Plot

COLOURS = (
  '#0072b2', '#c44e00', '#007a5c', '#a63d91', '#7a6200', '#000000', '#0b8fb3',
  '#b3243c',
)  # fmt: skip
_DASHES = (
  (), (7, 3), (2, 2), (9, 3, 2, 3), (5, 2), (12, 4), (3, 4), (4, 2, 1, 2),
)  # fmt: skip
_MARKERS = 'os^DvPX*'
_NUM_MARKERS = 12  # on a curve
_SIZE = 7.2, 4.2  # inches
_DOTS_PER_INCH = 130


def file_names(plot: Plot) -> dict[str, str]:
  """Kind of statistics -> name of its files; '' -> that of bars."""
  first, *others = plot.variants or ['']
  return {first: plot.name} | {
    kind: f'{plot.name}_{FILE_SUFFIXES[kind]}' for kind in others
  }


def draw(plot: Plot, folder: str, extension: str = 'svg') -> list[str]:
  """Draws a plot, each kind of statistics into a file of its own.

  Args:
    plot: what to draw.
    folder: where to; it exists.
    extension: 'svg' or 'png'.

  Returns:
    The paths of the files.

  Raises:
    UserError: if one cannot be written.
  """
  paths = []
  for kind, name in file_names(plot).items():
    figure = Figure(figsize=_SIZE, layout='constrained')
    axes = figure.subplots()
    if plot.bars:
      _draw_bars(axes, plot.bars)
    else:
      _draw_curves(axes, plot, plot.variants[kind])
    statistics = f'\nstatistics: {kind}' if len(plot.variants) > 1 else ''
    axes.set_title(plot.title + statistics, fontsize=10)
    axes.set(xlabel=plot.x_label, ylabel=plot.y_label)
    axes.grid(alpha=0.25)
    axes.set_axisbelow(True)
    axes.spines[['top', 'right']].set_visible(False)
    path = os.path.join(folder, f'{name}.{extension}')
    # The same numbers give the same file.
    settings = {'svg.hashsalt': name, 'svg.fonttype': 'none'}
    metadata = {'Date': None} if extension == 'svg' else {}
    with (
      matplotlib.rc_context(settings),
      writing(path, remedy='give another --out'),
    ):
      figure.savefig(path, dpi=_DOTS_PER_INCH, metadata=metadata)
    paths.append(path)
  return paths


def _draw_curves(axes: Axes, plot: Plot, curves: tuple[Curve, ...]) -> None:
  for curve in curves:
    x, mean, low, high = _columns(curve)
    colour = COLOURS[curve.colour % len(COLOURS)]
    axes.plot(
      x,
      mean,
      color=colour,
      dashes=_DASHES[curve.dash % len(_DASHES)],
      marker=_MARKERS[curve.colour % len(_MARKERS)],
      markevery=max(1, len(x) // _NUM_MARKERS),
      markersize=4,
      linewidth=1.5,
      label=f'{curve.label} ({curve.note})' if curve.note else curve.label,
    )
    axes.fill_between(
      x,
      low,
      high,
      color=colour,
      alpha=0.15,
      linewidth=0,
    )
    if curve.mark:
      axes.plot(
        curve.mark.x, curve.mark.value, 'D', markersize=8,
        markerfacecolor='white', markeredgecolor=colour, markeredgewidth=2,
        zorder=4,
      )  # fmt: skip
    if curve.crosses:
      axes.plot(
        curve.crosses,
        [0.02] * len(curve.crosses),
        'x',
        color=colour,
        markersize=8,
        markeredgewidth=2,
        transform=axes.get_xaxis_transform(),
      )
  if plot.level is not None:
    axes.axhline(plot.level, color='grey', linewidth=1, linestyle=':')
  if any(curve.points or curve.crosses for curve in curves):
    _scale_x(axes, plot.is_log_x)
  if not any(curve.points for curve in curves):
    axes.text(0.5, 0.5, 'not run', transform=axes.transAxes, ha='center')
  if plot.y_range:
    axes.set_ylim(plot.y_range)
  axes.legend(fontsize=8, handlelength=4)


def _columns(curve: Curve) -> np.ndarray:
  """x, mean, lowest and highest, [4, points]; not a number at its breaks."""
  rows = [(p.x, p.value, p.low, p.high) for p in curve.points]
  xs = {p.x for p in curve.points}
  rows += [(x, *3 * [np.nan]) for x in set(curve.breaks) - xs]
  return np.array(sorted(rows)).reshape(-1, 4).T


def _scale_x(axes: Axes, is_log: bool) -> None:
  if is_log:
    axes.set_xscale('log')
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter('{x:g}')
    axes.xaxis.set_minor_formatter('')


def _draw_bars(axes: Axes, bars: tuple[Bar, ...]) -> None:
  for y, bar in enumerate(bars):
    if bar.value is None:
      axes.text(0, y, f' {bar.text}', va='center', fontsize=8)
      continue
    is_resolved = bar.margin is not None and abs(bar.value) > bar.margin
    axes.barh(
      y,
      bar.value,
      height=0.6,
      color=COLOURS[0],
      alpha=1.0 if is_resolved else 0.35,
      xerr=bar.margin,
      capsize=3,
    )
  axes.axvline(0, color='black', linewidth=0.8)
  axes.set_yticks(range(len(bars)), [bar.label for bar in bars], fontsize=8)
  axes.invert_yaxis()

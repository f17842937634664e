"""Matplotlib figures of the report's plots, as SVG files.

Colors suit color-blind readers and light and dark backgrounds; dashes and markers
also tell curves apart. The page's charts (charts.py) use the same.
"""

import os
import textwrap

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from bn_inception.errors import writing
from bn_inception.study.plots import FILE_SUFFIXES, Bar, Curve, Plot

COLORS = (
  '#1f83c6', '#d45f00', '#12946f', '#b8559f', '#977a00', '#7d7f86', '#0f9bbd',
  '#d1404f',
)  # fmt: skip
DASHES = (
  (), (7, 3), (2, 2), (9, 3, 2, 3), (5, 2), (12, 4), (3, 4), (4, 2, 1, 2),
)  # fmt: skip
NUM_MARKERS = 12  # per curve
PALE, BAND = 0.35, 0.15  # opacities
_MARKERS = 'os^DvPX*'
# In inches; half a column of README.md has about 70 pixels for one.
_WIDTH, _HEIGHT, _BAR_HEIGHT, _LEGEND_LINE = 5.6, 3.2, 0.45, 0.17
_DOTS_PER_INCH = 160  # of formats made of pixels
_LEGEND_COLUMNS = 30  # characters
_FONT_SIZE = 9  # points
_REMEDY = 'give another --out'


def file_names(plot: Plot) -> dict[str, str]:
  """Kind of statistics -> file name without suffix; '' -> that of bars."""
  first, *others = plot.variants or ['']
  return {first: plot.name} | {
    kind: f'{plot.name}_{FILE_SUFFIXES[kind]}' for kind in others
  }


def title(plot: Plot, kind: str) -> str:
  """The plot's title, with the kind of statistics if there are several."""
  return f'{plot.title}; {kind}' if len(plot.variants) > 1 else plot.title


def draw(plot: Plot, folder: str) -> list[str]:
  """Draws a plot into an existing folder, one SVG file per kind of statistics.

  Returns:
    The paths of the files.

  Raises:
    UserError: if a file cannot be written.
  """
  paths = []
  for kind, name in file_names(plot).items():
    paths.append(os.path.join(folder, f'{name}.svg'))
    save(make_figure(plot, kind), paths[-1])
  return paths


def save(figure: Figure, path: str) -> None:
  """Writes a figure in the format of the path's suffix.

  Raises:
    UserError: if the file cannot be written.
  """
  is_svg = path.endswith('.svg')
  # Equal numbers give equal files; text stays text, which keeps files small.
  settings = {'svg.hashsalt': os.path.basename(path), 'svg.fonttype': 'none'}
  with matplotlib.rc_context(settings), writing(path, remedy=_REMEDY):
    figure.savefig(
      path, dpi=_DOTS_PER_INCH, metadata={'Date': None} if is_svg else {}
    )


def make_figure(plot: Plot, kind: str) -> Figure:
  """A plot's bars, or its curves with one kind of statistics."""
  figure = Figure(figsize=(_WIDTH, _HEIGHT), layout='constrained')
  axes = figure.subplots()
  if plot.bars:
    _draw_bars(axes, plot.bars)
    figure.set_figheight(1.0 + _BAR_HEIGHT * len(plot.bars))
  else:
    _draw_curves(axes, plot, plot.variants[kind])
    legend = figure.legend(
      loc='outside lower center', ncols=2, fontsize=_FONT_SIZE, handlelength=4,
      frameon=False,
    )  # fmt: skip
    num_lines = sum(
      text.get_text().count('\n') + 1 for text in legend.get_texts()
    )
    figure.set_figheight(_HEIGHT + _LEGEND_LINE * (num_lines // 2 + 1))
  axes.set_title(textwrap.fill(title(plot, kind), 60), fontsize=_FONT_SIZE + 1)
  axes.set(xlabel=plot.x_label, ylabel=plot.y_label)
  axes.grid(alpha=0.25)
  axes.set_axisbelow(True)
  axes.spines[['top', 'right']].set_visible(False)
  return figure


def _draw_curves(axes: Axes, plot: Plot, curves: tuple[Curve, ...]) -> None:
  for curve in curves:
    x, mean, low, high = columns(curve)
    color = COLORS[curve.colour % len(COLORS)]
    axes.plot(
      x,
      mean,
      color=color,
      dashes=DASHES[curve.dash % len(DASHES)],
      marker=_MARKERS[curve.colour % len(_MARKERS)],
      markevery=max(1, len(x) // NUM_MARKERS),
      markersize=4,
      linewidth=1.5,
      label=textwrap.fill(legend_text(curve), _LEGEND_COLUMNS),
    )
    axes.fill_between(x, low, high, color=color, alpha=BAND, linewidth=0)
    if curve.mark:
      axes.plot(
        curve.mark.x, curve.mark.value, 'D', markersize=8,
        markerfacecolor='white', markeredgecolor=color, markeredgewidth=2,
        zorder=4,
      )  # fmt: skip
    if curve.crosses:
      axes.plot(
        curve.crosses,
        [0.02] * len(curve.crosses),
        'x',
        color=color,
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


def legend_text(curve: Curve) -> str:
  return f'{curve.label} ({curve.note})' if curve.note else curve.label


def columns(curve: Curve) -> np.ndarray:
  """x, mean, lowest and highest, [4, points]; NaN at the curve's breaks."""
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
  """From the top down, each with its label above."""
  for y, bar in enumerate(bars):
    axes.text(
      0.0, y - 0.4, f'{bar.label}: {bar.text}', fontsize=_FONT_SIZE,
      transform=axes.get_yaxis_transform(), va='center',
    )  # fmt: skip
    if bar.value is not None:
      axes.barh(
        y,
        bar.value,
        height=0.35,
        color=COLORS[0],
        alpha=1.0 if is_resolved(bar) else PALE,
        xerr=bar.margin,
        ecolor='grey',
        capsize=3,
      )
  axes.axvline(0, color='black', linewidth=0.8)
  axes.set(yticks=[], ylim=(len(bars) - 0.6, -0.8))


def is_resolved(bar: Bar) -> bool:
  """Whether the interval of a bar excludes zero."""
  return bar.margin is not None and abs(bar.value) > bar.margin

"""Interactive charts of the report's plots, by Plotly, as HTML."""

import html
import itertools
import textwrap

import numpy as np
import plotly.graph_objects as go

from bn_inception.study import figures
from bn_inception.study.figures import COLORS, DASHES
from bn_inception.study.plots import Bar, Curve, Plot

_SYMBOLS = (
  'circle', 'square', 'triangle-up', 'diamond', 'triangle-down', 'cross', 'x',
  'star',
)  # fmt: skip
_GREY, _GRID = '#7d7f86', 'rgba(128, 128, 128, 0.25)'
_LEGEND_COLUMNS = 40  # characters that fit a phone
_HEIGHT, _LEGEND_LINE, _BAR_HEIGHT = 350, 19, 52  # pixels
CONFIG = {
  'responsive': True,
  'displaylogo': False,
  'showSendToCloud': False,  # the default has a button that uploads the chart
  'modeBarButtonsToRemove': ['select2d', 'lasso2d', 'autoScale2d'],
}


def make_chart(plot: Plot, kind: str) -> go.Figure:
  """A plot's bars, or its curves with one kind of statistics, without a title.

  Raises:
    ValueError: for NaN and infinities, which JSON would turn into gaps.
  """
  chart = go.Figure()
  _style(chart, plot)
  if plot.bars:
    _draw_bars(chart, plot.bars)
  else:
    _draw_curves(chart, plot, plot.variants[kind])
  return chart


def to_html(chart: go.Figure, name: str, has_script: bool) -> str:
  """A `<div>` with the chart, drawn by a script in it.

  Args:
    chart: from `make_chart`.
    name: id of the chart's element.
    has_script: whether the page already has Plotly's script. The first chart
      of a page brings it along, so that the page needs no network.
  """
  return chart.to_html(
    full_html=False,
    include_plotlyjs=not has_script,
    div_id=name,
    config=CONFIG,
    default_height=f'{chart.layout.height}px',
  )


def _style(chart: go.Figure, plot: Plot) -> None:
  chart.update_layout(
    template='none',
    margin={'l': 50, 'r': 12, 't': 12, 'b': 50},
    paper_bgcolor='rgba(0,0,0,0)',
    plot_bgcolor='rgba(0,0,0,0)',
    font={'family': 'system-ui, sans-serif', 'size': 13, 'color': _GREY},
    hoverlabel={'bgcolor': '#24282d', 'font': {'color': '#ffffff'}},
    hovermode='closest',
    modebar={
      'bgcolor': 'rgba(0,0,0,0)', 'color': _GREY, 'activecolor': COLORS[0]
    },
    dragmode=False,  # dragging scrolls a phone's page; a button zooms
    legend={
      'orientation': 'h', 'yanchor': 'top', 'y': -0.2, 'xanchor': 'left',
      'x': 0,
    },
  )  # fmt: skip
  axis = {
    'gridcolor': _GRID, 'zeroline': False, 'linecolor': _GREY,
    'separatethousands': True,
  }  # fmt: skip
  for update, label in (
    (chart.update_xaxes, plot.x_label),
    (chart.update_yaxes, plot.y_label),
  ):
    update(title={'text': html.escape(label), 'standoff': 8}, **axis)


# Curves.


def _draw_curves(
  chart: go.Figure, plot: Plot, curves: tuple[Curve, ...]
) -> None:
  for curve in curves:
    _draw_curve(chart, plot, curve)
  if plot.level is not None:
    level = _finite(plot.level)
    chart.add_hline(level, line={'color': _GREY, 'dash': 'dot', 'width': 1.5})
  if not any(curve.points for curve in curves):
    chart.add_annotation(
      text='not run', showarrow=False, x=0.5, y=0.5, xref='paper', yref='paper'
    )
  xs = [p.x for curve in curves for p in curve.points]
  xs += [x for curve in curves for x in curve.crosses]
  if plot.is_log_x and xs:
    ticks = _log_ticks(min(xs), max(xs))
    labels = [f'{x:g}' for x in ticks]
    chart.update_xaxes(type='log', tickvals=ticks, ticktext=labels)
  chart.update_yaxes(range=plot.y_range)
  lines = sum(_label(curve).count('<br>') + 1 for curve in curves)
  # Crosses stand at the foot, on an axis of their own.
  chart.update_layout(
    height=_HEIGHT + _LEGEND_LINE * lines,
    yaxis2={
      'overlaying': 'y', 'range': (0, 1), 'visible': False, 'fixedrange': True
    },
  )  # fmt: skip


def _draw_curve(chart: go.Figure, plot: Plot, curve: Curve) -> None:
  number = curve.colour % len(COLORS)
  color = COLORS[number]
  dash = ','.join(f'{length}px' for length in DASHES[curve.dash % len(DASHES)])
  shared = {
    'legendgroup': curve.label,  # one click hides all that belongs to it
    'name': _label(curve),
  }
  rest = shared | {'showlegend': False}
  for point in curve.points:
    for value in (point.x, point.value, point.low, point.high):
      _finite(value)
  x, mean, low, high = figures.columns(curve)
  chart.add_scatter(
    x=_gaps(x) or [None],  # a curve without points is in the legend too
    y=_gaps(mean) or [None],
    customdata=_spreads(curve, x),
    mode='lines+markers',
    line={'color': color, 'width': 2, 'dash': dash or 'solid'},
    marker={
      'symbol': _SYMBOLS[number % len(_SYMBOLS)],
      'size': 7,
      'maxdisplayed': figures.NUM_MARKERS,
    },
    hovertemplate=_hover(curve, plot, '%{y:,.5~r}%{customdata}'),
    **shared,
  )
  band_x, band_y = _outline(x, low, high)
  chart.add_scatter(
    x=band_x, y=band_y, mode='none', fill='toself', fillcolor=_fade(color),
    hoverinfo='skip', **rest,
  )  # fmt: skip
  if curve.mark:
    chart.add_scatter(
      x=[curve.mark.x],
      y=[curve.mark.value],
      mode='markers',
      marker=_hollow('diamond-open', color, size=15),
      hoverinfo='skip',
      **rest,
    )
  if curve.crosses:
    chart.add_scatter(
      x=curve.crosses,
      y=[0.03] * len(curve.crosses),
      yaxis='y2',
      mode='markers',
      marker=_hollow('x-thin-open', color, size=11),
      hovertemplate=_hover(curve, plot, 'diverged'),
      **rest,
    )


def _label(curve: Curve) -> str:
  """The legend's text, in lines that fit a phone."""
  lines = textwrap.wrap(figures.legend_text(curve), _LEGEND_COLUMNS)
  return '<br>'.join(map(html.escape, lines))


def _hover(curve: Curve, plot: Plot, value: str) -> str:
  label, x_label, y_label = map(
    html.escape, (curve.label, plot.x_label, plot.y_label)
  )
  lines = f'<b>{label}</b>', f'{x_label}: %{{x:,}}', f'{y_label}: {value}'
  return '<br>'.join(lines) + '<extra></extra>'


def _spreads(curve: Curve, x: np.ndarray) -> list[str]:
  """For each x the range over seeds, in words."""
  texts = {
    p.x: f'<br>{p.low:.2f} to {p.high:.2f} in {p.count} seeds'
    for p in curve.points
    if p.count > 1
  }
  return [texts.get(at, '') for at in x]


def _gaps(values: np.ndarray) -> list[float | None]:
  return [None if np.isnan(value) else value for value in values.tolist()]


def _outline(
  x: np.ndarray, low: np.ndarray, high: np.ndarray
) -> tuple[list, list]:
  """x and y of the polygons between `low` and `high`, with None between them."""
  outline_x, outline_y = [], []
  points = zip(x.tolist(), low.tolist(), high.tolist(), strict=True)
  for is_gap, stretch in itertools.groupby(points, lambda p: np.isnan(p[1])):
    if not is_gap:
      xs, lows, highs = map(list, zip(*stretch, strict=True))
      outline_x += [*xs, *reversed(xs), None]
      outline_y += [*highs, *reversed(lows), None]
  return outline_x, outline_y


def _fade(color: str, opacity: float = figures.BAND) -> str:
  red, green, blue = (int(color[i : i + 2], 16) for i in (1, 3, 5))
  return f'rgba({red},{green},{blue},{opacity})'


def _hollow(symbol: str, color: str, size: int) -> dict:
  return {
    'symbol': symbol, 'size': size, 'color': color, 'line': {'width': 2.5}
  }  # fmt: skip


def _log_ticks(low: float, high: float) -> list[float]:
  """1, 2 and 5 times the powers of ten from `low` to `high`."""
  powers = range(int(np.floor(np.log10(low))), int(np.ceil(np.log10(high))) + 1)
  ticks = [digit * 10.0**power for power in powers for digit in (1, 2, 5)]
  return [tick for tick in ticks if 0.999 * low <= tick <= 1.001 * high]


# Bars.


def _draw_bars(chart: go.Figure, bars: tuple[Bar, ...]) -> None:
  """Horizontal bars from the top down, each below its label."""
  chart.add_bar(
    y=list(range(len(bars))),
    x=[bar.value and _finite(bar.value) for bar in bars],
    width=0.4,
    orientation='h',
    error_x={
      'type': 'data',
      'array': [bar.margin for bar in bars],
      'color': _GREY,
      'thickness': 1.5,
    },
    marker={
      'color': [
        COLORS[0]
        if bar.value is None or figures.is_resolved(bar)
        else _fade(COLORS[0], figures.PALE)
        for bar in bars
      ]
    },
    customdata=[f'{bar.label}: {bar.text}' for bar in bars],
    hovertemplate='%{customdata}<extra></extra>',
  )
  for y, bar in enumerate(bars):
    chart.add_annotation(
      text=html.escape(f'{bar.label}: {bar.text}'), showarrow=False,
      x=0, xref='paper', xanchor='left', y=y, yshift=21,
    )  # fmt: skip
  chart.update_xaxes(zeroline=True, zerolinecolor=_GREY, zerolinewidth=1.5)
  chart.update_yaxes(
    range=(len(bars) - 0.6, -0.8), showticklabels=False, showgrid=False
  )
  chart.update_layout(
    height=_BAR_HEIGHT * len(bars) + 80, margin={'l': 12}, showlegend=False
  )


def _finite(value: float) -> float:
  if not np.isfinite(value):
    raise ValueError(f'{value} is not a number of a plot')
  return value

"""Interactive charts: what they draw, say and refuse."""

import dataclasses

import pytest

from bn_inception.study import charts, figures
from bn_inception.study.plots import Point
from tests.study.test_figures import BARS, PLOT, curve


def make(*curves, **more):
  plot = dataclasses.replace(PLOT, variants={'': curves}, **more)
  return charts.make_chart(plot, '')


def test_chart_has_the_curves_of_its_kind_of_statistics():
  chart = charts.make_chart(PLOT, 'moving averages')
  lines = [t for t in chart.data if t.mode == 'lines+markers']
  assert [line.name for line in lines] == ['arm 0', 'arm 1']
  assert lines[0].x == (100, 200, 300) and lines[0].y == (1, 2, 3)
  assert lines[0].customdata[1] == '<br>1.00 to 3.00 in 3 seeds'
  assert lines[1].line.color == figures.COLORS[1]
  band = chart.data[1]
  assert band.x[:6] == (100, 200, 300, 300, 200, 100)
  assert band.y[:6] == (2, 3, 4, 2, 1, 0)
  # One entry of the legend switches both.
  assert band.legendgroup == lines[0].legendgroup and not band.showlegend
  assert chart.layout.xaxis.title.text == 'steps'


def test_line_and_band_have_a_gap_at_a_break():
  line, band = make(curve(0, 10, 10, 40, breaks=(250.0,))).data
  assert line.y == (10, 10, None, 40)
  assert band.x == (100, 200, 200, 100, None, 300, 300, None)


def test_mark_crosses_level_and_logarithmic_axis():
  mark = Point(200.0, 30.0, 29.0, 31.0, 3)
  chart = make(
    curve(0, 10, 30, mark=mark, crosses=(1000.0,)), level=50.0, is_log_x=True
  )
  symbols = {trace.marker.symbol: trace for trace in chart.data}
  assert symbols['diamond-open'].x == (200,)
  assert symbols['x-thin-open'].x == (1000,)
  assert chart.layout.shapes[0].y0 == 50
  assert chart.layout.xaxis.tickvals == (100, 200, 500, 1000)
  assert chart.layout.xaxis.type == 'log'


def test_curve_without_points_is_in_the_legend():
  chart = make(curve(0, note='diverged at step 41'))
  assert chart.data[0].name == 'arm 0 (diverged at step 41)'
  assert chart.layout.annotations[0].text == 'not run'


def test_bars_have_their_texts_and_pale_ones_are_not_resolved():
  chart = charts.make_chart(BARS, '')
  (bars,) = chart.data
  assert bars.x == (1.0, -1.0, None, 0.5)
  assert bars.error_x.array == (0.5, 2.0, None, None)
  strong, pale = figures.COLORS[0], bars.marker.color[1]
  assert pale.endswith(f',{figures.PALE})')
  assert bars.marker.color == (strong, pale, strong, pale)
  texts = [annotation.text for annotation in chart.layout.annotations]
  assert texts == ['a: +1.00', 'b: -1.00', 'c: not run', 'd: +0.50']


def test_number_that_is_not_finite_is_no_silent_gap():
  with pytest.raises(ValueError, match='nan'):
    make(curve(0, 1.0), level=float('nan'))
  with pytest.raises(ValueError, match='nan'):
    make(curve(0, 1.0, float('nan')))
  with pytest.raises(ValueError, match='inf'):
    make(curve(0, 1.0, float('inf')))


def test_chart_uploads_nothing():
  assert charts.CONFIG['showSendToCloud'] is False

"""The files of plots: what is in them, and that nothing is missing."""

import dataclasses
import pathlib
import re

import matplotlib.image
import pytest

from bn_inception.errors import UserError
from bn_inception.study import figures
from bn_inception.study.plots import Bar, Curve, Plot, Point


def curve(number, *values, **more):
  points = tuple(
    Point(100.0 * (i + 1), v, v - 1, v + 1, 3) for i, v in enumerate(values)
  )
  return Curve(f'arm {number}', number, number, points, **more)


PLOT = Plot(
  'figure2_digits',
  'digits: accuracy',
  'steps',
  'accuracy (%)',
  {
    'population': (curve(0, 10, 30, 40), curve(1, 20, 60, 80)),
    'moving averages': (curve(0, 1, 2, 3), curve(1, 4, 5, 6)),
  },
)


def one_kind(*curves, **more):
  return dataclasses.replace(PLOT, variants={'': curves}, **more)


BARS = Plot(
  'bars', 'digits', 'points', '',
  bars=(
    Bar('a', 1.0, 0.5, '+1.00'), Bar('b', -1.0, 2.0, '-1.00'),
    Bar('c', None, None, 'not run'), Bar('d', 0.5, None, '+0.50'),
  ),
)  # fmt: skip


def draw(plot, folder):
  """The text of the one SVG file of a plot."""
  (path,) = figures.draw(plot, str(folder))
  return pathlib.Path(path).read_text()


def lines(svg, color):
  """The paths of the drawn lines of a color, without the legend's."""
  return re.findall(r'<path d="([^"]*)" clip-path[^>]*stroke: ' + color, svg)


def test_each_kind_of_statistics_has_its_file(tmp_path):
  paths = figures.draw(PLOT, str(tmp_path))
  names = {path.name for path in tmp_path.iterdir()}
  assert names == {'figure2_digits.svg', 'figure2_digits_moving.svg'}
  assert {str(tmp_path / name) for name in names} == set(paths)
  assert figures.file_names(PLOT) == {
    'population': 'figure2_digits', 'moving averages': 'figure2_digits_moving',
  }  # fmt: skip
  assert figures.file_names(BARS) == {'': 'bars'}


def test_every_curve_is_drawn(tmp_path):
  svg = draw(one_kind(curve(0, 10, 30, 40), curve(1)), tmp_path)
  (path,) = lines(svg, figures.COLORS[0])
  assert path.count('M') == 1 and path.count('L') == 2
  assert lines(svg, figures.COLORS[1]) == []
  assert '>arm 0<' in svg and '>arm 1<' in svg


def test_svg_says_what_is_missing_and_is_the_same_again(tmp_path):
  plot = one_kind(
    curve(0, note='diverged at step 41', crosses=(41,)),
    level=50.0, is_log_x=True, y_range=(0.0, 100.0),
  )  # fmt: skip
  first = draw(plot, tmp_path)
  assert '>arm 0 (diverged at step' in first and '>not run<' in first
  assert draw(plot, tmp_path) == first


def test_mark_is_drawn(tmp_path):
  mark = Point(200.0, 30.0, 29.0, 31.0, 3)
  without, marked = (
    draw(one_kind(curve(0, 10, 30, 40, mark=m)), tmp_path) for m in (None, mark)
  )
  white = 'fill: #ffffff; stroke: ' + figures.COLORS[0]
  assert white not in without and white in marked


def test_line_does_not_cross_a_break(tmp_path):
  counts = []
  for breaks in ((), (250.0,)):
    svg = draw(one_kind(curve(0, 10, 10, 40, 40, breaks=breaks)), tmp_path)
    (path,) = lines(svg, figures.COLORS[0])
    counts.append(path.count('M'))
  assert counts == [1, 2]


def test_bars_that_are_not_resolved_are_pale(tmp_path):
  svg = draw(BARS, tmp_path)
  assert '>c: not run<' in svg
  bars = re.findall(r'style="fill: #1f83c6(; opacity: 0.35)?"', svg)
  assert [bool(pale) for pale in bars] == [False, True, True]


def test_suffix_is_the_format(tmp_path):
  figures.save(figures.make_figure(BARS, ''), str(tmp_path / 'bars.png'))
  image = matplotlib.image.imread(tmp_path / 'bars.png')
  assert image.shape[1] > 800 and image[..., :3].std() > 0.05


def test_folder_that_is_not_there(tmp_path):
  with pytest.raises(UserError, match='cannot be written .*give another --out'):
    figures.draw(PLOT, str(tmp_path / 'absent'))

"""The files of plots: what is in them, and that nothing is missing."""

import dataclasses

import matplotlib.image
import numpy as np
import pytest
from matplotlib.colors import to_rgb

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
BARS = Plot(
  'bars', 'digits', 'points', '',
  bars=(
    Bar('a', 1.0, 0.5, '+1.00'), Bar('b', -1.0, 2.0, '-1.00'),
    Bar('c', None, None, 'not run'), Bar('d', 0.5, None, '+0.50'),
  ),
)  # fmt: skip


def count_pixels(path, colour):
  """Of a PNG file, that have this colour."""
  image = matplotlib.image.imread(path)[..., :3]
  return int((np.abs(image - to_rgb(colour)).max(axis=-1) < 0.02).sum())


def test_each_kind_of_statistics_has_its_files(tmp_path):
  paths = figures.draw(PLOT, str(tmp_path))
  names = {path.name for path in tmp_path.iterdir()}
  assert names == {'figure2_digits.svg', 'figure2_digits_moving.svg'}
  assert {str(tmp_path / name) for name in names} == set(paths)
  assert figures.file_names(PLOT) == {
    'population': 'figure2_digits', 'moving averages': 'figure2_digits_moving',
  }  # fmt: skip
  assert figures.file_names(BARS) == {'': 'bars'}


def test_every_curve_is_drawn(tmp_path):
  one = dataclasses.replace(PLOT, variants={'': (curve(0), curve(1, 5, 6))})
  figures.draw(PLOT, str(tmp_path), 'png')
  full = [
    count_pixels(tmp_path / 'figure2_digits.png', colour)
    for colour in figures.COLOURS[:3]
  ]
  figures.draw(one, str(tmp_path), 'png')
  less = count_pixels(tmp_path / 'figure2_digits.png', figures.COLOURS[0])
  # Of a curve without points only its line in the legend is left.
  assert full[0] > 500 and full[1] > 500 and full[2] == 0
  assert less < 200


def test_svg_says_what_is_missing_and_is_the_same_again(tmp_path):
  plot = dataclasses.replace(
    PLOT,
    variants={'': (curve(0, note='diverged at step 41', crosses=(41,)),)},
    level=50.0,
    is_log_x=True,
    y_range=(0.0, 100.0),
  )
  figures.draw(plot, str(tmp_path))
  first = (tmp_path / 'figure2_digits.svg').read_text()
  assert 'arm 0 (diverged at step 41)' in first and '>not run<' in first
  figures.draw(plot, str(tmp_path))
  assert (tmp_path / 'figure2_digits.svg').read_text() == first


def test_mark_is_drawn(tmp_path):
  marked = curve(0, 10, 30, 40, mark=Point(200.0, 30.0, 29.0, 31.0, 3))
  counts = []
  for found in (curve(0, 10, 30, 40), marked):
    plot = dataclasses.replace(PLOT, variants={'': (found,)})
    figures.draw(plot, str(tmp_path), 'png')
    counts.append(
      count_pixels(tmp_path / 'figure2_digits.png', figures.COLOURS[0])
    )
  assert counts[1] > counts[0] + 20


def test_line_does_not_cross_a_break(tmp_path):
  counts = []
  for breaks in ((), (250.0,)):
    plot = dataclasses.replace(
      PLOT, variants={'': (curve(0, 10, 10, 40, 40, breaks=breaks),)}
    )
    figures.draw(plot, str(tmp_path), 'png')
    counts.append(
      count_pixels(tmp_path / 'figure2_digits.png', figures.COLOURS[0])
    )
  # The line of the middle third is gone, which was the steepest.
  assert counts[1] < 0.8 * counts[0]


def test_bars_that_are_not_resolved_are_pale(tmp_path):
  for extension in ('svg', 'png'):
    figures.draw(BARS, str(tmp_path), extension)
  text = (tmp_path / 'bars.svg').read_text()
  assert '>not run<' in text.replace('> ', '>')
  strong = count_pixels(tmp_path / 'bars.png', figures.COLOURS[0])
  blue = np.array(to_rgb(figures.COLOURS[0]))
  pale = count_pixels(tmp_path / 'bars.png', 1 - 0.35 * (1 - blue))
  assert strong > 5000 and pale > 5000


def test_folder_that_is_not_there(tmp_path):
  with pytest.raises(UserError, match='cannot be written .*give another --out'):
    figures.draw(PLOT, str(tmp_path / 'absent'))

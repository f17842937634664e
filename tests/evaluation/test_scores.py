"""Accuracy, intervals, calibration and classes against hand-made numbers."""

import math
import statistics

import numpy as np
import pytest

from bn_inception.errors import UserError
from bn_inception.evaluation import scores

with np.errstate(divide='ignore'):
  LOGARITHMS = np.log(
    np.array(
      [
        [0.7, 0.2, 0.1, 0.0, 0.0, 0.0],  # right
        [0.1, 0.2, 0.7, 0.0, 0.0, 0.0],  # label second
        [0.25, 0.25, 0.25, 0.25, 0.0, 0.0],  # ties: by index, label third
        [0.3, 0.2, 0.2, 0.2, 0.1, 0.0],  # label last
        [np.nan] * 6,
      ],
      np.float32,
    )
  )
LABELS = np.array([0, 1, 2, 5, 0])


def test_ranks_are_those_of_top_k():
  expected = [0, 1, 2, 5, 6]
  np.testing.assert_array_equal(scores.ranks(LOGARITHMS, LABELS), expected)


def test_wilson_interval_contains_the_fraction_with_95_percent():
  # Newcombe (1998), Table I: 81 of 263, 15 of 148, 0 of 20, 1 of 29.
  for count, total, expected in (
    (81, 263, (0.2553, 0.3662)),
    (15, 148, (0.0624, 0.1605)),
    (0, 20, (0.0, 0.1611)),
    (1, 29, (0.0061, 0.1718)),
  ):
    interval = scores.wilson_interval(count, total)
    np.testing.assert_allclose(interval, 100 * np.array(expected), atol=6e-3)
  # 50,000 images and 74.8 %: the digits that the paper prints are certain.
  low, high = scores.wilson_interval(37_400, 50_000)
  assert 74.41 < low < 74.43 and 75.17 < high < 75.19


def test_wilson_interval_is_that_of_the_formula():
  z = statistics.NormalDist().inv_cdf(0.975)
  for count, total in ((0, 20), (1, 3), (15, 148), (37_400, 50_000), (7, 7)):
    p, n = count / total, total
    centre = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    half = math.sqrt(p * (1 - p) / n + z**2 / (4 * n**2)) * z / (1 + z**2 / n)
    expected = (100 * (centre - half), 100 * (centre + half))
    found = scores.wilson_interval(count, total)
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-12)


def test_summary_counts_every_image():
  summary = scores.summary(LOGARITHMS[:4], LABELS[:4])
  assert summary['examples'] == 4
  assert summary['top1'] == 25.0 and summary['top5'] == 75.0
  assert summary['loss'] is None  # a label of probability 0
  of_label = np.log([0.7, 0.2, 0.25])
  finite = scores.summary(LOGARITHMS[:3], LABELS[:3])
  assert finite['loss'] == pytest.approx(-of_label.mean(), rel=1e-6)
  assert finite['top1_interval'] == list(scores.wilson_interval(1, 3))


def test_calibration_error_is_the_gap_between_confidence_and_accuracy():
  rng = np.random.default_rng(0)
  confidence = rng.uniform(0.5, 1.0, 60_000)
  probabilities = np.log(np.stack([confidence, 1 - confidence], axis=1))
  calibrated = (rng.random(60_000) > confidence).astype(int)
  assert scores.expected_calibration_error(probabilities, calibrated) < 1.0
  always_right = np.zeros(60_000, int)
  expected = 100 * (1 - confidence.mean())
  found = scores.expected_calibration_error(probabilities, always_right)
  assert found == pytest.approx(expected, rel=1e-6)


def test_calibration_bins_have_equal_width():
  # 10 images at 61 %, all right, and 10 at 64 %, all wrong: one bin of 15, in
  # which they make 62.5 % and 50 %. With 68 or 59 % they are in two bins.
  labels = np.repeat([0, 1], 10)
  for other, expected in (
    (0.64, 12.5),
    (0.68, (39 + 68) / 2),
    (0.59, (39 + 59) / 2),
  ):
    confidence = np.repeat([0.61, other], 10)
    logarithms = np.log(np.stack([confidence, 1 - confidence], axis=1))
    found = scores.expected_calibration_error(logarithms, labels)
    assert found == pytest.approx(expected)


def test_a_prediction_that_is_no_number_is_confused_with_no_class():
  (score,) = scores.class_scores(np.full((2, 3), np.nan), np.array([0, 0]))
  assert (score.top1, score.confused_with, score.num_confused) == (0.0, -1, 0)


def test_classes_come_worst_first_with_what_they_are_taken_for():
  labels = np.array([0, 0, 1, 1, 1, 2])
  predicted = np.array([0, 0, 2, 2, 1, 0])
  probabilities = np.log(0.9 * np.eye(3) + 0.03)[predicted]
  found = scores.class_scores(probabilities, labels)
  assert [s.label for s in found] == [2, 1, 0]
  worst, middle, best = found
  assert (worst.top1, worst.confused_with, worst.num_confused) == (0.0, 0, 1)
  assert math.isclose(middle.top1, 100 / 3) and middle.num_examples == 3
  assert (middle.confused_with, middle.num_confused) == (2, 2)
  assert (best.top1, best.confused_with, best.num_confused) == (100.0, -1, 0)
  assert best.top5 == 100.0


def test_any_of_several_labels_is_right():
  sets = [{0, 5}, {0}, set(), {1, 2}, {0}]
  found = scores.label_set_summary(LOGARITHMS, sets)
  # Right; wrong; without a label; wrong; a NaN.
  assert found['examples'] == 4 and found['top1'] == 25.0
  assert tuple(found['top1_interval']) == scores.wilson_interval(1, 4)
  with pytest.raises(UserError, match='none of these images has a label'):
    scores.label_set_summary(LOGARITHMS[:1], [set()])

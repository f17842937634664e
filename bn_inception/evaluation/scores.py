"""Scores of predictions: accuracies with intervals, classes, calibration.

Computed on the host from the log probabilities of every image of a split.
"""

import math
from collections.abc import Collection, Sequence
from typing import NamedTuple

import numpy as np

from bn_inception.errors import UserError


class Interval(NamedTuple):
  """A 95 % interval, in percent."""

  low: float
  high: float


def wilson_interval(count: int, total: int) -> Interval:
  """95 % interval of count / total (Wilson 1927), in percent."""
  # Imported here: it takes a second or two, and training does not need it.
  from scipy import stats

  interval = stats.binomtest(count, total).proportion_ci(method='wilson')
  return Interval(100 * float(interval.low), 100 * float(interval.high))


def ranks(log_probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
  """Rank of the label among the classes: 0 if the prediction is right.

  Equal probabilities rank by class index. A row with a NaN ranks last, at the
  number of classes.

  Args:
    log_probabilities: float [N, classes].
    labels: int [N].

  Returns:
    int [N].
  """
  of_label = np.take_along_axis(log_probabilities, labels[:, None], axis=1)
  is_before = np.arange(log_probabilities.shape[1]) < labels[:, None]
  before = (log_probabilities > of_label) | (
    (log_probabilities == of_label) & is_before
  )
  is_number = ~np.isnan(log_probabilities).any(axis=1)
  return np.where(is_number, before.sum(axis=1), log_probabilities.shape[1])


def cross_entropy(log_probabilities: np.ndarray, labels: np.ndarray) -> float:
  """Mean of -log p(label), in nats; inf where a label has probability 0."""
  of_label = np.take_along_axis(log_probabilities, labels[:, None], axis=1)
  return float(-of_label.astype(np.float64).mean())


def expected_calibration_error(
  log_probabilities: np.ndarray, labels: np.ndarray, num_bins: int = 15
) -> float:
  """ECE in percent (Guo et al. 2017).

  Mean |accuracy - confidence| over `num_bins` bins of equal width in the largest
  probability, weighted by their numbers of images.
  """
  confidence = np.exp(log_probabilities.max(axis=1).astype(np.float64))
  is_right = ranks(log_probabilities, labels) == 0
  # (0, 1/n], (1/n, 2/n], ...
  bins = np.clip(np.ceil(confidence * num_bins) - 1, 0, num_bins - 1)
  error = 0.0
  for b in range(num_bins):
    chosen = bins == b
    if chosen.any():
      error += abs(is_right[chosen].sum() - confidence[chosen].sum())
  return float(100 * error / len(labels))


class ClassScore(NamedTuple):
  """Accuracies of one class, in percent, and its most frequent confusion.

  Attributes:
    label: the class.
    num_examples: of this class.
    top1, top5: accuracies.
    confused_with: the most frequent wrong prediction, or -1 if there is none.
    num_confused: how often it was predicted.
  """

  label: int
  num_examples: int
  top1: float
  top5: float
  confused_with: int
  num_confused: int


def class_scores(
  log_probabilities: np.ndarray, labels: np.ndarray
) -> list[ClassScore]:
  """Scores of every class that has examples, worst first."""
  rank = ranks(log_probabilities, labels)
  predicted = log_probabilities.argmax(axis=1)
  found = []
  for label in np.unique(labels):
    chosen = labels == label
    wrong = predicted[chosen & (rank > 0)]
    names, counts = np.unique(wrong[wrong != label], return_counts=True)
    worst = counts.argmax() if len(counts) else None
    found.append(
      ClassScore(
        int(label),
        int(chosen.sum()),
        100 * float((rank[chosen] < 1).mean()),
        100 * float((rank[chosen] < 5).mean()),
        -1 if worst is None else int(names[worst]),
        0 if worst is None else int(counts[worst]),
      )
    )
  return sorted(found, key=lambda score: (score.top1, score.top5, score.label))


def summary(log_probabilities: np.ndarray, labels: np.ndarray) -> dict:
  """`examples`, `top1`, `top5` in percent with 95 % intervals, `loss`, `ece`.

  `loss` and `ece` are None where they are not finite.
  """
  rank, total = ranks(log_probabilities, labels), len(labels)
  counts = {'top1': int((rank < 1).sum()), 'top5': int((rank < 5).sum())}
  has_nan = bool(np.isnan(log_probabilities).any())
  loss = cross_entropy(log_probabilities, labels)
  return {
    'examples': total,
    **{name: 100 * count / total for name, count in counts.items()},
    **{
      f'{name}_interval': list(wilson_interval(count, total))
      for name, count in counts.items()
    },
    'loss': loss if math.isfinite(loss) else None,
    'ece': (
      None if has_nan else expected_calibration_error(log_probabilities, labels)
    ),
  }


def label_set_summary(
  log_probabilities: np.ndarray, label_sets: Sequence[Collection[int]]
) -> dict:
  """Accuracy with several right labels per image (Beyer et al. 2020, "ReaL").

  Args:
    log_probabilities: float [N, classes]; a row with a NaN is wrong.
    label_sets: the right labels of each image.

  Returns:
    `examples`: images with at least one label; `top1`: the share of them in
    percent whose most probable class is a right label; `top1_interval`.

  Raises:
    UserError: if no image has a label.
  """
  predicted = np.where(
    np.isnan(log_probabilities).any(axis=1), -1, log_probabilities.argmax(1)
  )
  is_right = [p in s for p, s in zip(predicted, label_sets, strict=True) if s]
  if not is_right:
    raise UserError('none of these images has a label of this kind')
  count, total = sum(is_right), len(is_right)
  return {
    'examples': total,
    'top1': 100 * count / total,
    'top1_interval': list(wilson_interval(count, total)),
  }

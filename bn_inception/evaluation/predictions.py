"""Class probabilities of every image of a split: averaged, saved, loaded."""

import dataclasses
import zipfile
import zlib
from collections.abc import Sequence

import numpy as np

from bn_inception.errors import UserError, replacing
from bn_inception.wording import count

# NumPy raises these for other files; TypeError for a single array.
_UNREADABLE = (
  OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile,
  zlib.error,
)  # fmt: skip

# How far from 1 the probabilities of an image may sum, in half precision.
_SUM_TOLERANCE = 1e-2


@dataclasses.dataclass(frozen=True)
class Predictions:
  """Class probabilities of the images of a split, by one or more networks.

  Attributes:
    log_probabilities: float32 [N, classes]; logarithms, so that the loss of a
      tiny probability is finite.
    labels: int32 [N].
    names: str [N]: file or record of each image, in the order of the source.
    class_names: str [classes].
    origin: the network that made them, for display.
  """

  log_probabilities: np.ndarray
  labels: np.ndarray
  names: np.ndarray
  class_names: np.ndarray
  origin: str

  @property
  def probabilities(self) -> np.ndarray:
    """float32 [N, classes]."""
    return np.exp(self.log_probabilities)


def average(
  members: list[Predictions], paths: Sequence[str] | None = None
) -> Predictions:
  """The arithmetic mean of class probabilities (Section 4.2.3).

  Args:
    members: at least one.
    paths: of their files, for messages.

  Raises:
    UserError: if the members differ in images, labels or classes.
  """
  first = members[0]
  places = [member.origin for member in members]
  if paths is not None:
    places = [f'{p} ({o})' for p, o in zip(paths, places, strict=True)]
  for other, place in zip(members[1:], places[1:], strict=True):
    for what, ours, theirs in (
      ('classes', first.class_names, other.class_names),
      ('images', first.names, other.names),
      ('labels', first.labels, other.labels),
    ):
      if len(ours) != len(theirs):
        raise UserError(
          f'{places[0]} has {len(ours):,} {what} and {place} has '
          f'{len(theirs):,}: only predictions of the same images can be averaged'
        )
      different = np.flatnonzero(ours != theirs)
      if len(different):
        i = different[0]
        raise UserError(
          f'{places[0]} and {place} have different {what}: number {i} is '
          f'{ours[i]} and {theirs[i]}: average predictions of the same images'
        )
  total = np.float64(first.log_probabilities)
  for member in members[1:]:
    total = np.logaddexp(total, np.float64(member.log_probabilities))
  return dataclasses.replace(
    first,
    log_probabilities=np.float32(total - np.log(len(members))),
    origin=' + '.join(member.origin for member in members),
  )


def save(path: str, predictions: Predictions) -> None:
  """Writes the fields of `predictions` as an npz file, or nothing.

  Raises:
    UserError: if it cannot be written.
  """
  with replacing(path, 'wb', 'give another file') as file:
    np.savez_compressed(file, **dataclasses.asdict(predictions))


def load(path: str) -> Predictions:
  """Reads what `save` wrote.

  Raises:
    UserError: if it is not such a file, or its arrays are not valid predictions.
  """
  names = [field.name for field in dataclasses.fields(Predictions)]
  try:
    with np.load(path, allow_pickle=False) as file:
      values = {name: file[name] for name in names}
  except FileNotFoundError as error:
    raise UserError(f'{path} does not exist') from error
  except _UNREADABLE as error:
    raise UserError(
      f'{path} is not a file of predictions ({type(error).__name__}): give one '
      'that --save_predictions wrote'
    ) from error
  wrong = _find_wrong(**{name: values[name] for name in names[:-1]})
  if wrong is not None:
    raise UserError(
      f'{path} does not hold valid predictions: {wrong}: leave it out, or save '
      'them again'
    )
  return Predictions(**{**values, 'origin': str(values['origin'])})


def _find_wrong(
  log_probabilities: np.ndarray,
  labels: np.ndarray,
  names: np.ndarray,
  class_names: np.ndarray,
) -> str | None:
  """The first reason why the arrays are not valid predictions, or None.

  A probability may be 0, with a logarithm of -inf.
  """
  shape = labels.shape + class_names.shape
  for name, value, kind, expected in (
    ('log_probabilities', log_probabilities, np.floating, shape),
    ('labels', labels, np.integer, (labels.size,)),
    ('names', names, np.str_, (labels.size,)),
    ('class_names', class_names, np.str_, (class_names.size,)),
  ):
    if not np.issubdtype(value.dtype, kind) or value.shape != expected:
      return f'{name} is {value.dtype}{list(value.shape)}'
  if not labels.size:
    return 'it has no images'
  unique, counts = np.unique(class_names, return_counts=True)
  if counts.max(initial=1) > 1:
    return f"there are {counts.max()} classes '{unique[counts.argmax()]}'"
  is_label = (labels >= 0) & (labels < len(class_names))
  if not is_label.all():
    i = np.flatnonzero(~is_label)[0]
    return (
      f'image {i} ({names[i]}) has the label {labels[i]} of '
      f'{count(len(class_names), "class", "classes")}'
    )
  with np.errstate(over='ignore'):
    total = np.exp(np.float64(log_probabilities)).sum(axis=1)
  is_one = np.abs(total - 1) <= _SUM_TOLERANCE  # False for NaN
  if not is_one.all():
    i = np.flatnonzero(~is_one)[0]
    return f'the probabilities of image {i} ({names[i]}) sum to {total[i]:.4g}, not 1'
  return None

"""Class probabilities of every image of a split: averaged, saved, loaded."""

import dataclasses
import zipfile

import numpy as np

from bn_inception.errors import UserError


@dataclasses.dataclass(frozen=True)
class Predictions:
  """What a network, or several, says of the images of a split.

  Attributes:
    log_probabilities: float32 [N, classes]; their logarithms, of which the
      smallest, too, have a loss.
    labels: int32 [N].
    names: str [N]: file or record of each image, in the order of the source.
    class_names: str [classes].
    origin: what made them, for people.
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


def average(members: list[Predictions]) -> Predictions:
  """The arithmetic mean of class probabilities (Section 4.2.3).

  Raises:
    UserError: if the members are not of the same images and classes.
  """
  first = members[0]
  for other in members[1:]:
    for what, ours, theirs in (
      ('classes', first.class_names, other.class_names),
      ('images', first.names, other.names),
      ('labels', first.labels, other.labels),
    ):
      if len(ours) != len(theirs):
        raise UserError(
          f'{first.origin} has {len(ours):,} {what} and {other.origin} has '
          f'{len(theirs):,}: only predictions of the same images can be averaged'
        )
      different = np.flatnonzero(ours != theirs)
      if len(different):
        i = different[0]
        raise UserError(
          f'{first.origin} and {other.origin} have other {what}: number {i} is '
          f'{ours[i]} and {theirs[i]}'
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
  """Writes an npz file: see `Predictions` for what is in it.

  Raises:
    UserError: if it cannot be written.
  """
  try:
    with open(path, 'wb') as file:
      np.savez_compressed(file, **dataclasses.asdict(predictions))
  except OSError as error:
    raise UserError(
      f'{path} cannot be written ({error.strerror}): give another file'
    ) from error


def load(path: str) -> Predictions:
  """Reads what `save` wrote.

  Raises:
    UserError: if it is no such file.
  """
  names = [field.name for field in dataclasses.fields(Predictions)]
  try:
    with np.load(path, allow_pickle=False) as file:
      values = {name: file[name] for name in names}
  except FileNotFoundError as error:
    raise UserError(f'{path} does not exist') from error
  except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
    raise UserError(
      f'{path} has no predictions ({type(error).__name__}): give a file that '
      '--save_predictions wrote'
    ) from error
  return Predictions(**{**values, 'origin': str(values['origin'])})

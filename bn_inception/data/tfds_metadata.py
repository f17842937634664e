"""Finds copies of data sets prepared by TFDS, and checks their metadata."""

import collections
import contextlib
import io
import json
import re
from typing import NamedTuple

import numpy as np
from etils import epath
from google.protobuf import json_format

from bn_inception.data.directories import names_in
from bn_inception.errors import UserError
from bn_inception.wording import count

IMAGE_TYPES = ('uint8', 'uint16')  # what `images` decodes, to uint8
INFO_FILE, FEATURES_FILE = 'dataset_info.json', 'features.json'
LABEL_FILE = 'label.labels.txt'  # class names at the time of preparation
# Keys that each file must have; older versions of TFDS wrote 'type'.
_NEEDED = {
  INFO_FILE: [('name',), ('version',), ('splits',)],
  FEATURES_FILE: [('pythonClassName', 'type')],
}
# What TFDS raises for corrupt metadata, or if it needs TensorFlow.
TFDS_ERRORS = (
  json_format.Error, AssertionError, AttributeError, ImportError, KeyError,
  OSError, TypeError, ValueError,
)  # fmt: skip
_VERSION = re.compile(r'\d+\.\d+\.\d+')


class Copy(NamedTuple):
  """A version of a data set in a folder; config is '' if it has none."""

  name: str
  config: str
  version: str
  folder: epath.Path

  @property
  def dataset(self) -> str:
    """NAME[/CONFIG]:VERSION, for `make_source`."""
    config = f'/{self.config}' if self.config else ''
    return f'{self.name}{config}:{self.version}'

  def is_of_its_name(self) -> bool:
    """Whether its metadata has the same name as its folder."""
    try:
      info = json.loads((self.folder / INFO_FILE).read_text())
      return info['name'] == self.name
    except (OSError, ValueError, KeyError, TypeError):  # incomplete
      return False


def quiet():
  """Suppresses the paragraph of advice on TensorFlow that TFDS prints."""
  return contextlib.redirect_stdout(io.StringIO())


def describe_error(error: Exception) -> str:
  """Type and first line of an error from array_record or TFDS."""
  first_line = str(error).partition('\n')[0]
  # TFDS prefixes the arguments.
  first_line = re.sub('^Failed to construct dataset .*}": ', '', first_line)
  return f'{type(error).__name__}{": " if first_line else ""}{first_line}'


def parse_name(dataset: str) -> tuple[str, str, str]:
  """NAME[/CONFIG][:VERSION] -> (name, config, version), '' for what is absent."""
  name, _, version = dataset.partition(':')
  name, _, config = name.partition('/')
  return name, config, version


def list_copies(root: epath.Path, name: str) -> list[Copy]:
  """The copies of a data set under a folder, newest first, even incomplete ones.

  Empty folders and unfinished ones of `tfds build` do not count.
  """
  copies = []
  for folder in names_in(root / name):
    if _VERSION.fullmatch(folder):
      copies.append(Copy(name, '', folder, root / name / folder))
    else:
      copies += [
        Copy(name, folder, version, root / name / folder / version)
        for version in names_in(root / name / folder)
        if _VERSION.fullmatch(version)
      ]
  copies = [copy for copy in copies if names_in(copy.folder)]
  return sorted(
    copies, key=lambda c: [int(n) for n in c.version.split('.')], reverse=True
  )


def wanted_copies(root: epath.Path, dataset: str) -> list[Copy]:
  """The copies that have the config and version given in a name."""
  name, config, version = parse_name(dataset)
  pattern = re.escape(version).replace(r'\*', r'\d+')
  return [
    copy
    for copy in list_copies(root, name)
    if config in ('', copy.config)
    and (not version or re.fullmatch(pattern, copy.version))
  ]


def check_metadata(folder: epath.Path, files: tuple[str, ...]) -> None:
  """Raises UserError if one of a copy's metadata files is missing or corrupt."""
  for name in files:
    if problem := _problem_of_json(folder / name, _NEEDED[name]):
      raise UserError(
        f'{folder / name} {problem}: copy it again from where {folder} came '
        'from, or prepare the data set again'
      )


def _problem_of_json(
  file: epath.Path, needed: list[tuple[str, ...]]
) -> str | None:
  if not file.exists():
    return 'is missing'
  try:
    text = file.read_text()
    content = json.loads(text)
  except OSError as error:
    return f'cannot be read ({error.strerror})'
  except ValueError as error:  # of JSON or of UTF-8
    return f'is damaged ({error})' if file.stat().length else 'is empty'
  if not isinstance(content, dict):
    return 'is damaged (no JSON object)'
  for keys in needed:
    if not any(content.get(key) for key in keys):
      return f'is damaged (it has no {keys[0]})'
  return None


def check_rebuilt(folder: epath.Path) -> None:
  """Raises UserError if TFDS cannot rebuild a copy's features from its metadata."""
  import tensorflow_datasets as tfds

  content = json.loads((folder / FEATURES_FILE).read_text())
  try:
    with quiet():
      tfds.features.FeatureConnector.from_json(content)
  except TFDS_ERRORS as error:
    features = content.get('featuresDict', {}).get('features', {})
    kinds = ', '.join(
      f"'{name}' ({feature.get('pythonClassName', 'unknown').split('.')[-1]})"
      for name, feature in sorted(features.items())
    )
    raise UserError(
      f'TFDS cannot read {folder} ({describe_error(error)}), which has the '
      f'features {kinds}: prepare it again with only an Image and a ClassLabel'
    ) from error


def check_features(name: str, folder: epath.Path, features) -> None:
  """Raises UserError unless an example is one encoded image and one label.

  Args:
    name: name of the data set.
    folder: folder of the copy.
    features: the examples' `tfds.features.FeaturesDict`.
  """
  import tensorflow_datasets as tfds

  missing = {'image', 'label'} - set(features)
  if missing:
    found = ', '.join(
      f"'{key}' ({_kind(features[key])})" for key in sorted(features)
    )
    raise UserError(
      f'{name} is not a classification data set: its examples have {found}, but '
      f'not {sorted(missing)}: prepare it again with features of these names'
    )
  image = features['image']
  if not isinstance(image, tfds.features.Image):
    raise UserError(
      f"{name} has the feature 'image' as {_kind(image)}, not as an encoded "
      'image: prepare it again with tfds.features.Image'
    )
  image_type = np.dtype(image.np_dtype).name
  if image_type not in IMAGE_TYPES:
    raise UserError(
      f'{name} has images of {image_type}: prepare it again with images of '
      f'{" or ".join(IMAGE_TYPES)}'
    )
  num_channels = image.shape[-1]
  if num_channels not in (1, 3):
    raise UserError(
      f'{name} has images with {count(num_channels, "channel")}: use a data set with 1 or 3'
    )
  _check_label(name, folder, features['label'])


def _check_label(name: str, folder: epath.Path, label) -> None:
  import tensorflow_datasets as tfds

  if isinstance(label, tfds.features.ClassLabel) and label.num_classes:
    return
  needed = (
    'not as one class number: prepare it again with tfds.features.ClassLabel'
  )
  if _is_number(label):
    if (folder / LABEL_FILE).exists():
      return
    needed = (
      'without class names: write them, one a line in the order of the labels '
      f'from 0, to {folder / LABEL_FILE}'
    )
  raise UserError(f"{name} has the feature 'label' as {_kind(label)}, {needed}")


def _is_number(label) -> bool:
  """Whether a label is stored as one integer."""
  import tensorflow_datasets as tfds

  if not isinstance(label, tfds.features.Tensor):
    return False
  stored = np.dtype(label.get_serialized_info().np_dtype)  # bytes if encoded
  return label.shape in ((), (1,)) and stored.kind in 'biu'


def _kind(feature) -> str:
  """'a list of ClassLabel', 'Tensor of float32 [24, 24, 3]', ..."""
  import tensorflow_datasets as tfds

  if isinstance(feature, tfds.features.FeaturesDict):
    return f'a dict of {", ".join(sorted(feature))}'
  if isinstance(feature, tfds.features.Sequence):
    return f'a list of {_kind(feature.feature)}'
  kind = type(feature).__name__
  if type(feature) in (tfds.features.Tensor, tfds.features.Scalar):
    shape = f' {list(feature.shape)}' if feature.shape else ''
    kind += f' of {np.dtype(feature.np_dtype).name}{shape}'
  return kind


def read_label_names(file: epath.Path) -> tuple[str, ...]:
  """The class names in a `LABEL_FILE`."""
  lines = (line.strip() for line in file.read_text().splitlines())
  return tuple(line for line in lines if line)


def class_names(builder) -> tuple[str, ...]:
  """The class names of a copy that passed `check_features`."""
  label = builder.info.features['label']
  if getattr(label, 'num_classes', None):
    return tuple(label.names)
  return read_label_names(epath.Path(builder.data_dir) / LABEL_FILE)


def check_label_names(builder) -> None:
  """Raises UserError if a copy does not name each class exactly once.

  TFDS checks this in a thread whose errors it drops, and then uses wrong names.
  """
  file = epath.Path(builder.data_dir) / LABEL_FILE
  if not file.exists():  # class names are the labels
    return
  names = read_label_names(file)
  label = builder.info.features['label']
  num_classes = getattr(label, 'num_classes', None) or len(names)
  if len(names) != num_classes or not names:
    raise UserError(
      f'{file} has {count(len(names), "name")} for '
      f'{count(num_classes, "class", "classes")}: copy or prepare the data set '
      'again'
    )
  name, number = collections.Counter(names).most_common(1)[0]
  if number > 1:
    raise UserError(
      f"{file} has the name '{name}' {number} times: give each class a different "
      'name, and prepare the data set again'
    )

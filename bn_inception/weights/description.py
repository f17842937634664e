"""What goes with weights: the config of their network, the names of the classes."""

import json

from bn_inception.data import imagenet
from bn_inception.errors import UserError, one_line
from bn_inception.experiment import setup_of_checkpoint
from bn_inception.programs import presets
from bn_inception.weights.imported import Imported
from bn_inception.wording import count

_PREFIX = 'bn_inception.'
_PARTS = ('config', 'class_names', 'num_channels')
_NAMES_REMEDY = (
  'give the names, one per line in the order of the labels, with '
  '--class_names=FILE'
)


def make_config(imported: Imported) -> dict:
  """The config for a checkpoint of published weights.

  Its training section is the paper's: how they were trained is not known.
  """
  config = presets.compose.preset('bn_baseline', 'imagenet').to_dict()
  config['name'] = imported.name
  config['data']['eval_crop'] = imported.eval_crop
  config['input_scaling'] = imported.input_scaling
  config['model'].update(imported.model)
  return json.loads(json.dumps(config))  # tuples to lists, as in a file


# ---- notes in an exported file ----


def to_notes(description: dict, layout: str, step: int) -> dict[str, str]:
  """Notes from which `from_notes` makes the description again.

  Args:
    description: see `checkpoint.read_description`.
    layout: of the names of the weights.
    step: of the checkpoint.
  """
  values = {part: description[part] for part in _PARTS}
  values |= {'layout': layout, 'step': step}
  return {f'{_PREFIX}{key}': json.dumps(value) for key, value in values.items()}


def from_notes(notes: dict[str, str], path: str) -> dict | None:
  """The description of an exported checkpoint, and its 'layout'.

  Args:
    notes: see `files.Contents`.
    path: of their file, for messages.

  Returns:
    None if the file is not an exported one.

  Raises:
    UserError: if the notes are incomplete or make no valid experiment.
  """
  if not any(key.startswith(_PREFIX) for key in notes):
    return None
  try:
    description = {
      part: json.loads(notes[f'{_PREFIX}{part}']) for part in _PARTS
    }
    setup_of_checkpoint(description)
    return description | {'layout': json.loads(notes[f'{_PREFIX}layout'])}
  except KeyError as error:
    reason = f'{error} is missing'
  except (ValueError, TypeError, AttributeError, UserError) as error:
    reason = one_line(error)
  raise UserError(
    f'{path} cannot be used: its notes are damaged ({reason}): export it again'
  )


# ---- names of classes ----


def name_classes(num_classes: int, names_file: str | None) -> list[str]:
  """Class names from a file, or ImageNet's WordNet ids (after 'background').

  Raises:
    UserError: if the file cannot be read; as `check_names`.
  """
  if names_file is not None:
    names = _read_lines(names_file)
    check_names(names, num_classes, names_file)
    return names
  imagenet_names = list(imagenet.class_names())
  for names in (imagenet_names, ['background', *imagenet_names]):
    if len(names) == num_classes:
      return names
  raise UserError(
    f'the weights are for {count(num_classes, "class", "classes")}, ImageNet has '
    f'{len(imagenet_names)}: {_NAMES_REMEDY}'
  )


def check_names(names: list[str], num_classes: int, place: str) -> None:
  """Raises unless every class has a name of its own.

  Raises:
    UserError: if the number of names is not `num_classes`, or a name is empty or
      repeated.
  """
  number_of = {}
  for number, name in enumerate(names, start=1):
    if not name:
      raise UserError(f'{place}: name {number} is empty: {_NAMES_REMEDY}')
    if name in number_of:
      raise UserError(
        f"{place}: names {number_of[name]} and {number} are both '{name}': "
        f'{_NAMES_REMEDY}'
      )
    number_of[name] = number
  if len(names) != num_classes:
    raise UserError(
      f'the weights are for {count(num_classes, "class", "classes")}, {place} has '
      f'{count(len(names), "name")}: {_NAMES_REMEDY}'
    )


def _read_lines(path: str) -> list[str]:
  try:
    with open(path, encoding='utf-8-sig') as file:
      return [line.strip() for line in file]
  except (OSError, UnicodeDecodeError) as error:
    raise UserError(f'{path} cannot be read: {error}') from error

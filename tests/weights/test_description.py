"""The description of an exported file, and the names of classes."""

import json

import pytest

from bn_inception.errors import UserError
from bn_inception.weights import description


def test_classes_get_the_names_of_a_file_or_of_imagenet(tmp_path):
  names = description.name_classes(1000, None)
  assert names[0] == 'n01440764'
  assert description.name_classes(1001, None) == ['background', *names]
  file = tmp_path / 'names.txt'
  file.write_text('rose\nmarsh marigold\n')
  assert description.name_classes(2, str(file)) == ['rose', 'marsh marigold']
  for number, path, message in (
    (102, None, 'for 102 classes.* 1000: .*--class_names'),
    (3, str(file), 'for 3 classes.*names.txt has 2 names'),
    (1, str(file), 'for 1 class, .*names.txt has 2 names'),
    (3, '/no', '/no cannot be read'),
  ):
    with pytest.raises(UserError, match=message):
      description.name_classes(number, path)
  for text, message in (
    ('rose\n\ntulip\n', 'name 2 is empty'),
    ('rose\ntulip\nrose \n', "names 1 and 3 are both 'rose'"),
  ):
    file.write_text(text)
    with pytest.raises(UserError, match=message):
      description.name_classes(3, str(file))


@pytest.fixture
def described(digits_config):
  names = [f'class {i}' for i in range(10)]
  return {'config': digits_config, 'class_names': names, 'num_channels': 1}


def test_notes_give_back_the_description(described):
  notes = description.to_notes(described, 'bn_inception', 7)
  found = description.from_notes(notes, 'a')
  assert found.pop('layout') == 'bn_inception'
  assert found == json.loads(json.dumps(described))
  assert description.from_notes({'format': 'pt'}, 'a') is None


@pytest.mark.parametrize(
  'key, note, message',
  [
    ('config', None, "'bn_inception.config' is missing"),
    ('config', '{', 'Expecting'),
    ('class_names', '7', 'int'),
    ('layout', None, "'bn_inception.layout' is missing"),
    ('std', [0.0], 'input_scaling.std'),
    ('mean', [float('nan')], 'input_scaling.mean .* got nan'),
  ],
)
def test_damaged_notes_are_named(described, key, note, message):
  if isinstance(note, list):
    described['config']['input_scaling'][key] = note
  notes = description.to_notes(described, 'bn_inception', 7)
  if not isinstance(note, list):
    notes[f'bn_inception.{key}'] = note
  notes = {key: note for key, note in notes.items() if note is not None}
  with pytest.raises(UserError, match=f'a.safetensors .*{message}'):
    description.from_notes(notes, 'a.safetensors')

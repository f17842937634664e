"""What a run says at its start."""

from types import SimpleNamespace

import pytest

from bn_inception.data.sources import ListedImages
from bn_inception.runs import summary


def test_what_was_left_out_is_said_at_the_start():
  class Remarkable(ListedImages):
    name = 'pets'

    def remarks(self):
      return ['not read: 1 file (.txt 1)'] if len(self) == 1200 else []

  train = Remarkable([b''] * 1200, ['cat', 'dog'], 3)
  evaluated = Remarkable([b''] * 12, ['cat', 'dog'], 3)
  experiment = SimpleNamespace(source=train, eval_source=evaluated)
  names = {'train_split': 'train', 'eval_split': 'validation'}
  lines = summary._describe_data(names, experiment)
  assert summary._in_lines(*lines).split('\n') == [
    'pets: 1,200 images of 2 classes (train), 12 (validation)',
    f'{"":14} train: not read: 1 file (.txt 1)',
  ]


def test_the_summary_tells_the_schedule(digits_config):
  digits_config['optimizer'].update(schedule='cosine', warmup_epochs=5.0)
  setup = SimpleNamespace(
    config=digits_config, optimizer=SimpleNamespace(learning_rate=0.12)
  )
  experiment = SimpleNamespace(setup=setup)
  assert summary._describe_learning_rate(experiment) == (
    '0.12, a cosine to 0 in 0.356 epochs, 5 epochs of warm-up, momentum 0.9'
  )
  digits_config['optimizer'].update(
    learning_rate_per_32=True, decay_epochs=1.0, warmup_epochs=1.0
  )
  assert summary._describe_learning_rate(experiment) == (
    '0.12 (0.015 per 32 examples), a cosine to 0 in 1 epoch, 1 epoch of warm-up, '
    'momentum 0.9'
  )


@pytest.mark.parametrize(
  'size, norm, text',
  [
    (0, '', 'none'),
    (0, 'group', 'group'),
    (1, '', 'statistics of each example by itself'),
    (32, '', '32 examples share statistics'),
  ],
)
def test_the_summary_tells_the_normalisation(size, norm, text):
  assert summary._describe_normalisation(size, norm) == text

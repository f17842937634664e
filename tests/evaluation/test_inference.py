"""A trained network applied to images in memory and in files."""

import cv2
import numpy as np
import pytest

from bn_inception import training
from bn_inception.data.sources import make_source
from bn_inception.errors import UserError
from bn_inception.evaluation import checkpoints, inference

pytestmark = pytest.mark.usefixtures('few_rows')


@pytest.mark.slow
def test_images_get_the_probabilities_of_an_evaluation(tmp_path, digits_config):
  digits_config['training']['num_epochs'] = 2 * 16 / 1442
  workdir = str(tmp_path / 'run')
  training.train_and_evaluate(digits_config, workdir)
  path = checkpoints.find_checkpoint(workdir, None)
  _, found = checkpoints.evaluate_checkpoints(
    [path], checkpoints.EvaluationOptions()
  )
  expected = found['moving averages'].probabilities[:11]

  model, apply = inference.load(path)
  digits = make_source('digits', 'test')
  images = [digits[i][0] for i in range(11)]
  probabilities = apply(images)
  assert model.num_classes == 10 and probabilities.shape == (11, 10)
  np.testing.assert_allclose(probabilities, expected, rtol=1e-4, atol=1e-6)

  file = str(tmp_path / 'digit.png')
  cv2.imwrite(file, images[3])
  (classes,) = inference.top_classes(path, [file])
  best = np.argsort(-expected[3])[:5]
  assert [name for name, _ in classes] == [str(i) for i in best]
  np.testing.assert_allclose(
    [p for _, p in classes], expected[3][best], rtol=1e-4
  )
  text = tmp_path / 'text.png'
  text.write_text('no image')
  for name, message in (
    (str(text), f'{text}: no image decodes from 8 bytes'),
    ('/no/such.png', '/no/such.png: cannot be read'),
  ):
    with pytest.raises(UserError, match=message):
      apply([images[0], name])


def test_files_are_read_before_the_network(tmp_path, monkeypatch):
  description = {'class_names': ['a', 'b'], 'num_channels': 1}
  monkeypatch.setattr(
    inference.checkpoint, 'read_description', lambda path: description
  )
  good, text = tmp_path / 'digit.png', tmp_path / 'text.png'
  cv2.imwrite(str(good), np.zeros((8, 8), np.uint8))
  text.write_text('no image')
  for name, message in (
    (str(text), f'{text}: no image decodes from 8 bytes'),
    ('/no/such.png', '/no/such.png: No such file or directory'),
    (str(tmp_path), f'{tmp_path}: Is a directory'),
  ):
    with pytest.raises(UserError, match=message):
      inference.top_classes('/no/checkpoint', [str(good), name])

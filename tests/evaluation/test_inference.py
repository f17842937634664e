"""A trained network applied to images in memory and in files."""

import pathlib

import cv2
import jax
import numpy as np
import pytest

from bn_inception import training
from bn_inception.data.sources import ListedImages, make_source
from bn_inception.errors import UserError
from bn_inception.evaluation import checkpoints, inference
from bn_inception.experiment import make_experiment
from bn_inception.runs import checkpoint

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

  network = inference.load(path)
  digits = make_source('digits', 'test')
  images = [digits[i][0] for i in range(11)]
  probabilities = network.apply(images)
  assert probabilities.shape == (11, 10)
  np.testing.assert_allclose(probabilities, expected, rtol=1e-4, atol=1e-6)
  logits = network.model.apply(network.variables, network.inputs(images))
  np.testing.assert_allclose(
    jax.nn.softmax(logits), expected, rtol=1e-4, atol=1e-6
  )

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
      network.apply([images[0], name])


def test_inputs_are_cropped_and_scaled(tmp_path, digits_config):
  path = str(tmp_path / 'network')
  experiment = make_experiment(digits_config)
  with checkpoint.open_checkpoints(path, 1, 0) as checkpoints:
    description = {'config': digits_config, 'num_channels': 1}
    description['class_names'] = [str(i) for i in range(10)]
    checkpoint.save(checkpoints, experiment.create_state(), description, None)
  images = [np.full((8, 8, 1), value, np.uint8) for value in (0, 255, 51)]
  network = inference.load(f'{path}/0')
  expected = np.reshape([-1, 1, -0.6], (3, 1, 1, 1))
  inputs = network.inputs(images)
  assert inputs.shape == (3, 8, 8, 1) and inputs.dtype == np.float32
  np.testing.assert_allclose(inputs - expected, 0, atol=1e-6)
  assert network.class_names == tuple('0123456789')
  with pytest.raises(UserError, match='no images'):
    network.inputs([])
  crops = inference.load(f'{path}/0', crops='ten').inputs(images)
  assert crops.shape == (3, 5, 8, 8, 1)  # the other five are mirrored
  np.testing.assert_allclose(crops - expected[..., None], 0, atol=1e-6)


@pytest.mark.parametrize(
  'images, named',
  [
    ('a.png', 'put it into '),
    (pathlib.Path('a.png'), 'put it into '),
    (b'\x89PNG', 'put it into '),
    ([None], 'image 0 is a NoneType'),
    (
      [np.zeros((8, 8, 1), np.uint8), np.zeros((8, 8, 1))],
      'image 1 is float64',
    ),
    ([np.zeros((8, 8), np.uint8)], r'uint8\[8, 8\]: .*\[H, W, 1\]'),
    ([np.zeros((8, 8, 4), np.uint8)], r'uint8\[8, 8, 4\]: .*\[H, W, 1\]'),
    ([np.zeros((0, 8, 1), np.uint8)], r'uint8\[0, 8, 1\]'),
    (np.zeros((8, 8, 1), np.uint8), r'image 0 is uint8\[8, 1\]'),
  ],
)
def test_what_is_no_image_is_refused(images, named):
  with pytest.raises(UserError, match=named):
    ListedImages(images, ['a', 'b'], 1)


def test_paths_may_be_objects(tmp_path):
  path = tmp_path / 'a.png'
  path.write_bytes(b'png')
  source = ListedImages([path, str(path)], ['a', 'b'], 1)
  assert source[0] == source[1] == (b'png', 0)
  assert source.describe(0) == str(path)


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

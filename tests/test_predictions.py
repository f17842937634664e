"""Predictions: their mean, and files of them."""

import dataclasses

import numpy as np
import pytest

from bn_inception import predictions
from bn_inception.errors import UserError
from bn_inception.predictions import Predictions


def member(seed, **changes):
  rng = np.random.default_rng(seed)
  made = Predictions(
    log_probabilities=np.log(rng.dirichlet(np.ones(3), 4)).astype(np.float32),
    labels=np.array([0, 1, 2, 0], np.int32),
    names=np.array(['a.jpg', 'b.jpg', 'c.jpg', 'd.jpg']),
    class_names=np.array(['x', 'y', 'z']),
    origin=f'run {seed}',
  )
  return dataclasses.replace(made, **changes)


def assert_same(a, b):
  for field in dataclasses.fields(Predictions):
    np.testing.assert_array_equal(
      getattr(a, field.name), getattr(b, field.name)
    )


def test_the_mean_is_that_of_probabilities():
  members = [member(seed) for seed in range(3)]
  mean = predictions.average(members)
  expected = np.mean([np.float64(m.probabilities) for m in members], axis=0)
  np.testing.assert_allclose(mean.probabilities, expected, rtol=1e-6)
  assert mean.origin == 'run 0 + run 1 + run 2'
  assert_same(predictions.average(members[:1]), members[0])
  three = predictions.average([member(1)] * 3)
  np.testing.assert_allclose(
    three.log_probabilities, member(1).log_probabilities, rtol=1e-6
  )


@pytest.mark.parametrize(
  'changes, message',
  [
    (
      {'names': np.array(['a.jpg', 'b.jpg', 'e.jpg', 'd.jpg'])},
      'run 0 and run 1 have other images: number 2 is c.jpg and e.jpg',
    ),
    ({'names': np.array(['a.jpg'])}, 'has 4 images and run 1 has 1: only'),
    (
      {'class_names': np.array(['x', 'z', 'y'])},
      'other classes: number 1 is y',
    ),
    ({'labels': np.array([0, 1, 2, 1])}, 'other labels: number 3 is 0 and 1'),
  ],
)
def test_members_must_be_of_the_same_images(changes, message):
  with pytest.raises(UserError, match=message):
    predictions.average([member(0), member(1, **changes)])


def test_files_give_back_what_was_saved(tmp_path):
  path = str(tmp_path / 'a.npz')
  predictions.save(path, member(5))
  assert_same(predictions.load(path), member(5))
  with pytest.raises(UserError, match='does not exist'):
    predictions.load(str(tmp_path / 'b.npz'))
  with pytest.raises(UserError, match='cannot be written .*: give another'):
    predictions.save(str(tmp_path / 'no' / 'a.npz'), member(5))
  other = tmp_path / 'other.npz'
  np.savez(other, log_probabilities=np.zeros(3))
  text = tmp_path / 'text.npz'
  text.write_text('no archive')
  objects = tmp_path / 'objects.npz'
  np.savez(
    objects, **{**dataclasses.asdict(member(5)), 'names': np.array([{}])}
  )
  for path in (other, text, objects):
    with pytest.raises(UserError, match='has no predictions'):
      predictions.load(str(path))

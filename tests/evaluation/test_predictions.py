"""Predictions: their mean, and files of them."""

import dataclasses

import numpy as np
import pytest

from bn_inception.errors import UserError
from bn_inception.evaluation import predictions
from bn_inception.evaluation.predictions import Predictions


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
      'run 0 and run 1 have different images: number 2 is c.jpg and e.jpg',
    ),
    ({'names': np.array(['a.jpg'])}, 'has 4 images and run 1 has 1: only'),
    (
      {'class_names': np.array(['x', 'z', 'y'])},
      'different classes: number 1 is y',
    ),
    (
      {'labels': np.array([0, 1, 2, 1])},
      'different labels: number 3 is 0 and 1',
    ),
  ],
)
def test_members_must_be_of_the_same_images(changes, message):
  with pytest.raises(UserError, match=message):
    predictions.average([member(0), member(1, **changes)])
  with pytest.raises(UserError, match=r'a.npz \(run 0\) .* b.npz \(run 1\) '):
    predictions.average([member(0), member(1, **changes)], ['a.npz', 'b.npz'])


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
  empty = tmp_path / 'empty.npz'
  empty.touch()
  single = tmp_path / 'single.npy'
  np.save(single, np.zeros(3))
  for path in (other, text, objects, empty, single):
    with pytest.raises(UserError, match='is not a file of predictions'):
      predictions.load(str(path))


def changed(index, value):
  values = member(5).log_probabilities.copy()
  values[index] = value
  return {'log_probabilities': values}


@pytest.mark.parametrize(
  'changes, message',
  [
    (changed((2, 1), np.nan), 'of image 2 .c.jpg. sum to nan'),
    (changed((3, 0), np.inf), 'of image 3 .d.jpg. sum to inf'),
    (changed(1, [0.0, 0.5, -9.0]), 'of image 1 .b.jpg. sum to 2.649'),
    (changed(0, np.log(0.3)), 'of image 0 .a.jpg. sum to 0.9'),
    (
      {'labels': np.array([0, 1, 3, 0])},
      'image 2 .c.jpg. has the label 3 of 3 classes',
    ),
    (
      {'labels': np.array([0, -1, 2, 0])},
      'image 1 .b.jpg. has the label -1 of 3 classes',
    ),
    ({'labels': np.zeros(4)}, 'labels is float64'),
    ({'labels': np.zeros(3, int)}, r'log_probabilities is float32\[4, 3\]'),
    ({'names': np.array(['a.jpg'])}, r'names is .*\[1\]'),
    ({'class_names': np.array(['x', 'y'])}, 'log_probabilities is float32'),
    (
      {'class_names': np.array(['x', 'y', 'x'])},
      "there are 2 classes 'x'",
    ),
  ],
)
def test_files_of_other_numbers_are_refused(tmp_path, changes, message):
  path = str(tmp_path / 'a.npz')
  predictions.save(path, member(5, **changes))
  with pytest.raises(UserError, match=message) as error:
    predictions.load(path)
  assert str(error.value).startswith(f'{path} does not hold valid predictions')


def test_a_probability_may_be_0(tmp_path):
  path = str(tmp_path / 'a.npz')
  certain = member(5, **changed(1, [-np.inf, 0.0, -np.inf]))
  predictions.save(path, certain)
  assert_same(predictions.load(path), certain)

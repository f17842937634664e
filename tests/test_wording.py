"""Counts and lists of names in messages."""

from bn_inception.wording import count, name_some


def test_one_is_singular_and_all_else_plural():
  assert count(1, 'image') == '1 image'
  assert count(0, 'image') == '0 images'
  assert count(1234, 'class', 'classes') == '1,234 classes'
  assert count(1.0, 'epoch', form='.3g') == '1 epoch'
  assert count(0.3556, 'epoch', form='.3g') == '0.356 epochs'


def test_five_names_are_enough():
  assert name_some(['a'], 'class', 'classes') == '1 class (a)'
  assert name_some('abcde', 'file') == '5 files (a, b, c, d, e)'
  assert name_some('abcdef', 'file') == '6 files (a, b, c, d, e, ...)'

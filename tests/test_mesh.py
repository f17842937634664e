"""Sizes of the mesh, and what is refused."""

import jax
import pytest

from bn_inception import mesh
from bn_inception.errors import UserError


@pytest.mark.parametrize(
  'norm_batch_size, shape',
  [
    (0, (1, 8)),
    (4, (8, 1)),
    (8, (8, 1)),
    (16, (4, 2)),
    (32, (2, 4)),
    (64, (1, 8)),
  ],
)
def test_groups_hold_a_normalisation_batch(norm_batch_size, shape):
  made = mesh.make_training_mesh(jax.devices(), 64, norm_batch_size)
  assert made.axis_names == ('group', 'member')
  assert made.devices.shape == shape


def test_batch_that_does_not_divide_is_refused_with_one_that_does():
  with pytest.raises(
    UserError, match=r'over 8 devices: use a multiple of 8.*=32'
  ):
    mesh.make_training_mesh(jax.devices(), 30, 0)


def test_impossible_normalisation_batch_names_those_that_work():
  message = r'norm_batch_size 12 does not fit 8 .*\[1, 2, 4, 8, 16, 32, 64\]'
  with pytest.raises(UserError, match=message):
    mesh.make_training_mesh(jax.devices(), 64, 12)

"""Sizes of the mesh, and what is refused."""

import jax
import numpy as np
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


def test_sizes_without_a_variance_are_neither_taken_nor_offered():
  one = jax.devices()[:1]
  for size, message in (
    (1, r'norm_batch_size 1 is below 2, .* one of \[2, 4\]'),
    (3, r'norm_batch_size 3 does not fit .* one of \[2, 4\]'),
  ):
    with pytest.raises(UserError, match=message):
      mesh.make_training_mesh(one, 4, size, min_norm_batch_size=2)
  for size in 0, 1:
    with pytest.raises(UserError, match='batch_size 1: .* at least 2 examples'):
      mesh.make_training_mesh(one, 1, size, min_norm_batch_size=2)
    mesh.make_training_mesh(one, 1, size)


def test_copies_that_differ_are_named():
  device_mesh = mesh.make_evaluation_mesh(jax.devices())
  rng = np.random.default_rng(0)
  values = {
    'kernel': rng.normal(size=(3, 4)).astype(np.float32),
    'step': np.int32(7),
  }
  tree = jax.device_put(values, mesh.replicated(device_mesh))
  assert mesh.differing_leaves(tree, device_mesh) == []
  # One bit of the copy of one device.
  flipped = values['kernel'].copy()
  flipped.view(np.uint32)[1, 2] ^= 1
  copies = [
    jax.device_put(flipped if i == 5 else values['kernel'], device)
    for i, device in enumerate(device_mesh.devices.flat)
  ]
  tree['kernel'] = jax.make_array_from_single_device_arrays(
    (3, 4), mesh.replicated(device_mesh), copies
  )
  assert mesh.differing_leaves(tree, device_mesh) == ["['kernel']"]
  single = mesh.make_evaluation_mesh(jax.devices()[:1])
  assert mesh.differing_leaves(values, single) == []

"""Batches have the sizes that training and evaluation ask for, on all devices."""

import dataclasses

import jax
import numpy as np
import pytest

from bn_inception import mesh
from bn_inception.data.batches import Batches
from bn_inception.data.built_in import DigitsSource
from bn_inception.data.source import Subset
from tests.data.test_input_pipeline import OPTIONS


@pytest.fixture
def batches():
  return Batches(
    options=dataclasses.replace(OPTIONS, num_shards=16),
    num_channels=1,
    batch_size=32,
    accumulate_steps=2,
    eval_batch_size=100,
    seed=3,
    device_mesh=mesh.make_evaluation_mesh(jax.devices()[:4]),
  )


def test_training_batches_are_stacks_of_micro_batches(batches):
  assert batches.micro_batch_size == 16
  batch = next(batches.training(DigitsSource('train'), 5, 7))
  abstract = batches.abstract_training()
  assert batch.keys() == abstract.keys()
  for name, expected in abstract.items():
    assert (batch[name].shape, batch[name].dtype) == (
      expected.shape,
      expected.dtype,
    )
  assert batch['label'].shape == (2, 16)
  assert batch['label'].sharding.shard_shape((2, 16)) == (2, 4)


@pytest.mark.parametrize(
  'crop, at_most, num_images',
  [
    ('whole', None, 100),
    ('whole', 30, 32),  # a multiple of the devices
    ('whole', 999, 100),
    ('googlenet', None, 4),  # 100 inputs are less than one image's
  ],
)
def test_evaluation_counts_every_crop(batches, crop, at_most, num_images):
  options = dataclasses.replace(batches.options, eval_crop=crop, image_size=8)
  batches = dataclasses.replace(batches, options=options)
  source = Subset(DigitsSource('test'), np.arange(8))
  batch = next(batches.evaluation(source, at_most))
  assert batch['label'].shape == (num_images,)
  assert batch['mask'].sum() == min(8, num_images)


def test_statistics_are_of_micro_batches_of_any_number_of_examples(batches):
  source = Subset(DigitsSource('test'), np.arange(10))  # fewer than the shards
  found = list(batches.statistics(source, 3, seed=0))
  assert [batch['label'].shape for batch in found] == [(16,)] * 3

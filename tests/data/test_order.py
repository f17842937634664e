"""The order of examples: permutations, and how well they mix."""

import itertools

import numpy as np
import pytest

from bn_inception.data.order import (
  SHUFFLES,
  epoch_order,
  repeated_pair_fraction,
)
from bn_inception.errors import UserError


@pytest.mark.parametrize('shuffle', SHUFFLES)
def test_every_epoch_is_a_permutation_of_its_own(shuffle):
  orders = [epoch_order(1000, 16, shuffle, seed=1, epoch=e) for e in range(3)]
  for order in orders:
    np.testing.assert_array_equal(np.sort(order), np.arange(1000))
  assert not np.array_equal(orders[0], orders[1])
  again = epoch_order.__wrapped__(1000, 16, shuffle, 1, 0)
  np.testing.assert_array_equal(again, orders[0])
  assert not np.array_equal(epoch_order(1000, 16, shuffle, 2, 0), orders[0])


@pytest.mark.parametrize('shuffle', SHUFFLES)
@pytest.mark.parametrize('num_examples, batch_size', [(240, 12), (241, 12)])
def test_the_mixing_figure_counts_pairs(shuffle, num_examples, batch_size):
  stream = np.concatenate(
    [epoch_order(num_examples, 5, shuffle, 3, epoch) for epoch in range(2)]
  )
  met = [set(), set()]  # pairs of each epoch; a batch may span the two
  for start in range(0, len(stream), batch_size):
    batch = list(enumerate(stream[start : start + batch_size], start))
    for (i, a), (j, b) in itertools.combinations(batch, 2):
      if i // num_examples == j // num_examples:
        met[i // num_examples].add(frozenset((int(a), int(b))))
  expected = len(met[0] & met[1]) / len(met[1])
  found = repeated_pair_fraction(num_examples, 5, shuffle, 3, batch_size)
  assert found == pytest.approx(expected, abs=1e-12)


def test_shuffles_differ_in_how_often_pairs_meet_again():
  # 15 others in a batch: out of 127 in the shard, or of 2047 in all.
  def fraction(shuffle):
    return repeated_pair_fraction(2048, 16, shuffle, seed=0, batch_size=16)

  assert fraction('shards') == 1.0
  np.testing.assert_allclose(fraction('within_shards'), 15 / 127, rtol=0.15)
  np.testing.assert_allclose(fraction('global'), 15 / 2047, rtol=0.35)
  assert repeated_pair_fraction(100, 4, 'shards', 0, batch_size=1) == 0.0


def test_more_shards_than_examples_are_refused():
  for shuffle in 'shards', 'within_shards':
    with pytest.raises(
      UserError, match='num_shards .*2000.* 1442 .*shuffle=global'
    ):
      epoch_order(1442, 2000, shuffle, 0, 0)
  order = epoch_order(48, 1024, 'global', 0, 0)  # which has no shards
  np.testing.assert_array_equal(np.sort(order), np.arange(48))

"""The order of training examples (Section 4.2.1, change 6), and how well it mixes."""

import functools

import numpy as np

from bn_inception.errors import UserError

SHUFFLES = ('shards', 'within_shards', 'global')


@functools.lru_cache(maxsize=4)
def epoch_order(
  num_examples: int, num_shards: int, shuffle: str, seed: int, epoch: int
) -> np.ndarray:
  """The order of the examples in one epoch: int64 [num_examples], read-only.

  A fixed permutation of the source is cut into `num_shards` logical shards, which
  each epoch visits in a new order. `shuffle` sets which examples can share a
  mini-batch: 'shards' keeps the order inside a shard; 'within_shards' permutes it
  anew each epoch; 'global' permutes everything, without shards.

  Raises:
    UserError: if there are more shards than examples.
  """
  if shuffle != 'global' and num_shards > num_examples:
    raise UserError(
      f'data.num_shards is {num_shards}, but there are only {num_examples} '
      'examples: use fewer, or --config.data.shuffle=global, which has no shards'
    )
  rng = np.random.default_rng([seed, epoch])
  if shuffle == 'global':
    order = rng.permutation(num_examples)
  else:
    # Not a function of the seed: it stands for the layout on disk.
    fixed = np.random.default_rng(0).permutation(num_examples)
    shards = np.array_split(fixed, num_shards)
    if shuffle == 'within_shards':
      shards = [rng.permutation(shard) for shard in shards]
    order = np.concatenate([shards[i] for i in rng.permutation(num_shards)])
  order.setflags(write=False)
  return order


def repeated_pair_fraction(
  num_examples: int, num_shards: int, shuffle: str, seed: int, batch_size: int
) -> float:
  """How badly the order mixes; 1 means the same mini-batches in every epoch.

  The fraction of pairs that share a mini-batch in the second epoch and already did
  in the first. Chance, which 'global' reaches, is
  (batch_size - 1) / (num_examples - 1).
  """
  batch_of = []
  for epoch in range(2):
    order = epoch_order(num_examples, num_shards, shuffle, seed, epoch)
    batch = np.empty(num_examples, np.int64)
    batch[order] = (
      epoch * num_examples + np.arange(num_examples)
    ) // batch_size
    batch_of.append(batch)
  first, second = batch_of
  both = second * (first.max() + 1) + first
  together = _count_pairs(second)
  return _count_pairs(both) / together if together else 0.0


def _count_pairs(group: np.ndarray) -> int:
  """Number of pairs of examples in the same group."""
  _, size = np.unique(group, return_counts=True)
  return int(np.sum(size * (size - 1)) // 2)

"""What a network's weights and the order of its examples depend on in the data.

These facts are stored with every run (data.json) and checkpoint, and compared
wherever one is used again. Where the data lie is none of them: a copy in another
folder is the same data.
"""

from collections.abc import Mapping

from bn_inception.sources.source import Source

# What a network's arrays and the names of its outputs depend on.
OF_NETWORK = 'class_names', 'num_channels'
_NAMES = {
  'dataset': 'data set',
  'split': 'training split',
  'num_channels': 'colour channels',
  'num_examples': 'training examples',
}


def describe(source: Source, split: str) -> dict:
  """The facts of a training split, as JSON has them.

  Args:
    source: the training split.
    split: its name.
  """
  return {
    'dataset': source.name,
    'split': split,
    'class_names': list(source.class_names),
    'num_channels': source.num_channels,
    'num_examples': len(source),
  }


def describe_network(source: Source) -> dict:
  """Those facts of any split that a network depends on."""
  facts = describe(source, split='')
  return {key: facts[key] for key in OF_NETWORK}


def first_difference(
  stored: Mapping[str, object], given: Mapping[str, object]
) -> str | None:
  """The first fact that differs, as 'what: stored -> given'; None if none does.

  Facts that only one of the two has are skipped: checkpoints of earlier versions
  have fewer, and not every use depends on all of them.

  Args:
    stored: with a run or a checkpoint; other keys are ignored.
    given: as of `describe`.
  """
  for key, new in given.items():
    old = stored.get(key)
    if old is None or old == new:
      continue
    if key != 'class_names':
      return f'{_NAMES[key]}: {old} -> {new}'
    if len(old) != len(new):
      return f'number of classes: {len(old)} -> {len(new)}'
    index = next(i for i, name in enumerate(old) if name != new[i])
    return f'class {index}: {old[index]} -> {new[index]}'
  return None

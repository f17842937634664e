"""What a run depends on in its data: classes, examples and their order.

These facts are stored with every run (data.json) and checkpoint, and compared
wherever one is used again. The folder of the data is not among them: a copy in
another folder is the same data.
"""

from collections.abc import Mapping

from bn_inception.data.source import Source

_NAMES = {
  'dataset': 'data set',
  'split': 'training split',
  'num_channels': 'colour channels',
  'num_examples': 'training examples',
  'eval_split': 'evaluation split',
  'num_eval_examples': 'evaluation examples',
}
# Facts that are hashes -> what they are of; the hashes would tell a reader nothing.
_FINGERPRINTS = {
  'fingerprint': 'files of the training split',
  'eval_fingerprint': 'files of the evaluation split',
}


def describe(
  source: Source, split: str, eval_source: Source, eval_split: str
) -> dict:
  """The facts of a run's data, as JSON has them.

  Args:
    source, split: the training split and its name.
    eval_source, eval_split: the evaluation split and its name. Its classes and
      channels are those of the training split.
  """
  facts = {
    'dataset': source.name,
    'split': split,
    **describe_network(source),
    'num_examples': len(source),
    'fingerprint': source.fingerprint(),
    'eval_split': eval_split,
    'num_eval_examples': len(eval_source),
    'eval_fingerprint': eval_source.fingerprint(),
  }
  return {key: value for key, value in facts.items() if value is not None}


def describe_network(source: Source) -> dict:
  """What a network's arrays and the names of its outputs depend on."""
  return {
    'class_names': list(source.class_names),
    'num_channels': source.num_channels,
  }


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
    if key in _FINGERPRINTS:
      return f'{_FINGERPRINTS[key]}: other ones, or in another order'
    if key != 'class_names':
      return f'{_NAMES[key]}: {old} -> {new}'
    if len(old) != len(new):
      return f'number of classes: {len(old)} -> {len(new)}'
    index = next(i for i, name in enumerate(old) if name != new[i])
    return f'class {index}: {old[index]} -> {new[index]}'
  return None

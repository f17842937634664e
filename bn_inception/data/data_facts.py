"""Facts about the data that a run depends on: classes, examples and their order.

They are stored with every run (data.json) and checkpoint, and compared when one is
used again. The folder is not one of them: a copy elsewhere is the same data.
"""

from collections.abc import Mapping

from bn_inception.data.source import Source
from bn_inception.errors import UserError

_NAMES = {
  'dataset': 'data set',
  'split': 'training split',
  'num_channels': 'colour channels',
  'num_examples': 'training examples',
  'eval_split': 'evaluation split',
  'num_eval_examples': 'evaluation examples',
}
# Facts that are hashes -> what is hashed, which says more to a reader.
_FINGERPRINTS = {
  'fingerprint': 'files of the training split',
  'eval_fingerprint': 'files of the evaluation split',
}


def describe(
  source: Source, split: str, eval_source: Source, eval_split: str
) -> dict:
  """The facts about a run's data, as JSON values.

  Args:
    source, split: the training split and its name.
    eval_source, eval_split: the evaluation split, which has the same classes and
      channels, and its name.
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
  """The facts that set a network's shapes and the names of its outputs."""
  return {
    'class_names': list(source.class_names),
    'num_channels': source.num_channels,
  }


def check_same_classes(
  source: Source, split: str, eval_source: Source, eval_split: str
) -> None:
  """Raises UserError unless one network fits both splits; see `describe`."""
  different = first_difference(
    describe_network(source), describe_network(eval_source)
  )
  if different:
    raise UserError(
      f'the splits {split} and {eval_split} of {source.name} are of other '
      f'classes or images ({different}): give splits that fit each other'
    )


def first_difference(
  stored: Mapping[str, object], given: Mapping[str, object]
) -> str | None:
  """The first fact that differs, as 'what: stored -> given', or None.

  Facts that only one side has are skipped: older checkpoints have fewer, and not
  every use depends on all of them.

  Args:
    stored: facts of a run or checkpoint; other keys are ignored.
    given: from `describe`.
  """
  for key, new in given.items():
    old = stored.get(key)
    if old is None or old == new:
      continue
    if key in _FINGERPRINTS:
      return f'{_FINGERPRINTS[key]}: different, or in another order'
    if key != 'class_names':
      return f'{_NAMES[key]}: {old} -> {new}'
    if len(old) != len(new):
      return f'number of classes: {len(old)} -> {len(new)}'
    index = next(i for i, name in enumerate(old) if name != new[i])
    return f'class {index}: {old[index]} -> {new[index]}'
  return None

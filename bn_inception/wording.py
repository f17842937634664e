"""Counts and lists of names in messages."""

from collections.abc import Sequence

_NUM_NAMED = 5


def count(
  number: float, singular: str, plural: str | None = None, form: str = ','
) -> str:
  """(1, 'class', 'classes') -> '1 class'; (2000, 'image') -> '2,000 images'.

  Args:
    number: how many.
    singular, plural: the noun; without a plural, the singular and an s.
    form: format spec of the number.
  """
  noun = singular if number == 1 else plural or f'{singular}s'
  return f'{number:{form}} {noun}'


def name_some(
  names: Sequence[str], singular: str, plural: str | None = None
) -> str:
  """(['a', 'b'], 'class', 'classes') -> '2 classes (a, b)'; names at most five."""
  named = ', '.join(names[:_NUM_NAMED])
  more = ', ...' if len(names) > _NUM_NAMED else ''
  return f'{count(len(names), singular, plural)} ({named}{more})'

"""Names of PyTorch's weights without what training scripts put before them."""

import re
from collections.abc import Iterable
from typing import Any

from bn_inception.errors import UserError

# Of DataParallel and torch.compile, around the network or a part of it.
_WRAPPER = re.compile(r'(?<![^.])(module|_orig_mod)\.')


def strip_prefixes(
  weights: dict[str, Any], stems: Iterable[str], what: str
) -> tuple[dict[str, Any], tuple[str, ...]]:
  """The weights under the names that the network itself gives them.

  'module.' and '_orig_mod.' go wherever they stand, and so does what comes before
  the network's first layer, such as 'model.'. Weights without that prefix are not
  of the network, and left out.

  Args:
    weights: by name.
    stems: how the names of a first layer begin, for each known network.
    what: holds the weights, for messages.

  Returns:
    The weights, and a line for each thing that was done. Weights without a
    first layer come back as they are.

  Raises:
    UserError: if the network is in there more than once.
  """
  any_stem = '|'.join(
    re.escape(stem).replace(r'\.', rf'\.(?:{_WRAPPER.pattern})*')
    for stem in stems
  )
  matches = [re.match(rf'(|.*\.)(?:{any_stem})[._]', name) for name in weights]
  # The longest first: 'model.' would take 'model.net.' for its own.
  prefixes = sorted({match[1] for match in matches if match}, key=len)[::-1]
  if not prefixes:
    return weights, ()
  name_of, others = {}, []
  for name in weights:
    prefix = next((p for p in prefixes if name.startswith(p)), None)
    if prefix is None:
      others.append(name)
      continue
    own = _WRAPPER.sub('', name.removeprefix(prefix))
    if own in name_of:
      raise UserError(
        f'{what} holds more than one network (with {name_of[own]} and {name}): '
        'save the state_dict of one alone'
      )
    name_of[own] = name
  remarks = []
  renamed = [(name, own) for own, name in name_of.items() if name != own]
  if renamed:
    name, own = renamed[0]
    noun = 'prefix' if len(renamed) == 1 else 'prefixes'
    remarks.append(f'{len(renamed)} {noun} taken off: {name} is {own}')
  if others:
    more = f' and {len(others) - 3} more' if len(others) > 3 else ''
    remarks.append(
      f'left out, as not of the network: {", ".join(others[:3])}{more}'
    )
  return {own: weights[name] for own, name in name_of.items()}, tuple(remarks)

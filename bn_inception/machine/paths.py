"""Paths as users give them: with ~, or as an address such as gs://bucket/run.

A shell expands ~ at the beginning of a word, and so not in --workdir=~/run.
"""

import os
import re

from etils import epath

from bn_inception.errors import UserError

# pathlib makes gs:/bucket of gs://bucket.
_ADDRESS = re.compile(r'([A-Za-z][A-Za-z0-9+.-]+:)/')


def expand(path: str, name: str, may_be_bucket: bool = False) -> str:
  """The path of a file or folder of this machine.

  Args:
    path: as it was given; ~, ~user and file:// at its beginning are replaced.
    name: of the path in messages, such as '--workdir'.
    may_be_bucket: whether an address that `epath` reads stays as it is.

  Raises:
    UserError: for a home folder that is not known, or another address.
  """
  address = _ADDRESS.match(path)
  if address:
    return _expand_address(path, address[1], name, may_be_bucket)
  expanded = os.path.expanduser(path)
  if path.startswith('~') and expanded == path:
    user = path[1:].partition('/')[0]
    why = f'there is no user {user}' if user else 'HOME is not set'
    raise UserError(f'{name}={path}: {why}: give the path without ~')
  return expanded


def _expand_address(
  path: str, scheme: str, name: str, may_be_bucket: bool
) -> str:
  local = re.match(r'file:(//(localhost)?)?(?=/(?!/))', path)
  if local:
    return path[local.end() :]
  if may_be_bucket and _is_known(path):
    return path
  raise UserError(
    f'{name}={path}: {scheme} is no folder of this machine: mount it (such as '
    'with gcsfuse, s3fs or rclone), or copy what is there, and give that path'
  )


def _is_known(address: str) -> bool:
  try:
    epath.Path(address)
  except KeyError:  # of addresses that it does not know
    return False
  return '://' in address

"""Expands paths from users: ~, file:// and bucket addresses such as gs://bucket/run.

Shells expand ~ only at the start of a word, so not in --workdir=~/run.
"""

import os
import re

from etils import epath

from bn_inception.errors import UserError

# One slash is enough: pathlib turns gs://bucket into gs:/bucket.
_ADDRESS = re.compile(r'([A-Za-z][A-Za-z0-9+.-]+:)/')


def expand(path: str, name: str, may_be_bucket: bool = False) -> str:
  """Expands a leading ~, ~user or file://.

  Args:
    path: as the user gave it.
    name: its name in messages, such as '--workdir'.
    may_be_bucket: if True, addresses that `epath` reads are returned unchanged.

  Raises:
    UserError: for an unknown home folder or any other address.
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
    f'{name}={path}: {scheme} is not a local folder: mount it (with gcsfuse, s3fs '
    'or rclone), or copy the files, and give that path'
  )


def _is_known(address: str) -> bool:
  try:
    epath.Path(address)
  except KeyError:  # unknown scheme
    return False
  return '://' in address

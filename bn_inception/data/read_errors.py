"""Tells damaged examples, which can be skipped, from failures of the machine."""

import errno
import os

from google.protobuf.message import DecodeError

from bn_inception.errors import UserError

# What files, array_record and TFDS raise for an example that cannot be read.
UNREADABLE = (
  RuntimeError, ValueError, TypeError, OSError, DecodeError,
)  # fmt: skip

_MORE_FILES = (
  'raise the limit with `ulimit -n 65536`, or use fewer '
  '--config.data.num_workers'
)
_FREE_MEMORY = 'free some, or use fewer --config.data.num_workers'
_FAILING_DEVICE = (
  'check the disk or network that holds it, then run the same command again'
)
_REMEDIES = {  # errno of a machine that cannot read -> what to do
  errno.EMFILE: _MORE_FILES,
  errno.ENFILE: 'raise the system-wide limit, fs.file-max',
  errno.ENOMEM: _FREE_MEMORY,
  errno.EAGAIN: _FREE_MEMORY,
  errno.ENOSPC: 'free up space',
  errno.EDQUOT: 'free up space',
} | dict.fromkeys(
  (
    errno.EIO, errno.ESTALE, errno.ENOTCONN, errno.ETIMEDOUT, errno.EHOSTDOWN,
    errno.EHOSTUNREACH, errno.ENETDOWN, errno.ENETUNREACH, errno.ECONNRESET,
    errno.ECONNABORTED, errno.ECONNREFUSED, errno.ENODEV, errno.ENXIO,
  ),
  _FAILING_DEVICE,
)  # fmt: skip


def machine_errno(error: Exception) -> int | None:
  """The errno if the machine failed; None if the file itself is at fault.

  array_record wraps the system's message in a RuntimeError.
  """
  if isinstance(error, OSError):
    number = error.errno
    if number is None and isinstance(error, TimeoutError):  # from a bucket
      number = errno.ETIMEDOUT
    if number is None and isinstance(error, ConnectionError):
      number = errno.ECONNRESET
    return number if number in _REMEDIES else None
  if not isinstance(error, RuntimeError):
    return None
  return next((n for n in _REMEDIES if os.strerror(n) in str(error)), None)


def check_machine(error: Exception, what: str) -> None:
  """Raises if the machine, and not the example, is the cause of an error.

  Args:
    error: one of `UNREADABLE`.
    what: the thing that could not be read, for the message.

  Raises:
    UserError: if skipping the example or replacing the file would not help.
  """
  number = machine_errno(error)
  if number is not None:
    raise UserError(
      f'{what} cannot be read ({os.strerror(number)}); the data are not at '
      f'fault: {_REMEDIES[number]}'
    ) from error

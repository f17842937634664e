"""Failures of the machine are told from damaged files."""

import errno

import pytest

from bn_inception.data.read_errors import check_machine, machine_errno
from bn_inception.errors import UserError


@pytest.mark.parametrize(
  'error, number',
  [
    (OSError(errno.EIO, 'Input/output error'), errno.EIO),
    (TimeoutError('from a bucket'), errno.ETIMEDOUT),
    (ConnectionError('from a bucket'), errno.ECONNRESET),
    (RuntimeError('open() failed: Too many open files; a'), errno.EMFILE),
    (FileNotFoundError(errno.ENOENT, 'No such file or directory'), None),
    (RuntimeError('corrupt record'), None),
    (ValueError('Too many open files'), None),
  ],
  ids=repr,
)
def test_errors_of_the_machine_have_a_number(error, number):
  assert machine_errno(error) == number
  if number is None:
    check_machine(error, 'a.jpg')
  else:
    with pytest.raises(UserError, match='a.jpg'):
      check_machine(error, 'a.jpg')

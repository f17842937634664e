#!/usr/bin/env bash
# array_record 0.8.6: ArrayRecordReader(path) returns a reader although the file
# cannot be opened, and raises nothing until the first read. ArrayRecordDataSource
# opens the file of an example when that is first asked for, and keeps the reader: an
# example that failed once, because the process had too many open files at that
# moment, fails for the rest of the process. One would have guessed that the
# constructor raises, and that a later read tries again.
# Seen: constructor: no error; first read: RuntimeError; again with files to spare:
# RuntimeError; a new data source: the record.
# Fails if that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
  array_record==0.8.6 absl-py==2.5.1 etils==1.15.0 importlib_resources==7.1.0 zipp==4.1.2
"$folder/venv/bin/python" - "$folder/one.array_record" <<'PYTHON'
import os
import resource
import sys

from array_record.python.array_record_data_source import ArrayRecordDataSource
from array_record.python.array_record_module import (
  ArrayRecordReader,
  ArrayRecordWriter,
)

path = sys.argv[1]
writer = ArrayRecordWriter(path, 'group_size:1')
writer.write(b'a record')
writer.close()
source = ArrayRecordDataSource([path])  # reads how many records there are

_, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (64, hard))
held = []
try:
  while True:
    held.append(os.open('/dev/null', os.O_RDONLY))
except OSError:
  pass


def outcome(function):
  try:
    return function()
  except RuntimeError as error:
    return f'RuntimeError: {str(error).partition(chr(10))[0][:60]}'


reader = ArrayRecordReader(path)
print('constructor: no error')
first = outcome(lambda: source[0])
print('first read:', first)
for descriptor in held:
  os.close(descriptor)
again = outcome(lambda: source[0])
print('again, with files to spare:', again)
fresh = outcome(lambda: ArrayRecordDataSource([path])[0])
print('a new data source:', fresh)
assert isinstance(first, str) and isinstance(again, str)
assert fresh == b'a record'
print('as described')
PYTHON

#!/usr/bin/env bash
# tensorflow-datasets 4.9.10: a part of a split that ends before it begins, such as
# 'test[5:2]', has a negative number of examples, and makes a sum of splits shorter.
# One would have guessed that it is empty, as Python's slices are, or refused, as
# parts that go past the end are.
# Seen, with 10 examples: -3 in 'test[5:2]', 7 in 'test+test[5:2]'.
# Fails if that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
  tensorflow-datasets==4.9.10 importlib_resources==7.1.0 array_record==0.8.6 \
  numpy==2.4.6 protobuf==7.36.2
"$folder/venv/bin/python" - <<'PYTHON'
from etils import epath
import tensorflow_datasets as tfds

template = tfds.core.ShardedFileTemplate(
  data_dir=epath.Path('/tmp'),
  dataset_name='pets',
  split='test',
  filetype_suffix='array_record',
)
splits = tfds.core.SplitDict([tfds.core.SplitInfo('test', [10], 0, template)])
numbers = {s: splits[s].num_examples for s in ('test[5:2]', 'test+test[5:2]')}
print(numbers)
assert numbers == {'test[5:2]': -3, 'test+test[5:2]': 7}
print('as described')
PYTHON

#!/usr/bin/env bash
# tensorflow-datasets 4.9.10: which class names a prepared copy has depends on how it
# is named. The copy's own label.labels.txt counts for tfds.builder('NAME:VERSION'),
# which reads the folder; for tfds.builder('NAME') of a data set in the catalogue the
# names in TFDS's code count, and the copy's are ignored without a word. One would
# have guessed the same names, or an error where they differ.
# Seen, with the first two lines of a copy's label.labels.txt exchanged:
# 'fashion_mnist': T-shirt/top, Trouser; 'fashion_mnist:3.0.1': Trouser, T-shirt/top.
# Fails if that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
  tensorflow-datasets==4.9.10 importlib_resources==7.1.0 array_record==0.8.6 \
  numpy==2.4.6 protobuf==7.36.2
"$folder/venv/bin/python" - "$folder/data" <<'PYTHON'
import sys

import tensorflow_datasets as tfds

data_dir = sys.argv[1]
builder = tfds.builder('fashion_mnist', data_dir=data_dir)
template = tfds.core.ShardedFileTemplate(
  dataset_name='fashion_mnist',
  data_dir=builder.data_dir,
  split='train',
  filetype_suffix='tfrecord',
)
split = tfds.core.SplitInfo(
  name='train', shard_lengths=[0], num_bytes=0, filename_template=template
)
builder.info.set_splits(tfds.core.SplitDict([split]))
builder.data_path.mkdir(parents=True)
builder.info.write_to_directory(builder.data_path)
file = builder.data_path / 'label.labels.txt'
first, second, *others = file.read_text().splitlines()
file.write_text('\n'.join([second, first, *others]) + '\n')

names = {}
for name in ('fashion_mnist', 'fashion_mnist:3.0.1'):
  opened = tfds.builder(name, data_dir=data_dir)
  names[name] = opened.info.features['label'].names[:2]
  print(f'{name}: {names[name]} ({type(opened).__name__})')
assert names['fashion_mnist'] == [first, second]
assert names['fashion_mnist:3.0.1'] == [second, first]
print('as described')
PYTHON

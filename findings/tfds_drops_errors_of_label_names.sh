#!/usr/bin/env bash
# tensorflow-datasets 4.9.10: tfds.builder('NAME:VERSION') takes a copy whose
# label.labels.txt has another number of names than features.json has classes, without
# a word. ClassLabel raises a ValueError for them, and does so when it is asked by
# itself; but FeaturesDict loads its features in threads and never looks at the
# results, so that the error is dropped. The names and num_classes then disagree.
# One would have guessed that the builder raises.
# Seen, with 'numClasses': 2 and one name: no error, num_classes 2, names ['cat'];
# ClassLabel alone: ValueError.
# Fails if that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
  tensorflow-datasets==4.9.10 importlib_resources==7.1.0 array_record==0.8.6 \
  numpy==2.4.6 protobuf==7.36.2
"$folder/venv/bin/python" - "$folder/copy" <<'PYTHON'
import pathlib
import sys

import numpy as np
import tensorflow_datasets as tfds

folder = pathlib.Path(sys.argv[1])
folder.mkdir()
features = tfds.features.FeaturesDict(
  {
    'image': tfds.features.Image(shape=(4, 4, 3), dtype=np.uint8),
    'label': tfds.features.ClassLabel(names=['cat', 'dog']),
  }
)
features.save_config(folder)
(folder / 'label.labels.txt').write_text('cat\n')
loaded = tfds.features.FeaturesDict.from_config(folder)
label = loaded['label']
print(f'from a folder: num_classes {label.num_classes}, names {label.names}')
assert label.num_classes == 2 and label.names == ['cat']
try:
  tfds.features.ClassLabel(num_classes=2).load_metadata(folder, 'label')
  raise SystemExit('ClassLabel alone: no error')
except ValueError as error:
  print(f'ClassLabel alone: ValueError: {str(error)[:60]}')
print('as described')
PYTHON

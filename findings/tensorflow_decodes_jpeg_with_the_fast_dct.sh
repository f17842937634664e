#!/usr/bin/env bash
# TensorFlow 2.21.0: tf.io.decode_jpeg (and decode_image) gives other pixels than
# Pillow 13.0.0 and OpenCV 5.0.0 do, of the same baseline JPEG without subsampling:
# its default is libjpeg's fast, less accurate DCT. With
# dct_method='INTEGER_ACCURATE' the pixels are those of the others. The documentation
# says that the default depends on the version; one would have guessed that four
# libraries on libjpeg-turbo agree. Accuracies on ImageNet that differ in the second
# decimal between frameworks begin here.
# Seen, on two photographs: Pillow = OpenCV = TensorFlow with INTEGER_ACCURATE;
# TensorFlow's default differs by up to 6 of 255, 0.99 and 0.91 in the mean.
# Fails if that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
  tensorflow==2.21.0 pillow==13.0.0 opencv-python-headless==5.0.0.93 numpy==2.4.6 \
  scikit-learn==1.9.1
TF_CPP_MIN_LOG_LEVEL=2 "$folder/venv/bin/python" - <<'PYTHON'
import io

import cv2
import numpy as np
import tensorflow as tf
from PIL import Image
from sklearn.datasets import load_sample_images

print('tensorflow', tf.__version__)
for photograph in load_sample_images().images:
  file = io.BytesIO()
  Image.fromarray(photograph).save(file, 'JPEG', quality=90, subsampling=0)
  encoded = file.getvalue()
  pillow = np.asarray(Image.open(file)).astype(int)
  flags = cv2.IMREAD_COLOR_RGB
  opencv = cv2.imdecode(np.frombuffer(encoded, np.uint8), flags).astype(int)
  default = tf.io.decode_jpeg(encoded).numpy().astype(int)
  accurate = tf.io.decode_jpeg(encoded, dct_method='INTEGER_ACCURATE')
  accurate = accurate.numpy().astype(int)
  difference = np.abs(default - pillow)
  print(
    f'{photograph.shape}: OpenCV - Pillow {np.abs(opencv - pillow).max()}, '
    f'TensorFlow INTEGER_ACCURATE - Pillow {np.abs(accurate - pillow).max()}, '
    f'TensorFlow default - Pillow {difference.max()} '
    f'(mean {difference.mean():.2f})'
  )
  assert np.array_equal(opencv, pillow) and np.array_equal(accurate, pillow)
  assert difference.max() > 1
print('as described')
PYTHON

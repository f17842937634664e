"""Our evaluation crops against torchvision's and TF-Slim's own preprocessing.

    make benchmarks && . .venv-bench/bin/activate
    python -m benchmarks.published_pixels

prints how much the pixels differ for the images that scikit-learn and scikit-image
ship, from the bytes of the files to the network's input. TF-Slim's JPEGs are decoded
with the accurate DCT, as by Pillow and here, and with TensorFlow's default.
"""

import importlib.metadata
import importlib.util
import io
import pathlib
import sys

import numpy as np
import PIL.Image

from benchmarks.results import print_table
from bn_inception.data import images
from bn_inception.data.input_pipeline import (
  InputOptions,
  prepare_evaluation_image,
)
from bn_inception.programs import command_line

SIZE = 224
HEADER = [
  'compared with', '--crops', 'oblong: largest', 'mean', 'square: largest',
  'mean',
]  # fmt: skip
PACKAGES = (
  'scikit-learn', 'scikit-image', 'torchvision', 'pillow', 'tensorflow',
  'opencv-python-headless',
)  # fmt: skip


def find_photographs() -> list[pathlib.Path]:
  """The images that scikit-learn and scikit-image ship."""
  found = []
  for package, folder in ('sklearn', 'datasets/images'), ('skimage', 'data'):
    spec = importlib.util.find_spec(package)
    root = pathlib.Path(spec.submodule_search_locations[0], folder)
    found += [p for p in root.iterdir() if p.suffix in ('.jpg', '.png')]
  return sorted(found, key=lambda path: path.name)


def our_pixels(encoded: bytes, rule: str) -> np.ndarray:
  """uint8 [224, 224, 3] of a rule of `crops.NUM_CROPS`."""
  options = InputOptions(
    image_size=SIZE, shuffle='global', num_shards=1, train_crop='whole',
    eval_crop=rule, mirror=False, interpolation='bilinear',
    on_bad_image='raise', num_workers=0, prefetch=1,
  )  # fmt: skip
  out = np.empty((1, SIZE, SIZE, 3), np.uint8)
  prepare_evaluation_image(images.open_image(encoded, 3), options, out)
  return out[0]


def torchvision_transforms():
  """torchvision.transforms alone.

  The rest of the package needs a PyTorch that was built for the same devices.
  """
  if 'torchvision' not in sys.modules:
    spec = importlib.util.find_spec('torchvision')
    sys.modules['torchvision'] = importlib.util.module_from_spec(spec)
  return importlib.import_module('torchvision.transforms')


def torchvision_pixels(encoded: bytes) -> np.ndarray:
  """uint8 [224, 224, 3] of the transforms of PyTorch's ImageNet example."""
  transforms = torchvision_transforms()
  image = PIL.Image.open(io.BytesIO(encoded)).convert('RGB')
  transform = transforms.Compose(
    [transforms.Resize(256), transforms.CenterCrop(SIZE)]
  )
  return np.asarray(transform(image))


def slim_pixels(encoded: bytes, dct_method: str = '') -> np.ndarray:
  """float32 [224, 224, 3] in 0..255: TF-Slim's preprocess_for_eval, unscaled.

  Its steps, in TensorFlow's operations: tensorflow/models,
  research/slim/preprocessing/inception_preprocessing.py.

  Args:
    encoded: JPEG or PNG.
    dct_method: of decoding JPEGs; '' is TensorFlow's default, a fast one.
  """
  import tensorflow as tf

  if encoded.startswith(b'\xff\xd8'):
    image = tf.io.decode_jpeg(encoded, channels=3, dct_method=dct_method)
  else:
    image = tf.io.decode_png(encoded, channels=3)
  image = tf.image.convert_image_dtype(image, tf.float32)
  image = tf.image.central_crop(image, central_fraction=0.875)
  # What TensorFlow 1 called tf.image.resize_bilinear.
  (image,) = tf.raw_ops.ResizeBilinear(
    images=image[None], size=[SIZE, SIZE], align_corners=False,
    half_pixel_centers=False,
  )  # fmt: skip
  return 255 * image.numpy()


def slim_pixels_of_accurate_jpegs(encoded: bytes) -> np.ndarray:
  return slim_pixels(encoded, 'INTEGER_ACCURATE')


# What to compare with, its pixels, and our rules.
COMPARISONS = (
  ('torchvision', torchvision_pixels, ('torchvision', 'short_side')),
  ('TF-Slim', slim_pixels_of_accurate_jpegs, ('slim', 'centre')),
  ("TF-Slim, TensorFlow's JPEGs", slim_pixels, ('slim', 'centre')),
)


def main() -> None:
  photographs = [path.read_bytes() for path in find_photographs()]
  lines = []
  for name, their_pixels, rules in COMPARISONS:
    theirs = [their_pixels(encoded) for encoded in photographs]
    for rule in rules:
      differences = {'oblong': [], 'square': []}
      for encoded, expected in zip(photographs, theirs, strict=True):
        ours = our_pixels(encoded, rule)
        height, width, _ = images.decode_image(encoded, 3).shape
        shape = 'square' if height == width else 'oblong'
        differences[shape].append(np.abs(np.float32(ours) - expected))
      cells = [
        [f'{np.max(found):.2f}', f'{np.mean(found):.3f}']
        for found in differences.values()
      ]
      lines.append([name, rule, *sum(cells, [])])
  counts = ', '.join(f'{len(v)} {k}' for k, v in differences.items())
  print(f'{counts} images; differences in 0..255')
  print(', '.join(f'{p} {importlib.metadata.version(p)}' for p in PACKAGES))
  print_table(HEADER, lines)


if __name__ == '__main__':
  command_line.run(main)

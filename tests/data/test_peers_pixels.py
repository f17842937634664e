"""Evaluation crops against other projects' preprocessing: `make test-peers`.

torchvision's transforms and those of `pretrainedmodels` on Pillow's images, and
TF-Slim's steps in TensorFlow's operations, from the bytes of JPEGs and PNGs.
"""

import importlib.util
import io
import math
import pathlib

import numpy as np
import PIL.Image
import pytest
import sklearn

from benchmarks import published_pixels
from bn_inception.data import augment
from bn_inception.weights import layouts
from tests.weights.test_peers_networks import MODELS, make_pytorch_model
from tests.weights.test_slim import in_scope, make_slim_weights

pytestmark = pytest.mark.peers

FOLDER = pathlib.Path(sklearn.__file__).parent / 'datasets' / 'images'
# Landscape, portrait, square; to reduce and to enlarge; one that torchvision
# rounds otherwise than by halves; a single row.
SIZES = [(640, 427), (427, 640), (300, 300), (343, 256), (90, 71), (31, 1)]


def encode(width, height, mode='RGB', file_format='JPEG'):
  """A photograph cut to some size."""
  image = PIL.Image.open(FOLDER / 'china.jpg').crop((0, 0, width, height))
  file = io.BytesIO()
  image.convert(mode).save(file, file_format, icc_profile=None)
  return file.getvalue()


PHOTOGRAPHS = {
  'china': lambda: (FOLDER / 'china.jpg').read_bytes(),
  'flower': lambda: (FOLDER / 'flower.jpg').read_bytes(),
  'grey': lambda: encode(500, 375, 'L'),
  'png': lambda: encode(375, 500, file_format='PNG'),
  **{f'{w}x{h}': lambda w=w, h=h: encode(w, h) for w, h in SIZES},
}


@pytest.fixture(params=PHOTOGRAPHS)
def photograph(request):
  return PHOTOGRAPHS[request.param]()


def test_torchvisions_pixels_to_the_bit(photograph):
  theirs = published_pixels.torchvision_pixels(photograph)
  ours = published_pixels.our_pixels(photograph, 'torchvision')
  np.testing.assert_array_equal(ours, theirs)


def test_slims_pixels_to_half_a_step(photograph):
  theirs = published_pixels.slim_pixels(photograph, 'INTEGER_ACCURATE')
  ours = published_pixels.our_pixels(photograph, 'slim')
  assert np.abs(ours - theirs).max() <= 0.51


def our_input(photograph, imported):
  """What the network gets, float32 [224, 224, 3]."""
  pixels = published_pixels.our_pixels(photograph, imported.eval_crop)
  scaled = augment.scale_image(pixels[None], **imported.input_scaling)
  return np.asarray(scaled[0])


def pytorch_transform(package):
  """What each package evaluates its network with."""
  transforms = published_pixels.torchvision_transforms()
  if package == 'pytorchcv':  # of its README: resize_inv_factor is 0.875
    return transforms.Compose(
      [
        transforms.Resize(math.ceil(224 / 0.875)),
        transforms.CenterCrop(224),
        transforms.ToTensor(),
        transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
      ]
    )
  modules = []
  folder = importlib.util.find_spec(package).submodule_search_locations[0]
  for name in 'models/bninception', 'utils':
    spec = importlib.util.spec_from_file_location(
      name, pathlib.Path(folder, f'{name}.py')
    )
    modules.append(importlib.util.module_from_spec(spec))
    spec.loader.exec_module(modules[-1])
  network, utils = modules
  settings = network.pretrained_settings['bninception']['imagenet']
  return utils.TransformImage(settings)


@pytest.mark.parametrize('package', MODELS)
def test_imported_pytorch_weights_get_their_own_input(package):
  weights = make_pytorch_model(package).state_dict()
  imported = layouts.import_weights(
    {name: value.numpy() for name, value in weights.items()}
  )
  transform = pytorch_transform(package)
  for make in PHOTOGRAPHS.values():
    image = PIL.Image.open(io.BytesIO(make())).convert('RGB')
    theirs = transform(image).numpy().transpose(1, 2, 0)
    ours = our_input(make(), imported)
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-4)


def test_imported_slim_weights_get_their_own_input():
  imported = layouts.import_weights(in_scope(make_slim_weights()))
  for make in PHOTOGRAPHS.values():
    pixels = published_pixels.slim_pixels(make(), 'INTEGER_ACCURATE')
    theirs = (pixels / 255 - 0.5) * 2
    ours = our_input(make(), imported)
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=0.51 * 2 / 255)

"""PyTorch's BN-Inception, from `pretrainedmodels`."""

import importlib.util
import pathlib


def make_pytorch_model():
  """With random weights.

  Loads the file alone: its package imports torchvision, which needs a PyTorch
  that was built for the same devices.
  """
  package = importlib.util.find_spec('pretrainedmodels')
  folder = pathlib.Path(package.submodule_search_locations[0])
  spec = importlib.util.spec_from_file_location(
    'cadene_bninception', folder / 'models' / 'bninception.py'
  )
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module.bninception(pretrained=None)

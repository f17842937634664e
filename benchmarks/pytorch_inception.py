"""BN-Inception in PyTorch: from `pretrainedmodels`, and ours from an exported file."""

import importlib.util
import json
import pathlib
from functools import partial

import safetensors.torch
import torch
import torch.nn.functional as F
from torch import nn

from bn_inception.inception import FIGURE_5, Row


def make_pytorch_model() -> nn.Module:
  """That of `pretrainedmodels`, with random weights.

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


def load_exported(path: str) -> nn.Module:
  """The network of a file of layout bn_inception, in evaluation mode.

  Its input is [N, C, H, W], scaled as the config's section `input_scaling` says.
  """
  with safetensors.safe_open(path, 'pt') as file:
    notes = file.metadata()
  config = json.loads(notes['bn_inception.config'])
  model = Inception(
    config['model'],
    len(json.loads(notes['bn_inception.class_names'])),
    json.loads(notes['bn_inception.num_channels']),
  )
  model.load_state_dict(safetensors.torch.load_file(path))
  return model.eval()


class Inception(nn.Module):
  """`bn_inception.inception.Inception`: each parameter has the exported name.

  Without modules that are normalised per activation, and only with the stride
  padding 'same' and averages that exclude the padding.

  Args:
    options: the section `model` of a config.
    num_classes, num_channels: of the data.
  """

  def __init__(self, options: dict, num_classes: int, num_channels: int):
    super().__init__()
    assert options['stride_padding'] == 'same'
    assert not options['average_includes_padding']
    assert not options['per_activation_modules']
    self.is_small, self.use_lrn = options['stem'] == 'small', options['use_lrn']
    unit = partial(
      ConvUnit,
      nonlinearity=getattr(F, options['nonlinearity']),
      epsilon=options['epsilon'] if options['use_batch_norm'] else None,
      use_scale=options['use_scale'],
    )
    first = unit
    if options['use_batch_norm'] and not options['use_stem_batch_norm']:
      first = partial(unit, epsilon=None)
    scaled = partial(scale, width=options['width'])
    self.conv1 = first(
      num_channels,
      scaled(64),
      3 if self.is_small else 7,
      stride=options['stem_stride'],
      depth_multiplier=8 if options['stem'] == 'separable' else 0,
    )
    self.conv2_reduce = unit(scaled(64), scaled(64), 1)
    self.conv2 = unit(scaled(64), scaled(192), 3)
    num_maps, self.rows = scaled(192), []
    for row in FIGURE_5:
      if row.name in ('4c', '4d'):
        row = row._replace(projection=options['pool_projection_4cd'])
      module = Module(num_maps, row, unit, scaled)
      self.add_module(f'inception_{row.name}', module)
      self.rows.append(module)
      num_maps = module.num_outputs
    self.logits = nn.Linear(num_maps, num_classes)

  def forward(self, x):
    lrn = partial(F.local_response_norm, size=5, alpha=1e-4, beta=0.75, k=1.0)
    x = self.conv1(x)
    x = x if self.is_small else pool(x, 'max', 2)
    x = lrn(x) if self.use_lrn else x
    x = self.conv2(self.conv2_reduce(x))
    x = lrn(x) if self.use_lrn else x
    x = x if self.is_small else pool(x, 'max', 2)
    for module in self.rows:
      x = module(x)
    return self.logits(x.mean((2, 3)))


class Module(nn.Module):
  """An Inception module of Figure 5."""

  def __init__(self, num_maps: int, row: Row, unit, scaled):
    super().__init__()
    self.pool = partial(pool, kind=row.pool, stride=row.stride)
    if row.conv1x1:
      self.conv1x1 = unit(num_maps, scaled(row.conv1x1), 1)
    reduced, width = scaled(row.reduce3x3), scaled(row.conv3x3)
    self.reduce3x3 = unit(num_maps, reduced, 1)
    self.conv3x3 = unit(reduced, width, 3, stride=row.stride)
    reduced, double = scaled(row.reduce_double3x3), scaled(row.double3x3)
    self.reduce_double3x3 = unit(num_maps, reduced, 1)
    self.double3x3_a = unit(reduced, double, 3)
    self.double3x3_b = unit(double, double, 3, stride=row.stride)
    if row.projection:
      self.projection = unit(num_maps, scaled(row.projection), 1)
    self.num_outputs = width + double + scaled(row.conv1x1)
    self.num_outputs += scaled(row.projection) or num_maps

  def forward(self, x):
    branches = [
      self.conv3x3(self.reduce3x3(x)),
      self.double3x3_b(self.double3x3_a(self.reduce_double3x3(x))),
      self.pool(x),
    ]
    if hasattr(self, 'conv1x1'):
      branches.insert(0, self.conv1x1(x))
    if hasattr(self, 'projection'):
      branches[-1] = self.projection(branches[-1])
    return torch.cat(branches, 1)


class ConvUnit(nn.Module):
  """Convolution, normalisation unless epsilon is None, nonlinearity."""

  def __init__(
    self, num_inputs, num_maps, size, *, nonlinearity, epsilon, use_scale,
    stride=1, depth_multiplier=0,
  ):  # fmt: skip
    super().__init__()
    self.size, self.stride, self.nonlinearity = size, stride, nonlinearity
    if depth_multiplier:
      maps = num_inputs * depth_multiplier
      self.depthwise = nn.Conv2d(
        num_inputs, maps, size, stride, groups=num_inputs, bias=False
      )
      num_inputs, size, stride = maps, 1, 1
    self.conv = nn.Conv2d(num_inputs, num_maps, size, stride, bias=not epsilon)
    if epsilon:
      self.norm = nn.BatchNorm2d(num_maps, epsilon)
      if not use_scale:  # 1, and not among the exported weights
        self.norm.register_parameter('weight', None)

  def forward(self, x):
    x = F.pad(x, padding(x, self.size, self.stride))
    if hasattr(self, 'depthwise'):
      x = self.depthwise(x)
    x = self.conv(x)
    return self.nonlinearity(self.norm(x) if hasattr(self, 'norm') else x)


def scale(num_maps: int, width: float) -> int:
  return max(1, round(num_maps * width)) if num_maps else 0


def padding(x, size: int, stride: int) -> list[int]:
  """TensorFlow's 'SAME': (left, right, top, bottom)."""
  pads = []
  for length in (x.shape[3], x.shape[2]):
    total = max(0, (-(-length // stride) - 1) * stride + size - length)
    pads += [total // 2, total - total // 2]
  return pads


def pool(x, kind: str, stride: int):
  """3x3 pooling that ignores the padding."""
  pads = padding(x, 3, stride)
  if kind == 'max':
    return F.max_pool2d(F.pad(x, pads, value=-torch.inf), 3, stride)
  counts = F.avg_pool2d(F.pad(torch.ones_like(x), pads), 3, stride)
  return F.avg_pool2d(F.pad(x, pads), 3, stride) / counts

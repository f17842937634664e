"""What the published networks call the convolutions of Figure 5."""

from typing import NamedTuple

from bn_inception.inception import FIGURE_5


class Names(NamedTuple):
  """What the names of a convolution's weights begin with, by network."""

  pretrainedmodels: str
  pytorchcv: str
  slim: str


# fmt: off
_STEM = {
  'conv1': Names(
    'conv1_7x7_s2', 'features.init_block.conv1', 'Conv2d_1a_7x7'),
  'conv2_reduce': Names(
    'conv2_3x3_reduce', 'features.init_block.conv2.conv1', 'Conv2d_2b_1x1'),
  'conv2': Names(
    'conv2_3x3', 'features.init_block.conv2.conv2', 'Conv2d_2c_3x3'),
}
_UNITS = {  # of a module, with their branches
  'conv1x1':          (1, Names('1x1', '', 'Conv2d_0a_1x1')),
  'reduce3x3':        (2, Names('3x3_reduce', '.conv1', 'Conv2d_0a_1x1')),
  'conv3x3':          (2, Names('3x3', '.conv2', 'Conv2d_0b_3x3')),
  'reduce_double3x3': (3, Names('double_3x3_reduce', '.conv1', 'Conv2d_0a_1x1')),
  'double3x3_a':      (3, Names('double_3x3_1', '.conv2', 'Conv2d_0b_3x3')),
  'double3x3_b':      (3, Names('double_3x3_2', '.conv3', 'Conv2d_0c_3x3')),
  'projection':       (4, Names('pool_proj', '.conv', 'Conv2d_0b_1x1')),
}
# fmt: on
_MODULES = {  # pytorchcv's and TF-Slim's; those of pretrainedmodels are ours
  '3a': ('stage1.unit1', 'Mixed_3b'),
  '3b': ('stage1.unit2', 'Mixed_3c'),
  '3c': ('stage2.unit1', 'Mixed_4a'),
  '4a': ('stage2.unit2', 'Mixed_4b'),
  '4b': ('stage2.unit3', 'Mixed_4c'),
  '4c': ('stage2.unit4', 'Mixed_4d'),
  '4d': ('stage2.unit5', 'Mixed_4e'),
  '4e': ('stage3.unit1', 'Mixed_5a'),
  '5a': ('stage3.unit2', 'Mixed_5b'),
  '5b': ('stage3.unit3', 'Mixed_5c'),
}
_STRIDED = tuple(row.name for row in FIGURE_5 if row.stride == 2)


def published_names(unit: str) -> Names:
  """The names of a convolution of ours: 'conv1', 'inception_3a/conv1x1', ...."""
  if unit in _STEM:
    return _STEM[unit]
  module, name = unit.split('/')
  row = module.removeprefix('inception_')
  stage, mixed = _MODULES[row]
  branch, (cadene, conv, scope) = _UNITS[name]
  if row in _STRIDED:
    branch -= 1  # no 1x1, which is the first branch elsewhere
    if name in ('conv3x3', 'double3x3_b'):
      scope = 'Conv2d_1a_3x3'
  return Names(
    f'{module}_{cadene}',
    f'features.{stage}.branches.branch{branch}{conv}',
    f'{mixed}/Branch_{branch - 1}/{scope}',
  )

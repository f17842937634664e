"""What training scripts put before names is taken off, and said."""

import pytest

from bn_inception.errors import UserError
from bn_inception.weights.prefixes import strip_prefixes

STEMS = ('conv1_7x7_s2', 'features.init_block.conv1')
NETWORK = ('conv1_7x7_s2.weight', 'conv1_7x7_s2_bn.bias', 'last_linear.weight')


@pytest.mark.parametrize(
  'prefix', ['module.', 'model.', '_orig_mod.', 'module._orig_mod.model.net.']
)
def test_prefix_goes_and_the_rest_is_left_out(prefix):
  weights = {f'{prefix}{name}': i for i, name in enumerate(NETWORK)}
  others = {'n_averaged': 7, 'loss.conv1_7x7': 8}
  found, remarks = strip_prefixes(weights | others, STEMS, 'a.pth')
  assert found == dict(zip(NETWORK, range(3), strict=True))
  assert f'3 prefixes taken off: {prefix}conv1_7x7_s2.weight is' in remarks[0]
  assert 'n_averaged, loss.conv1_7x7' in remarks[1]


def test_wrapped_part_of_a_network():
  name = 'features.module.init_block._orig_mod.conv1.conv.weight'
  found, remarks = strip_prefixes({name: 0, 'output.bias': 1}, STEMS, 'a.pth')
  assert found == {
    'features.init_block.conv1.conv.weight': 0,
    'output.bias': 1,
  }
  assert len(remarks) == 1 and name in remarks[0]


@pytest.mark.parametrize('names', [NETWORK, ('submodule.weight', 'conv1.bias')])
def test_own_names_and_those_of_other_networks_stay(names):
  weights = dict.fromkeys(names, 0)
  assert strip_prefixes(weights, STEMS, 'a.pth') == (weights, ())


@pytest.mark.parametrize('prefixes', [('', 'ema.'), ('model.', 'model.ema.')])
def test_two_networks_are_refused(prefixes):
  weights = {f'{prefix}{name}': 0 for prefix in prefixes for name in NETWORK}
  with pytest.raises(UserError) as error:
    strip_prefixes(weights, STEMS, 'a.pth')
  for prefix in prefixes:
    assert f'{prefix}conv1_7x7_s2.weight' in str(error.value)

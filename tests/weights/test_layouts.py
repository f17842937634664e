"""The names of weights tell their layout."""

import numpy as np
import pytest

from bn_inception.errors import UserError
from bn_inception.weights.layouts import import_weights
from bn_inception.weights.pytorch import LAYOUTS
from tests.weights.networks import export
from tests.weights.test_slim import in_scope, make_slim_weights


@pytest.mark.parametrize('layout', LAYOUTS, ids=lambda layout: layout.name)
def test_names_tell_a_pytorch_layout(variables, layout):
  assert import_weights(export(variables, layout)).name == layout.name


def test_names_tell_slim():
  weights = in_scope(make_slim_weights())
  imported = import_weights(weights)
  assert imported.name == 'tf_slim' and imported.num_classes == 1000
  assert import_weights(weights, keep_background=True).num_classes == 1001


@pytest.mark.parametrize('weights', [{}, {'layer1.0.conv1.weight': np.ones(3)}])
def test_other_networks_are_refused(weights):
  names = ', '.join(weights) or 'none'
  with pytest.raises(UserError, match=rf'a.pth: .*\({names}, '):
    import_weights(weights, path='a.pth')

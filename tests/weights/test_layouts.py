"""The names of weights tell their layout."""

import jax
import numpy as np
import pytest

from bn_inception.errors import UserError
from bn_inception.experiment import setup_of_checkpoint
from bn_inception.weights.description import to_notes
from bn_inception.weights.files import Contents
from bn_inception.weights.layouts import (
  export_weights,
  import_weights,
  read_network,
)
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


@pytest.fixture
def exported(few_rows, digits_config):
  """A file of our layout: a network of digits with zeros for weights."""
  described = {
    'config': digits_config,
    'class_names': [f'class {i}' for i in range(10)],
    'num_channels': 1,
  }
  setup = setup_of_checkpoint(described)
  variables = jax.tree.map(
    lambda x: np.zeros(x.shape, x.dtype),
    setup.abstract_state().evaluation_variables,
  )
  weights, layout = export_weights(variables, setup.model)
  return Contents(weights, to_notes(described, layout, 0), ())


def test_exported_file_has_its_description(exported):
  variables, described, _ = read_network(exported, 'a')
  assert variables['params']['logits']['bias'].shape == (10,)
  assert described['class_names'][9] == 'class 9'
  assert described['config']['model']['stem'] == 'small'


def test_damaged_exported_files_are_refused(exported):
  weights = exported.arrays
  kernel = 'inception_3a.conv3x3.conv.weight'
  for change, message in (
    ({kernel: None}, f'a.safetensors: .*bn_x5-digits: missing: {kernel}'),
    ({'extra': np.ones(1)}, 'unknown: extra'),
    ({kernel: np.ones((8, 8, 3), 'f')}, rf'{kernel} is \(8, 8, 3\), not'),
    ({'logits.bias': np.full(10, np.nan, 'f')}, r'logits.bias\[0\] is nan'),
    (
      {k: weights[k][:9] for k in ('logits.weight', 'logits.bias')},
      '9 classes, a.safetensors has 10 names: .*--class_names',
    ),
  ):
    changed = {k: v for k, v in (weights | change).items() if v is not None}
    with pytest.raises(UserError, match=message):
      read_network(exported._replace(arrays=changed), 'a.safetensors')
  with pytest.raises(UserError, match='a.safetensors: .*conv1.conv.weight'):
    read_network(exported._replace(notes={}), 'a.safetensors')

"""BN-Inception against others', from the same weights: `make test-peers`.

PyTorch's are those of `pretrainedmodels` (Cadene) and `pytorchcv` with random
weights: logits in evaluation and in training, and the gradient of the input.
TensorFlow's is TF-Slim's, from a checkpoint that it saves: logits. Exported
networks of other shapes are those of benchmarks/pytorch_inception.py: logits.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bn_inception.data import augment
from bn_inception.experiment import setup_of_checkpoint
from bn_inception.inception import Inception
from bn_inception.weights import files, layouts
from bn_inception.weights.description import to_notes
from bn_inception.weights.layouts import import_weights
from bn_inception.weights.pytorch import to_pytorch
from bn_inception.weights.slim import from_slim
from configs import compose
from tests.weights.test_slim import in_scope, make_slim_weights

pytestmark = pytest.mark.peers

MODELS = ['pretrainedmodels', 'pytorchcv']
NUM_CLASSES = 1000


def make_pytorch_model(package):
  if package == 'pytorchcv':
    from pytorchcv.models.bninception import bninception

    return bninception()
  from benchmarks import pytorch_inception

  return pytorch_inception.make_pytorch_model()


def pytorch_input(package, images):
  """[N, H, W, 3] in 0..255 as each package says that its models want it."""
  import torch

  if package == 'pretrainedmodels':
    x = images[..., ::-1].astype(np.float32) - np.float32([104, 117, 128])
  else:
    mean = np.float32([0.485, 0.456, 0.406])
    x = (images.astype(np.float32) / 255 - mean) / np.float32(
      [0.229, 0.224, 0.225]
    )
  x = np.ascontiguousarray(x.transpose(0, 3, 1, 2))
  return torch.tensor(x, requires_grad=True)


def randomize(model, x):
  """Gamma, beta, biases and statistics that are not 1 and 0, but sensible."""
  import torch

  torch.manual_seed(0)
  norms = [m for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)]
  assert len(norms) == 69
  with torch.no_grad():
    for module in model.modules():
      if isinstance(module, torch.nn.Conv2d):
        module.bias.normal_()
    for norm in norms:
      norm.weight.uniform_(0.5, 1.5)
      norm.bias.normal_(0.0, 0.3)
      norm.momentum = 1.0  # the statistics of the next mini-batch alone
    model.train()(x)
    for norm in norms:
      std = norm.running_var.sqrt()
      norm.running_mean += 0.3 * std * torch.randn(std.shape)
      norm.running_var *= torch.empty(std.shape).uniform_(0.5, 2.0)


@pytest.fixture(scope='module', params=MODELS)
def case(request):
  """Their outputs, and what to make ours of."""
  import torch

  rng = np.random.default_rng(0)
  images = rng.integers(0, 256, (2, 224, 224, 3)).astype(np.uint8)
  cotangent = rng.normal(size=(2, NUM_CLASSES)).astype(np.float32)
  x = pytorch_input(request.param, images)
  model = make_pytorch_model(request.param)
  randomize(model, x)
  weights = {k: v.numpy().copy() for k, v in model.state_dict().items()}
  outputs = {}
  for mode in ('evaluation', 'training'):
    logits = model.train(mode == 'training')(x)
    (dx,) = torch.autograd.grad(logits, x, torch.tensor(cotangent))
    outputs[mode] = logits.detach().numpy(), dx.numpy().transpose(0, 2, 3, 1)
  return request.param, weights, images, cotangent, outputs


@pytest.mark.parametrize(
  'mode, tolerance', [('evaluation', 1e-4), ('training', 1e-3)]
)
def test_logits_and_input_gradient_equal_pytorch(case, mode, tolerance):
  package, weights, images, cotangent, outputs = case
  imported = import_weights(weights)
  assert imported.name == package and imported.num_classes == NUM_CLASSES
  train = mode == 'training'
  model = Inception(NUM_CLASSES, train=train, **imported.model)
  x = augment.scale_image(images, **imported.input_scaling)

  @jax.jit
  def logits_and_gradient(variables, x):
    def apply(x):
      logits, _ = model.apply(
        variables, x, jnp.arange(2), mutable=['batch_stats']
      )
      return logits

    logits, pull_back = jax.vjp(apply, x)
    return logits, pull_back(cotangent)[0]

  logits, dx = logits_and_gradient(imported.variables, x)
  expected_logits, expected_dx = outputs[mode]
  difference = np.abs(logits - expected_logits).max() / expected_logits.std()
  assert difference <= tolerance
  # A ReLU or a maximum that rounding tips moves the gradient around it: in
  # float32 PyTorch is as far, 8e-3, from itself in float64.
  distance = np.linalg.norm(dx - expected_dx) / np.linalg.norm(expected_dx)
  assert distance <= 3e-2


@pytest.mark.parametrize(
  'option',
  [
    {'stride_padding': 'same'},
    {'average_includes_padding': False},
    {'epsilon': 1e-3},
  ],
)
def test_every_option_matters(case, option):
  _, weights, images, _, outputs = case
  imported = import_weights(weights)
  model = Inception(NUM_CLASSES, **imported.model | option)
  x = augment.scale_image(images, **imported.input_scaling)
  logits = jax.jit(model.apply)(imported.variables, x, jnp.arange(2))
  expected = outputs['evaluation'][0]
  assert np.abs(logits - expected).max() / expected.std() > 1e-2


def test_exported_weights_load_into_the_other_model(case):
  import torch

  package, weights, images, _, outputs = case
  imported = import_weights(weights)
  theirs = make_pytorch_model('pretrainedmodels')
  exported = to_pytorch(
    imported.variables, Inception(NUM_CLASSES, **imported.model)
  )
  theirs.load_state_dict({k: torch.tensor(v) for k, v in exported.items()})
  logits = theirs.eval()(pytorch_input(package, images)).detach().numpy()
  expected = outputs['evaluation'][0]
  assert np.abs(logits - expected).max() / expected.std() <= 1e-4


EXPORTED_NETWORKS = {  # size of the images, options
  'digits': (8, {'stem': 'small', 'stem_stride': 1, 'width': 0.125}),
  'baseline': (33, {
    'stem': 'dense', 'use_batch_norm': False, 'use_lrn': True, 'width': 0.125,
  }),
  'no scale, sigmoid': (40, {
    'use_scale': False, 'use_stem_batch_norm': False, 'nonlinearity': 'sigmoid',
    'epsilon': 0.1, 'width': 0.125,
  }),
}  # fmt: skip


@pytest.mark.parametrize('name', EXPORTED_NETWORKS)
def test_logits_of_an_exported_network_equal_pytorch(tmp_path, name):
  import torch

  from benchmarks import pytorch_inception

  size, options = EXPORTED_NETWORKS[name]
  config = compose.preset('bn_baseline', 'imagenet').to_dict()
  config['model'].update(options)
  described = {
    'config': config,
    'class_names': list('abcdefg'),
    'num_channels': 3,
  }
  setup = setup_of_checkpoint(described)
  rng = np.random.default_rng(0)

  def fill(leaf):
    if leaf.ndim < 2:
      return rng.uniform(0.5, 1.5, leaf.shape).astype(leaf.dtype)
    std = np.sqrt(2 / np.prod(leaf.shape[:-1]))
    return np.float32(std * rng.normal(size=leaf.shape))

  variables = jax.tree.map(fill, setup.abstract_state().evaluation_variables)
  weights, layout = layouts.export_weights(variables, setup.model)
  path = str(tmp_path / 'a.safetensors')
  files.write_safetensors(path, weights, to_notes(described, layout, 0))
  x = rng.uniform(-1, 1, (4, size, size, 3)).astype(np.float32)
  logits = jax.jit(setup.model.apply)(variables, x)
  theirs = pytorch_inception.load_exported(path)
  with torch.no_grad():
    expected = theirs(torch.tensor(x.transpose(0, 3, 1, 2))).numpy()
  scale = np.abs(expected).max()
  assert np.abs(logits - expected).max() / scale <= 1e-5


def slim_logits_and_checkpoint(weights, x, prefix, monkeypatch):
  """What TF-Slim's own network makes of images, and its variables, saved."""
  import tensorflow.compat.v1 as tf
  import tf_slim
  from tensorflow.python.framework import ops
  from tf_slim.nets import inception

  # Where TF-Slim looks for it and TensorFlow no longer has it.
  monkeypatch.setattr(ops, 'Tensor', tf.Tensor, raising=False)
  num_classes = weights['InceptionV2/Logits/Conv2d_1c_1x1/biases'].size
  with tf.Graph().as_default(), tf.Session() as session:
    scope = inception.inception_v2_arg_scope()
    for arguments in scope.values():
      # Updates of the moving averages through a collection need Keras 2.
      if 'normalizer_params' in arguments:
        arguments['normalizer_params']['updates_collections'] = None
    with tf_slim.arg_scope(scope):
      logits, _ = inception.inception_v2(
        tf.constant(x), num_classes, is_training=False
      )
    session.run(tf.global_variables_initializer())
    variables = {v.op.name: v for v in tf.global_variables()}
    assert variables.keys() == weights.keys()
    for name, variable in variables.items():
      variable.load(weights[name], session)
    tf.train.Saver().save(session, prefix)
    return session.run(logits)


@pytest.mark.filterwarnings('ignore:.layer.apply. is deprecated')
@pytest.mark.parametrize('size', [224, 203])
def test_logits_of_a_slim_checkpoint_equal_slim(tmp_path, monkeypatch, size):
  rng = np.random.default_rng(1)
  x = rng.uniform(-1, 1, (2, size, size, 3)).astype(np.float32)
  prefix = str(tmp_path / 'inception_v2.ckpt')
  weights = in_scope(make_slim_weights())
  expected = slim_logits_and_checkpoint(weights, x, prefix, monkeypatch)
  read = files.read(prefix).arrays
  imported = from_slim(read, keep_background=True)
  model = Inception(imported.num_classes, **imported.model)
  logits = jax.jit(model.apply)(imported.variables, x, jnp.arange(2))
  assert np.abs(logits - expected).max() / expected.std() <= 1e-4

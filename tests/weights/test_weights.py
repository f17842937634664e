"""The program: imported checkpoints, exported files, and what is refused."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl import flags

from bn_inception.data import sources
from bn_inception.errors import UserError
from bn_inception.evaluation.checkpoints import (
  EvaluationOptions,
  evaluate_checkpoints,
)
from bn_inception.experiment import setup_of_checkpoint
from bn_inception.runs import checkpoint, checkpoint_folder
from bn_inception.train_state import initial_state
from bn_inception.weights import __main__ as program
from bn_inception.weights import files
from bn_inception.weights.pytorch import from_pytorch
from configs import compose
from tests.weights.networks import assert_identical, export


def test_bad_files_leave_no_folder(variables, tmp_path):
  source, workdir = str(tmp_path / 'a.safetensors'), tmp_path / 'run'
  files.write_safetensors(
    source,
    export(variables) | {'last_linear.bias': np.full(1000, np.nan, np.float32)},
    {},
  )
  with pytest.raises(UserError, match=r'last_linear.bias\[0\] is nan'):
    program.import_file(source, str(workdir))
  assert not workdir.exists()


def test_places_are_checked_before_files_are_read(tmp_path):
  (tmp_path / 'checkpoints' / '0').mkdir(parents=True)
  (tmp_path / 'file').touch()
  for workdir, message in (
    (tmp_path, 'holds checkpoints: give another --workdir'),
    (tmp_path / 'file', 'cannot be written .Not a directory.'),
  ):
    with pytest.raises(UserError, match=message):
      program.import_file('/no/weights.pth', str(workdir))
  with pytest.raises(
    UserError, match='cannot be written .*: give another --to'
  ):
    program.export_checkpoint('/no/0', f'{tmp_path}/file/a.safetensors')


def test_only_weights_of_tf_slim_have_a_background(tmp_path):
  source = str(tmp_path / 'a.safetensors')
  files.write_safetensors(source, {'last_linear.bias': np.zeros(9)}, {})
  with pytest.raises(UserError, match=f'{source} .* leave out --keep_back'):
    program.import_file(source, str(tmp_path / 'run'), keep_background=True)


def test_a_run_without_checkpoints_is_not_overwritten(tmp_path):
  config = tmp_path / 'config.json'
  config.write_text('{"name": "diverged"}')
  with pytest.raises(UserError, match=f'{tmp_path} holds a run: .*--workdir'):
    program.import_file('/no/weights.pth', str(tmp_path))
  assert config.read_text() == '{"name": "diverged"}'


@pytest.mark.parametrize(
  'arguments, ignored',
  [
    ('--from=a --workdir=b --layout=pytorchcv', '--layout'),
    ('--from=a --workdir=b --to=c', '--to'),
    ('--checkpoint=a --to=b --dataset=digits', '--dataset'),
    ('--checkpoint=a --to=b --keep_background', '--keep_background'),
  ],
)
def test_flags_without_effect_are_refused(arguments, ignored, monkeypatch):
  values = flags.FlagValues()
  monkeypatch.setattr(flags, 'FLAGS', values)
  for define in 'DEFINE', 'DEFINE_string', 'DEFINE_bool', 'DEFINE_enum':
    monkeypatch.setattr(
      flags,
      define,
      functools.partial(getattr(flags, define), flag_values=values),
    )
  program.define_flags()
  values(['', *arguments.split()])
  with pytest.raises(UserError, match=f'{ignored} has no effect'):
    program.main()


@pytest.mark.slow
def test_imported_checkpoint_is_evaluated_and_exported(
  variables, tmp_path, monkeypatch, capsys
):
  source, workdir = str(tmp_path / 'a.safetensors'), str(tmp_path / 'run')
  files.write_safetensors(source, export(variables), {})
  names = tmp_path / 'names.txt'
  names.write_text(''.join(f'class {i}\n' for i in range(1000)))
  program.import_file(source, workdir, 'synthetic', str(names))
  assert f'python eval.py --workdir={workdir}' in capsys.readouterr().out
  path = checkpoint_folder.find(f'{workdir}/checkpoints')
  assert path.endswith('/0')

  few = functools.partial(sources.SyntheticSource, num_examples=3)
  monkeypatch.setattr(sources, 'SyntheticSource', few)
  result, predictions = evaluate_checkpoints(
    [path], EvaluationOptions(batch_size=8)
  )
  assert result['examples'] == 3 and result['crops'] == 'torchvision'
  (found,) = predictions.values()
  np.testing.assert_allclose(found.probabilities.sum(1), 1.0, rtol=1e-4)

  exported = str(tmp_path / 'b.safetensors')
  program.export_checkpoint(path, exported)
  weights, notes, _ = files.read(exported)
  assert_identical(from_pytorch(weights).variables, variables)
  assert json.loads(notes['bn_inception.layout']) == 'pretrainedmodels'
  # Input and classes of the exported file are those of the checkpoint.
  again = str(tmp_path / 'again')
  program.import_file(exported, again)
  expected = checkpoint.read_description(path)
  assert checkpoint.read_description(f'{again}/checkpoints/0') == expected
  assert expected['config']['data']['eval_crop'] == 'torchvision'
  assert expected['config']['input_scaling']['mean'][0] == 104.0
  config = compose.from_run(again)
  assert config.data.eval_crop == 'torchvision'
  assert config.source.dataset == 'synthetic' and config.model.stem == 'dense'
  with pytest.raises(UserError, match='run holds checkpoints: give another'):
    program.import_file(exported, workdir)
  with pytest.raises(UserError, match='must end with .safetensors'):
    program.export_checkpoint(path, 'b.pth')
  restored = checkpoint.restore

  def diverged(*args):
    state = restored(*args)
    state.params['logits']['bias'] = jnp.full(1000, jnp.nan)
    return state

  monkeypatch.setattr(checkpoint, 'restore', diverged)
  exported = str(tmp_path / 'c.safetensors')
  with pytest.raises(UserError, match=r'0 cannot .*/logits/bias\[0\] is nan'):
    program.export_checkpoint(path, exported)
  assert not (tmp_path / 'c.safetensors').exists()


def write_checkpoint(directory, config, num_classes=10, num_channels=1):
  """A checkpoint of step 3 with random weights."""
  description = {
    'config': config,
    'class_names': [f'class {i}' for i in range(num_classes)],
    'num_channels': num_channels,
  }
  setup, rng = setup_of_checkpoint(description), np.random.default_rng(0)
  variables = jax.tree.map(
    lambda x: jnp.asarray(rng.uniform(1, 5, x.shape), x.dtype),
    setup.abstract_state().evaluation_variables,
  )
  state = initial_state(variables, setup.optimizer).replace(step=jnp.int32(3))
  if state.average_params:  # which are evaluated
    state = state.replace(params=jax.tree.map(jnp.zeros_like, state.params))
  with checkpoint.open_checkpoints(str(directory), 1, 1) as checkpoints:
    checkpoint.save(checkpoints, state, description, top1=None)
  return f'{directory}/3'


@pytest.mark.slow
def test_a_network_of_digits_comes_back(few_rows, tmp_path, digits_config):
  digits_config['optimizer']['average_decay'] = 0.99
  digits_config['init_from'] = 'some/checkpoint'
  path = write_checkpoint(tmp_path / 'checkpoints', digits_config)
  first, second = (str(tmp_path / f'{x}.safetensors') for x in 'ab')
  program.export_checkpoint(path, first)
  weights, notes, _ = files.read(first)
  assert weights['conv1.conv.weight'].shape == (8, 1, 3, 3)
  assert weights['conv1.conv.weight'].min() >= 1  # the averages
  assert weights['conv1.norm.num_batches_tracked'].dtype == np.int64
  assert json.loads(notes['bn_inception.step']) == 3
  program.import_file(first, str(tmp_path / 'run'))
  imported = f'{tmp_path}/run/checkpoints/0'
  config = checkpoint.read_description(imported)['config']
  assert config['name'] == f'imported-{digits_config["name"]}'
  assert config['init_from'] == '' and config['source']['dataset'] == 'digits'
  program.export_checkpoint(imported, second)
  assert_identical(files.read(second).arrays, weights)


def test_layout_that_a_network_cannot_have_is_refused(
  few_rows, tmp_path, digits_config
):
  path = write_checkpoint(tmp_path / 'checkpoints', digits_config)
  output = tmp_path / 'a.safetensors'
  with pytest.raises(
    UserError, match='model.stem is small, not dense.*--layout'
  ):
    program.export_checkpoint(path, str(output), 'pretrainedmodels')
  assert not output.exists()

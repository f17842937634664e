"""The program: imported checkpoints, exported files, and what is refused."""

import functools
import json

import jax.numpy as jnp
import numpy as np
import pytest

from bn_inception.data import sources
from bn_inception.errors import UserError
from bn_inception.evaluation.checkpoints import (
  EvaluationOptions,
  evaluate_checkpoints,
)
from bn_inception.runs import checkpoint, checkpoint_folder
from bn_inception.weights import __main__ as program
from bn_inception.weights.pytorch import CADENE, from_pytorch
from configs import compose
from tests.weights.networks import assert_identical, export


def test_classes_get_the_names_of_a_file_or_of_imagenet(tmp_path):
  names = program.name_classes(1000, None)
  assert names[0] == 'n01440764'
  assert program.name_classes(1001, None) == ['background', *names]
  file = tmp_path / 'names.txt'
  file.write_text('rose\nmarsh marigold\n')
  assert program.name_classes(2, str(file)) == ['rose', 'marsh marigold']
  for number, path, message in (
    (102, None, 'for 102 classes.* 1000: .*--class_names'),
    (3, str(file), 'for 3 classes.*names.txt has 2 names'),
    (1, str(file), 'for 1 classes.*names.txt has 2 names'),
    (3, '/no', '/no cannot be read'),
  ):
    with pytest.raises(UserError, match=message):
      program.name_classes(number, path)
  for text, message in (
    ('rose\n\ntulip\n', 'name 2 is empty'),
    ('rose\ntulip\nrose \n', "names 1 and 3 are both 'rose'"),
  ):
    file.write_text(text)
    with pytest.raises(UserError, match=message):
      program.name_classes(3, str(file))


def test_bad_files_leave_no_folder(variables, tmp_path):
  source, workdir = str(tmp_path / 'a.safetensors'), tmp_path / 'run'
  weights = export(variables)
  scaling = dict(CADENE.input_scaling)
  names = [f'class {i}' for i in range(1000)]
  for change, notes, message in (
    ({'last_linear.bias': np.full(1000, np.nan, np.float32)}, {}, 'is nan'),
    ({}, {'class_names': names[:-1]}, '1000 classes.* has 999 names'),
    ({}, {'class_names': [*names[:-1], 'class 7']}, "1000 are both 'class 7'"),
    ({}, {'class_names': 7}, 'note bn_inception.class_names is damaged'),
    ({}, {'input_scaling': scaling | {'std': [0.0]}}, 'input_scaling.std'),
    (
      {},
      {'input_scaling': scaling | {'mean': [float('nan')]}},
      'input_scaling.mean .* got nan',
    ),
    ({}, {'input_scaling': {'mean': [0.0]}}, 'input_scaling is damaged'),
    ({}, {'eval_crop': 'all'}, 'bn_inception.eval_crop \'"all"\' is unknown'),
  ):
    program.files.write_safetensors(
      source,
      weights | change,
      {f'bn_inception.{key}': json.dumps(note) for key, note in notes.items()},
    )
    with pytest.raises(UserError, match=message):
      program.import_file(source, str(workdir), 'synthetic')
    assert not workdir.exists()


def test_places_are_checked_before_files_are_read(tmp_path):
  (tmp_path / 'checkpoints' / '0').mkdir(parents=True)
  (tmp_path / 'file').touch()
  for workdir, message in (
    (tmp_path, 'holds checkpoints: give another --workdir'),
    (tmp_path / 'file', 'cannot be written .Not a directory.'),
  ):
    with pytest.raises(UserError, match=message):
      program.import_file('/no/weights.pth', str(workdir), 'synthetic')
  with pytest.raises(
    UserError, match='cannot be written .*: give another --to'
  ):
    program.export_checkpoint('/no/0', f'{tmp_path}/file/a.safetensors')


@pytest.mark.slow
def test_imported_checkpoint_is_evaluated_and_exported(
  variables, tmp_path, monkeypatch, capsys
):
  files = program.files
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
  scaling = json.loads(notes[program.SCALING_NOTE])
  assert scaling['channel_order'] == 'bgr' and scaling['mean'][0] == 104.0
  assert json.loads(notes[program.CLASSES_NOTE])[999] == 'class 999'
  # Input and classes of the exported file are those of the checkpoint.
  again = str(tmp_path / 'again')
  assert notes[program.CROP_NOTE] == 'torchvision'
  notes[program.CROP_NOTE] = 'centre'
  files.write_safetensors(exported, weights, notes)
  program.import_file(exported, again, 'synthetic')
  description = checkpoint.read_description(f'{again}/checkpoints/0')
  assert description['config']['data'].pop('eval_crop') == 'centre'
  expected = checkpoint.read_description(path)
  assert expected['config']['data'].pop('eval_crop') == 'torchvision'
  assert description == expected
  config = compose.of_run(again)
  assert config.data.eval_crop == 'centre'
  assert config.source.dataset == 'synthetic' and config.model.stem == 'dense'
  with pytest.raises(UserError, match='run holds checkpoints: give another'):
    program.import_file(exported, workdir, 'synthetic')
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

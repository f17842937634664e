"""Evaluation counts every example once and refuses what does not fit."""

import json

import pytest

from bn_inception import evaluation, training
from bn_inception.errors import UserError
from bn_inception.evaluation import evaluate, evaluate_checkpoint

pytestmark = pytest.mark.usefixtures('few_rows')


@pytest.fixture
def run(tmp_path, digits_config):
  digits_config['training']['num_epochs'] = 2 * 16 / 1442
  workdir = str(tmp_path / 'run')
  return workdir, training.train_and_evaluate(digits_config, workdir)


def test_result_does_not_depend_on_the_batch(run, capsys):
  workdir, result = run
  path = evaluation.find_checkpoint(workdir, step=2)
  for batch_size in (7, 360):
    values = evaluate_checkpoint(path, batch_size=batch_size)
    assert values['examples'] == 355 and values['step'] == 2
    assert values['top1'] == result['top1'] and values['top5'] == result['top5']
    assert values['loss'] == pytest.approx(result['loss'], rel=1e-5)
  train = evaluate_checkpoint(path, split='train')
  assert train['examples'] == 1442 and train['split'] == 'train'

  capsys.readouterr()
  evaluation.print_table(values)
  assert f'top-1       {result["top1"]:.2f} %' in capsys.readouterr().out
  output = f'{workdir}/evaluation.json'
  evaluation.write_result(values, output)
  with open(output) as file:
    assert json.load(file) == values

  with pytest.raises(
    UserError, match='10 classes apart and synthetic has 1000'
  ):
    evaluate_checkpoint(path, dataset='synthetic')
  with pytest.raises(UserError, match="digits has no split 'valid'"):
    evaluate_checkpoint(path, split='valid')


def test_missing_runs_are_named(tmp_path):
  with pytest.raises(UserError, match='workdir .*absent does not exist'):
    evaluation.find_checkpoint(str(tmp_path / 'absent'), None)
  (tmp_path / 'checkpoints').mkdir()
  with pytest.raises(UserError, match='no checkpoint in .*: train first'):
    evaluation.find_checkpoint(str(tmp_path), None)


def test_a_wrong_count_is_an_error():
  def eval_step(variables, batch):
    return {'loss_sum': 1.0, 'top1_count': 1, 'top5_count': 1, 'count': batch}

  good = evaluate(eval_step, {}, [3, 4], num_examples=7)
  assert good['examples'] == 7 and good['top1'] == pytest.approx(200 / 7)
  with pytest.raises(
    RuntimeError, match='evaluated 7 examples of a split of 8'
  ):
    evaluate(eval_step, {}, [3, 4], num_examples=8)

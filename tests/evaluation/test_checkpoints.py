"""Checkpoints are evaluated alone and together; what does not fit is refused."""

import copy
import json

import jax
import numpy as np
import pytest

from bn_inception import training
from bn_inception.data.sources import make_source
from bn_inception.errors import UserError
from bn_inception.evaluation import checkpoints, predictions, scores
from bn_inception.evaluation import report as evaluation_report
from bn_inception.evaluation.checkpoints import (
  EvaluationOptions,
  PopulationOptions,
  evaluate_checkpoints,
)
from bn_inception.evaluation.predictions import Predictions
from bn_inception.experiment import make_setup, setup_of_checkpoint
from bn_inception.machine import shared_memory
from bn_inception.runs import checkpoint
from configs import compose

pytestmark = pytest.mark.usefixtures('few_rows')


def evaluate_checkpoint(path, **options):
  result, _ = evaluate_checkpoints([path], EvaluationOptions(**options))
  return result


@pytest.fixture
def run(tmp_path, digits_config):
  digits_config['training']['num_epochs'] = 2 * 16 / 1442
  # So that training and evaluation have different meshes: (8, 1) and (1, 8).
  digits_config['norm_batch_size'] = 2
  digits_config['training']['checkpoint_every_steps'] = 1
  workdir = str(tmp_path / 'run')
  return workdir, training.train_and_evaluate(digits_config, workdir)


@pytest.mark.slow
def test_result_does_not_depend_on_the_batch(run, monkeypatch, capsys):
  workdir, result = run
  path = checkpoints.find_checkpoint(workdir, step=2)
  for batch_size in (7, 360):
    values = evaluate_checkpoint(path, batch_size=batch_size)
    assert values['examples'] == 355 and values['members'][0]['step'] == 2
    moving = values['results']['moving averages']
    assert moving['top1'] == result['top1'] and moving['top5'] == result['top5']
    assert moving['loss'] == pytest.approx(result['loss'], rel=1e-5)
  train = evaluate_checkpoint(path, split='train')
  assert train['examples'] == 1442 and train['split'] == 'train'

  capsys.readouterr()
  evaluation_report.print_table(values)
  assert f'top-1       {result["top1"]:.2f} %' in capsys.readouterr().out
  output = f'{workdir}/evaluation.json'
  evaluation_report.write_result(values, output)
  with open(output) as file:
    assert json.load(file) == values

  with pytest.raises(UserError, match='number of classes: 10 -> 1000'):
    evaluate_checkpoint(path, dataset='synthetic')
  description = checkpoint.read_description(path)
  description['class_names'][3] = 'three'
  monkeypatch.setattr(checkpoint, 'read_description', lambda path: description)
  with pytest.raises(UserError, match='class 3: three -> 3'):
    evaluate_checkpoint(path)
  monkeypatch.undo()
  with pytest.raises(UserError, match="digits has no split 'valid'"):
    evaluate_checkpoint(path, split='valid')


@pytest.mark.slow
def test_both_statistics_stand_beside_each_other(run, capsys):
  workdir, _ = run
  path = checkpoints.find_checkpoint(workdir, None)
  options = PopulationOptions(num_batches=5, seed=3)
  values = evaluate_checkpoint(path, statistics='both', population=options)
  moving = values['results']['moving averages']
  population = values['results']['population']
  # After two updates the moving averages are still on their way.
  assert abs(population['loss'] - moving['loss']) > 1e-4
  recorded = {k: v for k, v in population.items() if k not in moving}
  assert recorded == {
    'statistics_num_batches': 5,
    'statistics_seed': 3,
    'statistics_dataset': 'digits',
    'statistics_split': 'train',
    'statistics_batch_size': 16,
    'norm_batch_size': 2,
  }
  capsys.readouterr()
  evaluation_report.print_table(values)
  lines = capsys.readouterr().out.splitlines()
  assert 'statistics  moving averages  population' in lines
  assert 'batches     -                5' in lines

  # Folded, the same function; adapted to another split, another one.
  folded = evaluate_checkpoint(
    path, statistics='population', population=options, fold=True
  )
  folded = folded['results']['population']
  assert folded['loss'] == pytest.approx(population['loss'], rel=1e-5)
  assert folded['top1'] == population['top1']
  adapted = evaluate_checkpoint(
    path,
    statistics='population',
    population=PopulationOptions(num_batches=5, seed=3, split='test'),
  )['results']['population']
  assert adapted['loss'] != population['loss']

  with pytest.raises(UserError, match="statistics 'all'"):
    evaluate_checkpoint(path, statistics='all')


@pytest.mark.parametrize('num_batches', [0, -3])
def test_population_statistics_need_a_batch(num_batches):
  message = f'statistics_batches must be .* at least 1 .* got {num_batches}$'
  with pytest.raises(UserError, match=message):
    PopulationOptions(num_batches=num_batches)


@pytest.mark.slow
def test_probabilities_are_means_over_views_and_members(run, tmp_path):
  workdir, _ = run
  path = checkpoints.find_checkpoint(workdir, None)
  options = EvaluationOptions(crops='ten')
  result, found = evaluate_checkpoints([path], options)
  assert (result['num_crops'], result['crops']) == (10, 'ten')
  mean = found['moving averages']
  np.testing.assert_allclose(mean.probabilities.sum(axis=1), 1, atol=1e-5)

  # By hand: the ten crops of some images, one at a time.
  description = checkpoint.read_description(path)
  description['config']['data']['eval_crop'] = 'ten'
  setup = setup_of_checkpoint(description)
  state = checkpoint.restore(path, setup.abstract_state(), setup.replicated)
  batch = next(setup.batches.evaluation(make_source('digits', 'test')))
  views = np.asarray(batch['image'])[:6]
  assert views.shape == (6, 5, 8, 8, 1)
  total = 0.0
  for view in np.moveaxis(views, 1, 0):
    for image in (view, view[:, :, ::-1]):
      logits = setup.model.apply(
        state.evaluation_variables,
        np.float32(image) / 127.5 - 1,
        np.asarray(batch['index'])[:6],
      )
      total = total + np.float64(jax.nn.softmax(logits))
  np.testing.assert_allclose(mean.probabilities[:6], total / 10, atol=1e-6)

  # Two networks: live, and from what each of them saved.
  paths = [path, checkpoints.find_checkpoint(workdir, 1)]
  options = EvaluationOptions(is_named=True)
  both, pair = evaluate_checkpoints(paths, options)
  saved = []
  for i, member in enumerate(paths):
    _, single = evaluate_checkpoints([member], options)
    file = str(tmp_path / f'{i}.npz')
    predictions.save(file, single['moving averages'])
    saved.append(predictions.load(file))
    assert (
      scores.summary(saved[i].log_probabilities, saved[i].labels)
      == both['members'][i]['results']['moving averages']
    )
  assert list(saved[0].names[:3]) == ['0', '1', '2']
  averaged = predictions.average(saved)
  assert (
    scores.summary(averaged.log_probabilities, averaged.labels)
    == both['results']['moving averages']
  )
  np.testing.assert_allclose(
    pair['moving averages'].probabilities,
    (saved[0].probabilities + saved[1].probabilities) / 2,
    rtol=1e-5,
  )
  with pytest.raises(UserError, match="crops 'all'"):
    EvaluationOptions(crops='all')
  with pytest.raises(UserError, match='batch_size must be .*got 0'):
    EvaluationOptions(batch_size=0)


@pytest.fixture
def described(monkeypatch, digits_config):
  """Descriptions of checkpoints by path, without their arrays."""
  descriptions = {}

  def describe(path, **changes):
    config = json.loads(json.dumps(digits_config))
    for name, value in changes.items():
      section, _, key = name.partition('__')
      config[section][key] = value
    descriptions[path] = {
      'config': config,
      'class_names': [str(i) for i in range(10)],
      'num_channels': 1,
    }
    return path

  monkeypatch.setattr(
    checkpoint,
    'read_description',
    lambda path: copy.deepcopy(descriptions[path]),
  )
  return describe


def test_what_needs_no_result_is_refused_before_anything_runs(described):
  first = described('runs/1')
  plain = described('runs/6', model__use_batch_norm=False)
  for statistics in 'population', 'both':
    with pytest.raises(UserError, match='leave out --statistics'):
      checkpoints.prepare([plain], EvaluationOptions(statistics=statistics))
  with pytest.raises(UserError, match='runs/6 has no .*leave out --fold'):
    checkpoints.prepare([plain], EvaluationOptions(fold=True))
  for others, options, message in (
    ([], {'real': True}, "'0' has no ReaL label"),
    (
      [],
      {
        'statistics': 'both',
        'population': PopulationOptions(dataset='image_folder'),
      },
      'image_folder needs --data_dir',
    ),
    (
      [],
      {'statistics': 'both', 'population': PopulationOptions(split='x')},
      "digits has no split 'x'",
    ),
    (
      [],
      {
        'statistics': 'population',
        'population': PopulationOptions(dataset='synthetic', split='train'),
      },
      'synthetic has images of 3 channels',
    ),
    (
      [described('runs/2', model__use_batch_norm=False)],
      {},
      'only some of these networks have batch normalization',
    ),
    (
      [described('runs/3', data__eval_crop='ten')],
      {},
      'one crops, .* runs/1 has whole and runs/3 has ten: choose',
    ),
    (
      [described('runs/4', model__dtype='bfloat16')],
      {},
      'one dtype, .* runs/1 has float32 and runs/4 has bfloat16: choose',
    ),
    (
      [described('runs/5', source__eval_split='train')],
      {},
      'one split, .* runs/1 has test and runs/5 has train: choose',
    ),
  ):
    with pytest.raises(UserError, match=message):
      checkpoints.prepare([first, *others], EvaluationOptions(**options))
  one, two = checkpoints.prepare(
    [first, described('runs/3', data__eval_crop='ten')],
    EvaluationOptions(crops='ten', statistics='both'),
  )
  assert one.facts == two.facts and one.usual['crops'] == 'whole'
  assert one.source is two.source  # opened once


def test_real_labels_come_with_every_result(described, monkeypatch):
  labels = [{int(i) % 10} for i in range(355)]
  monkeypatch.setattr(
    checkpoints.imagenet, 'real_labels', lambda names, classes: labels
  )
  (member,) = checkpoints.prepare(
    [described('runs/1')], EvaluationOptions(real=True)
  )
  assert list(member.names[:2]) == ['0', '1'] and member.real_labels == labels
  scored = np.log(np.eye(10)[np.arange(355) % 10] * 0.9 + 0.01)
  found = Predictions(
    scored, np.zeros(355, int), member.names, np.arange(10), 'run'
  )
  monkeypatch.setattr(
    checkpoints,
    '_evaluate_member',
    lambda member: checkpoints._Evaluated(
      {'results': {'moving averages': {'top1': 1.0}}},
      {'moving averages': found},
      None,
    ),
  )
  result, _ = checkpoints.evaluate_members([member])
  found = result['results']['moving averages']
  assert found['top1'] == 1.0
  assert (found['real']['top1'], found['real']['examples']) == (100.0, 355)


def test_missing_runs_are_named(tmp_path):
  with pytest.raises(UserError, match='workdir .*absent does not exist'):
    checkpoints.find_checkpoint(str(tmp_path / 'absent'), None)
  (tmp_path / 'checkpoints').mkdir()
  with pytest.raises(UserError, match='no checkpoint in .*: train first'):
    checkpoints.find_checkpoint(str(tmp_path), None)


def test_programs_without_a_flag_for_it_use_fewer_workers(monkeypatch, capsys):
  # 64 MB of shared memory, all of it free.
  monkeypatch.setattr(shared_memory, '_free_bytes', lambda: 64 * 2**20)
  config, source = (
    compose.preset('bn_x5', 'imagenet').to_dict(),
    make_source('synthetic', 'test'),
  )
  config['data']['num_workers'] = 8
  config['eval_batch_size'] = 8

  def num_workers():
    setup = make_setup(
      config, jax.devices()[:1], 1000, 3, with_batch_statistics=False
    )
    limited = checkpoints.limit_workers(setup, source)
    return limited.batches.options.num_workers

  # The statistics' batches of 32 need 10 x 4.6 MB a worker, and 5 more.
  assert num_workers() == 0
  assert '/dev/shm has room for 0 of 8 worker' in capsys.readouterr().out
  config['batch_size'] = config['eval_batch_size'] = 4
  assert num_workers() == 8
  assert capsys.readouterr().out == ''

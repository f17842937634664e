"""The numbers of a short run, as they were when `RESULTS_VERSION` was last raised.

If this fails and the change is meant: raise RESULTS_VERSION in
bn_inception/steps.py, so that no older result is taken for one of this code, and
put the new numbers here. (If only a value in configs/ has changed, runs have
another identity anyway: new numbers here are enough.)
"""

import jax
import numpy as np
import pytest

from bn_inception import training
from bn_inception.runs import logbook
from bn_inception.steps import RESULTS_VERSION
from configs import compose

VERSION = 1
# Losses of three training steps; of the evaluation after them with moving averages
# and, where there are any, with population statistics; and how far the second and
# the third step moved the parameters, as a norm.
EXPECTED = {
  'bn_x5': [2.483428, 2.460458, 2.532254, 2.424367, 2.418908, 0.112051],
  # What BN-x5 leaves out: dropout, local response normalization, the other order;
  # and sigmoids.
  'inception_sigmoid': [2.577348, 2.734800, 2.580668, 2.442159, 0.0165020],
}
# Other processors, and XLA's other versions, round in another way.
TOLERANCE, TOLERANCE_OF_NORM = 1e-4, 1e-3


def run_three_steps(name, workdir):
  config = compose.preset(name, 'digits').to_dict()
  config['batch_size'] = config['norm_batch_size'] = 16
  config['training'].update(
    num_epochs=3 * 16 / 1442,
    log_every_steps=1,
    eval_every_steps=3,
    checkpoint_every_steps=1,
    keep_last_checkpoints=3,
    population_batches=2,
  )
  training.train_and_evaluate(config, workdir)
  return logbook.read_metrics(workdir)


def read_params(workdir, step):
  import orbax.checkpoint as ocp

  path = f'{workdir}/checkpoints/{step}/state'
  return ocp.StandardCheckpointer().restore(path)['params']


@pytest.mark.parametrize('name', EXPECTED)
def test_numbers_are_those_of_this_version(tmp_path, few_rows, name):
  assert RESULTS_VERSION == VERSION, 'put the numbers of this version here'
  workdir = str(tmp_path / 'run')
  records = run_three_steps(name, workdir)
  first, last = (read_params(workdir, step) for step in (1, 3))
  moved = jax.tree.map(lambda a, b: np.sum((a - b) ** 2), first, last)
  norm = np.sqrt(sum(jax.tree.leaves(moved)))
  found = [r['loss'] for r in records if r['kind'] == 'train']
  [evaluation] = [r for r in records if r['kind'] == 'eval']
  kinds = ('loss', 'population_loss')
  found += [evaluation[kind] for kind in kinds if kind in evaluation]
  *losses, distance = EXPECTED[name]
  assert found == pytest.approx(losses, rel=TOLERANCE)
  assert norm == pytest.approx(distance, rel=TOLERANCE_OF_NORM)

"""Runs that are asked to stop: saved first, and no step is lost."""

import os
import signal

import jax
import numpy as np
import pytest

from bn_inception import checkpoint, logbook, training
from bn_inception.interruption import Interrupted, StopRequests

pytestmark = pytest.mark.usefixtures('few_rows')


def test_a_second_signal_has_its_usual_effect():
  # A shell's background processes ignore SIGINT, and so may these tests.
  own = signal.signal(signal.SIGINT, signal.default_int_handler)
  before = [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)]
  with StopRequests() as requests:
    assert requests.reached(1) is None
    os.kill(os.getpid(), signal.SIGINT)
    assert requests.reached(2) == signal.SIGINT
    with pytest.raises(KeyboardInterrupt):
      os.kill(os.getpid(), signal.SIGINT)
  after = [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)]
  assert after == before
  signal.signal(signal.SIGINT, own)


def read_raw(workdir):
  import orbax.checkpoint as ocp

  path = checkpoint.find(f'{workdir}/checkpoints')
  return ocp.StandardCheckpointer().restore(f'{path}/state')


@pytest.mark.slow
@pytest.mark.parametrize('step', [4, 6])
def test_an_interrupted_run_ends_as_if_it_had_not_been(
  tmp_path, monkeypatch, digits_config, step
):
  whole, stopped = str(tmp_path / 'whole'), str(tmp_path / 'stopped')
  training.train_and_evaluate(digits_config, whole)

  reached = StopRequests.reached

  def kill_first(self, at):
    if at == step:
      os.kill(os.getpid(), signal.SIGTERM)
    return reached(self, at)

  monkeypatch.setattr(StopRequests, 'reached', kill_first)
  if step == 6:  # the last one, after which there is nothing to stop
    training.train_and_evaluate(digits_config, stopped)
  else:
    with pytest.raises(Interrupted) as caught:
      training.train_and_evaluate(digits_config, stopped)
    assert caught.value.signal_number == signal.SIGTERM
    assert str(caught.value) == (
      'stopped by SIGTERM after step 4, which is saved: the same command goes '
      'on from there'
    )
    assert not os.path.exists(f'{stopped}/result.json')
    assert checkpoint.list_steps(f'{stopped}/checkpoints')[-1] == 4
    monkeypatch.setattr(StopRequests, 'reached', reached)
    training.train_and_evaluate(digits_config, stopped)
    starts = [
      r['step'] for r in logbook.read_metrics(stopped) if r['kind'] == 'start'
    ]
    assert starts == [1, 5]
  jax.tree.map(
    np.testing.assert_array_equal, read_raw(whole), read_raw(stopped)
  )

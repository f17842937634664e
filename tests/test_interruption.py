"""Runs that are asked to stop: saved first, and no step is lost."""

import os
import pathlib
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest

from bn_inception import checkpoint, logbook, training
from bn_inception.interruption import Interrupted, StopRequests

ROOT = pathlib.Path(__file__).parent.parent
# What all scripts below begin with. A shell's background processes ignore SIGINT,
# and so may these tests; JAX itself would take seconds.
START = """
import signal, sys, time, types
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.modules['jax'] = types.SimpleNamespace(process_count=lambda: 1)
from bn_inception import interruption
def ready():
  print('ready', flush=True)
"""
IMPORTING = """
interruption.watch()
ready()
time.sleep(60)
"""
WORKING = """
interruption.watch(can_unwind=True)
try:
  try:
    {work}
  finally:
    print('tidied', flush=True)
    {tidy}
except KeyboardInterrupt:
  interruption.await_answer()
  raise SystemExit(130)
"""
SLEEPING = """ready()
    time.sleep(60)"""
# A lock of C that is never free, as a compiler that does not come back.
IN_C = """import ctypes, threading
    lock, take = ctypes.create_string_buffer(64), ctypes.CDLL(None).pthread_mutex_lock
    take(lock)
    threading.Timer(0.3, ready).start()
    take(lock)"""
# An exception in it is dropped, and the program goes on.
COLLECTING = """import gc
    ready()
    ends = time.monotonic() + 1.0
    gc.callbacks.append(lambda *_: time.sleep(max(0, ends - time.monotonic())))
    gc.collect()
    time.sleep(60)"""
TRAINING = """
interruption.watch(can_unwind=True)
try:
  with interruption.StopRequests('stopping') as requests:
    {begin}
    ready()
    while requests.reached(1) is None:
      time.sleep(0.01)
    print('saving', flush=True)
    {saving}
  raise SystemExit(128 + requests.reached(1))
except KeyboardInterrupt:
  interruption.await_answer()
  raise SystemExit(130)
"""


def end_with(script, *steps):
  """Exit status, stdout and stderr of a script that gets signals when it is ready.

  Args:
    script: after `START`.
    *steps: signals, and lines to wait for.
  """
  process = subprocess.Popen(
    [sys.executable, '-c', START + script],
    cwd=ROOT,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )
  assert process.stdout.readline() == 'ready\n'
  output = ''
  for step in steps:
    if isinstance(step, str):  # to wait for
      output += process.stdout.readline()
      assert output == step
    else:
      process.send_signal(step)
  stdout, stderr = process.communicate(timeout=30)
  return process.returncode, output + stdout, stderr


AGAIN = 'interrupted again: ended at once\n'


@pytest.mark.parametrize(
  'script, stdout, stderr',
  [
    (IMPORTING, '', 'interrupted\n'),
    (
      WORKING.format(work=SLEEPING, tidy=''),
      'tidied\n',
      'interrupted\n',
    ),
    (WORKING.format(work=IN_C, tidy=''), '', 'interrupted\n'),
    (WORKING.format(work=COLLECTING, tidy=''), 'tidied\n', 'interrupted\n'),
    (
      TRAINING.format(begin='', saving=''),
      '',
      'interrupted: nothing to save yet\n',
    ),
    (
      TRAINING.format(begin='requests.begin()', saving=''),
      'saving\n',
      'stopping\n',
    ),
  ],
)
def test_ctrl_c_gets_one_line_and_ends_the_program(script, stdout, stderr):
  assert end_with(script, signal.SIGINT) == (130, stdout, stderr)


def test_ctrl_c_is_ignored_where_it_was():
  script = 'signal.signal(signal.SIGINT, signal.SIG_IGN)\n'
  script += IMPORTING.replace('60', '0.5')
  assert end_with(script, signal.SIGINT) == (0, '', '')


@pytest.mark.parametrize(
  'script, first, stderr',
  [
    (
      WORKING.format(work=SLEEPING, tidy='time.sleep(60)'),
      'tidied\n', 'interrupted\n',
    ),
    (
      TRAINING.format(begin='requests.begin()', saving='time.sleep(60)'),
      'saving\n', 'stopping\n',
    ),
  ],
)  # fmt: skip
def test_a_second_ctrl_c_ends_the_program_at_once(script, first, stderr):
  found = end_with(script, signal.SIGINT, first, signal.SIGINT)
  assert found == (130, first, stderr + AGAIN)


def test_sigterm_is_noted_after_the_beginning_and_kills_before_it():
  script = TRAINING.format(begin='requests.begin()', saving='')
  assert end_with(script, signal.SIGTERM) == (143, 'saving\n', 'stopping\n')
  for script in (IMPORTING, TRAINING.format(begin='', saving='')):
    assert end_with(script, signal.SIGTERM) == (-signal.SIGTERM, '', '')


def test_a_second_signal_has_its_usual_effect():
  own = signal.signal(signal.SIGINT, signal.default_int_handler)
  before = [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)]
  with StopRequests('stopping') as requests:
    assert requests.reached(1) is None
    requests.begin()
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
  tmp_path, monkeypatch, digits_config, few_rows, step
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
    assert os.path.exists(f'{stopped}/learning_curve.png')
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

"""Signals: answered at once; runs are saved first and lose no step."""

import contextlib
import io
import os
import pathlib
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from bn_inception import training
from bn_inception.machine import interruption
from bn_inception.machine.interruption import SIGNALS, Interrupted, StopRequests
from bn_inception.runs import checkpoint_folder, logbook

ROOT = pathlib.Path(__file__).parents[2]
# What all scripts below begin with. A shell's background processes ignore SIGINT,
# those of nohup SIGHUP, and so may these tests; JAX itself would take seconds.
START = """
import signal, sys, time, types
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)
sys.modules['jax'] = types.SimpleNamespace(process_count=lambda: 1)
from bn_inception.machine import interruption
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
    *steps: signals, lines to wait for, and seconds to wait.
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
    elif isinstance(step, float):
      time.sleep(step)
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
  pause = 2 * interruption._SECONDS_OF_ONE_REQUEST
  found = end_with(script, signal.SIGINT, first, pause, signal.SIGINT)
  assert found == (130, first, stderr + AGAIN)


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGHUP])
def test_a_request_is_recorded_after_begin_and_kills_before(number):
  script = TRAINING.format(begin='requests.begin()', saving='time.sleep(0.3)')
  # As from `timeout` and from terminals, which send it twice.
  found = end_with(script, number, number, 'saving\n', number)
  assert found == (128 + number, 'saving\n', 'stopping\n')
  for script in (IMPORTING, TRAINING.format(begin='', saving='')):
    assert end_with(script, number) == (-number, '', '')


def test_sigint_twice_at_once_is_one_request():  # of `timeout --signal=INT`
  script = TRAINING.format(begin='requests.begin()', saving='time.sleep(0.3)')
  found = end_with(script, signal.SIGINT, signal.SIGINT)
  assert found == (130, 'saving\n', 'stopping\n')


@pytest.fixture
def handlers():
  """A function that returns the handlers of `SIGNALS`, reset to the defaults."""
  before = {number: signal.getsignal(number) for number in SIGNALS}
  for number in SIGNALS:
    signal.signal(number, signal.SIG_DFL)
  signal.signal(signal.SIGINT, signal.default_int_handler)
  yield lambda: {number: signal.getsignal(number) for number in SIGNALS}
  for number, handler in before.items():
    signal.signal(number, handler)


@pytest.mark.parametrize('number', SIGNALS)
def test_only_ctrl_c_has_an_effect_after_a_request(handlers, number):
  before = handlers()
  with StopRequests('stopping') as requests:
    assert requests.reached(1) is None
    requests.begin()
    os.kill(os.getpid(), number)
    assert requests.reached(2) == number
    for other in set(SIGNALS) - {signal.SIGINT}:
      os.kill(os.getpid(), other)
    assert requests.reached(3) == number
    with pytest.raises(KeyboardInterrupt):
      os.kill(os.getpid(), signal.SIGINT)
  assert handlers() == before


@pytest.mark.parametrize('number', set(SIGNALS) - {signal.SIGINT})
def test_a_signal_that_is_ignored_stays_so(handlers, number):  # as by nohup
  signal.signal(number, signal.SIG_IGN)
  with StopRequests('stopping') as requests:
    requests.begin()
    os.kill(os.getpid(), number)
    assert requests.reached(1) is None


def test_children_do_not_get_the_signals():
  with interruption.shielding_children():
    child = subprocess.Popen([sys.executable, '-c', 'input(); print("lives")'],
      stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
  assert not signal.pthread_sigmask(signal.SIG_BLOCK, ()) & set(SIGNALS)
  for number in SIGNALS:
    child.send_signal(number)
  assert child.communicate('\n') == ('lives\n', None)


ENDING = """
import atexit
class Late:
  def __del__(self):
    print('interpreter taken down', flush=True)
late = Late()
interruption.watch()
atexit.register(print, 'called at the exit')
{}
raise SystemExit(1)
"""


@pytest.mark.parametrize(
  'line, status, stdout',
  [
    ('', 1, 'called at the exit\ninterpreter taken down\n'),
    ('interruption.end_with(3)', 3, 'called at the exit\n'),
  ],
)
def test_the_process_ends_before_the_interpreter(line, status, stdout):
  done = subprocess.run(
    [sys.executable, '-c', START + ENDING.format(line)],
    cwd=ROOT, capture_output=True, text=True,
  )  # fmt: skip
  assert (done.returncode, done.stdout, done.stderr) == (status, stdout, '')


def test_a_request_does_not_kill_a_program_that_has_stopped():
  script = 'interruption.watch()\ninterruption.end_with(152)\nready()\n'
  script += 'time.sleep(0.3)'
  assert end_with(script, signal.SIGXCPU) == (152, '', '')


def read_raw(workdir):
  import orbax.checkpoint as ocp

  path = checkpoint_folder.find(f'{workdir}/checkpoints')
  return ocp.StandardCheckpointer().restore(f'{path}/state')


@pytest.mark.slow
@pytest.mark.parametrize('step', [4, 6])
def test_an_interrupted_run_ends_like_an_uninterrupted_one(
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
    message = str(caught.value)
    assert message.startswith(
      'stopped by SIGTERM after step 4, which is saved: '
    )
    assert not os.path.exists(f'{stopped}/result.json')
    assert os.path.exists(f'{stopped}/learning_curve.png')
    assert checkpoint_folder.list_steps(f'{stopped}/checkpoints')[-1] == 4
    monkeypatch.setattr(StopRequests, 'reached', reached)
    training.train_and_evaluate(digits_config, stopped)
    starts = [
      r['step'] for r in logbook.read_metrics(stopped) if r['kind'] == 'start'
    ]
    assert starts == [1, 5]
  jax.tree.map(
    np.testing.assert_array_equal, read_raw(whole), read_raw(stopped)
  )


def test_the_answer_is_seen_while_stderr_is_redirected(capfd):
  with contextlib.redirect_stderr(io.StringIO()) as redirected:
    interruption._say('interrupted')
  assert redirected.getvalue() == ''
  assert capfd.readouterr().err == 'interrupted\n'

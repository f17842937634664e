"""Programs whose stdout or stderr is closed, full or broken."""

import os
import pathlib
import pty
import subprocess
import sys
import threading

import pytest

from bn_inception.machine import streams
from bn_inception.runs import checkpoint_folder, logbook

ROOT = pathlib.Path(__file__).parents[2]
TRAIN = [
  'train.py', '--config=configs/mnist.py:batch_norm,digits',
  '--config.training.num_epochs=0.5',
]  # fmt: skip
BROKEN_PIPE = 'stdout cannot be written (Broken pipe): continuing without it\n'
# `python - closed.py`, as a shell does it with >&- and its like.
CLOSED = """
import os, sys
for descriptor in map(int, sys.argv[1].split(',')):
  os.close(descriptor)
os.execv(sys.executable, [sys.executable, *sys.argv[2:]])
"""


@pytest.fixture
def closed_pipe():
  """The stdout of a program whose reader, such as `head`, has ended."""
  read_end, write_end = os.pipe()
  os.close(read_end)
  yield write_end
  os.close(write_end)


def run(arguments, **keywords):
  """Exit status and stderr of Python with these arguments."""
  keywords = {'stderr': subprocess.PIPE} | keywords
  done = subprocess.run(
    [sys.executable, *arguments], cwd=ROOT, text=True, **keywords
  )
  return done.returncode, done.stderr


def test_a_needed_stream_raises_and_others_drop_output(closed_pipe):
  stream = streams._Stream(closed_pipe, '<stdout>', is_needed=True)
  with pytest.raises(streams.StdoutLostError) as caught:
    stream.write(b'x')
  assert isinstance(caught.value.__cause__, BrokenPipeError)
  stream.is_needed = False
  assert stream.write(b'four') == 4


def test_writing_waits_for_a_full_nonblocking_stream():
  read_end, write_end = os.pipe()
  os.set_blocking(write_end, False)
  stream = streams._Stream(write_end, '<stdout>', is_needed=True)
  capacity = stream.write(bytes(2**20))
  received = []
  reader = threading.Timer(
    0.1, lambda: received.append(os.read(read_end, 2**20))
  )
  reader.start()
  assert stream.write(b'more') == 4
  reader.join()
  assert len(received[0]) == capacity and os.read(read_end, 9) == b'more'
  os.close(read_end)
  os.close(write_end)


PROTECTED = """
import os, sys
from bn_inception.machine import streams
streams.protect()
{}
print('printed', flush=True)
"""


@pytest.mark.parametrize('descriptors', ['0', '1', '2', '0,1,2'])
def test_files_do_not_take_the_descriptors_of_closed_streams(
  tmp_path, descriptors
):
  opening = f'assert open({str(tmp_path / "a")!r}, "w").fileno() > 2'
  script = PROTECTED.format(opening) + 'print(1, file=sys.stderr)'
  stdout = None if '1' in descriptors else subprocess.DEVNULL
  found = run(['-c', CLOSED, descriptors, '-c', script], stdout=stdout)
  assert found == (0, '' if '2' in descriptors else '1\n')


def test_a_program_that_continues_says_so_once(closed_pipe):
  script = PROTECTED.format('streams.continue_without_stdout()') * 2
  assert run(['-c', script], stdout=closed_pipe) == (0, BROKEN_PIPE)


@pytest.mark.slow
def test_an_error_without_stderr_keeps_its_status():
  status, _ = run(
    ['-c', CLOSED, '2', 'train.py', '--workdr=x'], stdout=subprocess.PIPE
  )
  assert status == 2


@pytest.mark.slow
def test_a_program_that_only_prints_ends_as_others_do(closed_pipe):
  assert run(['train.py', '--help'], stdout=closed_pipe) == (141, '')


@pytest.mark.slow
def test_a_full_disk_as_stdout_gets_one_line():
  with open('/dev/full', 'w') as full:
    status, stderr = run(['-m', 'bn_inception.study', '--list'], stdout=full)
  assert status == 2
  assert stderr.startswith('error: stdout cannot be written (No space left')
  assert stderr.count('\n') == 1


def read_to(terminal, text):
  """Reads until a program has printed the text."""
  printed = b''
  while text not in printed:
    printed += os.read(terminal, 4096)


# What the terminal that is stdin controls; signals as where nothing ignores them.
IN_TERMINAL = """
import fcntl, os, sys, termios
from bn_inception.machine import interruption
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
for number in interruption.SIGNALS:
  interruption.signal.signal(number, interruption.signal.SIG_DFL)
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""


@pytest.mark.slow
def test_closing_the_terminal_stops_training_with_a_checkpoint(tmp_path):
  terminal, of_program = pty.openpty()
  command = [
    *TRAIN[:-1], '--config.training.num_epochs=10000',
    f'--workdir={tmp_path}/run',
  ]  # fmt: skip
  process = subprocess.Popen(
    [sys.executable, '-c', IN_TERMINAL, *command],
    cwd=ROOT, stdin=of_program, stdout=of_program, stderr=of_program,
    start_new_session=True,
  )  # fmt: skip
  os.close(of_program)
  read_to(terminal, b' left')
  os.close(terminal)
  assert process.wait(60) == 129
  (step,) = checkpoint_folder.list_steps(f'{tmp_path}/run/checkpoints')
  records = logbook.read_metrics(f'{tmp_path}/run')
  assert records[-1]['step'] == step > 0
  command[2] = '--config.training.num_epochs=0.5'  # which is over
  assert run(command, stdout=subprocess.DEVNULL) == (0, '')


@pytest.mark.slow
def test_training_and_evaluation_continue_without_stdout(tmp_path, closed_pipe):
  workdir = f'--workdir={tmp_path}/run'
  for command in ([*TRAIN, workdir], ['eval.py', workdir]):
    assert run(command, stdout=closed_pipe) == (0, BROKEN_PIPE)
  assert (tmp_path / 'run' / 'result.json').exists()
  assert list((tmp_path / 'run').glob('evaluation_test_*.json'))

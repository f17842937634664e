"""A profile of some steps: which ones, where it is, and what is said of it."""

import gzip
import json
import re

import jax
import jax.numpy as jnp
import pytest

from bn_inception.errors import UserError
from bn_inception.runs.profiler import Profiler, check_folder


def take_steps(folder, last_step, first_step=0):
  """The lines told while taking steps up to `last_step`."""
  told = []

  @jax.jit
  def profiled(x):
    return x @ x

  x = profiled(jnp.eye(50))
  with Profiler(folder, first_step, told.append) as profiler:
    for step in range(first_step + 1, last_step + 1):
      with jax.profiler.TraceAnnotation(f'step_{step}'):
        x = profiled(x)
      profiler.after(step, x)
  return told


def steps_in(path):
  with gzip.open(path) as file:
    events = json.load(file)['traceEvents']
  names = {event.get('name', '') for event in events}
  return sorted(int(name[5:]) for name in names if name.startswith('step_'))


@pytest.mark.parametrize(
  'first_step, last_step, expected',
  [(0, 30, (11, 20)), (100, 140, (111, 120)), (0, 15, (11, 15))],
)
def test_steps_11_to_20_of_a_process(tmp_path, first_step, last_step, expected):
  [line] = take_steps(str(tmp_path / 'profile'), last_step, first_step)
  first, last = expected
  assert f'steps {first} to {last}' in line
  path = re.search(rf'open ({tmp_path}/profile/\S*\.json\.gz) ', line)[1]
  assert steps_in(path) == list(range(first, last + 1))


@pytest.mark.parametrize('last_step', [9, 10])
def test_a_run_may_be_too_short(tmp_path, last_step):
  [line] = take_steps(str(tmp_path), last_step)
  assert line.startswith('nothing') and 'step 11' in line
  assert not [path for path in tmp_path.rglob('*') if path.is_file()]


def test_a_folder_that_is_lost_meanwhile_is_named(tmp_path):
  folder = tmp_path / 'a'
  with (
    pytest.raises(UserError, match=f'{folder} .*give another --profile'),
    Profiler(str(folder), 0, print) as profiler,
  ):
    profiler.after(10, ())
    folder.write_text('')
    profiler.after(20, ())
  folder.unlink()
  jax.profiler.stop_trace()  # JAX keeps its trace until it can write it


def test_a_lost_folder_does_not_hide_why_a_run_ended(tmp_path):
  folder, told = tmp_path / 'a', []
  with (
    pytest.raises(KeyboardInterrupt),
    Profiler(str(folder), 0, told.append) as profiler,
  ):
    profiler.after(10, ())
    folder.write_text('')
    raise KeyboardInterrupt
  assert len(told) == 1 and f'no profile in {folder}' in told[0]
  folder.unlink()
  jax.profiler.stop_trace()  # JAX keeps its trace until it can write it


def test_nothing_is_profiled_unless_asked():
  assert take_steps(None, 30) == []


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
  (tmp_path / 'file').write_text('')
  with pytest.raises(UserError, match=f'{tmp_path}/file/.*give another --prof'):
    check_folder(f'{tmp_path}/file')
  check_folder(f'{tmp_path}/folder')
  assert [path.name for path in tmp_path.iterdir()] == ['file']

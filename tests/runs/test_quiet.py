"""What is silenced of Orbax's reports, and what is not."""

import logging
import sys

import orbax.checkpoint as ocp

from bn_inception.runs import quiet


def record_of(name, pathname, message, raised_in=None, text=''):
  """A log record, of an exception that code of the file `raised_in` raised."""
  exc_info, error = None, ValueError(text)
  if raised_in is not None:
    try:
      exec(compile('raise error', raised_in, 'exec'), {'error': error})
    except ValueError:
      exc_info = sys.exc_info()
  return logging.LogRecord(name, 40, pathname, 1, message, None, exc_info)


def record_of_future(text):
  """asyncio's record of an exception that another thread gave to a future."""
  error = ValueError(text)
  exc_info = (type(error), error, error.__traceback__)
  return logging.LogRecord(
    'asyncio', 40, 'base_events.py', 1, 'never retrieved', None, exc_info
  )


def test_only_repetitions_of_orbax_are_hushed():
  orbax = ocp.__file__
  hushed = [
    record_of('absl', orbax, 'a thread failed', raised_in='other.py'),
    record_of('absl', orbax, 'Reached preemption sync point'),
    record_of('asyncio', 'base_events.py', 'never retrieved', raised_in=orbax),
    record_of_future('Error writing "mean/0" in OCDBT database at local file'),
    record_of(
      'asyncio', 'base_events.py', 'never retrieved', 'tasks.py', 'in OCDBT'
    ),
  ]
  heard = [
    record_of('absl', orbax, 'a warning'),
    record_of('absl', 'other.py', 'Reached preemption sync point'),
    record_of('asyncio', 'events.py', 'never retrieved', raised_in='other.py'),
    record_of('asyncio', 'base_events.py', 'Task was destroyed'),
    record_of_future('a bug of ours'),
  ]
  quiet.silence_repeats()
  for record in hushed:
    assert not logging.getLogger(record.name).filter(record), record
  for record in heard:
    assert logging.getLogger(record.name).filter(record), record

"""Running a program: flags, and errors of the user in one line."""

import os
import re
import signal
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence

import jax
from absl import app, flags
from flax.traverse_util import flatten_dict

from bn_inception.errors import UserError
from bn_inception.machine import (
  accelerators,
  distributed,
  interruption,
  streams,
)
from bn_inception.machine.interruption import Interrupted
from bn_inception.programs import config_flag, process

EXIT_FAILURE, EXIT_USER_ERROR = 1, 2

flags.disclaim_key_flags()  # they belong to the program that defines them


def define_process_flags() -> None:
  """The flags of programs that run as several processes."""
  flags.DEFINE_string(
    'coordinator_address',
    None,
    'HOST:PORT of the first of several processes. Not needed with SLURM, Open MPI '
    'before version 5 and Cloud TPU; with Open MPI 5, MPICH and torchrun the only '
    'flag needed. Example: --coordinator_address=10.0.0.1:1234',
  )
  flags.DEFINE_integer(
    'num_processes',
    None,
    'Number of processes; 1: this one runs alone, whatever started it. Example: '
    '--num_processes=4',
  )
  flags.DEFINE_integer(
    'process_id',
    None,
    'Number of this process, from 0. Example: --process_id=3',
  )


def run(
  main: Callable[..., None],
  default_config: str | None = None,
  of_several: Sequence[str] = (),
  takes_arguments: bool = False,
) -> None:
  """Parses the command line and calls `main`; a `UserError` becomes one line.

  Exit status: 0; 2 for an error that the user can fix; 128 + the signal's number
  if a signal stopped it, including SIGPIPE when `head` closes its stdout; 1 for
  a bug, which keeps its traceback. Programs that run as several processes
  continue without stdout, as do those that call `streams.continue_without_stdout`.

  Args:
    main: the program; reads its flags itself.
    default_config: default of --config; None: the program has no config.
    of_several: flags that take several values, as in --checkpoint a/1 b/1.
    takes_arguments: whether `main` takes the list of positional arguments; other
      programs refuse them.
  """
  interruption.watch()
  status = EXIT_FAILURE
  try:
    try:
      _run(main, default_config, of_several, takes_arguments)
    except SystemExit as end:
      status = end.code or 0
      if not isinstance(status, int):  # a config may say why it ends
        print(status, file=sys.stderr)
        status = EXIT_FAILURE
    except KeyboardInterrupt:
      interruption.await_answer()
      status = 128 + signal.SIGINT
    streams.flush()
  except streams.StdoutLostError as lost:
    status = _describe_lost_stdout(lost)
  finally:
    interruption.end_with(status)
  raise SystemExit(status)


def _run(
  main: Callable[..., None],
  default_config: str | None,
  of_several: Sequence[str],
  takes_arguments: bool,
) -> None:
  process.prepare()
  arguments = _repeat_flags(_read_flag_files(sys.argv), of_several)
  if default_config is not None:
    try:
      arguments[1:] = config_flag.define(arguments[1:], default_config)
    except UserError as error:
      _stop(str(error))
  flags.FLAGS.set_gnu_getopt(takes_arguments)  # flags may follow arguments

  def guarded(remaining: list[str]) -> None:
    if len(remaining) > 1 and not takes_arguments:
      _stop(
        f"unexpected argument '{remaining[1]}': flags begin with --; see --help"
      )
    try:
      _refuse_empty_flags()
      if '' in remaining:
        raise UserError(
          'an argument is empty: give it a value, or leave it out'
        )
      if 'process_id' in flags.FLAGS:  # long work, as the results are files
        streams.continue_without_stdout()
        _join_processes()
      if not jax.distributed.is_initialized():
        process.prepare_alone()
      main(*([remaining[1:]] if takes_arguments else []))
    except UserError as error:
      _leave_processes(error)
      _stop(str(error))
    except Interrupted as interrupted:
      print(interrupted)
      raise SystemExit(128 + interrupted.signal_number) from interrupted
    except Exception as error:
      _leave_processes(error)
      if missing := accelerators.explain_missing(error):
        _stop(missing)
      raise

  app.run(guarded, arguments, _parse)


def _describe_lost_stdout(lost: streams.StdoutLostError) -> int:
  """Says why, unless it was `head`; returns the exit status."""
  if isinstance(lost.__cause__, BrokenPipeError):
    return 128 + signal.SIGPIPE
  cause = lost.__cause__.strerror
  print(
    f'error: stdout cannot be written ({cause}): print to another place',
    file=sys.stderr,
  )
  return EXIT_USER_ERROR


def _refuse_empty_flags() -> None:
  """Refuses '--init_from=', which scripts pass if a variable is not set.

  Flags that are empty by default may be empty.
  """
  for flag in flags.FLAGS.get_key_flags_for_module(sys.argv[0]):
    values = (
      flag.value if flag.flag_type().startswith('multi') else [flag.value]
    )
    if flag.present and flag.default != '' and '' in (values or ()):
      raise UserError(
        f'--{flag.name} is empty: give it a value, or leave it out'
      )


def _join_processes() -> None:
  values = flags.FLAGS
  distributed.initialize(
    values.coordinator_address,
    values.num_processes,
    values.process_id,
    _describe_program(),
  )
  # Who is alone has no devices yet, which keep_memory needs.
  if jax.distributed.is_initialized() and not distributed.is_first():
    sys.stdout = open(os.devnull, 'w')  # all would say the same


def _describe_program() -> dict[str, str]:
  """The values that all processes must share; paths may differ."""
  described = {'program': os.path.basename(sys.argv[0])}
  if 'config' in flags.FLAGS:
    config = flags.FLAGS['config'].value.to_dict()
    for key, value in flatten_dict(config, sep='.').items():
      described[f'--config.{key}'] = repr(value)
  return described


def _leave_processes(error: Exception) -> None:
  """Ends this one of several processes at once, and with it the others.

  Python's normal exit would wait for them, and they may wait for this one.
  Returns if there is only one process, or if all raise the same error.
  """
  if not jax.distributed.is_initialized():
    return
  if isinstance(error, distributed.AgreedError):
    return
  if isinstance(error, UserError):
    print(f'error: {error}', file=sys.stderr)
  elif distributed.is_loss_of_process(error):
    print(f'error: {distributed.describe_loss(error)}', file=sys.stderr)
  else:
    traceback.print_exception(error)
  sys.stdout.flush()
  sys.stderr.flush()
  os._exit(EXIT_USER_ERROR if isinstance(error, UserError) else EXIT_FAILURE)


def _read_flag_files(arguments: Sequence[str]) -> list[str]:
  """Replaces --flagfile=FILE by the flags in the file, which may hold --config."""
  try:
    return flags.FLAGS.read_flags_from_files(arguments, force_gnu=False)
  except flags.Error as error:
    _stop(str(error).removeprefix('ERROR:: '))


def _repeat_flags(arguments: Sequence[str], names: Sequence[str]) -> list[str]:
  """['--checkpoint', 'a', 'b'] -> ['--checkpoint=a', '--checkpoint=b']."""
  repeated, current, has_values = [], None, True
  # The sentinel '--' closes the last flag; it is dropped again.
  for argument in (*arguments, '--'):
    if not argument.startswith('-'):
      repeated.append(f'--{current}={argument}' if current else argument)
      has_values = True
      continue
    if not has_values:
      _stop(f'--{current} needs a value or several: {_example(current)}')
    name, equals, _ = argument.lstrip('-').partition('=')
    current = name if name in names else None
    has_values = current is None or bool(equals)
    if has_values:
      repeated.append(argument)
  return repeated[:-1]


def _example(name: str) -> str:
  """The example at the end of a flag's description, without what absl adds."""
  return flags.FLAGS[name].help.rpartition('Example: ')[2].partition(';')[0]


def run_one_of(
  commands: Mapping[str, Callable[[], Callable[..., None]]],
  takes_arguments: bool = False,
) -> None:
  """Runs the command that the first argument names, as `run` does.

  Args:
    commands: name -> a function that defines the command's flags and returns
      its main function.
    takes_arguments: whether they take arguments that are not flags; see `run`.
  """
  first = sys.argv[1] if len(sys.argv) > 1 else None
  if first is not None and re.match('--?(h|help|helpfull|helpshort)$', first):
    run(lambda: None)
  if first not in commands:
    names = ' or '.join(commands)
    is_flag = first is None or first.startswith('-')
    _stop(
      f'give a command: {names}; see --help' if is_flag
      else f"there is no command '{first}': use {names}; see --help"
    )  # fmt: skip
  del sys.argv[1]
  run(commands[first](), takes_arguments=takes_arguments)


def _parse(arguments: list[str]) -> list[str]:
  try:
    return flags.FLAGS(arguments)
  except SystemExit as shown:  # absl's --help ends with 1
    raise SystemExit(0) from shown
  except UserError as error:  # of a path
    _stop(str(error))
  except flags.Error as error:
    _stop(f'{error}; see --help')


def _stop(message: str):
  print(f'error: {message}', file=sys.stderr)
  raise SystemExit(EXIT_USER_ERROR)

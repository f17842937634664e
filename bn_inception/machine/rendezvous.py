"""Waits for all processes of a run before JAX joins them, and says for whom.

JAX waits silently, and aborts with a C++ stack trace if a process does not arrive.
Here the first process listens at the future address of its JAX coordinator, the
others connect and introduce themselves, and when all are there they leave the
address to JAX.
"""

import contextlib
import json
import math
import os
import re
import select
import socket
import time
from collections.abc import Mapping
from typing import NamedTuple

from bn_inception.errors import UserError

TIMEOUT_SECONDS = 300  # for each wait
SAY_EVERY_SECONDS = 10
_NEWS_EVERY_SECONDS = 1.0
_LOOK_EVERY_SECONDS = 0.5
# For one attempt to connect, and for the first message on a new connection.
_NETWORK_SECONDS = 3.0
_ANSWER_SECONDS = 10.0  # the first process serves one connection at a time
_HERE, _GO, _NO = 'here', 'go', 'no: '  # its answers, one line each
_MAX_LINE = 2**20
_BIND_VARIABLE = 'JAX_COORDINATOR_BIND_ADDRESS'


class Address(NamedTuple):
  """Where the first process listens.

  Attributes:
    host: a name or an address, IPv6 without brackets.
    port: 1 to 65535.
  """

  host: str
  port: int

  def __str__(self):
    host = f'[{self.host}]' if ':' in self.host else self.host
    return f'{host}:{self.port}'


class Member(NamedTuple):
  """A process of the run, as it introduces itself to the first one.

  Attributes:
    process_id: 0 to num_processes - 1.
    num_processes: of the run.
    traits: name -> value of what must be the same in all.
  """

  process_id: int
  num_processes: int
  traits: Mapping[str, str]


def parse_address(text: str, name: str = '--coordinator_address') -> Address:
  """'[::1]:1234' -> ('::1', 1234).

  Args:
    text: HOST:PORT.
    name: flag or variable that it comes from, for the error.

  Raises:
    UserError: if it is not a host and a port from 1 to 65535.
  """
  found = re.fullmatch(r'(?:\[([\w.:%-]+)\]|([\w.-]+)):([0-9]+)', text)
  try:
    host = (found[1] or found[2]).encode('idna').decode()
    port = int(found[3])
  except (TypeError, UnicodeError):  # no match; empty label, as in a..b
    host, port = '', 0
  if not 0 < port < 2**16:
    raise UserError(
      f"{name} is '{text}': give HOST:PORT with a port from 1 to 65535, such "
      'as 10.0.0.1:1234 or [fd00::1]:1234'
    )
  return Address(host, port)


def meet(address: Address, me: Member) -> None:
  """Returns when all processes of the run have arrived.

  Args:
    address: address of the first process, the same in all processes.
    me: this process.

  Raises:
    UserError: if one does not arrive in time or does not belong to the run.
  """
  who = f'process {me.process_id}'
  patience = _Patience(who)
  if me.process_id == 0:
    _receive_all(address, me, patience)
    return
  while not _report(address, me, patience):
    time.sleep(_LOOK_EVERY_SECONDS)
  patience = _Patience(who)
  # Wait for JAX's coordinator to listen there: JAX's client is slow to retry.
  while not _is_open(address, patience):
    time.sleep(_LOOK_EVERY_SECONDS / 10)


class _Patience:
  """Prints what is waited for, at once and every few seconds, until a timeout."""

  def __init__(self, who: str):
    self._who, self._start = who, time.monotonic()
    self._end = self._start + TIMEOUT_SECONDS
    self._said, self._said_at = set(), -math.inf

  def wait_for(self, what: str, remedy: str) -> None:
    """Raises UserError, with the remedy, after `TIMEOUT_SECONDS`."""
    now = time.monotonic()
    if now >= self._end:
      raise UserError(
        f'{self._who} waited {now - self._start:.0f} s for {what}: {remedy}'
      )
    pause = SAY_EVERY_SECONDS if what in self._said else _NEWS_EVERY_SECONDS
    if now - self._said_at >= pause:
      print(f'{self._who}: waiting for {what} ...', flush=True)
      self._said.add(what)
      self._said_at = now


def _receive_all(address: Address, me: Member, patience: _Patience) -> None:
  """The first process: waits for the others, then tells them to continue."""
  came: dict[int, socket.socket] = {}
  elsewhere = _explain_elsewhere(address.host)
  with contextlib.ExitStack() as stack:
    server = stack.enter_context(_listen(address))
    server.settimeout(_LOOK_EVERY_SECONDS)
    try:
      while missing := sorted(set(range(1, me.num_processes)) - set(came)):
        patience.wait_for(
          f'the others at {address}{elsewhere} ({len(came) + 1} of '
          f'{me.num_processes} are here; missing: {_join(missing)})',
          'see what they print, and whether they were started',
        )
        connection = None
        with contextlib.suppress(TimeoutError):
          connection, _ = server.accept()
        for process_id in [i for i, c in came.items() if _is_closed(c)]:
          del came[process_id]
        if connection is not None:
          _admit(stack.enter_context(connection), me, came)
    except UserError as error:
      for connection in came.values():
        _send(connection, f'{_NO}{error}')
      raise
    server.close()  # before the others look for JAX's coordinator there
    for connection in came.values():
      _send(connection, _GO)


def _join(process_ids: list[int]) -> str:
  more = len(process_ids) - 8
  return ', '.join(map(str, process_ids[:8])) + (
    f' and {more} more' if more > 0 else ''
  )


def _explain_elsewhere(host: str) -> str:
  """' (...)' if the address does not seem to be this host's.

  Only a hint: with network address translation it may be right all the same.
  """
  try:
    found = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)
  except OSError as error:
    return f' ({host}: {_reason(error)})'
  for family, kind, protocol, _, place in found:
    with contextlib.suppress(OSError):
      with socket.socket(family, kind, protocol) as probe:
        probe.bind(place)  # works only for the host's own addresses
        return ''
  return f' ({host} is not an address of this host, {socket.gethostname()})'


def _listen(address: Address) -> socket.socket:
  """Listens where JAX's coordinator will: by default on all interfaces."""
  given = os.environ.get(_BIND_VARIABLE)
  place = parse_address(given, _BIND_VARIABLE) if given else address
  host = place.host if given and place.host != '::' else ''
  is_dual = not host and socket.has_dualstack_ipv6()
  family = socket.AF_INET6 if is_dual or ':' in host else socket.AF_INET
  try:
    return socket.create_server(
      (host, place.port), family=family, backlog=1024, dualstack_ipv6=is_dual
    )
  except OSError as error:
    raise UserError(
      f'process 0 cannot listen at port {place.port} of this host '
      f'({_reason(error)}): if another run uses it, give all processes a different '
      'port in --coordinator_address, or in JAX_COORDINATOR_PORT if a scheduler '
      'started them'
    ) from error


def _admit(
  connection: socket.socket, me: Member, came: dict[int, socket.socket]
) -> None:
  """Accepts a process, or refuses it with a reason."""
  try:
    it = _parse_member(_receive(connection, _NETWORK_SECONDS))
  except OSError:
    it = None
  if it is None:
    connection.close()
    return
  refusal = _refuse(it, me, came)
  if refusal is None:
    came[it.process_id] = connection
    _send(connection, _HERE)
    return
  host = connection.getpeername()[0].removeprefix('::ffff:')
  print(f'process 0: refused a process at {host}: {refusal}', flush=True)
  _send(connection, f'{_NO}{refusal}')
  connection.close()


def _parse_member(text: str) -> Member | None:
  """Parses the introduction of a process; None if it is not of this program."""
  try:
    it = Member(*json.loads(text))
  except (ValueError, TypeError, RecursionError):  # the last for '[[[[...'
    return None
  has_types = (
    type(it.process_id) is int  # not bool
    and type(it.num_processes) is int
    and isinstance(it.traits, dict)
  )
  return it if has_types and 0 < it.process_id < it.num_processes else None


def _refuse(it: Member, me: Member, came: Mapping[int, object]) -> str | None:
  """Why a process does not belong to this run, or None."""
  if it.num_processes != me.num_processes:
    return (
      f'process {it.process_id} has --num_processes={it.num_processes} and '
      f'process 0 has {me.num_processes}: give all processes the same number, and '
      'each run its own port'
    )
  if it.process_id in came:
    return (
      f'two processes have --process_id={it.process_id}: give each process its own '
      'id, and each run its own port'
    )
  for name in sorted(set(it.traits) | set(me.traits)):
    theirs, mine = it.traits.get(name), me.traits.get(name)
    if theirs != mine:
      return (
        f'process {it.process_id} has {name}={theirs} and process 0 has {mine}: '
        'start all with the same command and the same versions'
      )
  return None


def _report(address: Address, me: Member, patience: _Patience) -> bool:
  """The others: whether the first process said to continue."""
  try:
    connection = socket.create_connection(address, _NETWORK_SECONDS)
  except OSError as error:
    _wait_for_first(address, _reason(error), patience)
    return False
  with connection:
    _send(connection, json.dumps(me))
    try:
      answer = _receive(connection, _ANSWER_SECONDS)
      # Process 0 started to wait earlier, and tells us if it gives up.
      until_told = _Patience(f'process {me.process_id}')
      while answer == _HERE:
        until_told.wait_for(
          f'the others (process 0 at {address} is here)',
          'see what process 0 prints',
        )
        with contextlib.suppress(TimeoutError):
          answer = _receive(connection, _LOOK_EVERY_SECONDS)
    except OSError:
      answer = ''
  answer = answer.removeprefix(f'{_HERE}\n')
  if answer.startswith(_NO):
    raise UserError(answer.removeprefix(_NO))
  if answer == _GO:
    return True
  # An earlier run may still have the port, or process 0 was stopped.
  _wait_for_first(
    address,
    'another program uses that port' if answer else 'no answer',
    patience,
  )
  return False


def _wait_for_first(address: Address, reason: str, patience: _Patience) -> None:
  patience.wait_for(
    f'process 0 at {address} ({reason})',
    'check --coordinator_address, that process 0 was started on that host, and '
    'that no firewall is in between',
  )


def _is_open(address: Address, patience: _Patience) -> bool:
  try:
    socket.create_connection(address, _NETWORK_SECONDS).close()
  except OSError as error:
    _wait_for_first(address, _reason(error), patience)
    return False
  return True


def _reason(error: OSError) -> str:
  if isinstance(error, socket.gaierror) or not error.errno:
    return (error.strerror or str(error)).lower()
  return os.strerror(error.errno).lower()  # without Python's additions


def _send(connection: socket.socket, line: str) -> None:
  with contextlib.suppress(OSError):  # the other end is gone
    connection.settimeout(_NETWORK_SECONDS)
    connection.sendall(f'{line}\n'.encode())


def _receive(connection: socket.socket, seconds: float) -> str:
  """Receives a line, or part of one if the other end closes; may time out."""
  end, received = time.monotonic() + seconds, b''
  while not received.endswith(b'\n') and len(received) < _MAX_LINE:
    if (rest := end - time.monotonic()) <= 0:
      raise TimeoutError
    connection.settimeout(rest)
    part = connection.recv(2**16)
    if not part:
      break
    received += part
  return received.decode(errors='replace').removesuffix('\n')


def _is_closed(connection: socket.socket) -> bool:
  """Whether the other end is closed; after its introduction it sends nothing."""
  poll = select.poll()
  poll.register(connection, select.POLLIN)
  return bool(poll.poll(0))

"""Several processes meet before JAX joins them.

JAX's own wait is silent, and ends with SIGABRT and a stack of its C++ where one of
them does not come. Here the first process listens at the address that its JAX
coordinator will have, the others come and say who they are, and when all are there
they leave the address to JAX. Whoever waits says for what.
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

TIMEOUT_SECONDS = 300  # after which who waits gives up
SAY_EVERY_SECONDS = 10
_NEWS_EVERY_SECONDS = 1.0
_LOOK_EVERY_SECONDS = 0.5
# For one attempt, and for what is sent on a new connection to arrive.
_NETWORK_SECONDS = 3.0
_ANSWER_SECONDS = 10.0  # of the first process, which hears one after the other
_HERE, _GO, _NO = 'here', 'go', 'no: '  # its answers, of a line each
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
  """One process of the run, as it tells the first one.

  Attributes:
    process_id: 0 to num_processes - 1.
    num_processes: of the run.
    traits: name -> value of what has to be the same in all.
  """

  process_id: int
  num_processes: int
  traits: Mapping[str, str]


def parse_address(text: str, name: str = '--coordinator_address') -> Address:
  """'[::1]:1234' -> ('::1', 1234).

  Args:
    text: HOST:PORT.
    name: of the flag or variable, for the error.

  Raises:
    UserError: for anything else than a host and a port from 1 to 65535.
  """
  found = re.fullmatch(r'(?:\[([\w.:%-]+)\]|([\w.-]+)):([0-9]+)', text)
  try:
    host = (found[1] or found[2]).encode('idna').decode()
    port = int(found[3])
  except (TypeError, UnicodeError):  # no match; an empty label, as in a..b
    host, port = '', 0
  if not 0 < port < 2**16:
    raise UserError(
      f"{name} is '{text}': give HOST:PORT with a port from 1 to 65535, such "
      'as 10.0.0.1:1234 or [fd00::1]:1234'
    )
  return Address(host, port)


def meet(address: Address, me: Member) -> None:
  """Returns when all processes of the run are there.

  Args:
    address: of the first process, for all the same.
    me: this process.

  Raises:
    UserError: if one is not there in time or does not belong to the others.
  """
  who = f'process {me.process_id}'
  patience = _Patience(who)
  if me.process_id == 0:
    _receive_all(address, me, patience)
    return
  while not _report(address, me, patience):
    time.sleep(_LOOK_EVERY_SECONDS)
  patience = _Patience(who)
  # JAX's coordinator is about to listen there; its client is slow to try again.
  while not _is_open(address, patience):
    time.sleep(_LOOK_EVERY_SECONDS / 10)


class _Patience:
  """Says at once, and every few seconds, what is waited for; and has an end."""

  def __init__(self, who: str):
    self._who, self._start = who, time.monotonic()
    self._end = self._start + TIMEOUT_SECONDS
    self._said, self._said_at = set(), -math.inf

  def wait_for(self, what: str, remedy: str) -> None:
    """Raises UserError, with the remedy, after `TIMEOUT_SECONDS`."""
    now = time.monotonic()
    if now >= self._end:
      raise UserError(
        f'{self._who} waited {now - self._start:.0f} s for {what}, in vain: '
        f'{remedy}'
      )
    pause = SAY_EVERY_SECONDS if what in self._said else _NEWS_EVERY_SECONDS
    if now - self._said_at >= pause:
      print(f'{self._who}: waiting for {what} ...', flush=True)
      self._said.add(what)
      self._said_at = now


def _receive_all(address: Address, me: Member, patience: _Patience) -> None:
  """What the first process does: waits for the others, and says when to go on."""
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
    server.close()  # so that who is told to go on finds JAX's there
    for connection in came.values():
      _send(connection, _GO)


def _join(process_ids: list[int]) -> str:
  more = len(process_ids) - 8
  return ', '.join(map(str, process_ids[:8])) + (
    f' and {more} more' if more > 0 else ''
  )


def _explain_elsewhere(host: str) -> str:
  """' (...)' if the address does not seem to be this host's.

  It may be all the same, behind a translation of addresses: no reason to end.
  """
  try:
    found = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)
  except OSError as error:
    return f' ({host}: {_reason(error)})'
  for family, kind, protocol, _, place in found:
    with contextlib.suppress(OSError):
      with socket.socket(family, kind, protocol) as probe:
        probe.bind(place)  # the system allows its own addresses only
        return ''
  return f' ({host} is not an address of this host, {socket.gethostname()})'


def _listen(address: Address) -> socket.socket:
  """Where JAX's coordinator will: on all interfaces, if not told otherwise."""
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
      f'({_reason(error)}): if another run has it, give all processes another '
      'one in --coordinator_address, or in JAX_COORDINATOR_PORT where a '
      'scheduler started them'
    ) from error


def _admit(
  connection: socket.socket, me: Member, came: dict[int, socket.socket]
) -> None:
  """Takes a process in, or sends it away and says why."""
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
  """What a process has sent; None: it is not one of this program's."""
  try:
    it = Member(*json.loads(text))
  except (ValueError, TypeError, RecursionError):  # the last for '[[[[...'
    return None
  has_types = type(it.process_id) is type(
    it.num_processes
  ) is int and isinstance(it.traits, dict)
  return it if has_types and 0 < it.process_id < it.num_processes else None


def _refuse(it: Member, me: Member, came: Mapping[int, object]) -> str | None:
  """Why a process does not belong to the run of this one; None: it does."""
  if it.num_processes != me.num_processes:
    return (
      f'process {it.process_id} has --num_processes={it.num_processes} and '
      f'process 0 has {me.num_processes}: give all the same, and each run a '
      'port of its own'
    )
  if it.process_id in came:
    return (
      f'there are two with --process_id={it.process_id}: give each process '
      'another one, and each run a port of its own'
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
  """What the others do: whether the first process has said to go on."""
  try:
    connection = socket.create_connection(address, _NETWORK_SECONDS)
  except OSError as error:
    _wait_for_first(address, _reason(error), patience)
    return False
  with connection:
    _send(connection, json.dumps(me))
    try:
      answer = _receive(connection, _ANSWER_SECONDS)
      # Process 0 has waited for longer, and says so if it gives up.
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
  # An older run that is ending may have the port, or process 0 was stopped.
  _wait_for_first(
    address,
    'another program has that port' if answer else 'no answer',
    patience,
  )
  return False


def _wait_for_first(address: Address, reason: str, patience: _Patience) -> None:
  patience.wait_for(
    f'process 0 at {address} ({reason})',
    'check --coordinator_address, that process 0 was started on that host, and '
    'that no firewall is between',
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
  return os.strerror(error.errno).lower()  # without what Python adds


def _send(connection: socket.socket, line: str) -> None:
  with contextlib.suppress(OSError):  # who has gone needs no answer
    connection.settimeout(_NETWORK_SECONDS)
    connection.sendall(f'{line}\n'.encode())


def _receive(connection: socket.socket, seconds: float) -> str:
  """A line; what is there of it if the other end is closed.

  Raises:
    TimeoutError: if it is not there after so long.
  """
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
  """Whether the other end is; it has nothing more to say."""
  poll = select.poll()
  poll.register(connection, select.POLLIN)
  return bool(poll.poll(0))

"""Processes, simulated by threads, that arrive, are refused, or time out."""

import contextlib
import json
import socket
import threading

import pytest

from bn_inception.errors import UserError
from bn_inception.machine import rendezvous
from bn_inception.machine.rendezvous import Address, Member
from tests.ports import free_port


@pytest.fixture(autouse=True)
def hasty(monkeypatch):
  monkeypatch.setattr(rendezvous, 'TIMEOUT_SECONDS', 0.4)
  monkeypatch.setattr(rendezvous, 'SAY_EVERY_SECONDS', 0.1)
  monkeypatch.setattr(rendezvous, '_NEWS_EVERY_SECONDS', 0.0)
  monkeypatch.setattr(rendezvous, '_LOOK_EVERY_SECONDS', 0.02)
  monkeypatch.setattr(rendezvous, '_ANSWER_SECONDS', 0.3)


class Meeting(threading.Thread):
  """One process; `error` is the UserError's text, None if all met."""

  def __init__(
    self, port, process_id, num_processes=2, host='127.0.0.1', **traits
  ):
    super().__init__(daemon=True)
    self.address = Address(host, port)
    self.member = Member(process_id, num_processes, traits)
    self.error = None
    self.start()

  def run(self):
    try:
      rendezvous.meet(self.address, self.member)
    except UserError as error:
      self.error = str(error)


def listen_as_jax(host, port):
  """Stands for JAX's coordinator, which takes the port after the meeting."""
  family = socket.AF_INET6 if ':' in host else socket.AF_INET
  server = socket.create_server((host, port), family=family)
  threading.Thread(target=serve, args=(server, b''), daemon=True).start()


def serve(server, answer):
  with contextlib.suppress(OSError):  # it was closed
    while True:
      connection, _ = server.accept()
      with connection:
        connection.sendall(answer)


def finish(*meetings):
  for meeting in meetings:
    meeting.join(20)
    assert not meeting.is_alive()
  return [meeting.error for meeting in meetings]


@pytest.mark.parametrize('host', ['127.0.0.1', '::1', 'localhost'])
def test_all_meet_whoever_comes_first(host, monkeypatch):
  if ':' in host and not socket.has_dualstack_ipv6():
    pytest.skip('no IPv6 here')
  monkeypatch.setattr(rendezvous, 'TIMEOUT_SECONDS', 10)
  port = free_port()
  early = Meeting(port, 1, 3, host, jax='1')
  first = Meeting(port, 0, 3, host, jax='1')
  late = Meeting(port, 2, 3, host, jax='1')
  assert finish(first) == [None]
  listen_as_jax(host, port)  # only possible as the first has left the port
  assert finish(early, late) == [None, None]


def test_missing_processes_are_reported_repeatedly(capsys, monkeypatch):
  monkeypatch.setattr(rendezvous, 'TIMEOUT_SECONDS', 1.5)
  port = free_port()
  # The first process tells the others why it gave up.
  errors = finish(Meeting(port, 2, 4), Meeting(port, 0, 4))
  assert all('(2 of 4 are here; missing: 1, 3)' in error for error in errors)
  said = capsys.readouterr().out.splitlines()
  assert sum('missing: 1, 3' in line for line in said) >= 2
  assert (
    sum(f'process 0 at 127.0.0.1:{port} is here' in line for line in said) >= 2
  )


def test_a_missing_first_process_is_named_with_the_reason():
  port = free_port()
  refused, unknown = finish(
    Meeting(port, 1), Meeting(port, 1, host='nowhere.invalid')
  )
  assert f'process 0 at 127.0.0.1:{port} (connection refused)' in refused
  assert f'process 0 at nowhere.invalid:{port} (' in unknown


def test_the_first_process_says_if_the_address_is_another_hosts(capsys):
  finish(Meeting(free_port(), 0, host='192.0.2.1'))  # of documents, nowhere
  assert '192.0.2.1 is not an address of this host' in capsys.readouterr().out
  finish(Meeting(free_port(), 0))
  assert 'not an address' not in capsys.readouterr().out


@pytest.mark.parametrize('answer, reason', [
  (b'SSH-2.0-OpenSSH\r\n', 'another program'),
  (b'', 'no answer'),
])  # fmt: skip
def test_another_program_at_the_address_is_detected(answer, reason):
  with socket.create_server(('127.0.0.1', 0)) as server:
    threading.Thread(target=serve, args=(server, answer), daemon=True).start()
    port = server.getsockname()[1]
    (error,) = finish(Meeting(port, 1))
    assert reason in error
    (error,) = finish(Meeting(port, 0))
    assert f'cannot listen at port {port}' in error


@pytest.mark.parametrize('wrong, message', [
  ({'process_id': 1}, '--process_id=1'),
  ({'process_id': 2, 'num_processes': 4}, 'process 2 has --num_processes=4'),
  ({'process_id': 2, 'jax': '2'}, 'process 2 has jax=2 and process 0 has 1'),
  ({'process_id': 2}, 'process 2 has jax=None and process 0 has 1'),
])  # fmt: skip
def test_a_stranger_is_refused_and_the_others_continue(
  wrong, message, capsys, monkeypatch
):
  monkeypatch.setattr(rendezvous, 'TIMEOUT_SECONDS', 10)
  port = free_port()
  first, second = Meeting(port, 0, 3, jax='1'), Meeting(port, 1, 3, jax='1')
  while '(2 of 3 are here' not in capsys.readouterr().out:
    assert first.is_alive()
  (error,) = finish(Meeting(port, **{'num_processes': 3} | wrong))
  assert message in error
  assert message in capsys.readouterr().out  # process 0 says so too
  third = Meeting(port, 2, 3, jax='1')
  assert finish(first) == [None]
  listen_as_jax('127.0.0.1', port)
  assert finish(second, third) == [None, None]


def test_a_restarted_process_replaces_the_old_one(monkeypatch):
  monkeypatch.setattr(rendezvous, 'TIMEOUT_SECONDS', 10)
  port = free_port()
  first = Meeting(port, 0)
  for hello in (
    b'GET / HTTP/1.1\r\n\r\n',
    json.dumps([1, 3, {}]).encode() + b'\n',
    b'[' * 10_000 + b'\n',
  ):
    with contextlib.closing(connect(port)) as stranger:
      stranger.sendall(hello)
  first_of_three = Meeting(port2 := free_port(), 0, 3)
  with contextlib.closing(connect(port2)) as killed:
    killed.sendall(json.dumps([1, 3, {}]).encode() + b'\n')
    assert killed.recv(100) == b'here\n'
  again, last = Meeting(port2, 1, 3), Meeting(port2, 2, 3)
  second = Meeting(port, 1)
  assert finish(first, first_of_three) == [None, None]
  listen_as_jax('127.0.0.1', port)
  listen_as_jax('127.0.0.1', port2)
  assert finish(again, last, second) == [None, None, None]


@pytest.mark.parametrize('text', [
  '', '[1]', '[' * 10_000, '["1", 2, {}]', '[1, 2, null]', '[2, 2, {}]',
  '[true, 2, {}]', '[NaN, 2, {}]',
])  # fmt: skip
def test_input_from_port_scanners_is_ignored(text):
  assert rendezvous._parse_member(text) is None
  sent = json.dumps(Member(1, 2, {'jax': '1'}))
  assert rendezvous._parse_member(sent) == Member(1, 2, {'jax': '1'})


def test_a_slow_sender_does_not_delay_the_others():
  ours, theirs = socket.socketpair()
  with ours, theirs:
    is_done = threading.Event()

    def drip():
      while not is_done.wait(0.02):
        theirs.sendall(b'[')

    thread = threading.Thread(target=drip)
    thread.start()
    try:
      with pytest.raises(TimeoutError):
        rendezvous._receive(ours, 0.1)
    finally:
      is_done.set()
      thread.join()


def connect(port):
  while True:
    with contextlib.suppress(ConnectionRefusedError):
      return socket.create_connection(('127.0.0.1', port))


@pytest.mark.parametrize('text, host, port', [
  ('10.0.0.1:1234', '10.0.0.1', 1234),
  ('node-1.cluster:1', 'node-1.cluster', 1),
  ('[::1]:65535', '::1', 65535),
  ('[fe80::1%eth0]:80', 'fe80::1%eth0', 80),
])  # fmt: skip
def test_addresses_are_read(text, host, port):
  found = rendezvous.parse_address(text)
  assert found == (host, port) and str(found) == text


@pytest.mark.parametrize('text', [
  '', 'host', 'host:', ':1', 'host:0', 'host:65536', 'host:-1', 'host:1a',
  'http://host:1', '::1:1234', '[::1]', 'a..b:1', 'host:1/', 'ho st:1', 'host:1\n',
])  # fmt: skip
def test_invalid_addresses_are_refused(text):
  with pytest.raises(UserError, match='HOST:PORT'):
    rendezvous.parse_address(text)


def test_we_listen_where_jax_is_told_to(monkeypatch):
  port = free_port()
  monkeypatch.setenv('JAX_COORDINATOR_BIND_ADDRESS', f'127.0.0.1:{port}')
  with rendezvous._listen(Address('127.0.0.2', port + 1)) as server:
    assert server.getsockname() == ('127.0.0.1', port)
  monkeypatch.setenv('JAX_COORDINATOR_BIND_ADDRESS', 'x')
  with pytest.raises(UserError, match="JAX_COORDINATOR_BIND_ADDRESS is 'x'"):
    rendezvous._listen(Address('127.0.0.2', port))

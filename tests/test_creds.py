"""Who is there: credentials and pidfds of the other end, and the options that have each message carry them."""

from __future__ import annotations

import errno
import os
import select
import socket
import sys

import pytest
from kernel import needs_credentials, needs_passrights, needs_peer_pidfd, needs_pidfd
from support import descriptors, open_numbers, pair, rights, run_child

CHILD = """
import socket, sys
sock = socket.socket(socket.AF_UNIX)
with sock:
    sock.connect(sys.argv[1])
    if sock.recv(1) == b"?":
        sock.send(b"hello")
        sock.recv(1)
"""


@pytest.fixture
def connected(tmp_path):
    """A connection from another process, and its pid."""
    path = str(tmp_path / "socket")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        pid = os.spawnv(os.P_NOWAIT, sys.executable, [sys.executable, "-S", "-c", CHILD, path])
        sock, _ = listener.accept()
        with sock:
            yield sock, pid
        os.waitpid(pid, 0)


def test_the_credentials_of_another_process(fdpass, connected):
    """pid, uid and gid of the process that connected; also by a number and of an object with fileno()."""
    sock, pid = connected
    expected = (pid, os.getuid(), os.getgid())
    assert expected == fdpass.peer_credentials(sock)
    assert expected == fdpass.peer_credentials(sock.fileno())
    assert pid == fdpass.peer_credentials(sock).pid
    assert "Credentials(pid=" in repr(fdpass.peer_credentials(sock))


@needs_credentials
def test_an_unconnected_socket_has_no_peer(fdpass):
    """pid 0 and ids -1, as the kernel says it on Linux."""
    with socket.socket(socket.AF_UNIX) as sock:
        assert (0, 0xFFFFFFFF, 0xFFFFFFFF) == fdpass.peer_credentials(sock)


@needs_credentials
def test_a_connected_datagram_socket_knows_no_peer(fdpass):
    """As documented: pid 0 and no ids; those of a socketpair know."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as a, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as b:
        b.bind(b"\0fdpass" + os.urandom(6))
        a.connect(b.getsockname())
        assert (0, 0xFFFFFFFF, 0xFFFFFFFF) == fdpass.peer_credentials(a)
    with pair(socket.SOCK_DGRAM) as (a, _):
        assert os.getpid() == fdpass.peer_credentials(a).pid


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM])
def test_only_an_af_unix_socket_has_peer_credentials(fdpass, kind):
    """Over TCP and UDP Linux answers with no ids and no error: here it is a ValueError, by object and by number."""
    with socket.socket(socket.AF_INET, kind) as sock:
        for given in (sock, sock.fileno()):
            with pytest.raises(ValueError, match="sock is not an AF_UNIX socket"):
                fdpass.peer_credentials(given)
    with descriptors(1) as (pipe,), pytest.raises(OSError) as caught:
        fdpass.peer_credentials(pipe)
    assert errno.ENOTSOCK == caught.value.errno


@needs_peer_pidfd
def test_a_pidfd_of_another_process(fdpass, connected):
    """It is close-on-exec, and becomes readable when that process, no other, ends."""
    sock, _ = connected
    with fdpass.peer_pidfd(sock) as pidfd:
        assert not os.get_inheritable(pidfd.fileno())
        assert ([], [], []) == select.select([pidfd], [], [], 0)
        sock.send(b"x")
        assert ([pidfd], [], []) == select.select([pidfd], [], [], 30)


@needs_peer_pidfd
def test_a_pidfd_that_cannot_be(fdpass):
    """Nothing is left open where the kernel refuses: no peer, no socket, no AF_UNIX one."""
    before = open_numbers()
    with socket.socket(socket.AF_UNIX) as sock, pytest.raises(OSError) as caught:
        fdpass.peer_pidfd(sock)
    assert errno.ENODATA == caught.value.errno
    with descriptors(1) as (pipe,), pytest.raises(OSError) as caught:
        fdpass.peer_pidfd(pipe)
    assert errno.ENOTSOCK == caught.value.errno
    assert before == open_numbers()


@needs_credentials
def test_each_message_carries_its_sender(fdpass, connected):
    """With pass_credentials a message names the process that sent it; turned off, no more."""
    sock, pid = connected
    fdpass.pass_credentials(sock)
    sock.send(b"?")  # what it waits for
    message = fdpass.recv_message(sock, 100, 0)
    assert (b"hello", (pid, os.getuid(), os.getgid())) == (message.data, message.credentials)
    with pair() as (a, b):
        for on in (True, False):
            fdpass.pass_credentials(b, on)
            a.send(b"x")
            assert on is (fdpass.recv_message(b, 1, 0).credentials is not None)


@needs_credentials
def test_what_was_queued_before_is_nobody_s(fdpass):
    """A message sent before the option was set has pid 0 and the ids of nobody, as documented."""
    with pair() as (a, b):
        a.send(b"x")
        fdpass.pass_credentials(b)
        assert (0, 65534, 65534) == fdpass.recv_message(b, 1, 0).credentials


@needs_pidfd
def test_each_message_carries_a_pidfd(fdpass):
    """An OwnedFd that is the message's to close, or to be taken; none where it is off."""
    with pair() as (a, b):
        fdpass.pass_pidfd(b)
        a.send(b"x")
        with fdpass.recv_message(b, 1, 0) as message:
            number = message.pidfd.detach()
        os.close(number)
        fdpass.pass_pidfd(b, False)
        a.send(b"x")
        assert fdpass.recv_message(b, 1, 0).pidfd is None


@needs_passrights
def test_descriptors_may_be_refused(fdpass):
    """With pass_rights off the sender gets EPERM, and what was queued before still comes; then on again."""
    with pair() as (a, b), descriptors(1) as fds:
        a.sendmsg([b"before"], rights(fds))
        fdpass.pass_rights(b, False)
        with pytest.raises(PermissionError):
            fdpass.sendall_fds(a, b"refused", fds)
        with fdpass.recv_message(b, 100, 1) as message:
            assert (b"before", 1) == (message.data, len(message.fds))
        fdpass.pass_rights(b, True)
        fdpass.sendall_fds(a, b"again", fds)
        with fdpass.recv_message(b, 100, 1) as message:
            assert (b"again", 1) == (message.data, len(message.fds))


@pytest.mark.parametrize("name", ["pass_credentials", "pass_pidfd", "pass_rights"])
@pytest.mark.parametrize("on", [True, False])
def test_options_of_what_is_no_socket(fdpass, name, on):
    """ENOTSOCK for a pipe, EBADF for what is closed, TypeError for what is none of it."""
    with descriptors(1) as (pipe,), pytest.raises(OSError) as caught:
        getattr(fdpass, name)(pipe, on)
    assert caught.value.errno in {errno.ENOTSOCK, errno.ENOPROTOOPT}
    with pytest.raises(OSError) as caught:
        getattr(fdpass, name)(987_654, on)
    assert caught.value.errno in {errno.EBADF, errno.ENOPROTOOPT}
    with pytest.raises(TypeError):
        getattr(fdpass, name)("sock", on)


def test_an_option_that_a_platform_lacks(fdpass, monkeypatch):
    """ENOPROTOOPT that names it, as a kernel says it that does not know the option."""
    monkeypatch.delitem(fdpass.creds.CONSTANTS, "SO_PASSPIDFD", raising=False)
    with pair() as (_, b), pytest.raises(OSError, match="no SO_PASSPIDFD") as caught:
        fdpass.pass_pidfd(b)
    assert errno.ENOPROTOOPT == caught.value.errno


def test_where_the_system_tells_it_otherwise(fdpass, monkeypatch):
    """struct sockpeercred of OpenBSD, struct xucred of Darwin and FreeBSD, as their headers lay them out."""
    creds, asked = fdpass.creds, []

    def read(fd, level, option, room):
        asked.append((level, option, room))
        return answers[option]

    monkeypatch.setattr(creds, "_read", read)
    monkeypatch.setattr(creds, "_option", lambda name: name)
    words = [b"\1\0\0\0", b"\2\0\0\0", b"\3\0\0\0", b"\4\0\0\0"]
    if sys.byteorder == "big":
        words = [word[::-1] for word in words]
    answers = {"SO_PEERCRED": b"".join(words[:3]), "LOCAL_PEERCRED": b"".join([words[0], words[1], words[0], words[2]])}
    answers["LOCAL_PEERPID"] = words[3]
    answers["LOCAL_PEERCRED"] = answers["LOCAL_PEERCRED"].ljust(76, b"\0")
    with pair() as (a, _):
        monkeypatch.setattr(creds, "SYSTEM", fdpass._platform.OPENBSD)
        assert (3, 1, 2) == creds.peer_credentials(a)
        monkeypatch.setattr(creds, "SYSTEM", fdpass._platform.DARWIN)
        assert (4, 2, 3) == creds.peer_credentials(a)
        monkeypatch.setattr(creds, "SYSTEM", "freebsd")
        assert (0, 2, 3) == creds.peer_credentials(a)
    assert ["SO_PEERCRED", "LOCAL_PEERCRED", "LOCAL_PEERPID", "LOCAL_PEERCRED"] == [option for _, option, _ in asked]


def test_they_can_be_imported_alone(fdpass):
    """`from fdpass_cffi import peer_credentials` works, and knows this process."""
    code = "import os, socket; from fdpass_cffi import peer_credentials as p; a, b = socket.socketpair()\n"
    code += "with a, b: print(p(a).pid == os.getpid())"
    assert "True\n" == run_child(fdpass, code)

"""A hostile peer, a program in C with control data built by hand: nothing stays open, the next honest message comes.

After each attack the receiver's table is as before, but for what it was given; what the kernel itself refuses to
send is noted by the sender, and the test is then of the honest message alone.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from pathlib import Path

import pytest
from kernel import needs_mmsg, takes
from support import alarm, identity, needs_real_kernel, open_numbers

STREAM, DGRAM, SEQPACKET = socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_SEQPACKET
COMPILER = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc")
needs_compiler = pytest.mark.skipif(COMPILER is None, reason="no C compiler here")

# name: (what comes at most with maxfds=2: descriptors, or the reason why some are lost; None: the kernel may refuse)
MALFORMED = {"short-length", "long-length"}
ATTACKS = {
    "many": "maxfds",
    "too-many": "Invalid argument",
    "several": "maxfds",
    "zero-length": 1,
    "only-zero-length": 0,
    "foreign-level": 1,
    "foreign-type": "Invalid argument",
    "credentials": 2,
    "credentials-after": 2,
    "scm-pidfd": "Invalid argument",
    "short-length": "Invalid argument",
    "long-length": "Invalid argument",
    "odd-length": 1,
    "bad-number": "Bad file descriptor",
    "negative": "Bad file descriptor",
    "no-data": 2,
    "long-data": 2,
    "own-end": 1,
    "over-itself": 2,
    "chain": 1,
    "o-path": 1,
    "directory": 1,
    "fifo": 1,
    "device": 1,
    "epoll": 1,
    "io_uring": ("Invalid argument", "Operation not permitted", "Function not implemented"),
}


@pytest.fixture(scope="session")
def hostile(tmp_path_factory):
    """The compiled program."""
    program = tmp_path_factory.mktemp("hostile") / "hostile"
    source = Path(__file__).with_name("hostile.c")
    subprocess.run([*COMPILER.split(), "-O1", "-o", str(program), str(source)], check=True)
    return program


def one(fdpass, sock):
    return fdpass.recv_message(sock, 100, 2)


def batch(fdpass, sock):
    (message,) = fdpass.recv_messages(sock, 1, 100, 2)
    return message


def drop_in(fdpass, sock):
    """recv_fds in the shape of a Message; what it cuts off it says by MSG_CTRUNC."""
    data, fds, flags, address = fdpass.recv_fds(sock, 100, 2)
    owned = fdpass.fd.adopt(fds)
    if flags & socket.MSG_CTRUNC:
        fdpass.fd.close_owned(owned)
        raise fdpass.TruncatedError("maxfds", "recv_fds", data=data)
    if flags & socket.MSG_TRUNC:
        fdpass.fd.close_owned(owned)
        raise fdpass.TruncatedError("data", "recv_fds", data=data)
    return fdpass.Message(data, owned, flags, address)


def raw(fdpass, sock):
    """recvmsg with room for two, by the kernel's own count."""
    data, ancdata, flags, address = fdpass.recvmsg(sock, 100, fdpass.CMSG_SPACE(8))
    fds = fdpass._receive.carried(ancdata)[0]
    owned = fdpass.fd.adopt(fds)
    if flags & (socket.MSG_CTRUNC | socket.MSG_TRUNC):
        fdpass.fd.close_owned(owned)
        raise fdpass.TruncatedError("maxfds" if flags & socket.MSG_CTRUNC else "data", "recvmsg", data=data)
    return fdpass.Message(data, owned, flags, address)


WAYS = {
    "one": one,
    "batch": pytest.param(batch, marks=needs_mmsg),
    "drop_in": drop_in,
    "raw": pytest.param(raw, marks=needs_real_kernel),
}
RECEIVERS = pytest.mark.parametrize("receive", WAYS.values(), ids=list(WAYS))


def attacked(fdpass, hostile, receive, attack, kind, count=1, prepare=lambda _: None):
    """Receive `count` attacks; (what came of the last, what the program said, whether an honest message came)."""
    a, b = socket.socketpair(socket.AF_UNIX, kind)
    came, before = None, None
    with a, b, alarm(60):
        prepare(b)
        command = [str(hostile), str(a.fileno()), attack, str(count)]
        process = subprocess.Popen(command, pass_fds=[a.fileno()], stdout=subprocess.PIPE, text=True)
        a.close()
        with process:
            before = open_numbers()
            while True:
                try:
                    message = receive(fdpass, b)
                except fdpass.TruncatedError as error:
                    came = error.reason
                    data = error.data
                else:
                    data = message.data
                    if data == b"honest" or (not data and not message.fds):
                        break
                    came = len(message.fds)
                    assert came == len(open_numbers() - before)
                    message.close()
                assert data in {b"evil", b"", b"e" * 100}
                assert before == open_numbers()
                b.send(b"x")
            with message:
                honest = (message.data, [identity(owned.fileno()) == identity_of_null() for owned in message.fds])
            assert before == open_numbers()
            said = process.stdout.read()
        assert 0 == process.returncode
    return came, said, honest


def identity_of_null():
    status = os.stat(os.devnull)
    return status.st_dev, status.st_ino


@needs_compiler
@RECEIVERS
@pytest.mark.parametrize(
    "attack", [pytest.param(name, marks=needs_real_kernel) if name in MALFORMED else name for name in ATTACKS]
)
def test_an_attack_leaves_nothing_open(fdpass, hostile, receive, attack):
    """On a SEQPACKET socket each attack brings what it may, and the next message comes as if nothing had been."""
    expected = ATTACKS[attack]
    came, said, honest = attacked(fdpass, hostile, receive, attack, SEQPACKET)
    assert (b"honest", [True]) == honest
    if attack == "long-data":
        assert ("data", "") == (came, said)
    elif isinstance(expected, int) or expected == "maxfds":
        assert (expected, "") == (came, said)
    else:
        assert said.strip() in (expected if isinstance(expected, tuple) else (expected,))
        assert came is None


@needs_compiler
@pytest.mark.parametrize("kind", [STREAM, DGRAM])
@pytest.mark.parametrize("attack", ["many", "several", "zero-length", "no-data", "own-end", "over-itself", "chain"])
def test_on_the_other_kinds_of_socket(fdpass, hostile, attack, kind):
    """Streams and datagrams too; of no data on a stream nothing comes, for the kernel drops it."""
    came, said, honest = attacked(fdpass, hostile, one, attack, kind)
    expected = None if (attack, kind) == ("no-data", STREAM) else ATTACKS[attack]
    assert (expected, "", (b"honest", [True])) == (came, said, honest)


@needs_compiler
@RECEIVERS
@pytest.mark.parametrize("count", [50, pytest.param(1000, marks=pytest.mark.slow)])
def test_253_at_once_many_times(fdpass, hostile, receive, count):
    """A peer that fills every message to the brim gets nowhere."""
    came, said, honest = attacked(fdpass, hostile, receive, "many", SEQPACKET, count)
    assert ("maxfds", "", (b"honest", [True])) == (came, said, honest)


@needs_compiler
@pytest.mark.parametrize("receive", list(WAYS.values())[:3], ids=list(WAYS)[:3])  # a raw recvmsg hands out pidfds
@pytest.mark.parametrize("attack", ["many", "several", "zero-length", "credentials", "credentials-after", "no-data"])
def test_with_everything_on_that_the_kernel_adds(fdpass, hostile, receive, attack):
    """Credentials and a pidfd in each message besides: none of the pidfds stays open either."""

    def prepare(sock):
        fdpass.pass_credentials(sock)
        if takes("SO_PASSPIDFD"):
            fdpass.pass_pidfd(sock)

    def receive_and_count(fdpass, sock):
        message = receive(fdpass, sock)
        if message.pidfd is not None:
            message.pidfd.close()
        if receive is not drop_in:
            assert message.credentials.pid > 0
        return message

    came, said, honest = attacked(fdpass, hostile, receive_and_count, attack, SEQPACKET, 3, prepare)
    assert (ATTACKS[attack], "", (b"honest", [True])) == (came, said, honest)


@needs_compiler
@pytest.mark.skipif(not takes("SO_PASSRIGHTS", 0), reason="no SO_PASSRIGHTS (Linux 6.16)")
def test_where_no_rights_pass(fdpass, hostile):
    """The kernel refuses the attack, and the honest descriptor too; nothing comes."""
    a, b = socket.socketpair(socket.AF_UNIX, SEQPACKET)
    with a, b, alarm(30):
        fdpass.pass_rights(b, False)
        command = [str(hostile), str(a.fileno()), "many", "1"]
        done = subprocess.run(command, pass_fds=[a.fileno()], stdout=subprocess.PIPE, text=True, check=False)
        a.close()
        assert (4, "Operation not permitted\n") == (done.returncode, done.stdout)
        message = fdpass.recv_message(b, 100, 2)
        assert (b"", []) == (message.data, message.fds)

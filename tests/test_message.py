"""Message and recv_message: what came is there, owned, in the field it belongs to, and closed if it was not taken."""

from __future__ import annotations

import copy
import errno
import os
import pickle
import socket

import pytest
from kernel import needs_credentials, needs_pidfd
from support import SOL_SOCKET, alarm, descriptors, identities, identity, needs_real_kernel, open_numbers, pair, rights

from fdpass_cffi._backend import CONSTANTS

KINDS = [socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_SEQPACKET]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("count", [0, 1, 2, 7, 252, 253])
def test_data_and_descriptors_arrive_owned_and_close_on_exec(fdpass, kind, count):
    """All that was sent comes, in order, each in an OwnedFd of its own that is not inherited across exec."""
    with pair(kind) as (a, b), descriptors(count) as sent:
        a.sendmsg([b"some data"], rights(sent) if count else [])
        with fdpass.recv_message(b, 100, count) as message:
            numbers = [owned.fileno() for owned in message.fds]
            assert (b"some data", identities(sent)) == (message.data, identities(numbers))
            assert {False} >= {os.get_inheritable(number) for number in numbers}
            assert {fdpass.OwnedFd} >= {type(owned) for owned in message.fds}
            assert (None, None, None, []) == (message.credentials, message.pidfd, message.security, message.ancdata)
            assert 0 == message.flags & (socket.MSG_CTRUNC | socket.MSG_TRUNC | fdpass.MSG_CMSG_CLOEXEC)
        assert all(owned.closed for owned in message.fds)
        assert not set(numbers) & open_numbers()


ASKED = [(4, 1, 0), (4, 2, 0), (9, 1, 0), (3, 1, 0), (4, 0, 0), (9, 1, socket.MSG_PEEK), (100_000, 1, 0)]


@needs_real_kernel
@pytest.mark.parametrize("second", ASKED)
@pytest.mark.parametrize("first", ASKED)
def test_one_call_does_not_decide_for_the_next(fdpass, first, second):
    """What recv_message was asked for before is not what it gives now."""
    fdpass._scratch.rights_in_pool[:] = [fdpass._scratch.incoming()]
    with pair(socket.SOCK_DGRAM) as (a, b), descriptors(1) as sent:
        b.settimeout(5)
        for size, most, flags in (first, second, second, first):
            given = b"data" * max(1, size // 5)
            a.sendmsg([given], rights(sent))
            if size < 4 or not most:
                with pytest.raises(fdpass.TruncatedError) as caught:
                    fdpass.recv_message(b, size, most, flags)
                assert given[:size] == caught.value.data
                continue
            with fdpass.recv_message(b, size, most, flags) as message:
                assert (given, 1) == (message.data, len(message.fds))
            if flags:
                assert given == b.recv(9)


def test_flags_that_are_no_int_after_none(fdpass):
    """What equals 0 is refused by name also where the same was asked for before without flags."""
    with pair() as (a, b):
        a.sendmsg([b"datadata"])
        fdpass.recv_message(b, 4, 1)
        with pytest.raises(TypeError, match=r"flags.*float"):
            fdpass.recv_message(b, 4, 1, 0.0)
        assert b"data" == fdpass.recv_message(b, 4, 1).data


def test_what_was_taken_stays_open(fdpass):
    """The end of the block closes what is left and nothing that was taken, popped or closed before."""
    with pair() as (a, b), descriptors(4) as sent:
        a.sendmsg([b"x"], rights(sent))
        with fdpass.recv_message(b, 1, 4) as message:
            popped = message.fds.pop()
            taken = message.fds[0].detach()
            message.fds[1].close()
            left = message.fds[2].fileno()
        assert identity(sent[3]) == identity(popped.fileno())
        assert identity(sent[0]) == identity(taken)
        assert left not in open_numbers()
        popped.close()
        os.close(taken)
        message.close()  # a second time: nothing happens


def test_an_exception_in_the_block_closes_all(fdpass):
    """The block is left by an exception, and everything is closed."""
    with pair() as (a, b), descriptors(3) as sent:
        a.sendmsg([b"x"], rights(sent))
        with pytest.raises(ZeroDivisionError), fdpass.recv_message(b, 1, 3) as message:
            raise ZeroDivisionError
        assert [True] * 3 == [owned.closed for owned in message.fds]


def test_one_that_cannot_be_closed_does_not_keep_the_others_open(fdpass):
    """close() goes on behind a number that somebody else closed."""
    with pair() as (a, b), descriptors(3) as sent:
        a.sendmsg([b"x"], rights(sent))
        message = fdpass.recv_message(b, 1, 3)
        os.close(message.fds[0].fileno())
        message.close()
        assert [True] * 3 == [owned.closed for owned in message.fds]


def test_the_end_of_a_stream_is_an_empty_message(fdpass):
    """After the peer closed: no data, no descriptors, no error."""
    with pair() as (a, b):
        a.close()
        message = fdpass.recv_message(b, 10, 1)
        assert (b"", []) == (message.data, message.fds)


def test_a_sender_has_an_address(fdpass):
    """`address` is what `socket` gives: the name that the sender is bound to."""
    with pair(socket.SOCK_DGRAM) as (a, b), descriptors(1) as sent:
        a.bind(b"\0fdpass" + os.urandom(6))
        a.sendmsg([b"x"], rights(sent))
        with fdpass.recv_message(b, 1, 1) as message:
            assert a.getsockname() == message.address


@pytest.mark.parametrize("kind", KINDS)
def test_peeking_gives_a_duplicate_each_time(fdpass, kind):
    """With MSG_PEEK descriptors come, are closed, and come again."""
    with pair(kind) as (a, b), descriptors(2) as sent:
        a.sendmsg([b"some data"], rights(sent))
        for flags in (socket.MSG_PEEK, socket.MSG_PEEK, 0):
            with fdpass.recv_message(b, 100, 2, flags) as message:
                assert b"some data" == message.data
                assert identities(sent) == identities([owned.fileno() for owned in message.fds])


@pytest.mark.parametrize("kind", [socket.SOCK_DGRAM, socket.SOCK_SEQPACKET])
def test_part_of_a_datagram_may_be_asked_for(fdpass, kind):
    """MSG_PEEK, which loses nothing, and MSG_TRUNC, which says so, are no TruncatedError."""
    with pair(kind) as (a, b):
        a.send(b"long message")
        for flags in (socket.MSG_PEEK, socket.MSG_TRUNC):
            message = fdpass.recv_message(b, 4, 0, flags)
            assert (b"long", socket.MSG_TRUNC) == (message.data, message.flags & socket.MSG_TRUNC)


def test_flags_and_timeouts_are_honoured(fdpass):
    """MSG_DONTWAIT, a timeout and a non-blocking socket do what they do in `socket`; so do an int and an object."""
    with pair() as (a, b), alarm(20):
        with pytest.raises(BlockingIOError):
            fdpass.recv_message(b, 1, 1, socket.MSG_DONTWAIT)
        b.settimeout(0.01)
        with pytest.raises(TimeoutError) as caught:
            fdpass.recv_message(b, 1, 1)
        assert isinstance(caught.value, socket.timeout)
        b.settimeout(0)
        with pytest.raises(BlockingIOError):
            fdpass.recv_message(b, 1, 1)
        a.send(b"xyz")
        assert b"x" == fdpass.recv_message(b.fileno(), 1, 0).data
        with fdpass.OwnedFd(os.dup(b.fileno())) as other:
            assert b"y" == fdpass.recv_message(other, 1, 0).data


@pytest.mark.parametrize(
    ("args", "error"),
    [
        ((-1, 1), ValueError),
        ((1, -1), ValueError),
        (("1", 1), TypeError),
        ((1, 1.0), TypeError),
        ((1, 1, "x"), TypeError),
        ((1, 1, 1 << 31), OverflowError),
        ((1 << 64, 1), OverflowError),
    ],
)
def test_wrong_arguments_are_refused_before_anything_is_received(fdpass, args, error):
    """The error names what is wrong, and the message is still there."""
    with pair() as (a, b):
        a.send(b"x")
        with pytest.raises(error):
            fdpass.recv_message(b, *args)
        assert b"x" == b.recv(1, socket.MSG_DONTWAIT)


def test_large_data(fdpass):
    """More bytes than a pooled block holds come whole."""
    with pair(socket.SOCK_SEQPACKET) as (a, b), descriptors(1) as sent:
        a.setsockopt(SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        data = os.urandom(100_000)
        a.sendmsg([data], rights(sent))
        with fdpass.recv_message(b, 200_000, 1) as message:
            assert (data, 1) == (message.data, len(message.fds))


@needs_pidfd
def test_everything_the_kernel_adds_and_253_descriptors(fdpass):
    """With credentials, a pidfd, a security label and timestamps on, 253 descriptors still come whole."""
    with pair() as (a, b), descriptors(253) as sent:
        fdpass.pass_credentials(b)
        fdpass.pass_pidfd(b)
        for option in ("SO_PASSSEC", "SO_TIMESTAMP"):  # no label comes without a security module
            b.setsockopt(SOL_SOCKET, CONSTANTS[option], 1)
        a.sendmsg([b"x"], rights(sent))
        with fdpass.recv_message(b, 1, 253) as message:
            assert identities(sent) == identities([owned.fileno() for owned in message.fds])
            assert (os.getpid(), os.getuid(), os.getgid()) == message.credentials
            assert "pidfd" in repr(message.pidfd)
            assert isinstance(message.security, (bytes, type(None)))
        assert message.pidfd.closed


def test_a_security_label_and_others_get_their_fields(fdpass):
    """SCM_SECURITY goes to `.security`, what has no field to `.ancdata` with its level and type."""
    message = fdpass.Message(b"", [])
    label, stamp = (SOL_SOCKET, CONSTANTS["SCM_SECURITY"], b"label\0"), (SOL_SOCKET, CONSTANTS["SO_TIMESTAMP"], b"time")
    fdpass.message.put_other(message, [label, (41, 50, b"other"), stamp], 0)
    assert b"label\0" == message.security
    assert [(41, 50, b"other"), stamp] == message.ancdata


def test_control_messages_of_other_families_are_kept(fdpass):
    """Over UDP a type of service asked for comes in `.ancdata`."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as a, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as b:
        b.bind(("127.0.0.1", 0))
        b.setsockopt(socket.IPPROTO_IP, getattr(socket, "IP_RECVTOS", 13), 1)
        a.sendto(b"x", b.getsockname())
        message = fdpass.recv_message(b, 1, 5)
        assert (b"x", []) == (message.data, message.fds)
        ((level, kind, value),) = message.ancdata
        assert (socket.IPPROTO_IP, socket.IP_TOS, b"\0") == (level, kind, value)


@needs_credentials
def test_the_repr_says_what_is_held(fdpass):
    """It names the sizes, the descriptors, and the fields that are set."""
    with pair() as (a, b), descriptors(1) as sent:
        fdpass.pass_credentials(b)
        a.sendmsg([b"some"], rights(sent))
        with fdpass.recv_message(b, 10, 1) as message:
            text = repr(message)
    assert text.startswith("<Message 4 bytes fds=[<OwnedFd ")
    assert f"credentials=Credentials(pid={os.getpid()}" in text
    assert "pidfd" not in text


def test_not_a_socket(fdpass):
    """A pipe is ENOTSOCK, a closed socket EBADF."""
    with descriptors(1) as (reading,), pytest.raises(OSError) as caught:
        fdpass.recv_message(reading, 1, 1)
    assert errno.ENOTSOCK == caught.value.errno
    with pair() as (a, _):
        a.close()
    with pytest.raises(OSError) as caught:
        fdpass.recv_message(a, 1, 1)
    assert errno.EBADF == caught.value.errno


def test_what_a_dead_sender_leaves_is_no_negative_descriptor(fdpass):
    """The kernel's -errno in the place of a pidfd is no pidfd; of a full table it is a loss, of a dead sender none."""
    drop_failed = fdpass.message.drop_failed
    pidfds, fds = [-errno.ESRCH], [5, -errno.ESRCH]
    assert (0, [], [5]) == (drop_failed(pidfds, fds), pidfds, fds)
    pidfds, fds = [-errno.EMFILE, 9], [5, -errno.EMFILE, 9]
    assert (socket.MSG_CTRUNC, [9], [5, 9]) == (drop_failed(pidfds, fds), pidfds, fds)


@needs_credentials
@pytest.mark.parametrize("way", ["one", "batch", "loop"])
def test_nobody_is_named_as_the_sender_of_an_end(fdpass, way):
    """At the end of a stream Linux writes pid 0, uid 0, gid 0, which would read as root: there are no credentials."""

    def receive(sock):
        if way == "one":
            return fdpass.recv_message(sock, 10, 1)
        if way == "batch":
            return fdpass.recv_messages(sock, 3, 10, 1)[-1]
        return fdpass.recvmmsg.recv_one_by_one(sock, sock.fileno(), 3, 10, 1, 0)[-1]

    with pair() as (a, b):
        fdpass.pass_credentials(b)
        a.send(b"last")
        a.close()
        if way == "one":
            assert os.getpid() == receive(b).credentials.pid
        for _ in range(2):
            message = receive(b)
            assert (b"", None) == (message.data, message.credentials)


@needs_credentials
def test_an_empty_datagram_has_a_sender(fdpass):
    """It is no end, and its credentials stay, also those of root in another pid namespace."""
    message = fdpass.Message(b"", [])
    with pair(socket.SOCK_DGRAM) as (a, b):
        fdpass.pass_credentials(b)
        a.send(b"")
        assert os.getpid() == fdpass.recv_message(b, 10, 1).credentials.pid
        assert not fdpass.message.ends(b.fileno(), message)


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, pickle.dumps])
def test_it_is_neither_copied_nor_pickled(fdpass, duplicate):
    """A copy would be a second owner of the same descriptors: TypeError, whether there are any or not."""
    with pair() as (a, b), descriptors(1) as sent:
        a.sendmsg([b"x"], rights(sent))
        with fdpass.recv_message(b, 1, 1) as message:
            for one in (message, fdpass.Message(b"", [])):
                with pytest.raises(TypeError, match="a Message cannot be copied or pickled"):
                    duplicate(one)
            assert message == message  # noqa: PLR0124
            assert message != fdpass.Message(message.data, message.fds)
            assert [False] == [owned.closed for owned in message.fds]


RECEIVES = {
    "recvmsg": lambda fdpass, *args: fdpass.recvmsg(*args[:2], 0, *args[2:])[0],
    "recv_fds": lambda fdpass, sock, bufsize, flags: fdpass.recv_fds(sock, bufsize, 1, flags)[0],
    "recv_message": lambda fdpass, sock, bufsize, flags: fdpass.recv_message(sock, bufsize, 1, flags).data,
    "recv_messages": lambda fdpass, sock, bufsize, flags: fdpass.recv_messages(sock, 1, bufsize, 1, flags)[0].data,
}


@pytest.mark.parametrize("receive", RECEIVES.values(), ids=RECEIVES)
@pytest.mark.parametrize("bufsize", [100, 70_000])
def test_what_tcp_only_counts_shows_no_other_call_s_data(fdpass, receive, bufsize):
    """With MSG_TRUNC, TCP writes nothing into the buffer: zeros come, never what an earlier message left there."""
    secret = b"a secret of somebody else" * 4
    with socket.socket() as listener, pair() as (a, b):
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        with socket.create_connection(listener.getsockname()) as client, listener.accept()[0] as server:
            a.send(secret)
            assert secret == receive(fdpass, b, bufsize, 0)
            client.sendall(bytes(range(1, 9)))
            assert len(server.recv(8, socket.MSG_PEEK | socket.MSG_WAITALL)) == 8
            assert receive(fdpass, server, bufsize, socket.MSG_TRUNC) in {bytes(8), bytes(range(1, 9))}

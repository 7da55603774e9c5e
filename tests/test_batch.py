"""send_messages and recv_messages: as many single calls would do, in order, owned; the loops give the same results."""

from __future__ import annotations

import array
import errno
import os
import signal
import socket
import threading
import time
from contextlib import suppress

import pytest
from kernel import needs_credentials, needs_mmsg, needs_pidfd
from support import (
    SOL_SOCKET,
    alarm,
    descriptors,
    drain,
    fds_in,
    fill,
    identities,
    on_alarm,
    open_numbers,
    pair,
    rights,
)

from fdpass_cffi._backend import CONSTANTS

DGRAM, SEQPACKET, STREAM = socket.SOCK_DGRAM, socket.SOCK_SEQPACKET, socket.SOCK_STREAM


@pytest.fixture(params=[pytest.param("native", marks=needs_mmsg), "loop"])
def way(request, fdpass, monkeypatch):
    """Over sendmmsg and recvmmsg, and as where a C library has none."""
    if request.param == "loop":
        monkeypatch.setattr(fdpass.sendmmsg, "lib_sendmmsg", None)
        monkeypatch.setattr(fdpass.recvmmsg, "lib_recvmmsg", None)
    return request.param


def inodes(message):
    return identities([owned.fileno() for owned in message.fds])


def close(messages):
    for message in messages:
        message.close()


@pytest.mark.parametrize("kind", [DGRAM, SEQPACKET])
@pytest.mark.parametrize("counts", [[1], [1, 1, 1], [0], [0, 0], [0, 1, 2, 5, 1, 0], [3, 3], [253, 1]])
def test_each_message_arrives_with_its_own_descriptors(fdpass, way, kind, counts):
    """Order, data, descriptors and addresses are those of as many single messages."""
    with pair(kind) as (a, b), descriptors(5) as five:
        if kind == DGRAM:
            a.bind(b"\0fdpass" + os.urandom(6))
        sent = [(b"%d" % i * i, [five[j % 5] for j in range(i, i + count)]) for i, count in enumerate(counts)]
        assert len(counts) == fdpass.send_messages(a, sent)
        messages = fdpass.recv_messages(b, 100, 100, 253)
        assert [data for data, _ in sent] == [message.data for message in messages]
        assert [identities(fds) for _, fds in sent] == [inodes(message) for message in messages]
        if kind == DGRAM:
            assert {a.getsockname()} == {message.address for message in messages}
        assert {False} >= {os.get_inheritable(owned.fileno()) for message in messages for owned in message.fds}
        close(messages)
        with pytest.raises(BlockingIOError):
            fdpass.recv_messages(b, 1, 1, 1, socket.MSG_DONTWAIT)


def test_the_same_shape_again_has_nothing_of_the_last_batch(fdpass, way):
    """Pooled memory, used for less the second time, shows nothing of the first: no data, no descriptors."""
    with pair(SEQPACKET) as (a, b), descriptors(4) as fds:
        for count in (4, 1, 3, 2, 4):
            fdpass.send_messages(a, [(b"x" * count, [fd]) for fd in fds[:count]])
            a.send(b"plain")
            messages = fdpass.recv_messages(b, 5, 100, 4)
            assert [b"x" * count] * count + [b"plain"] == [message.data for message in messages]
            assert [[inode] for inode in identities(fds[:count])] + [[]] == [inodes(message) for message in messages]
            close(messages)


def test_as_many_messages_of_other_sizes(fdpass, way):
    """Memory that was laid out for one batch is laid out anew for the next, whose messages are not as long."""
    with pair(SEQPACKET) as (a, b), descriptors(1) as one:
        for sizes in ([3, 3], [2, 4], [4, 2], [4, 2], [1, 4000], [5000, 1], [3, 3]):
            sent = [(bytes([48 + i]) * size, one) for i, size in enumerate(sizes)]
            assert 2 == fdpass.send_messages(a, sent)
            messages = fdpass.recv_messages(b, 2, 10_000, 1)
            assert [data for data, _ in sent] == [message.data for message in messages]
            close(messages)


def test_all_kinds_of_data_and_descriptors(fdpass, way):
    """bytes, bytearray, memoryview and array; ints, sockets, files and OwnedFds; in lists, tuples and generators."""
    with pair(SEQPACKET) as (a, b), descriptors(1) as (one,), fdpass.OwnedFd(os.dup(one)) as owned:
        numbers = array.array("h", [1, 2])
        sent = [(b"1", (one,)), (bytearray(b"22"), [owned]), (memoryview(b"333"), (x for x in [one, a])), (numbers, [])]
        assert 4 == fdpass.send_messages(a, iter(sent))
        messages = fdpass.recv_messages(b, 4, 100, 2)
        assert [b"1", b"22", b"333", numbers.tobytes()] == [message.data for message in messages]
        assert [1, 1, 2, 0] == [len(message.fds) for message in messages]
        close(messages)


@pytest.mark.parametrize("count", [1024, 1025, 1500])
def test_no_more_than_1024_at_once(fdpass, way, count):
    """More are sent by calling again; what was not sent is known by the number."""
    with pair(SEQPACKET) as (a, b), descriptors(1) as (one,), alarm(300):  # no queue as short as that of DGRAM
        got, sent = [], [(b"%d" % i, [one]) for i in range(count)]
        thread = threading.Thread(target=receive_all, daemon=True, args=(fdpass, b, count, got))
        thread.start()
        numbers = []  # a call may send fewer than it could
        while sum(numbers) < count:
            numbers.append(fdpass.send_messages(a, sent[sum(numbers) :]))
        assert 1 <= min(numbers) <= max(numbers) <= 1024
        thread.join()
        assert [data for data, _ in sent] == got


def receive_all(fdpass, sock, count, got):
    while len(got) < count:
        messages = fdpass.recv_messages(sock, 5000, 10, 1)
        got += [message.data for message in messages]
        assert {1} == {len(message.fds) for message in messages}
        close(messages)


def test_no_messages(fdpass, way):
    """Nothing to send is 0; to receive none is a ValueError."""
    with pair() as (a, b):
        assert 0 == fdpass.send_messages(a, [])
        for n in (0, -1):
            with pytest.raises(ValueError, match="n must be at least 1"):
                fdpass.recv_messages(b, n, 10, 1)


@pytest.mark.parametrize("size", [4, 20_000])
def test_the_beginnings_of_datagrams(fdpass, way, size):
    """With MSG_TRUNC, of which the kernel tells the whole length, each has its own first `bufsize` bytes, not more."""
    with pair(SEQPACKET) as (a, b), descriptors(1) as one:
        sent = [(bytes([48 + i]) * (size + 3), one) for i in range(3)]
        assert 3 == fdpass.send_messages(a, sent)
        messages = fdpass.recv_messages(b, 3, size, 1, socket.MSG_TRUNC)
        assert [data[:size] for data, _ in sent] == [message.data for message in messages]
        assert {socket.MSG_TRUNC} == {message.flags for message in messages}
        close(messages)


@pytest.mark.parametrize("kind", [DGRAM, SEQPACKET])
def test_no_room_for_data(fdpass, way, kind):
    """bufsize 0 receives messages without data, with their descriptors."""
    with pair(kind) as (a, b), descriptors(2) as fds:
        fdpass.send_messages(a, [(b"", fds), (b"", fds[:1])])
        messages = fdpass.recv_messages(b, 5, 0, 2)
        assert [b"", b""] == [message.data for message in messages]
        assert [identities(fds), identities(fds[:1])] == [inodes(message) for message in messages]
        close(messages)


def test_no_wait_for_more_than_the_first(fdpass, way):
    """What is there comes, without waiting for the rest: blocking, and with a timeout, which holds for the first."""
    with pair(SEQPACKET) as (a, b), alarm(20):
        for timeout in (None, 5):
            b.settimeout(timeout)
            fdpass.send_messages(a, [(b"1", []), (b"2", [])])
            assert [b"1", b"2"] == [message.data for message in fdpass.recv_messages(b, 10, 10, 0)]
        b.settimeout(0.05)
        with pytest.raises(TimeoutError):
            fdpass.recv_messages(b, 10, 10, 0)
        b.setblocking(False)
        with pytest.raises(BlockingIOError):
            fdpass.recv_messages(b, 10, 10, 0)
        b.setblocking(True)
        timer = threading.Timer(0.05, a.send, [b"late"])
        timer.start()
        assert [b"late"] == [message.data for message in fdpass.recv_messages(b.fileno(), 10, 10, 0)]
        timer.join()


def test_a_receive_goes_on_after_a_signal(fdpass, way):
    """A handler that returns is no end of it, nor of the deadline."""
    with pair(SEQPACKET) as (a, b), alarm(0):
        a_second = []

        def handler(*_):
            a_second.append(1)
            if len(a_second) == 3:
                a.send(b"x")

        old = signal.signal(signal.SIGALRM, handler)
        signal.setitimer(signal.ITIMER_REAL, 0.02, 0.02)
        try:
            assert [b"x"] == [message.data for message in fdpass.recv_messages(b, 2, 10, 0)]
            b.settimeout(0.2)
            with pytest.raises(TimeoutError):
                fdpass.recv_messages(b, 2, 10, 0)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, old)


@pytest.mark.parametrize("kind", [STREAM, SEQPACKET])
def test_the_end_of_a_stream_comes_once(fdpass, way, kind):
    """After the last message an empty one, and on a stream not as many of them as were asked for."""
    with pair(kind) as (a, b), descriptors(1) as fds:
        fdpass.send_messages(a, [(b"1", fds), (b"2", fds)])
        a.close()
        messages = fdpass.recv_messages(b, 4, 10, 1)
        data = [message.data for message in messages]
        assert [b"1", b"2", b""] == data[:3]
        assert (3 if kind == STREAM else 4) >= len(data)
        assert set(data[2:]) == {b""}
        close(messages)


def test_an_error_after_the_first_costs_nothing_that_came(fdpass, way):
    """The connection was reset: the message that came before is not lost for the error (which recvmmsg tells first)."""
    with pair(STREAM) as (a, b), descriptors(1) as fds:
        b.send(b"unread, so that closing resets")
        fdpass.send_messages(a, [(b"1", fds)])
        a.close()
        if way == "native":
            with suppress(ConnectionResetError):
                fdpass.recv_messages(b, 1, 0, 1, socket.MSG_PEEK)[0].close()
        messages = fdpass.recv_messages(b, 4, 10, 1)
        assert (b"1", 1) == (messages[0].data, len(messages[0].fds))
        close(messages)


@needs_pidfd
@needs_credentials
def test_credentials_and_pidfds_of_each(fdpass, way):
    """Each message has its sender's; 253 descriptors beside them come whole."""
    with pair(SEQPACKET) as (a, b), descriptors(253) as fds:
        fdpass.pass_credentials(b)
        fdpass.pass_pidfd(b)
        b.setsockopt(SOL_SOCKET, CONSTANTS["SO_PASSSEC"], 1)
        assert 3 == fdpass.send_messages(a, [(b"1", fds), (b"2", []), (b"3", fds[:2])])
        messages = fdpass.recv_messages(b, 5, 10, 253)
        assert [identities(fds), [], identities(fds[:2])] == [inodes(message) for message in messages]
        assert {(os.getpid(), os.getuid(), os.getgid())} == {message.credentials for message in messages}
        assert 3 == len({message.pidfd.fileno() for message in messages})
        close(messages)
        assert {True} == {message.pidfd.closed for message in messages}


def test_peeking(fdpass, way):
    """A peeked message stays, its duplicates are the caller's."""
    with pair(SEQPACKET) as (a, b), descriptors(1) as fds:
        fdpass.send_messages(a, [(b"1", fds)])
        peeked = fdpass.recv_messages(b, 1, 10, 1, socket.MSG_PEEK)
        messages = fdpass.recv_messages(b, 10, 10, 1)
        assert [b"1"] == [message.data for message in peeked] == [message.data for message in messages]
        assert [identities(fds)] * 2 == [inodes(message) for message in peeked + messages]
        close(peeked + messages)


# Sending


def test_a_full_socket_takes_some(fdpass, way):
    """A non-blocking one says how many went; one of which none went is a BlockingIOError; nothing goes twice."""
    with pair(SEQPACKET) as (a, b), descriptors(1) as fds, alarm(20):
        a.setsockopt(SOL_SOCKET, socket.SO_SNDBUF, 8192)
        for timeout, error in ((0, BlockingIOError), (0.05, TimeoutError)):
            a.settimeout(timeout and 60)  # of which nothing is waited for once some went
            went = fdpass.send_messages(a, [(b"x" * 1000, fds)] * 100)
            assert 0 < went < 100
            a.settimeout(timeout)
            with pytest.raises(error):
                fdpass.send_messages(a, [(b"x" * 1000, fds)])
            messages = fdpass.recv_messages(b, 100, 1000, 1)
            assert [(b"x" * 1000, 1)] * went == [(message.data, len(message.fds)) for message in messages]
            close(messages)


@pytest.mark.parametrize("timeout", [None, 20, 0])
@pytest.mark.parametrize("plain", [bytes, bytearray])
def test_a_short_write_on_a_stream_is_finished(fdpass, way, timeout, plain):
    """What a stream takes in part goes on, its descriptors once: blocking, with a timeout, and not blocking."""
    with pair(STREAM) as (a, b), descriptors(2) as fds, alarm(60):
        a.setsockopt(SOL_SOCKET, socket.SO_SNDBUF, 8192)
        a.settimeout(timeout)
        data = os.urandom(400_000)
        got, found = [], []
        thread = threading.Thread(target=slowly, args=(b, got, found))
        thread.start()
        sent = fdpass.send_messages(a, [(b"first", fds[:1]), (plain(data), fds), (b"last", fds[1:])])
        a.close()
        thread.join()
        expected = [b"first", data, b"last"][:sent]
        assert b"".join(expected) == b"".join(got)
        assert (identities(fds[:1]) + identities(fds) + identities(fds[1:]))[: [0, 1, 3, 4][sent]] == found
        assert (3,) == (sent,) if timeout is None else sent >= 2


def slowly(sock, got, found):
    while True:
        data, ancdata, _, _ = sock.recvmsg(1 << 16, 4096)
        fds = fds_in(ancdata)
        found += identities(fds)
        for fd in fds:
            os.close(fd)
        got.append(data)
        if not data:
            return
        time.sleep(0.001)


@pytest.mark.parametrize("size", [3000, 400_000])
def test_a_message_that_cannot_be_finished_says_how_far_it_came(fdpass, way, size):
    """Past the timeout, or with MSG_DONTWAIT: how many went whole, and how much of the next one."""
    with pair(STREAM) as (a, b), descriptors(2) as fds, alarm(20):
        a.setsockopt(SOL_SOCKET, socket.SO_SNDBUF, 8192)
        for timeout, flags, error in ((0.05, 0, TimeoutError), (None, socket.MSG_DONTWAIT, BlockingIOError)):
            a.settimeout(timeout)
            sent = [(b"first", fds[:1]), (b"x" * 400_000, fds)]
            with pytest.raises(error) as caught:
                fdpass.send_messages(a, sent, flags)
            assert 1 == caught.value.messages_sent
            assert 0 < caught.value.bytes_sent < 400_000
            got = receive_now(b)
            assert (5 + caught.value.bytes_sent, 1 + caught.value.fds_sent) == (len(got[0]), len(got[1]))


def receive_now(sock):
    """All data that waits, and the inodes of the descriptors with it."""
    data, found = b"", []
    while True:
        try:
            got, ancdata, _, _ = sock.recvmsg(1 << 16, 4096, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return data, found
        fds = fds_in(ancdata)
        found += identities(fds)
        for fd in fds:
            os.close(fd)
        data += got


def test_an_iterator_is_not_asked_for_more_than_go(fdpass, way):
    """What comes after the 1024 of one call is still there for the next."""
    with pair(SEQPACKET) as (a, b), alarm(60):
        numbers = iter(range(1100))
        thread = threading.Thread(target=lambda: [b.recv(10) for _ in range(1100)])
        thread.start()
        messages = ((b"%d" % i, []) for i in numbers)
        assert (1024, 76) == (fdpass.send_messages(a, messages), fdpass.send_messages(a, messages))
        assert [] == list(numbers)
        thread.join()


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("kind", [STREAM, SEQPACKET])
def test_an_interrupt_says_how_many_went(fdpass, way, kind, count):
    """KeyboardInterrupt from a real signal while the kernel waits for room: the numbers are those of what arrived."""
    with pair(kind) as (a, b), descriptors(2) as fds:
        a.setsockopt(SOL_SOCKET, socket.SO_SNDBUF, 8192)

        def interrupt():
            with suppress(BlockingIOError):  # if nothing went until now, the next time
                b.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
                raise KeyboardInterrupt

        with on_alarm(interrupt, 0.05, 0.05), pytest.raises(KeyboardInterrupt) as caught:
            fdpass.send_messages(a, [(b"x" * 3000, fds[:count])] * 1000)
        data, found = receive_now(b)
        error = caught.value
        assert len(data) == 3000 * error.messages_sent + error.bytes_sent
        assert len(found) == count * error.messages_sent + error.fds_sent
        assert 0 < error.messages_sent < 1000


def test_what_is_refused_has_the_numbers_too(fdpass, way):
    """Whoever catches an error can read from it that nothing went."""
    with pair(SEQPACKET) as (a, _), alarm(20):
        a.setblocking(False)
        for messages, error in ([(b"x", [-1])], OSError), ([(b"x", [987_654])], OSError), (5, TypeError):
            with pytest.raises(error) as caught:
                fdpass.send_messages(a, messages)
            assert (0, 0, 0) == told_by(caught.value)
        fill(a)
        with pytest.raises(BlockingIOError) as caught:
            fdpass.send_messages(a, [(b"x", [0])])
        assert (0, 0, 0) == told_by(caught.value)


def told_by(error):
    return error.messages_sent, error.bytes_sent, error.fds_sent


def test_an_urgent_byte_carries_no_descriptors(fdpass, way):
    """MSG_OOB: a message whose one byte is urgent would lose its descriptors."""
    with pair(STREAM) as (a, b), descriptors(1) as fds:
        with pytest.raises(ValueError, match=r"messages\[1\] has no byte but the one that MSG_OOB makes urgent"):
            fdpass.send_messages(a, [(b"xy", fds), (b"x", fds)], socket.MSG_OOB)
        assert b"" == drain(b)


def test_an_error_of_a_later_one_is_for_the_next_call(fdpass, way):
    """The number says how many went; the call with the rest names the descriptor that is not open."""
    with pair(SEQPACKET) as (a, b), descriptors(1) as fds:
        sent = [(b"1", fds), (b"2", fds), (b"3", [987_654]), (b"4", fds)]
        assert 2 == fdpass.send_messages(a, sent)
        with pytest.raises(OSError, match=r"fds\[0\] is 987654, which is not open") as caught:
            fdpass.send_messages(a, sent[2:])
        assert errno.EBADF == caught.value.errno
        close(fdpass.recv_messages(b, 10, 10, 1))


def test_254_in_one_message_are_too_many(fdpass, way):
    """One message takes 253: EINVAL that says so; it is not sent in two."""
    with pair(SEQPACKET) as (a, b):
        with pytest.raises(OSError, match="254 descriptors in fds, one message takes 253") as caught:
            fdpass.send_messages(a, [(b"data", [0] * 254)])
        assert errno.EINVAL == caught.value.errno
        with pytest.raises(BlockingIOError):
            b.recv(1, socket.MSG_DONTWAIT)


def test_many_descriptors_in_all_are_not_called_too_many(fdpass, way):
    """An error of 300 messages with one each is not explained by their sum."""
    with pair(DGRAM) as (a, b):
        b.close()
        with pytest.raises(OSError) as caught:
            fdpass.send_messages(a, [(b"x", [0])] * 300)
        assert "300" not in str(caught.value)


@pytest.mark.parametrize(
    ("messages", "error", "match"),
    [
        (5, TypeError, "messages"),
        ([5], TypeError, r"messages\[0\]"),
        ([(b"x", [0]), (b"y",)], TypeError, r"messages\[1\]"),
        ([(b"x", [0]), (b"y", [0], "surplus")], TypeError, r"messages\[1\]"),
        ([(b"x", [0]), ("text", [0])], TypeError, r"messages\[1\]"),
        ([(b"x", [0]), (b"y", ["0"])], TypeError, r"messages\[1\]: fds\[0\]"),
        ([(b"x", [True])], TypeError, r"messages\[0\]: fds\[0\]"),
        ([(b"x", [-1])], OSError, "fds"),
        ([(b"x", [0]), (b"y", [-1])], OSError, r"messages\[1\]: fds\[0\] is -1"),
        ([(b"x", [1 << 31])], OverflowError, "fds"),
        ([(b"x", 5)], TypeError, r"messages\[0\]: fds must be an iterable"),
        ([(b"x", [0]), (b"", [0])], ValueError, r"messages\[1\] has no byte"),
    ],
)
def test_wrong_messages_are_refused_before_any_is_sent(fdpass, way, messages, error, match):
    """The error says which one, and nothing was sent."""
    with pair(STREAM) as (a, b):
        with pytest.raises(error, match=match):
            fdpass.send_messages(a, messages)
        assert b"" == drain(b)


def test_too_many_in_flight(fdpass, way, monkeypatch):
    """ETOOMANYREFS is back-pressure here too: waited for, up to the timeout; a non-blocking socket raises."""
    ffi, calls = fdpass._backend.ffi, []
    module, name = (fdpass.sendmmsg, "lib_sendmmsg") if way == "native" else (fdpass.sendall, "lib_sendmsg")
    real = getattr(module, name)

    def full(*args):
        calls.append(1)
        if len(calls) % 4:
            ffi.errno = errno.ETOOMANYREFS
            return -1
        return real(*args)

    monkeypatch.setattr(module, name, full)
    with pair(SEQPACKET) as (a, b), alarm(20):
        assert 1 == fdpass.send_messages(a, [(b"x", [0])])
        a.settimeout(5)
        assert 1 == fdpass.send_messages(a, [(b"x", [0])])
        a.settimeout(0)
        with pytest.raises(OSError) as caught:
            fdpass.send_messages(a, [(b"x", [0])])
        assert errno.ETOOMANYREFS == caught.value.errno
        close(fdpass.recv_messages(b, 10, 10, 1))


# Receiving what is not as it should be


@pytest.mark.parametrize(
    ("args", "error"),
    [
        ((1, -1, 1), ValueError),
        ((1, 1, -1), ValueError),
        (("1", 1, 1), TypeError),
        ((1, "1", 1), TypeError),
        ((1, 1, 1, 1 << 31), OverflowError),
    ],
)
def test_wrong_arguments(fdpass, way, args, error):
    """They are refused, and what waits is still there."""
    with pair(SEQPACKET) as (a, b):
        a.send(b"x")
        with pytest.raises(error):
            fdpass.recv_messages(b, *args)
        assert b"x" == b.recv(1, socket.MSG_DONTWAIT)


@needs_mmsg
def test_malformed_control_data_is_warned_about_and_closed(fdpass, monkeypatch):
    """An item that claims more than there is: the warning of `socket`; as an error it leaves nothing open."""
    real, ffi = fdpass.recvmmsg.lib_recvmmsg, fdpass._backend.ffi

    def broken(fd, vec, n, flags, timeout):
        got = real(fd, vec, n, flags, timeout)
        item = ffi.cast(f"{fdpass._backend.CMSGHDR} *", vec[0].msg_hdr.msg_control)
        item.cmsg_len += 1000
        return got

    with pair(SEQPACKET) as (a, b), descriptors(2) as fds:
        monkeypatch.setattr(fdpass.recvmmsg, "lib_recvmmsg", broken)
        before = open_numbers()
        fdpass.send_messages(a, [(b"1", fds), (b"2", fds)])
        with pytest.raises(RuntimeWarning, match="malformed"):
            fdpass.recv_messages(b, 5, 10, 2)
        assert before == open_numbers()
        monkeypatch.undo()


def test_an_honest_message_follows(fdpass, way):
    """After a batch with truncated messages the next batch is whole."""
    with pair(SEQPACKET) as (a, b), descriptors(3) as fds:
        a.sendmsg([b"too many"], rights(fds))
        with pytest.raises(fdpass.TruncatedError):
            fdpass.recv_messages(b, 5, 100, 1)
        fdpass.send_messages(a, [(b"honest", fds[:1])] * 2)
        messages = fdpass.recv_messages(b, 5, 100, 1)
        assert [(b"honest", 1)] * 2 == [(message.data, len(message.fds)) for message in messages]
        close(messages)

"""TruncatedError: each reason really provoked, with its figures; what came is closed, and the next message is whole."""

from __future__ import annotations

import copy
import errno
import os
import pickle
import resource
import socket

import pytest
from kernel import needs_mmsg, needs_pidfd, room_for
from support import descriptors, needs_real_kernel, open_numbers, pair, rights

DGRAMS = [socket.SOCK_DGRAM, socket.SOCK_SEQPACKET]


def one(fdpass, sock, bufsize, maxfds):
    return fdpass.recv_message(sock, bufsize, maxfds)


def batch(fdpass, sock, bufsize, maxfds):
    (message,) = fdpass.recv_messages(sock, 3, bufsize, maxfds)
    return message


def loop(fdpass, sock, bufsize, maxfds):
    (message,) = fdpass.recvmmsg.recv_one_by_one(sock, sock.fileno(), 3, bufsize, maxfds, 0)
    return message


@pytest.fixture(params=[one, pytest.param(batch, marks=needs_mmsg), loop], ids=["one", "batch", "loop"])
def receive(request, fdpass):
    """Each way to receive one message."""
    return lambda *args: request.param(fdpass, *args)


def lost(fdpass, receive, *args):
    """The error of a receive, after which nothing is open that was not before."""
    before = open_numbers()
    with pytest.raises(fdpass.TruncatedError) as caught:
        receive(*args)
    assert before == open_numbers()
    assert errno.EMSGSIZE == caught.value.errno
    assert [] == caught.value.messages
    return caught.value


def is_whole(receive, a, b) -> bool:
    """Whether an honest message arrives."""
    with descriptors(2) as sent:
        a.sendmsg([b"honest"], rights(sent))
        with receive(b, 100, 2) as message:
            return (b"honest", 2) == (message.data, len(message.fds))


@pytest.mark.parametrize(("sent", "most"), [(1, 0), (2, 1), (3, 1), (4, 3), (253, 1), (253, 252)])
def test_more_descriptors_than_asked_for(fdpass, receive, sent, most):
    """`maxfds`: the figures are how many came and how many were asked for; odd and even, where buffers round."""
    with pair() as (a, b), descriptors(sent) as fds:
        a.sendmsg([b"data"], rights(fds))
        error = lost(fdpass, receive, b, 10, most)
        assert ("maxfds", b"data", most) == (error.reason, error.data, error.maxfds)
        assert most < error.received <= sent
        assert (None, None) == (error.limit, error.open)
        assert f"{error.received} descriptors or more" in str(error)
        assert f"maxfds is {most}" in str(error)
        assert is_whole(receive, a, b)


@pytest.mark.parametrize("room", [0, 1, 4])
def test_a_full_table(fdpass, receive, room):
    """`table-full`: the limit and the number of open descriptors, those that came among them, as they are."""
    with pair() as (a, b), descriptors(6) as fds:
        a.sendmsg([b"data"], rights(fds))
        with room_for(room):
            opened = len(open_numbers()) if room else None
            error = lost_when_full(fdpass, receive, b)
            limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
            if room:
                assert len(open_numbers()) == opened
        assert ("table-full", b"data", limit, room) == (error.reason, error.data, error.limit, error.received)
        if opened is not None:
            assert opened + room == error.open
        assert error.open > 50
        assert f"RLIMIT_NOFILE is {limit}, {error.open} are open" in str(error)
        assert is_whole(receive, a, b)


def lost_when_full(fdpass, receive, sock):
    """As `lost`, with no descriptor to look at the table by."""
    with pytest.raises(fdpass.TruncatedError) as caught:
        receive(sock, 10, 6)
    return caught.value


@needs_pidfd
def test_a_pidfd_that_found_no_room(fdpass, receive):
    """A kernel that cannot make the pidfd writes -EMFILE in its place: that is a loss, and no descriptor -24."""
    with pair() as (a, b):
        fdpass.pass_pidfd(b)
        a.send(b"data")
        with room_for(0):
            error = lost_when_full(fdpass, receive, b)
        assert ("table-full", b"data") == (error.reason, error.data)
        a.send(b"data")
        with receive(b, 10, 0) as message:
            assert message.pidfd.fileno() >= 0


@needs_pidfd
def test_descriptors_fit_and_the_pidfd_does_not(fdpass, receive):
    """The descriptors that came beside it are closed."""
    with pair() as (a, b), descriptors(2) as fds:
        fdpass.pass_pidfd(b)
        a.sendmsg([b"data"], rights(fds))
        with room_for(2):
            before = len(open_numbers())
            error = lost_when_full(fdpass, receive, b)
            assert before == len(open_numbers())
        assert ("table-full", b"data", 2) == (error.reason, error.data, error.received)


@pytest.mark.parametrize("kind", DGRAMS)
def test_a_datagram_that_is_too_long(fdpass, receive, kind):
    """`data`: its beginning is in `.data`; the descriptors that came with it are counted and closed."""
    with pair(kind) as (a, b), descriptors(2) as fds:
        a.sendmsg([b"long message"], rights(fds))
        error = lost(fdpass, receive, b, 4, 2)
        assert ("data", b"long", 2, 2) == (error.reason, error.data, error.received, error.maxfds)
        assert "bufsize" in str(error)
        assert is_whole(receive, a, b)


@pytest.mark.parametrize("kind", DGRAMS)
def test_too_many_descriptors_and_too_much_data(fdpass, receive, kind):
    """Of two losses none is silent: the reason is that of the descriptors, the text and `.flags` tell of the data."""
    with pair(kind) as (a, b), descriptors(3) as fds:
        a.sendmsg([b"long message"], rights(fds))
        error = lost(fdpass, receive, b, 4, 1)
        assert ("maxfds", b"long", 1) == (error.reason, error.data, error.maxfds)
        assert error.flags & socket.MSG_TRUNC
        assert "the datagram is longer than bufsize" in str(error)
        a.sendmsg([b"all"], rights(fds))
        error = lost(fdpass, receive, b, 4, 1)
        assert ("maxfds", b"all", 0) == (error.reason, error.data, error.flags & socket.MSG_TRUNC)
        assert "bufsize" not in str(error)


@pytest.mark.parametrize("kind", DGRAMS)
def test_a_full_table_and_too_much_data(fdpass, receive, kind):
    """The same where the table is full."""
    with pair(kind) as (a, b), descriptors(6) as fds:
        a.sendmsg([b"some long data"], rights(fds))
        with room_for(1):
            error = lost_when_full(fdpass, receive, b)
        assert ("table-full", b"some long ") == (error.reason, error.data)
        assert socket.MSG_TRUNC | socket.MSG_CTRUNC == error.flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC)
        assert "the datagram is longer than bufsize" in str(error)


@needs_real_kernel
def test_a_control_buffer_that_is_too_small(fdpass, monkeypatch):
    """`control-buffer`: with room for two descriptors by the kernel's count, the third is lost, for that reason."""
    with pair() as (a, b), descriptors(5) as fds:
        a.sendmsg([b"data"], rights(fds))
        with monkeypatch.context() as patch:
            for module in (fdpass.message, fdpass._receive):
                patch.setattr(module, "CONTROL_ROOM", fdpass.CMSG_SPACE(8))
            error = lost(fdpass, fdpass.recv_message, b, 10, 5)
        assert ("control-buffer", b"data", 2) == (error.reason, error.data, error.received)
        assert "buffer" in str(error)
        assert (None, None) == (error.limit, error.open)


@needs_real_kernel
@needs_mmsg
def test_a_control_buffer_of_a_batch_that_is_too_small(fdpass, monkeypatch):
    """The same with recvmmsg."""
    with pair() as (a, b), descriptors(5) as fds:
        a.sendmsg([b"data"], rights(fds))
        with monkeypatch.context() as patch:
            patch.setattr(fdpass.recvmmsg, "CONTROL_ROOM", fdpass.CMSG_SPACE(8))
            error = lost(fdpass, fdpass.recv_messages, b, 2, 10, 5)
        assert ("control-buffer", b"data", 2) == (error.reason, error.data, error.received)
        fdpass.recvmmsg._pool.clear()


def test_what_cannot_be_known_is_said_to_be_unknown(fdpass, monkeypatch):
    """`unknown`: the kernel reports a loss, there is room in the table and in the buffer, and no reason is made up."""
    real = fdpass._receive.lib_recvmsg

    def lossy(fd, msg, flags):
        got = real(fd, msg, flags)
        msg.msg_flags |= socket.MSG_CTRUNC
        return got

    with pair() as (a, b), descriptors(1) as fds:
        a.sendmsg([b"data"], rights(fds))
        with monkeypatch.context() as patch:
            patch.setattr(fdpass.message, "lib_recvmsg", lossy)
            error = lost(fdpass, fdpass.recv_message, b, 10, 5)
        assert ("unknown", b"data", 1) == (error.reason, error.data, error.received)
        assert "does not say why" in str(error)
        assert is_whole(lambda *args: one(fdpass, *args), a, b)


def test_the_system_s_table_is_told_from_the_process_s(fdpass, monkeypatch):
    """ENFILE is "system-table-full", and no RLIMIT_NOFILE is blamed."""

    def full(*args):
        raise OSError(errno.ENFILE, os.strerror(errno.ENFILE))

    monkeypatch.setattr(fdpass._truncated.os, "open", full)
    error = fdpass._truncated.truncated(socket.MSG_CTRUNC, b"", 0, 1, 4096)
    monkeypatch.undo()
    assert "system-table-full" == error.reason
    assert "RLIMIT" not in str(error)
    assert error.open is None


@pytest.mark.parametrize("without", [0, 1, 2])
def test_the_open_descriptors_are_counted_in_three_ways(fdpass, monkeypatch, without):
    """By the size of /proc/self/fd, by its listing, or by asking for each; and None where there are too many."""
    count = fdpass._truncated.open_descriptors
    expected = len(open_numbers())

    def missing(path):
        raise FileNotFoundError(errno.ENOENT, path)

    class Unknown:
        st_size = 0

    if without:
        monkeypatch.setattr(fdpass._truncated.os, "stat", lambda _: Unknown)
    if without == 2:
        monkeypatch.setattr(fdpass._truncated.os, "listdir", missing)
    counted = count(4096), count(-1) if without == 2 else None
    monkeypatch.undo()
    assert (expected, None) == counted


def test_a_batch_keeps_the_whole_messages(fdpass):
    """`.messages` has the others of the batch in order, still owned; a second truncated one as its error."""
    with pair(socket.SOCK_SEQPACKET) as (a, b), descriptors(3) as fds:
        for data, count in ((b"1", 1), (b"2", 3), (b"3", 1), (b"4", 2), (b"5", 0)):
            a.sendmsg([data], rights(fds[:count]) if count else [])
        for receive in (fdpass.recv_messages, lambda *args: loop_of(fdpass, *args)):
            before = open_numbers()
            with pytest.raises(fdpass.TruncatedError) as caught:
                receive(b, 10, 10, 1)
            error = caught.value
            assert ("maxfds", b"2") == (error.reason, error.data)
            assert [b"1", b"3", b"4", b"5"] == [item.data for item in error.messages]
            assert 2 == len(open_numbers() - before)
            first, third, fourth, fifth = error.messages
            assert (1, 1, 0) == (len(first.fds), len(third.fds), len(fifth.fds))
            assert isinstance(fourth, fdpass.TruncatedError)
            for message in (first, third, fifth):
                message.close()
            assert before == open_numbers()
            for data, count in ((b"1", 1), (b"2", 3), (b"3", 1), (b"4", 2), (b"5", 0)):
                a.sendmsg([data], rights(fds[:count]) if count else [])
        for _ in range(5):
            b.recv(10)


def loop_of(fdpass, sock, n, bufsize, maxfds):
    return fdpass.recvmmsg.recv_one_by_one(sock, sock.fileno(), n, bufsize, maxfds, 0)


def test_it_is_an_oserror_like_any_other(fdpass):
    """EMSGSIZE, its own text, and no surprise in a log."""
    error = fdpass.TruncatedError("unknown", "why")
    assert isinstance(error, OSError)
    assert (errno.EMSGSIZE, "why") == error.args


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_the_errors_survive_a_process_pool(fdpass, protocol):
    """Pickled or copied, each has its type, its errno, its text and its figures."""
    figures = {"reason": "maxfds", "data": b"data", "received": 3, "maxfds": 2, "limit": None, "open": None, "flags": 0}
    truncated = fdpass.TruncatedError("maxfds", "why", data=b"data", received=3, maxfds=2)
    broken = fdpass.ProtocolError("what was wrong")
    broken.told = 5
    refused = fdpass.LocalProtocolError("too long")
    for again in (lambda error: pickle.loads(pickle.dumps(error, protocol)), copy.copy):
        same = again(truncated)
        assert (fdpass.TruncatedError, errno.EMSGSIZE, "why") == (type(same), *same.args)
        assert {**figures, "messages": []} == vars(same)
        same = again(broken)
        assert (fdpass.ProtocolError, errno.EPROTO, "what was wrong", 5) == (type(same), *same.args, same.told)
        assert ("too long",) == again(refused).args

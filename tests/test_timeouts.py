"""Waiting: one deadline whatever signals come, retries after handlers that return, and who waits at all."""

from __future__ import annotations

import errno
import os
import signal
import socket
import threading
from functools import partial

import pytest
from support import (
    Alarm,
    alarm,
    close,
    close_new,
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

DONTWAIT = socket.MSG_DONTWAIT
RECEIVE = {
    "recvmsg": lambda m, sock, flags=0: m.recvmsg(sock, 10, 100, flags),
    "recvmsg_into": lambda m, sock, flags=0: m.recvmsg_into(sock, [bytearray(10)], 100, flags),
    "recv_fds": lambda m, sock, flags=0: m.recv_fds(sock, 10, 1, flags),
}
SEND = {
    "sendmsg": lambda m, sock, flags=0: m.sendmsg(sock, [b"x" * 10], [], flags),
    "send_fds": lambda m, sock, flags=0: m.send_fds(sock, [b"x" * 10], [0], flags),
}
both = pytest.mark.parametrize("name", [*RECEIVE, *SEND])
receiving = pytest.mark.parametrize("name", RECEIVE)
sending = pytest.mark.parametrize("name", SEND)


def blocked(fdpass, name, a, b):
    """(the socket, a call on it of `flags` that would block)."""
    if name in RECEIVE:
        return b, partial(RECEIVE[name], fdpass)
    fill(a)
    return a, partial(SEND[name], fdpass)


class Wrapper:
    """As asyncio's TransportSocket: fileno(), and nothing else that is looked at."""

    def __init__(self, sock) -> None:
        self.fileno = sock.fileno


# Who waits


@both
def test_a_timeout_ends_the_wait(fdpass, name):
    """A socket with a timeout raises what can be caught as TimeoutError and as socket.timeout, with its errno."""
    with pair() as (a, b), alarm(20):
        sock, call = blocked(fdpass, name, a, b)
        sock.settimeout(0.02)
        with pytest.raises(socket.timeout, match="timed out") as caught:
            call(sock)
    assert isinstance(caught.value, TimeoutError)
    assert errno.ETIMEDOUT == caught.value.errno


@both
def test_a_timeout_of_zero_does_not_wait(fdpass, name):
    """A non-blocking socket raises BlockingIOError."""
    with pair() as (a, b), alarm(20):
        sock, call = blocked(fdpass, name, a, b)
        sock.settimeout(0)
        with pytest.raises(BlockingIOError) as caught:
            call(sock)
    assert errno.EAGAIN == caught.value.errno


@both
@pytest.mark.parametrize("timeout", [None, 1000, 0], ids=["blocking", "timeout", "non-blocking"])
def test_msg_dontwait_does_not_wait(fdpass, name, timeout):
    """MSG_DONTWAIT is BlockingIOError whatever the socket's timeout; socket would wait where there is one."""
    with pair() as (a, b), alarm(20):
        sock, call = blocked(fdpass, name, a, b)
        sock.settimeout(timeout)
        with pytest.raises(BlockingIOError):
            call(sock, DONTWAIT)


@both
@pytest.mark.parametrize("shape", [socket.socket.fileno, Wrapper], ids=["int", "object"])
def test_only_a_socket_has_a_timeout(fdpass, name, shape):
    """Of an int or another object nothing is known: the kernel's EAGAIN is BlockingIOError."""
    with pair() as (a, b), alarm(20):
        sock, call = blocked(fdpass, name, a, b)
        sock.settimeout(1000)  # for the kernel: O_NONBLOCK
        with pytest.raises(BlockingIOError):
            call(shape(sock))


@both
@pytest.mark.parametrize("shape", [socket.socket.fileno, Wrapper], ids=["int", "object"])
def test_a_blocking_descriptor_blocks(fdpass, name, shape):
    """An int or another object whose descriptor blocks: the call goes on when the other side has acted."""
    with pair() as (a, b):
        sock, call = blocked(fdpass, name, a, b)
        acts = []

        def act():
            acts.append(drain(b) if sock is a else a.send(b"data"))

        with on_alarm(act, 0.02):
            call(shape(sock))
        assert 1 == len(acts)


@receiving
@pytest.mark.parametrize("timeout", [None, 1000], ids=["blocking", "timeout"])
def test_end_of_file_and_data_need_no_wait(fdpass, name, timeout):
    """What is there is taken at once, and the end of the stream is no wait either."""
    with pair() as (a, b), alarm(20):
        b.settimeout(timeout)
        a.send(b"data")
        a.close()
        assert {"recvmsg": b"data", "recvmsg_into": 4, "recv_fds": b"data"}[name] == RECEIVE[name](fdpass, b)[0]
        assert not RECEIVE[name](fdpass, b)[0]


@receiving
def test_a_timeout_waits_for_data_and_descriptors(fdpass, name):
    """What comes while a socket with a timeout waits is received, descriptors too."""
    with pair() as (a, b), descriptors(1) as sent:
        b.settimeout(20)
        with on_alarm(lambda: a.sendmsg([b"data"], rights(sent)), 0.02):
            result = RECEIVE[name](fdpass, b)
        fds = result[1] if name == "recv_fds" else fds_in(result[1])
        assert identities(sent) == identities(fds)
        close(fds)


@sending
def test_a_timeout_waits_for_room(fdpass, name):
    """A send on a full socket with a timeout goes out when the peer has read, once."""
    with pair() as (a, b):
        fill(a)
        a.settimeout(20)
        drained = []
        with on_alarm(lambda: drained.append(drain(b)), 0.02):
            assert 10 == SEND[name](fdpass, a)
        assert (1, b"x" * 10) == (len(drained), drain(b))


def test_a_partial_send_is_not_waited_for(fdpass):
    """What fits goes out and its number comes back, on a blocking socket the whole, on one with a timeout a part."""
    with pair() as (a, b):
        a.settimeout(20)
        with alarm(20):
            count = fdpass.sendmsg(a, [bytes(5_000_000)])
        assert 0 < count < 5_000_000
        assert count == len(drain(b))
        a.settimeout(None)
        got = []
        reader = threading.Thread(target=lambda: [got.append(len(data)) for data in iter(lambda: b.recv(1 << 20), b"")])
        reader.start()
        assert 5_000_000 == fdpass.sendmsg(a, [bytes(5_000_000)])
        a.close()
        reader.join()
        assert 5_000_000 == sum(got)


def test_a_connect_error_comes_out_of_a_wait(fdpass):
    """An error that ends the wait is the call's: a peer that resets the connection is no timeout."""
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as a:
        b, _ = server.accept()
        a.settimeout(20)
        b.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        with on_alarm(b.close, 0.02), pytest.raises(ConnectionResetError):
            fdpass.recvmsg(a, 10)


# Signals


@both
def test_signals_do_not_move_the_deadline(fdpass, name):
    """A handler that returns every few milliseconds neither ends the wait nor makes it longer."""
    with pair() as (a, b):
        sock, call = blocked(fdpass, name, a, b)
        sock.settimeout(0.2)
        rung = []

        def ring():
            rung.append(1)
            if len(rung) > 2000:  # ten seconds
                raise Alarm

        with on_alarm(ring, 0.005, 0.005), pytest.raises(socket.timeout):
            call(sock)
    assert len(rung) > 1


@both
@pytest.mark.parametrize("timeout", [None, 20], ids=["blocking", "timeout"])
def test_a_handler_that_returns_does_not_end_the_call(fdpass, name, timeout):
    """PEP 475: the call is tried again until the other side has acted, here in the handler's tenth run."""
    with pair() as (a, b):
        sock, call = blocked(fdpass, name, a, b)
        sock.settimeout(timeout)
        rung = []

        def ring():
            rung.append(1)
            if len(rung) == 10:
                drain(b) if sock is a else a.send(b"data")

        with on_alarm(ring, 0.003, 0.003):
            result = call(sock)
        assert len(rung) >= 10
        assert 10 == result if sock is a else result[0] in (b"data", 4)


@both
@pytest.mark.parametrize("timeout", [None, 20], ids=["blocking", "timeout"])
def test_a_handler_that_raises_ends_the_call(fdpass, name, timeout):
    """What a signal handler raises comes out of the call, and nothing was sent or taken."""
    with pair() as (a, b):
        sock, call = blocked(fdpass, name, a, b)
        sock.settimeout(timeout)
        full = len(drain(b)) if sock is a else 0
        if sock is a:
            sock, call = blocked(fdpass, name, a, b)
            sock.settimeout(timeout)
        before = open_numbers()
        with pytest.raises(Alarm), alarm(0.02):
            call(sock)
        assert before == open_numbers()
        assert full == len(drain(b))


@receiving
def test_a_storm_of_signals_loses_no_message(fdpass, name):
    """Under a signal every millisecond each of 300 messages arrives once, in order, with its descriptor."""
    before = open_numbers()
    with pair() as (a, b):
        b.settimeout(20)
        sender = threading.Thread(target=lambda: [a.sendmsg([b"%9d" % i], rights([0])) for i in range(300)])
        with on_alarm(lambda: None, 0.001, 0.001):
            sender.start()
            for i in range(300):
                buffer = bytearray(9)
                if name == "recvmsg":
                    data, ancdata, _, _ = fdpass.recvmsg(b, 9, 100)
                elif name == "recvmsg_into":
                    _, ancdata, _, _ = fdpass.recvmsg_into(b, [buffer], 100)
                    data = buffer
                else:
                    data, fds, _, _ = fdpass.recv_fds(b, 9, 1)
                    ancdata = rights(fds)
                close(fds_in(ancdata))
                assert (i, 1) == (int(data), len(fds_in(ancdata)))
            sender.join()
    assert [] == close_new(before)


@sending
def test_signals_while_sending_lose_and_repeat_nothing(fdpass, name):
    """Under a signal every millisecond a slow reader gets every byte once."""
    total, got = 300, []
    with pair() as (a, b):
        a.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)

        def read():
            while len(b"".join(got)) < 1000 * total:
                got.append(b.recv(3000))

        reader = threading.Thread(target=read)
        with on_alarm(lambda: None, 0.001, 0.001):
            reader.start()
            for i in range(total):
                data = b"%01000d" % i
                while data:
                    sent = fdpass.sendmsg(a, [data]) if name == "sendmsg" else fdpass.send_fds(a, [data], [0])
                    data = data[sent:]
            reader.join()
    assert b"".join(b"%01000d" % i for i in range(total)) == b"".join(got)


def test_a_signal_in_another_thread_is_harmless(fdpass):
    """A thread that waits in recvmsg is interrupted by a signal it has no handler for, and waits on."""
    with pair() as (a, b):
        b.settimeout(20)
        results = []
        thread = threading.Thread(target=lambda: results.append(fdpass.recvmsg(b, 10)))
        old = signal.signal(signal.SIGUSR1, lambda *_: None)
        try:
            thread.start()
            for _ in range(20):
                signal.pthread_kill(thread.ident, signal.SIGUSR1)
                os.sched_yield()
            a.send(b"data")
            thread.join()
        finally:
            signal.signal(signal.SIGUSR1, old)
    assert [(b"data", [], 0, None)] == results

"""Waiting: one deadline whatever signals come, retries after handlers that return, and who waits at all."""

from __future__ import annotations

import errno
import os
import pickle
import signal
import socket
import struct
import threading
from functools import partial

import pytest
from support import (
    Alarm,
    Wrapper,
    alarm,
    close,
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
TEXT = b"ten bytes "
RECEIVE = {
    "recvmsg": lambda m, sock, flags=0: m.recvmsg(sock, 10, 100, flags),
    "recvmsg_into": lambda m, sock, flags=0: into(m, sock, flags),
    "recvmsg_into-plain": lambda m, sock, flags=0: into(m, sock, flags, 0),  # where CPython's own method is called
    "recv_fds": lambda m, sock, flags=0: m.recv_fds(sock, 10, 1, flags),
    "recv_message": lambda m, sock, flags=0: m.recv_message(sock, 10, 1, flags),
    "recv_messages": lambda m, sock, flags=0: m.recv_messages(sock, 1, 10, 1, flags)[0],
}
SEND = {
    "sendmsg": lambda m, sock, flags=0: m.sendmsg(sock, [TEXT], [], flags),
    "send_fds": lambda m, sock, flags=0: m.send_fds(sock, [TEXT], [0], flags),
    "sendall_fds": lambda m, sock, flags=0: m.sendall_fds(sock, TEXT, [0], flags),
    "send_messages": lambda m, sock, flags=0: m.send_messages(sock, [(TEXT, [0])], flags),
}
both = pytest.mark.parametrize("name", [*RECEIVE, *SEND])
receiving = pytest.mark.parametrize("name", [name for name in RECEIVE if name != "recvmsg_into-plain"])  # descriptors
sending = pytest.mark.parametrize("name", SEND)


def into(module, sock, flags, room=100):
    buffer = bytearray(10)
    count, *rest = module.recvmsg_into(sock, [buffer], room, flags)
    return (bytes(buffer[:count]), *rest)


def taken(result) -> tuple[bytes, list[tuple[int, int]]]:
    """The data and what the descriptors refer to, of what any receive returned; they are closed."""
    if hasattr(result, "data"):
        data, fds = result.data, [owned.detach() for owned in result.fds]
    else:
        data, fds = result[:2]
        fds = [item if isinstance(item, int) else fds_in([item])[0] for item in fds]
    inodes = identities(fds)
    close(fds)
    return data, inodes


def blocked(fdpass, name, a, b):
    """(the socket, a call on it of `flags` that would block)."""
    if name in RECEIVE:
        return b, partial(RECEIVE[name], fdpass)
    fill(a)
    return a, partial(SEND[name], fdpass)


# Who waits


@both
def test_a_timeout_ends_the_wait(fdpass, name):
    """A socket with a timeout raises a TimeoutError that is a socket.timeout, has its errno, and can be pickled."""
    with pair() as (a, b), alarm(20):
        sock, call = blocked(fdpass, name, a, b)
        for timeout in (1e-6, 0.02):
            sock.settimeout(timeout)
            with pytest.raises(socket.timeout, match="timed out") as caught:
                call(sock)
            assert isinstance(caught.value, TimeoutError)
            assert errno.ETIMEDOUT == caught.value.errno
            again = pickle.loads(pickle.dumps(caught.value))
            assert (type(caught.value), errno.ETIMEDOUT) == (type(again), again.errno)


def test_a_timeout_is_not_waited_out_twice(fdpass, monkeypatch):
    """Where CPython's own method has waited, this package does not do so again; elsewhere it waits once."""
    waits = []
    wait = fdpass._sock.wait
    monkeypatch.setattr(fdpass._sock, "wait", lambda *args: waits.append(args) or wait(*args))
    with pair() as (_, b), alarm(20):
        b.settimeout(0.01)
        with pytest.raises(TimeoutError):
            fdpass.recvmsg_into(b, [bytearray(10)])
    assert (0 if fdpass.msg.NATIVE == 0 else 1) == len(waits)


@both
def test_where_nobody_waits_there_is_blocking_io_error(fdpass, name):
    """A non-blocking socket, and an int or another object whose descriptor does not block: EAGAIN at once."""
    with pair() as (a, b), alarm(20):
        sock, call = blocked(fdpass, name, a, b)
        sock.settimeout(0)
        for given in (sock, sock.fileno(), Wrapper(sock)):
            with pytest.raises(BlockingIOError) as caught:
                call(given)
            assert errno.EAGAIN == caught.value.errno


@both
def test_msg_dontwait_does_not_wait(fdpass, name):
    """MSG_DONTWAIT is BlockingIOError whatever the socket's timeout; socket would wait where there is one."""
    with pair() as (a, b), alarm(20):
        sock, call = blocked(fdpass, name, a, b)
        for timeout in (None, 1000, 0):
            sock.settimeout(timeout)
            with pytest.raises(BlockingIOError):
                call(sock, DONTWAIT)


@both
def test_only_a_socket_has_a_timeout(fdpass, name):
    """Of an int or another object nothing is known: the kernel's EAGAIN is BlockingIOError."""
    with pair() as (a, b), alarm(20):
        sock, call = blocked(fdpass, name, a, b)
        sock.settimeout(1000)  # for the kernel: O_NONBLOCK
        for given in (sock.fileno(), Wrapper(sock)):
            with pytest.raises(BlockingIOError):
                call(given)


@both
def test_a_blocking_descriptor_blocks(fdpass, name):
    """An int or another object whose descriptor blocks: the call goes on when the other side has acted."""
    for shape in (socket.socket.fileno, Wrapper):
        with pair() as (a, b):
            sock, call = blocked(fdpass, name, a, b)
            acts = []

            def act():
                acts.append(drain(b) if sock is a else a.send(b"data"))  # noqa: B023

            with on_alarm(act, 0.02):
                result = call(shape(sock))
            assert 1 == len(acts)
            assert (b"data", []) == taken(result) if sock is b else TEXT == drain(b)


@receiving
def test_what_is_there_needs_no_wait(fdpass, name):
    """Data is taken at once, with a timeout of a nanosecond too, and the end of the stream is no wait either."""
    for timeout in (None, 1000, 1e-9):
        with pair() as (a, b), alarm(20):
            b.settimeout(timeout)
            a.send(b"data")
            assert (b"data", []) == taken(RECEIVE[name](fdpass, b))
            a.close()
            assert (b"", []) == taken(RECEIVE[name](fdpass, b))


@receiving
def test_a_timeout_waits_for_data_and_descriptors(fdpass, name):
    """What comes while a socket with a timeout waits is received, descriptors too."""
    with pair() as (a, b), descriptors(1) as sent:
        b.settimeout(20)
        with on_alarm(lambda: a.sendmsg([b"data"], rights(sent)), 0.02):
            result = RECEIVE[name](fdpass, b)
        assert (b"data", identities(sent)) == taken(result)


@sending
def test_a_timeout_waits_for_room(fdpass, name):
    """A send on a full socket with a timeout goes out when the peer has read, once."""
    with pair() as (a, b):
        fill(a)
        a.settimeout(20)
        drained = []
        with on_alarm(lambda: drained.append(drain(b)), 0.02):
            SEND[name](fdpass, a)
        assert (1, TEXT) == (len(drained), drain(b))


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


def test_an_error_ends_a_wait(fdpass):
    """A peer that resets the connection while the call waits is ConnectionResetError, no timeout."""
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as a:
        b, _ = server.accept()
        a.settimeout(20)
        b.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        with on_alarm(b.close, 0.02), pytest.raises(ConnectionResetError):
            fdpass.recvmsg(a, 10)


# Signals


@both
def test_signals_do_not_move_the_deadline(fdpass, name):
    """A handler that returns every few milliseconds neither ends the wait nor makes it longer."""
    with pair() as (a, b):
        sock, call = blocked(fdpass, name, a, b)
        sock.settimeout(0.1)
        rung = []

        def ring():
            rung.append(1)
            if len(rung) > 2000:  # ten seconds
                raise Alarm

        with on_alarm(ring, 0.005, 0.005), pytest.raises(socket.timeout):
            call(sock)
    assert len(rung) > 1


@both
def test_a_handler_that_returns_does_not_end_the_call(fdpass, name):
    """PEP 475: the call is tried again until the other side has acted, here in the handler's tenth run."""
    for timeout in (None, 20):
        with pair() as (a, b):
            sock, call = blocked(fdpass, name, a, b)
            sock.settimeout(timeout)
            rung = []

            def ring():
                rung.append(1)  # noqa: B023
                if len(rung) == 10 and sock is a:  # noqa: B023
                    drain(b)
                elif len(rung) == 10:  # noqa: B023 - two statements: of a conditional one PyPy 3.11 runs both branches
                    a.send(b"data")

            with on_alarm(ring, 0.003, 0.003):
                result = call(sock)
            assert len(rung) >= 10
            assert (b"data", []) == taken(result) if sock is b else TEXT == drain(b)


@both
def test_a_handler_that_raises_ends_the_call(fdpass, name):
    """What a signal handler raises comes out of the call, and nothing was sent or taken."""
    for timeout in (None, 20):
        with pair() as (a, b):
            blocked(fdpass, name, a, b)
            full = len(drain(b))
            sock, call = blocked(fdpass, name, a, b)
            sock.settimeout(timeout)
            before = open_numbers()
            with pytest.raises(Alarm), alarm(0.02):
                call(sock)
            assert before == open_numbers()
            assert full == len(drain(b))


@receiving
def test_a_storm_of_signals_loses_no_message(fdpass, name):
    """Under a signal every millisecond each of 200 messages arrives once, in order, with its descriptor."""
    with pair() as (a, b), descriptors(1) as sent:
        b.settimeout(20)
        sender = threading.Thread(target=lambda: [a.sendmsg([b"%10d" % i], rights(sent)) for i in range(200)])
        with on_alarm(lambda: None, 0.001, 0.001):
            sender.start()
            for i in range(200):
                assert (b"%10d" % i, identities(sent)) == taken(RECEIVE[name](fdpass, b))
            sender.join()


@sending
def test_signals_while_sending_lose_and_repeat_nothing(fdpass, name):
    """Under a signal every millisecond a slow reader gets every byte once."""
    texts = [b"%0800d" % i for i in range(200)]
    send = {
        "sendmsg": lambda sock, data: fdpass.sendmsg(sock, [data]),
        "send_fds": lambda sock, data: fdpass.send_fds(sock, [data], [0]),
        "sendall_fds": lambda sock, data: fdpass.sendall_fds(sock, data, [0]) or len(data),
        "send_messages": lambda sock, data: fdpass.send_messages(sock, [(data, [0])]) * len(data),
    }[name]
    with pair() as (a, b):
        a.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
        got = []
        reader = threading.Thread(target=lambda: got.extend(iter(lambda: b.recv(700), b"")))
        with on_alarm(lambda: None, 0.001, 0.001):
            reader.start()
            for text in texts:
                data = text
                while data:
                    data = data[send(a, data) :]
            a.close()
            reader.join()
    assert b"".join(texts) == b"".join(got)


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

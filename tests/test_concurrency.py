"""Threads, signal handlers and forks at once, with no lock: every descriptor arrives where it belongs, by its inode."""

from __future__ import annotations

import errno
import os
import queue
import random
import signal
import socket
import sys
import threading
import warnings
from functools import partial

import pytest
from support import (
    GIL,
    PYPY,
    STRIDE,
    close,
    descriptors,
    drain,
    fds_in,
    fill,
    identities,
    on_alarm,
    pair,
    rights,
)
from test_sweep import Tracer

THREADS = 8


def round_trip(fdpass, a, b, sent, tag: bytes) -> None:
    """One message over (a, b) in one of the ways there are; what arrives is what was sent."""
    way = random.randrange(6)
    if way < 2:
        assert len(tag) == fdpass.send_fds(a, [tag], sent)
    elif way < 4:
        assert len(tag) == fdpass.sendmsg(a, [tag], rights(sent))
    elif way == 4:
        fdpass.sendall_fds(a, tag, sent)
    else:
        assert 1 == fdpass.send_messages(a, [(tag, sent)])
    if way == 0:
        buffer = bytearray(100)
        size, ancdata, flags, _ = fdpass.recvmsg_into(b, [buffer], 2000)
        data, fds = bytes(buffer[:size]), fds_in(ancdata)
    elif way == 1:
        data, fds, flags, _ = fdpass.recv_fds(b, 100, len(sent))
    elif way < 4:
        data, ancdata, flags, _ = fdpass.recvmsg(b, 100, 2000)
        fds = fds_in(ancdata)
    else:
        message = fdpass.recv_message(b, 100, 3) if way == 4 else fdpass.recv_messages(b, 1, 100, 3)[0]
        data, fds, flags = message.data, [owned.detach() for owned in message.fds], message.flags
    try:
        assert (tag, identities(sent), 0) == (data, identities(fds), flags)
    finally:
        close(fds)


def in_threads(*targets) -> None:
    """Run each target in a thread of its own; the first exception of any comes out."""
    raised = queue.SimpleQueue()

    def guarded(target):
        try:
            target()
        except BaseException as error:  # noqa: BLE001
            raised.put(error)

    threads = [threading.Thread(target=guarded, args=(target,)) for target in targets]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if not raised.empty():
        raise raised.get()


@pytest.fixture
def frequent_switches():
    """Threads take turns as often as the interpreter lets them."""
    old = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(old)


# Where threads take turns, a tenth as many meet in as many ways.
@pytest.mark.parametrize("count", [1200, pytest.param(100_000 if GIL else 1_000_000, marks=pytest.mark.slow)])
def test_threads_with_sockets_of_their_own(fdpass, frequent_switches, count):
    """Eight threads share the pooled memory for a number of transfers, and each gets its own descriptors from each."""
    done = queue.SimpleQueue()
    with descriptors(THREADS * 3) as sent:

        def work(number):
            own = sent[number * 3 : number * 3 + 3]
            with pair() as (a, b):
                for i in range(count // THREADS):
                    round_trip(fdpass, a, b, own[: i % 3 + 1], b"%d of %d" % (i, number))
            done.put(i + 1)

        in_threads(*(partial(work, number) for number in range(THREADS)))
        assert count == sum(done.get() for _ in range(THREADS))


def test_threads_that_share_a_socket(fdpass, frequent_switches):
    """Four senders and four receivers on one datagram socket: each message arrives once, with its own descriptors."""
    count, got = 100, queue.SimpleQueue()
    with pair(socket.SOCK_DGRAM) as (a, b), descriptors(THREADS) as sent:
        a.settimeout(60)
        b.settimeout(60)

        def send(number):
            for i in range(count):
                fdpass.send_fds(a, [b"%d %d" % (number, i)], sent[number : number + 1 + i % 3])

        def receive():
            for _ in range(count):
                data, fds, _, _ = fdpass.recv_fds(b, 100, 5)
                got.put((data, identities(fds)))
                close(fds)

        in_threads(*(partial(send, number) for number in range(4)), *[receive] * 4)
        expected = {
            b"%d %d" % (number, i): identities(sent[number : number + 1 + i % 3])
            for number in range(4)
            for i in range(count)
        }
        received = dict(got.get() for _ in range(4 * count))
    assert expected == received
    assert got.empty()


def test_threads_that_fail_hear_of_their_own_failure(fdpass, frequent_switches):
    """Each of eight threads meets one error again and again: none hears of another's errno."""
    with pair() as (full, _), pair() as (_, empty), socket.socket() as lone, pair() as (alive, dead), pair() as (a, b):
        fill(full)
        for sock in (full, empty):
            sock.setblocking(False)
        dead.close()
        shut = os.dup(0)
        os.close(shut)
        failures = [
            (lambda: fdpass.sendmsg(full, [b"x"]), errno.EAGAIN),
            (lambda: fdpass.recvmsg(empty, 1), errno.EAGAIN),
            (lambda: fdpass.recv_fds(lone, 1, 1), errno.ENOTCONN),
            (lambda: fdpass.send_fds(alive, [b"x"], [0]), errno.EPIPE),
            (lambda: fdpass.sendmsg(a, [b"x"], rights([shut])), errno.EBADF),
            (lambda: fdpass.recvmsg(shut, 1), errno.EBADF),
            (lambda: fdpass.sendmsg(a, [b"x"] * 1025), errno.EMSGSIZE),
        ]

        def work(call, expected):
            for _ in range(300):
                with pytest.raises(OSError) as caught:
                    call()
                assert expected == caught.value.errno

        in_threads(*(partial(work, *failure) for failure in failures))
        assert b"" == drain(b)


# Signal handlers that use the library


def fails(call, expected: int) -> None:
    """A call that must fail with just this errno."""
    try:
        call()
    except OSError as error:
        assert expected == error.errno  # noqa: PT017
    else:
        raise AssertionError("it did not fail")


class Handler:
    """What a signal handler may do: round trips and failures of all kinds, on sockets of its own."""

    def __init__(self, fdpass, sent) -> None:
        self.fdpass, self.sent, self.runs = fdpass, sent, 0
        self.a, self.b = socket.socketpair()
        self.full, self.full_end = socket.socketpair()
        self.alive, dead = socket.socketpair()
        self.lone = socket.socket()
        dead.close()
        fill(self.full)
        self.full.setblocking(False)
        self.b.setblocking(False)

    def close(self) -> None:
        for sock in (self.a, self.b, self.full, self.full_end, self.alive, self.lone):
            sock.close()

    def __call__(self) -> None:
        self.runs += 1
        fdpass, run = self.fdpass, self.runs
        round_trip(fdpass, self.a, self.b, self.sent, b"handler %d" % run)
        fails(lambda: fdpass.recvmsg(self.b, 10, 100), errno.EAGAIN)
        if run % 4 == 0:
            fails(lambda: fdpass.send_fds(self.alive, [b"x"], [0]), errno.EPIPE)
        elif run % 4 == 1:
            fails(lambda: fdpass.recv_fds(self.lone, 1, 1), errno.ENOTCONN)
        elif run % 4 == 2:
            fails(lambda: fdpass.sendmsg(self.full, [b"x"]), errno.EAGAIN)


@pytest.fixture
def handler(fdpass):
    with descriptors(2) as sent:
        made = Handler(fdpass, sent)
        yield made
        made.close()


def at_every_boundary(fdpass, handler, outer) -> None:
    """Run outer(n) with the handler called at its n-th bytecode boundary inside the package, for every n there is."""
    where = os.path.dirname(fdpass.__file__)
    for n in range(1, 5000, STRIDE):
        tracer = Tracer(where, n, handler)
        tracer.run(partial(outer, n))
        if tracer.seen < n:
            break
    assert handler.runs > (15 if PYPY else 60) // STRIDE


@pytest.mark.parametrize("name", ["recv_fds", "recvmsg", "recvmsg_into"])
def test_a_handler_at_any_boundary_of_a_receive(fdpass, handler, name):
    """Wherever a handler that sends, receives and fails comes in, the outer call gets its own message whole."""
    receive = {
        "recv_fds": lambda: fdpass.recv_fds(b, 100, 2),
        "recvmsg": lambda: fdpass.recvmsg(b, 100, 100),
        "recvmsg_into": lambda: fdpass.recvmsg_into(b, [buffer], 100),
    }[name]
    buffer = bytearray(100)
    with pair() as (a, b), descriptors(2) as sent:

        def outer(n):
            a.sendmsg([b"outer %d" % n], rights(sent))
            data, fds, flags, address = receive()
            if name == "recvmsg_into":
                data = bytes(buffer[:data])
            if name != "recv_fds":
                fds = fds_in(fds)
            assert (b"outer %d" % n, identities(sent), 0, None) == (data, identities(fds), flags, address)
            close(fds)

        at_every_boundary(fdpass, handler, outer)


@pytest.mark.parametrize("name", ["send_fds", "send_fds-several", "sendmsg"])
def test_a_handler_at_any_boundary_of_a_send(fdpass, handler, name):
    """Wherever a handler that sends, receives and fails comes in, the outer call sends its own message whole."""
    with pair() as (a, b), descriptors(2) as sent:
        send = {
            "send_fds": lambda data: fdpass.send_fds(a, [data], sent[:1]),
            "send_fds-several": lambda data: fdpass.send_fds(a, [data[:3], data[3:]], sent),
            "sendmsg": lambda data: fdpass.sendmsg(a, [data], rights(sent)),
        }[name]
        expected = identities(sent[:1] if name == "send_fds" else sent)

        def outer(n):
            text = b"outer %d" % n
            assert len(text) == send(text)
            data, ancdata, _, _ = b.recvmsg(100, 100)
            assert (text, expected) == (data, identities(fds_in(ancdata)))
            close(fds_in(ancdata))

        at_every_boundary(fdpass, handler, outer)


FAILING = {
    "recvmsg-EAGAIN": (lambda fdpass, _, sock: fdpass.recvmsg(sock, 10, 100), errno.EAGAIN),
    "recv_fds-EAGAIN": (lambda fdpass, _, sock: fdpass.recv_fds(sock, 10, 1), errno.EAGAIN),
    "recvmsg_into-EAGAIN": (lambda fdpass, _, sock: fdpass.recvmsg_into(sock, [bytearray(1)], 100), errno.EAGAIN),
    "recv_fds-ENOTCONN": (lambda fdpass, handler, _: fdpass.recv_fds(handler.lone, 10, 1), errno.ENOTCONN),
    "sendmsg-EPIPE": (lambda fdpass, handler, _: fdpass.sendmsg(handler.alive, [b"x"]), errno.EPIPE),
    "send_fds-EAGAIN": (lambda fdpass, handler, _: fdpass.send_fds(handler.full, [b"x"], [0]), errno.EAGAIN),
}


@pytest.mark.parametrize("name", FAILING)
def test_a_handler_at_any_boundary_of_a_failure(fdpass, handler, name):
    """Wherever a handler that fails with other errnos comes in, the outer call fails with its own."""
    call, expected = FAILING[name]
    with pair() as (_, b):
        b.setblocking(False)

        def outer(n):
            fails(partial(call, fdpass, handler, b), expected)

        at_every_boundary(fdpass, handler, outer)


@pytest.mark.parametrize("timeout", [None, 60], ids=["blocking", "timeout"])
@pytest.mark.parametrize("name", ["sendmsg", "send_fds", "recvmsg", "recv_fds", "recvmsg_into"])
def test_a_real_signal_inside_a_blocked_call(fdpass, handler, name, timeout):
    """The main thread hangs in a call while a real signal's handler works and fails; then the call does its own."""
    with pair() as (a, b), descriptors(1) as sent:
        a.settimeout(timeout)
        b.settimeout(timeout)
        if name.startswith("send"):
            fill(a)

        def ring():
            handler()
            if handler.runs == 12:
                if name.startswith("send"):
                    drain(b)
                else:
                    a.sendmsg([b"data"], rights(sent))

        with on_alarm(ring, 0.003, 0.003):
            result = {
                "sendmsg": lambda: fdpass.sendmsg(a, [b"data"], rights(sent)),
                "send_fds": lambda: fdpass.send_fds(a, [b"data"], sent),
                "recvmsg": lambda: fdpass.recvmsg(b, 10, 100),
                "recv_fds": lambda: fdpass.recv_fds(b, 10, 1),
                "recvmsg_into": lambda: fdpass.recvmsg_into(b, [bytearray(10)], 100),
            }[name]()
        if name.startswith("send"):
            assert 4 == result
            result = fdpass.recvmsg(b, 10, 100)
        fds = result[1] if name == "recv_fds" else fds_in(result[1])
        assert handler.runs >= 12
        assert identities(sent) == identities(fds)
        close(fds)


def test_a_storm_of_real_signals_whose_handler_sends_and_receives(fdpass, handler):
    """Round trips go on in the main thread while a handler does its own every few hundred microseconds."""
    with pair() as (a, b), descriptors(3) as sent, on_alarm(handler, 0.0003, 0.0003):
        for i in range(600):
            round_trip(fdpass, a, b, sent[: i % 3 + 1], b"outer %d" % i)
    assert handler.runs > 20


# Forks


def child_of(work) -> int:
    """Fork; the child does `work` and is gone, 0 if nothing went wrong; the child's pid."""
    parent = os.getpid()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12: fork in a process with threads
            child = os.fork()
        if child:
            return child
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(60)
        work()
        os._exit(0)
    finally:
        if os.getpid() != parent:
            os._exit(1)


def trips(fdpass, sent, count: int, text: bytes) -> None:
    with pair() as (a, b):
        for i in range(count):
            round_trip(fdpass, a, b, sent, text + b" %d" % i)


def test_a_fork_has_a_copy_of_its_own(fdpass):
    """Parent and children go on with what was pooled before, and do not meet in it."""
    with descriptors(2) as sent:
        trips(fdpass, sent, 5, b"before")
        children = [child_of(partial(trips, fdpass, sent, 100, b"child %d" % n)) for n in range(4)]
        trips(fdpass, sent, 100, b"parent")
        assert [0] * 4 == [os.waitpid(child, 0)[1] for child in children]


def test_a_fork_amid_threads(fdpass, frequent_switches):
    """A child of a process whose threads are in the middle of calls sends and receives as well."""
    with descriptors(2) as sent:
        stop = threading.Event()

        def work():
            while not stop.is_set():
                trips(fdpass, sent, 20, b"thread")

        def fork():
            try:
                for n in range(5):
                    child = child_of(partial(trips, fdpass, sent, 20, b"child %d" % n))
                    assert 0 == os.waitpid(child, 0)[1]
            finally:
                stop.set()

        in_threads(*[work] * 4, fork)


def test_a_fork_in_a_handler_amid_a_send(fdpass, handler):
    """A handler that comes into a blocked sendmsg forks; the child sends and receives, and the send goes on."""
    with pair() as (a, b), descriptors(2) as sent:
        fill(a)
        ended = []

        def ring():
            child = child_of(partial(trips, fdpass, sent, 20, b"child"))
            ended.append(os.waitpid(child, 0)[1])
            if len(ended) == 3:
                signal.setitimer(signal.ITIMER_REAL, 0)
                drain(b)
            else:  # again and again: a ring before this handler has returned calls nothing, and must not be the last
                signal.setitimer(signal.ITIMER_REAL, 0.01, 0.01)

        with on_alarm(ring, 0.01):
            assert 4 == fdpass.send_fds(a, [b"data"], sent)
        assert [0, 0, 0] == ended[:3]
        data, fds, _, _ = fdpass.recv_fds(b, 10, 2)
        assert (b"data", identities(sent)) == (data, identities(fds))
        close(fds)

"""Threads, signal handlers and fork: every descriptor arrives where it belongs, told by its inode."""

from __future__ import annotations

import os
import signal
import socket
import threading

import pytest
from support import Alarm, alarm, close, descriptors, fill, identities, identity, on_alarm, pair

ROUNDS = 300


def exchange(fdpass, a, b, fd: int, rounds: int) -> list[tuple[int, int]]:
    """Send one descriptor to and fro by every function; what arrived."""
    arrived = []
    for i in range(rounds):
        fdpass.send_fds(a, [b"%d" % i], [fd])
        data, fds, _, _ = fdpass.recv_fds(b, 10, 1)
        assert b"%d" % i == data
        arrived += identities(fds)
        close(fds)
        fdpass.sendall_fds(a, b"%d" % i, [fd, fd])
        with fdpass.recv_message(b, 10, 2) as message:
            assert b"%d" % i == message.data
            arrived += [identity(owned.fileno()) for owned in message.fds]
    return arrived


def in_threads(works) -> list:
    """The result of each, or its exception raised."""
    results: list = [None] * len(works)

    def run(i, work):
        try:
            results[i] = work()
        except BaseException as error:
            results[i] = error

    threads = [threading.Thread(target=run, args=item) for item in enumerate(works)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return results


@pytest.mark.parametrize("rounds", [ROUNDS, pytest.param(42_000, marks=pytest.mark.slow)])
def test_eight_threads_with_sockets_of_their_own(fdpass, rounds):
    """Eight threads share the pools of memory, and each gets its own descriptors and bytes; a million in the full run."""
    with descriptors(8) as fds:
        pairs = [socket.socketpair() for _ in fds]
        results = in_threads(
            [lambda fd=fd, ab=ab: set(exchange(fdpass, *ab, fd, rounds)) for fd, ab in zip(fds, pairs)]
        )
        assert [{one} for one in identities(fds)] == results
        for a, b in pairs:
            a.close()
            b.close()


def test_threads_that_wait_while_others_transfer(fdpass):
    """A thread blocked in a receive keeps its memory from the others until its own message comes."""
    with descriptors(2) as (waited_for, busy), pair() as (a, b), pair() as (c, d):

        def wait():
            _, fds, _, _ = fdpass.recv_fds(b, 1, 1)
            result = identities(fds)
            close(fds)
            return result

        def work():
            result = set(exchange(fdpass, c, d, busy, ROUNDS))
            fdpass.send_fds(a, [b"x"], [waited_for])
            return result

        assert [[identity(waited_for)], {identity(busy)}] == in_threads([wait, work])


@pytest.mark.parametrize("blocked", ["sendmsg", "recvmsg"])
def test_a_signal_handler_that_transfers_inside_a_blocked_call(fdpass, blocked):
    """A handler sends and receives descriptors, and fails at it, while the call it interrupted waits; both get theirs."""
    handled = []
    with descriptors(2) as (ours, theirs), pair() as (a, b), pair() as (c, d), alarm_free():

        def handler():
            handled.extend(exchange(fdpass, c, d, theirs, 1))
            with pytest.raises(BlockingIOError):  # its errno is not to become that of the call it interrupted
                fdpass.recv_fds(d, 1, 1, socket.MSG_DONTWAIT)
            with pytest.raises(OSError, match="fds"):
                fdpass.send_fds(c, [b"x"], [10**6])
            if len(handled) == 30:
                release()

        def release():
            if blocked == "sendmsg":
                b.setblocking(False)
                try:
                    while b.recv(1 << 20):
                        pass
                except BlockingIOError:
                    pass
            else:
                fdpass.send_fds(a, [b"x"], [ours])

        if blocked == "sendmsg":
            fill(a)
        with on_alarm(handler, 0.02, 0.01):
            if blocked == "sendmsg":
                assert 1 == fdpass.send_fds(a, [b"!"], [ours])
                b.setblocking(True)
            data, fds, _, _ = fdpass.recv_fds(b, 1, 1)
        assert (b"!" if blocked == "sendmsg" else b"x", [identity(ours)]) == (data, identities(fds))
        close(fds)
        assert {identity(theirs)} == set(handled)
        assert len(handled) >= 30


class alarm_free:  # noqa: N801 - reads as a word in the `with` above
    """No SIGALRM is left behind, whatever the block does."""

    def __enter__(self):
        self.old = signal.getsignal(signal.SIGALRM)

    def __exit__(self, *exc):
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, self.old)


def test_a_forked_child_uses_its_own_copy(fdpass):
    """Parent and child go on with sockets of their own after a fork between transfers."""
    with descriptors(2) as (ours, theirs), pair() as (a, b), pair() as (c, d):
        exchange(fdpass, a, b, ours, 3)  # the pools have memory that the child inherits
        child = os.fork()
        if not child:
            status = 1
            try:
                arrived = set(exchange(fdpass, c, d, theirs, 50))
                status = 0 if arrived == {identity(theirs)} else 2
            finally:
                os._exit(status)
        assert {identity(ours)} == set(exchange(fdpass, a, b, ours, 50))
        assert 0 == os.waitpid(child, 0)[1]


def test_a_fork_while_another_thread_is_inside_a_call(fdpass):
    """The child is not disturbed by memory that was in use in a thread which it does not have."""
    with descriptors(1) as (fd,), pair() as (a, b), pair() as (c, d):
        waiting = threading.Thread(target=lambda: close(fdpass.recv_fds(b, 1, 1)[1]))
        waiting.start()
        child = os.fork()
        if not child:
            status = 1
            try:
                status = 0 if set(exchange(fdpass, c, d, fd, 20)) == {identity(fd)} else 2
            finally:
                os._exit(status)
        assert 0 == os.waitpid(child, 0)[1]
        fdpass.send_fds(a, [b"x"], [fd])
        waiting.join()


def test_a_handler_that_raises_leaves_a_blocked_receive(fdpass):
    """PEP 475: the call goes on after a handler that returns, and ends with the exception of one that raises."""
    with pair() as (_, b), pytest.raises(Alarm), alarm(0.05):
        fdpass.recv_fds(b, 1, 1)

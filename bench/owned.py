"""Owned descriptors and batches beside what the standard library makes a program do instead."""

from __future__ import annotations

import array
import os
import resource
import socket
from contextlib import ExitStack
from time import perf_counter_ns

from .core import null, pair, stdlib_or_ours
from .harness import Case, Run, targets
from .loading import BACKENDS, NotHere, take

AHEAD = 64  # messages that wait in the socket while the clock stands still; well below any default buffer
MANY = 10_000
PER_MESSAGE = 253


def receive_one(stack: ExitStack, contender: str) -> Run:
    """Receiving one byte and one descriptor and closing it; sending is off the clock, and by `socket` for all."""
    if contender in BACKENDS:
        return _receive_message(stack, contender)
    a, b = pair(stack)
    fds, close = [null(stack)], os.close
    send_fds, recv_fds = socket.send_fds, socket.recv_fds

    def run(n: int) -> int:
        total = 0
        for begin in range(0, n, AHEAD):
            count = min(AHEAD, n - begin)
            for _ in range(count):
                send_fds(a, [b"x"], fds)
            start = perf_counter_ns()
            for _ in range(count):
                received = recv_fds(b, 1, 1)[1]
                close(received[0])
            total += perf_counter_ns() - start
        return total

    return run


def _receive_message(stack: ExitStack, contender: str) -> Run:
    (recv_message,) = take(contender, "recv_message")
    a, b = pair(stack)
    fds, send_fds = [null(stack)], socket.send_fds

    def run(n: int) -> int:
        total = 0
        for begin in range(0, n, AHEAD):
            count = min(AHEAD, n - begin)
            for _ in range(count):
                send_fds(a, [b"x"], fds)
            start = perf_counter_ns()
            for _ in range(count):
                with recv_message(b, 1, 1):
                    pass
            total += perf_counter_ns() - start
        return total

    return run


def allow_open(count: int) -> None:
    """Raises the soft limit so that `count` descriptors may be open, and in flight; NotHere if it cannot."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= count:
        return
    if hard != resource.RLIM_INFINITY and hard < count:
        raise NotHere(f"needs RLIMIT_NOFILE {count}, the hard limit is {hard}")
    resource.setrlimit(resource.RLIMIT_NOFILE, (count, hard))


def bulk(stack: ExitStack, contender: str, closing: bool = False) -> Run:
    """MANY descriptors across: one sendall_fds here, MANY send_fds and recv_fds there."""
    allow_open(MANY + 200)
    if contender in BACKENDS:
        return _bulk_ours(stack, contender, closing)
    a, b = pair(stack)
    fds, send_fds, recv_fds, close = [null(stack)], socket.send_fds, socket.recv_fds, os.close

    def run(n: int) -> int:
        total = 0
        for _ in range(n):
            received = array.array("i")
            start = perf_counter_ns()
            for _ in range(MANY):
                send_fds(a, [b"x"], fds)
                received.extend(recv_fds(b, 1, 1)[1])
            middle = perf_counter_ns()
            for fd in received:
                close(fd)
            total += (perf_counter_ns() if closing else middle) - start
        return total

    return run


def _bulk_ours(stack: ExitStack, contender: str, closing: bool) -> Run:
    sendall_fds, recv_message = take(contender, "sendall_fds", "recv_message")
    a, b = pair(stack)
    fds, data = [null(stack)] * MANY, b"x" * -(-MANY // PER_MESSAGE)

    def run(n: int) -> int:
        total = 0
        for _ in range(n):
            messages, missing = [], MANY
            start = perf_counter_ns()
            sendall_fds(a, data, fds)
            while missing:
                message = recv_message(b, 65536, PER_MESSAGE)
                messages.append(message)
                missing -= len(message.fds)
            middle = perf_counter_ns()
            for message in messages:
                with message:
                    pass
            total += (perf_counter_ns() if closing else middle) - start
        return total

    return run


def bulk_closing(stack: ExitStack, contender: str) -> Run:
    """The same with closing on the clock."""
    return bulk(stack, contender, closing=True)


def batches(stack: ExitStack, contender: str) -> Run:
    """AHEAD one-descriptor messages sent, then received and closed, over SOCK_SEQPACKET."""
    if contender in BACKENDS:
        return _batches_ours(stack, contender)
    send_fds, recv_fds = stdlib_or_ours(contender, "send_fds", "recv_fds")
    a, b = pair(stack, socket.SOCK_SEQPACKET)
    fds, close = [null(stack)], os.close

    def run(n: int) -> int:
        start = perf_counter_ns()
        for _ in range(n):
            for _ in range(AHEAD):
                send_fds(a, [b"x"], fds)
            for _ in range(AHEAD):
                received = recv_fds(b, 1, 1)[1]
                close(received[0])
        return perf_counter_ns() - start

    return run


def _batches_ours(stack: ExitStack, contender: str) -> Run:
    send_messages, recv_messages = take(contender, "send_messages", "recv_messages")
    a, b = pair(stack, socket.SOCK_SEQPACKET)
    messages = [(b"x", [null(stack)])] * AHEAD

    def run(n: int) -> int:
        start = perf_counter_ns()
        for _ in range(n):
            sent = send_messages(a, messages)
            while sent < AHEAD:
                sent += send_messages(a, messages[sent:])
            missing = AHEAD
            while missing:
                for message in recv_messages(b, missing, 1, 1):
                    missing -= 1
                    with message:
                        pass
        return perf_counter_ns() - start

    return run


CASES = (
    Case(
        "recv-message",
        "recv_message of one descriptor and closing it, beside recv_fds and close; sending is off the clock",
        "socket",
        receive_one,
        targets(cpython_abi=1.5, pypy=0.9),
        c=("1", "1", str(AHEAD), "receive"),
        c_operations=AHEAD,
    ),
    Case(
        "bulk",
        f"{MANY} descriptors by one sendall_fds, beside {MANY} times send_fds and recv_fds; closing is off the clock",
        "socket",
        bulk,
        targets(everywhere=1 / 8),
        operations=MANY,
        c=(str(PER_MESSAGE), "1", "40", "transfer"),
        c_operations=40 * PER_MESSAGE,
        batch=1,
        rounds=25,
    ),
    Case(
        "bulk-close",
        "the same, closing every descriptor on the clock",
        "socket",
        bulk_closing,
        operations=MANY,
        c=(str(PER_MESSAGE), "1", "40", "all"),
        c_operations=40 * PER_MESSAGE,
        batch=1,
        rounds=25,
    ),
    Case(
        "batches",
        f"{AHEAD} one-descriptor messages by send_messages, recv_messages, close, beside a loop of send_fds, recv_fds",
        "socket",
        batches,
        targets(cpython_abi=0.85, cpython_api=0.85, pypy=0.65),
        operations=AHEAD,
        batch=10,  # of fewer loops PyPy would spend a large part on its way into compiled code
        c=("1", "1", str(AHEAD), "all", "mmsg", "seqpacket"),
        c_operations=AHEAD,
    ),
)

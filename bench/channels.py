"""Whole messages beside what programs use for them today: multiprocessing, and anyio on asyncio."""

from __future__ import annotations

import asyncio
import multiprocessing.connection
import os
import socket
import tempfile
from collections.abc import Callable, Coroutine
from contextlib import ExitStack
from multiprocessing import reduction
from time import perf_counter_ns
from typing import Any

from .core import null, pair
from .harness import Case, Run, fresh, targets
from .loading import BACKENDS, NotHere, take

PAYLOAD = bytes(range(64))
BURST = 64

Batch = Callable[[int], Coroutine[Any, Any, int]]


def check(received: bytes) -> None:
    """The last message of a batch must be the one sent."""
    if received != PAYLOAD:
        raise RuntimeError(f"{PAYLOAD!r} was sent, {received!r} received")


def connections(stack: ExitStack) -> tuple[Any, Any]:
    """Two connected multiprocessing Connections over a socketpair of the kind all contenders use."""
    ends = [multiprocessing.connection.Connection(end.detach()) for end in pair(stack)]
    for end in ends:
        stack.callback(end.close)
    return ends[0], ends[1]


def channels(stack: ExitStack, backend: str) -> tuple[Any, Any]:
    """Two connected Channels."""
    (channel,) = take(backend, "Channel")
    a, b = channel.pair()
    stack.callback(a.close)
    stack.callback(b.close)
    return a, b


def round_trip(stack: ExitStack, contender: str) -> Run:
    """64 bytes and one descriptor there, the descriptor closed."""
    if contender in BACKENDS:
        return _channel_round_trip(stack, contender)
    a, b = connections(stack)
    fd, pid, close = null(stack), os.getpid(), os.close
    send_handle, recv_handle = reduction.send_handle, reduction.recv_handle

    def run(n: int) -> int:
        start = perf_counter_ns()
        for _ in range(n):
            a.send_bytes(PAYLOAD)
            send_handle(a, fd, pid)
            data = b.recv_bytes()
            close(recv_handle(b))
        took = perf_counter_ns() - start
        check(data)
        return took

    return run


def _channel_round_trip(stack: ExitStack, contender: str) -> Run:
    a, b = channels(stack, contender)
    fds = [null(stack)]

    def run(n: int) -> int:
        start = perf_counter_ns()
        for _ in range(n):
            a.send(PAYLOAD, fds)
            with b.recv() as message:
                data = message.data
        took = perf_counter_ns() - start
        check(data)
        return took

    return run


def plain(stack: ExitStack, contender: str, burst: int = 1) -> Run:
    """Messages of 64 bytes and no descriptor: `burst` of them sent, then as many received."""
    ours = contender in BACKENDS
    a, b = channels(stack, contender) if ours else connections(stack)
    send, recv = (a.send, b.recv) if ours else (a.send_bytes, b.recv_bytes)

    def one(n: int) -> int:
        start = perf_counter_ns()
        for _ in range(n):
            send(PAYLOAD)
            got = recv()
        took = perf_counter_ns() - start
        check(got.data if ours else got)
        return took

    def several(n: int) -> int:
        start = perf_counter_ns()
        for _ in range(n):
            for _ in range(burst):
                send(PAYLOAD)
            for _ in range(burst):
                recv()
        return perf_counter_ns() - start

    return one if burst == 1 else several


def bursts(stack: ExitStack, contender: str) -> Run:
    """The same, BURST messages waiting in the socket before the first is received."""
    return plain(stack, contender, BURST)


def asynchronous(stack: ExitStack, contender: str) -> Run:
    """64 bytes and one descriptor there between two ends in one task, the descriptor closed."""
    try:
        import anyio  # noqa: F401
    except ImportError:
        raise NotHere("anyio is not installed") from None
    start_up = _ours_async(contender) if contender in BACKENDS else _anyio_streams
    loop = asyncio.new_event_loop()
    stack.callback(loop.close)
    batch = fresh(loop.run_until_complete(start_up(stack, loop, null(stack))))

    def run(n: int) -> int:
        took: int = loop.run_until_complete(batch(n))
        return took

    return run


async def _anyio_streams(stack: ExitStack, loop: asyncio.AbstractEventLoop, fd: int) -> Batch:
    import anyio

    path = os.path.join(stack.enter_context(tempfile.TemporaryDirectory()), "socket")
    listener = await anyio.create_unix_listener(path)
    a: Any = await anyio.connect_unix(path)
    b: Any = await listener.listeners[0].accept() if hasattr(listener, "listeners") else await listener.accept()
    await listener.aclose()
    for end in (a, b):
        stack.callback(_aclose, loop, end)
    close, fds = os.close, [fd]

    async def batch(n: int) -> int:
        start = perf_counter_ns()
        for _ in range(n):
            await a.send_fds(PAYLOAD, fds)
            data, received = await b.receive_fds(len(PAYLOAD), 1)
            close(received[0])
        took = perf_counter_ns() - start
        check(data)
        return took

    return batch


def _aclose(loop: asyncio.AbstractEventLoop, end: Any) -> None:
    loop.run_until_complete(end.aclose())


def _ours_async(backend: str) -> Callable[[ExitStack, asyncio.AbstractEventLoop, int], Coroutine[Any, Any, Batch]]:
    (channel,) = take(backend, "AsyncChannel", submodule="aio")

    async def start_up(stack: ExitStack, loop: asyncio.AbstractEventLoop, fd: int) -> Batch:
        sockets = socket.socketpair(socket.AF_UNIX)
        a, b = (channel(end) for end in sockets)
        fds = [fd]

        def close(end: Any) -> None:
            closing = end.close() if hasattr(end, "close") else end.aclose()
            if asyncio.iscoroutine(closing):
                loop.run_until_complete(closing)

        for thing in (a, b):
            stack.callback(close, thing)

        async def batch(n: int) -> int:
            start = perf_counter_ns()
            for _ in range(n):
                await a.send(PAYLOAD, fds)
                with await b.recv() as message:
                    data = message.data
            took = perf_counter_ns() - start
            check(data)
            return took

        return batch

    return start_up


CASES = (
    Case(
        "channel",
        "Channel: 64 bytes and one descriptor, closed; beside Connection.send_bytes and reduction.send_handle",
        "multiprocessing",
        round_trip,
        targets(everywhere=0.7),
        c=("1", "72", "1", "all"),
    ),
    Case(
        "channel-async",
        "AsyncChannel on asyncio: the same; beside anyio's send_fds and receive_fds",
        "anyio",
        asynchronous,
        targets(everywhere=0.8),
        c=("1", "72", "1", "all"),
    ),
    Case(
        "channel-plain",
        "Channel: 64 bytes, no descriptor; beside Connection.send_bytes and recv_bytes",
        "multiprocessing",
        plain,
        targets(everywhere=1.2),
        c=("0", "72", "1", "all"),
    ),
    Case(
        "channel-burst",
        f"the same, {BURST} messages waiting before the first is received",
        "multiprocessing",
        bursts,
        operations=BURST,
        c=("0", "72", str(BURST), "all"),
        c_operations=BURST,
    ),
)

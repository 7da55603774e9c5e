"""The drop-ins beside `socket`: what changing the import costs or saves.

Sending, receiving and closing are all on the clock, as a program pays for all three. The
descriptor sent is one of /dev/null: passing it costs the kernel the least, so ours shows the most.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from contextlib import ExitStack
from time import perf_counter_ns
from typing import Any

from .harness import IS_PYPY, Case, Fact, Run, targets
from .loading import BACKENDS, NAME, package_folder, take

BIG = 64 * 1024
BIG_AHEAD = 2  # that many fit the default socket buffer, so that filling it never blocks
# Of all contenders in a process: where memory lies in the caches is luck, and worth a few hundredths.
PAYLOAD, INTO = os.urandom(BIG), bytearray(BIG)


def pair(stack: ExitStack, kind: int = socket.SOCK_STREAM, timeout: float | None = None) -> tuple[Any, Any]:
    """Two connected AF_UNIX sockets, closed with the stack."""
    a, b = socket.socketpair(socket.AF_UNIX, kind)
    for end in (a, b):
        stack.callback(end.close)
        end.settimeout(timeout)
    return a, b


def null(stack: ExitStack) -> int:
    """A descriptor to send, closed with the stack."""
    fd = os.open(os.devnull, os.O_RDONLY)
    stack.callback(os.close, fd)
    return fd


def stdlib_or_ours(contender: str, *names: str) -> tuple[Any, ...]:
    """Functions by name, of `socket` or of this package on the backend `contender`."""
    if contender in BACKENDS:
        return take(contender, *names)
    return tuple(getattr(socket, name) for name in names)


def one_fd(stack: ExitStack, contender: str, timeout: float | None = None) -> Run:
    """One byte and one descriptor there, the descriptor closed."""
    send_fds, recv_fds = stdlib_or_ours(contender, "send_fds", "recv_fds")
    a, b = pair(stack, timeout=timeout)
    fds, close = [null(stack)], os.close

    def run(n: int) -> int:
        start = perf_counter_ns()
        for _ in range(n):
            send_fds(a, [b"x"], fds)
            received = recv_fds(b, 1, 1)[1]
            close(received[0])
        return perf_counter_ns() - start

    return run


def one_fd_timeout(stack: ExitStack, contender: str) -> Run:
    """The same, both sockets with a timeout."""
    return one_fd(stack, contender, timeout=5.0)


def many_fds(stack: ExitStack, contender: str) -> Run:
    """As many descriptors as Linux takes in one message."""
    send_fds, recv_fds = stdlib_or_ours(contender, "send_fds", "recv_fds")
    a, b = pair(stack)
    fds, close = [null(stack)] * 253, os.close

    def run(n: int) -> int:
        start = perf_counter_ns()
        for _ in range(n):
            send_fds(a, [b"x"], fds)
            received = recv_fds(b, 1, 253)[1]
            for fd in received:
                close(fd)
        return perf_counter_ns() - start

    return run


def big_read(stack: ExitStack, contender: str) -> Run:
    """64 KiB into a buffer of the caller's; filling the socket is off the clock."""
    a, b = pair(stack)
    recvmsg_into = take(contender, "recvmsg_into")[0] if contender in BACKENDS else socket.socket.recvmsg_into
    payload, into = PAYLOAD, INTO

    def run(n: int) -> int:
        total = 0
        into[:] = bytes(BIG)
        for _ in range(n):
            for _ in range(BIG_AHEAD):
                a.sendall(payload)
            start = perf_counter_ns()
            for _ in range(BIG_AHEAD):
                recvmsg_into(b, [into])
            total += perf_counter_ns() - start
        if into != payload:
            raise RuntimeError("recvmsg_into brought other bytes than were sent, or fewer at a time")
        return total

    return run


def big_read_facts(backend: str) -> list[Fact]:
    """How much memory one recvmsg_into of 64 KiB takes for a while; a copy of the payload would show here."""
    if IS_PYPY:
        return []
    import tracemalloc

    with ExitStack() as stack:
        a, b = pair(stack)
        (recvmsg_into,) = take(backend, "recvmsg_into")
        into = bytearray(BIG)
        tracemalloc.start()
        stack.callback(tracemalloc.stop)
        for _ in range(3):
            a.sendall(bytes(BIG))
            tracemalloc.reset_peak()
            before = tracemalloc.get_traced_memory()[0]
            recvmsg_into(b, [into])
            peak = tracemalloc.get_traced_memory()[1] - before
    return [(f"{backend}: recvmsg_into of {BIG} bytes took {peak} bytes more at its peak", peak < BIG // 8)]


IMPORT = """
import os, sys, time
sys.path.append({folder!r})
before = set(sys.modules)
start = time.process_time_ns()
import {module}
took = time.process_time_ns() - start
{then}
"""


def run_importer(contender: str, then: str) -> str:
    """What a fresh isolated interpreter printed, after one import that took `took` nanoseconds of CPU time.

    CPU time, since an import is long enough that on a busy machine other processes run in the middle of each.
    """
    module, env = contender, dict(os.environ)
    if contender in BACKENDS:
        module, env["FDPASS_CFFI_BACKEND"] = NAME, contender
    code = IMPORT.format(folder=str(package_folder().parent), module=module, then=then)
    command = [sys.executable, "-I", "-c", code]
    return subprocess.run(command, env=env, stdout=subprocess.PIPE, check=True, timeout=60).stdout.decode().strip()


def importing(stack: ExitStack, contender: str) -> Run:
    """The import statement in a fresh interpreter, bytecode cached; what it imports in turn is in it."""
    if contender in BACKENDS:
        take(contender, "send_fds")
    run_importer(contender, "")  # writes the bytecode, which the measured imports then find

    def run(n: int) -> int:
        return sum(int(run_importer(contender, "print(took)")) for _ in range(n))

    return run


def importing_facts(backend: str) -> list[Fact]:
    """Which of the modules that no user should wait for were imported."""
    unwanted = "cffi", "pycparser", "setuptools", "distutils", "typing", "dataclasses"
    found = run_importer(backend, f"print(*(set({unwanted!r}) & (set(sys.modules) - before)))").split()
    count = run_importer(backend, "print(len(set(sys.modules) - before))")
    forbidden = sorted({"cffi", "pycparser", "setuptools", "distutils"} & set(found))
    text = f"{backend}: import {NAME} brought in {count} modules, of {', '.join(unwanted)}: {' '.join(found) or 'none'}"
    return [(text, not forbidden)]


CASES = (
    Case(
        "one-fd",
        "one byte and one descriptor: send_fds, recv_fds, close",
        "socket",
        one_fd,
        targets(cpython_abi=1.15, cpython_api=1.05, pypy=0.80),
        c=("1", "1", "1", "all"),
    ),
    Case(
        "one-fd-timeout",
        "the same on sockets with a timeout of 5 s",
        "socket",
        one_fd_timeout,
        targets(cpython_abi=1.0, cpython_api=0.9, pypy=0.75),
        c=("1", "1", "1", "all", "nonblock"),
    ),
    Case(
        "253-fds",
        "one byte and 253 descriptors: send_fds, recv_fds, 253 times close",
        "socket",
        many_fds,
        targets(cpython_abi=1.0, cpython_api=1.0, pypy=0.95),
        c=("253", "1", "1", "all"),
    ),
    Case(
        "recvmsg-into",
        "recvmsg_into of 64 KiB; sending is off the clock",
        "socket",
        big_read,
        targets(everywhere=1.0),
        operations=BIG_AHEAD,
        c=("0", str(BIG), str(BIG_AHEAD), "receive"),
        c_operations=BIG_AHEAD,
        facts=big_read_facts,
    ),
    Case(
        "import",
        f"import {NAME} beside import socket, each in a fresh interpreter; CPU time",
        "socket",
        importing,
        {"cpython-abi": 1.5, "pypy-abi": 1.5},
        batch=1,
        rounds=41,
        warm_seconds=0.0,
        processes=1,
        elsewhere=True,
        facts=importing_facts,
    ),
)

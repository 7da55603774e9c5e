"""What several test modules share: sockets, descriptors that can be told apart, `socket` in our shape, children."""

from __future__ import annotations

import array
import os
import random
import signal
import socket
import subprocess
import sys
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest

PYPY = sys.implementation.name == "pypy"
GIL = getattr(sys, "_is_gil_enabled", lambda: True)()
SOL_SOCKET, SCM_RIGHTS = socket.SOL_SOCKET, socket.SCM_RIGHTS
INT = array.array("i").itemsize

EMULATED = "LAB_EMULATED" in os.environ
# An emulated processor is that slow:
STRIDE = 11 if EMULATED else 1  # of a test that goes through every one of something
EXAMPLES = 20 if EMULATED else 100  # of hypothesis
SOON = 0.5 if EMULATED else 0.02  # seconds, after which a call waits in the kernel
needs_real_kernel = pytest.mark.skipif(
    EMULATED,
    reason="qemu-user enlarges control buffers, repairs malformed messages, and receives nothing into no buffers",
)
needs_trio = pytest.mark.skipif(find_spec("_ctypes") is None, reason="trio imports ctypes, which this Python lacks")
needs_cpython = pytest.mark.skipif(PYPY, reason="PyPy neither counts references nor traces opcodes")


# Sockets and descriptors


@contextmanager
def pair(kind: int = socket.SOCK_STREAM):
    """Two connected AF_UNIX sockets, closed at the end."""
    a, b = socket.socketpair(socket.AF_UNIX, kind)
    with a, b:
        yield a, b


@contextmanager
def descriptors(count: int):
    """`count` open descriptors, each of another inode, closed at the end."""
    made = []
    try:
        while len(made) < 2 * count:
            made += os.pipe()
        yield made[::2]
    finally:
        close(made)


def close(fds) -> None:
    for fd in fds:
        os.close(fd)


def identity(fd: int) -> tuple[int, int]:
    """What a descriptor refers to, whatever its number: (device, inode)."""
    status = os.fstat(fd)
    return status.st_dev, status.st_ino


def identities(fds) -> list[tuple[int, int]]:
    return [identity(fd) for fd in fds]


def open_numbers() -> set[int]:
    """The number of every open descriptor of this process."""
    numbers = set()
    for name in os.listdir("/proc/self/fd"):
        with suppress(OSError):  # the descriptor that listed the folder
            os.fstat(int(name))
            numbers.add(int(name))
    return numbers


def close_new(before: set[int]) -> list[int]:
    """Close what is open and was not `before`; the numbers."""
    new = sorted(open_numbers() - before)
    close(new)
    return new


def rights(fds) -> list[tuple[int, int, bytes]]:
    """The ancdata that carries `fds`."""
    return [(SOL_SOCKET, SCM_RIGHTS, array.array("i", fds).tobytes())]


def fds_in(ancdata) -> list[int]:
    """The descriptors in received ancdata."""
    found = array.array("i")
    for level, kind, data in ancdata:
        if (level, kind) == (SOL_SOCKET, SCM_RIGHTS):
            found.frombytes(data[: len(data) - len(data) % INT])
    return found.tolist()


@contextmanager
def non_blocking(sock: socket.socket):
    """With its timeout set aside, by which `socket` would wait even with MSG_DONTWAIT; BlockingIOError ends it."""
    timeout = sock.gettimeout()
    sock.settimeout(0)
    try:
        with suppress(BlockingIOError):
            yield
    finally:
        sock.settimeout(timeout)


def fill(sock: socket.socket, chunk: bytes = b"x" * 4096) -> None:
    """Send until not one byte more would go."""
    for data in (chunk, b"x"):
        with non_blocking(sock):
            while True:
                sock.send(data)


def drain(sock: socket.socket) -> bytes:
    """Everything that waits in a stream socket."""
    got = b""
    with non_blocking(sock):
        while data := sock.recv(1 << 20):
            got += data
    return got


# `socket` in the shape of the package, to run the same check on both

STDLIB = SimpleNamespace(
    __name__="socket",
    sendmsg=lambda sock, *args, **kw: sock.sendmsg(*args, **kw),
    recvmsg=lambda sock, *args, **kw: sock.recvmsg(*args, **kw),
    recvmsg_into=lambda sock, *args, **kw: sock.recvmsg_into(*args, **kw),
    send_fds=socket.send_fds,
    recv_fds=socket.recv_fds,
    CMSG_LEN=socket.CMSG_LEN,
    CMSG_SPACE=socket.CMSG_SPACE,
)


# Processes, signals, and tests that might hang


def run_child(fdpass, code: str, *args: object, **options) -> str:
    """Run `code` in a new interpreter where `import fdpass_cffi` gives the same package and backend; its output."""
    above = str(Path(fdpass.__file__).parent.parent)
    path = os.pathsep.join([above, str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    which = {
        "PYTHONPATH": path,
        "PYTHONSAFEPATH": "1",
        "FDPASS_CFFI_BACKEND": fdpass.BACKEND,
    }  # not the current folder's
    child = subprocess.run(
        [sys.executable, "-W", "error", "-c", code, *map(str, args)],
        check=False, capture_output=True, text=True, timeout=600,
        env={**os.environ, **which}, **options,
    )  # fmt: skip
    assert (0, "") == (child.returncode, child.stderr), child.stdout
    return child.stdout


class Wrapper:
    """As asyncio's TransportSocket: fileno(), and nothing else that is looked at."""

    def __init__(self, sock) -> None:
        self.fileno = sock.fileno


class Alarm(Exception):
    """Raised by the handler of `alarm`: the call under test did not return by itself."""


@contextmanager
def on_alarm(handler, first: float, interval: float = 0.0):
    """Call `handler()` by SIGALRM after `first` seconds and then every `interval`, never amid itself, in the block."""
    running = []

    def ring(*_):
        if not running:
            running.append(1)
            try:
                handler()
            finally:
                running.clear()

    old = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, first, interval)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old)


@contextmanager
def striking(error):
    """A function that makes a call, at a random moment of which SIGALRM's handler raises `error`: whether it did."""
    armed = False

    def strike(*_):
        if armed:  # a signal may arrive after the timer was stopped, and PyPy may run its handler long after that
            raise error

    def struck(call, longest: float = 3e-5) -> bool:
        nonlocal armed
        try:
            armed = True
            signal.setitimer(signal.ITIMER_REAL, random.uniform(1e-6, longest))
            call()
            signal.setitimer(signal.ITIMER_REAL, 0)
            armed = False
        except error:
            armed = False
            return True
        return False

    old = signal.signal(signal.SIGALRM, strike)
    try:
        yield struck
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old)


@contextmanager
def alarm(seconds: float):
    """Leave the block by an Alarm if it takes longer: what would hang fails.

    It rings again and again, until it is heard: a signal just before a call that blocks does not end it.
    """

    def ring():
        signal.setitimer(signal.ITIMER_REAL, 0)
        raise Alarm

    with on_alarm(ring, seconds, seconds):
        yield

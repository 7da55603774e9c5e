"""A great many calls, and a great many of every failing call, leave descriptors and memory where they were.

Each runs in a process of its own, whose memory nothing else changes. The default counts are small; the full ones are
marked `slow`.
"""

from __future__ import annotations

import pytest
from support import run_child

COMMON = """
import gc, os, resource, socket, sys
import fdpass_cffi as f

MANY = 253
PYPY = sys.implementation.name == "pypy"
ALLOWED = (96 if PYPY else 4) << 20  # bytes of memory: what an allocator and a JIT keep for themselves

def table():
    return sorted(os.listdir("/proc/self/fd"))

def memory():
    gc.collect()
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * resource.getpagesize()

def steady(n, act):
    "Run `act` n times after a warm-up: as many descriptors and as much memory as before."
    for _ in range(min(n // 4, 5000)):
        act()
    before, held = table(), memory()
    for _ in range(n):
        act()
    assert table() == before, (before, table())
    grown = memory() - held
    assert grown < ALLOWED, f"{act.__name__}: {grown} bytes more after {n} times"

def fails(error, call, *args):
    try:
        call(*args)
    except error as caught:
        return caught
    raise AssertionError(f"{call} did not raise {error}")

n = int(sys.argv[1])
a, b = socket.socketpair()
null = os.open(os.devnull, os.O_RDONLY)
closed = os.dup(null)
os.close(closed)
"""

END = """
a.close()
b.close()
"""

ROUND_TRIPS = """
def trip():
    f.send_fds(a, [b"x"], [null])
    data, fds, flags, address = f.recv_fds(b, 1, 1)
    assert (data, len(fds), flags, address) == (b"x", 1, 0, None)
    os.close(fds[0])

steady(n, trip)
"""

TRIPS_OF_ALL = """
import array
rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [null, null]))]
room, into = socket.CMSG_SPACE(8), [bytearray(1), bytearray(10)]

def trips():
    f.sendmsg(a, [b"x", b"y"], rights)
    data, ancdata, flags, address = f.recvmsg(b, 10, room)
    for fd in array.array("i", ancdata[0][2]):
        os.close(fd)
    f.sendmsg(a, (b"hello", memoryview(b"world")), rights)
    size, ancdata, flags, address = f.recvmsg_into(b, into, room)
    for fd in array.array("i", ancdata[0][2]):
        os.close(fd)
    f.sendall_fds(a, b"xy", [null] * (MANY + 1))
    for count in (MANY, 1):
        with f.recv_message(b, 10, MANY) as message:
            assert len(message.fds) == count
    f.send_messages(a, [(b"x", [null]), (b"y", [null])])
    left = 2
    while left:
        for message in f.recv_messages(b, 2, 10, 1):
            message.close()
            left -= 1

steady(max(n // 50, 200), trips)
"""

ERRORS = """
def truncated():
    f.send_fds(a, [b"x"], [null] * 3)
    data, fds, flags, address = f.recv_fds(b, 1, 1)
    assert flags & socket.MSG_CTRUNC
    os.close(fds[0])
    f.send_fds(a, [b"x"], [null] * 3)
    fails(f.TruncatedError, f.recv_message, b, 1, 1)

def timed_out():
    b.settimeout(0.0002)
    fails(socket.timeout, f.recv_fds, b, 1, 1)
    b.settimeout(None)

def nothing_there():
    fails(BlockingIOError, f.recv_fds, b, 1, 1, socket.MSG_DONTWAIT)
    fails(BlockingIOError, f.recvmsg, b, 1, 100, socket.MSG_DONTWAIT)
    fails(BlockingIOError, f.recv_message, b, 1, 1, socket.MSG_DONTWAIT)

def bad_descriptor():
    assert fails(OSError, f.send_fds, a, [b"x"], [null, closed]).errno == 9
    assert fails(OSError, f.sendall_fds, a, b"x", [closed]).errno == 9
    fails(TypeError, f.send_fds, a, [b"x"], [True])

def closed_peer():
    c, d = socket.socketpair()
    d.close()
    fails(BrokenPipeError, f.send_fds, c, [b"x"], [null])
    c.close()

def too_many():
    assert fails(OSError, f.send_fds, a, [b"x"], [null] * (MANY + 1)).errno == 22

def bad_buffer():
    fails(TypeError, f.send_fds, a, ["x"], [null])
    fails(BufferError, f.sendmsg, a, [memoryview(b"abcd")[::2]])
    fails(TypeError, f.recvmsg_into, b, [b"x"])
    fails(ValueError, f.recv_fds, b, -1, 1)

def full_table():
    f.send_fds(a, [b"x"], [null] * 5)
    data, fds, flags, address = f.recv_fds(b, 1, 5)
    assert len(fds) == 2 and flags & socket.MSG_CTRUNC, (fds, flags)
    for fd in fds:
        os.close(fd)
    f.send_fds(a, [b"x"], [null] * 5)
    assert fails(f.TruncatedError, f.recv_message, b, 1, 5).reason == "table-full"

for act in (truncated, timed_out, nothing_there, bad_descriptor, closed_peer, too_many, bad_buffer):
    steady(n, act)
keep = [os.dup(null) for _ in range(64)]  # no gap in the table
soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
for fd in keep[-2:]:
    os.close(fd)
resource.setrlimit(resource.RLIMIT_NOFILE, (max(keep) + 1, hard))
before = memory()
for _ in range(n):
    full_table()
resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
assert memory() - before < ALLOWED
"""


@pytest.mark.parametrize("code", [ROUND_TRIPS, TRIPS_OF_ALL], ids=["drop-ins", "all"])
def test_round_trips_leave_everything_as_it_was(fdpass, code):
    """20,000 times a descriptor goes over and is closed: no descriptor and no memory more."""
    run_child(fdpass, COMMON + code + END, 20_000)


def test_failures_leave_everything_as_it_was(fdpass):
    """A thousand of every error: truncation, timeout, EAGAIN, closed peer, full table, bad arguments of each kind."""
    run_child(fdpass, COMMON + ERRORS + END, 1000)


@pytest.mark.slow
@pytest.mark.parametrize("code", [ROUND_TRIPS, TRIPS_OF_ALL], ids=["drop-ins", "all"])
def test_a_million_round_trips(fdpass, code):
    """A million times a descriptor goes over and is closed: no descriptor and no memory more."""
    run_child(fdpass, COMMON + code + END, 1_000_000)


@pytest.mark.slow
def test_ten_thousand_of_every_failure(fdpass):
    """Ten thousand of every error leave no descriptor and no memory more."""
    run_child(fdpass, COMMON + ERRORS + END, 10_000)

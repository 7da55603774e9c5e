"""Many calls, good and failing: descriptors and memory are where they were.

The full counts, a million round trips and ten thousand of every error path, have the marker `slow`.
"""

from __future__ import annotations

import errno
import gc
import json
import os
import resource
import socket
from contextlib import ExitStack

import pytest
from support import PYPY, STRIDE, close, drain, fds_in, fill, needs_real_kernel, open_numbers, pair, rights, run_child

SLOW = pytest.mark.slow
MIB = 1 << 20
GROWTH = (24 if PYPY else 1) * MIB  # CPython takes nothing; PyPy some for compiled loops and its heap


def resident() -> int:
    """The memory of this process, in bytes."""
    gc.collect()
    with open("/proc/self/statm", "rb") as statm:
        return int(statm.read().split()[1]) * resource.getpagesize()


def many(call, count: int) -> None:
    """Make a call `count` times; after a warm-up neither descriptors nor memory grow."""
    for _ in range(count // 4 + 50):
        call()
    before, memory = open_numbers(), resident()
    for _ in range(count):
        call()
    assert before == open_numbers()
    assert resident() - memory < GROWTH


def counts(few: int, full: int):
    return pytest.mark.parametrize("count", [few // STRIDE, pytest.param(full, marks=SLOW)])


# Round trips


def one_descriptor(fdpass, a, b):
    sent = [0]

    def call():
        fdpass.send_fds(a, [b"x"], sent)
        for fd in fdpass.recv_fds(b, 1, 1)[1]:
            os.close(fd)

    return call


def by_ancdata(fdpass, a, b):
    ancdata = rights([0, 1])

    def call():
        fdpass.sendmsg(a, [b"some", b"data"], ancdata)
        close(fds_in(fdpass.recvmsg(b, 100, 100)[1]))

    return call


def into_buffers(fdpass, a, b):
    ancdata, buffers = rights([0]), [bytearray(3), bytearray(100)]

    def call():
        fdpass.sendmsg(a, [b"some data"], ancdata)
        close(fds_in(fdpass.recvmsg_into(b, buffers, 100)[1]))

    return call


def large(fdpass, a, b):
    data = bytes(100_000)

    def call():
        fdpass.send_fds(a, [data], [0, 1, 2])
        close(fdpass.recv_fds(b, 200_000, 3)[1])

    return call


TRIPS = {  # and by how much fewer of them than of the first
    "one-descriptor": (one_descriptor, 1),
    "ancdata": (by_ancdata, 5),
    "into": (into_buffers, 5),
    "large": (large, 20),
}


@counts(4000, 1_000_000)
@pytest.mark.parametrize("name", TRIPS)
def test_round_trips(fdpass, name, count):
    """Sending, receiving and closing leaves nothing behind."""
    trip, fewer = TRIPS[name]
    with pair() as (a, b):
        for sock in (a, b):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        many(trip(fdpass, a, b), count // fewer)


# Error paths


def fails(call, *args, code=None, error=OSError):
    """A call that must raise `error`, with the errno `code`."""
    try:
        call(*args)
    except error as caught:
        assert code in (None, getattr(caught, "errno", None))  # noqa: PT017
        return
    raise AssertionError("it did not fail")


def cut_control_data(fdpass, s):
    s.a.sendmsg([b"x"], rights([0, 1, 2]))
    _, ancdata, flags, _ = fdpass.recvmsg(s.b, 1, socket.CMSG_LEN(4))
    assert (1, True) == (len(fds_in(ancdata)), bool(flags & socket.MSG_CTRUNC))
    close(fds_in(ancdata))


def more_than_asked_for(fdpass, s):
    s.a.sendmsg([b"x"], rights([0, 1, 2, 0, 1]))
    _, fds, flags, _ = fdpass.recv_fds(s.b, 1, 2)
    assert (2, True) == (len(fds), bool(flags & socket.MSG_CTRUNC))
    close(fds)


def malformed_buffers(fdpass, s):
    fails(fdpass.sendmsg, s.a, ["text"], error=TypeError)
    fails(fdpass.send_fds, s.a, [memoryview(bytes(10))[::2]], [0], error=BufferError)
    fails(fdpass.recvmsg_into, s.b, [b"read-only"], 100, error=TypeError)
    fails(fdpass.sendmsg, s.a, [b"x"] * 1025, code=errno.EMSGSIZE)


def bad_descriptors(fdpass, s):
    fails(fdpass.send_fds, s.a, [b"x"], [s.shut], code=errno.EBADF)
    fails(fdpass.send_fds, s.a, [b"x"], [0, s.shut], code=errno.EBADF)
    fails(fdpass.send_fds, s.a, [b"x"], [-1], code=errno.EBADF)
    fails(fdpass.sendmsg, s.a, [b"x"], rights([s.shut]), code=errno.EBADF)
    fails(fdpass.recv_fds, s.shut, 1, 1, code=errno.EBADF)


def nothing_there(fdpass, s):
    s.b.setblocking(False)
    fails(fdpass.recv_fds, s.b, 1, 1, code=errno.EAGAIN)
    fails(fdpass.recvmsg, s.b, 1, 100, code=errno.EAGAIN)
    fails(fdpass.recvmsg_into, s.b, [bytearray(1)], 100, code=errno.EAGAIN)


def no_room(fdpass, s):
    fails(fdpass.send_fds, s.full, [b"x"], [0], socket.MSG_DONTWAIT, code=errno.EAGAIN)
    fails(fdpass.sendmsg, s.full, [b"x"], [], socket.MSG_DONTWAIT, code=errno.EAGAIN)


def time_out(fdpass, s):
    s.b.settimeout(1e-6)
    s.full.settimeout(1e-6)
    fails(fdpass.recv_fds, s.b, 1, 1, code=errno.ETIMEDOUT)
    fails(fdpass.sendmsg, s.full, [b"x"], code=errno.ETIMEDOUT)


def too_many(fdpass, s):
    fails(fdpass.send_fds, s.a, [b"x"], [0] * 254, code=errno.EINVAL)


def no_data(fdpass, s):
    fails(fdpass.send_fds, s.a, [], [0], error=ValueError)


def no_peer(fdpass, s):
    fails(fdpass.send_fds, s.orphan, [b"x"], [0], code=errno.EPIPE)
    fails(fdpass.sendmsg, s.orphan, [bytes(100_000)], rights([0]), code=errno.EPIPE)
    assert (b"", [], 0, None) == fdpass.recv_fds(s.orphan, 10, 1)
    with pair() as (a, b):
        fdpass.send_fds(a, [b"x"], [0, 1])  # never received
        b.close()
        fails(fdpass.send_fds, a, [b"x"], [0], code=errno.EPIPE)


class Sockets(ExitStack):
    """What the error paths need: a pair, a full one, one without its peer, and a number that is not open."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = self.enter_context(pair())
        self.full, _ = self.enter_context(pair())
        fill(self.full)
        self.orphan, peer = self.enter_context(pair())
        peer.close()
        self.shut = os.dup(0)
        os.close(self.shut)


PATHS = (
    pytest.param(cut_control_data, marks=needs_real_kernel), more_than_asked_for, malformed_buffers, bad_descriptors,
    nothing_there, no_room, time_out, too_many, no_data, no_peer,
)  # fmt: skip


@counts(300, 10_000)
@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.__name__)
def test_error_paths(fdpass, path, count):
    """Failing again and again leaves nothing behind, and nothing was sent."""
    with Sockets() as sockets:
        many(lambda: path(fdpass, sockets), count)
        assert b"" == drain(sockets.b)


FULL_TABLE = """
import json, os, resource, socket, sys
import fdpass_cffi
from support import close, fds_in, open_numbers, rights
from test_stress import resident

name, room, count = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
a, b = socket.socketpair()
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
arrived = set()


def call():
    a.sendmsg([b"data"], rights([0, 1, 2]))
    if name == "recv_fds":
        data, fds, flags, address = fdpass_cffi.recv_fds(b, 10, 3)
    else:
        data, ancdata, flags, address = fdpass_cffi.recvmsg(b, 10, 100)
        fds = fds_in(ancdata)
    arrived.add((data.decode(), len(fds), flags))
    close(fds)


def amid_a_full_table(times):
    fillers = []
    try:
        while True:
            fillers.append(os.dup(0))
    except OSError:
        close([fillers.pop() for _ in range(room)])
    for _ in range(times):
        call()
    close(fillers)
    return open_numbers(), resident()


before, memory = amid_a_full_table(count // 4 + 50)
after, more = amid_a_full_table(count)
a.close()
b.close()
print(json.dumps({"left": len(after ^ before), "grown": more - memory, "arrived": sorted(arrived)}))
"""


@counts(300, 10_000)
@pytest.mark.parametrize("room", [0, 2])
@pytest.mark.parametrize("name", ["recv_fds", "recvmsg"])
def test_full_descriptor_table(fdpass, name, room, count):
    """With room for fewer descriptors than were sent, those come, MSG_CTRUNC says so, and nothing is left behind."""
    report = json.loads(run_child(fdpass, FULL_TABLE, name, room, count))
    assert [["data", room, socket.MSG_CTRUNC]] == report["arrived"]
    assert 0 == report["left"]
    assert report["grown"] < GROWTH

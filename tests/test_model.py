"""Random sends and receives against a plain model of what must arrive: which bytes, which descriptors, which error.

The model is a list of what is in the socket, each entry [data, inodes]. A stream read takes whole entries while they
are plain, and stops after the first that carries descriptors, also when it took only part of its bytes: unix(7). A peek
brings the first descriptors that are queued, even if their bytes lie beyond its buffer.
"""

from __future__ import annotations

import os
import socket
from contextlib import ExitStack

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from kernel import needs_mmsg, room_for
from support import PYPY, SOL_SOCKET, identities, open_numbers

INODES = 6
SIZES = st.one_of(st.integers(0, 40), st.sampled_from([1000, 70_000]))
COUNTS = st.one_of(st.integers(0, 5), st.sampled_from([0, 1, 2, 252, 253]))


class Traffic(RuleBasedStateMachine):
    """One socket pair; `queue` is what b has still to receive."""

    fdpass = None
    kind = socket.SOCK_STREAM

    def __init__(self):
        super().__init__()
        self.stack = ExitStack()
        self.before = open_numbers()
        self.queue = []
        self.held = []  # what was received and not closed: (OwnedFd, inode)
        self.closed = False
        self.serial = 0

    @initialize()
    def open(self):
        self.a, self.b = socket.socketpair(socket.AF_UNIX, self.kind)
        for sock in (self.a, self.b):
            self.stack.enter_context(sock)
            sock.setsockopt(SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
            sock.setblocking(False)
        self.files = []
        for _ in range(INODES):
            reading, writing = os.pipe()
            os.close(writing)
            self.files.append(reading)
            self.stack.callback(os.close, reading)
        self.inodes = identities(self.files)

    # What there is to send

    def message(self, size, count):
        self.serial += 1
        data = (b"%d," % self.serial * (size + 1))[:size]
        which = [(self.serial + i * i) % INODES for i in range(count)]
        return data, [self.files[i] for i in which], [self.inodes[i] for i in which]

    @property
    def stream(self):
        return self.kind == socket.SOCK_STREAM

    def room(self):
        return not self.closed and len(self.queue) < 8

    @precondition(lambda self: self.room())
    @rule(size=SIZES, count=COUNTS, dontwait=st.booleans())
    def sendall(self, size, count, dontwait):
        if self.stream and count:
            size = min(size, 1000)  # more than some pages are several chunks, of which a read stops after the first
        data, fds, inodes = self.message(size, count)
        if self.stream and count and not size:
            with pytest.raises(ValueError):
                self.fdpass.sendall_fds(self.a, data, fds)
        else:
            self.fdpass.sendall_fds(self.a, data, fds, socket.MSG_DONTWAIT * dontwait)
            if data or not self.stream:
                self.queue.append([data, inodes])

    @precondition(lambda self: self.room())
    @rule(extra=st.integers(1, 300), size=st.integers(0, 5))
    def sendall_many(self, extra, size):
        data, fds, inodes = self.message(size, 253 + extra)
        messages = -(-len(fds) // 253)
        if size < messages:
            with pytest.raises(ValueError):
                self.fdpass.sendall_fds(self.a, data, fds)
            return
        self.fdpass.sendall_fds(self.a, data, fds)
        for i in range(messages):
            last = i == messages - 1
            self.queue.append([data[i:] if last else data[i : i + 1], inodes[i * 253 : (i + 1) * 253]])

    @precondition(lambda self: self.room())
    @rule(shapes=st.lists(st.tuples(st.integers(0, 20), st.integers(0, 3)), max_size=6), same=st.booleans())
    def batch(self, shapes, same):
        if same:
            shapes = [(size, 1) for size, _ in shapes]
        made = [self.message(*shape) for shape in shapes]
        if self.stream and any(fds and not data for data, fds, _ in made):
            with pytest.raises(ValueError):
                self.fdpass.send_messages(self.a, [(data, fds) for data, fds, _ in made])
            return
        assert len(made) == self.fdpass.send_messages(self.a, [(data, fds) for data, fds, _ in made])
        self.queue += [[data, inodes] for data, _, inodes in made if data or not self.stream]

    @precondition(lambda self: not self.closed)
    @rule()
    def close_sender(self):
        self.a.close()
        self.closed = True

    # What must arrive

    def expected(self, bufsize, peek):
        """What the next receive brings: data, inodes, whether a datagram's end is lost; None: nothing is there."""
        if not self.queue:
            if not self.closed:
                return None
            return (b"", [], False) if self.kind != socket.SOCK_DGRAM else None
        if not self.stream:
            data, inodes = self.queue[0]
            if not peek:
                del self.queue[0]
            return data[:bufsize], inodes, len(data) > bufsize
        queue = [list(entry) for entry in self.queue] if peek else self.queue
        data, inodes = b"", []
        while queue and len(data) < bufsize:
            entry = queue[0]
            part = entry[0][: bufsize - len(data)]
            data, inodes = data + part, entry[1]
            entry[0], entry[1] = entry[0][len(part) :], []
            if peek and inodes:
                break
            if not entry[0]:
                del queue[0]
            if inodes:
                break
        if peek and not inodes:  # Linux looks on, whatever bufsize is, until it finds descriptors
            inodes = next((ahead for _, ahead in queue if ahead), [])
        return data, inodes, False

    def receive(self, call, bufsize, maxfds, flags, free=None):
        """One receive, held against the model; `free`: how many descriptors this process can still have."""
        peek = bool(flags & socket.MSG_PEEK)
        expected = self.expected(bufsize, peek)
        if expected is None:
            with pytest.raises(BlockingIOError):
                call(self.b, bufsize, maxfds, flags)
            return
        data, inodes, cut = expected
        full = free is not None and free < len(inodes)
        if len(inodes) > maxfds or full or (cut and not peek):
            with pytest.raises(self.fdpass.TruncatedError) as caught:
                call(self.b, bufsize, maxfds, flags)
            assert data == caught.value.data
            came = min(len(inodes), free) if full else len(inodes)
            reason = "maxfds" if came > maxfds else "table-full" if full else "data"
            assert reason == caught.value.reason
            assert (came if reason != "maxfds" else maxfds) <= caught.value.received <= came
            return
        message = call(self.b, bufsize, maxfds, flags)
        assert data == message.data
        assert len(inodes) == len(message.fds)
        self.held += zip(message.fds, inodes)

    @rule(bufsize=st.one_of(st.integers(1, 50), st.just(100_000)), maxfds=COUNTS, peek=st.integers(0, 3))
    def recv(self, bufsize, maxfds, peek):
        self.receive(self.fdpass.recv_message, bufsize, maxfds, socket.MSG_PEEK * (not peek))

    @rule(bufsize=st.one_of(st.integers(1, 50), st.just(100_000)))
    def recv_all(self, bufsize):
        self.receive(self.fdpass.recv_message, bufsize, 253, 0)

    @rule(bufsize=st.integers(1, 50), maxfds=st.integers(0, 4), native=st.booleans())
    def recv_one_by_a_batch(self, bufsize, maxfds, native):
        def call(sock, bufsize, maxfds, flags):
            if native:
                return self.fdpass.recv_messages(sock, 1, bufsize, maxfds, flags)[0]
            return self.fdpass.recvmmsg.recv_one_by_one(sock, sock.fileno(), 1, bufsize, maxfds, flags)[0]

        self.receive(call, bufsize, maxfds, 0)

    @precondition(lambda self: self.queue)
    @rule(n=st.integers(2, 6), native=st.booleans())
    def recv_batch(self, n, native):
        if native:
            messages = self.fdpass.recv_messages(self.b, n, 100_000, 253)
        else:
            messages = self.fdpass.recvmmsg.recv_one_by_one(self.b, self.b.fileno(), n, 100_000, 253, 0)
        for message in messages:
            data, inodes, _ = self.expected(100_000, False)
            assert (data, inodes) == (message.data, identities([owned.fileno() for owned in message.fds]))
            self.held += zip(message.fds, inodes)
        assert len(messages) == n or not self.queue

    @rule(bufsize=st.integers(1, 50), free=st.integers(0, 5), batch=st.booleans())
    def recv_when_full(self, bufsize, free, batch):
        def call(*args):
            if batch:
                return self.fdpass.recv_messages(args[0], 1, *args[1:])[0]
            return self.fdpass.recv_message(*args)

        self.release()
        with room_for(free):
            self.receive(call, bufsize, 253, 0, free)

    @precondition(lambda self: not self.queue and not self.closed)
    @rule()
    def time_out(self):
        self.b.settimeout(0.001)
        for receive in (self.fdpass.recv_message, lambda *args: self.fdpass.recv_messages(args[0], 2, *args[1:])):
            with pytest.raises(TimeoutError):
                receive(self.b, 1, 1)
        self.b.setblocking(False)

    @rule(how=st.sampled_from(["close", "detach"]))
    def release(self, how="close"):
        for owned, inode in self.held:
            assert inode == identities([owned.fileno()])[0]
            if how == "detach":
                os.close(owned.detach())
            else:
                owned.close()
        self.held = []

    @invariant()
    def nothing_else_is_open(self):
        if hasattr(self, "files"):
            expected = INODES + 2 - self.closed + len(self.held)
            assert expected == len(open_numbers() - self.before)

    def teardown(self):
        self.release()
        self.stack.close()
        assert self.before == open_numbers()


@needs_mmsg
@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_SEQPACKET])
@pytest.mark.parametrize("examples", [12 if PYPY else 25, pytest.param(400, marks=pytest.mark.slow)])
def test_what_arrives_is_what_a_plain_model_says(fdpass, kind, examples):
    """Sends, batches, peeks, truncations, full tables, timeouts, closes in any order bring what the model says."""
    machine = type("Traffic", (Traffic,), {"fdpass": fdpass, "kind": kind})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=examples, stateful_step_count=25, deadline=None, database=None,
            suppress_health_check=list(HealthCheck), derandomize=examples < 100,
            phases=[Phase.generate, Phase.shrink],  # to explain would trace every line
        ),
    )  # fmt: skip

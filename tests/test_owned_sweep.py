"""Law 1 for what owns: an exception at any bytecode boundary of recv_message, a batch, Message's end, peer_pidfd.

The sweep and its decoys against a double close are those of test_sweep. What is swept is the call together with the
end of what it returned, so that the window between them is in it; what nobody owned any more, its finalizer closes.
"""

from __future__ import annotations

import array
import gc
import os
import socket
import sys
import warnings
from contextlib import contextmanager, suppress
from functools import partial

import pytest
from kernel import needs_mmsg, needs_peer_pidfd, needs_pidfd
from support import PYPY, SOL_SOCKET, STRIDE, descriptors, open_numbers, pair, rights, run_child
from test_sweep import PASSCRED, PASSPIDFD, Alarm, Bare, interrupted, left_by

SEQPACKET, STREAM, DGRAM = socket.SOCK_SEQPACKET, socket.SOCK_STREAM, socket.SOCK_DGRAM


@pytest.fixture
def quiet(monkeypatch):
    """Finalizers close what was dropped, and say so; neither that nor an exception in one is to fail the test."""
    monkeypatch.setattr(sys, "unraisablehook", lambda _: None)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        if not PYPY:
            gc.freeze()
        yield
        if not PYPY:
            gc.unfreeze()


def one(fdpass, sock, bufsize=100, maxfds=5, flags=0):
    with fdpass.recv_message(sock, bufsize, maxfds, flags):
        pass


def one_lost(fdpass, sock, bufsize=100, maxfds=1):
    with suppress(fdpass.TruncatedError):
        fdpass.recv_message(sock, bufsize, maxfds)


def batch(fdpass, sock, maxfds=5):
    for message in fdpass.recv_messages(sock, 4, 100, maxfds):
        message.close()


def loop(fdpass, sock, maxfds=5):
    for message in fdpass.recvmmsg.recv_one_by_one(sock, sock.fileno(), 4, 100, maxfds, 0):
        message.close()


def batch_lost(fdpass, sock):
    try:
        fdpass.recv_messages(sock, 4, 100, 1)
    except fdpass.TruncatedError as error:
        for message in error.messages:
            if not isinstance(message, Exception):
                message.close()


def taken(fdpass, sock):
    message = fdpass.recv_message(sock, 100, 5)
    message.fds.pop().close()
    message.close()
    message.close()


def pidfd(fdpass, sock):
    with fdpass.peer_pidfd(sock):
        pass


CASES = {  # name: what to call, the descriptors in each message sent, options, kind of socket
    "one": (one, [1], (), STREAM),
    "one-none": (one, [0], (), STREAM),
    "one-several": (one, [3], (), STREAM),
    "one-all": (one, [2], (PASSCRED, PASSPIDFD), STREAM),
    "one-address": (one, [1], (), DGRAM),
    "one-peek": (partial(one, flags=socket.MSG_PEEK), [2], (), STREAM),
    "one-large": (partial(one, bufsize=100_000), [1], (), STREAM),
    "one-too-many": (one_lost, [3], (), STREAM),
    "one-too-many-all": (one_lost, [3], (PASSCRED, PASSPIDFD), STREAM),
    "one-too-long": (partial(one_lost, bufsize=3), [1], (), SEQPACKET),
    "taken": (taken, [3], (), STREAM),
    "batch": (batch, [1, 1], (), SEQPACKET),
    "batch-mixed": (batch, [0, 2], (), SEQPACKET),
    "batch-all": (batch, [1, 1], (PASSCRED, PASSPIDFD), SEQPACKET),
    "batch-address": (batch, [1, 1], (), DGRAM),
    "batch-lost": (batch_lost, [1, 2], (), SEQPACKET),
    "loop": (loop, [1, 1], (), SEQPACKET),
    "peer_pidfd": (pidfd, [], (), STREAM),
}
MARKS = {"batch": needs_mmsg, "peer_pidfd": needs_peer_pidfd}


def ways():
    """Each case in one way, the plain ones in both; the other ways are among the full counts."""
    for i, name in enumerate(CASES):
        for j, (pool, error) in enumerate([("empty", Bare), ("warm", KeyboardInterrupt)]):
            marks = [MARKS[kind] for kind in MARKS if name.split("-")[0] == kind]
            if "-" in name and i % 2 != j:
                marks.append(pytest.mark.slow)
            yield pytest.param(name, pool, error, id=f"{name}-{pool}", marks=marks)


@contextmanager
def waiting(fdpass, call, counts, options, kind, sent):
    """A socket pair with messages waiting, and the call to make."""
    with pair(kind) as (a, b):
        if kind == DGRAM:
            a.bind(b"\0sweep" + os.urandom(4))
        for option in options:
            b.setsockopt(SOL_SOCKET, option, 1)
        for count in counts:
            a.sendmsg([b"some data"], rights(sent[:count]) if count else [])
        yield partial(call, fdpass, b)


# PyPy runs some finalizers only some collections later, when the sweep has already looked at the table; there the
# storm of real signals below, which looks at the end, has to do.
@pytest.mark.skipif(PYPY, reason="PyPy runs finalizers later than the sweep looks; see the storm of signals")
@pytest.mark.parametrize(("name", "pool", "error"), list(ways()))
def test_an_exception_anywhere_leaves_nothing_open(fdpass, name, pool, error, quiet):
    """Whatever boundary a call or the end of its message is left at, the table is as before, nothing closed twice."""
    call, counts, options, kind = CASES[name]
    if PASSPIDFD in options and needs_pidfd.args[0]:
        pytest.skip(needs_pidfd.kwargs["reason"])

    @contextmanager
    def prepare():
        if pool == "empty":
            fdpass._scratch.incoming_pool.clear()
            fdpass._scratch.rights_in_pool.clear()
            fdpass.recvmmsg._pool.clear()
        with waiting(fdpass, call, counts, options, kind, sent) as ready:
            yield ready

    with descriptors(3) as sent:
        with prepare() as ready:
            ready()
        found, boundaries = left_by(os.path.dirname(fdpass.__file__), prepare, error)
    assert [] == found
    assert boundaries > 60


class Missing(IndexError):
    """Another error that the package itself expects."""


@pytest.mark.skipif(PYPY, reason="lines are too coarse to come between a call and its bookkeeping")
@pytest.mark.parametrize("error", [Alarm, Missing])
def test_a_handlers_error_comes_out_and_the_descriptor_is_closed(fdpass, error, quiet):
    """What a signal handler raises is not taken for the close's own failure, whose descriptor would be gone."""
    folder, swallowed = os.path.dirname(fdpass.__file__), []
    for n in range(1, 1000, STRIDE):
        with descriptors(1) as made:
            fd = os.dup(made[0])
            message = fdpass.Message(b"", [fdpass.OwnedFd(fd)])
            _, reached, raised = interrupted(folder, n, error, message.close)
            swallowed += [n] if reached and not raised else []
            message.close()
            assert fd not in open_numbers(), n
            if not reached:
                break
    assert [] == swallowed


def leaks(fdpass, sock):
    """As somebody would write it who has no owner for what he was given."""
    _, ancdata, _, _ = sock.recvmsg(100, 100)
    fd = array.array("i", ancdata[0][2])[0]
    fdpass.CMSG_LEN(1)
    os.close(fd)


def test_the_sweep_finds_a_leak(fdpass, quiet):
    """The same sweep over code with bare ints finds what it leaves open."""
    with descriptors(1) as sent:
        prepare = partial(waiting, fdpass, leaks, [1], (), STREAM, sent)
        found, boundaries = left_by(__file__, prepare, Bare)
    assert 0 < len(found) < boundaries


# The numbers on the exception of a send


@pytest.mark.skipif(PYPY, reason="lines are too coarse to come between a call and its bookkeeping")
@pytest.mark.parametrize("count", [1, 300])
def test_the_numbers_are_right_wherever_an_exception_comes_in(fdpass, count, quiet):
    """`bytes_sent` and `fds_sent` are what arrives, at every boundary of sendall_fds."""
    folder, told = os.path.dirname(fdpass.__file__), 0
    with descriptors(1) as one_fd:
        for n in range(1, 3000, STRIDE):
            with pair() as (a, b):
                caught = []
                call = partial(noting, caught, fdpass.sendall_fds, a, b"abc", one_fd * count)
                _, reached, raised = interrupted(folder, n, Bare, call)
                data, fds = arrived(fdpass, b)
                if raised and hasattr(caught[0], "fds_sent"):
                    told += 1
                    assert (data, fds) == (caught[0].bytes_sent, caught[0].fds_sent), n
                elif raised:  # before it began, or at the last `return`
                    assert (data, fds) in {(0, 0), (3, count)}, n
                if not reached:
                    break
    assert told > 50 // STRIDE


@pytest.mark.skipif(PYPY, reason="lines are too coarse to come between a call and its bookkeeping")
@pytest.mark.parametrize("way", [pytest.param("native", marks=needs_mmsg), "loop"])
@pytest.mark.parametrize("count", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_the_numbers_of_a_batch_are_right_wherever_an_exception_comes_in(fdpass, way, count, quiet, monkeypatch):
    """`messages_sent`, and with it the other two, are what arrives, at every boundary of send_messages."""
    if way == "loop":
        monkeypatch.setattr(fdpass.sendmmsg, "lib_sendmmsg", None)
    folder, told = os.path.dirname(fdpass.__file__), 0
    with descriptors(1) as one_fd:
        for n in range(1, 3000):
            with pair(SEQPACKET) as (a, b):
                caught = []
                call = partial(noting, caught, fdpass.send_messages, a, [(b"abc", one_fd * count)] * 3)
                _, reached, raised = interrupted(folder, n, Bare, call)
                came = arrived(fdpass, b)
                if raised and hasattr(caught[0], "messages_sent"):
                    told += 1
                    went, rest = caught[0].messages_sent, (caught[0].bytes_sent, caught[0].fds_sent)
                    assert (came, (0, 0)) == ((3 * went, count * went), rest), n
                elif raised:  # before it began, or at the last `return`
                    assert came in {(0, 0), (9, 3 * count)}, n
                if not reached:
                    break
    assert told > 50


def noting(caught, call, *args):
    try:
        return call(*args)
    except BaseException as error:
        caught.append(error)
        raise


def arrived(fdpass, sock):
    data = fds = 0
    while True:
        try:
            with fdpass.recv_message(sock, 100, 253, socket.MSG_DONTWAIT) as message:
                data, fds = data + len(message.data), fds + len(message.fds)
        except BlockingIOError:
            return data, fds


# Real signals

STORM = """
# One signal at a time: a second one, into the cleaning up after the first, is beyond what can be promised.
import gc, os, random, signal, socket, sys, time, warnings
from fdpass_cffi import TruncatedError, pass_pidfd, peer_pidfd, recv_message, recv_messages, send_messages
warnings.simplefilter("ignore")
sys.unraisablehook = lambda unraisable: None
a, b = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
for sock in (a, b):
    sock.settimeout(0.02)
if "pidfd" in sys.argv:
    pass_pidfd(b)

def work():
    send_messages(a, [(b"data", [0, 1]), (b"data", [0]), (b"data", [0, 1, 2])], socket.MSG_DONTWAIT)
    with recv_message(b, 10, 2):
        pass
    try:
        for message in recv_messages(b, 5, 10, 1):
            message.close()
    except TruncatedError as error:
        for message in error.messages:
            if not isinstance(message, Exception):
                message.close()
    if "pidfd" in sys.argv:
        peer_pidfd(a).close()

def numbers():
    gc.collect()
    gc.collect()
    return sorted(os.listdir("/proc/self/fd"), key=int)

def run(seconds):
    global hits
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            while time.monotonic() < end:
                signal.setitimer(signal.ITIMER_REAL, random.uniform(0.00002, 0.001))
                work()
        except KeyboardInterrupt:
            hits += 1
        except OSError:
            pass

hits = 0
package = os.path.dirname(sys.modules['fdpass_cffi'].__file__)
before = numbers()
def handler(*_):
    code = sys._getframe(1).f_code
    if code.co_name != "__del__" and code.co_filename.startswith(package):
        raise KeyboardInterrupt
signal.signal(signal.SIGALRM, handler)
run(float(sys.argv[1]))
signal.signal(signal.SIGALRM, signal.SIG_IGN)
print(len(numbers()) - len(before), hits > 20)
a.close(); b.close()
"""


@pytest.mark.parametrize("seconds", [1])
def test_real_signals_leave_nothing_open(fdpass, seconds):
    """KeyboardInterrupts by the hundred, from a timer that rings at any time inside the package, leave no trace."""
    args = [] if needs_pidfd.args[0] or needs_peer_pidfd.args[0] else ["pidfd"]
    assert "0 True\n" == run_child(fdpass, STORM, seconds, *args)

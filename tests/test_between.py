"""What comes in between: exceptions and what they leave, handlers that change things amid a call, full tables."""

from __future__ import annotations

import array
import errno
import gc
import operator
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
from contextlib import suppress

import anyio
import pytest
from support import (
    PYPY,
    SOON,
    Wrapper,
    alarm,
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

SEQPACKET = socket.SOCK_SEQPACKET
SENDS = {
    "sendmsg": lambda m, sock, data: m.sendmsg(sock, [data]),
    "sendmsg-two": lambda m, sock, data: m.sendmsg(sock, [data, data]),
    "send_fds": lambda m, sock, data, fds=(0,): m.send_fds(sock, [data], fds),
    "sendall_fds": lambda m, sock, data, fds=(0,): m.sendall_fds(sock, data, fds),
    "send_messages": lambda m, sock, data: m.send_messages(sock, [(data, [0])]),
}
RECEIVES = {
    "recvmsg_into": lambda m, sock, data: m.recvmsg_into(sock, [data]),
    "recvmsg_into-fd": lambda m, sock, data: m.recvmsg_into(sock.fileno(), [data], 0, socket.MSG_DONTWAIT),
    "recvmsg_into-control": lambda m, sock, data: m.recvmsg_into(sock, [data, data], 100),
}


@pytest.mark.parametrize("name", [*SENDS, *RECEIVES])
def test_a_buffer_can_grow_while_the_exception_lives(fdpass, name):
    """As with `socket`: who gets a BlockingIOError may go on filling the very buffer at once, and keep the error."""
    with pair(SEQPACKET) as (a, b):
        a.setblocking(False)
        b.setblocking(False)
        if name in SENDS:
            fill(a)
        buffer = bytearray(b"some data")
        with pytest.raises(BlockingIOError) as caught:
            {**SENDS, **RECEIVES}[name](fdpass, a if name in SENDS else b, buffer)
        buffer += b", and more"
        assert errno.EAGAIN == caught.value.errno


WRONG = {
    "send_fds-bool": lambda m, sock, data: m.send_fds(sock, [data], [0, True]),
    "send_fds-negative": lambda m, sock, data: m.send_fds(sock, [data], [-1]),
    "send_fds-buffer": lambda m, sock, data: m.send_fds(sock, [data, "text"], [0]),
    "send_fds-buffers": lambda m, sock, data: m.send_fds(sock, [data] * 1025, [0]),
    "send_fds-address": lambda m, sock, data: m.send_fds(sock, [data], [0], 0, 7),
    "sendmsg-buffer": lambda m, sock, data: m.sendmsg(sock, [data, "text"]),
    "sendmsg-address": lambda m, sock, data: m.sendmsg(sock, [data], [], 0, 7),
    "sendmsg-ancdata": lambda m, sock, data: m.sendmsg(sock, [b"data"], [(1, 2, data), (1, 1, "text")]),
    "sendall_fds": lambda m, sock, data: m.sendall_fds(sock, data, [True]),
    "sendall_fds-address": lambda m, sock, data: m.sendall_fds(sock, data, [0], 0, 7),
    "send_messages": lambda m, sock, data: m.send_messages(sock, [(data, [0]), (data, [True])]),
    "recvmsg_into": lambda m, sock, data: m.recvmsg_into(sock, [data, b"read-only"]),
    "recvmsg_into-buffers": lambda m, sock, data: m.recvmsg_into(sock, [data] * 1025),
    "recvmsg_into-control": lambda m, sock, data: m.recvmsg_into(sock, [data, b"read-only"], 100),
    "recvmsg_into-ancbufsize": lambda m, sock, data: m.recvmsg_into(sock, [data], -1),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_buffer_can_grow_after_another_argument_was_refused(fdpass, name):
    """The same of every error that comes before the call, in an argument beside the buffer."""
    buffer = bytearray(5000)
    with pair() as (a, _):
        with pytest.raises((TypeError, ValueError, OSError)) as caught:
            WRONG[name](fdpass, a, buffer)
        buffer += b", and more"
        assert caught.value is not None


@pytest.mark.parametrize("name", ["sendmsg", "recvmsg_into"])
def test_a_refused_view_can_be_released(fdpass, name):
    """What was asked of a memoryview that is not contiguous is forgotten with its release."""
    buffer = bytearray(20)
    with pair() as (a, _), memoryview(buffer)[::2] as view, pytest.raises(BufferError) as caught:
        getattr(fdpass, name)(a, [view])
    buffer += b"more"
    assert "buffers" in str(caught.value)


class Index:
    """One that becomes a number by `__index__`, which does something else too."""

    def __init__(self, number, act=lambda: None):
        self.number, self.act = number, act

    def __index__(self):
        self.act()
        return self.number


class Both(Index):
    """One that `__index__` and `fileno` give different numbers of."""

    def fileno(self):
        return -5


@pytest.mark.parametrize("name", ["send_fds", "sendall_fds"])
def test_a_list_that_its_items_change_is_checked_as_it_was(fdpass, name):
    """What an item's __index__ puts in another's place, or adds, is not looked at, and what it replaces still is."""
    with pair() as (a, b), descriptors(2) as sent:
        fds = [Index(sent[0], lambda: fds.__setitem__(1, sent[1])), True]
        with pytest.raises(TypeError, match=r"^fds\[1\] is not a file descriptor: True$"):
            SENDS[name](fdpass, a, b"x", fds)
        more = [Index(0, lambda: more.append(sent[0])), sent[1]]
        SENDS[name](fdpass, a, b"x", more)
        got = fdpass.recv_fds(b, 10, 10)[1]
        assert identities([0, sent[1]]) == identities(got)
        close(got)


class Own:
    """An open descriptor that is closed with its object, and says nothing of it."""

    def __init__(self, path):
        self.fd = os.open(path, os.O_RDONLY)

    def fileno(self):
        return self.fd

    def __del__(self):
        os.close(self.fd)


def by_batch(module, sock, data, fds):
    assert 1 == module.send_messages(sock, [(data, fds)])


def by_channel(module, sock, data, fds):
    with module.Channel(sock.dup()) as channel:
        channel.send(data, fds)


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("send", [SENDS["send_fds"], SENDS["sendall_fds"], by_batch, by_channel])
def test_files_that_nobody_else_knows_are_sent(fdpass, send, count):
    """What an iterator opens is open until it was sent, and closed afterwards."""
    with pair() as (a, b):
        send(fdpass, a, b"x", (Own(os.devnull) for _ in range(count)))
        gc.collect()
        got = fdpass.recv_fds(b, 10, 10)[1]
        assert [os.stat(os.devnull).st_ino] * count == [os.fstat(fd).st_ino for fd in got]
        close(got)


def test_a_number_by_index_counts_before_one_by_fileno(fdpass):
    """As in socket.send_fds, and whatever stands beside it in the list."""
    with pair() as (a, b), descriptors(2) as sent, open(os.devnull) as file:
        for fds in [Both(sent[1])], [Both(sent[1]), sent[0]], [Both(sent[1]), 0], [Both(sent[1]), file]:
            fdpass.send_fds(a, [b"x"], fds)
            got = fdpass.recv_fds(b, 10, 10)[1]
            assert identities(sent[1:]) == identities(got[:1])
            close(got)


def test_a_handler_that_cannot_be_called_is_heard_of(fdpass):
    """A TypeError that a wrong handler makes comes out of the call that it strikes, and does not begin it anew."""

    def struck(sock, buffers):
        signal.setitimer(signal.ITIMER_REAL, SOON)
        return fdpass.recvmsg_into(sock, buffers)

    with pair() as (a, b), on_alarm(print, 600):
        signal.signal(signal.SIGALRM, lambda: None)
        for buffers in [bytearray(9)], [bytearray(9), bytearray(9)]:
            late = threading.Timer(50 * SOON, a.send, [b"late"])  # what a call that began anew would return
            late.start()
            try:
                with pytest.raises(TypeError, match="argument"):
                    struck(b, buffers)
            finally:
                late.cancel()
                late.join()


class Proxy:
    """Of a file, in the way of those whose class has all special methods, whatever they stand for."""

    def __init__(self, fd):
        self.fileno = lambda: fd

    __index__ = operator.index


@pytest.mark.parametrize("send", ["send_fds", "sendall_fds"])
def test_a_proxy_of_a_file_is_one(fdpass, send):
    """An __index__ that fails leaves it to fileno()."""
    with pair() as (a, b), descriptors(2) as sent:
        for fds in [Proxy(sent[1])], [sent[1], Proxy(sent[1])]:
            SENDS[send](fdpass, a, b"x", fds)
            got = fdpass.recv_fds(b, 10, 10)[1]
            assert identities(sent[1:] * len(fds)) == identities(got)
            close(got)


def test_the_error_is_the_calls_own(fdpass):
    """What becomes of the list of descriptors while the buffers are gathered does not change what is said."""

    def buffers():
        fds[0] = "text"
        yield b"data"

    with pair(SEQPACKET) as (a, _):
        a.setblocking(False)
        fill(a)
        fds = [a.fileno()]
        with pytest.raises(BlockingIOError):
            fdpass.send_fds(a, buffers(), fds)


def test_a_channels_buffer_can_grow_while_the_exception_lives(fdpass):
    """The same of Channel.send, for a message of which a part has gone."""
    a, b = fdpass.Channel.pair()
    with a, b:
        a._sock.setblocking(False)
        buffer = bytearray(5_000_000)
        with pytest.raises(BlockingIOError) as caught:
            a.send(buffer, [0])
        buffer += b"more"
        assert caught.value.bytes_sent > 0


WAITS = {
    "recvmsg": lambda m, sock: m.recvmsg(sock, 100, 100),
    "recv_fds": lambda m, sock: m.recv_fds(sock, 100, 1),
    "recv_message": lambda m, sock: m.recv_message(sock, 100, 1),
    "recv_messages": lambda m, sock: m.recv_messages(sock, 2, 100, 1),
    "recvmsg_into": lambda m, sock: m.recvmsg_into(sock, [bytearray(100)]),
    "recvmsg_into-control": lambda m, sock: m.recvmsg_into(sock, [bytearray(100)], 100),
    "sendmsg": lambda m, sock: m.sendmsg(sock, [b"mine"]),
    "send_fds": lambda m, sock: m.send_fds(sock, [b"mine"], [0]),
    "sendall_fds": lambda m, sock: m.sendall_fds(sock, b"mine", [0]),
    "send_messages": lambda m, sock: m.send_messages(sock, [(b"mine", [0])]),
}


@pytest.mark.parametrize("timeout", [None, 60], ids=["blocking", "timeout"])
@pytest.mark.parametrize("name", WAITS)
def test_a_number_that_has_become_another_sockets(fdpass, name, timeout):
    """A socket that a signal handler closes amid a call on it is closed for that call: nothing goes by its number."""
    with pair(SEQPACKET) as (a, b), pair(SEQPACKET) as (other, peer), descriptors(1) as sent:
        number = a.fileno()
        a.settimeout(timeout)
        if name.startswith("send"):
            fill(a)
        peer.sendmsg([b"somebody else's"], rights(sent))
        moved = []

        def strike():
            if not moved:
                a.close()
                moved.append(os.dup2(other.fileno(), number))

        try:
            with on_alarm(strike, SOON, SOON), pytest.raises(OSError) as caught:
                WAITS[name](fdpass, a)
        finally:
            close(moved)
        assert errno.EBADF == caught.value.errno
        peer.setblocking(False)
        with pytest.raises(BlockingIOError):
            peer.recv(100)
        assert b"somebody else's" == other.recv(100)
        b.setblocking(False)
        drain(b)


ARGUMENTS = {
    "recvmsg-bufsize": lambda m, sock, act: m.recvmsg(sock, Index(100, act), 100),
    "recvmsg-ancbufsize": lambda m, sock, act: m.recvmsg(sock, 100, Index(100, act)),
    "recvmsg-flags": lambda m, sock, act: m.recvmsg(sock, 100, 100, Index(0, act)),
    "recv_fds-bufsize": lambda m, sock, act: m.recv_fds(sock, Index(100, act), 1),
    "recv_fds-maxfds": lambda m, sock, act: m.recv_fds(sock, 100, Index(1, act)),
    "recv_fds-flags": lambda m, sock, act: m.recv_fds(sock, 100, 1, Index(0, act)),
    "recv_message-maxfds": lambda m, sock, act: m.recv_message(sock, 100, Index(1, act)),
    "recv_messages-n": lambda m, sock, act: m.recv_messages(sock, Index(2, act), 100, 1),
    "recv_messages-maxfds": lambda m, sock, act: m.recv_messages(sock, 2, 100, Index(1, act)),
    "recvmsg_into-buffers": lambda m, sock, act: m.recvmsg_into(sock, acting(act, bytearray(100))),
    "recvmsg_into-ancbufsize": lambda m, sock, act: m.recvmsg_into(sock, [bytearray(100)], Index(100, act)),
    "recvmsg_into-flags": lambda m, sock, act: m.recvmsg_into(sock, [bytearray(100)], 0, Index(0, act)),
    "sendmsg-buffers": lambda m, sock, act: m.sendmsg(sock, acting(act, b"mine")),
    "sendmsg-ancdata": lambda m, sock, act: m.sendmsg(sock, [b"mine"], acting(act)),
    "sendmsg-flags": lambda m, sock, act: m.sendmsg(sock, [b"mine"], [], Index(0, act)),
    "send_fds-buffers": lambda m, sock, act: m.send_fds(sock, acting(act, b"mine"), [0]),
    "send_fds-fds": lambda m, sock, act: m.send_fds(sock, [b"mine"], acting(act, 0)),
    "send_fds-index": lambda m, sock, act: m.send_fds(sock, [b"mine"], [Index(0, act)]),
    "send_fds-flags": lambda m, sock, act: m.send_fds(sock, [b"mine"], [0], Index(0, act)),
    "sendall_fds-fds": lambda m, sock, act: m.sendall_fds(sock, b"mine", acting(act, 0)),
    "sendall_fds-flags": lambda m, sock, act: m.sendall_fds(sock, b"mine", [0], Index(0, act)),
    "send_messages-messages": lambda m, sock, act: m.send_messages(sock, acting(act, (b"mine", [0]))),
    "send_messages-fds": lambda m, sock, act: m.send_messages(sock, [(b"mine", acting(act, 0))]),
    "send_messages-index": lambda m, sock, act: m.send_messages(sock, [(b"mine", [Index(0, act)])]),
    "send_messages-flags": lambda m, sock, act: m.send_messages(sock, [(b"mine", [0])], Index(0, act)),
}


def acting(act, *items):
    """`items`, after something else was done."""
    act()
    yield from items


@pytest.mark.parametrize("shape", [lambda sock: sock, Wrapper], ids=["socket", "object"])
@pytest.mark.parametrize("name", ARGUMENTS)
def test_a_number_that_an_argument_makes_another_sockets(fdpass, name, shape):
    """The same of a socket that an argument's __index__ or an iterator closes, when it is looked at for the call."""
    with pair(SEQPACKET) as (a, _), pair(SEQPACKET) as (other, peer), descriptors(1) as sent:
        number = a.fileno()
        peer.sendmsg([b"somebody else's"], rights(sent))
        moved = []

        def act():
            if not moved:
                a.close()
                moved.append(os.dup2(other.fileno(), number))

        try:
            with pytest.raises(OSError) as caught:
                ARGUMENTS[name](fdpass, shape(a), act)
        finally:
            close(moved)
        assert (errno.EBADF, 1) == (caught.value.errno, len(moved))
        peer.setblocking(False)
        with pytest.raises(BlockingIOError):
            peer.recv(100)
        assert b"somebody else's" == other.recv(100)


def test_descriptors_as_bytes(fdpass):
    """Bytes are taken for the C ints in them, as `socket.send_fds` takes them, and not each byte for a descriptor."""
    with pair() as (a, b), descriptors(2) as sent:
        assert 1 == fdpass.send_fds(a, [b"x"], array.array("i", sent).tobytes())
        _, fds, _, _ = fdpass.recv_fds(b, 10, 10)
        close(fds)
        assert len(sent) == len(fds)
        with pytest.raises(ValueError, match="^fds: 3 bytes"):
            fdpass.send_fds(a, [b"x"], b"123")


@pytest.mark.parametrize("name", ["recv_fds", "recvmsg", "Channel"])
def test_a_frame_that_a_handler_keeps(fdpass, name):
    """A handler that keeps the frame it interrupted, and lets go of it later, costs the caller no descriptor then."""
    kept = []
    a, b = socket.socketpair()
    channel = fdpass.Channel(b)
    receives = {
        "recv_fds": lambda: [*fdpass.recv_fds(b, 10, 1)[1]],
        "recvmsg": lambda: fds_in(fdpass.recvmsg(b, 10, 100)[1]),
        "Channel": lambda: [one.detach() for one in channel.recv().fds],
    }
    with a, channel, descriptors(1) as sent:

        def keep():
            kept.append(sys._getframe())
            if len(kept) == 1:
                a.sendmsg([b"\0\0\0\1\0\0\0\1x" if name == "Channel" else b"x"], rights(sent))

        with on_alarm(keep, SOON):
            fds = receives[name]()
        assert kept
        kept.clear()
        gc.collect()
        assert identities(sent) == identities(fds)
        close(fds)
        if name == "Channel":
            a.close()
            with pytest.raises(EOFError):
                channel.recv()


def test_what_a_handler_raises_comes_out_of_a_recv(fdpass):
    """A BlockingIOError of a signal handler, as of a full wake-up pipe, is not taken for the socket's."""

    def strike():
        raise BlockingIOError(errno.EAGAIN, "the handler's")

    a, b = fdpass.Channel.pair()
    with a, b:
        with on_alarm(strike, SOON), pytest.raises(BlockingIOError, match="the handler's"):
            b.recv()
        a.send(b"after")
        assert b"after" == b.recv().data


def test_what_a_handler_raises_does_not_end_a_loop(fdpass):
    """An EOFError of a signal handler is not taken for the peer's end."""

    def strike():
        raise EOFError("the handler's")

    a, b = fdpass.Channel.pair()
    with a, b, on_alarm(strike, SOON), pytest.raises(EOFError, match="the handler's"):
        for _ in b:
            pass


def test_a_handlers_os_error_is_not_explained(fdpass):
    """send_fds gives an error of a signal handler as it is."""

    class Mine(OSError):
        pass

    strikes = []

    def strike():
        strikes.append(1)
        if len(strikes) > 2:  # the first one ends the first try, which is made elsewhere
            raise Mine(errno.ENOMEM, "the handler's")

    with pair() as (a, _):
        fill(a)
        with on_alarm(strike, SOON, SOON), pytest.raises(Mine, match="the handler's"):
            fdpass.send_fds(a, [b"data"], [0, 1])


def ring_after(monkeypatch, module, name, at):
    """Call the handler of SIGALRM at the end of the call number `at` of a function of a module."""
    real, calls = getattr(module, name), []

    def call(*args):
        result = real(*args)
        calls.append(1)
        if len(calls) == at:
            signal.raise_signal(signal.SIGALRM)
        return result

    monkeypatch.setattr(module, name, call)


def watchdog():
    raise TimeoutError("time is up")


def test_a_handlers_error_amid_a_loop_of_receives(fdpass, monkeypatch):
    """Where there is no recvmmsg(2), a handler's TimeoutError is no end of what is there: it is raised."""
    monkeypatch.setattr(fdpass.recvmmsg, "lib_recvmmsg", None)
    with pair(SEQPACKET) as (a, b):
        for data in (b"1", b"2", b"3"):
            fdpass.send_fds(a, [data], [0])
        ring_after(monkeypatch, fdpass._receive, "lib_recvmsg", 2)
        ring_after(monkeypatch, fdpass.message, "lib_recvmsg", 1)  # of the same arguments as the call before
        with on_alarm(watchdog, 0), pytest.raises(TimeoutError, match="time is up"):
            fdpass.recv_messages(b, 3, 10, 1)


def test_a_handlers_error_amid_a_loop_of_sends(fdpass, monkeypatch):
    """Where there is no sendmmsg(2), a handler's TimeoutError is raised, and says how many messages have gone."""
    monkeypatch.setattr(fdpass.sendmmsg, "lib_sendmmsg", None)
    with pair(SEQPACKET) as (a, b):
        ring_after(monkeypatch, fdpass.sendall, "keep_outgoing", 2)
        with on_alarm(watchdog, 0), pytest.raises(TimeoutError, match="time is up") as caught:
            fdpass.send_messages(a, [(b"1", [0]), (b"2", [0]), (b"3", [0])])
        b.setblocking(False)
        assert (2, b"12") == (caught.value.messages_sent, drain(b))


def test_a_handlers_error_amid_a_channels_close(fdpass, monkeypatch):
    """It is raised, and the socket and all descriptors are closed by then."""
    a, b = fdpass.Channel.pair()
    with a:
        a.send(b"data", [0, 0, 0])
        b._incoming.put_back(b.recv())  # as a recv that an exception leaves at its end
        ring_after(monkeypatch, fdpass.fd, "_close", 1)
        with on_alarm(watchdog, 0), pytest.raises(TimeoutError, match="time is up"):
            b.close()
        monkeypatch.undo()
        assert b.closed
        with alarm(20), pytest.raises(EOFError):
            a.recv()


def test_an_error_is_told_from_one_that_comes_from_elsewhere(fdpass):
    """That of a call which was made here has an errno, and no frame of its own in the traceback."""

    def refused():
        os.close(-1)

    for whose, call, args in (
        (True, os.close, (-1,)),
        (False, refused, ()),
        (False, socket.inet_aton, ("no address",)),  # an OSError without an errno, as another thread may raise here
    ):
        try:
            call(*args)
        except OSError:
            assert whose is fdpass._close.own_error()


def test_the_audit_hook_may_close_the_socket():
    """As with `socket`, what it closes is closed for the call: nothing goes to whoever has the number then."""
    code = """
import os, socket, sys, fdpass_cffi
a, b = socket.socketpair()
other, peer = socket.socketpair()
armed = []
def hook(event, args):
    if armed and event == "socket.sendmsg":
        armed.clear()
        number = a.fileno()
        a.close()
        os.dup2(other.fileno(), number)
sys.addaudithook(hook)
for send in (fdpass_cffi.send_fds, fdpass_cffi.sendmsg):
    for fds in ([0], [0, 0]) if send is fdpass_cffi.send_fds else ([],):
        armed.append(1)
        try:
            send(a, [b"mine"], fds)
        except OSError as error:
            print(error.errno)
        a = socket.socket(socket.AF_UNIX)
peer.setblocking(False)
try:
    peer.recv(10)
except BlockingIOError:
    print("nothing")
"""
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, check=True, timeout=60)
    assert [str(errno.EBADF)] * 3 + ["nothing"] == done.stdout.decode().split()


def test_a_table_that_fills_between_a_peek_and_its_read(fdpass, monkeypatch):
    """What a peek that filled its buffer has shown is not received once more, for which there may be no room then."""
    taken = []
    real = fdpass._incoming.Incoming.take

    def take(self, *arguments):
        with suppress(OSError):
            taken.append(os.dup(0))
        return real(self, *arguments)

    monkeypatch.setattr(fdpass._incoming.Incoming, "take", take)
    a, b = fdpass.Channel.pair()
    with a, b, descriptors(1) as sent:
        a.send(b"p" * 60_000)
        a.send(b"m" * 20_000, sent)
        limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        free = os.dup(0)
        os.close(free)
        resource.setrlimit(resource.RLIMIT_NOFILE, (free + 1, limits[1]))
        try:
            first, second = b.recv(), b.recv()
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
            close(taken)
        with second:
            assert (60_000, 20_000) == (len(first.data), len(second.data))
            assert identities(sent) == identities([one.fileno() for one in second.fds])


@pytest.mark.parametrize("which", ["buffers", "ancdata"])
def test_an_iterator_is_sent_after_a_wait_too(fdpass, which):
    """aio.sendmsg of a full socket sends what its iterators gave, and not what is left of them."""

    async def main(a, b, ancdata):
        given = {"buffers": [b"data"], "ancdata": ancdata}
        given[which] = iter(given[which])
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(fdpass.aio.sendmsg, a, given["buffers"], given["ancdata"])
            await anyio.wait_all_tasks_blocked()
            b.setblocking(False)
            drain(b)

    with pair(SEQPACKET) as (a, b), descriptors(1) as sent:
        a.setblocking(False)
        fill(a)
        anyio.run(main, a, b, rights(sent))
        with fdpass.recv_message(b, 100, 1) as message:
            assert (b"data", 1) == (message.data, len(message.fds))


@pytest.mark.parametrize("after", [1, 2, 4])
def test_a_list_that_changes_amid_a_send(fdpass, monkeypatch, after):
    """What a handler takes out of the list, or adds, while it is packed is sent or not, and no other descriptor."""

    def changing(real):
        def packing(*args):
            changed.append(fds[1:])
            fds[:] = [*fds, fds[0]][:after]
            return real(*args)

        return packing

    changed = []
    with pair() as (a, b), descriptors(5) as stale, descriptors(3) as sent:
        fdpass.send_fds(a, [b"x"], stale)
        close(fdpass.recv_fds(b, 10, 10)[1])
        if PYPY:
            monkeypatch.setattr(fdpass._send, "strategy", changing(fdpass._send.strategy))
        else:
            pack, *shape = fdpass._send.shape_for(3)
            monkeypatch.setitem(fdpass._send.shapes, 3, (changing(pack), *shape))
        fds = list(sent)
        fdpass.send_fds(a, [b"x"], fds)
        assert [sent[1:]] == changed
        got = fdpass.recv_fds(b, 10, 10)[1]
        assert identities(got) in (identities(sent), identities(fds))
        close(got)


def test_another_class_in_the_place_of_sockets():
    """Where socket.socket is a class of somebody else, as gevent's, its objects are taken all the same."""
    code = """
import socket
a, b = socket.socketpair()
class Wrapper:
    def __init__(self, sock): self.sock = sock
    def fileno(self): return self.sock.fileno()
    def gettimeout(self): return self.sock.gettimeout()
    @property
    def family(self): return self.sock.family
socket.socket = Wrapper
import fdpass_cffi
sent = fdpass_cffi.send_fds(Wrapper(a), [b"x"], [0])
got = fdpass_cffi.recvmsg_into(Wrapper(b), [bytearray(4)])
print(sent, got[0])
a.close(), b.close()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ("1 1\n", "") == (done.stdout, done.stderr)


def test_a_peeked_batch_is_one_message(fdpass):
    """recv_messages with MSG_PEEK does not give the first message as often as it was asked for messages."""
    with pair(SEQPACKET) as (a, b):
        a.send(b"one")
        a.send(b"two")
        assert [b"one"] == [message.data for message in fdpass.recv_messages(b, 4, 10, 0, socket.MSG_PEEK)]
        assert [b"one", b"two"] == [message.data for message in fdpass.recv_messages(b, 4, 10, 0)]


@pytest.mark.parametrize("call", ["recvmsg(sock, 100)", "recvmsg_into(sock, [bytearray(100)], 100)"])
def test_the_first_datagram_with_a_full_table(call):
    """What reads the sender's address is there before anything is received: nothing can be opened any more then."""
    code = f"""
import os, resource, socket
import fdpass_cffi
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
    sock.bind(("127.0.0.1", 0))
    sock.settimeout(0)
    try:
        fdpass_cffi.{call}
    except BlockingIOError:
        pass
    sock.sendto(b"precious", sock.getsockname())
    free = os.dup(0)
    os.close(free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free, free))
    print(fdpass_cffi.{call}[3] == sock.getsockname())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ("True\n", "") == (done.stdout, done.stderr)

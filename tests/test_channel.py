"""Channel: whole messages with descriptors, or an error that says why, and nothing lost in between."""

from __future__ import annotations

import dis
import errno
import gc
import os
import resource
import signal
import socket
import sys
import threading
from contextlib import contextmanager, suppress
from importlib import import_module

import pytest
from kernel import needs_credentials, needs_passrights, needs_pidfd
from support import (
    PYPY,
    STRIDE,
    alarm,
    close,
    descriptors,
    drain,
    fill,
    identities,
    non_blocking,
    on_alarm,
    open_numbers,
    rights,
    run_child,
    striking,
)
from test_sendall import refusing
from test_sweep import Alarm, Tracer, interrupted, swept  # noqa: F401 - a fixture

from fdpass_cffi.fd import AFTER_CALLS
from fdpass_cffi.frames import HEADER_SIZE, LITTLE

KINDS = [pytest.param(socket.SOCK_STREAM, id="stream"), pytest.param(socket.SOCK_SEQPACKET, id="seqpacket")]
both_kinds = pytest.mark.parametrize("kind", KINDS)


@contextmanager
def channels(fdpass, kind=socket.SOCK_STREAM, **limits):
    """Two connected channels, closed at the end."""
    a, b = (fdpass.Channel(end, **limits) for end in socket.socketpair(socket.AF_UNIX, kind))
    with a, b:
        yield a, b


@contextmanager
def behind(fdpass, kind=socket.SOCK_STREAM, **limits):
    """A bare socket and the channel at its other end."""
    sock, end = socket.socketpair(socket.AF_UNIX, kind)
    with sock, fdpass.Channel(end, **limits) as channel:
        yield sock, channel


@contextmanager
def running(*calls):
    """The calls in threads of their own, which must all have ended well at the end."""
    failed = []

    def run(call):
        try:
            call()
        except BaseException as error:  # noqa: BLE001 - shown by the caller
            failed.append(error)

    threads = [threading.Thread(target=run, args=(call,), daemon=True) for call in calls]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        for thread in threads:
            thread.join(60)
        assert [] == failed
        assert not any(thread.is_alive() for thread in threads)


def contents(message) -> tuple[bytes, list[tuple[int, int]]]:
    """The data and the identities of the descriptors, which are closed."""
    with message:
        return message.data, identities(owned.fileno() for owned in message.fds)


# Messages


@both_kinds
@pytest.mark.parametrize("count", [0, 1, 2, 252, 253, 254, 600])
@pytest.mark.parametrize("size", [0, 1, 64, 5000, 300_000])
def test_a_message_arrives_whole(fdpass, kind, size, count):
    """Any payload with any number of descriptors comes out as it went in, the descriptors in order."""
    data = bytes(range(256)) * (size // 256) + bytes(size % 256)
    with descriptors(7) as made, channels(fdpass, kind) as (a, b):
        fds = [made[i % 7] for i in range(count)]
        with running(lambda: a.send(data, fds)):
            assert (data, identities(fds)) == contents(b.recv())


@both_kinds
def test_messages_come_in_order_from_one_batch(fdpass, kind):
    """Messages sent before the first is received come out one by one, each with its own descriptors."""
    with descriptors(5) as made, channels(fdpass, kind) as (a, b):
        sent = [(bytes([i]) * i * 7, made[: i % 6]) for i in range(40)]
        for data, fds in sent:
            a.send(data, fds)
        assert [(data, identities(fds)) for data, fds in sent] == [contents(b.recv()) for _ in sent]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="elsewhere every frame keeps count of what has gone")
@pytest.mark.parametrize("before", range(5))
def test_a_small_frame_goes_whole_or_not_at_all(fdpass, before):
    """However small the socket's buffer and however full: Linux takes no part of a message that a frame is sent as."""
    a, b = socket.socketpair()
    size = fdpass._outgoing.SMALL
    with a, b, descriptors(1) as made:
        a.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
        for send in (a.send, lambda data: socket.send_fds(a, [data], made)):
            with non_blocking(a):
                for length in [1] * before + [size, size // 2, 1] * 100:
                    assert length == send(bytes(length))
            drain(b)


def test_many_small_messages_are_read_with_few_receives(fdpass, monkeypatch):
    """64 messages that wait in the socket take far fewer receives."""
    calls = []
    with channels(fdpass) as (a, b):
        for i in range(64):
            a.send(b"%d" % i)
        receive = fdpass._incoming.lib_recvmsg
        monkeypatch.setattr(fdpass._incoming, "lib_recvmsg", lambda *args: calls.append(1) or receive(*args))
        read = fdpass._receive.lib_recvmsg
        monkeypatch.setattr(fdpass._receive, "lib_recvmsg", lambda *args: calls.append(1) or read(*args))
        assert [b"%d" % i for i in range(64)] == [b.recv().data for _ in range(64)]
    assert 1 <= len(calls) <= 4


@both_kinds
@pytest.mark.parametrize("number", [pytest.param(20, id="few"), pytest.param(1000, id="full", marks=pytest.mark.slow)])
def test_a_thousand_descriptors_in_each_message(fdpass, kind, number):
    """Message after message with 1,000 descriptors each, every one the right one."""
    with descriptors(10) as made, channels(fdpass, kind) as (a, b):
        fds = made * 100
        expected = identities(made) * 100

        def send():
            for i in range(number):
                a.send(b"%d" % i, fds)

        with running(send):
            for i in range(number):
                assert (b"%d" % i, expected) == contents(b.recv())


@both_kinds
def test_the_largest_payload(fdpass, kind):
    """16 MiB, with descriptors, arrive; a byte more is refused and nothing is sent."""
    data = os.urandom(1 << 16) * 256
    with descriptors(2) as made, channels(fdpass, kind) as (a, b):
        with running(lambda: a.send(data, made)):
            assert (data, identities(made)) == contents(b.recv())
        with pytest.raises(fdpass.LocalProtocolError):
            a.send(data + b"x")
        a.send(b"and on")
        assert b"and on" == b.recv().data


@pytest.mark.parametrize("data", [bytearray(b"abc"), memoryview(b"abc"), memoryview(b"xabcx")[1:4]])
def test_any_bytes_like_payload(fdpass, data):
    """A payload may be any contiguous bytes-like object."""
    with channels(fdpass) as (a, b):
        a.send(data)
        assert b"abc" == b.recv().data


def test_descriptors_in_any_shape(fdpass):
    """Descriptors may be ints, files and sockets, in any iterable; they stay open and the sender's."""
    with descriptors(1) as (fd,), channels(fdpass) as (a, b), open(os.devnull) as file:
        a.send(b"", iter([fd, file, a]))
        assert (b"", identities([fd, file.fileno(), a.fileno()])) == contents(b.recv())
        assert not file.closed


@pytest.mark.parametrize(("data", "fds", "error"), [
    ("text", [], TypeError), (b"", [True], TypeError), (b"", [None], TypeError), (b"", [-1], OSError),
    (b"12345", [], ValueError), (b"", [0, 0, 0], ValueError), (b"", [0, 10**6], OSError), (b"x", [10**6], OSError),
])  # fmt: skip
def test_what_cannot_be_sent_is_refused_before_anything_went(fdpass, data, fds, error):
    """A wrong argument raises, and the channel goes on as if nothing had been asked."""
    with channels(fdpass, max_data=4, max_fds=2) as (a, b):
        with pytest.raises(error):
            a.send(data, fds)
        a.send(b"next")
        assert b"next" == b.recv().data


@both_kinds
@pytest.mark.parametrize("size", [65_519, 65_527, 65_528, 65_529, 65_000, 32_760, 1000])
def test_much_is_queued_before_descriptors(fdpass, kind, size):
    """Descriptors that come after more plain bytes than one receive takes are with their own message, once."""
    with descriptors(3) as made, channels(fdpass, kind) as (a, b):
        for _ in range(2):
            a.send(bytes(size))
            a.send(b"x", made[:1])
            a.send(b"", made)
        for _ in range(2):
            assert (bytes(size), []) == contents(b.recv())
            assert (b"x", identities(made[:1])) == contents(b.recv())
            assert (b"", identities(made)) == contents(b.recv())


@both_kinds
@pytest.mark.parametrize("limit", [252, 100, 3, 1])
@pytest.mark.parametrize("count", [2, 253, 600])
def test_a_libc_that_takes_fewer_gets_fewer(fdpass, monkeypatch, kind, limit, count):
    """ENOMEM for more descriptors than `limit` at once, as musl's sendmsg says it: the message comes whole."""
    refusing(fdpass, monkeypatch, limit, module="_outgoing")
    with channels(fdpass, kind) as (a, b), descriptors(5) as five:
        sent = [five[i % 5] for i in range(count)]
        for data in (b"", bytes(1000)):
            with running(lambda data=data: a.send(data, sent)), alarm(30):
                received = contents(b.recv())
            assert (data, identities(sent)) == received


# Ends


@both_kinds
def test_a_clean_end(fdpass, kind):
    """After the peer has closed, what it sent is received, and then EOFError, again and again."""
    with channels(fdpass, kind) as (a, b):
        a.send(b"last")
        a.close()
        assert b"last" == b.recv().data
        for _ in range(2):
            with pytest.raises(EOFError):
                b.recv()


@both_kinds
def test_iteration_ends_with_the_stream(fdpass, kind):
    """Iteration gives the messages until the end."""
    with channels(fdpass, kind) as (a, b):
        for data in (b"1", b"2"):
            a.send(data)
        a.close()
        assert [b"1", b"2"] == [message.data for message in b]


@both_kinds
@pytest.mark.parametrize("sent", [
    b"\0\0\0\5\0\0\0\0abc", b"\0\0", b"\0\0\0\1\0\0\0\1", b"\0\0\0\1\0\0\0\1x", b"GET / HTTP/1.1\r\n",
])  # fmt: skip
def test_a_peer_that_breaks_the_protocol(fdpass, kind, sent):
    """Half a frame, a missing descriptor, noise: ProtocolError, the channel is closed, and so is what came along."""
    with descriptors(1) as made, behind(fdpass, kind) as (sock, channel):
        before = open_numbers()
        sock.sendmsg([sent], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, b"")])
        if sent[:1] == b"G":
            socket.send_fds(sock, [b"more"], made)
        sock.close()
        for _ in range(2):
            with pytest.raises(fdpass.ProtocolError):
                channel.recv()
        assert channel.closed
        assert set() == open_numbers() - before
        with pytest.raises(OSError):
            channel.send(b"x")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="elsewhere nothing is peeked")
@pytest.mark.parametrize("data", [b"data", b"1"])
def test_a_stream_that_somebody_else_reads(fdpass, data):
    """Bytes that another process takes amid a recv make it a LocalProtocolError, and nothing is left open."""
    with descriptors(1) as made, channels(fdpass) as (a, b):
        a.send(data, made)
        a.close()
        before = open_numbers()
        into = b._incoming.into
        b._incoming.into = lambda *args: os.read(b.fileno(), 3) and into(*args)
        with pytest.raises(fdpass.LocalProtocolError, match="has read from the socket"):
            b.recv()
        assert b.closed
        assert open_numbers() <= before


# After a small frame without descriptors the next is expected to be like it, and is peeked at in another way


@both_kinds
@pytest.mark.parametrize("burst", [1, 2, 3])
def test_anything_may_follow_a_plain_frame(fdpass, kind, burst):
    """Frames of any size, with and without descriptors, arrive as they are sent, some of them at once."""
    largest = LITTLE - HEADER_SIZE
    mixed = [(1, 0), (2, 0), (3, 1), (4, 0), (0, 0), (0, 2), (largest, 0), (largest + 1, 0), (5, 0), (5000, 0), (6, 0)]
    mixed += [(7, 0), (largest, 3), (8, 0), (largest - 1, 0), (100_000, 0), (9, 0), (10, 254), (11, 0), (12, 0)]
    with descriptors(2) as made, channels(fdpass, kind) as (a, b):
        for at in range(0, len(mixed), burst):
            some = [(os.urandom(size), (made * 127)[:count]) for size, count in mixed[at : at + burst]]
            with running(*[lambda some=some: [a.send(*one) for one in some]]):
                assert [(data, identities(fds)) for data, fds in some] == [contents(b.recv()) for _ in some]


@contextmanager
def after_plain(fdpass, kind=socket.SOCK_STREAM, **limits):
    """As `behind`; the channel has received one plain frame."""
    with behind(fdpass, kind, **limits) as (sock, channel):
        sock.send(b"\0\0\0\1\0\0\0\0x")
        assert b"x" == channel.recv().data
        assert (not PYPY and sys.platform == "linux") == channel._incoming.plain
        yield sock, channel


@both_kinds
def test_a_plain_frame_may_bring_no_descriptor(fdpass, kind):
    """After one that brings some all the same comes a ProtocolError, and they are closed."""
    with descriptors(2) as made, after_plain(fdpass, kind) as (sock, channel):
        before = open_numbers()
        socket.send_fds(sock, [b"\0\0\0\1\0\0\0\0y"], made)
        assert b"y" == channel.recv().data
        with pytest.raises(fdpass.ProtocolError):
            channel.recv()
        assert channel.closed
        assert not open_numbers() - before


@both_kinds
def test_the_limit_holds_for_plain_frames(fdpass, kind):
    """A second plain frame as long as the limit passes, and a longer one is a ProtocolError."""
    with after_plain(fdpass, kind, max_data=3) as (sock, channel):
        sock.send(b"\0\0\0\3\0\0\0\0abc")
        assert b"abc" == channel.recv().data
        sock.send(b"\0\0\0\4\0\0\0\0abcd")
        with pytest.raises(fdpass.ProtocolError):
            channel.recv()


@pytest.mark.parametrize("cut", range(1, 13))
def test_a_second_plain_frame_may_come_in_parts(fdpass, cut):
    """Wherever it is cut; while it is not whole there is nothing to receive."""
    frame = b"\0\0\0\5\0\0\0\0hello"
    with after_plain(fdpass) as (sock, channel):
        channel._sock.settimeout(0)
        sock.send(frame[:cut])
        with pytest.raises(BlockingIOError):
            channel.recv()
        sock.send(frame[cut:])
        assert b"hello" == channel.recv().data


@both_kinds
def test_the_end_after_a_plain_frame(fdpass, kind):
    """It is EOFError, again and again."""
    with after_plain(fdpass, kind) as (sock, channel):
        sock.close()
        for _ in range(2):
            with pytest.raises(EOFError):
                channel.recv()


@both_kinds
@needs_credentials
def test_credentials_after_a_plain_frame(fdpass, kind):
    """Control data that the kernel adds to plain frames from then on is no reason to lose one."""
    with after_plain(fdpass, kind) as (sock, channel):
        fdpass.pass_credentials(channel)
        for data in (b"a", b"b"):
            sock.send(b"\0\0\0\1\0\0\0\0" + data)
            assert data == channel.recv().data


@both_kinds
def test_a_full_table_after_a_plain_frame(fdpass, kind):
    """Plain frames are received, and one with a descriptor is EMFILE and stays, as often as one tries."""
    with descriptors(1) as made, after_plain(fdpass, kind) as (sock, channel), limited(0) as taken:
        sock.send(b"\0\0\0\1\0\0\0\0y")
        assert b"y" == channel.recv().data
        socket.send_fds(sock, [b"\0\0\0\1\0\0\0\1z"], made)
        for _ in range(2):
            with pytest.raises(OSError) as caught:
                channel.recv()
            assert errno.EMFILE == caught.value.errno
        os.close(taken.pop())
        assert (b"z", identities(made)) == contents(channel.recv())


def test_a_plain_frame_that_somebody_else_reads(fdpass):
    """If another process takes it between the peek and the read, recv gives the next one, or says so at the end."""
    for following in (b"\0\0\0\1\0\0\0\0b", None):
        with after_plain(fdpass) as (sock, channel):
            into = channel._incoming.into
            sock.send(b"\0\0\0\1\0\0\0\0a")

            def read_before(memory, size, flags, sock=sock, channel=channel, into=into, following=following):
                assert 9 == len(channel._sock.recv(9))
                if following is None:
                    sock.close()
                else:
                    sock.send(following)
                return into(memory, size, flags)

            channel._incoming.into = read_before
            if following is not None:
                assert b"b" == channel.recv().data
            else:
                with pytest.raises(fdpass.LocalProtocolError, match="another thread or process"):
                    channel.recv()


def test_descriptors_nobody_announced(fdpass):
    """After a frame with more descriptors than it says comes a ProtocolError, and they are closed."""
    with descriptors(3) as made, behind(fdpass) as (sock, channel):
        before = open_numbers()
        socket.send_fds(sock, [b"\0\0\0\1\0\0\0\1x"], made)
        assert (b"x", identities(made[:1])) == contents(channel.recv())
        with pytest.raises(fdpass.ProtocolError):
            channel.recv()
        assert not open_numbers() - before


@pytest.mark.parametrize("limits", [{"max_data": 3}, {"max_fds": 1}])
def test_a_peer_that_exceeds_the_limits(fdpass, limits):
    """A frame past either limit of the receiver is a ProtocolError."""
    with descriptors(2) as made, behind(fdpass, **limits) as (sock, channel):
        socket.send_fds(sock, [b"\0\0\0\4\0\0\0\2abcd"], made)
        with pytest.raises(fdpass.ProtocolError):
            channel.recv()


@both_kinds
def test_pieces_of_any_size(fdpass, kind):
    """A peer that sends byte by byte is understood, the descriptor with its frame."""
    with descriptors(1) as made, behind(fdpass, kind) as (sock, channel):
        frame = b"\0\0\0\5\0\0\0\1hello"
        for at in range(len(frame)):
            socket.send_fds(sock, [frame[at : at + 1]], made if at == 0 else [])
        assert (b"hello", identities(made)) == contents(channel.recv())


@pytest.mark.parametrize("split", [False, True])
def test_a_byte_out_of_band_is_one_of_the_stream(fdpass, split):
    """Whichever byte a peer sends with MSG_OOB, also along with a descriptor, the message is whole."""
    frame = b"\0\0\0\5\0\0\0\1hello"
    for urgent in range(len(frame)):
        with descriptors(1) as made, behind(fdpass) as (sock, channel):
            channel._sock.settimeout(0)
            for at in range(len(frame)):
                flags = socket.MSG_OOB if at == urgent else 0
                out_of_band(sock, frame[at : at + 1], rights(made) if at == 0 else [], flags)
                if split and at + 1 < len(frame):
                    with pytest.raises(BlockingIOError):
                        channel.recv()
            assert (b"hello", identities(made)) == contents(channel.recv())


def out_of_band(sock, data, ancdata, flags):
    try:
        sock.sendmsg([data], ancdata, flags)
    except OSError:
        pytest.skip("this kernel has no MSG_OOB over AF_UNIX")


def test_a_byte_out_of_band_lets_nobody_spin(fdpass, monkeypatch):
    """With only such a byte there, recv waits once more for the next one, and its deadline holds."""
    waits, wait = [], fdpass.channel.wait
    monkeypatch.setattr(fdpass.channel, "wait", lambda *args: waits.append(1) or wait(*args))
    with behind(fdpass) as (sock, channel):
        channel._sock.settimeout(0.05)
        out_of_band(sock, b"\0", [], socket.MSG_OOB)
        with pytest.raises(TimeoutError):
            channel.recv()
        assert 1 == len(waits)


@both_kinds
def test_no_descriptors_at_all(fdpass, kind):
    """With max_fds=0 the header and the body may come apart, and the body may look like a header."""
    with behind(fdpass, kind, max_fds=0) as (sock, channel):
        channel._sock.settimeout(0)
        sock.send(b"\0\0\0\x08\0\0\0\0")
        with pytest.raises(BlockingIOError):
            channel.recv()
        sock.send(bytes(8))
        assert bytes(8) == channel.recv().data


@both_kinds
@pytest.mark.parametrize("option", [
    pytest.param("pass_credentials", marks=needs_credentials), pytest.param("pass_pidfd", marks=needs_pidfd),
])  # fmt: skip
def test_what_the_kernel_adds_is_no_descriptor_of_a_message(fdpass, kind, option):
    """With SO_PASSCRED or SO_PASSPIDFD on, messages of any size and number of descriptors are what they were."""
    with descriptors(3) as made, channels(fdpass, kind) as (a, b):
        before = open_numbers()
        getattr(fdpass, option)(b._sock)
        for size, count in ((5, 0), (5, 1), (0, 3), (100_000, 0), (100_000, 600), (300_000, 0), (5, 0)):
            data, fds = bytes(size), (made * 200)[:count]
            with running(lambda data=data, fds=fds: a.send(data, fds)):
                assert (data, identities(fds)) == contents(b.recv())
        assert before == open_numbers()


def test_a_closed_channel_says_so(fdpass):
    """After close() every use is an OSError (EBADF); closing again is nothing."""
    with channels(fdpass) as (a, _):
        a.close()
        a.close()
        for use in (a.recv, lambda: a.send(b"x"), a.__enter__):
            with pytest.raises(OSError) as caught:
                use()
            assert errno.EBADF == caught.value.errno
        assert -1 == a.fileno()
        assert a.closed


def test_closing_closes_what_was_not_handed_out(fdpass):
    """Descriptors of a message whose rest has not come are closed with the channel."""
    with descriptors(2) as made, behind(fdpass) as (sock, channel):
        socket.send_fds(sock, [b"\0\0\0\5\0\0\0\2"], made)
        before = open_numbers()
        channel._sock.settimeout(0.01)
        with pytest.raises(TimeoutError):
            channel.recv()
        assert 2 == len(open_numbers() - before)
        channel.close()
        assert not open_numbers() - before


@pytest.mark.parametrize("make", [
    lambda: socket.socket(socket.AF_INET), lambda: socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM),
    lambda: open(os.devnull),  # noqa: SIM115
])  # fmt: skip
def test_what_is_no_such_socket_is_refused_and_stays_the_callers(fdpass, make):
    """A socket of another family or type, or a file, is refused, and not closed."""
    with make() as given:
        with pytest.raises((ValueError, OSError)):
            fdpass.Channel(given.fileno())
        os.fstat(given.fileno())


def test_a_channel_of_an_int_or_an_owned_descriptor(fdpass):
    """A channel takes an int or an OwnedFd over, and closes it."""
    a, b = socket.socketpair()
    owned = fdpass.OwnedFd(b.detach())
    with fdpass.Channel(a.detach()) as one, fdpass.Channel(owned) as two:
        one.send(b"x")
        assert b"x" == two.recv().data
        assert owned.closed


def test_connect(fdpass, tmp_path):
    """Channel.connect gives a channel to a listening socket, with its timeout."""
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(os.fspath(path))
        listener.listen()
        with fdpass.Channel.connect(path, timeout=0.01) as a, fdpass.Channel(listener.accept()[0]) as b:
            a.send(b"x")
            assert b"x" == b.recv().data
            with pytest.raises(TimeoutError):
                a.recv()
    with pytest.raises(ConnectionRefusedError):
        fdpass.Channel.connect(path)


@pytest.fixture
def full_queue(tmp_path):
    """A listening socket and its path, its queue as full as it gets; who connects waits until something is accepted."""
    path, clients = tmp_path / "s", []
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(os.fspath(path))
        listener.listen(0)
        with suppress(BlockingIOError):
            while True:
                clients.append(socket.socket(socket.AF_UNIX))
                clients[-1].setblocking(False)
                clients[-1].connect(os.fspath(path))
        yield listener, path
        for client in clients:
            client.close()


def test_connect_waits_where_the_queue_is_full(fdpass, full_queue):
    """With no room in the server's queue it is TimeoutError past the timeout, BlockingIOError at once if that is 0."""
    _, path = full_queue
    with pytest.raises(TimeoutError):
        fdpass.Channel.connect(path, timeout=0.02)
    with pytest.raises(BlockingIOError):
        fdpass.Channel.connect(path, timeout=0)


@pytest.mark.parametrize("timeout", [None, 60])
def test_signals_during_connect(fdpass, full_queue, timeout):
    """However many signal handlers run while it waits, what connect gives is connected."""
    listener, path = full_queue
    rung = []

    def ring():
        rung.append(1)
        if len(rung) == 5:
            listener.accept()[0].close()

    with on_alarm(ring, 0.01, 0.01), fdpass.Channel.connect(path, timeout) as channel:
        channel.send(b"x")
    assert len(rung) >= 5


# Timeouts and partial sends


@both_kinds
def test_a_timeout_loses_nothing(fdpass, kind):
    """A recv that timed out in the middle of a frame is followed by one that has it whole."""
    with descriptors(1) as made, behind(fdpass, kind) as (sock, channel):
        channel._sock.settimeout(0.02)
        with pytest.raises(TimeoutError):
            channel.recv()
        socket.send_fds(sock, [b"\0\0\0\5\0\0\0\1he"], made)
        with pytest.raises(TimeoutError):
            channel.recv()
        sock.send(b"llo")
        assert (b"hello", identities(made)) == contents(channel.recv())


def test_a_timeout_is_one_deadline_for_a_message(fdpass):
    """Bytes that trickle in do not move the deadline: the recv ends long before the frame could."""
    stop = threading.Event()
    with behind(fdpass) as (sock, channel):
        channel._sock.settimeout(0.2)
        sock.send(b"\0\x10\0\0\0\0\0\0")

        def trickle():
            while not stop.wait(0.02):
                sock.send(b"x")

        with running(trickle), alarm(30):
            try:
                with pytest.raises(TimeoutError):
                    channel.recv()
            finally:
                stop.set()


def test_the_deadline_counts_where_nothing_is_waited_for(fdpass):
    """A recv that always finds another piece of the message ends at its deadline all the same, and loses nothing."""
    with behind(fdpass, socket.SOCK_SEQPACKET) as (sock, channel):
        sock.send(b"\0\0\0\x41\0\0\0\0")
        for _ in range(64):
            sock.send(b"x")
        channel._sock.settimeout(1e-6)
        with pytest.raises(TimeoutError):
            channel.recv()
        assert b"x" == channel._sock.recv(10, socket.MSG_PEEK)
        channel._sock.settimeout(None)
        sock.send(b"y")
        assert b"x" * 64 + b"y" == channel.recv().data


@both_kinds
@pytest.mark.parametrize("timeout", [0, 0.02])
def test_a_send_that_did_not_begin_leaves_the_channel_usable(fdpass, kind, timeout):
    """With no room for the first byte the error says that nothing went, and the channel can go on."""
    with behind(fdpass, kind) as (sock, channel):
        fill(channel._sock)
        channel._sock.settimeout(timeout)
        with pytest.raises((BlockingIOError, TimeoutError)) as caught:
            channel.send(b"hello")
        assert 0 == caught.value.bytes_sent
        assert "closed" not in str(caught.value)
        while True:
            with suppress(BlockingIOError):
                if not sock.recv(1 << 20, socket.MSG_DONTWAIT).strip(b"x"):
                    continue
            break
        channel.send(b"hello")
        assert b"\0\0\0\5\0\0\0\0hello" == sock.recv(100)


@both_kinds
@pytest.mark.parametrize("timeout", [0, 0.05])
def test_a_send_cut_off_in_its_middle_closes_for_sending(fdpass, kind, timeout):
    """After half a frame went, the error says so, and so does every later send; receiving goes on."""
    with channels(fdpass, kind) as (a, b):
        a._sock.settimeout(timeout)
        with pytest.raises((BlockingIOError, TimeoutError), match="closed for sending") as caught:
            a.send(bytes(8 << 20))
        assert 0 < caught.value.bytes_sent < 8 << 20
        with pytest.raises(BrokenPipeError, match="closed for sending"):
            a.send(b"x")
        b.send(b"the other way")
        assert b"the other way" == a.recv().data
        a.close()
        with pytest.raises(fdpass.ProtocolError):
            b.recv()


def test_every_error_of_send_says_how_much_went(fdpass):
    """Whatever OSError ends a send, `bytes_sent` is there: 0 where nothing went."""
    with channels(fdpass) as (a, _):
        for fds in ([-1], [10**6], [0, 10**6]):
            with pytest.raises(OSError) as caught:
                a.send(b"x", fds)
            assert (errno.EBADF, 0) == (caught.value.errno, caught.value.bytes_sent)
        a._sock.settimeout(0)
        with pytest.raises(BlockingIOError):
            a.send(bytes(8 << 20))
        with pytest.raises(BrokenPipeError, match="closed for sending") as caught:
            a.send(b"x")
        assert 0 == caught.value.bytes_sent
        a.close()
        with pytest.raises(OSError) as caught:
            a.send(b"x")
        assert 0 == caught.value.bytes_sent


def test_each_direction_ends_by_itself(fdpass):
    """A peer that has shut its sending side down is at its end, and still gets messages; likewise the other side."""
    with descriptors(1) as made, channels(fdpass) as (a, b):
        a.send(b"last", made)
        a._sock.shutdown(socket.SHUT_WR)
        assert (b"last", identities(made)) == contents(b.recv())
        with pytest.raises(EOFError):
            b.recv()
        b.send(b"and back", made)
        assert (b"and back", identities(made)) == contents(a.recv())
        a._sock.shutdown(socket.SHUT_RD)
        with pytest.raises(BrokenPipeError) as caught:
            b.send(b"x", made)
        assert 0 == caught.value.bytes_sent


def test_a_peer_that_closes_without_reading(fdpass):
    """Its last message is received, then ConnectionResetError once, then the end."""
    with channels(fdpass) as (a, b):
        a.send(b"never read")
        b.send(b"last")
        b.close()
        assert b"last" == a.recv().data
        with pytest.raises(ConnectionResetError):
            a.recv()
        with pytest.raises(EOFError):
            a.recv()


@needs_passrights
@pytest.mark.parametrize("count", [1, 600])
def test_a_receiver_that_takes_no_descriptors(fdpass, count):
    """With SO_PASSRIGHTS off there, sending some is PermissionError and nothing went; the channel goes on."""
    with descriptors(1) as made, channels(fdpass) as (a, b):
        fdpass.pass_rights(b._sock, False)
        with pytest.raises(PermissionError) as caught:
            a.send(b"x", made * count)
        assert 0 == caught.value.bytes_sent
        a.send(b"next")
        assert b"next" == b.recv().data


def test_a_peer_that_is_gone(fdpass):
    """Sending to a closed peer is BrokenPipeError, without a signal, and nothing has gone."""
    with channels(fdpass) as (a, b):
        b.close()
        for data in (b"x", bytes(100_000)):
            with pytest.raises(BrokenPipeError) as caught:
                a.send(data)
            assert 0 == caught.value.bytes_sent


@both_kinds
def test_small_socket_buffers(fdpass, kind):
    """Whatever SO_SNDBUF is, messages are cut so that they pass."""
    with descriptors(3) as made, channels(fdpass, kind) as (a, b):
        a._sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
        for size in (0, 1, 2200, 4088, 5000, 100_000):
            with running(lambda size=size: a.send(bytes(size), made)):
                assert (bytes(size), identities(made)) == contents(b.recv())


# A full table


def in_table() -> list[int]:
    """The open descriptors, found without one more."""
    found = []
    for fd in range(resource.getrlimit(resource.RLIMIT_NOFILE)[0]):
        with suppress(OSError):
            os.get_inheritable(fd)
            found.append(fd)
    return found


@contextmanager
def limited(room: int):
    """A table with room for so many descriptors, and what fills it, to close some: 8 at least, whatever was free."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    top = max(open_numbers()) + 1
    taken = []
    resource.setrlimit(resource.RLIMIT_NOFILE, (top + room + 8, hard))
    try:
        while True:
            try:
                taken.append(os.dup(0))
            except OSError:
                break
        close(taken[len(taken) - room :] if room else [])
        del taken[len(taken) - room :]
        yield taken
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        close(taken)


@both_kinds
@pytest.mark.parametrize("room", [0, 1, 2])
def test_a_full_table_leaves_the_message_unread(fdpass, kind, room):
    """With too little room recv is EMFILE, as often as one tries; with room it is there, whole."""
    with descriptors(3) as made, channels(fdpass, kind) as (a, b):
        a.send(b"before")
        a.send(b"with descriptors", made)
        a.send(b"after")
        with limited(room) as taken:
            before = in_table()
            assert b"before" == b.recv().data
            for _ in range(3):
                with pytest.raises(OSError) as caught:
                    b.recv()
                assert errno.EMFILE == caught.value.errno
                assert before == in_table()
            for _ in range(3 - room):
                os.close(taken.pop())
            assert (b"with descriptors", identities(made)) == contents(b.recv())
            assert b"after" == b.recv().data


@both_kinds
def test_a_table_full_in_the_middle_of_a_message(fdpass, kind):
    """A message of 600 descriptors whose first 253 fitted is completed once there is room."""
    with descriptors(2) as made, channels(fdpass, kind) as (a, b):
        fds = made * 300
        a.send(b"many", fds)
        with limited(300) as taken:
            for _ in range(2):
                with pytest.raises(OSError) as caught:
                    b.recv()
                assert errno.EMFILE == caught.value.errno
        del taken
        assert (b"many", identities(made) * 300) == contents(b.recv())


def test_holes_in_a_full_table_do_not_deceive(fdpass):
    """A table whose only free numbers are low ones counts as full all the same."""
    with descriptors(4) as made, channels(fdpass) as (a, b):
        a.send(b"x", made)
        with limited(0) as taken:
            for _ in range(3):
                os.close(taken.pop(0))
            with pytest.raises(OSError) as caught:
                b.recv()
            assert errno.EMFILE == caught.value.errno
            os.close(taken.pop(0))
            assert (b"x", identities(made)) == contents(b.recv())


# Threads, forks, signals


def test_one_thread_sends_and_another_receives(fdpass):
    """Both directions at once, in two threads at each end."""
    with descriptors(1) as made, channels(fdpass) as (a, b):

        def send(channel):
            for i in range(300):
                channel.send(b"%d" % i, made)

        def recv(channel):
            for i in range(300):
                assert (b"%d" % i, identities(made)) == contents(channel.recv())

        with running(*(lambda f=f, c=c: f(c) for f in (send, recv) for c in (a, b))):
            pass


def test_a_second_receiver_is_refused(fdpass):
    """While one thread receives, another gets a RuntimeError; the first gets the message."""
    with channels(fdpass) as (a, b):
        got = []
        with running(lambda: got.append(b.recv().data)):
            while not b._receiving:
                pass
            with pytest.raises(RuntimeError, match="another thread"):
                b.recv()
            a.send(b"x")
        assert [b"x"] == got


def test_closing_under_a_thread_that_receives(fdpass, monkeypatch):
    """A recv that waits while the channel is closed does not go on with the next file of the same number."""
    other, theirs = socket.socketpair()
    with other, theirs, behind(fdpass) as (_, channel):
        channel._sock.settimeout(60)
        number = channel.fileno()

        def wait(*_):
            channel.close()
            os.dup2(theirs.fileno(), number)
            other.send(b"\0\0\0\7\0\0\0\0private")

        monkeypatch.setattr(fdpass.channel, "wait", wait)
        try:
            with pytest.raises(OSError) as caught:
                channel.recv()
        finally:
            os.close(number)
        assert (errno.EBADF, 15) == (caught.value.errno, len(theirs.recv(100)))


def test_a_child_may_go_on_with_it(fdpass):
    """After a fork the child can use the channel, if the parent leaves it alone."""
    run_child(fdpass, """
import os, sys
from fdpass_cffi import Channel
a, b = Channel.pair()
child = os.fork()
if not child:
    a.close()
    with b.recv() as message:
        b.send(message.data[::-1], message.fds)
    os._exit(0)
b.close()
a.send(b"abc", [0])
with a.recv() as message:
    assert (b"cba", 1) == (message.data, len(message.fds))
os.waitpid(child, 0)
a.close()
""")  # fmt: skip


def test_signals_during_a_recv(fdpass):
    """Handlers run while recv waits, and it goes on; if one raises, nothing is lost."""

    class Stop(Exception):
        pass

    rung = []

    def ring():
        rung.append(1)
        if len(rung) == 3:
            socket.send_fds(sock, [b"\0\0\0\1\0\0\0\1"], made)
            raise Stop

    with descriptors(1) as made, behind(fdpass) as (sock, channel), on_alarm(ring, 0.02, 0.02):
        with pytest.raises(Stop):
            channel.recv()
        signal.setitimer(signal.ITIMER_REAL, 0)
        sock.send(b"x")
        assert (b"x", identities(made)) == contents(channel.recv())


WAITING = {
    "alone": lambda a, fds: a.send(b"first", fds),
    "bare": lambda a, _: a.send(b"first"),
    "several": lambda a, fds: (a.send(b"first", fds), a.send(b"second")),
    "large": lambda a, fds: a.send(bytes(100_000), fds),
    "padded": lambda a, fds: a.send(b"", fds * 3),
}
AFTER = "after-a-plain-one"  # which the next is expected to be too


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # of descriptors that their list's end has closed
@pytest.mark.parametrize(
    ("waiting", "error", "before"),
    [
        *((one, KeyboardInterrupt, "first") for one in WAITING),
        ("alone", Alarm, "first"),
        *((one, KeyboardInterrupt, AFTER) for one in ("bare", "alone", "several")),
        ("bare", Alarm, AFTER),
    ],
)
def test_an_exception_anywhere_in_recv_loses_no_message(fdpass, waiting, error, before, swept):  # noqa: F811
    """Whatever boundary a recv is left at, the next one has the same message whole; or, in a few, an error says not.

    Those few are inside the decoder, and where only a trace function can strike.
    """
    folder, outcomes = os.path.dirname(fdpass.__file__), {"whole": 0, "said": 0, "stuck": 0, "lost": []}
    with descriptors(1) as made:
        for n in range(1, 3000, STRIDE):
            with channels(fdpass) as (a, b):
                if before is AFTER:
                    a.send(b"plain")
                    b.recv()
                WAITING[waiting](a, made)
                numbers = open_numbers()
                with channels(fdpass) as (c, d):
                    WAITING[waiting](c, made)
                    expected = contents(d.recv())
                message, reached, raised = interrupted(folder, n, error, b.recv)
                if message is not None:
                    message.close()
                if not raised:
                    if not reached:
                        break
                    continue
                a.close()
                if b._receiving:
                    outcomes["stuck"] += 1
                    continue
                try:
                    again = contents(b.recv())
                except (fdpass.ProtocolError, fdpass.LocalProtocolError):
                    outcomes["said"] += 1
                except EOFError:
                    outcomes["lost"].append(n)
                else:
                    outcomes["whole" if again == expected else "lost"] += 1 if again == expected else [n]
                b.close()
                if open_numbers() - numbers:
                    gc.collect()
                assert not open_numbers() - numbers
    assert [] == outcomes["lost"], outcomes
    assert outcomes["whole"] > 10 // STRIDE, outcomes


@pytest.mark.parametrize("number", [1, 3])
def test_what_is_put_back_takes_no_others_place(fdpass, number):
    """A recv stopped at its very end puts its message back, and not the next, at which a handler's recv was stopped."""
    with channels(fdpass) as (a, b), descriptors(1) as made:
        sent = [b"%d" % i for i in range(4)]
        for data in sent[:number]:
            a.send(data, made)
        outer = some(b._incoming)
        b._incoming.taken(outer)
        for data in sent[number:]:
            a.send(data, made)
        some(b._incoming)
        b._incoming.put_back(outer)
        a.close()
        assert [(data, identities(made)) for data in sent] == [contents(b.recv()) for _ in sent]


def some(incoming):
    """The next message of an Incoming."""
    while (message := incoming.next(0, None)) is None:
        continue
    return message


@pytest.mark.parametrize("polls", ["recv", "send"])
def test_an_exception_in_a_call_that_fails_ends_its_turn(fdpass, polls, swept):  # noqa: F811
    """Whatever boundary a call with nothing to do is left at, the next one gets its turn.

    But for one or two where only a trace function can strike, between two handlers.
    """
    folder, stuck = os.path.dirname(fdpass.__file__), []
    with channels(fdpass) as (a, _):
        fill(a._sock)
        a._sock.settimeout(0)
        call = {"recv": a.recv, "send": lambda: a.send(b"x")}[polls]
        for n in range(1, 300, STRIDE):  # so many boundaries it has at the most
            with suppress(BlockingIOError):
                interrupted(folder, n, KeyboardInterrupt, call)
            for turn in (a._sending, a._receiving):
                stuck += [n] * len(turn)
                turn.clear()
    assert len(stuck) < 4, stuck


@pytest.mark.skipif(not AFTER_CALLS, reason="handlers run anywhere there, amid the test too")
def test_real_signals_leave_no_turn_behind(fdpass, swept):  # noqa: F811
    """A handler that raises, at random moments of receives that get a byte each, leaves the next recv its turn."""
    count = 0

    def receive():
        with suppress(BlockingIOError):
            channel.recv()

    with behind(fdpass) as (sock, channel), striking(Alarm) as struck:
        channel._sock.settimeout(0)
        for at in range(6000):
            sock.send(b"\0\0\0\1\0\0\0\0x"[at % 9 :][:1])
            if struck(receive):
                count += 1
                assert {} == channel._receiving
                with suppress(BlockingIOError):
                    while True:
                        channel.recv()
    assert count > 100


@pytest.mark.skipif(not AFTER_CALLS, reason="handlers run anywhere there, and a sweep goes to all of it")
@pytest.mark.parametrize("call", ["Channel.send", "Channel.recv", "AsyncChannel.send", "AsyncChannel.recv"])
def test_no_loop_jumps_back_outside_every_try(call):
    """CPython runs handlers at a jump back too, and from 3.12 on has some of them outside the `try` they are in."""
    name, method = call.split(".")
    module = "aio" if name == "AsyncChannel" else "channel"
    if module == "aio":
        pytest.importorskip("anyio")
    code = dis.Bytecode(getattr(getattr(import_module(f"fdpass_cffi.{module}"), name), method))
    inside = [at for entry in code.exception_entries for at in range(entry.start, entry.end)]
    jumps = [one for one in code if one.opname == "JUMP_BACKWARD" and one.positions.lineno is not None]
    assert [] == [one.positions.lineno for one in jumps if one.offset not in inside]


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # as above
@pytest.mark.parametrize("waiting", ["alone", "several", "padded"])
def test_a_handler_that_closes_the_channel_anywhere_in_recv(fdpass, waiting, swept):  # noqa: F811
    """Whatever boundary it comes at, and raises, the closed channel keeps no descriptor."""
    folder = os.path.dirname(fdpass.__file__)
    with descriptors(1) as made:
        for n in range(1, 3000, STRIDE):
            with channels(fdpass) as (a, b):
                WAITING[waiting](a, made)
                a.close()
                before = open_numbers() - {b.fileno()}

                def act(b=b):
                    b.close()
                    raise KeyboardInterrupt

                tracer = Tracer(folder, n, act)
                with suppress(KeyboardInterrupt):
                    tracer.run(b.recv).close()
                b.close()
                if open_numbers() - before and PYPY:
                    gc.collect()
                assert not open_numbers() - before, n
                if tracer.seen < n:
                    break


@pytest.mark.parametrize("error", [KeyboardInterrupt, Alarm])
@pytest.mark.parametrize(("size", "count"), [(5, 0), (5, 1), (5000, 1), (300_000, 1)])
def test_an_exception_anywhere_in_send_tears_no_stream(fdpass, size, count, error, swept):  # noqa: F811
    """Whatever boundary a send is left at, the peer gets a message or nothing, or the channel is closed for sending."""
    folder, outcomes = os.path.dirname(fdpass.__file__), {"went": 0, "not": 0, "closed": 0, "stuck": 0}
    with descriptors(count) as made:
        for n in range(1, 3000, STRIDE):
            with channels(fdpass) as (a, b):
                a._sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
                _, reached, raised = interrupted(folder, n, error, lambda a=a: a.send(bytes(size), made))
                if not raised:
                    if not reached:
                        break
                    continue
                if a._sending:
                    outcomes["stuck"] += 1
                    continue
                try:
                    a.send(b"next")
                except BrokenPipeError:
                    outcomes["closed"] += 1
                    continue
                first = contents(b.recv())
                outcomes["not" if first == (b"next", []) else "went"] += 1
                if first != (b"next", []):
                    assert (bytes(size), identities(made)) == first
                    assert b"next" == b.recv().data
    assert outcomes["not"] > 3 // STRIDE, outcomes
    assert outcomes["went"] > 0, outcomes

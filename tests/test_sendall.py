"""sendall_fds: all of it, each descriptor once, within one deadline; or an exception that says how far it came."""

from __future__ import annotations

import array
import errno
import os
import select
import socket
import threading
import time
from contextlib import suppress

import pytest
from kernel import needs_credentials, needs_root
from support import SOL_SOCKET, Alarm, alarm, descriptors, fds_in, fill, identities, identity, on_alarm, pair, run_child

KINDS = [socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_SEQPACKET]


class Receiver(threading.Thread):
    """Takes everything that arrives until the end of the stream, slowly if asked; notes and closes the descriptors."""

    def __init__(self, sock, pause=0.0):
        super().__init__(daemon=True)
        self.sock, self.pause, self.data, self.found = sock, pause, b"", []

    def run(self):
        while True:
            data, ancdata, _, _ = self.sock.recvmsg(1 << 16, socket.CMSG_SPACE(4 * 253))
            fds = fds_in(ancdata)
            self.found += identities(fds)
            for fd in fds:
                os.close(fd)
            if not data:
                return
            self.data += data
            time.sleep(self.pause)

    def all(self):
        self.join(60)
        assert not self.is_alive()
        return self.data, self.found


def take(sock, bufsize=1 << 16):
    """What waits in a socket now: data, and the inodes of the descriptors."""
    data, found = b"", []
    with suppress(BlockingIOError):
        while True:
            got, ancdata, _, _ = sock.recvmsg(bufsize, socket.CMSG_SPACE(4 * 253), socket.MSG_DONTWAIT)
            fds = fds_in(ancdata)
            found += identities(fds)
            for fd in fds:
                os.close(fd)
            data += got
            if not got and not fds:
                break
    return data, found


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("count", [0, 1, 253, 254, 506, 507])
def test_any_number_of_descriptors_arrives_once(fdpass, kind, count):
    """Data and descriptors come whole and in order, 253 at most in a message."""
    data = os.urandom(10)
    with pair(kind) as (a, b), descriptors(7) as seven:
        sent = [seven[i % 7] for i in range(count)]
        assert fdpass.sendall_fds(a, data, sent) is None
        assert (data, identities(sent)) == take(b)
        assert all(os.fstat(fd) for fd in seven)  # they are the caller's


def test_ten_thousand_in_one_call(fdpass):
    """10,000 descriptors arrive, each once, in order, while the receiver takes them."""
    with pair() as (a, b), descriptors(3) as three:
        sent = [three[i % 3] for i in range(10_000)]
        receiver = Receiver(b)
        receiver.start()
        fdpass.sendall_fds(a, bytes(100), sent)
        a.close()
        assert (bytes(100), identities(sent)) == receiver.all()


@pytest.mark.parametrize("timeout", [None, 30, 0])
def test_short_writes_are_finished(fdpass, timeout):
    """A megabyte goes through a small buffer to a slow receiver: blocking, with a timeout, and not blocking."""
    data = os.urandom(1 << 20)
    with pair() as (a, b), descriptors(300) as sent, alarm(60):
        a.setsockopt(SOL_SOCKET, socket.SO_SNDBUF, 8192)
        a.settimeout(timeout)
        receiver = Receiver(b, 0.0005)
        receiver.start()
        fdpass.sendall_fds(a, data, sent)
        a.close()
        got, found = receiver.all()
    assert data == got
    assert identities_of_closed(300, found)


def identities_of_closed(count, found) -> bool:
    """Whether as many different descriptors came, none twice."""
    return (count, count) == (len(found), len(set(found)))


def test_an_int_and_an_object_do_as_well(fdpass):
    """A descriptor number and an object with fileno() are sockets too, and any mix is a list of descriptors."""
    with pair() as (a, b), descriptors(2) as (one, two), fdpass.OwnedFd(os.dup(a.fileno())) as owned:
        file = fdpass.OwnedFd(os.dup(two))
        inodes = [identity(one), identity(file.fileno()), identity(two)]
        for sock in (a.fileno(), owned):
            fdpass.sendall_fds(sock, memoryview(array.array("h", [1, 2])), (item for item in (one, file, two)))
            assert (array.array("h", [1, 2]).tobytes(), inodes) == take(b)
        file.close()


def test_a_deadline_is_one_for_the_whole_call(fdpass):
    """A receiver that takes a little now and then does not renew the timeout; the numbers say what had gone."""
    with pair() as (a, b), descriptors(2) as sent, alarm(60):
        a.setsockopt(SOL_SOCKET, socket.SO_SNDBUF, 4096)
        a.settimeout(0.3)
        taken = []

        def take_some():
            assert len(taken) < 40  # or the deadline is a new one each time
            with suppress(BlockingIOError):  # it came before there was anything again
                taken.append(b.recv(1 << 16, socket.MSG_DONTWAIT))

        takes = on_alarm(take_some, 0.1, 0.1)
        with takes, pytest.raises(TimeoutError) as caught:
            fdpass.sendall_fds(a, bytes(1 << 22), sent)
        error = caught.value
        assert isinstance(error, socket.timeout)
        assert errno.ETIMEDOUT == error.errno
        assert 0 < len(taken)
        rest, _ = take(b)
        assert (sum(map(len, taken)) + len(rest), 2) == (error.bytes_sent, error.fds_sent)


@pytest.mark.parametrize("timeout", [0, 0.05])
def test_nothing_goes_into_a_full_socket(fdpass, timeout):
    """BlockingIOError or TimeoutError with (0, 0): nothing was taken."""
    with pair() as (a, b), descriptors(1) as sent, alarm(20):
        fill(a)
        waiting = len(b.recv(1 << 24, socket.MSG_PEEK))
        a.settimeout(timeout)
        with pytest.raises(TimeoutError if timeout else BlockingIOError) as caught:
            fdpass.sendall_fds(a, b"data", sent)
        assert (0, 0) == (caught.value.bytes_sent, caught.value.fds_sent)
        assert waiting == len(b.recv(1 << 24, socket.MSG_PEEK))


def test_dontwait_is_honoured_in_the_middle(fdpass):
    """With MSG_DONTWAIT it does not wait even for the rest, and the numbers say what had gone."""
    with pair() as (a, b), descriptors(1) as sent, alarm(20):
        a.setsockopt(SOL_SOCKET, socket.SO_SNDBUF, 4096)
        with pytest.raises(BlockingIOError) as caught:
            fdpass.sendall_fds(a, bytes(1 << 22), sent, socket.MSG_DONTWAIT)
        data, found = take(b)
        assert len(data) > 0
        assert (len(data), len(found)) == (caught.value.bytes_sent, caught.value.fds_sent)


def test_an_interrupt_says_how_far_it_came(fdpass):
    """KeyboardInterrupt from a real signal, after something has gone, has the numbers too."""
    with pair() as (a, b), descriptors(300) as sent:
        a.setsockopt(SOL_SOCKET, socket.SO_SNDBUF, 4096)

        done = []

        def interrupt():
            if not done and select.select([b], [], [], 0)[0]:  # not before the call has begun, and not twice
                done.append(1)
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt) as caught, on_alarm(interrupt, 0.05, 0.05):
            fdpass.sendall_fds(a, bytes(1 << 22), sent)
        data, found = take(b)
        assert (len(data), len(found)) == (caught.value.bytes_sent, caught.value.fds_sent)
        assert 0 < len(data) < 1 << 22


@pytest.mark.parametrize(
    ("args", "error"),
    [((b"x", [-1]), OSError), ((b"x", [987_654]), OSError), ((b"", [0]), ValueError), (("text", [0]), TypeError)],
)
def test_what_is_refused_has_the_numbers_too(fdpass, args, error):
    """Whoever catches an error can read (0, 0) from it, whether the kernel or this library refused."""
    with pair() as (a, _), pytest.raises(error) as caught:
        fdpass.sendall_fds(a, *args)
    assert (0, 0) == (caught.value.bytes_sent, caught.value.fds_sent)
    for sock in (a, 987_654):  # closed by now
        with pytest.raises(OSError) as caught:
            fdpass.sendall_fds(sock, b"x", [0])
        assert (errno.EBADF, 0, 0) == (caught.value.errno, caught.value.bytes_sent, caught.value.fds_sent)


def test_a_socket_object_on_a_file_that_does_not_block(fdpass):
    """Who shares the open file has set O_NONBLOCK, of which the socket object knows nothing: it is finished as well."""
    data = os.urandom(1 << 19)
    with pair() as (a, b), descriptors(1) as sent, alarm(60):
        a.setsockopt(SOL_SOCKET, socket.SO_SNDBUF, 8192)
        os.set_blocking(a.fileno(), False)
        assert a.gettimeout() is None
        receiver = Receiver(b, 0.0005)
        receiver.start()
        fdpass.sendall_fds(a, data, sent)
        a.close()
        assert (data, 1) == (receiver.all()[0], len(receiver.found))


@pytest.mark.parametrize("timeout", [0.1, 0])
def test_a_receiver_by_address_whose_queue_is_full(fdpass, monkeypatch, timeout):
    """poll(2) calls the sender writable all the while: it looks again every millisecond, and does not spin."""
    real, calls = fdpass.sendall.lib_sendmsg, []

    def counted(*args):
        calls.append(args)
        return real(*args)

    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as a, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as b:
        b.bind(b"\0fdpass" + os.urandom(6))
        a.setblocking(False)
        with suppress(BlockingIOError):
            while True:
                a.sendto(b"x", b.getsockname())
        assert b"x" == b.recv(1)  # room for the first of two
        a.settimeout(timeout)
        monkeypatch.setattr(fdpass.sendall, "lib_sendmsg", counted)

        def stop():
            if len(calls) > 2:  # and not before the call has begun
                raise Alarm

        waits = alarm(10) if timeout else on_alarm(stop, 0.1, 0.1)
        with waits, pytest.raises(TimeoutError if timeout else Alarm) as caught:
            fdpass.sendall_fds(a, b"xy", [0] * 254, address=b.getsockname())
        assert (1, 253) == (caught.value.bytes_sent, caught.value.fds_sent)
        assert len(calls) < 150


def test_a_peer_that_goes_away(fdpass):
    """EPIPE, with what had gone, and no SIGPIPE."""
    with pair() as (a, b), descriptors(1) as sent:
        b.close()
        with pytest.raises(BrokenPipeError) as caught:
            fdpass.sendall_fds(a, b"data", sent)
        assert (0, 0) == (caught.value.bytes_sent, caught.value.fds_sent)


def test_no_descriptor_goes_twice_when_a_message_is_tried_again(fdpass, monkeypatch):
    """Calls that fail with EINTR and EAGAIN are made again, calls that took part of it are not."""
    real, plan = fdpass.sendall.lib_sendmsg, [errno.EINTR, errno.EINTR, errno.EAGAIN, 0, errno.EINTR, 0]
    ffi = fdpass._backend.ffi

    def unreliable(fd, msg, flags):
        code = plan.pop(0) if plan else 0
        if code:
            ffi.errno = code
            return -1
        return real(fd, msg, flags)

    monkeypatch.setattr(fdpass.sendall, "lib_sendmsg", unreliable)
    with pair() as (a, b), descriptors(300) as sent:
        a.settimeout(10)
        fdpass.sendall_fds(a, b"data", sent)
        assert [] == plan
        assert (b"data", identities(sent)) == take(b)


@pytest.mark.parametrize("limit", [252, 251, 100, 3, 1])
@pytest.mark.parametrize("count", [1, 253, 600])
def test_a_libc_that_takes_fewer_gets_fewer(fdpass, monkeypatch, limit, count):
    """ENOMEM for more than `limit` at once, as musl's sendmsg says it: smaller groups, in order, none twice."""
    refusing(fdpass, monkeypatch, limit)
    with pair() as (a, b), descriptors(5) as five:
        sent = [five[i % 5] for i in range(count)]
        receiver = Receiver(b)
        receiver.start()
        fdpass.sendall_fds(a, bytes(1000), sent)
        a.close()
        assert (bytes(1000), identities(sent)) == receiver.all()


def refusing(fdpass, monkeypatch, limit, **options):
    """As refusing_control, for more descriptors than `limit`."""
    refusing_control(fdpass, monkeypatch, socket.CMSG_SPACE(4 * limit), **options)


def refusing_control(fdpass, monkeypatch, room, *, code=errno.ENOMEM, at=0, module="sendall"):
    """sendmsg of a module fails with `code` for more than `room` bytes of control messages, from call `at` on."""
    module, ffi, calls = getattr(fdpass, module), fdpass._backend.ffi, []
    real = module.lib_sendmsg

    def sendmsg(fd, msg, flags):
        calls.append(msg)
        if msg.msg_controllen > room and len(calls) > at:
            ffi.errno = code
            return -1
        return real(fd, msg, flags)

    monkeypatch.setattr(module, "lib_sendmsg", sendmsg)


@needs_credentials
@pytest.mark.parametrize("room", [1024, 1056])  # musl's until 1.2.3, and after it
@pytest.mark.parametrize("data", [b"some data", b"xy"])
def test_credentials_and_descriptors_where_the_libc_takes_fewer(fdpass, monkeypatch, room, data):
    """253 descriptors with credentials arrive, the credentials with each of the messages they come in: two do."""
    refusing_control(fdpass, monkeypatch, room)
    me = os.getpid(), os.getuid(), os.getgid()
    with pair() as (a, b), descriptors(5) as five:
        sent = (five * 51)[:253]
        fdpass.pass_credentials(b)
        fdpass.sendall_fds(a, data, sent, credentials=me)
        got = []
        while len(got) < 253:
            with fdpass.recv_message(b, 100, 253) as message:
                assert me == message.credentials
                got += identities([owned.fileno() for owned in message.fds])
        assert identities(sent) == got


def test_one_message_says_who_sends_more(fdpass, monkeypatch):
    """send_fds, which sends one message, tells of sendall_fds then."""
    refusing(fdpass, monkeypatch, 252, module="msg")
    with pair() as (a, _), pytest.raises(OSError, match=r"253 descriptors .* sendall_fds") as caught:
        fdpass.send_fds(a, [b"x"], [0] * 253)
    assert errno.ENOMEM == caught.value.errno


def test_too_few_bytes_for_smaller_groups(fdpass, monkeypatch):
    """If a libc takes fewer, and there is no byte for each group: ValueError, and nothing was sent."""
    refusing(fdpass, monkeypatch, 100)
    with pair() as (a, _), pytest.raises(ValueError, match=r"253 descriptors take at least 3 bytes") as caught:
        fdpass.sendall_fds(a, b"xy", [0] * 253)
    assert 0 == caught.value.bytes_sent


def test_memory_that_runs_out_on_the_way(fdpass, monkeypatch):
    """ENOMEM after something went, with too few bytes to split what is left: OSError, with the numbers."""
    refusing(fdpass, monkeypatch, 100, at=1)
    with pair() as (a, b):
        with pytest.raises(OSError) as caught:
            fdpass.sendall_fds(a, b"xy", [0] * 506)
        assert (errno.ENOMEM, 1, 253) == (caught.value.errno, caught.value.bytes_sent, caught.value.fds_sent)
        data, found = take(b)
        assert (1, 253) == (len(data), len(found))


def test_a_passing_lack_of_memory_is_not_remembered(fdpass, monkeypatch):
    """After one ENOMEM the next call sends 253 with one byte as ever."""
    with monkeypatch.context() as patch:
        refusing(fdpass, patch, 100)
        with pair() as (a, b):
            fdpass.sendall_fds(a, bytes(10), [0] * 253)
            take(b)
    with pair() as (a, b):
        fdpass.sendall_fds(a, b"x", [0] * 253)
        assert 253 == len(take(b)[1])


# Descriptors in flight

IN_FLIGHT = """
import array, os, resource, socket, sys, threading, time
import fdpass_cffi.sendall
from fdpass_cffi import sendall_fds  # now, while the files can still be read

resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
os.setgroups([])
os.setgid(65534)
os.setuid(20_000 + os.getpid() % 40_000)  # whose descriptors in flight are its own; root may have any number
fdpass_cffi.sendall.SCM_MAX_FD = 20  # at once, so that there is room for them on receipt

def take(sock):
    data, found = b"", 0
    try:
        while True:
            got, ancdata, _, _ = sock.recvmsg(1, socket.CMSG_SPACE(80), socket.MSG_DONTWAIT)
            for _, _, raw in ancdata:
                for fd in array.array("i", raw):
                    os.close(fd)
                    found += 1
            data += got
    except BlockingIOError:
        return len(data), found

def receive():
    found, end = 0, time.monotonic() + 60
    while found < 600 and time.monotonic() < end:
        time.sleep(0.01)
        found += take(b)[1]
    print(found)

a, b = socket.socketpair()
with a, b:
    if sys.argv[1] == "waits":
        a.settimeout(float(sys.argv[2]) if len(sys.argv) > 2 else None)
        thread = threading.Thread(target=receive)
        thread.start()
        sendall_fds(a, bytes(30), [0] * 600)
        thread.join()
    else:
        a.settimeout(float(sys.argv[1]))
        try:
            sendall_fds(a, bytes(30), [0] * 600)
        except TimeoutError as error:
            print(error.errno, error.bytes_sent, error.fds_sent, *take(b))
"""


@needs_root
@pytest.mark.parametrize("args", [("waits",), ("waits", 60), ("waits", 0)])
def test_too_many_in_flight_waits_for_the_receiver(fdpass, args):
    """600 descriptors go through although no more than some 64 may be in flight: ETOOMANYREFS is back-pressure."""
    assert "600\n" == run_child(fdpass, IN_FLIGHT, *args)


@needs_root
def test_too_many_in_flight_and_nobody_takes_them(fdpass):
    """Past the deadline: TimeoutError with what was accepted, which is what arrives."""
    code, sent, fds, data, found = map(int, run_child(fdpass, IN_FLIGHT, 0.1).split())
    assert (errno.ETIMEDOUT, sent, fds) == (code, data, found)
    assert 0 < fds < 600


def test_too_many_in_flight_at_the_very_first(fdpass, monkeypatch):
    """A non-blocking socket of which nothing went raises ETOOMANYREFS; with MSG_DONTWAIT any does."""
    refusing(fdpass, monkeypatch, 0, code=errno.ETOOMANYREFS)
    with pair() as (a, _), alarm(20):
        a.setblocking(False)
        for sock, flags in ((a, 0), (a.fileno(), 0), (a, socket.MSG_DONTWAIT)):
            with pytest.raises(OSError) as caught:
                fdpass.sendall_fds(sock, b"x", [0], flags)
            assert (errno.ETOOMANYREFS, 0, 0) == (caught.value.errno, caught.value.bytes_sent, caught.value.fds_sent)


@pytest.mark.parametrize("timeout", [None, 60])
def test_too_many_in_flight_and_the_receiver_is_gone(fdpass, monkeypatch, timeout):
    """EPIPE: a kernel that says ETOOMANYREFS first would have it wait for somebody who takes nothing any more."""
    refusing(fdpass, monkeypatch, 0, code=errno.ETOOMANYREFS)
    with pair() as (a, b), alarm(20):
        a.settimeout(timeout)
        b.close()
        with pytest.raises(BrokenPipeError) as caught:
            fdpass.sendall_fds(a, b"x", [0])
        assert (0, 0) == (caught.value.bytes_sent, caught.value.fds_sent)


# Credentials and addresses


@needs_credentials
@pytest.mark.parametrize("kind", KINDS)
def test_one_s_own_credentials_go_with_each_message(fdpass, kind):
    """They come with the descriptors, in every message of a long send."""
    mine = (os.getpid(), os.getuid(), os.getgid())
    with pair(kind) as (a, b), descriptors(1) as sent:
        fdpass.pass_credentials(b)
        fdpass.sendall_fds(a, b"data", sent * 300, credentials=mine)
        counts = []
        for _ in range(2):  # how many go with each is the C library's affair
            with fdpass.recv_message(b, 10, 253) as message:
                assert mine == message.credentials
                counts.append(len(message.fds))
        assert (300, True) == (sum(counts), 244 <= counts[0] <= 253)
        fdpass.sendall_fds(a, b"data", [], credentials=fdpass.Credentials(*mine))
        assert mine == fdpass.recv_message(b, 10, 0).credentials


@needs_credentials
@needs_root
def test_root_may_send_another_s(fdpass):
    """Another uid and gid, up to the last that there is."""
    with pair() as (a, b):
        fdpass.pass_credentials(b)
        theirs = (os.getpid(), 1234, 2**32 - 2)
        fdpass.sendall_fds(a, b"data", [], credentials=theirs)
        assert theirs == fdpass.recv_message(b, 10, 0).credentials


NOT_MINE = """
import os, socket
from fdpass_cffi import sendall_fds  # now, while the files can still be read
os.setgroups([]); os.setgid(65534); os.setuid(65534)
a, b = socket.socketpair()
with a, b:
    try:
        sendall_fds(a, b"x", [0], credentials=(os.getpid(), 0, 0))
    except PermissionError as error:
        print("PermissionError", error.bytes_sent, error.fds_sent)
"""


@needs_credentials
@needs_root
def test_others_may_not(fdpass):
    """An unprivileged process that says it is root gets PermissionError."""
    assert "PermissionError 0 0\n" == run_child(fdpass, NOT_MINE)


@pytest.mark.parametrize(
    ("credentials", "error"),
    [
        (5, TypeError),
        ((1, 2), TypeError),
        ((1, 2, 3, 4), TypeError),
        (("1", 0, 0), TypeError),
        ((1 << 31, 0, 0), OverflowError),
        ((1, -1, 0), ValueError),
        ((1, 0, 1 << 32), ValueError),
        ((1, 0, "0"), ValueError),
    ],
)
@needs_credentials
def test_credentials_that_cannot_be(fdpass, credentials, error):
    """The error names what is wrong, before anything is sent."""
    with pair() as (a, b), pytest.raises(error, match="credentials"):
        fdpass.sendall_fds(a, b"x", [], credentials=credentials)
    with pair() as (a, b):
        assert (b"", []) == take(b)


@needs_credentials
def test_credentials_that_would_be_lost(fdpass):
    """With no byte on a stream, or over UDP, a kernel takes them and loses them: ValueError."""
    mine = (os.getpid(), os.getuid(), os.getgid())
    with pair() as (a, _), pytest.raises(ValueError, match="credentials take at least 1 byte"):
        fdpass.sendall_fds(a, b"", [], credentials=mine)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock, pytest.raises(ValueError, match="AF_UNIX"):
        fdpass.sendall_fds(sock, b"x", [], 0, ("127.0.0.1", 9), credentials=mine)


def test_an_address(fdpass):
    """A datagram socket that is not connected sends to the address given, each message of many there."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as a, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as b:
        b.bind(b"\0fdpass" + os.urandom(6))
        with descriptors(2) as sent:
            fdpass.sendall_fds(a, b"data", sent * 200, 0, b.getsockname())
            assert (b"data", identities(sent * 200)) == take(b)
            with pytest.raises(OSError) as caught:
                fdpass.sendall_fds(a, b"data", sent)
        assert errno.ENOTCONN == caught.value.errno


# Refused before the syscall


@pytest.fixture
def no_syscall(fdpass, monkeypatch):
    """sendmsg must not be called."""

    def fail(*args):
        raise AssertionError("sendmsg was called")

    monkeypatch.setattr(fdpass.sendall, "lib_sendmsg", fail)
    monkeypatch.setattr(fdpass.sendmmsg, "lib_sendmmsg", fail)
    monkeypatch.setattr(fdpass.msg, "lib_sendmsg", fail, raising=False)


SENDERS = {
    "sendall_fds": lambda fdpass, sock, fds: fdpass.sendall_fds(sock, b"x", fds),
    "send_fds": lambda fdpass, sock, fds: fdpass.send_fds(sock, [b"x"], fds),
    "send_messages": lambda fdpass, sock, fds: fdpass.send_messages(sock, [(b"x", fds)]),
    "send_messages-mixed": lambda fdpass, sock, fds: fdpass.send_messages(sock, [(b"x", []), (b"x", [*fds, 0])]),
}


@pytest.mark.parametrize("send", SENDERS.values(), ids=list(SENDERS))
@pytest.mark.parametrize("given", ["socket", "int"])
@pytest.mark.parametrize("kind", ["tcp", "udp", "tcp6", "pipe", "file"])
def test_what_descriptors_do_not_pass_over(fdpass, send, given, kind, no_syscall, tmp_path):
    """Over TCP, UDP, a pipe, a regular file: an error which says so, before any syscall that sends."""
    made = {
        "tcp": lambda: socket.socket(socket.AF_INET, socket.SOCK_STREAM),
        "udp": lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM),
        "tcp6": lambda: socket.socket(socket.AF_INET6 if socket.has_ipv6 else socket.AF_INET, socket.SOCK_STREAM),
        "pipe": lambda: os.fdopen(os.open(tmp_path / "fifo", os.O_RDWR), "rb", 0),
        "file": lambda: os.fdopen(os.open(tmp_path / "file", os.O_CREAT), "rb"),
    }
    if kind == "pipe":
        os.mkfifo(tmp_path / "fifo")
    with made[kind]() as sock, pytest.raises((ValueError, OSError)) as caught:
        send(fdpass, sock if given == "socket" else sock.fileno(), [0])
    if kind in {"tcp", "udp", "tcp6"}:
        assert isinstance(caught.value, ValueError)
        assert "AF_UNIX" in str(caught.value)
    else:
        assert errno.ENOTSOCK == caught.value.errno


def test_too_few_bytes(fdpass, no_syscall):
    """A stream needs a byte for its descriptors, and every message beyond 253 needs one of its own."""
    with pair() as (a, _):
        with pytest.raises(ValueError, match="data: 1 descriptors take at least 1 bytes of it, not 0"):
            fdpass.sendall_fds(a, b"", [0])
        with pytest.raises(ValueError, match="507 descriptors take at least 3 bytes of it, not 2"):
            fdpass.sendall_fds(a, b"xy", [0] * 507)
    with pair(socket.SOCK_SEQPACKET) as (a, _), pytest.raises(ValueError, match="take at least 2 bytes"):
        fdpass.sendall_fds(a, b"x", [0] * 254)


def test_an_urgent_byte_carries_no_descriptors(fdpass):
    """MSG_OOB: the kernel takes descriptors with the urgent byte and loses them; beside another byte they arrive."""
    with pair() as (a, b), descriptors(1) as sent:
        for data, fds in ((b"x", sent), (bytes(100), sent * 254)):
            with pytest.raises(ValueError, match=r"^flags: \d+ descriptors would be lost on the byte that MSG_OOB"):
                fdpass.sendall_fds(a, data, fds, socket.MSG_OOB)
        try:
            fdpass.sendall_fds(a, b"xy", sent, socket.MSG_OOB)
        except OSError as error:  # before Linux 5.15, or built without it
            assert errno.EOPNOTSUPP == error.errno  # noqa: PT017
        else:
            with fdpass.recv_message(b, 10, 1) as message:
                assert (b"x", 1) == (message.data, len(message.fds))


@pytest.mark.parametrize("kind", [socket.SOCK_DGRAM, socket.SOCK_SEQPACKET])
def test_no_byte_is_needed_where_messages_have_bounds(fdpass, kind):
    """An empty datagram carries its descriptors."""
    with pair(kind) as (a, b), descriptors(2) as sent:
        fdpass.sendall_fds(a, b"", sent)
        with fdpass.recv_message(b, 10, 2) as message:
            assert (b"", 2) == (message.data, len(message.fds))


@pytest.mark.parametrize(
    ("data", "fds", "error"),
    [("text", [], TypeError), (b"x", 5, TypeError), (b"x", ["0"], TypeError), (b"x", [True], TypeError),
     (b"x", [-1], OSError), (b"x", [1 << 31], OverflowError), (memoryview(b"abcd")[::2], [], BufferError)],
)  # fmt: skip
def test_wrong_arguments(fdpass, data, fds, error, no_syscall):
    """They are refused before anything is sent."""
    with pair() as (a, _), pytest.raises(error):
        fdpass.sendall_fds(a, data, fds)


def test_a_descriptor_that_is_not_open_is_named(fdpass):
    """EBADF says which one."""
    with pair() as (a, _), pytest.raises(OSError, match=r"fds\[1\] is 987654, which is not open") as caught:
        fdpass.sendall_fds(a, b"x", [0, 987_654])
    assert errno.EBADF == caught.value.errno


def test_the_audit_hook_hears_of_it(fdpass):
    """The event of socket.sendmsg, with the socket and the address."""
    heard = run_child(
        fdpass,
        "import socket, sys, fdpass_cffi\n"
        "a, b = socket.socketpair()\n"
        "sys.addaudithook(lambda event, args: event == 'socket.sendmsg' and print(args == (a, None)))\n"
        "fdpass_cffi.sendall_fds(a, b'x', [0])\n"
        "a.close(); b.close()\n",
    )
    assert "True\n" == heard

"""The drop-ins against `socket` itself: every form of argument that it takes, and what comes back."""

from __future__ import annotations

import array
import asyncio
import doctest
import enum
import errno
import inspect
import io
import mmap
import os
import socket
import struct
import sys
import threading
import warnings
from contextlib import suppress
from types import SimpleNamespace

import pytest
from kernel import needs_pidfd
from support import (
    PYPY,
    SCM_RIGHTS,
    SOL_SOCKET,
    STDLIB,
    Wrapper,
    close,
    descriptors,
    drain,
    fds_in,
    fill,
    identities,
    identity,
    needs_cpython,
    needs_real_kernel,
    open_numbers,
    pair,
    rights,
    run_child,
)
from test_sweep import PASSCRED, PASSPIDFD

from fdpass_cffi._backend import CONSTANTS

try:
    import ctypes
except ImportError:  # as in a Python that was built without libffi
    ctypes = None

DGRAM, STREAM, SEQPACKET = socket.SOCK_DGRAM, socket.SOCK_STREAM, socket.SOCK_SEQPACKET
PEEK, TRUNC, CTRUNC, DONTWAIT = socket.MSG_PEEK, socket.MSG_TRUNC, socket.MSG_CTRUNC, socket.MSG_DONTWAIT
SCM_CREDENTIALS, SO_ZEROCOPY, MSG_ZEROCOPY = (
    CONSTANTS[name] for name in ("SCM_CREDENTIALS", "SO_ZEROCOPY", "MSG_ZEROCOPY")
)
UCRED = struct.Struct("iII")  # unix(7): pid, uid, gid
TEXT = bytes(range(256)) * 400


def roomy(*socks) -> None:
    """Take a hundred kilobytes and more in one message."""
    for sock in socks:
        sock.setsockopt(SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)


class Number:
    """An object that is an int by __index__ alone."""

    def __init__(self, value: int) -> None:
        self.value = value

    def __index__(self) -> int:
        return self.value


# The interface


def test_signatures(fdpass):
    """Names, order and defaults of the arguments are those of socket's documentation, and work as keywords."""
    expected = {
        "sendmsg": "(sock, buffers, ancdata=(), flags=0, address=None)",
        "recvmsg": "(sock, bufsize, ancbufsize=0, flags=0)",
        "recvmsg_into": "(sock, buffers, ancbufsize=0, flags=0)",
        "send_fds": "(sock, buffers, fds, flags=0, address=None)",
        "recv_fds": "(sock, bufsize, maxfds, flags=0)",
        "sendmsg_afalg": "(sock, msg=None, *, op, iv=None, assoclen=None, flags=0)",
        "CMSG_LEN": "(length)",
        "CMSG_SPACE": "(length)",
    }
    for name, text in expected.items():
        signature = inspect.signature(getattr(fdpass, name))
        bare = [parameter.replace(annotation=inspect.Parameter.empty) for parameter in signature.parameters.values()]
        assert text == str(inspect.Signature(bare))
    with pair() as (a, b):
        fdpass.sendmsg(sock=a, buffers=[b"x"], ancdata=[], flags=0, address=None)
        fdpass.send_fds(sock=a, buffers=[b"y"], fds=[], flags=0, address=None)
        assert b"xy" == fdpass.recvmsg(sock=b, bufsize=5, ancbufsize=0, flags=0)[0]


def test_the_examples_in_docstrings(fdpass):
    """Every example in msg.py does what it says."""
    result = doctest.testmod(fdpass.msg)
    assert (0, True) == (result.failed, result.attempted > 5)


def test_cmsg_len_and_space(fdpass):
    """CMSG_LEN and CMSG_SPACE are socket's, for ints and what is like an int."""
    for length in [*range(300), Number(5), enum.IntEnum("E", "ONE").ONE, True]:
        assert socket.CMSG_LEN(length) == fdpass.CMSG_LEN(length)
        assert socket.CMSG_SPACE(length) == fdpass.CMSG_SPACE(length)


# What is a socket


def test_what_a_socket_may_be(fdpass):
    """A socket, its number, a duplicate, asyncio's TransportSocket, and any object with fileno() do the same."""

    class Own(socket.socket):
        pass

    with pair() as (a, b), Own(fileno=os.dup(a.fileno())) as own, descriptors(1) as sent:
        enumerated = SimpleNamespace(fileno=lambda: enum.IntEnum("Name", {"A": a.fileno()}).A)
        for sock in (a, a.fileno(), own, Wrapper(a), asyncio.trsock.TransportSocket(a), enumerated):
            assert 4 == fdpass.send_fds(sock, [b"some"], sent)
            assert 4 == fdpass.sendmsg(sock, [b"data"])
        for sock in (b, b.fileno(), Wrapper(b), asyncio.trsock.TransportSocket(b), b):
            data, fds, flags, address = fdpass.recv_fds(sock, 4, 1)
            assert (b"some", identities(sent), 0, None) == (data, identities(fds), flags, address)
            close(fds)
            assert (b"data", [], 0, None) == fdpass.recvmsg(sock, 4)


def test_asyncio_gives_such_an_object(fdpass):
    """The socket that a running asyncio transport shows sends descriptors."""

    async def through(a):
        _, writer = await asyncio.open_unix_connection(sock=a)
        sock = writer.get_extra_info("socket")
        assert not isinstance(sock, socket.socket)
        assert 4 == fdpass.send_fds(sock, [b"data"], [sock])
        writer.close()
        await writer.wait_closed()

    with pair() as (a, b):
        one = identity(a.fileno())
        asyncio.run(through(a))
        data, (fd,), _, _ = fdpass.recv_fds(b, 10, 1)
        assert (b"data", one) == (data, identity(fd))
        os.close(fd)


def test_a_tls_socket_is_refused(fdpass):
    """An SSLSocket, whose descriptor would bypass TLS, is NotImplementedError in socket's words."""
    pytest.importorskip("_ssl")  # and not another module in its place
    ssl = pytest.importorskip("ssl")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    with pair() as (a, b), context.wrap_socket(a, do_handshake_on_connect=False) as tls:
        calls = {
            "sendmsg": lambda module: module.sendmsg(tls, [b"x"]),
            "recvmsg": lambda module: module.recvmsg(tls, 1),
            "recvmsg_into": lambda module: module.recvmsg_into(tls, [bytearray(1)]),
            "send_fds": lambda module: module.send_fds(tls, [b"x"], [0]),
            "recv_fds": lambda module: module.recv_fds(tls, 1, 1),
        }
        for call in calls.values():
            with pytest.raises(NotImplementedError) as theirs:
                call(STDLIB)
            with pytest.raises(NotImplementedError) as ours:
                call(fdpass)
            assert str(theirs.value) == str(ours.value)
        assert b"" == drain(b)


# Buffers and ancillary data that are sent


def mapped(data: bytes) -> mmap.mmap:
    made = mmap.mmap(-1, len(data))
    made[:] = data
    return made


class Lazy:
    """An iterable that is no sequence."""

    def __init__(self, *items) -> None:
        self.items = items

    def __iter__(self):
        return iter(self.items)


class Text(bytes):
    """A subclass of bytes."""


BUFFERS = {
    "none": list,
    "empty": lambda: [b""],
    "one": lambda: [b"one buffer"],
    "tuple": lambda: (b"one buffer",),
    "several": lambda: [b"a", bytearray(b"bc"), memoryview(b"def")],
    "with-empty": lambda: [b"", b"a", b"", b"b", bytearray()],
    "generator": lambda: (bytes([i]) for i in range(5)),
    "iterable": lambda: Lazy(b"a", b"b"),
    "dict": lambda: {b"a": 1, b"b": 2},
    "array": lambda: [array.array("i", [1, 2, 3]), array.array("d", [0.5])],
    "ctypes": lambda: [(ctypes.c_int * 3)(1, 2, 3) if ctypes else b"none"],
    "sliced": lambda: [memoryview(b"0123456789")[2:5]],
    "cast": lambda: [memoryview(array.array("H", range(10))).cast("B")[4:8]],
    "two-dimensional": lambda: [memoryview(bytes(range(12))).cast("B", (3, 4))],
    "mmap": lambda: [mapped(b"mapped"), b"not"],
    "bytearray": lambda: [bytearray(b"one buffer")],
    "subclass": lambda: [Text(b"abc")],
    "BytesIO": lambda: [io.BytesIO(b"lent").getbuffer()],
    "page": lambda: [TEXT[:4096]],
    "over-a-page": lambda: [TEXT[:4097]],
    "large": lambda: [TEXT],
    "large-spread": lambda: [b"%7d" % i * 100 for i in range(100)],
    "most": lambda: [b"%d" % (i % 10) for i in range(os.sysconf("SC_IOV_MAX"))],
}


@pytest.mark.parametrize("name", BUFFERS)
def test_buffers(fdpass, name):
    """Whatever buffers socket's sendmsg sends go out the same by sendmsg and send_fds, with and without descriptors."""
    with pair(SEQPACKET) as (a, b), descriptors(1) as sent:
        roomy(a, b)
        count = STDLIB.sendmsg(a, BUFFERS[name]())
        data = b.recv(200_000)
        assert len(data) == count == fdpass.sendmsg(a, BUFFERS[name]())
        assert data == b.recv(200_000)
        assert count == fdpass.send_fds(a, BUFFERS[name](), [])
        assert data == b.recv(200_000)
        sends = [
            lambda: fdpass.send_fds(a, BUFFERS[name](), sent),
            lambda: fdpass.sendmsg(a, BUFFERS[name](), rights(sent)),
        ]
        for send in sends:
            assert count == send()
            received, ancdata, _, _ = b.recvmsg(200_000, 100)
            assert (data, identities(sent)) == (received, identities(fds_in(ancdata)))
            close(fds_in(ancdata))


def test_buffers_are_free_after_the_call(fdpass):
    """No export of a buffer outlives the call, so that a bytearray can change its size again."""
    with pair(DGRAM) as (a, b), descriptors(1) as sent:
        buffers = [bytearray(b"one"), bytearray(b"two")]
        fdpass.sendmsg(a, buffers[:1])
        fdpass.sendmsg(a, buffers)
        fdpass.send_fds(a, buffers, sent)
        fdpass.sendmsg(a, [b"x"], [(SOL_SOCKET, SCM_RIGHTS, data := bytearray(rights(sent)[0][2]))])
        fdpass.recvmsg_into(b, buffers[:1])
        for _ in range(3):
            close(fds_in(fdpass.recvmsg_into(b, buffers, 100)[1]))
        for buffer in (*buffers, data):
            buffer += b"longer"
            assert buffer.endswith(b"longer")


ANCDATA = {
    "tuple": lambda sent: tuple(rights(sent)),
    "generator": lambda sent: (item for item in rights(sent)),
    "list-items": lambda sent: [list(item) for item in rights(sent)],
    "array": lambda sent: [(SOL_SOCKET, SCM_RIGHTS, array.array("i", sent))],
    "memoryview": lambda sent: [(SOL_SOCKET, SCM_RIGHTS, memoryview(array.array("i", sent)))],
    "bytearray": lambda sent: [(SOL_SOCKET, SCM_RIGHTS, bytearray(rights(sent)[0][2]))],
    "index": lambda sent: [(Number(SOL_SOCKET), Number(SCM_RIGHTS), array.array("i", sent))],
    "two-items": lambda sent: rights(sent[:1]) + rights(sent[1:]),
    "credentials": lambda sent: [
        *rights(sent),
        (SOL_SOCKET, SCM_CREDENTIALS, UCRED.pack(os.getpid(), os.getuid(), os.getgid())),
    ],
    "253": lambda sent: rights((sent * 127)[:253]),
}


@pytest.mark.parametrize("name", ANCDATA)
def test_ancdata(fdpass, name):
    """Whatever ancillary data socket's sendmsg sends arrives the same, received by socket and by recvmsg."""
    with pair() as (a, b), descriptors(2) as sent:
        b.setsockopt(SOL_SOCKET, PASSCRED, 1)
        results = []
        for sender, receiver in ((STDLIB, STDLIB), (fdpass, STDLIB), (STDLIB, fdpass), (fdpass, fdpass)):
            ancdata = ANCDATA[name](sent)
            if PYPY and sender is STDLIB:
                ancdata = map(tuple, ancdata)  # it takes no other sequences
            assert 4 == sender.sendmsg(a, [b"data"], ancdata)
            data, ancdata, flags, address = receiver.recvmsg(b, 100, 5000)
            results.append((data, anonymous(ancdata), flags, address))
        assert [results[0]] * 4 == results
        assert sum(len(item[2]) for item in results[0][1] if item[1] == SCM_RIGHTS) == (253 if name == "253" else 2)


def anonymous(ancdata):
    """ancdata with what each descriptor refers to in the place of its number; they are closed."""
    shown = []
    for level, kind, data in ancdata:
        if (level, kind) == (SOL_SOCKET, SCM_RIGHTS):
            fds = fds_in([(level, kind, data)])
            shown.append((level, kind, identities(fds)))
            close(fds)
        else:
            shown.append((level, kind, data))
    return shown


def test_no_ancillary_data(fdpass):
    """No items at all, in any form, is a message without control data."""
    with pair() as (a, b):
        for ancdata in ((), [], iter([]), {}, b""):
            assert 1 == fdpass.sendmsg(a, [b"x"], ancdata)
            assert (b"x", [], 0, None) == b.recvmsg(10, 100)


def test_send_fds_takes_whatever_has_a_descriptor(fdpass):
    """Files, sockets, ints and what acts as one, mixed, in any iterable, once or twice; none is a message without."""
    standard = enum.IntEnum("Standard", {"IN": 0})
    with pair() as (a, b), open(os.devnull, "rb") as file, descriptors(2) as sent:
        forms = [
            ([file, sent[0], a, sent[1], file], [file.fileno(), sent[0], a.fileno(), sent[1], file.fileno()]),
            ((file, a), [file.fileno(), a.fileno()]),
            ({a: 1}, [a.fileno()]),
            (iter(sent), sent),
            (array.array("i", sent), sent),
            (range(sent[0], sent[0] + 1), sent[:1]),
            ([0], [0]),
            ([1, 0], [1, 0]),
            ([Number(0)], [0]),  # as socket.send_fds takes it
            ([Number(sent[0]), 1, file], [sent[0], 1, file.fileno()]),
            ([standard.IN, SimpleNamespace(fileno=lambda: standard.IN)], [0, 0]),
            (sent * 126, sent * 126),
            ([], []),
        ]
        for given, expected in forms:
            assert 4 == fdpass.send_fds(a, [b"data"], given)
            data, received, flags, _ = fdpass.recv_fds(b, 10, 253)
            assert (b"data", identities(expected), 0) == (data, identities(received), flags)
            close(received)


def test_close_on_exec_does_not_show(fdpass):
    """MSG_CMSG_CLOEXEC may be asked for, and is not among the returned flags, whatever receives."""
    with pair() as (a, b):
        a.send(b"x" * 10)
        for receive in (
            lambda flags: fdpass.recvmsg(b, 1, 0, flags),
            lambda flags: fdpass.recvmsg(b, 1, 100, flags),
            lambda flags: fdpass.recvmsg_into(b, [bytearray(1)], 0, flags),
            lambda flags: fdpass.recvmsg_into(b, [bytearray(1)], 100, flags),
            lambda flags: fdpass.recv_fds(b, 1, 1, flags),
        ):
            assert 0 == receive(fdpass.MSG_CMSG_CLOEXEC)[2]


def test_flags_may_be_any_int(fdpass):
    """An IntFlag, a bool-free int and an object with __index__ are flags; they are honoured."""
    with pair() as (a, b):
        a.send(b"data")
        for flags in (socket.MsgFlag.MSG_PEEK, int(PEEK), Number(int(PEEK)), PEEK | DONTWAIT):
            assert b"data" == fdpass.recvmsg(b, 10, 0, flags)[0]
            assert b"data" == fdpass.recv_fds(b, 10, 1, flags)[0]
            assert 4 == fdpass.recvmsg_into(b, [bytearray(10)], 0, flags)[0]
        drain(b)
        for flags in (socket.MsgFlag.MSG_DONTWAIT, int(DONTWAIT), Number(int(DONTWAIT))):
            assert 1 == fdpass.sendmsg(a, [b"x"], [], flags)
            assert 1 == fdpass.send_fds(a, [b"x"], [0], flags)
        assert b"x" * 6 == drain(b)


# Addresses


def test_addresses_of_af_unix(fdpass, tmp_path):
    """A path as str, bytes or with undecodable bytes, an abstract name and none: to send to, and to receive from."""
    names = [
        str(tmp_path / "s"),
        os.fsencode(tmp_path / "b"),
        os.fsdecode(os.fsencode(tmp_path) + b"/\xff"),
        b"\0" + os.urandom(8),
    ]
    for name in names:
        with (
            socket.socket(socket.AF_UNIX, DGRAM) as a,
            socket.socket(socket.AF_UNIX, DGRAM) as b,
            descriptors(1) as sent,
        ):
            b.bind(name)
            assert 4 == fdpass.sendmsg(a, [b"data"], [], 0, name)
            assert (b"data", [], 0, None) == fdpass.recvmsg(b, 10)
            a.bind(name + ("x" if isinstance(name, str) else b"x"))
            assert 4 == fdpass.send_fds(a, [b"data"], sent, 0, b.getsockname())
            a.sendto(b"data", name)
            a.sendto(b"data", name)
            data, fds, _, address = fdpass.recv_fds(b, 10, 1)
            assert (b"data", a.getsockname()) == (data, address)
            close(fds)
            assert a.getsockname() == fdpass.recvmsg(b, 10)[3] == fdpass.recvmsg_into(b, [bytearray(9)])[3]


def test_a_full_table_spoils_no_first_receive(fdpass, tmp_path):
    """With no descriptor left, not even to open a module, the first message comes with its data, flags and sender."""
    code = """if True:
        import os, socket, sys
        from kernel import room_for
        from fdpass_cffi import recv_fds
        a, b = (socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) for _ in range(2))
        with a, b:
            a.bind(sys.argv[1] + "/a")
            b.bind(sys.argv[1] + "/b")
            a.connect(sys.argv[1] + "/b")
            socket.send_fds(a, [b"data"], [0, 0, 0])
            with room_for(2):
                data, fds, flags, address = recv_fds(b, 10, 3)
                for fd in fds:
                    os.close(fd)
        print(data, len(fds), flags & socket.MSG_CTRUNC == socket.MSG_CTRUNC, address == sys.argv[1] + "/a")
    """
    assert "b'data' 2 True True\n" == run_child(fdpass, code, tmp_path)


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6], ids=["INET", "INET6"])
def test_addresses_of_inet(fdpass, family):
    """UDP datagrams go where the address says and tell where they came from, as with socket."""
    host = "127.0.0.1" if family == socket.AF_INET else "::1"
    try:
        a, b = (socket.socket(family, DGRAM) for _ in range(2))
    except OSError as error:
        pytest.skip(f"no such sockets here: {error}")
    with a, b:
        for sock in (a, b):
            try:
                sock.bind((host, 0))
            except OSError as error:
                pytest.skip(f"no such address here: {error}")
        results = []
        for module in (STDLIB, fdpass):
            assert 4 == module.sendmsg(a, [b"da", b"ta"], [], 0, b.getsockname())
            assert 4 == module.sendmsg(
                a, [b"data"], [], 0, ("localhost" if host[0] == "1" else host, b.getsockname()[1])
            )
            results.append([module.recvmsg(b, 10, 100), module.recvmsg_into(b, [bytearray(10)])])
        assert results[0] == results[1]
        assert a.getsockname() == results[1][0][3]
        with pytest.raises(OSError, match="[Dd]estination address") as caught:
            fdpass.sendmsg(a, [b"data"])
        assert errno.EDESTADDRREQ == caught.value.errno


def test_a_stream_over_tcp(fdpass):
    """The drop-ins carry plain data over any family, and give the address that socket gives."""
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as a:
        b, _ = server.accept()
        with b:
            for module in (STDLIB, fdpass):
                assert 9 == module.sendmsg(a, [b"some", b" data"])
                assert (b"some data", [], 0, None) == module.recvmsg(b, 100, 100)
                assert 2 == module.send_fds(a, [b"no"], [])  # no descriptors, none to lose
                assert 1 == module.send_fds(a, [b"w"], ())
                assert (b"now", [], 0, None) == module.recvmsg(b, 100)


@needs_cpython  # PyPy may move a bytes object, or lend a copy of it, and its own socket always does
@pytest.mark.parametrize("send", ["sendmsg", "send_fds"])
def test_zero_copy_reads_the_memory_of_the_caller(fdpass, send):
    """What MSG_ZEROCOPY is given and the kernel has yet to read is not written over by the next call."""
    sent, lent = b"", []
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setsockopt(SOL_SOCKET, socket.SO_RCVBUF, 65536)
        with socket.create_connection(server.getsockname()) as a, server.accept()[0] as b:
            try:
                a.setsockopt(SOL_SOCKET, SO_ZEROCOPY, 1)
            except OSError as error:
                pytest.skip(f"no SO_ZEROCOPY here: {error}")
            a.setblocking(False)
            b.settimeout(60)
            with suppress(BlockingIOError):
                for letter in range(64):
                    lent.append(bytes([letter]) * 4000)
                    sent += lent[-1][: getattr(fdpass, send)(a, lent[-1:], [], MSG_ZEROCOPY)]
            assert len(sent) > 100_000
            got = b""
            while len(got) < len(sent):
                got += b.recv(1 << 20)
    assert sent == got


# Receiving

KINDS = {"stream": STREAM, "datagram": DGRAM, "seqpacket": SEQPACKET}
ROOMS = [
    0,
    1,
    socket.CMSG_LEN(0),
    socket.CMSG_LEN(4),
    socket.CMSG_SPACE(4),
    socket.CMSG_LEN(8),
    socket.CMSG_SPACE(12),
    4096,
    4097,
    9000,
]
SIZES = [0, 1, 3, 4, 100, 65536, 65537, 200_000]


def same_bytes(module, sock, size, room, flags):
    """recvmsg's result, with inodes for descriptors."""
    data, ancdata, msg_flags, address = module.recvmsg(sock, size, room, flags)
    return data, anonymous(ancdata), msg_flags, address


def same_count(module, sock, size, room, flags):
    """recvmsg_into's result, with what was written and inodes for descriptors."""
    buffer = bytearray(b"-" * (size + 3))
    views = [memoryview(buffer)[:2], memoryview(buffer)[2:size]] if size > 2 else [memoryview(buffer)[:size]]
    count, ancdata, msg_flags, address = module.recvmsg_into(sock, views, room, flags)
    return count, bytes(buffer), anonymous(ancdata), msg_flags, address


@needs_real_kernel
@pytest.mark.parametrize("receive", [same_bytes, same_count], ids=["recvmsg", "recvmsg_into"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_size_of_buffers(fdpass, kind, receive):
    """Whatever room there is for data and control data: what comes, is cut and is flagged is the same as in socket."""
    different = []
    with descriptors(3) as sent:
        for size in SIZES:
            for room in ROOMS:
                for flags in (0, PEEK, TRUNC, PEEK | TRUNC):
                    results = []
                    for module in (STDLIB, fdpass):
                        with pair(KINDS[kind]) as (a, b):
                            a.sendmsg([b"data"], rights(sent))
                            sound = ~TRUNC if PYPY and module is STDLIB and receive is same_bytes else -1
                            results.append(receive(module, b, size, room, flags & sound))  # 7.3.11 would abort
                    if results[0] != results[1]:
                        different.append((size, room, flags, *results))
    assert [] == different


def test_large_messages(fdpass):
    """A hundred kilobytes in one message arrive whole, with their descriptor, by every function."""
    with pair(SEQPACKET) as (a, b), descriptors(1) as sent:
        roomy(a, b)
        size = len(TEXT)
        assert size == fdpass.sendmsg(a, [TEXT[:1000], TEXT[1000:]])
        assert (TEXT, [], 0) == fdpass.recvmsg(b, size + 1)[:3]
        assert size == fdpass.send_fds(a, [TEXT], sent)
        buffers = [bytearray(10), bytearray(size - 10)]
        count, ancdata, _, _ = fdpass.recvmsg_into(b, buffers, 100)
        assert (size, TEXT, identities(sent)) == (count, b"".join(buffers), identities(fds_in(ancdata)))
        close(fds_in(ancdata))
        assert size == fdpass.send_fds(a, [TEXT], sent)
        received, fds, _, _ = fdpass.recv_fds(b, size, 1)
        assert (TEXT, identities(sent)) == (received, identities(fds))
        close(fds)


def test_large_amounts_through_a_stream(fdpass):
    """A megabyte through a stream comes out whole, in pieces, its descriptor with the first of them."""
    data = TEXT * 10
    with pair() as (a, b), descriptors(1) as sent:

        def send():
            count = fdpass.send_fds(a, [data], sent)
            while count < len(data):
                count += fdpass.sendmsg(a, [memoryview(data)[count:]])

        thread = threading.Thread(target=send)
        thread.start()
        got, fds, _, _ = fdpass.recv_fds(b, 10_001, 1)
        assert identities(sent) == identities(fds)
        close(fds)
        buffer = bytearray(99_999)
        while len(got) < len(data):
            if len(got) % 2:
                got += fdpass.recvmsg(b, 99_999, 100)[0]
            else:
                got += buffer[: fdpass.recvmsg_into(b, [buffer])[0]]
        thread.join()
    assert data == got


def test_datagrams_and_ends(fdpass):
    """An empty datagram is no end of file; an empty message keeps its descriptors; the end of a stream is empty."""
    with pair(SEQPACKET) as (a, b), descriptors(1) as sent:
        assert 0 == fdpass.send_fds(a, [], sent)
        assert 0 == fdpass.sendmsg(a, [])
        data, fds, _, address = fdpass.recv_fds(b, 10, 1)
        assert (b"", identities(sent), None) == (data, identities(fds), address)
        close(fds)
        assert b"" == fdpass.recvmsg(b, 10)[0]
        a.close()
        assert b"" == fdpass.recvmsg(b, 10)[0]
        assert 0 == fdpass.recvmsg_into(b, [bytearray(5)])[0]


FRUITLESS = {  # what finds nothing, or no room
    "send_fds": lambda m, s: m.send_fds(s.full, [b"x"], [0]),
    "send_fds-scattered": lambda m, s: m.send_fds(s.full, [b"x", b"y"], [0, 1]),
    "sendmsg": lambda m, s: m.sendmsg(s.full, [b"x"] * 3, rights([0, 1])),
    "recv_fds": lambda m, s: m.recv_fds(s.empty, 10, 1),
    "recv_fds-large": lambda m, s: m.recv_fds(s.empty, 100_000, 1),
    "recvmsg": lambda m, s: m.recvmsg(s.empty, 10),
    "recvmsg-large": lambda m, s: m.recvmsg(s.empty, 100_000, 10_000),
    "recvmsg_into": lambda m, s: m.recvmsg_into(s.empty, [bytearray(10)]),
    "recvmsg_into-scattered": lambda m, s: m.recvmsg_into(s.empty, [bytearray(10), bytearray(3)], 10_000),
    "recv_message": lambda m, s: m.recv_message(s.empty, 10, 1),
    "Channel.recv": lambda _, s: s.channel.recv(),
}


@pytest.mark.parametrize("name", FRUITLESS)
def test_what_moves_nothing_keeps_its_memory(fdpass, name):
    """EAGAIN leaves the pools with the same blocks as before, fit for the next call: a new one takes PyPy 0.1 ms."""
    scratch = fdpass._scratch
    sending = scratch.outgoing_pool, scratch.rights_out_pool
    receiving = scratch.incoming_pool, scratch.rights_in_pool, scratch.into_pool

    def blocks():
        return [sorted(map(id, pool)) for pool in sending + receiving]

    with pair() as (full, _), pair() as (empty, sender):
        fill(full)
        for sock in (full, empty):
            sock.setblocking(False)
        for pool in sending:
            pool[:] = [scratch.outgoing()]
        for pool in receiving:
            pool[:] = [scratch.incoming()]
        before = blocks()
        with fdpass.Channel(empty.dup()) as channel:
            for _ in range(3):
                with pytest.raises(BlockingIOError):
                    FRUITLESS[name](fdpass, SimpleNamespace(full=full, empty=empty, channel=channel))
        assert before == blocks()
        buffer = bytearray(9)
        assert 9 == fdpass.send_fds(sender, [b"some", b"bytes"], [0, 0])
        data, fds, _, _ = fdpass.recv_fds(empty, 100, 2)
        close(fds)
        assert 5 == fdpass.sendmsg(sender, [b"bytes"])
        assert (b"somebytes", 2, 5) == (data, len(fds), fdpass.recvmsg_into(empty, [buffer])[0])
        assert before == blocks()


INTO = {
    "none": list,
    "empty": lambda: [bytearray()],
    "BytesIO": lambda: [io.BytesIO(b"." * 20).getbuffer()],
    "bytearray": lambda: [bytearray(b"." * 20)],
    "small": lambda: [bytearray(b"." * 4)],
    "several": lambda: [bytearray(b"." * 3), bytearray(b"." * 2), bytearray(b"." * 9)],
    "with-empty": lambda: [bytearray(b"." * 3), bytearray(), bytearray(b"." * 20)],
    "tuple": lambda: (bytearray(b"." * 20),),
    "generator": lambda: (item for item in [bytearray(b"." * 20)]),
    "array": lambda: [array.array("i", range(5))],
    "memoryview": lambda: [memoryview(bytearray(b"." * 20))[2:7]],
    "two-dimensional": lambda: [memoryview(bytearray(b"." * 12)).cast("B", (3, 4))],
    "mmap": lambda: [mapped(b"." * 20)],
    "ctypes": lambda: [(ctypes.c_char * 20)() if ctypes else bytearray(20)],
    "most": lambda: [bytearray(1) for _ in range(os.sysconf("SC_IOV_MAX"))],
}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=needs_real_kernel) if name == "none" else name for name in INTO]
)
@pytest.mark.parametrize("given", ["socket", "timeout", "int"])
def test_buffers_to_receive_into(fdpass, name, given):
    """Whatever buffers socket's recvmsg_into fills are filled the same, and not one byte more is written."""
    results = []
    for module in (STDLIB, fdpass):
        with pair(SEQPACKET) as (a, b):
            a.send(b"0123456789")
            buffers = list(INTO[name]())
            b.settimeout(60 if given == "timeout" else None)
            sock = b.fileno() if given == "int" and module is fdpass else b
            count, ancdata, flags, address = module.recvmsg_into(
                sock, iter(buffers) if name == "generator" else buffers
            )
            results.append((count, [bytes(buffer) for buffer in buffers], ancdata, flags, address))
    assert results[0] == results[1]


def test_the_package_in_the_place_of_sockets_method(fdpass, monkeypatch):
    """A program may put recvmsg_into into socket.socket: it does not end up in itself."""
    monkeypatch.setattr(socket.socket, "recvmsg_into", fdpass.recvmsg_into)
    with pair() as (a, b):
        a.send(b"data")
        buffer = bytearray(10)
        assert (4, [], 0, None) == b.recvmsg_into([buffer])
        assert b"data" == buffer[:4]


def test_the_length_of_a_cut_datagram(fdpass):
    """With MSG_TRUNC recvmsg_into tells a datagram's whole length, recvmsg gives what there was room for."""
    with pair(DGRAM) as (a, b):
        for _ in range(3):
            a.send(bytes(range(100)))
        buffer = bytearray(12)
        assert (100, [], TRUNC, None) == fdpass.recvmsg_into(b, [memoryview(buffer)[:10]], 0, TRUNC)
        assert bytes(range(10)) + b"\0\0" == buffer
        assert (bytes(range(10)), [], TRUNC, None) == fdpass.recvmsg(b, 10, 0, TRUNC)
        assert (bytes(range(10)), [], TRUNC, None) == fdpass.recv_fds(b, 10, 1, TRUNC)


def test_a_peek_installs_descriptors_anew(fdpass):
    """Each MSG_PEEK gives fresh duplicates, which are the caller's; the message stays."""
    with pair() as (a, b), descriptors(2) as sent:
        a.sendmsg([b"data"], rights(sent))
        held = []
        for _ in range(3):
            held.append(fdpass.recv_fds(b, 10, 2, PEEK)[1])
            held.append(fds_in(fdpass.recvmsg(b, 10, 100, PEEK)[1]))
            held.append(fds_in(fdpass.recvmsg_into(b, [bytearray(10)], 100, PEEK)[1]))
        held.append(fdpass.recv_fds(b, 10, 2)[1])
        assert [identities(sent)] * 10 == [identities(fds) for fds in held]
        assert 20 == len({fd for fds in held for fd in fds})
        for fds in held:
            close(fds)
        with pytest.raises(BlockingIOError):
            b.recv(1, DONTWAIT)


def test_recv_fds_keeps_what_was_asked_for(fdpass):
    """The first maxfds descriptors come, of any number; the others are closed, and MSG_CTRUNC says so."""
    with pair() as (a, b), descriptors(4) as sent:
        for most in range(6):
            a.sendmsg([b"data"], rights(sent))
            before = open_numbers()
            data, fds, flags, address = fdpass.recv_fds(b, 10, most)
            assert set(fds) == open_numbers() - before
            expected = (b"data", identities(sent)[:most], CTRUNC if most < 4 else 0, None)
            assert expected == (data, identities(fds), flags, address)
            close(fds)
        a.sendmsg([b"data"], rights((sent * 64)[:253]))
        _, fds, flags, _ = fdpass.recv_fds(b, 10, Number(252))
        assert (identities((sent * 64)[:252]), CTRUNC) == (identities(fds), flags)
        close(fds)


@needs_real_kernel
@pytest.mark.parametrize("option", [None, PASSCRED, pytest.param(PASSPIDFD, marks=needs_pidfd)])
def test_recv_fds_after_as_many(fdpass, option):
    """A message is not taken for the one before it with as many descriptors, which leaves recv_fds less to look at."""
    with pair(socket.SOCK_DGRAM) as (a, b), descriptors(4) as sent:
        fdpass._scratch.rights_in_pool[:] = [fdpass._scratch.incoming()]
        for count, most, size, named in [
            (3, 3, 10, False), (3, 3, 10, False), (3, 2, 10, False), (3, 9, 10, False), (3, 3, 2, False),
            (3, 3, 2, False), (4, 4, 10, False), (3, 4, 10, False), (2, 4, 10, False), (2, 4, 10, False),
            (1, 4, 10, False), (0, 4, 10, False), (2, 0, 10, False), (2, 4, 10, True), (2, 4, 10, True),
            (2, 4, 10, False),
        ]:  # fmt: skip
            if named and not a.getsockname():
                a.bind(b"\0" + os.urandom(5).hex().encode())
            if option is not None and count == 3:
                b.setsockopt(SOL_SOCKET, option, size == 10)
            a.sendmsg([b"data"], rights(sent[:count]) if count else [])
            before = open_numbers()
            data, fds, flags, address = fdpass.recv_fds(b, size, most)
            assert set(fds) == open_numbers() - before
            expected = (CTRUNC if most < count else 0) | (TRUNC if size < 4 else 0)
            assert (b"data"[:size], expected) == (data, flags)
            assert (identities(sent[: min(count, most)]), a.getsockname() or None) == (identities(fds), address)
            close(fds)


class Word(bytes):
    """Equal to what it is not."""

    def __eq__(self, other):
        return True

    __hash__ = bytes.__hash__


WORDS = [b"x", b"y", b"", b"several", bytes(5000), bytearray(b"x"), Word(b"z")]
SENT = {
    **{f"{type(word).__name__}-{word[:7]!r}": ([word], None) for word in WORDS},
    "two": ([WORDS[0], WORDS[1]], None),
    "none": ([], None),
    "tuple": ((WORDS[0],), None),
    "iterator": ([WORDS[0]], None),
    "None": ([None], TypeError),
    "full": ([WORDS[1]], BlockingIOError),
    "flags": ([WORDS[1]], OverflowError),
    "no-flags": ([WORDS[1]], TypeError),
    "closed": ([WORDS[1]], OSError),
}


@pytest.mark.parametrize("second", SENT)
@pytest.mark.parametrize("first", SENT)
def test_send_fds_after_another(fdpass, first, second):
    """What was sent or refused before is not sent for what is asked for now, though a block remembers its bytes."""
    fdpass._scratch.rights_out_pool[:] = [fdpass._scratch.outgoing()]
    with pair(socket.SOCK_DGRAM) as (a, b), pair(socket.SOCK_DGRAM) as (full, _), descriptors(2) as sent:
        fill(full)
        full.setblocking(False)
        for name in (first, second, first):
            given, error = SENT[name]
            sock, flags = (full if name == "full" else a), {"flags": 1 << 40, "no-flags": 0.0}.get(name, 0)
            fds = [a.fileno() + 1000] if name == "closed" else sent
            if error:
                with pytest.raises(error):
                    fdpass.send_fds(sock, given, fds, flags)
                continue
            data = b"".join(given)
            for wanted in (sent, sent[:1]):
                assert len(data) == fdpass.send_fds(a, iter(given) if name == "iterator" else given, wanted)
                got, fds, flags, _ = fdpass.recv_fds(b, 9999, 2)
                assert (data, identities(wanted), 0) == (got, identities(fds), flags)
                close(fds)


def test_send_fds_of_nothing_after_nothing(fdpass):
    """No bytes are refused on a stream also where a datagram without any has gone just before."""
    with pair() as (stream, _), pair(socket.SOCK_DGRAM) as (datagrams, _), descriptors(1) as sent:
        assert 0 == fdpass.send_fds(datagrams, [b""], sent)
        with pytest.raises(ValueError, match="buffers hold no byte"):
            fdpass.send_fds(stream, [b""], sent)


ASKED = {
    "one": (1, 1, 0, None),
    "four": (4, 1, 0, None),
    "two-fds": (4, 2, 0, None),
    "no-fd": (4, 0, 0, None),
    "nothing": (0, 1, 0, None),
    "large": (100_000, 1, 0, None),
    "peek": (4, 1, socket.MSG_PEEK, None),
    "truth": (True, True, 0, None),
    "None": (None, 1, 0, TypeError),
    "no-most": (4, None, 0, TypeError),
    "negative": (-1, 1, 0, ValueError),
    "flags": (4, 1, 1 << 40, OverflowError),
    "no-flags": (4, 1, None, TypeError),
    "zero": (4, 1, 0.0, TypeError),
    "empty": (7, 1, socket.MSG_DONTWAIT, BlockingIOError),
    "empty-large": (100_000, 1, socket.MSG_DONTWAIT, BlockingIOError),
}


@needs_real_kernel
@pytest.mark.parametrize("second", ASKED)
@pytest.mark.parametrize("first", ASKED)
def test_recv_fds_after_another(fdpass, first, second):
    """What was asked for before does not decide what is given now, though a block remembers what it is ready for."""
    fdpass._scratch.rights_in_pool[:] = [fdpass._scratch.incoming()]
    with pair(socket.SOCK_DGRAM) as (a, b), descriptors(2) as sent:
        b.settimeout(5)
        for name in (first, second, first, first):
            size, most, flags, error = ASKED[name]
            if error:
                with pytest.raises(error):
                    fdpass.recv_fds(b, size, most, flags)
                continue
            given = b"data" * max(1, size // 5)
            a.sendmsg([given], rights(sent))
            data, fds, got, _ = fdpass.recv_fds(b, size, most, flags)
            if flags:
                b.recv(4)
            expected = (CTRUNC if most < 2 else 0) | (TRUNC if size < 4 else 0)
            assert (given[:size], identities(sent[:most]), expected) == (data, identities(fds), got)
            close(fds)


@pytest.mark.parametrize("options", [(PASSCRED,), pytest.param((PASSCRED, PASSPIDFD), marks=needs_pidfd)])
def test_recv_fds_beside_everything_else(fdpass, options):
    """253 descriptors beside credentials and a pidfd come whole; the pidfd, not asked for, is closed."""
    with pair() as (a, b), descriptors(3) as sent:
        for option in options:
            b.setsockopt(SOL_SOCKET, option, 1)
        for count in (0, 1, 3, 253):
            a.sendmsg([b"data"], rights((sent * 85)[:count]))
            before = open_numbers()
            data, fds, flags, _ = fdpass.recv_fds(b, 10, 253)
            assert set(fds) == open_numbers() - before
            assert (b"data", identities((sent * 85)[:count]), 0) == (data, identities(fds), flags)
            close(fds)


def test_recvmsg_gives_all_control_messages(fdpass):
    """Credentials and descriptors come as socket gives them, in the kernel's order."""
    with pair() as (a, b), descriptors(2) as sent:
        b.setsockopt(SOL_SOCKET, PASSCRED, 1)
        a.sendmsg([b"data"], rights(sent))
        credentials = UCRED.pack(os.getpid(), os.getuid(), os.getgid())
        ancdata = anonymous(fdpass.recvmsg(b, 10, 1000)[1])
        expected = [(SOL_SOCKET, SCM_CREDENTIALS, credentials), (SOL_SOCKET, SCM_RIGHTS, identities(sent))]
    assert expected == ancdata


@needs_pidfd
def test_recvmsg_hands_a_pidfd_over(fdpass):
    """With SO_PASSPIDFD on, recvmsg gives the SCM_PIDFD item; its descriptor is the caller's, close-on-exec."""
    with pair() as (a, b):
        b.setsockopt(SOL_SOCKET, PASSPIDFD, 1)
        a.send(b"data")
        _, [(level, kind, data)], _, _ = fdpass.recvmsg(b, 10, 1000)
        (pidfd,) = array.array("i", data)
        assert (SOL_SOCKET, fdpass.SCM_PIDFD, False) == (level, kind, os.get_inheritable(pidfd))
        os.close(pidfd)


def test_the_kernel_sets_close_on_exec(fdpass, monkeypatch):
    """Descriptors come close-on-exec out of recvmsg(2) itself, so that no fork of another thread can come first."""

    def late(*args):
        raise AssertionError("too late")

    monkeypatch.setattr(os, "set_inheritable", late)
    with pair() as (a, b), descriptors(2) as sent:
        for _ in range(3):
            a.sendmsg([b"data"], rights(sent))
        held = fdpass.recv_fds(b, 10, 2)[1] + fds_in(fdpass.recvmsg(b, 10, 100)[1])
        held += fds_in(fdpass.recvmsg_into(b, [bytearray(10)], 100)[1])
        assert [False] * 6 == [os.get_inheritable(fd) for fd in held]
        close(held)


# A control message that is not whole: no kernel sends it, and socket warns of it

RECEIVE = {
    "recv_fds": lambda fdpass, sock: fdpass.recv_fds(sock, 10, 5)[1],
    "recvmsg": lambda fdpass, sock: fds_in(fdpass.recvmsg(sock, 10, 100)[1]),
    "recvmsg_into": lambda fdpass, sock: fds_in(fdpass.recvmsg_into(sock, [bytearray(10)], 100)[1]),
}


@pytest.fixture
def overlong(fdpass, monkeypatch):
    """A recvmsg(2) whose one control message claims to be longer than the control data."""
    ffi, real = fdpass._backend.ffi, fdpass._backend.lib.recvmsg

    def recvmsg(fd, msg, flags):
        got = real(fd, msg, flags)
        if got > 0:
            control = ffi.buffer(ffi.cast("char *", msg.msg_control), msg.msg_controllen)
            (length,) = struct.unpack_from("@N", control)
            msg.msg_controllen = length  # without the padding, which is no descriptor
            struct.pack_into("@N", control, 0, 1 << 20)
        return got

    patched = 0
    for name, module in list(sys.modules.items()):
        if name.startswith(fdpass.__name__ + ".") and hasattr(module, "lib_recvmsg"):
            monkeypatch.setattr(module, "lib_recvmsg", recvmsg)
            patched += 1
    assert patched


@pytest.mark.parametrize("name", RECEIVE)
def test_an_overlong_control_message_is_warned_of(fdpass, overlong, name):
    """The RuntimeWarning of socket, on the caller's line; what is there is handed over."""
    with pair() as (a, b), descriptors(2) as sent:
        a.sendmsg([b"data"], rights(sent))
        with pytest.warns(RuntimeWarning, match="malformed or improperly-truncated ancillary data") as caught:
            fds = RECEIVE[name](fdpass, b)
        assert [__file__] == [warning.filename for warning in caught]
        assert identities(sent) == identities(fds)
        close(fds)


@pytest.mark.parametrize("name", RECEIVE)
def test_a_warning_that_is_an_error_closes_what_came(fdpass, overlong, name):
    """Where the filter makes an exception of it, no descriptor is left open, and the next call is none the worse."""
    with pair() as (a, b), descriptors(2) as sent:
        for _ in range(3):
            a.sendmsg([b"data"], rights(sent))
            before = open_numbers()
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                with pytest.raises(RuntimeWarning):
                    RECEIVE[name](fdpass, b)
            assert before == open_numbers()


# What a process notices

PIPES = """
import signal, socket, sys
import fdpass_cffi

signal.signal(signal.SIGPIPE, signal.SIG_DFL)
a, b = socket.socketpair()
b.close()
if sys.argv[1] == "socket":
    a.sendmsg([b"x"])
for send in (lambda: fdpass_cffi.sendmsg(a, [b"x"]), lambda: fdpass_cffi.send_fds(a, [b"x"], [0])):
    try:
        send()
    except BrokenPipeError:
        print("alive")
a.close()
"""


def test_sigpipe_does_not_kill(fdpass):
    """With SIGPIPE at its default a send to nobody is BrokenPipeError; socket's sendmsg would end the process."""
    assert "alive\nalive\n" == run_child(fdpass, PIPES, "fdpass_cffi")
    with pytest.raises(AssertionError):
        run_child(fdpass, PIPES, "socket")


AUDIT = """
import socket, sys
import fdpass_cffi

events, veto = [], []


def hook(event, args):
    if event.startswith("socket.send"):
        events.append((event, *args))
        if veto:
            raise RuntimeError("vetoed")


sys.addaudithook(hook)
a, b = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
c = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
c.bind(b"\\0" + sys.argv[1].encode())
fdpass_cffi.sendmsg(a, [b"x"])
fdpass_cffi.send_fds(a, [b"x"], [0])
fdpass_cffi.sendmsg(c, [b"x"], [], 0, c.getsockname())
fdpass_cffi.send_fds(c.fileno(), [b"x"], [0], 0, c.getsockname())
name = c.getsockname()
assert events == [("socket.sendmsg", a, None)] * 2 + [("socket.sendmsg", c, name), ("socket.sendmsg", c.fileno(), name)]
ours, events[:] = events[:3], []
if sys.implementation.name == "cpython":
    a.sendmsg([b"x"])
    socket.send_fds(a, [b"x"], [0])
    c.sendmsg([b"x"], [], 0, name)
    assert ours == events
while True:
    try:
        b.recv(10, socket.MSG_DONTWAIT)
    except BlockingIOError:
        break
veto.append(1)
for send in (lambda: fdpass_cffi.sendmsg(a, [b"x"]), lambda: fdpass_cffi.send_fds(a, [b"x"], [0])):
    try:
        send()
    except RuntimeError:
        print("vetoed")
try:
    b.recv(10, socket.MSG_DONTWAIT)
except BlockingIOError:
    print("nothing sent")
for sock in (a, b, c):
    sock.close()
"""


def test_the_audit_event(fdpass):
    """A send raises socket's own audit event, socket.sendmsg with the socket and the address; a hook can veto it."""
    assert "vetoed\nvetoed\nnothing sent\n" == run_child(fdpass, AUDIT, os.urandom(8).hex())


@needs_real_kernel
def test_an_interface_by_its_name(fdpass):
    """A packet goes out by the interface that is named, and its sender's address names it, as `socket` has both."""
    try:
        sock = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(0x88B5))
    except (AttributeError, OSError) as error:
        pytest.skip(f"no AF_PACKET socket here: {error}")
    with sock:
        sock.bind(("lo", 0x88B5))
        sock.settimeout(20)
        address = ("lo", 0x88B5, 0, 0, b"\0\0\0\0\0\0")
        assert 4 == fdpass.sendmsg(sock, [b"data"], (), 0, address)
        data, _, _, sender = fdpass.recvmsg(sock, 100, 0, socket.MSG_PEEK)
        assert (b"data", "lo") == (data, sender[0])
        assert sock.recvmsg(100, 0, socket.MSG_PEEK)[3] == sender
        buffer = bytearray(100)
        assert sender == fdpass.recvmsg_into(sock.fileno(), [buffer], 0, socket.MSG_PEEK)[3]

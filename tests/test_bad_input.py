"""Bad arguments: the exception is the one `socket` raises, its message names the argument, and nothing has happened.

Nothing: the peer sees no byte, what waited to be received still waits, no descriptor is opened or closed.
"""

from __future__ import annotations

import errno
import os
import re
import resource
import socket
import sys
from types import SimpleNamespace

import pytest
from support import PYPY, STDLIB, close, drain, open_numbers, pair, rights

MOST = sys.maxsize
SPREAD = memoryview(bytearray(10))[::2]  # not contiguous
cpython = pytest.mark.skipif(PYPY, reason="PyPy's socket raises other exceptions; the known ones are CPython's")
IOV_MAX = os.sysconf("SC_IOV_MAX")


class NotAnInt:
    def fileno(self):
        return "3"


class Huge:
    def fileno(self):
        return 1 << 40


class Closed:
    def fileno(self):
        return -1


def in_a_gigabyte(call, *args):
    """A call in an address space of that size where pointers have 32 bits: 2 GiB may be found in the 4 there are."""
    if MOST >> 32:
        return call(*args)
    limits = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (1 << 30, limits[1]))
    try:
        return call(*args)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)


def bad(name, call, expected, match, own=""):
    """`own`: why socket raises something else, or nothing."""
    return SimpleNamespace(name=name, call=call, expected=expected, match=match, own=own)


EBADF, EMSGSIZE, EINVAL, ENOTSOCK = errno.EBADF, errno.EMSGSIZE, errno.EINVAL, errno.ENOTSOCK
HUGE = ValueError if MOST > 1 << 31 else OverflowError  # beyond a socklen_t, or beyond a ssize_t at once
PATIENT = "socket has no such check"

SENDING = [  # m: the module, s: what there is to call it with
    bad("buffers-str", lambda m, s: m.sendmsg(s.a, ["text"]), TypeError, "buffers.*str"),
    bad("buffers-one-str", lambda m, s: m.sendmsg(s.a, "text"), TypeError, "buffers.*str"),
    bad("buffers-one-bytes", lambda m, s: m.sendmsg(s.a, b"bytes"), TypeError, "buffers.*int"),
    bad("buffers-late-str", lambda m, s: m.sendmsg(s.a, [b"x", "text"]), TypeError, "buffers.*str"),
    bad("buffers-int", lambda m, s: m.sendmsg(s.a, 5), TypeError, "buffers.*int"),
    bad("buffers-None", lambda m, s: m.sendmsg(s.a, None), TypeError, "buffers.*NoneType"),
    bad("buffers-missing", lambda m, s: m.sendmsg(s.a), TypeError, "buffers"),
    bad("buffers-spread", lambda m, s: m.sendmsg(s.a, [SPREAD]), BufferError, "buffers.*contiguous"),
    bad("buffers-1025", lambda m, s: m.sendmsg(s.a, [b"x"] * (IOV_MAX + 1)), EMSGSIZE, "1025 .*buffers|buffers.* 1025"),
    bad("ancdata-int", lambda m, s: m.sendmsg(s.a, [b"x"], 5), TypeError, "ancdata.*int"),
    bad("ancdata-None", lambda m, s: m.sendmsg(s.a, [b"x"], None), TypeError, "ancdata.*NoneType"),
    bad("ancdata-item", lambda m, s: m.sendmsg(s.a, [b"x"], [5]), TypeError, r"ancdata\[0\].*5"),
    bad("ancdata-pair", lambda m, s: m.sendmsg(s.a, [b"x"], [(1, 1)]), TypeError, r"ancdata\[0\].*\(1, 1\)"),
    bad("ancdata-four", lambda m, s: m.sendmsg(s.a, [b"x"], [(1, 1, b"", 1)]), TypeError, r"ancdata\[0\]"),
    bad("level-str", lambda m, s: m.sendmsg(s.a, [b"x"], [("1", 1, b"")]), TypeError, "cmsg_level.*str"),
    bad("level-float", lambda m, s: m.sendmsg(s.a, [b"x"], [(1.0, 1, b"")]), TypeError, "cmsg_level.*float"),
    bad(
        "level-huge", lambda m, s: m.sendmsg(s.a, [b"x"], [(1 << 31, 1, b"")]), OverflowError, "cmsg_level.*2147483648"
    ),
    bad("type-None", lambda m, s: m.sendmsg(s.a, [b"x"], [(1, None, b"")]), TypeError, "cmsg_type.*NoneType"),
    bad("type-huge", lambda m, s: m.sendmsg(s.a, [b"x"], [(1, -(1 << 31) - 1, b"")]), OverflowError, "cmsg_type.*-214"),
    bad("data-str", lambda m, s: m.sendmsg(s.a, [b"x"], [(1, 1, "text")]), TypeError, r"ancdata\[0\].*str"),
    bad("data-spread", lambda m, s: m.sendmsg(s.a, [b"x"], [(1, 1, SPREAD)]), BufferError, r"ancdata\[0\].*contiguous"),
    bad("second-item", lambda m, s: m.sendmsg(s.a, [b"x"], [(1, 1, b""), 5]), TypeError, r"ancdata\[1\]"),
    bad("flags-str", lambda m, s: m.sendmsg(s.a, [b"x"], [], "0"), TypeError, "flags.*str"),
    bad("flags-float", lambda m, s: m.sendmsg(s.a, [b"x"], [], 1.5), TypeError, "flags.*float"),
    bad("flags-zero", lambda m, s: m.sendmsg(s.a, [b"x"], [], 0.0), TypeError, "flags.*float"),
    bad("flags-None", lambda m, s: m.sendmsg(s.a, [b"x"], [], None), TypeError, "flags.*NoneType"),
    bad("flags-huge", lambda m, s: m.sendmsg(s.a, [b"x"], [], 1 << 31), OverflowError, "flags.*2147483648"),
    bad("address-int", lambda m, s: m.sendmsg(s.a, [b"x"], [], 0, 5), TypeError, "address.*int"),
    bad("address-long", lambda m, s: m.sendmsg(s.a, [b"x"], [], 0, "x" * 200), OSError, "path too long"),
    bad("keyword", lambda m, s: m.sendmsg(s.a, [b"x"], flgas=1), TypeError, "flgas|keyword"),
    bad("rights-closed", lambda m, s: m.sendmsg(s.a, [b"x"], rights([s.closed])), EBADF, ""),
    bad("rights-negative", lambda m, s: m.sendmsg(s.a, [b"x"], rights([-1])), EBADF, ""),
    bad("fds-negative", lambda m, s: m.send_fds(s.a, [b"x"], [-1]), EBADF, r"fds\[0\] is -1"),
    bad("fds-more-negative", lambda m, s: m.send_fds(s.a, [b"x"], [0, -(1 << 31)]), EBADF, r"fds\[1\] is -2147483648"),
    bad("fds-too-negative", lambda m, s: m.send_fds(s.a, [b"x"], [-(1 << 40)]), OverflowError, r"fds\[0\]"),
    bad("fds-closed", lambda m, s: m.send_fds(s.a, [b"x"], [s.closed]), EBADF, r"fds\[0\] is \d+, which is not open"),
    bad("fds-closed-late", lambda m, s: m.send_fds(s.a, [b"x"], [0, 0, s.closed]), EBADF, r"fds\[2\] is \d+, which is"),
    bad("fds-unused", lambda m, s: m.send_fds(s.a, [b"x"], [(1 << 31) - 1]), EBADF, r"fds\[0\] is 2147483647"),
    bad("fds-huge", lambda m, s: m.send_fds(s.a, [b"x"], [1 << 31]), OverflowError, r"fds\[0\].*2147483648"),
    bad("fds-endless", lambda m, s: m.send_fds(s.a, [b"x"], [0, 1 << 70]), OverflowError, r"fds\[1\]"),
    bad("fds-str", lambda m, s: m.send_fds(s.a, [b"x"], ["0"]), TypeError, r"fds\[0\].*str"),
    bad("fds-float", lambda m, s: m.send_fds(s.a, [b"x"], [0, 1.0]), TypeError, r"fds\[1\].*float"),
    bad("fds-None", lambda m, s: m.send_fds(s.a, [b"x"], [None]), TypeError, r"fds\[0\].*NoneType"),
    bad("fds-int", lambda m, s: m.send_fds(s.a, [b"x"], 5), TypeError, "fds.*int"),
    bad("fds-text", lambda m, s: m.send_fds(s.a, [b"x"], "01"), TypeError, r"fds\[0\].*str"),
    bad("fds-no-int", lambda m, s: m.send_fds(s.a, [b"x"], [NotAnInt()]), TypeError, r"fds\[0\]"),
    bad("fds-bool", lambda m, s: m.send_fds(s.a, [b"x"], [True]), TypeError, r"fds\[0\].*True", PATIENT),
    bad("fds-bool-late", lambda m, s: m.send_fds(s.a, [b"x"], [0, 1, False]), TypeError, r"fds\[2\].*False", PATIENT),
    bad("fds-shut", lambda m, s: m.send_fds(s.a, [b"x"], [Closed()]), EBADF, r"fds\[0\] is closed", "takes no objects"),
    bad("fds-254", lambda m, s: m.send_fds(s.a, [b"x"], [0] * 254), EINVAL, "254 .*fds.*253"),
    bad("fds-buffers", lambda m, s: m.send_fds(s.a, ["text"], [0]), TypeError, "buffers.*str"),
    bad("fds-flags", lambda m, s: m.send_fds(s.a, [b"x"], [0], "0"), TypeError, "flags.*str", "ignores its flags"),
    bad("fds-keyword", lambda m, s: m.send_fds(s.a, [b"x"], [0], flgas=1), TypeError, "flgas"),
]

RECEIVING = [
    bad("bufsize-negative", lambda m, s: m.recvmsg(s.b, -1), ValueError, "negative.*bufsize is -1"),
    bad("bufsize-str", lambda m, s: m.recvmsg(s.b, "1"), TypeError, "bufsize.*str"),
    bad("bufsize-float", lambda m, s: m.recvmsg(s.b, 1.0), TypeError, "bufsize.*float"),
    bad("bufsize-None", lambda m, s: m.recvmsg(s.b, None), TypeError, "bufsize.*NoneType"),
    bad("bufsize-missing", lambda m, s: m.recvmsg(s.b), TypeError, "bufsize"),
    bad("bufsize-huge", lambda m, s: in_a_gigabyte(m.recvmsg, s.b, MOST - 100), MemoryError, ""),
    bad("bufsize-most", lambda m, s: m.recvmsg(s.b, MOST), OverflowError, "bufsize"),
    bad("bufsize-more", lambda m, s: m.recvmsg(s.b, MOST + 1), OverflowError, "bufsize"),
    bad("bufsize-least", lambda m, s: m.recvmsg(s.b, -MOST - 1), ValueError, "negative.*bufsize"),
    bad("bufsize-less", lambda m, s: m.recvmsg(s.b, -MOST - 2), OverflowError, "bufsize"),
    bad("ancbufsize-negative", lambda m, s: m.recvmsg(s.b, 1, -1), ValueError, "ancillary.*ancbufsize is -1"),
    bad("ancbufsize-huge", lambda m, s: m.recvmsg(s.b, 1, 1 << 31), HUGE, "ancbufsize"),
    bad("ancbufsize-more", lambda m, s: m.recvmsg(s.b, 1, MOST + 1), OverflowError, "ancbufsize"),
    bad("ancbufsize-str", lambda m, s: m.recvmsg(s.b, 1, "1"), TypeError, "ancbufsize.*str"),
    bad("ancbufsize-empty", lambda m, s: m.recvmsg(s.b, 1, ""), TypeError, "ancbufsize.*str"),
    bad("ancbufsize-float", lambda m, s: m.recvmsg(s.b, 1, 0.0), TypeError, "ancbufsize.*float"),
    bad("ancbufsize-None", lambda m, s: m.recvmsg(s.b, 1, None), TypeError, "ancbufsize.*NoneType"),
    bad("flags-str", lambda m, s: m.recvmsg(s.b, 1, 0, "0"), TypeError, "flags.*str"),
    bad("flags-zero", lambda m, s: m.recvmsg(s.b, 1, 0, 0.0), TypeError, "flags.*float"),
    bad("flags-huge", lambda m, s: m.recvmsg(s.b, 1, 0, 1 << 31), OverflowError, "flags"),
    bad("keyword", lambda m, s: m.recvmsg(s.b, 1, flgas=1), TypeError, "flgas"),
    bad("into-bytes", lambda m, s: m.recvmsg_into(s.b, [b"xx"]), TypeError, "buffers.*read-write.*bytes"),
    bad("into-read-only", lambda m, s: m.recvmsg_into(s.b, [memoryview(b"xx")]), TypeError, "buffers.*read-write"),
    bad("into-str", lambda m, s: m.recvmsg_into(s.b, ["xx"]), TypeError, "buffers.*str"),
    bad("into-late", lambda m, s: m.recvmsg_into(s.b, [bytearray(1), "xx"]), TypeError, "buffers.*str"),
    bad("into-late-control", lambda m, s: m.recvmsg_into(s.b, [bytearray(1), "xx"], 100), TypeError, "buffers.*str"),
    bad("into-spread-control", lambda m, s: m.recvmsg_into(s.b, [SPREAD], 100), BufferError, "buffers.*contiguous",
        "socket says TypeError of every buffer that it cannot write to"),
    bad("into-iterator", lambda m, s: m.recvmsg_into(s.b, iter([b"xx"])), TypeError, "buffers.*read-write.*bytes"),
    bad("into-int", lambda m, s: m.recvmsg_into(s.b, 5), TypeError, "buffers.*int"),
    bad("into-bare", lambda m, s: m.recvmsg_into(s.b, bytearray(5)), TypeError, "buffers.*int"),
    bad("into-spread", lambda m, s: m.recvmsg_into(s.b, [SPREAD]), BufferError, "buffers.*contiguous",
        "socket says TypeError of every buffer that it cannot write to"),
    bad("into-1025", lambda m, s: m.recvmsg_into(s.b, [bytearray(1) for _ in range(IOV_MAX + 1)]), EMSGSIZE,
        "1025 .*buffers|buffers.* 1025"),
    bad("into-ancbufsize", lambda m, s: m.recvmsg_into(s.b, [bytearray(1)], -1), ValueError, "ancbufsize is -1"),
    bad("into-ancbufsize-float", lambda m, s: m.recvmsg_into(s.b, [bytearray(1)], 0.0), TypeError, "ancbufsize.*float"),
    bad("into-flags-zero", lambda m, s: m.recvmsg_into(s.b, [bytearray(1)], 0, 0.0), TypeError, "flags.*float"),
    bad("into-flags", lambda m, s: m.recvmsg_into(s.b, [bytearray(1)], 0, "0"), TypeError, "flags"),
    bad("into-keyword", lambda m, s: m.recvmsg_into(s.b, [bytearray(1)], flgas=1), TypeError, "flgas"),
    bad("fds-bufsize-negative", lambda m, s: m.recv_fds(s.b, -1, 1), ValueError, "bufsize is -1"),
    bad("fds-bufsize-str", lambda m, s: m.recv_fds(s.b, "1", 1), TypeError, "bufsize.*str"),
    bad("fds-maxfds-negative", lambda m, s: m.recv_fds(s.b, 1, -1), ValueError, "maxfds is -1",
        "a negative size is ValueError; socket's OverflowError is that of CMSG_LEN"),
    bad("fds-maxfds-str", lambda m, s: m.recv_fds(s.b, 1, "1"), TypeError, "maxfds.*str"),
    bad("fds-maxfds-float", lambda m, s: m.recv_fds(s.b, 1, 1.0), TypeError, "maxfds.*float"),
    bad("fds-maxfds-None", lambda m, s: m.recv_fds(s.b, 1, None), TypeError, "maxfds.*NoneType"),
    bad("fds-flags", lambda m, s: m.recv_fds(s.b, 1, 1, "0"), TypeError, "flags.*str", "ignores its flags"),
    bad("fds-keyword", lambda m, s: m.recv_fds(s.b, 1, 1, flgas=1), TypeError, "flgas"),
]  # fmt: skip

NUMBERS = [
    bad("negative", lambda m, name: getattr(m, name)(-1), OverflowError, r"\(\) argument out of range: length is -1"),
    bad("huge", lambda m, name: getattr(m, name)((1 << 31) - 1), OverflowError, "length is 2147483647"),
    bad("more", lambda m, name: getattr(m, name)(MOST + 1), OverflowError, "length is"),
    bad("str", lambda m, name: getattr(m, name)("1"), TypeError, "length.*str"),
    bad("float", lambda m, name: getattr(m, name)(1.0), TypeError, "length.*float"),
]


def outcome(call) -> tuple[type | int | None, str]:
    """The errno or type of what a call raised, and its text; MemoryError has none."""
    try:
        call()
    except OSError as error:
        return error.errno or type(error), str(error)
    except Exception as error:  # noqa: BLE001
        return type(error), str(error)
    return None, ""


@pytest.fixture
def there():
    """A pair of sockets, and the number of a descriptor that is not open."""
    with pair() as (a, b), socket.socket() as closed:
        number = closed.fileno()
        closed.close()
        a.settimeout(5)  # what should be refused and is not ends all the same
        b.settimeout(5)
        yield SimpleNamespace(a=a, b=b, closed=number)


def wrong(values, found: tuple[type | int | None, str]) -> list[str]:
    """How an outcome differs from what is expected."""
    as_expected = values.expected == found[0] and re.search(values.match, found[1])
    return [] if as_expected else [f"{values.name}: {values.expected} {values.match!r} but {found}"]


def check(module, values, there, waiting: bytes) -> list[str]:
    """How a refused call differs from what is expected; after it nothing was sent, taken or opened."""
    before = open_numbers()
    complaints = wrong(values, outcome(lambda: values.call(module, there)))
    if before != open_numbers():
        complaints.append(f"{values.name}: a descriptor was opened or closed")
    got = drain(there.b)
    if waiting != got:
        complaints.append(f"{values.name}: {got!r} waits")
    return complaints


def test_a_send_refuses(fdpass, there):
    """The exception is the known one and names the argument; the peer sees nothing."""
    complaints = [complaint for values in SENDING for complaint in check(fdpass, values, there, b"")]
    assert "" == "\n".join(complaints)


def test_a_receive_refuses(fdpass, there):
    """The exception is the known one and names the argument; what waited still waits."""
    complaints = []
    for values in RECEIVING:
        there.a.send(b"waiting")
        complaints += check(fdpass, values, there, b"waiting")
    assert "" == "\n".join(complaints)


@pytest.mark.parametrize("name", ["CMSG_LEN", "CMSG_SPACE"])
def test_a_length_is_refused(fdpass, name):
    """CMSG_LEN and CMSG_SPACE refuse what socket's refuse, by its exception, naming the argument."""
    for values in NUMBERS:
        assert [] == wrong(values, outcome(lambda values=values: values.call(fdpass, name)))


@cpython
def test_socket_raises_the_same(there):
    """The known exceptions are those of CPython's socket."""
    there.a.send(b"waiting")
    different = []
    for values in SENDING + RECEIVING:
        found, _ = outcome(lambda values=values: values.call(STDLIB, there))
        if values.expected != found and not values.own:
            different.append((values.name, found))
    assert [] == different


@cpython
@pytest.mark.parametrize("name", ["CMSG_LEN", "CMSG_SPACE"])
def test_socket_refuses_the_same_lengths(name):
    """The known exceptions are those of CPython's socket."""
    for values in NUMBERS:
        assert values.expected == outcome(lambda values=values: values.call(STDLIB, name))[0]


# What is no socket

CALLS = {
    "sendmsg": lambda m, sock: m.sendmsg(sock, [b"x"]),
    "recvmsg": lambda m, sock: m.recvmsg(sock, 1),
    "recvmsg_into": lambda m, sock: m.recvmsg_into(sock, [bytearray(1)]),
    "send_fds": lambda m, sock: m.send_fds(sock, [b"x"], [0]),
    "recv_fds": lambda m, sock: m.recv_fds(sock, 1, 1),
}
NO_SOCKETS = [
    ("negative", -1, ValueError, "sock.*negative.*-1"),
    ("more-negative", -5, ValueError, "sock.*negative.*-5"),
    ("huge", 1 << 31, OverflowError, "sock.*2147483648"),
    ("endless", 1 << 70, OverflowError, "sock"),
    ("bool", True, TypeError, "sock.*bool"),
    ("str", "3", TypeError, "sock.*str"),
    ("bytes", b"3", TypeError, "sock.*bytes"),
    ("float", 3.0, TypeError, "sock.*float"),
    ("None", None, TypeError, "sock.*NoneType"),
    ("no-int", NotAnInt(), TypeError, "sock.*str"),
    ("huge-fileno", Huge(), OverflowError, "sock.*1099511627776"),
    ("shut", Closed(), EBADF, "sock is closed"),
]


@pytest.mark.parametrize("name", CALLS)
def test_a_sock_is_refused(fdpass, name):
    """What cannot be a socket is refused by an exception that names it, as socket.socket(fileno=...) would."""
    for label, sock, expected, match in NO_SOCKETS:
        values = bad(label, None, expected, match)
        assert [] == wrong(values, outcome(lambda sock=sock: CALLS[name](fdpass, sock)))


@pytest.mark.parametrize("name", CALLS)
def test_a_closed_socket_is_refused_as_socket_refuses_it(fdpass, name):
    """EBADF, and it says that it is the socket."""
    a, b = socket.socketpair()
    a.close()
    b.close()
    assert EBADF == outcome(lambda: CALLS[name](STDLIB, a))[0]
    found, text = outcome(lambda: CALLS[name](fdpass, a))
    assert (EBADF, True) == (found, "sock is closed" in text)


@pytest.mark.parametrize("name", CALLS)
def test_a_number_that_is_not_open_is_refused(fdpass, name, there):
    """EBADF, and it says that it is the socket's number."""
    found, text = outcome(lambda: CALLS[name](fdpass, there.closed))
    assert (EBADF, True) == (found, f"sock is {there.closed}" in text)


@pytest.mark.parametrize("name", CALLS)
def test_a_file_is_no_socket(fdpass, name):
    """ENOTSOCK, by number and by object."""
    with open(os.devnull, "r+b") as file:
        assert ENOTSOCK == outcome(lambda: CALLS[name](fdpass, file))[0]
        assert ENOTSOCK == outcome(lambda: CALLS[name](fdpass, file.fileno()))[0]


@pytest.mark.parametrize("name", CALLS)
def test_what_fileno_raises_comes_out(fdpass, name):
    """An exception of the object's own fileno() is not replaced."""

    class Broken:
        def fileno(self):
            raise LookupError("broken")

    with pytest.raises(LookupError, match="broken"):
        CALLS[name](fdpass, Broken())


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6], ids=["INET", "INET6"])
def test_descriptors_over_another_family_are_refused(fdpass, family):
    """Linux would take descriptors over TCP and lose them: send_fds raises ValueError and sends nothing."""
    if not socket.has_ipv6 and family == socket.AF_INET6:
        pytest.skip("no IPv6")
    try:
        server = socket.create_server(("127.0.0.1" if family == socket.AF_INET else "::1", 0), family=family)
    except OSError as error:
        pytest.skip(f"no such address here: {error}")
    with server, socket.create_connection(server.getsockname()[:2]) as a, server.accept()[0] as b:
        for sock in (a, a.fileno()):
            with pytest.raises(ValueError, match=r"sock.*AF_UNIX"):
                fdpass.send_fds(sock, [b"x"], [0])
        a.sendall(b"the first")
        assert b"the first" == b.recv(100)


def test_a_failed_send_spoils_nothing(fdpass, there):
    """After every refusal the next message goes out whole: no argument of a refused call is left in pooled memory."""
    for values in SENDING:
        outcome(lambda values=values: values.call(fdpass, there))
        assert 5 == fdpass.send_fds(there.a, [b"whole"], [0])
        data, fds, flags, address = fdpass.recv_fds(there.b, 100, 10)
        assert (b"whole", 1, 0, None) == (data, len(fds), flags, address)
        assert os.path.samestat(os.fstat(0), os.fstat(fds[0]))
        close(fds)
        assert 3 == fdpass.sendmsg(there.a, [b"a", b"bc"])
        assert (b"abc", [], 0, None) == fdpass.recvmsg(there.b, 100, 100)


def test_a_failed_receive_spoils_nothing(fdpass, there):
    """After every refusal the next message comes in whole."""
    for values in RECEIVING:
        outcome(lambda values=values: values.call(fdpass, there))
        there.a.sendmsg([b"whole"], rights([0]))
        data, fds, flags, address = fdpass.recv_fds(there.b, 100, 10)
        assert (b"whole", 1, 0, None) == (data, len(fds), flags, address)
        close(fds)
        there.a.send(b"abc")
        buffer = bytearray(10)
        assert (3, [], 0, None) == fdpass.recvmsg_into(there.b, [buffer])
        assert b"abc" == buffer[:3]


def test_an_urgent_byte_carries_no_descriptors(fdpass):
    """MSG_OOB on one byte alone would lose the descriptors: ValueError, and nothing was sent."""
    with pair() as (a, b):
        with pytest.raises(ValueError, match="flags: the descriptors would be lost"):
            fdpass.send_fds(a, [b"x"], [0], socket.MSG_OOB)
        assert b"" == drain(b)

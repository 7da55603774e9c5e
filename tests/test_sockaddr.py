"""struct sockaddr in both directions: against the kernel, against the structs of the man pages, and
against CPython itself, whose sockaddr bytes are seen through a C library call put in its way.
"""

from __future__ import annotations

import errno
import fcntl
import os
import pickle
import random
import re
import shutil
import socket
import struct
import subprocess
import sys
from pathlib import Path

import cffi
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fdpass_cffi import _sockaddr
from fdpass_cffi._sockaddr import decode, encode

CPYTHON = sys.implementation.name == "cpython"
ffi = cffi.FFI()  # and not ctypes, which some Pythons are built without
ffi.cdef("""
int getsockname(int, void *, unsigned *);
int getpeername(int, void *, unsigned *);
int accept(int, void *, unsigned *);
int bind(int, const void *, unsigned);
ssize_t sendto(int, const void *, size_t, int, const void *, unsigned);
ssize_t recvfrom(int, void *, size_t, int, void *, unsigned *);
""")
libc = ffi.dlopen(None)

# As the C headers have them; the file under test has its own table for interpreters that lack the names.
NETLINK, PACKET, RDS, CAN, TIPC, BLUETOOTH, ALG, VSOCK, QIPCRTR = 16, 17, 21, 29, 30, 31, 38, 40, 42
UNIX, INET, INET6 = int(socket.AF_UNIX), int(socket.AF_INET), int(socket.AF_INET6)
RAW, BCM, ISOTP, J1939 = 1, 2, 6, 7
L2CAP, HCI, SCO, RFCOMM = 0, 1, 2, 3
NAMES = {
    UNIX: "UNIX",
    INET: "INET",
    INET6: "INET6",
    NETLINK: "NETLINK",
    PACKET: "PACKET",
    RDS: "RDS",
    CAN: "CAN",
    TIPC: "TIPC",
    BLUETOOTH: "BLUETOOTH",
    ALG: "ALG",
    VSOCK: "VSOCK",
    QIPCRTR: "QIPCRTR",
}


class System:
    """The resolver as a caller would write it, which here may touch the system."""

    def host(self, name: bytes, family: int) -> bytes:
        address = socket.getaddrinfo(name, None, family)[0][4][0]
        return socket.inet_pton(family, address.partition("%")[0])

    def ioctl(self, request: int, ifreq: bytes) -> bytes:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            return fcntl.ioctl(sock, request, ifreq.ljust(40, b"\0"))

    def if_nametoindex(self, name: bytes) -> int:
        return struct.unpack_from("=i", self.ioctl(0x8933, name), 16)[0]  # SIOCGIFINDEX

    def if_indextoname(self, number: int) -> str:
        ifreq = self.ioctl(0x8910, struct.pack("=16xi", number))  # SIOCGIFNAME
        return os.fsdecode(ifreq[:16].partition(b"\0")[0])


class Nobody:
    """A resolver that must not be asked."""

    def host(self, name, family):
        pytest.fail(f"asked to resolve {name!r}")

    def if_nametoindex(self, name):
        pytest.fail(f"asked for interface {name!r}")


SYSTEM, NOBODY = System(), Nobody()


def open_socket(family: int, kind: int, proto: int = 0) -> socket.socket:
    try:
        return socket.socket(family, kind, proto)
    except OSError as error:
        if error.errno not in {
            errno.EAFNOSUPPORT,
            errno.EPROTONOSUPPORT,
            errno.ESOCKTNOSUPPORT,
            errno.ENODEV,
            errno.EPERM,
        }:
            raise
        pytest.skip(f"the system gives no AF_{NAMES[family]} socket: {os.strerror(error.errno)}")


def name_of(sock: socket.socket, call: str = "getsockname") -> bytes:
    """The bytes of the kernel's own answer."""
    buffer, length = ffi.new("char[128]"), ffi.new("unsigned *", 128)
    checked(getattr(libc, call)(sock.fileno(), buffer, length))
    return ffi.buffer(buffer, length[0])[:]


def checked(result: int) -> int:
    if result < 0:
        raise OSError(ffi.errno, os.strerror(ffi.errno))
    return result


def bind(sock: socket.socket, raw: bytes) -> None:
    checked(libc.bind(sock.fileno(), raw, len(raw)))


def send_to(sock: socket.socket, data: bytes, raw: bytes) -> None:
    assert len(data) == checked(libc.sendto(sock.fileno(), data, len(data), 0, raw, len(raw)))


# AF_UNIX with the kernel


UNIX_NAMES = {
    "path": ("sock", "sock"),
    "bytes path": (b"sock", "sock"),
    "bytearray": (bytearray(b"sock"), "sock"),
    "memoryview": (memoryview(b"sock"), "sock"),
    "not UTF-8": (b"s\xff\xfe", "s\udcff\udcfe"),
    "surrogates": ("s\udcff\udcfe", "s\udcff\udcfe"),
    "not ASCII": ("s\u00e9\u20ac", "s\u00e9\u20ac"),
    "longest path": ("p" * 107, "p" * 107),
    "NUL inside": (b"so\0ck", "so"),
    "abstract": (b"\0fdpass-\xff-test", b"\0fdpass-\xff-test"),
    "abstract str": ("\0fdpass-\u00e9-test", b"\0fdpass-\xc3\xa9-test"),
    "abstract with NULs": (b"\0fdpass\0\0test\0", b"\0fdpass\0\0test\0"),
    "longest abstract": (b"\0fdpass" + b"n" * 101, b"\0fdpass" + b"n" * 101),
}
utf8_names = pytest.mark.skipif(sys.getfilesystemencoding() != "utf-8", reason="the names are written for UTF-8")


@utf8_names
@pytest.mark.parametrize(("given_name", "seen"), UNIX_NAMES.values(), ids=UNIX_NAMES)
def test_unix_names_mean_to_the_kernel_what_socket_means_by_them(given_name, seen, tmp_path, monkeypatch):
    """A name we encode is bound by the kernel as the one `socket` reads back, and we read what `socket` reads."""
    monkeypatch.chdir(tmp_path)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ours:
        bind(ours, encode(UNIX, 0, given_name, NOBODY))
        assert seen == ours.getsockname()
        assert seen == decode(name_of(ours))


@utf8_names
@pytest.mark.parametrize(("given_name", "seen"), UNIX_NAMES.values(), ids=UNIX_NAMES)
def test_unix_names_reach_what_socket_bound(given_name, seen, tmp_path, monkeypatch):
    """A datagram sent to our encoding arrives at the socket that `socket` bound under that name."""
    monkeypatch.chdir(tmp_path)
    with (
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as theirs,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ours,
    ):
        theirs.bind(given_name if isinstance(given_name, (str, bytes)) else bytes(given_name))
        send_to(ours, b"x", encode(UNIX, 0, given_name, NOBODY))
        theirs.setblocking(False)
        assert b"x" == theirs.recv(2)


def test_an_unnamed_unix_socket_is_the_empty_string():
    """The two bytes of an unnamed socket decode to '', as `socket` says; no bytes at all to None."""
    left, right = socket.socketpair()
    with left, right:
        assert "" == left.getsockname() == decode(name_of(left)) == decode(name_of(left, "getpeername"))
    assert None is decode(b"")


def test_an_empty_unix_name_asks_for_an_autobound_one():
    """'' and b'' encode to the family alone, for which Linux chooses an abstract name."""
    for empty in ("", b""):
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            bind(sock, encode(UNIX, 0, empty, NOBODY))
            assert b"\0" == sock.getsockname()[:1]
            assert sock.getsockname() == decode(name_of(sock))


# The internet families with the kernel


@pytest.mark.parametrize("host", ["127.0.0.1", "", "localhost", b"127.0.0.1", bytearray(b"127.0.0.1"), "127.1"])
def test_inet_addresses_mean_to_the_kernel_what_socket_means_by_them(host):
    """Every form of an IPv4 host is bound, sent to and read back as by `socket`."""
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as ours,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as theirs,
    ):
        bind(ours, encode(INET, 0, (host, 0), SYSTEM))
        address, port = ours.getsockname()
        assert ("0.0.0.0" if host == "" else "127.0.0.1") == address
        assert (address, port) == decode(name_of(ours))
        send_to(theirs, b"x", encode(INET, 0, (host, port), SYSTEM))
        ours.settimeout(10)
        data, sender = ours.recvfrom(2)
        assert (b"x", "127.0.0.1", theirs.getsockname()[1]) == (data, *sender)


@pytest.mark.parametrize("rest", [(), (0,), (0, 0)], ids=["pair", "with flowinfo", "with scope_id"])
@pytest.mark.parametrize("host", ["::1", "", "::", b"::1"])
def test_inet6_addresses_mean_to_the_kernel_what_socket_means_by_them(host, rest):
    """IPv6 addresses of two, three and four elements are bound and read back as by `socket`."""
    with open_socket(socket.AF_INET6, socket.SOCK_DGRAM) as sock:
        bind(sock, encode(INET6, 0, (host, 0, *rest), NOBODY))
        assert ("::1" if "1" in str(host) else "::") == sock.getsockname()[0]
        assert sock.getsockname() == decode(name_of(sock))


def test_an_inet6_scope_reaches_the_kernel():
    """A link-local address is refused without its scope_id, and bound and read back with it."""
    lines = [line.split() for line in Path("/proc/net/if_inet6").read_text().splitlines()]
    found = [
        (socket.inet_ntop(socket.AF_INET6, bytes.fromhex(a)), int(i, 16)) for a, i, *_ in lines if a.startswith("fe80")
    ]
    if not found:
        pytest.skip("no interface has a link-local IPv6 address")
    host, scope = found[0]
    with open_socket(socket.AF_INET6, socket.SOCK_DGRAM) as sock:
        with pytest.raises(OSError, match="Invalid argument"):
            bind(sock, encode(INET6, 0, (host, 0), NOBODY))
        bind(sock, encode(INET6, 0, (host, 0, 0, scope), NOBODY))
        # PyPy adds the interface to the host, and qemu-user returns the scope_id in a wrong order.
        assert (host, *sock.getsockname()[1:]) == decode(name_of(sock))


# The other families, as far as the kernel has them


def test_netlink_addresses_are_those_of_socket():
    """A netlink socket bound by our bytes has the pid and groups that `socket` reads back, above 2**31 too."""
    with open_socket(NETLINK, socket.SOCK_RAW) as sock:
        bind(sock, encode(NETLINK, 0, (0x9ABCDEF1, 1), NOBODY))
        assert (0x9ABCDEF1, 1) == sock.getsockname() == decode(name_of(sock))


def test_packet_addresses_are_those_of_socket():
    """A packet socket bound by our bytes to the loopback reads back as by `socket`, and receives from its address."""
    with open_socket(PACKET, socket.SOCK_DGRAM) as sock, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        bind(sock, encode(PACKET, 0, ("lo", 0x0800), SYSTEM))
        assert ("lo", 0x0800, 0, 772, bytes(6)) == sock.getsockname()
        assert sock.getsockname() == decode(name_of(sock), 0, SYSTEM.if_indextoname)
        sock.settimeout(10)
        buffer, raw, length = ffi.new("char[64]"), ffi.new("char[128]"), ffi.new("unsigned *", 128)
        udp.sendto(b"x", ("127.0.0.1", 9))
        socket_says = sock.recvfrom(64, socket.MSG_PEEK)[1]
        checked(libc.recvfrom(sock.fileno(), buffer, 64, 0, raw, length))
        assert socket_says == decode(ffi.buffer(raw, length[0])[:], 0, SYSTEM.if_indextoname)


def test_vsock_addresses_are_those_of_socket():
    """A vsock socket bound by our bytes to any port has an address that reads back as by `socket`."""
    with open_socket(VSOCK, socket.SOCK_STREAM) as sock:
        bind(sock, encode(VSOCK, 0, (0xFFFFFFFF, 0xFFFFFFFF), NOBODY))
        cid, port = decode(name_of(sock))
        assert 0xFFFFFFFF == cid
        if hasattr(socket, "AF_VSOCK"):  # without it `socket` cannot tell
            assert sock.getsockname() == (cid, port)
        with open_socket(VSOCK, socket.SOCK_STREAM) as second, pytest.raises(OSError, match="in use"):
            bind(second, encode(VSOCK, 0, (0xFFFFFFFF, port), NOBODY))


def test_alg_addresses_choose_an_algorithm():
    """The kernel takes our bytes for the algorithm they name."""
    with open_socket(ALG, socket.SOCK_SEQPACKET) as sock:
        bind(sock, encode(ALG, 0, ("hash", "sha256"), NOBODY))
        with socket.socket(fileno=checked(libc.accept(sock.fileno(), ffi.NULL, ffi.NULL))) as operation:
            operation.sendall(b"")
            assert "e3b0c44298fc1c14" == operation.recv(32).hex()[:16]


@pytest.mark.parametrize("proto", [RAW, ISOTP, J1939])
def test_can_addresses_are_those_of_socket(proto):
    """A CAN socket bound by our bytes reads back as by `socket`."""
    address = {RAW: ("",), ISOTP: ("vcan0", 0x123, 0x456), J1939: ("vcan0", 5, 6, 7)}[proto]
    with open_socket(CAN, socket.SOCK_RAW if proto == RAW else socket.SOCK_DGRAM, proto) as sock:
        try:
            bind(sock, encode(CAN, proto, address, SYSTEM))
        except OSError as error:
            pytest.skip(f"no usable vcan0: {error}")
        assert sock.getsockname() == decode(name_of(sock), proto, SYSTEM.if_indextoname)


@pytest.mark.parametrize(
    ("family", "address"), [(QIPCRTR, (1, 0)), (TIPC, (2, 1000, 2000, 0)), (RDS, ("127.0.0.1", 0))], ids=str
)
def test_rarer_families_are_bound_and_read_back(family, address):
    """Our bytes bind a socket of a family that few kernels have, and its name decodes to what `socket` says."""
    with open_socket(family, socket.SOCK_SEQPACKET if family == RDS else socket.SOCK_DGRAM) as sock:
        bind(sock, encode(family, 0, address, NOBODY))
        assert sock.getsockname() == decode(name_of(sock))


# The structs of the man pages and headers, laid out by this machine's own C rules


ffi.cdef("""
struct sockaddr_in { uint16_t family, port; uint8_t addr[4], zero[8]; };
struct sockaddr_in6 { uint16_t family, port; uint32_t flowinfo; uint8_t addr[16]; uint32_t scope_id; };
struct sockaddr_nl { uint16_t family, pad; uint32_t pid, groups; };
struct sockaddr_qrtr { uint16_t family; uint32_t node, port; };
struct sockaddr_vm { uint16_t family, reserved1; uint32_t port, cid; uint8_t flags, zero[3]; };
struct sockaddr_ll {
    uint16_t family, protocol; int ifindex; uint16_t hatype; uint8_t pkttype, halen, addr[8];
};
struct can_tp { uint32_t rx_id, tx_id; };
struct can_j1939 { uint64_t name; uint32_t pgn; uint8_t addr; };
union can_addr { struct can_tp tp; struct can_j1939 j1939; };
struct sockaddr_can { uint16_t family; int ifindex; union can_addr addr; };
struct sockaddr_alg { uint16_t family; uint8_t type[14]; uint32_t feat, mask; uint8_t name[64]; };
struct tipc_id { uint32_t ref, node; };
struct tipc_nameseq { uint32_t type, lower, upper; };
struct tipc_name { uint32_t type, instance, domain; };
union tipc_addr { struct tipc_id id; struct tipc_nameseq nameseq; struct tipc_name name; };
struct sockaddr_tipc { uint16_t family; uint8_t addrtype; int8_t scope; union tipc_addr addr; };
struct sockaddr_l2 { uint16_t family, psm; uint8_t bdaddr[6]; uint16_t cid; uint8_t bdaddr_type; };
struct sockaddr_rc { uint16_t family; uint8_t bdaddr[6], channel; };
struct sockaddr_hci { uint16_t family, dev, channel; };
struct sockaddr_sco { uint16_t family; uint8_t bdaddr[6]; };
""")


def c(struct_name: str, /, **fields: object) -> bytes:
    """The struct with these fields, and zero in the others."""
    return ffi.buffer(ffi.new(f"struct sockaddr_{struct_name} *", fields))[:]


BDADDR = bytes.fromhex("060504030201")
LO = "lo"
BIG, SMALL = 0x89ABCDEF, 0x12345678
PORT_BE = socket.htons(0x1234)

STRUCTS = [
    (16, INET, 0, ("1.2.3.4", 0x1234), c("in", family=INET, port=PORT_BE, addr=b"\1\2\3\4")),
    (16, INET, 0, ("255.255.255.255", 0), c("in", family=INET, addr=b"\xff" * 4)),
    (
        28,
        INET6,
        0,
        ("102:304::ff", 0x1234, 0xABCDE, BIG),
        c(
            "in6",
            family=INET6,
            port=PORT_BE,
            flowinfo=socket.htonl(0xABCDE),
            addr=b"\1\2\3\4" + bytes(11) + b"\xff",
            scope_id=BIG,
        ),
    ),
    (12, NETLINK, 0, (BIG, SMALL), c("nl", family=NETLINK, pid=BIG, groups=SMALL)),
    (12, QIPCRTR, 0, (BIG, SMALL), c("qrtr", family=QIPCRTR, node=BIG, port=SMALL)),
    (16, VSOCK, 0, (BIG, SMALL), c("vm", family=VSOCK, cid=BIG, port=SMALL)),
    (
        20,
        PACKET,
        0,
        (LO, 0x1234, 4, 0xABCD, b"\1\2\3\4\5\6"),
        c(
            "ll",
            family=PACKET,
            protocol=PORT_BE,
            ifindex=7,
            hatype=0xABCD,
            pkttype=4,
            halen=6,
            addr=b"\1\2\3\4\5\6",
        ),
    ),
    (20, PACKET, 0, ("", 0xFFFF, 0, 0, b""), c("ll", family=PACKET, protocol=0xFFFF)),
    (24, CAN, RAW, (LO,), c("can", family=CAN, ifindex=7)),
    (24, CAN, BCM, ("",), c("can", family=CAN)),
    (
        24,
        CAN,
        ISOTP,
        (LO, BIG, 0x123),
        c("can", family=CAN, ifindex=7, addr={"tp": {"rx_id": BIG, "tx_id": 0x123}}),
    ),
    (
        24,
        CAN,
        J1939,
        (LO, 0x89ABCDEF01234567, 0x3FFFF, 0xFE),
        c(
            "can",
            family=CAN,
            ifindex=7,
            addr={"j1939": {"name": 0x89ABCDEF01234567, "pgn": 0x3FFFF, "addr": 0xFE}},
        ),
    ),
    (
        88,
        ALG,
        0,
        ("skcipher", "cbc(aes)", 0x89AB, 0x1234),
        c("alg", family=ALG, type=b"skcipher", feat=0x89AB, mask=0x1234, name=b"cbc(aes)"),
    ),
    (88, ALG, 0, ("t" * 13, "n" * 63, 0, 0), c("alg", family=ALG, type=b"t" * 13, name=b"n" * 63)),
    (
        16,
        TIPC,
        0,
        (1, BIG, 2, 3, 2),
        c("tipc", family=TIPC, addrtype=1, scope=2, addr={"nameseq": {"type": BIG, "lower": 2, "upper": 3}}),
    ),
    (
        16,
        TIPC,
        0,
        (2, BIG, 2, 2, 0xFFFFFFFF),
        c("tipc", family=TIPC, addrtype=2, scope=-1, addr={"name": {"type": BIG, "instance": 2}}),
    ),
    (
        16,
        TIPC,
        0,
        (3, BIG, 2, 0, 3),
        c("tipc", family=TIPC, addrtype=3, scope=3, addr={"id": {"ref": 2, "node": BIG}}),
    ),
    (
        14,
        BLUETOOTH,
        L2CAP,
        ("01:02:03:04:05:06", 0x1001),
        c("l2", family=BLUETOOTH, psm=0x1001, bdaddr=BDADDR),
    ),
    (10, BLUETOOTH, RFCOMM, ("01:02:03:04:05:06", 30), c("rc", family=BLUETOOTH, bdaddr=BDADDR, channel=30)),
    (8, BLUETOOTH, SCO, "01:02:03:04:05:06", c("sco", family=BLUETOOTH, bdaddr=BDADDR)),
    (6, BLUETOOTH, HCI, 0xFFFF, c("hci", family=BLUETOOTH, dev=0xFFFF)),
]


class Loopback(Nobody):
    """A machine whose interfaces are "", which has no index, and "lo", which is number 7."""

    def if_nametoindex(self, name):
        return {b"lo": 7, b"": 0}[name]

    def if_indextoname(self, number):
        return {7: "lo"}[number]


LOOPBACK = Loopback()


@pytest.mark.parametrize(("size", "family", "proto", "address", "expected"), STRUCTS, ids=lambda value: str(value)[:40])
def test_addresses_are_the_structs_of_the_man_pages(size, family, proto, address, expected):
    """Byte for byte the C struct in one direction, and the address again in the other."""
    assert size == len(expected)
    assert expected == encode(family, proto, address, LOOPBACK)
    assert address == decode(expected, proto, LOOPBACK.if_indextoname)


@pytest.mark.parametrize(
    ("family", "proto", "short", "full"),
    [
        (INET, 0, ("", 1), ("0.0.0.0", 1)),
        (INET, 0, ("<broadcast>", True), ("255.255.255.255", 1)),
        (INET6, 0, ("", 1), ("::", 1, 0, 0)),
        (INET6, 0, ("::1", 1, 2), ("::1", 1, 2, 0)),
        (INET6, 0, ("::1", 1, 1 << 32, -1), ("::1", 1, 0, 0xFFFFFFFF)),
        (NETLINK, 0, (-1, 1 << 32), (0xFFFFFFFF, 0)),
        (VSOCK, 0, (-1, -2), (0xFFFFFFFF, 0xFFFFFFFE)),
        (QIPCRTR, 0, (-1, -2), (0xFFFFFFFF, 0xFFFFFFFE)),
        (PACKET, 0, ("lo", 1), ("lo", 1, 0, 0, b"")),
        (PACKET, 0, ("lo", 1, -1, -1, bytearray(b"12345678")), ("lo", 1, 0xFF, 0xFFFF, b"12345678")),
        (PACKET, 0, ("", 1, 2), ("", 1, 2, 0, b"")),
        (CAN, RAW, (b"lo",), ("lo",)),
        (CAN, BCM, (Path("lo"),), ("lo",)),
        (CAN, ISOTP, ("lo", -1, 1 << 32), ("lo", 0xFFFFFFFF, 0)),
        (CAN, J1939, ("lo", -1, -1, -1), ("lo", (1 << 64) - 1, 0xFFFFFFFF, 0xFF)),
        (ALG, 0, ("aead", "gcm(aes)"), ("aead", "gcm(aes)", 0, 0)),
        (ALG, 0, ("aead", "gcm(aes)", 0x10001), ("aead", "gcm(aes)", 1, 0)),
        (TIPC, 0, (2, 3, 4, 99), (2, 3, 4, 4, 2)),
        (TIPC, 0, (1, 3, 4, 5, 0x103), (1, 3, 4, 5, 3)),
        (BLUETOOTH, SCO, b"1:2:3:4:a:b", "01:02:03:04:0A:0B"),
        (BLUETOOTH, RFCOMM, (" +1:0x2: 03:4:a:B", 257), ("01:02:03:04:0A:0B", 1)),
        (BLUETOOTH, HCI, (3,), 3),
    ],
)
def test_what_is_left_out_or_out_of_range_is_filled_in_as_socket_does(family, proto, short, full):
    """Optional elements take CPython's defaults, and numbers it masks are masked."""
    assert full == decode(encode(family, proto, short, LOOPBACK), proto, LOOPBACK.if_indextoname)


@pytest.mark.parametrize(
    ("proto", "raw", "old", "new"),
    [
        (L2CAP, c("l2", family=BLUETOOTH, psm=1, bdaddr=BDADDR, cid=4), (1,), (1, 4)),
        (L2CAP, c("l2", family=BLUETOOTH, psm=1, bdaddr=BDADDR, cid=4, bdaddr_type=2), (1,), (1, 4, 2)),
        (L2CAP, c("l2", family=BLUETOOTH, psm=1, bdaddr=BDADDR, bdaddr_type=2), (1,), (1, 0, 2)),
        (HCI, c("hci", family=BLUETOOTH, dev=1, channel=3), 1, (1, 3)),
    ],
)
def test_bluetooth_forms_of_newer_interpreters(proto, raw, old, new, monkeypatch):
    """The longer addresses of CPython 3.14 are taken everywhere, and returned where `socket` returns them."""
    name = ("01:02:03:04:05:06",) if proto == L2CAP else ()
    assert raw == encode(BLUETOOTH, proto, (*name, *new), NOBODY)
    monkeypatch.setattr(_sockaddr, "_LONG_BLUETOOTH", False)
    assert ((*name, *old) if name else old) == decode(raw, proto)
    monkeypatch.setattr(_sockaddr, "_LONG_BLUETOOTH", True)
    assert (*name, *new) == decode(raw, proto)


@pytest.mark.parametrize("newer", [False, True])
@pytest.mark.parametrize("row", [row[2:] for row in STRUCTS if row[1] == BLUETOOTH], ids=str)
def test_plain_bluetooth_addresses_are_the_same_in_newer_interpreters(row, newer, monkeypatch):
    """Where the new fields are zero, old and new interpreters give the same."""
    proto, address, raw = row
    monkeypatch.setattr(_sockaddr, "_LONG_BLUETOOTH", newer)
    assert address == decode(raw, proto)


def test_bluetooth_numbers_out_of_range_are_a_wrong_format():
    """Beyond a C int, as in CPython up to 3.13; 3.14 cuts them instead."""
    for proto, address in (L2CAP, (B, 2**31)), (RFCOMM, (B, 2**31)), (HCI, (2**31,)), (HCI, -(2**31) - 1):
        with pytest.raises(OSError, match=r"^sendmsg\(\): wrong format$"):
            encode(BLUETOOTH, proto, address, NOBODY)


def test_rds_has_the_addresses_of_inet():
    """An AF_RDS address is a struct sockaddr_in that says AF_INET, as in CPython."""
    assert encode(INET, 0, ("1.2.3.4", 5), NOBODY) == encode(RDS, 0, ("1.2.3.4", 5), NOBODY)


@pytest.mark.parametrize("size", [2, 3, 15, 16, 17, 128])
def test_an_unknown_family_is_its_number_and_fourteen_bytes(size):
    """(family, sa_data) for any other family, cut or filled with NULs to the size of sa_data."""
    raw = (struct.pack("=H", 0x1234) + bytes(range(1, 127)))[:size]
    assert (0x1234, raw[2:16].ljust(14, b"\0")) == decode(raw)


def test_short_names_read_as_if_filled_with_nuls():
    """A name shorter than its family's struct decodes as from CPython's zeroed buffer, for every family."""
    families = [(family, 0) for family in NAMES if family not in {RDS, UNIX}]
    for family, proto in [*families, (CAN, ISOTP), (CAN, J1939), (BLUETOOTH, HCI), (BLUETOOTH, SCO)]:
        raw = struct.pack("=HB", family, 2)
        assert decode(raw.ljust(128, b"\0"), proto) == decode(raw, proto)
    assert decode(b"\x01\0") == decode(b"\x01")


def test_a_long_hardware_address_is_whole():
    """The kernel writes past sll_addr where hardware addresses have 20 bytes, as InfiniBand's do."""
    address = bytes(range(20))
    raw = c("ll", family=PACKET, hatype=32, halen=20)[:12] + address
    assert ("", 0, 0, 32, address) == decode(raw)


def test_an_interface_without_a_name_is_the_empty_string():
    """An index that the system no longer knows reads as '', and so does any without someone to ask."""

    def unknown(number):
        raise OSError(errno.ENODEV, "No such device")

    raw = c("can", family=CAN, ifindex=7)
    assert ("",) == decode(raw, RAW, unknown)
    assert ("",) == decode(raw, RAW)
    assert ("lo",) == decode(raw, RAW, LOOPBACK.if_indextoname)


# The other layout: a length byte, then a family of one byte


@pytest.mark.parametrize(
    ("family", "address", "raw"),
    [
        (UNIX, "ab", bytes([5, UNIX]) + b"ab\0"),
        (UNIX, "", bytes([3, UNIX]) + b"\0"),
        (UNIX, "p" * 103, bytes([106, UNIX]) + b"p" * 103 + b"\0"),
        (INET, ("1.2.3.4", 0x1234), bytes([16, INET, 0x12, 0x34, 1, 2, 3, 4]) + bytes(8)),
        (
            INET6,
            ("::1", 0x1234, 0xABCDE, 5),
            bytes([28, INET6, 0x12, 0x34, 0, 0x0A, 0xBC, 0xDE]) + bytes(15) + b"\1" + struct.pack("=I", 5),
        ),
    ],
)
def test_bsd_addresses_begin_with_their_length(family, address, raw):
    """On Darwin and the BSDs the first byte is the struct's length and the second the family."""
    assert raw == encode(family, 0, address, NOBODY, bsd=True)
    assert address == decode(raw, bsd=True)


def test_bsd_has_no_abstract_names_and_shorter_paths():
    """There sun_path is 104 bytes, always ends in NUL, and a leading NUL is the end of the name."""
    with pytest.raises(OSError, match="^AF_UNIX path too long$"):
        encode(UNIX, 0, "p" * 104, NOBODY, bsd=True)
    assert bytes([6, UNIX]) + b"\0ab\0" == encode(UNIX, 0, b"\0ab", NOBODY, bsd=True)
    assert "" == decode(bytes([6, UNIX]) + b"\0ab\0", bsd=True)
    assert "" == decode(bytes([16, UNIX]) + bytes(14), bsd=True)
    assert (200, bytes(range(14))) == decode(bytes([16, 200]) + bytes(range(14)), bsd=True)


# Names that need the system


def test_only_names_are_resolved():
    """The resolver gets what getaddrinfo would get, and its packed answer goes into the struct."""
    asked = []

    class Names(Nobody):
        def host(self, name, family):
            asked.append((name, family))
            return bytes(range(4 if family == INET else 16))

    for family, host in [
        (INET, "example.org"),
        (INET, "b\u00fccher.example"),
        (INET, bytearray(b"example.org")),
        (INET, b"caf\xe9"),
        (INET, "127.1"),
        (INET6, "fe80::1%lo"),
        (INET6, "1.2.3.4"),
    ]:
        raw = encode(family, 0, (host, 80), Names())
        assert socket.inet_ntop(family, bytes(range(4 if family == INET else 16))) == decode(raw)[0]
    assert [
        (b"example.org", INET),
        (b"xn--bcher-kva.example", INET),
        (b"example.org", INET),
        (b"caf\xe9", INET),
        (b"127.1", INET),
        (b"fe80::1%lo", INET6),
        (b"1.2.3.4", INET6),
    ] == asked


def test_a_long_interface_name_is_cut_for_packet():
    """AF_PACKET cuts an interface name to 15 bytes, as CPython does; AF_CAN refuses it (see ERRORS)."""

    class Interfaces(Nobody):
        def if_nametoindex(self, name):
            assert b"i" * 15 == name
            return 9

    assert 9 == struct.unpack_from("=i", encode(PACKET, 0, ("i" * 40, 0), Interfaces()), 4)[0]


# Errors


class Duck:
    """Acts as an integer, and is none."""

    def __index__(self):
        return 1


NOT_INT = "'str' object cannot be interpreted as an integer"
PORT, FORMAT = "sendmsg(): port must be 0-65535.", "sendmsg(): wrong format"
NO_DEVICE = "[Errno 19] No such device"
PACKET_FORM = "AF_PACKET address must be a tuple of two to five elements"
ALG_FORM = "AF_ALG address must be a tuple (type, name[, feat[, mask]])"
TIPC_FORM = "AF_TIPC address must be a tuple (addr_type, v1, v2, v3[, scope])"
INET6_FORM = "AF_INET6 address must be a tuple (host, port[, flowinfo[, scopeid]])"
A, B = "127.0.0.1", "01:02:03:04:05:06"

# family, protocol, address, exception, its words (None: they are the C library's or the codec's)
ERRORS = [
    (UNIX, 0, 5, TypeError, "a bytes-like object is required, not 'int'"),
    (UNIX, 0, ("x",), TypeError, "a bytes-like object is required, not 'tuple'"),
    (UNIX, 0, Path("x"), TypeError, f"a bytes-like object is required, not '{type(Path()).__name__}'"),
    (UNIX, 0, "x" * 108, OSError, "AF_UNIX path too long"),
    (UNIX, 0, b"x" * 4096, OSError, "AF_UNIX path too long"),
    (UNIX, 0, b"\0" * 109, OSError, "AF_UNIX path too long"),
    (UNIX, 0, "x\ud800", UnicodeEncodeError, None),
    (UNIX, 0, memoryview(b"abcd")[::2], BufferError, "memoryview: underlying buffer is not C-contiguous"),
    (INET, 0, A, TypeError, "sendmsg(): AF_INET address must be tuple, not str"),
    (INET, 0, [A, 80], TypeError, "sendmsg(): AF_INET address must be tuple, not list"),
    (INET, 0, b"", TypeError, "sendmsg(): AF_INET address must be tuple, not bytes"),
    (INET, 0, (A,), TypeError, "AF_INET address must be a pair (host, port)"),
    (INET, 0, (A, 80, 0), TypeError, "AF_INET address must be a pair (host, port)"),
    (INET, 0, (5, 80), TypeError, "str, bytes or bytearray expected, not int"),
    (INET, 0, (None, "80"), TypeError, "str, bytes or bytearray expected, not NoneType"),
    (INET, 0, ("127.0.0.1\0", 80), TypeError, "host name must not contain null character"),
    (INET, 0, (b"a\0b", 80), TypeError, "host name must not contain null character"),
    (INET, 0, ("\u00e9\ud800", 80), TypeError, "encoding of hostname failed"),
    (INET, 0, ("\u00e9" * 80, 80), TypeError, "encoding of hostname failed"),
    (INET, 0, (A, "80"), TypeError, NOT_INT),
    (INET, 0, (A, None), TypeError, NOT_INT.replace("str", "NoneType")),
    (INET, 0, (A, 80.0), TypeError, NOT_INT.replace("str", "float")),
    (INET, 0, ("::1", "80"), TypeError, NOT_INT),
    *((INET, 0, (A, port), OverflowError, PORT) for port in (-1, 65536, 2**31, -(2**31) - 1, 2**70)),
    (INET, 0, ("::1", 80), socket.gaierror, None),
    (INET, 0, ("::1", 65536), socket.gaierror, None),
    (INET, 0, ("::1", 2**31), OverflowError, PORT),
    (RDS, 0, A, TypeError, "sendmsg(): AF_INET address must be tuple, not str"),
    (INET6, 0, "::1", TypeError, "sendmsg(): AF_INET6 address must be tuple, not str"),
    (INET6, 0, ("::1",), TypeError, INET6_FORM),
    (INET6, 0, ("::1", 1, 2, 3, 4), TypeError, INET6_FORM),
    (INET6, 0, ("::1", "80"), TypeError, NOT_INT),
    (INET6, 0, ("::1", 80, "0"), TypeError, NOT_INT),
    (INET6, 0, ("1.2.3.4", 80, 0, "0"), TypeError, NOT_INT),
    *((INET6, 0, ("::1", port), OverflowError, PORT) for port in (-1, 65536, 2**31, 2**70)),
    (INET6, 0, ("::1", 80, 1 << 20), OverflowError, "sendmsg(): flowinfo must be 0-1048575."),
    (INET6, 0, ("::1", 80, -1), OverflowError, "sendmsg(): flowinfo must be 0-1048575."),
    (INET6, 0, ("::1", -1, -1), OverflowError, PORT),
    (INET6, 0, ("<broadcast>", 80), OSError, "address family mismatched"),
    (INET6, 0, ("255.255.255.255", 80), OSError, "address family mismatched"),
    (INET6, 0, ("1.2.3.4", 80), socket.gaierror, None),
    (INET6, 0, ("fe80::1%no-such-if", 80), socket.gaierror, None),
    (NETLINK, 0, [0, 0], TypeError, "sendmsg(): AF_NETLINK address must be tuple, not list"),
    (NETLINK, 0, (0,), TypeError, "AF_NETLINK address must be a pair (pid, groups)"),
    (NETLINK, 0, (0, "0"), TypeError, NOT_INT),
    (VSOCK, 0, "x", TypeError, "getsockaddrarg: AF_VSOCK address must be tuple, not str"),
    (VSOCK, 0, (1,), TypeError, "getsockaddrarg() takes exactly 2 arguments (1 given)"),
    (VSOCK, 0, (1, 2, 3), TypeError, "getsockaddrarg() takes exactly 2 arguments (3 given)"),
    (VSOCK, 0, ("1", 2), TypeError, NOT_INT),
    (QIPCRTR, 0, [1, 2], TypeError, "getsockaddrarg: AF_QIPCRTR address must be tuple, not list"),
    (QIPCRTR, 0, (), TypeError, "getsockaddrarg() takes exactly 2 arguments (0 given)"),
    (QIPCRTR, 0, (1, "2"), TypeError, NOT_INT),
    (PACKET, 0, "lo", TypeError, "sendmsg(): AF_PACKET address must be tuple, not str"),
    (PACKET, 0, ("lo",), TypeError, PACKET_FORM),
    (PACKET, 0, ("lo", 0, 0, 0, b"", 0), TypeError, PACKET_FORM),
    (PACKET, 0, (b"lo", 0), TypeError, PACKET_FORM),
    (PACKET, 0, ("l\0o", 0), ValueError, "embedded null character"),
    (PACKET, 0, ("\ud800", 0), UnicodeEncodeError, None),
    (PACKET, 0, ("lo", "0"), TypeError, NOT_INT),
    (PACKET, 0, ("lo", 2**31), OverflowError, "sendmsg(): address argument out of range"),
    (PACKET, 0, ("lo", 0, 2**70), OverflowError, "sendmsg(): address argument out of range"),
    (PACKET, 0, ("lo", 0, 0, -(2**31) - 1), OverflowError, "sendmsg(): address argument out of range"),
    (PACKET, 0, ("lo", 0, 0, 0, "mac"), TypeError, "a bytes-like object is required, not 'str'"),
    (PACKET, 0, ("lo", 0, 0, 0, bytes(9)), ValueError, "Hardware address must be 8 bytes or less"),
    (PACKET, 0, ("lo", -1), OverflowError, "sendmsg(): proto must be 0-65535."),
    (PACKET, 0, ("lo", 65536), OverflowError, "sendmsg(): proto must be 0-65535."),
    (PACKET, 0, ("no-such-if", -1, 0, 0, bytes(9)), OSError, NO_DEVICE),
    (PACKET, 0, ("", 0), OSError, NO_DEVICE),
    (TIPC, 0, [1, 2, 3, 4], TypeError, "sendmsg(): AF_TIPC address must be tuple, not list"),
    (TIPC, 0, (1, 2, 3), TypeError, TIPC_FORM),
    (TIPC, 0, (1, 2, 3, 4, 5, 6), TypeError, TIPC_FORM),
    (TIPC, 0, (1, 2, 3, "4"), TypeError, NOT_INT),
    (TIPC, 0, (9, 2, 3, 4), TypeError, "Invalid address type"),
    (TIPC, 0, (0x101, 2, 3, 4), TypeError, "Invalid address type"),
    (CAN, RAW, "lo", TypeError, "sendmsg(): AF_CAN address must be tuple, not str"),
    (CAN, RAW, ("lo", 1), TypeError, "AF_CAN address must be a tuple (interface, )"),
    (CAN, BCM, (5,), TypeError, "expected str, bytes or os.PathLike object, not int"),
    (CAN, RAW, ("l\0o",), ValueError, "embedded null byte"),
    (CAN, RAW, ("i" * 16,), OSError, "AF_CAN interface name too long"),
    (CAN, RAW, ("no-such-if",), OSError, NO_DEVICE),
    (CAN, ISOTP, "lo", SystemError, "new style getargs format but argument is not a tuple"),
    (CAN, ISOTP, ("lo", 1), TypeError, "function takes exactly 3 arguments (2 given)"),
    (CAN, ISOTP, (5, "1", 2), TypeError, "expected str, bytes or os.PathLike object, not int"),
    (CAN, ISOTP, ("no-such-if", "1", 2), TypeError, "argument 2 must be int, not str"),
    (CAN, ISOTP, ("lo", 1, None), TypeError, "argument 3 must be int, not None"),
    (CAN, ISOTP, ("i" * 16, 1, 2), OSError, "AF_CAN interface name too long"),
    (CAN, ISOTP, ("no-such-if", 1, 2), OSError, NO_DEVICE),
    (CAN, J1939, ["lo", 1, 2, 3], SystemError, "new style getargs format but argument is not a tuple"),
    (CAN, J1939, ("lo",), TypeError, "function takes exactly 4 arguments (1 given)"),
    (CAN, J1939, ("lo", 1.0, 2, 3), TypeError, "argument 2 must be int, not float"),
    (CAN, J1939, ("lo", 1, "2", 3), TypeError, NOT_INT),
    (CAN, J1939, ("lo", 1, 2, "3"), TypeError, NOT_INT),
    (CAN, J1939, ("no-such-if", 1, 2, 3), OSError, NO_DEVICE),
    (CAN, 99, ("lo",), OSError, "sendmsg(): unsupported CAN protocol"),
    (ALG, 0, ["hash", "sha1"], TypeError, "sendmsg(): AF_ALG address must be tuple, not list"),
    (ALG, 0, ("hash",), TypeError, ALG_FORM),
    (ALG, 0, ("hash", "sha1", 0, 0, 0), TypeError, ALG_FORM),
    (ALG, 0, (b"hash", "sha1"), TypeError, ALG_FORM),
    (ALG, 0, ("hash", "sh\0a1"), ValueError, "embedded null character"),
    (ALG, 0, ("hash", "sha1", "0"), TypeError, NOT_INT),
    (ALG, 0, ("t" * 14, "sha1"), ValueError, "AF_ALG type too long."),
    (ALG, 0, ("hash", "n" * 64), ValueError, "AF_ALG name too long."),
    (BLUETOOTH, L2CAP, B, OSError, FORMAT),
    (BLUETOOTH, L2CAP, (B,), OSError, FORMAT),
    (BLUETOOTH, L2CAP, (B, "1"), OSError, FORMAT),
    (BLUETOOTH, L2CAP, (B, 1, 0, 0, 0), OSError, FORMAT),
    (BLUETOOTH, RFCOMM, (b"x", 1), OSError, FORMAT),
    (BLUETOOTH, RFCOMM, (B, 1, 2), OSError, FORMAT),
    (BLUETOOTH, RFCOMM, (B + "\0", 1), OSError, FORMAT),
    (BLUETOOTH, RFCOMM, ("01:02:03:04:05", 1), OSError, "bad bluetooth address"),
    (BLUETOOTH, RFCOMM, ("01:02:03:04:05:100", 1), OSError, "bad bluetooth address"),
    (BLUETOOTH, RFCOMM, (B + " ", 1), OSError, "bad bluetooth address"),
    (BLUETOOTH, RFCOMM, ("0_1:02:03:04:05:06", 1), OSError, "bad bluetooth address"),
    (BLUETOOTH, SCO, 5, OSError, FORMAT),
    (BLUETOOTH, SCO, (B,), OSError, FORMAT),
    (BLUETOOTH, SCO, b"x", OSError, "bad bluetooth address"),
    (BLUETOOTH, HCI, "x", OSError, FORMAT),
    (BLUETOOTH, HCI, (1, 2, 3), OSError, FORMAT),
    (BLUETOOTH, 99, (B, 1), OSError, "sendmsg(): unknown Bluetooth protocol"),
    (5, 0, ("x",), OSError, "sendmsg(): bad family"),
    (0, 0, "x", OSError, "sendmsg(): bad family"),
]


def case_name(row: tuple) -> str:
    return f"{NAMES.get(row[0], row[0])}-{row[1]}-{ascii(row[2])[:40]}"


@pytest.mark.parametrize(("family", "proto", "address", "kind", "words"), ERRORS, ids=map(case_name, ERRORS))
def test_bad_addresses_are_refused_as_cpython_refuses_them(family, proto, address, kind, words):
    """Each wrong address raises CPython's very exception, on every interpreter."""
    with pytest.raises(kind) as raised:
        encode(family, proto, address, SYSTEM)
    assert kind is raised.type
    if words is not None:
        assert words == str(raised.value)


@pytest.mark.skipif(not CPYTHON, reason="PyPy raises ValueError for most of these")
def test_the_table_of_bad_addresses_is_what_socket_does():
    """`socket` itself raises what the table says, in its words; the family is only claimed, so any can be tried."""
    wrong = []
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as real:
        for family, proto, address, kind, words in filter(lambda row: known(row[0]), ERRORS):
            claimed = socket.socket(family, socket.SOCK_DGRAM, proto, fileno=os.dup(real.fileno()))
            with claimed, pytest.raises(Exception) as raised:
                claimed.sendmsg([b""], [], 0, address)
            theirs = raised.type, modern(str(raised.value))
            if theirs != (kind, theirs[1] if words is None else words):
                wrong.append((family, proto, address, theirs))
    assert [] == wrong


def known(family: int) -> bool:
    """Whether this `socket` was built with the family, or nobody ever has one."""
    return family not in NAMES or hasattr(socket, f"AF_{NAMES[family]}")


def modern(words: str) -> str:
    """CPython 3.9's words for what is no integer, as those of 3.10 and later."""
    if words == "integer argument expected, got float":
        return NOT_INT.replace("str", "float")
    return re.sub(
        r"^an integer is required \(got type (.*)\)$", r"'\1' object cannot be interpreted as an integer", words
    )


def test_ducks_are_integers_but_for_can_identifiers():
    """`__index__` will do for a port and a pid, not where CPython asks for an int itself."""
    assert ("1.2.3.4", 1) == decode(encode(INET, 0, ("1.2.3.4", Duck()), NOBODY))
    assert (1, 1) == decode(encode(NETLINK, 0, (Duck(), Duck()), NOBODY))
    with pytest.raises(TypeError, match="^argument 2 must be int, not Duck$"):
        encode(CAN, ISOTP, ("", Duck(), 1), NOBODY)


def test_the_caller_is_named_in_errors():
    """The function that the user called stands in the message."""
    with pytest.raises(TypeError, match=r"^send_fds\(\): AF_INET address must be tuple, not str$"):
        encode(INET, 0, "x", NOBODY, "send_fds")
    with pytest.raises(OverflowError, match=r"^send_fds\(\): port must be 0-65535\.$"):
        encode(INET, 0, ("", 65536), NOBODY, "send_fds")
    with pytest.raises(OSError, match=r"^send_fds\(\): bad family$"):
        encode(0, 0, "x", NOBODY, "send_fds")


@pytest.mark.parametrize(
    ("proto", "raw", "kind", "words"),
    [
        (0, c("tipc", family=TIPC, addrtype=9), ValueError, "Invalid address type"),
        (99, c("sco", family=BLUETOOTH), ValueError, "Unknown Bluetooth protocol"),
        (0, c("alg", family=ALG, type=b"\xff"), UnicodeDecodeError, None),
    ],
)
def test_names_that_cpython_cannot_read_are_errors(proto, raw, kind, words):
    """What makesockaddr() refuses, we refuse with its exception."""
    with pytest.raises(kind) as raised:
        decode(raw, proto)
    assert words is None or words == str(raised.value)


# Round trips


@given(st.binary(max_size=108))
def test_unix_bytes_names_survive(name):
    """Any bytes that fit are a name: abstract ones come back whole, paths up to their first NUL."""
    raw = encode(UNIX, 0, name, NOBODY) if name[:1] == b"\0" or len(name) < 108 else b""
    if name[:1] == b"\0":
        assert (name, 2 + len(name)) == (decode(raw), len(raw))
    elif raw:
        assert os.fsdecode(name.partition(b"\0")[0]) == decode(raw)
        assert (3 + len(name) if name else 2) == len(raw)


@given(st.ip_addresses(v=4), st.integers(0, 65535))
def test_inet_addresses_survive(host, port):
    """Every IPv4 address and port comes back, and the struct holds them in network order."""
    raw = encode(INET, 0, (str(host), port), NOBODY)
    assert (str(host), port) == decode(raw)
    assert port.to_bytes(2, "big") + host.packed + bytes(8) == raw[2:]


@given(st.ip_addresses(v=6), st.integers(0, 65535), st.integers(0, 0xFFFFF), st.integers(0, 0xFFFFFFFF))
def test_inet6_addresses_survive(host, port, flowinfo, scope_id):
    """Every IPv6 address, port, flow label and scope comes back; the scope alone is in native order."""
    raw = encode(INET6, 0, (str(host), port, flowinfo, scope_id), NOBODY)
    assert (socket.inet_ntop(socket.AF_INET6, host.packed), port, flowinfo, scope_id) == decode(raw)
    assert port.to_bytes(2, "big") + flowinfo.to_bytes(4, "big") + host.packed == raw[2:24]
    assert struct.pack("=I", scope_id) == raw[24:]


# CPython itself, through a connect() and a getsockname() of ours


SHIM = """
#include <string.h>
unsigned char shim_seen[256], shim_given[128];
int shim_seen_length, shim_given_length;
int connect(int fd, const void *address, unsigned length) {
    memcpy(shim_seen, address, length);
    shim_seen_length = (int)length;
    return 0;
}
int getsockname(int fd, void *address, unsigned *length) {  /* CPython's buffer is a sockaddr_storage or more */
    memcpy(address, shim_given, 128);
    *length = (unsigned)shim_given_length;
    return 0;
}
"""

CHILD = """
import cffi, pickle, socket, sys
ffi = cffi.FFI()
ffi.cdef("extern unsigned char shim_seen[256], shim_given[128]; extern int shim_seen_length, shim_given_length;")
shim = ffi.dlopen(sys.argv[1])
end, other = socket.socketpair()

def run(family, proto, value, decoding):
    family = socket.AF_UNIX if decoding else family  # the one it claims to be; the name may be of any
    sock = socket.socket(family, socket.SOCK_DGRAM, proto, fileno=end.fileno())
    try:
        if decoding:
            ffi.memmove(shim.shim_given, value.ljust(128, b"\\0"), 128)
            shim.shim_given_length = len(value)
            return "got", sock.getsockname()
        sock.connect(value)
        return "got", ffi.buffer(shim.shim_seen, shim.shim_seen_length)[:]
    except Exception as error:
        return type(error).__name__, str(error)
    finally:
        sock.detach()

pickle.dump([run(*case) for case in pickle.load(sys.stdin.buffer)], sys.stdout.buffer)
"""


def ask_cpython(cases: list[tuple], folder: Path) -> list[tuple[str, object]]:
    """What this interpreter's own `socket` makes of each (family, proto, address or bytes, decoding)."""
    compiler = next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), None)
    if compiler is None:
        pytest.skip("no C compiler to put a function in CPython's way")
    (folder / "shim.c").write_text(SHIM)
    shim = str(folder / "shim.so")
    subprocess.run([compiler, "-shared", "-fPIC", "-fno-builtin", "-o", shim, str(folder / "shim.c")], check=True)
    done = subprocess.run(
        [sys.executable, "-c", CHILD, shim],
        input=pickle.dumps(cases),
        stdout=subprocess.PIPE,
        env={**os.environ, "LD_PRELOAD": shim},
        check=True,
    )
    return pickle.loads(done.stdout)


def meant(family: int, proto: int, raw: bytes) -> bytes:
    """The bytes that mean something: CPython leaves padding and unused union members as they were."""
    if family in (NETLINK, QIPCRTR, CAN):
        raw = raw[:2] + bytes(2) + raw[4:]
    if family == PACKET:
        return raw[: 12 + raw[11]]
    if (family, proto) == (BLUETOOTH, RFCOMM):
        return raw[:9]
    if family == CAN:
        return raw[: {RAW: 8, BCM: 8, ISOTP: 16, J1939: 21}[proto]]
    return raw


def outcome(function, *arguments) -> tuple[str, object]:
    """The result or the error, as the other process reports it."""
    try:
        return "got", function(*arguments)
    except Exception as error:  # noqa: BLE001 (whatever it is, it is to be the same)
        return type(error).__name__, str(error)


def doubtful_addresses():
    """Random tuples of good and bad elements, no host among them that would be looked up in the DNS."""
    dice = random.Random(1969)
    numbers = [0, 1, 2, 3, 4, 13, -1, 0xFFFF, 0x10000, 2**31 - 1, 2**31, -(2**31) - 1, 2**32, 2**64, 2**70, True]
    hosts = ["", "1.2.3.4", "::1", b"::1", "<broadcast>", "fe80::1%1", "255.255.255.255", "a\0b", "\ud800", 5, None]
    names = ["", "lo", b"lo", Path("lo"), "no-such-if", "i" * 15, "i" * 16, "a\0b", "\ud800", "\udcff", 5, None]
    odd = ["1", b"12345678", b"123456789", 1.5, None]
    for family, protocols in {**dict.fromkeys(NAMES, (0,)), CAN: (RAW, BCM, ISOTP, J1939, 99)}.items():
        first = {INET: hosts, RDS: hosts, INET6: hosts, PACKET: names, CAN: names, ALG: names}.get(family, numbers)
        for proto in protocols if family not in (UNIX, BLUETOOTH) else ():
            for _ in range(200):
                pool = numbers * 2 + (names if family == ALG else odd)
                yield family, proto, (dice.choice(first), *dice.choices(pool, k=dice.randrange(6)))


@pytest.mark.skipif(not CPYTHON, reason="it is CPython's bytes that are the measure")
def test_encoding_is_cpythons_own(tmp_path):
    """Every address of this file, good or bad, becomes the bytes or the error that CPython's connect() makes of it."""
    rows = [row[1:4] for row in STRUCTS] + [row[:3] for row in ERRORS] + list(doubtful_addresses())
    rows += [(UNIX, 0, name) for name, _ in UNIX_NAMES.values()]
    rows += [(INET, 0, ("localhost", 1)), (INET, 0, ("", 1)), (INET, 0, ("<broadcast>", 1)), (INET6, 0, ("", 1, 2))]
    rows += [(INET6, 0, ("::1%1", 1, 2, 3)), (INET6, 0, ("::1", 1, 2**32, -1)), (PACKET, 0, ("lo", 1, -1, -1))]
    rows += [(CAN, ISOTP, ("lo", -1, 2**32)), (CAN, J1939, (Path("lo"), -1, -1, -1)), (TIPC, 0, (2, 3, 4, 5))]
    cases = [(*row, False) for row in rows if known(row[0]) and not isinstance(row[2], memoryview)]
    if sys.version_info < (3, 14):  # before which HCI was a tuple and SCO bytes
        old = {(BLUETOOTH, HCI, 0xFFFF): (0xFFFF,), (BLUETOOTH, SCO, B): B.encode()}
        cases = [(*row[:2], old.get(row[:3], row[2]), False) if row[0] == BLUETOOTH else row for row in cases]
    if sys.byteorder == "big":  # CPython writes ints to shorter members there: feat and mask, psm and channel
        cases = [case for case in cases if case[0] not in (ALG, BLUETOOTH)]
    assert len(cases) > 1000
    for (family, proto, address, _), (kind, theirs) in zip(cases, ask_cpython(cases, tmp_path)):
        ours = outcome(encode, family, proto, address, SYSTEM, "connect")
        if kind == "got" == ours[0]:
            assert len(theirs) == len(ours[1])
            ours, theirs = ("got", meant(family, proto, ours[1])), meant(family, proto, theirs)
        assert (kind, modern(theirs) if kind == "TypeError" else theirs) == ours, (family, proto, address)


@pytest.mark.skipif(not CPYTHON, reason="it is CPython's addresses that are the measure")
def test_decoding_is_cpythons_own(tmp_path):
    """Random names of every family and length become the address or the error that CPython's getsockname() gives."""
    dice = random.Random(2020)
    protocols = {CAN: (RAW, ISOTP, J1939, 99), BLUETOOTH: (L2CAP, RFCOMM, HCI, SCO, 99)}
    cases = []
    for family in [*filter(known, NAMES), 0, 5, 200, 0x1234]:
        for proto in protocols.get(family, (0,)):
            for _ in range(100):
                raw = bytearray(dice.choices([dice.randrange(3), dice.randrange(128)], k=dice.randrange(110)))
                raw = bytearray(struct.pack("=H", family)) + raw
                if family == PACKET:
                    raw[11:12] = bytes([dice.randrange(32)])[: len(raw[11:12])]
                cases.append((family, proto, bytes(raw), True))
    cases.append((UNIX, 0, b"", True))
    for (family, proto, raw, _), theirs in zip(cases, ask_cpython(cases, tmp_path)):
        assert theirs == outcome(decode, raw, proto, SYSTEM.if_indextoname), (family, proto, raw)

"""struct sockaddr <-> the address objects of Python's `socket`: pure computation, on bytes alone.

The law of this file: what comes out, what is accepted, and what is raised, with which words, is what
CPython 3.9 to 3.13 does in getsockaddrarg() and makesockaddr(). Whatever needs the system (a host
name, an interface name) is asked of the caller, so nothing here touches a socket or makes a syscall
(`socket` lends constants, and inet_pton/inet_ntop, which only convert text).

Known differences from CPython, each on purpose: a TypeError about an integer has the words of 3.10
and later on 3.9 too, where objects with `__int__` alone are refused; the Bluetooth forms new in 3.14
are accepted everywhere; Bluetooth works also where CPython was built without its headers; AF_ALG's
feat and mask and L2CAP's psm are right on big-endian machines.

Sources: unix(7), ip(7), ipv6(7), netlink(7), packet(7), vsock(7), <linux/can.h>, <linux/if_alg.h>,
<linux/qrtr.h>, <linux/tipc.h>, and BlueZ's <bluetooth/{l2cap,rfcomm,hci,sco}.h>.
"""

from __future__ import annotations

import os
import socket
import sys
from operator import index
from struct import Struct

from ._platform import unix_path

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable, Protocol

    class Resolver(Protocol):
        """What `encode` asks of the system; each method raises as `socket` would.

        It is asked only when an address cannot be packed without it: never for AF_UNIX, nor for a
        numeric host, '' or '<broadcast>'.
        """

        def host(self, name: bytes, family: int, /) -> bytes:
            """The first address of a host, packed: 4 bytes for AF_INET, 16 for AF_INET6.

            `name` has no NUL and is not numeric, but for IPv6 with a %scope, which `socket` leaves
            to getaddrinfo(name, NULL) too (and drops: the address tuple's scope_id counts).
            Raises socket.gaierror (an OSError) when it does not resolve.
            """
            ...

        def if_nametoindex(self, name: bytes, /) -> int:
            """The index of a network interface in the socket's own namespace (SIOCGIFINDEX on it).

            Raises OSError(ENODEV) when there is none. At most 15 bytes, no NUL; may be empty for AF_PACKET.
            """
            ...


_LINUX = sys.platform in ("linux", "android")
# These have a length byte before a family of one byte; the others have a family of two.
_BSD = sys.platform.startswith(("darwin", "freebsd", "netbsd", "openbsd", "dragonfly"))

# Linux's numbers, the same on every architecture, for interpreters whose `socket` lacks the names:
# <linux/socket.h>, <linux/can.h>, <linux/tipc.h>, <bluetooth/bluetooth.h>.
_NUMBERS = {
    "AF_NETLINK": 16,
    "AF_PACKET": 17,
    "AF_RDS": 21,
    "AF_CAN": 29,
    "AF_TIPC": 30,
    "AF_BLUETOOTH": 31,
    "AF_ALG": 38,
    "AF_VSOCK": 40,
    "AF_QIPCRTR": 42,
    "BTPROTO_L2CAP": 0,
    "BTPROTO_HCI": 1,
    "BTPROTO_SCO": 2,
    "BTPROTO_RFCOMM": 3,
    "CAN_RAW": 1,
    "CAN_BCM": 2,
    "CAN_ISOTP": 6,
    "CAN_J1939": 7,
    "TIPC_ADDR_NAMESEQ": 1,
    "TIPC_ADDR_NAME": 2,
    "TIPC_ADDR_ID": 3,
    "TIPC_CLUSTER_SCOPE": 2,
}


def _number(name: str) -> int:
    """A constant as a plain int; off Linux -1, which no family is, because the numbers mean others there."""
    return int(getattr(socket, name, _NUMBERS[name])) if _LINUX else -1


AF_UNIX = int(socket.AF_UNIX)
AF_INET = int(socket.AF_INET)
AF_INET6 = int(socket.AF_INET6)
AF_NETLINK = int(getattr(socket, "AF_NETLINK", _number("AF_NETLINK")))  # FreeBSD's has the same layout
AF_RDS = _number("AF_RDS")
BTPROTO_L2CAP, BTPROTO_HCI = _number("BTPROTO_L2CAP"), _number("BTPROTO_HCI")
BTPROTO_SCO, BTPROTO_RFCOMM = _number("BTPROTO_SCO"), _number("BTPROTO_RFCOMM")
CAN_RAW, CAN_BCM = _number("CAN_RAW"), _number("CAN_BCM")
CAN_ISOTP, CAN_J1939 = _number("CAN_ISOTP"), _number("CAN_J1939")
TIPC_ADDR_NAMESEQ, TIPC_ADDR_NAME = _number("TIPC_ADDR_NAMESEQ"), _number("TIPC_ADDR_NAME")
TIPC_ADDR_ID, TIPC_CLUSTER_SCOPE = _number("TIPC_ADDR_ID"), _number("TIPC_CLUSTER_SCOPE")

_IFNAMSIZ = 16
_STORAGE = 128  # sizeof(struct sockaddr_storage): what the kernel may write, and CPython's zeroed buffer
_FS_ENCODING = sys.getfilesystemencoding()
_FS_ERRORS = sys.getfilesystemencodeerrors()
# L2CAP addresses grew a cid and an address type, HCI ones a channel, in CPython 3.14.
_LONG_BLUETOOTH = sys.version_info >= (3, 14)

# Everything after sa_family, in native byte order and with the padding that Linux's ABIs agree on.
_FAMILY = Struct("=H")
_SIN_ZERO = bytes(8)
_IN6_SCOPE = Struct("=I")
_NL = Struct("=2xII")  # pad; pid, groups
_QRTR = Struct("=2xII")  # pad; node, port
_VM = Struct("=2xII4x")  # reserved; port, cid; flags and zero
_LL = Struct("=2siHBB8s")  # protocol (network order), ifindex, hatype, pkttype, halen, addr
_CAN_TP = Struct("=2xiII8x")  # pad; ifindex, rx_id, tx_id; rest of the union
_CAN_J1939 = Struct("=2xiQIB3x")  # pad; ifindex, name, pgn, addr; pad
_ALG = Struct("=14sII64s")  # type, feat, mask, name
_TIPC = Struct("=BBIII")  # addrtype, scope, then a union of {ref, node}, {type, lower, upper}, {type, instance}
_BT_L2 = Struct("=H6sHBx")  # psm, bdaddr, cid, bdaddr_type; pad
_BT_RC = Struct("=6sBx")  # bdaddr, channel; pad
_BT_HCI = Struct("=HH")  # dev, channel


def encode(
    family: int, proto: int, address: object, resolve: Resolver, caller: str = "sendmsg", *, bsd: bool = _BSD
) -> bytes:
    """The whole struct sockaddr for an address of a socket of `family` and `proto`, no byte more or less.

    `caller` is named in errors. Raises what `socket` raises: TypeError for a wrong shape,
    OverflowError for a port out of range, OSError for a path too long, a family or protocol it does
    not know, and whatever `resolve` raises.
    """
    if family == AF_UNIX:
        body = _unix_path(address, bsd)
    else:
        encoder = _ENCODERS.get(family)
        if encoder is None:
            raise OSError(f"{caller}(): bad family")
        body = encoder(address, proto, resolve, caller)
        if family == AF_RDS:  # its addresses are those of AF_INET
            family = AF_INET
    return (bytes((len(body) + 2, family)) if bsd else _FAMILY.pack(family)) + body


def decode(raw: bytes, proto: int = 0, ifname: Callable[[int], str] | None = None, *, bsd: bool = _BSD) -> Any:
    """The address that `socket` would return for the msg_namelen bytes which the kernel gave.

    None for no bytes at all; `(family, bytes)`, the bytes 14 of sa_data, for a family without a form
    of its own. `proto` is the socket's, for AF_CAN and AF_BLUETOOTH. `ifname` is asked for the
    interface of an AF_PACKET or AF_CAN address (SIOCGIFNAME on the socket, or
    socket.if_indextoname): it raises OSError if there is none, and the name is then ''.
    """
    if len(raw) < 2:
        if not raw:
            return None
        raw = raw.ljust(2, b"\0")
    family: int = raw[1] if bsd else _FAMILY.unpack_from(raw)[0]
    if family == AF_UNIX:
        return unix_path(raw, bsd=bsd)
    if family == AF_INET and len(raw) >= 8:
        return socket.inet_ntoa(raw[4:8]), raw[2] << 8 | raw[3]
    body = raw[2:].ljust(_STORAGE - 2, b"\0")
    decoder = _DECODERS.get(family)
    if decoder is None:
        return family, body[:14]
    return decoder(body, proto, ifname)


# What PyArg_ParseTuple does with an argument, by its format units.


def _tuple(address: object, family: str, caller: str) -> tuple[Any, ...]:
    if not isinstance(address, tuple):
        where = f"{caller}()" if caller else "getsockaddrarg"
        raise TypeError(f"{where}: {family} address must be tuple, not {type(address).__name__}")
    return address


def _c_int(value: Any) -> int:
    """Unit `i`: an integer that must fit a C int."""
    number = index(value)
    if not -0x80000000 <= number <= 0x7FFFFFFF:
        raise OverflowError("signed integer out of range")  # every caller has words of its own
    return number


def _u32(value: Any) -> int:
    """Unit `I`: an integer, of which 32 bits are taken."""
    return index(value) & 0xFFFFFFFF


def _int_only(value: Any, position: int) -> int:
    """Units `k` and `K`: an int and nothing that merely acts as one."""
    if not isinstance(value, int):
        kind = "None" if value is None else type(value).__name__
        raise TypeError(f"argument {position} must be int, not {kind}")
    return value


def _text(value: Any, complaint: str) -> bytes:
    """Unit `s`: a str without NUL, as UTF-8."""
    if not isinstance(value, str):
        raise TypeError(complaint)
    text = value.encode()
    if b"\0" in text:
        raise ValueError("embedded null character")
    return text


def _buffer(value: Any) -> bytes:
    """Unit `y*`: the bytes of a contiguous buffer."""
    try:
        view = memoryview(value)
    except TypeError:
        raise TypeError(f"a bytes-like object is required, not '{type(value).__name__}'") from None
    with view:
        if not view.c_contiguous:
            raise BufferError("memoryview: underlying buffer is not C-contiguous")
        return view.tobytes()


def _fs_name(value: Any) -> bytes:
    """PyUnicode_FSConverter: str, bytes or os.PathLike without NUL."""
    name = os.fsencode(value)
    if b"\0" in name:
        raise ValueError("embedded null byte")
    return name


# AF_UNIX


def _unix_path(address: Any, bsd: bool) -> bytes:
    """sun_path: with its NUL, except that Linux takes an abstract or empty name by its length alone."""
    if isinstance(address, str):
        path = address.encode(_FS_ENCODING, _FS_ERRORS)
    else:
        path = address if type(address) is bytes else _buffer(address)
    if bsd or path[:1] > b"\0":
        path += b"\0"
    if len(path) > (104 if bsd else 108):
        raise OSError("AF_UNIX path too long")
    return path


# AF_INET, AF_INET6


def _host_name(host: Any) -> bytes:
    """A host as getaddrinfo wants it: ASCII as it is, anything else by IDNA."""
    if isinstance(host, str):
        try:
            name = host.encode("ascii" if host.isascii() else "idna")
        except UnicodeError:
            raise TypeError("encoding of hostname failed") from None
    elif isinstance(host, (bytes, bytearray)):
        name = bytes(host)
    else:
        raise TypeError(f"str, bytes or bytearray expected, not {type(host).__name__}")
    if b"\0" in name:
        raise TypeError("host name must not contain null character")
    return name


def _packed(name: bytes, family: int, resolve: Resolver) -> bytes:
    """The packed address of a host, found without asking where that can be."""
    if not name:
        return bytes(4 if family == AF_INET else 16)  # the wildcard
    if name in (b"255.255.255.255", b"<broadcast>"):
        if family != AF_INET:
            raise OSError("address family mismatched")
        return b"\xff\xff\xff\xff"
    if b"%" not in name:
        try:
            return socket.inet_pton(family, name.decode("latin-1"))
        except (OSError, ValueError):
            pass  # not numeric
    return resolve.host(name, family)


def _port(value: Any, caller: str) -> int:
    try:
        return _c_int(value)
    except OverflowError:
        raise OverflowError(f"{caller}(): port must be 0-65535.") from None


def _port_bytes(port: int, caller: str) -> bytes:
    """sin_port, in network order. CPython looks at the range only after the host was found."""
    if not 0 <= port <= 0xFFFF:
        raise OverflowError(f"{caller}(): port must be 0-65535.")
    return port.to_bytes(2, "big")


def _in(address: object, proto: int, resolve: Resolver, caller: str) -> bytes:
    fields = _tuple(address, "AF_INET", caller)
    if len(fields) != 2:
        raise TypeError("AF_INET address must be a pair (host, port)")
    host, port = fields
    if type(host) is str and host and type(port) is int and 0 <= port <= 0xFFFF and "\0" not in host:
        try:  # the usual case, at once
            return port.to_bytes(2, "big") + socket.inet_pton(AF_INET, host) + _SIN_ZERO
        except (OSError, ValueError):
            pass  # not numeric
    name, port = _host_name(host), _port(port, caller)
    packed = _packed(name, AF_INET, resolve)
    return _port_bytes(port, caller) + packed + _SIN_ZERO


def _in6(address: object, proto: int, resolve: Resolver, caller: str) -> bytes:
    fields = _tuple(address, "AF_INET6", caller)
    if not 2 <= len(fields) <= 4:
        raise TypeError("AF_INET6 address must be a tuple (host, port[, flowinfo[, scopeid]])")
    name, port = _host_name(fields[0]), _port(fields[1], caller)
    flowinfo, scope_id = [*map(_u32, fields[2:]), 0, 0][:2]
    packed = _packed(name, AF_INET6, resolve)
    port_bytes = _port_bytes(port, caller)
    if flowinfo > 0xFFFFF:
        raise OverflowError(f"{caller}(): flowinfo must be 0-1048575.")
    return port_bytes + flowinfo.to_bytes(4, "big") + packed + _IN6_SCOPE.pack(scope_id)


def _in_address(body: bytes, proto: int, ifname: object) -> tuple[str, int]:
    return socket.inet_ntoa(body[2:6]), int.from_bytes(body[:2], "big")


def _in6_address(body: bytes, proto: int, ifname: object) -> tuple[str, int, int, int]:
    host = socket.inet_ntop(AF_INET6, body[6:22])
    return host, int.from_bytes(body[:2], "big"), int.from_bytes(body[2:6], "big"), _IN6_SCOPE.unpack_from(body, 22)[0]


# AF_NETLINK, AF_QIPCRTR, AF_VSOCK, AF_TIPC: tuples of integers


def _nl(address: object, proto: int, resolve: Resolver, caller: str) -> bytes:
    fields = _tuple(address, "AF_NETLINK", caller)
    if len(fields) != 2:
        raise TypeError("AF_NETLINK address must be a pair (pid, groups)")
    return _NL.pack(*map(_u32, fields))


def _nl_address(body: bytes, proto: int, ifname: object) -> tuple[int, ...]:
    return _NL.unpack_from(body)


def _pair(address: object, family: str) -> tuple[int, int]:
    fields = _tuple(address, family, "")
    if len(fields) != 2:
        raise TypeError(f"getsockaddrarg() takes exactly 2 arguments ({len(fields)} given)")
    return _u32(fields[0]), _u32(fields[1])


def _qrtr(address: object, proto: int, resolve: Resolver, caller: str) -> bytes:
    return _QRTR.pack(*_pair(address, "AF_QIPCRTR"))


def _qrtr_address(body: bytes, proto: int, ifname: object) -> tuple[int, ...]:
    return _QRTR.unpack_from(body)


def _vm(address: object, proto: int, resolve: Resolver, caller: str) -> bytes:
    cid, port = _pair(address, "AF_VSOCK")
    return _VM.pack(port, cid)


def _vm_address(body: bytes, proto: int, ifname: object) -> tuple[int, int]:
    port, cid = _VM.unpack_from(body)
    return cid, port


def _tipc(address: object, proto: int, resolve: Resolver, caller: str) -> bytes:
    fields = _tuple(address, "AF_TIPC", caller)
    if not 4 <= len(fields) <= 5:
        raise TypeError("AF_TIPC address must be a tuple (addr_type, v1, v2, v3[, scope])")
    kind, v1, v2, v3, scope = [*map(_u32, fields), TIPC_CLUSTER_SCOPE][:5]
    if kind == TIPC_ADDR_NAMESEQ:
        return _TIPC.pack(kind, scope & 0xFF, v1, v2, v3)
    if kind == TIPC_ADDR_NAME:
        return _TIPC.pack(kind, scope & 0xFF, v1, v2, 0)
    if kind == TIPC_ADDR_ID:
        return _TIPC.pack(kind, scope & 0xFF, v2, v1, 0)
    raise TypeError("Invalid address type")


def _tipc_address(body: bytes, proto: int, ifname: object) -> tuple[int, ...]:
    kind, scope, v1, v2, v3 = _TIPC.unpack_from(body)
    if scope & 0x80:
        scope |= 0xFFFFFF00  # a signed char, which CPython shows as an unsigned int
    if kind == TIPC_ADDR_NAMESEQ:
        return kind, v1, v2, v3, scope
    if kind == TIPC_ADDR_NAME:
        return kind, v1, v2, v2, scope
    if kind == TIPC_ADDR_ID:
        return kind, v2, v1, 0, scope
    raise ValueError("Invalid address type")


# AF_PACKET, AF_CAN: with an interface


def _interface(number: int, ifname: Callable[[int], str] | None) -> str:
    if not number or ifname is None:
        return ""
    try:
        return ifname(number)
    except OSError:
        return ""


def _ll(address: object, proto: int, resolve: Resolver, caller: str) -> bytes:
    fields = _tuple(address, "AF_PACKET", caller)
    complaint = "AF_PACKET address must be a tuple of two to five elements"
    if not 2 <= len(fields) <= 5:
        raise TypeError(complaint)
    interface = _text(fields[0], complaint)
    try:
        numbers = [_c_int(field) for field in fields[1:4]]
    except OverflowError:
        raise OverflowError(f"{caller}(): address argument out of range") from None
    protocol, pkttype, hatype = [*numbers, 0, 0][:3]  # PACKET_HOST is 0
    hwaddr = _buffer(fields[4]) if len(fields) == 5 else b""
    ifindex = resolve.if_nametoindex(interface[: _IFNAMSIZ - 1])
    if len(hwaddr) > 8:
        raise ValueError("Hardware address must be 8 bytes or less")
    if not 0 <= protocol <= 0xFFFF:
        raise OverflowError(f"{caller}(): proto must be 0-65535.")
    return _LL.pack(protocol.to_bytes(2, "big"), ifindex, hatype & 0xFFFF, pkttype & 0xFF, len(hwaddr), hwaddr)


def _ll_address(body: bytes, proto: int, ifname: Callable[[int], str] | None) -> tuple[str, int, int, int, bytes]:
    protocol, ifindex, hatype, pkttype, halen, _ = _LL.unpack_from(body)
    name = _interface(ifindex, ifname)
    # The kernel writes more than the struct's 8 bytes where the hardware's addresses are longer.
    return name, int.from_bytes(protocol, "big"), pkttype, hatype, body[10 : 10 + halen]


def _can(address: object, proto: int, resolve: Resolver, caller: str) -> bytes:
    if proto in (CAN_RAW, CAN_BCM):
        fields = _tuple(address, "AF_CAN", caller)
        if len(fields) != 1:
            raise TypeError("AF_CAN address must be a tuple (interface, )")
        name = _fs_name(fields[0])
        return _CAN_TP.pack(_can_ifindex(name, resolve), 0, 0)
    if proto == CAN_ISOTP:
        interface, rx_id, tx_id = _can_fields(address, 3)
        name, rx_id, tx_id = _fs_name(interface), _int_only(rx_id, 2), _int_only(tx_id, 3)
        return _CAN_TP.pack(_can_ifindex(name, resolve), rx_id & 0xFFFFFFFF, tx_id & 0xFFFFFFFF)
    if proto == CAN_J1939:
        interface, node, pgn, addr = _can_fields(address, 4)
        name, node, pgn, addr = _fs_name(interface), _int_only(node, 2), _u32(pgn), index(addr)
        return _CAN_J1939.pack(_can_ifindex(name, resolve), node & 0xFFFFFFFFFFFFFFFF, pgn, addr & 0xFF)
    raise OSError(f"{caller}(): unsupported CAN protocol")


def _can_fields(address: object, count: int) -> tuple[Any, ...]:
    if not isinstance(address, tuple):  # CPython does not check, and so its parser blames the interpreter
        raise SystemError("new style getargs format but argument is not a tuple")  # noqa: TRY004
    if len(address) != count:
        raise TypeError(f"function takes exactly {count} arguments ({len(address)} given)")
    return address


def _can_ifindex(name: bytes, resolve: Resolver) -> int:
    if not name:
        return 0  # every interface
    if len(name) >= _IFNAMSIZ:
        raise OSError("AF_CAN interface name too long")
    return resolve.if_nametoindex(name)


def _can_address(body: bytes, proto: int, ifname: Callable[[int], str] | None) -> tuple[Any, ...]:
    layout = _CAN_J1939 if proto == CAN_J1939 else _CAN_TP
    ifindex, *rest = layout.unpack_from(body)
    return (_interface(ifindex, ifname), *(rest if proto in (CAN_ISOTP, CAN_J1939) else ()))


# AF_ALG


def _alg(address: object, proto: int, resolve: Resolver, caller: str) -> bytes:
    fields = _tuple(address, "AF_ALG", caller)
    complaint = "AF_ALG address must be a tuple (type, name[, feat[, mask]])"
    if not 2 <= len(fields) <= 4:
        raise TypeError(complaint)
    kind, name = _text(fields[0], complaint), _text(fields[1], complaint)
    feat, mask = [*(index(field) & 0xFFFF for field in fields[2:]), 0, 0][:2]
    if len(kind) >= 14:
        raise ValueError("AF_ALG type too long.")
    if len(name) >= 64:
        raise ValueError("AF_ALG name too long.")
    return _ALG.pack(kind, feat, mask, name)


def _alg_address(body: bytes, proto: int, ifname: object) -> tuple[str, str, int, int]:
    kind, feat, mask, name = _ALG.unpack_from(body)
    return kind.partition(b"\0")[0].decode(), name.partition(b"\0")[0].decode(), feat, mask


# AF_BLUETOOTH


def _bt(address: object, proto: int, resolve: Resolver, caller: str) -> bytes:
    encoder = _BT_ENCODERS.get(proto)
    if encoder is None:
        raise OSError(f"{caller}(): unknown Bluetooth protocol")
    try:
        # Only SCO's address is never a tuple, and HCI's need not be one.
        return encoder(*(address if isinstance(address, tuple) and proto != BTPROTO_SCO else (address,)))
    except (TypeError, ValueError, OverflowError):
        raise OSError(f"{caller}(): wrong format") from None


def _bt_number(value: Any, bits: int = 16) -> int:
    return _c_int(value) & (1 << bits) - 1


def _l2(name: Any, psm: Any, cid: Any = 0, bdaddr_type: Any = 0) -> bytes:
    text, psm, cid, bdaddr_type = _text(name, ""), _bt_number(psm), _bt_number(cid), _bt_number(bdaddr_type, 8)
    return _BT_L2.pack(psm, _bdaddr(text), cid, bdaddr_type)


def _rc(name: Any, channel: Any) -> bytes:
    text, channel = _text(name, ""), _bt_number(channel, 8)
    return _BT_RC.pack(_bdaddr(text), channel)


def _hci(dev: Any, channel: Any = 0) -> bytes:
    return _BT_HCI.pack(_bt_number(dev), _bt_number(channel))  # HCI_CHANNEL_RAW is 0


def _sco(name: Any) -> bytes:
    return _bdaddr(name if isinstance(name, bytes) else _text(name, ""))


def _bdaddr(name: bytes) -> bytes:
    """'XX:XX:XX:XX:XX:XX' as scanf's %X reads it; in memory the last comes first."""
    parts = name.split(b":")
    try:
        if b"_" in name or any(part[-1:].isspace() for part in parts):
            raise ValueError("int() would take it, scanf does not")
        packed = bytes(int(part, 16) for part in reversed(parts))
    except ValueError:
        packed = b""
    if len(packed) != 6:
        raise OSError("bad bluetooth address")
    return packed


def _bt_address(body: bytes, proto: int, ifname: object) -> Any:
    if proto == BTPROTO_HCI:
        dev, channel = _BT_HCI.unpack_from(body)
        return (dev, channel) if channel and _LONG_BLUETOOTH else dev
    if proto == BTPROTO_L2CAP:
        psm, bdaddr, cid, bdaddr_type = _BT_L2.unpack_from(body)
        more = (cid, bdaddr_type) if bdaddr_type else (cid,) if cid else ()
        return (_bdaddr_name(bdaddr), psm, *(more if _LONG_BLUETOOTH else ()))
    if proto == BTPROTO_RFCOMM:
        bdaddr, channel = _BT_RC.unpack_from(body)
        return _bdaddr_name(bdaddr), channel
    if proto == BTPROTO_SCO:
        return _bdaddr_name(body[:6])
    raise ValueError("Unknown Bluetooth protocol")


def _bdaddr_name(packed: bytes) -> str:
    return packed[::-1].hex(":").upper()


_BT_ENCODERS: dict[int, Callable[..., bytes]] = {
    BTPROTO_L2CAP: _l2,
    BTPROTO_RFCOMM: _rc,
    BTPROTO_HCI: _hci,
    BTPROTO_SCO: _sco,
}

_ENCODERS: dict[int, Callable[[object, int, Resolver, str], bytes]] = {
    AF_INET: _in,
    AF_INET6: _in6,
    AF_RDS: _in,
    AF_NETLINK: _nl,
    _number("AF_QIPCRTR"): _qrtr,
    _number("AF_VSOCK"): _vm,
    _number("AF_TIPC"): _tipc,
    _number("AF_PACKET"): _ll,
    _number("AF_CAN"): _can,
    _number("AF_ALG"): _alg,
    _number("AF_BLUETOOTH"): _bt,
}

_DECODERS: dict[int, Callable[[bytes, int, Callable[[int], str] | None], Any]] = {
    AF_INET: _in_address,
    AF_INET6: _in6_address,
    AF_NETLINK: _nl_address,
    _number("AF_QIPCRTR"): _qrtr_address,
    _number("AF_VSOCK"): _vm_address,
    _number("AF_TIPC"): _tipc_address,
    _number("AF_PACKET"): _ll_address,
    _number("AF_CAN"): _can_address,
    _number("AF_ALG"): _alg_address,
    _number("AF_BLUETOOTH"): _bt_address,
}

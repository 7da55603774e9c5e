"""Joins the pure address codec to the system: host names, interface names. Imported when an address is met."""

from __future__ import annotations

import fcntl
import os
import socket
import struct

from . import _sockaddr
from ._backend import CONSTANTS
from ._sock import Socket, family, getsockopt

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ._sock import FileDescriptorLike

SO_PROTOCOL = CONSTANTS.get("SO_PROTOCOL")


SIOCGIFNAME, SIOCGIFINDEX = 0x8910, 0x8933  # <linux/sockios.h>; netdevice(7)
IFREQ = struct.Struct("16si20x")  # char ifr_name[IFNAMSIZ]; int ifr_ifindex; the rest of the union


class System:
    """The Resolver of _sockaddr: what needs the system to be asked, on one socket."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def host(self, name: bytes, family: int) -> bytes:
        found = socket.getaddrinfo(name, None, family)
        host = str(found[0][4][0]).partition("%")[0]
        return socket.inet_pton(family, host)

    def if_nametoindex(self, name: bytes) -> int:
        request = fcntl.ioctl(self.fd, SIOCGIFINDEX, IFREQ.pack(name, 0))
        return int(IFREQ.unpack(request)[1])

    def if_indextoname(self, index: int) -> str:
        request = fcntl.ioctl(self.fd, SIOCGIFNAME, IFREQ.pack(b"", index))
        return os.fsdecode(IFREQ.unpack(request)[0].split(b"\0")[0])


def protocol(sock: FileDescriptorLike, fd: int) -> int:
    """The protocol of `sock`, on which the shape of some addresses depends; 0 if it cannot be known."""
    if isinstance(sock, Socket):
        return sock.proto
    return 0 if SO_PROTOCOL is None else getsockopt(fd, SO_PROTOCOL)


def to_sockaddr(sock: FileDescriptorLike, fd: int, address: object) -> bytes:
    """A Python address as the struct sockaddr of the socket's family; raises what `socket` raises."""
    return _sockaddr.encode(family(sock, fd), protocol(sock, fd), address, System(fd))


def from_sockaddr(sock: FileDescriptorLike, fd: int, raw: bytes) -> object:
    """The Python address of the struct sockaddr that the kernel gave as the sender's."""
    return _sockaddr.decode(raw, protocol(sock, fd), System(fd).if_indextoname)

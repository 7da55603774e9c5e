"""Who is at the other end of an AF_UNIX socket, as the kernel vouches for it; unix(7), socket(7)."""

from __future__ import annotations

import os
from errno import ENOPROTOOPT

from . import _platform
from ._backend import CONSTANTS, SYSTEM, ffi
from ._close import close_all
from ._sock import AF_UNIX, SOL_SOCKET, family, fileno, read_option, setsockopt
from .fd import OwnedFd, adopt
from .message import UCRED, Credentials

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ._sock import FileDescriptorLike


def _option(name: str) -> int:
    """A socket option by its C name; OSError (ENOPROTOOPT) where the platform has none."""
    value = CONSTANTS.get(name)
    if value is None:
        raise OSError(ENOPROTOOPT, f"{os.strerror(ENOPROTOOPT)}: this platform has no {name}")
    return value


def _read(fd: int, level: int, option: int, room: int) -> bytes:
    """getsockopt(2) of at most `room` bytes."""
    value = ffi.new("unsigned int[]", -(-room // 4))
    return bytes(ffi.buffer(value, read_option(fd, level, option, value, room)))


def peer_credentials(sock: FileDescriptorLike) -> Credentials:
    """(pid, uid, gid) of the process that connected or listened, at that moment: SO_PEERCRED, or LOCAL_PEERCRED.

    The pid is 0 where the kernel does not tell it (FreeBSD), or the process is in another pid namespace. Of a socket
    without a peer that it knows, unconnected or a datagram socket that is no socketpair's, Linux says pid 0 and
    4294967295, no id, for both ids. ValueError if `sock` is not an AF_UNIX socket, where Linux says the same.
    OSError: ENOPROTOOPT where a platform has no such option, ENOTSOCK, EBADF.

    >>> import os, socket
    >>> a, b = socket.socketpair()
    >>> peer_credentials(a) == (os.getpid(), os.getuid(), os.getgid())
    True
    >>> a.close(); b.close()
    """
    fd = fileno(sock, "getsockopt")
    if family(sock, fd) != AF_UNIX:
        raise ValueError("sock is not an AF_UNIX socket: it has no peer credentials")
    if SYSTEM == _platform.LINUX:
        return Credentials(*UCRED.unpack(_read(fd, SOL_SOCKET, _option("SO_PEERCRED"), UCRED.size)))
    if SYSTEM == _platform.OPENBSD:  # struct sockpeercred: uid, gid, pid
        raw = ffi.unpack(ffi.from_buffer("int[]", _read(fd, SOL_SOCKET, _option("SO_PEERCRED"), 12)), 3)
        return Credentials(raw[2], raw[0], raw[1])
    return _xucred(fd)


def _xucred(fd: int) -> Credentials:
    """LOCAL_PEERCRED of Darwin and FreeBSD, and LOCAL_PEERPID where there is one.

    <sys/ucred.h>: u_int cr_version; uid_t cr_uid; short cr_ngroups; gid_t cr_groups[16].
    """
    level = _option("SOL_LOCAL")
    xucred = ffi.from_buffer("unsigned int[]", _read(fd, level, _option("LOCAL_PEERCRED"), 76 + 8))
    pid = 0
    if SYSTEM == _platform.DARWIN:
        pid = ffi.from_buffer("int[]", _read(fd, level, _option("LOCAL_PEERPID"), 4))[0]
    return Credentials(pid, xucred[1], xucred[3])


def peer_pidfd(sock: FileDescriptorLike) -> OwnedFd:
    """A pidfd of the process at the other end: SO_PEERPIDFD, Linux 6.5; it names that process for ever, unlike a pid.

    OSError: ENOPROTOOPT on older kernels, ESRCH or EINVAL if the process is gone, ENODATA if there is no peer.

    >>> import socket
    >>> a, b = socket.socketpair()
    >>> with peer_pidfd(a) as pidfd:
    ...     pidfd  # doctest: +ELLIPSIS
    <OwnedFd ... pidfd>
    >>> a.close(); b.close()
    """
    fd = fileno(sock, "getsockopt")
    value = ffi.new("int *", -1)
    fds: list[int] | None = None
    try:
        read_option(fd, SOL_SOCKET, _option("SO_PEERPIDFD"), value, 4)
        fds = [value[0]]
        return adopt(fds)[0]
    except BaseException:
        close_all([value[0]] if fds is None and value[0] >= 0 else fds or [])
        raise


def _pass(sock: FileDescriptorLike, name: str, on: bool) -> None:
    setsockopt(fileno(sock, "setsockopt"), _option(name), 1 if on else 0)


def pass_credentials(sock: FileDescriptorLike, on: bool = True) -> None:
    """Have every message received on `sock` carry its sender's Credentials: SO_PASSCRED, Linux.

    Set it before the peer sends: messages queued earlier read pid 0 and ids 65534.

    >>> import os, socket
    >>> a, b = socket.socketpair()
    >>> pass_credentials(b)
    >>> a.send(b"hello")
    5
    >>> with recv_message(b, 100, 0) as message:
    ...     message.credentials.pid == os.getpid()
    True
    >>> a.close(); b.close()
    """
    _pass(sock, "SO_PASSCRED", on)


def pass_pidfd(sock: FileDescriptorLike, on: bool = True) -> None:
    """Have every message received on `sock` carry a pidfd of its sender: SO_PASSPIDFD, Linux 6.5; else ENOPROTOOPT.

    >>> import socket
    >>> a, b = socket.socketpair()
    >>> pass_pidfd(b)
    >>> a.send(b"hello")
    5
    >>> with recv_message(b, 100, 0) as message:
    ...     message.pidfd  # doctest: +ELLIPSIS
    <OwnedFd ... pidfd>
    >>> a.close(); b.close()
    """
    _pass(sock, "SO_PASSPIDFD", on)


def pass_rights(sock: FileDescriptorLike, on: bool = True) -> None:
    """Whether descriptors may be sent to `sock` at all: SO_PASSRIGHTS, Linux 6.16; else ENOPROTOOPT.

    With False a peer that sends some gets EPERM; what was queued before still arrives.

    >>> import socket
    >>> a, b = socket.socketpair()
    >>> pass_rights(b, False)
    >>> sendall_fds(a, b"hello", [0])
    Traceback (most recent call last):
    ...
    PermissionError: [Errno 1] Operation not permitted
    >>> a.close(); b.close()
    """
    _pass(sock, "SO_PASSRIGHTS", on)

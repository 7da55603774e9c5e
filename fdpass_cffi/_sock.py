"""What the arguments of a call are, a `sock` and numbers, and what to do when it failed: raise, retry, or wait.

A socket.socket's timeout is honoured as one deadline for the whole call. Of an int, or of any other
object with fileno(), nothing is known but its descriptor: EAGAIN is a BlockingIOError.
"""

import _socket
import os
import socket
import sys
from errno import EAGAIN, EBADF, EINTR, ETIMEDOUT, EWOULDBLOCK
from math import ceil
from operator import attrgetter, index
from select import POLLIN, POLLOUT
from time import monotonic

from ._backend import CONSTANTS, ffi, lib
from ._close import own_error

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable, Protocol, SupportsIndex, Union

    class HasFileno(Protocol):
        """A file, a socket, an OwnedFd, asyncio's TransportSocket..."""

        def fileno(self) -> int: ...

    FileDescriptorLike = Union[int, HasFileno]

PACKAGE = __name__.rpartition(".")[0]
Socket = socket.socket
INT_MIN, INT_MAX = -0x80000000, 0x7FFFFFFF
IN, OUT = POLLIN, POLLOUT
MSG_DONTWAIT = CONSTANTS["MSG_DONTWAIT"]
SOL_SOCKET, SO_TYPE, SO_DOMAIN = CONSTANTS["SOL_SOCKET"], CONSTANTS["SO_TYPE"], CONSTANTS.get("SO_DOMAIN")

AF_UNIX: int = int(socket.AF_UNIX)
# Whether socket.socket is what it is in the standard library: gevent puts a class in its place that has none in it.
STANDARD = issubclass(Socket, _socket.socket)
# The plain number: socket.socket.family makes an enum member of it, which takes ten times as long.
socket_family: "Callable[[Any], int]" = _socket.socket.family.__get__ if STANDARD else attrgetter("family")

Timeout: "type[OSError]" = socket.timeout
if not issubclass(socket.timeout, TimeoutError):  # Python 3.9: two classes, and callers catch either
    Timeout = type(
        "TimeoutError",
        (socket.timeout, TimeoutError),
        # By the qualified name pickle finds it again, as when a worker process hands its exception over.
        {"__doc__": "socket.timeout and TimeoutError at once.", "__qualname__": "Timeout"},
    )


def fileno(sock: "FileDescriptorLike", call: str) -> int:
    """The descriptor behind `sock`, for the function named `call`.

    TypeError if it is none, ValueError or OverflowError for an int that cannot be one, OSError (EBADF) if it is
    closed, NotImplementedError for an ssl.SSLSocket, whose descriptor would bypass TLS.
    """
    if isinstance(sock, int):
        return _checked(sock)
    ssl = sys.modules.get("ssl")
    if ssl is not None and isinstance(sock, ssl.SSLSocket):
        raise NotImplementedError(f"{call} not allowed on instances of {type(sock)}")
    method = getattr(sock, "fileno", None)
    if method is None:
        raise TypeError(f"sock must be a socket, an int or an object with fileno(), not {type(sock).__name__}")
    fd = method()
    if type(fd) is int and -INT_MAX <= fd <= INT_MAX:
        return fd
    if isinstance(fd, bool) or not isinstance(fd, int):
        raise TypeError(f"sock: fileno() returned {type(fd).__name__}, not int")
    if not -INT_MAX <= fd <= INT_MAX:
        raise OverflowError(f"sock: {fd} is too large for a file descriptor")
    return int(fd)


def _checked(fd: int) -> int:
    if isinstance(fd, bool):
        raise TypeError("sock must be a socket or a file descriptor, not bool")
    if fd < 0:
        raise ValueError(f"sock: negative file descriptor {fd}")
    if fd > INT_MAX:
        raise OverflowError(f"sock: {fd} is too large for a file descriptor")
    return int(fd)


def reread(sock: "Any", fd: int) -> int:
    """The descriptor of `sock` now: a handler may have closed it amid a wait, or an argument when it was looked at.

    Its old number may be another file's by now. Errors as those of `fileno`.
    """
    if isinstance(sock, Socket):
        return sock.fileno()
    return fd if isinstance(sock, int) else fileno(sock, "sendmsg")


def take_errno() -> int:
    """The errno of the call that just failed in this thread.

    It leaves EINTR in its place: if this ran in a signal handler, between another failed call and the reading
    of its errno, that call is then tried again and learns its errno anew.
    """
    code: int = ffi.errno
    ffi.errno = EINTR
    return code


def failed(code: int, sock: object, fd: int, events: int, flags: int, deadline: "float | None") -> "float | None":
    """After a call failed with errno `code`: raise its OSError, or return the deadline when it is to be tried again.

    EINTR: the handlers have run and did not raise (PEP 475). EAGAIN on a socket with a timeout: wait until
    it is ready for `events`, at most until the deadline, then raise TimeoutError (errno ETIMEDOUT).
    """
    if code == EINTR:
        return deadline
    if code in (EAGAIN, EWOULDBLOCK) and not flags & MSG_DONTWAIT:
        timeout = sock.gettimeout() if isinstance(sock, Socket) else None
        if timeout:
            if deadline is None:
                deadline = monotonic() + timeout
            wait(fd, events, deadline)
            return deadline
    raise os_error(code, fd)


def ours(error: BaseException) -> bool:
    """Whether this package, or a call that it made into C, raised: none but its functions are in the traceback.

    A signal handler's exception comes out of the same calls, and may be of the same class.
    """
    traceback = error.__traceback__
    while traceback is not None:
        if traceback.tb_frame.f_globals.get("__name__", "").rpartition(".")[0] != PACKAGE:
            return False
        traceback = traceback.tb_next
    return True


def os_error(code: int, fd: int = 0) -> OSError:
    """The OSError (of the right subclass) for an errno; for EBADF it says so when `sock` itself is not open."""
    text = os.strerror(code)
    if code == EBADF and not is_open(fd):
        text = f"{text}: sock is closed" if fd < 0 else f"{text}: sock is {fd}, which is not open"
    return OSError(code, text)


def timed_out() -> OSError:
    """What is raised past a deadline."""
    return Timeout(ETIMEDOUT, "timed out")


def is_open(fd: int) -> bool:
    """Whether `fd` is an open descriptor of this process."""
    try:
        os.get_inheritable(fd)
    except (OSError, OverflowError):
        if not own_error():
            raise
        return False
    return True


def wait(fd: int, events: int, deadline: float) -> None:
    """poll(2) `fd` until it is ready or in error, or a signal came; TimeoutError past `deadline`, of time.monotonic().

    Past it also if it is ready: who waits again although it was ready may do so for ever (a byte of MSG_OOB is there).
    After a signal the call is tried again: the handlers may have closed the socket, and its number be another file's.
    """
    left = deadline - monotonic()
    if left < 0:
        raise timed_out()
    pollfd = ffi.new("struct pollfd *", (fd, events, 0))
    ready = lib.poll(pollfd, 1, ceil(min(left * 1000, INT_MAX)))
    if ready < 0:
        code = take_errno()
        if code != EINTR:
            raise os_error(code)
    if not ready and deadline <= monotonic():
        raise timed_out()


def read_option(fd: int, level: int, option: int, value: "Any", room: int) -> int:
    """getsockopt(2) into the memory at `value`, of `room` bytes; the length, or OSError (ENOTSOCK for a file)."""
    length = ffi.new("unsigned int *", room)
    while lib.getsockopt(fd, level, option, value, ffi.cast("void *", length)) < 0:
        code = take_errno()
        if code != EINTR:
            raise os_error(code, fd)
    return int(length[0])


def getsockopt(fd: int, option: int) -> int:
    """An int option of SOL_SOCKET; OSError (ENOTSOCK for a pipe or a file)."""
    value = ffi.new("int *")
    read_option(fd, SOL_SOCKET, option, value, ffi.sizeof("int"))
    return int(value[0])


def setsockopt(fd: int, option: int, value: int) -> None:
    """Set an int option of SOL_SOCKET; OSError (ENOPROTOOPT if the kernel has none such)."""
    while lib.setsockopt(fd, SOL_SOCKET, option, ffi.new("int *", value), ffi.sizeof("int")) < 0:
        code = take_errno()
        if code != EINTR:
            raise os_error(code, fd)


def family(sock: "FileDescriptorLike", fd: int) -> int:
    """The address family of `sock`; OSError (ENOTSOCK) if it is no socket."""
    if isinstance(sock, Socket):
        return int(socket_family(sock))
    if SO_DOMAIN is None:  # Darwin and NetBSD have no way to ask, and refuse what Linux would lose
        return int(getattr(sock, "family", AF_UNIX))
    return getsockopt(fd, SO_DOMAIN)


def integer(name: str, value: "SupportsIndex") -> int:
    """`value` as a plain int (an enum member too); TypeError if it is none."""
    try:
        return int(index(value))
    except TypeError:
        raise TypeError(f"{name} must be an int, not {type(value).__name__}") from None


def c_int(name: str, value: "SupportsIndex") -> int:
    """`value` as a C int; OverflowError if it does not fit."""
    number = integer(name, value)
    if not INT_MIN <= number <= INT_MAX:
        raise OverflowError(f"{name} does not fit a C int: {number}")
    return number


def length(name: str, value: "SupportsIndex", what: str) -> int:
    """`value` as a number of bytes or things; ValueError (beginning with `what`) if negative."""
    number = integer(name, value)
    if -sys.maxsize - 1 <= number < 0:
        raise ValueError(f"{what}: {name} is {number}")
    if not number <= sys.maxsize - 64 or number < 0:  # no object of the C library or Python can be as large
        raise OverflowError(f"{name} does not fit a C ssize_t: {number}")
    return number


def buffer_size(value: "SupportsIndex") -> int:
    return length("bufsize", value, "negative buffer size in recvmsg()")


def most_fds(value: "SupportsIndex") -> int:
    return length("maxfds", value, "negative number of descriptors")


def control_size(value: "SupportsIndex") -> int:
    """An ancbufsize, in bytes: at most what a socklen_t holds."""
    number = length("ancbufsize", value, "invalid ancillary data buffer length")
    if number > INT_MAX:
        raise ValueError(f"invalid ancillary data buffer length: ancbufsize is {number}")
    return number

"""Message: what one receive brought, owned; and recv_message, which raises rather than lose anything.

Law: every descriptor that the kernel installed has an owner at each step: the Block's memory, then the
list `fds`, then the OwnedFds; `recv_message` closes them in whichever it finds them if it is left by an exception.
"""

from __future__ import annotations

import struct
from collections import namedtuple
from errno import EMFILE, ENFILE

from ._backend import CONSTANTS
from ._receive import abandon, ancillary, bring_rights, carried, lib_recvmsg, only_item, receive_again, sender
from ._scratch import (
    BYTES,
    CMSG_DATA,
    CONTROL_ROOM,
    CONTROLLEN,
    DATA,
    FLAGS,
    MSG_CMSG_CLOEXEC,
    NAMELEN,
    NONE_SET,
    NOT_ARRIVED,
    SOL_SOCKET,
    WHOLE,
    incoming,
    keep_rights_in,
    rights_in_pool,
    take_rights_in,
)
from ._send import SOCK_STREAM
from ._sock import SO_TYPE, Socket, fileno, getsockopt
from ._truncated import truncated
from .errors import raised_in
from .fd import CLOSE, FEW, OwnedFd, adopt, adopt_shared, close_owned

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, NamedTuple, NoReturn, SupportsIndex

    from ._sock import FileDescriptorLike

    class Credentials(NamedTuple):
        """A process as its kernel vouches for it: pid, uid, gid; struct ucred of unix(7)."""

        pid: int
        uid: int
        gid: int
else:
    Credentials = namedtuple("Credentials", "pid uid gid")
    Credentials.__doc__ = """A process as its kernel vouches for it: pid, uid, gid; struct ucred of unix(7).

    >>> Credentials(4711, 1000, 1000).uid
    1000
    """

_new = object.__new__
UCRED = struct.Struct("iII")  # pid_t, uid_t, gid_t
# What Linux writes at the end of a stream, where no sender is. Elsewhere it is root of another pid namespace.
NOBODY = Credentials(0, 0, 0)
SCM_CREDENTIALS = CONSTANTS.get("SCM_CREDENTIALS")
SCM_SECURITY = CONSTANTS.get("SCM_SECURITY")
SCM_RIGHTS, SCM_PIDFD = CONSTANTS["SCM_RIGHTS"], CONSTANTS.get("SCM_PIDFD")
MSG_TRUNC, MSG_CTRUNC, MSG_PEEK = (CONSTANTS[name] for name in ("MSG_TRUNC", "MSG_CTRUNC", "MSG_PEEK"))
LOST = MSG_TRUNC | MSG_CTRUNC
SHOWN = ~MSG_CMSG_CLOEXEC


class Message:
    """What one receive brought: a context manager that closes the descriptors that were not taken. Not to be copied.

    `data`: bytes. `fds`: list of OwnedFd; take one with `.fds.pop()`, `.fds[0].detach()`, `.to_file()`...
    `address`: of the sender, as `socket` gives it. `flags`: msg_flags of recvmsg(2).
    `credentials`: Credentials, if pass_credentials is on (None at the end of a stream, which nobody sent). `pidfd`: an
    OwnedFd of the sender's process, if pass_pidfd is on. `security`: the sender's security label, bytes, if
    SO_PASSSEC is on. `ancdata`: any other control messages, (cmsg_level, cmsg_type, bytes) each.

    >>> import os, socket
    >>> a, b = socket.socketpair()
    >>> pass_credentials(b)
    >>> sendall_fds(a, b"some data", [0, 1])
    >>> message = recv_message(b, 100, 2)
    >>> message.data, message.address, message.flags, message.security, message.pidfd, message.ancdata
    (b'some data', None, 0, None, None, [])
    >>> message.credentials == (os.getpid(), os.getuid(), os.getgid())
    True
    >>> taken = message.fds.pop()
    >>> message.close()
    >>> taken.closed, message.fds[0].closed
    (False, True)
    >>> taken.close(); a.close(); b.close()
    """

    # The rest is rare, and cheaper not to set. The price is that a misspelt attribute can be set.
    __slots__ = ("__dict__", "data", "fds", "pidfd")
    flags: int = 0
    address: Any = None
    credentials: Credentials | None = None
    security: bytes | None = None
    ancdata: list[tuple[int, int, bytes]]

    def __init__(self, data: bytes, fds: list[OwnedFd], flags: int = 0, address: Any = None) -> None:
        self.data = data
        self.fds = fds
        self.pidfd: OwnedFd | None = None
        if flags:
            self.flags = flags
        if address is not None:
            self.address = address

    def __getattr__(self, name: str) -> Any:
        """`ancdata`, when it is first looked at."""
        if name != "ancdata":
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        self.ancdata = []
        return self.ancdata

    def close(self) -> None:
        """Close every descriptor that is still owned here."""
        self.__exit__()

    def __enter__(self) -> Message:
        return self

    def __exit__(self, kind: object = None, error: object = None, traceback: object = None) -> None:
        owned = self.fds if self.pidfd is None else [*self.fds, self.pidfd]
        try:
            if len(owned) < FEW:
                for one in owned:
                    try:
                        one.close()
                    except OSError as failure:  # the descriptor is gone all the same
                        if raised_in(failure) is not CLOSE:
                            raise
            else:
                close_owned(owned)
        except BaseException:  # a signal handler's: close the rest first
            close_owned(owned)
            raise

    def _no_copy(self, *args: object) -> NoReturn:
        raise TypeError("a Message cannot be copied or pickled, since it owns descriptors; its data can")

    __copy__ = __deepcopy__ = __reduce_ex__ = _no_copy

    def __repr__(self) -> str:
        parts = [f"{len(self.data)} bytes", f"fds={self.fds!r}"]
        parts += [
            f"{name}={value!r}"
            for name in ("address", "credentials", "pidfd", "security", "ancdata")
            if (value := getattr(self, name))
        ]
        return f"<Message {' '.join(parts)}>"


def recv_message(sock: FileDescriptorLike, bufsize: SupportsIndex, maxfds: SupportsIndex, flags: int = 0) -> Message:
    """Receive at most `bufsize` bytes and `maxfds` descriptors, owned and close-on-exec, in one recvmsg(2).

    On a stream, `data` is b"" and `fds` empty at the end of it. Nothing is lost in silence: TruncatedError if the
    sender sent more descriptors, this process can have no more, or a datagram was longer (unless MSG_PEEK or
    MSG_TRUNC is in `flags`); everything that came is then closed. Other errors as `recv_fds`.

    >>> import os, socket
    >>> a, b = socket.socketpair()
    >>> with open(os.devnull) as file:
    ...     sendall_fds(a, b"take this", [file])
    >>> with recv_message(b, 100, 1) as message:
    ...     message.data, message.fds[0]  # doctest: +ELLIPSIS
    (b'take this', <OwnedFd ... '/dev/null'>)
    >>> message.fds[0].closed
    True
    >>> a.close(); b.close()
    """
    fd = sock.fileno() if type(sock) is Socket else fileno(sock, "recvmsg")
    block = None
    fds: list[int] | None = None
    owned: list[OwnedFd] = []
    try:
        try:
            block = take_rights_in()
        except IndexError:
            block = incoming()
        if bufsize is block.ready and maxfds is block.most and flags is NONE_SET:  # as in recv_fds
            block.lens[CONTROLLEN] = CONTROL_ROOM
            got = lib_recvmsg(fd, block.msg, MSG_CMSG_CLOEXEC)
            if got == 1:
                data = BYTES[block.octets[DATA]]
            else:
                if got < 0:
                    got = receive_again(sock, fd, block, CONTROL_ROOM, MSG_CMSG_CLOEXEC)
                data = block.data[0:got]
        else:
            flags, data = bring_rights(sock, fd, block, bufsize, maxfds, flags)
        ints, most = block.ints, block.most
        if block.head[WHOLE] == block.usual and most:
            fds = [ints[CMSG_DATA]]
            ints[NAMELEN] = NOT_ARRIVED
            keep_rights_in(block)
            owned = adopt_shared(fds)
            return plain_message(data, owned)
        msg_flags = ints[FLAGS] & SHOWN
        pidfds = other = None
        used = block.lens[CONTROLLEN]
        if not used:
            fds = []
        else:
            fds = only_item(block)
            if fds is None:
                other = ancillary(block, 2)
                rights, pidfds = carried(other)
                fds = rights + pidfds
                if pidfds and min(pidfds) < 0:
                    msg_flags |= drop_failed(pidfds, fds)
        namelen = ints[NAMELEN]
        address = sender(sock, fd, block.name[0:namelen]) if namelen else None
        ints[NAMELEN] = NOT_ARRIVED
        keep_rights_in(block)
        count = len(fds) - len(pidfds) if pidfds else len(fds)
        if count > most or (msg_flags & LOST and lost(msg_flags, flags)):
            owned = adopt(fds)  # first of all, in case that a second exception comes into the making of this one
            error = truncated(msg_flags, data, count, most, CONTROL_ROOM - used)
            close_owned(owned)
            try:
                raise error
            finally:
                del error  # it knows this frame by its traceback, and would keep all callers' frames
        owned = adopt_shared(fds) if fds else []
        message = Message(data, owned, msg_flags, address)
        if other is not None:
            put_other(message, other, len(pidfds or ()))
            if message.credentials == NOBODY and ends(fd, message):
                message.credentials = None
        return message
    except BaseException:
        abandon(block, fds, rights_in_pool)
        close_owned(owned)
        raise


def plain_message(data: bytes, fds: list[OwnedFd]) -> Message:
    """Message(data, fds) for two thirds of the time on CPython, which makes a slow call of `__init__`."""
    message = _new(Message)
    message.data = data
    message.fds = fds
    message.pidfd = None
    return message


def ends(fd: int, message: Message) -> bool:
    """Whether this is the end of a stream, after which there is only more of it, and not an empty datagram."""
    return not message.data and not message.fds and getsockopt(fd, SO_TYPE) == SOCK_STREAM


def lost(msg_flags: int, flags: int) -> int:
    """Whether something is gone for good: a peeked datagram is not, and with MSG_TRUNC the caller asked for it."""
    return msg_flags & MSG_CTRUNC or (msg_flags & MSG_TRUNC and not flags & (MSG_PEEK | MSG_TRUNC))


def drop_failed(*lists: list[int]) -> int:
    """Take out what is negative: the kernel's -errno in the place of a pidfd which it could not make.

    MSG_CTRUNC if it was for want of room in a table; else 0: the sender is gone, and there is nothing to refer to.
    """
    full = -EMFILE in lists[0] or -ENFILE in lists[0]
    for numbers in lists:
        numbers[:] = [number for number in numbers if number >= 0]
    return MSG_CTRUNC if full else 0


def put_other(message: Message, ancdata: list[tuple[int, int, bytes]], pidfds: int) -> None:
    """The control messages that are not descriptors, into their fields; the last `pidfds` of `fds` are pidfds."""
    for extra in range(pidfds):
        if extra:
            message.fds.pop().close()
        else:
            message.pidfd = message.fds.pop()
    for level, kind, data in ancdata:
        if level != SOL_SOCKET or kind not in (SCM_RIGHTS, SCM_PIDFD, SCM_CREDENTIALS, SCM_SECURITY):
            message.ancdata.append((level, kind, data))
        elif kind == SCM_CREDENTIALS and len(data) >= UCRED.size:
            message.credentials = Credentials(*UCRED.unpack_from(data))
        elif kind == SCM_SECURITY:
            message.security = data

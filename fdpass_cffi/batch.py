"""Many messages by one syscall: send_messages and recv_messages, over sendmmsg(2) and recvmmsg(2).

Where the C library has none of these, a loop does the same. The law is that of `recv_message`: each entry's
msg_namelen says whether its descriptors came, until they have their owners.
"""

from __future__ import annotations

import sys
from errno import EINVAL, EOPNOTSUPP

from . import _vector as v
from ._address import AF_UNIX, family, from_sockaddr
from ._arguments import buffer_size, c_int, integer, most_fds
from ._backend import LAYOUT, LINUX, ffi, lib
from ._close import close_all
from ._receive import MSG_CMSG_CLOEXEC, carried, parsed, warn_malformed
from ._scratch import CONTROL_ROOM, LEN, NAME_ROOM, NOT_ARRIVED, ONE_LEN, ONE_SPACE, SCM_RIGHTS, SOL_SOCKET
from ._send import MSG_NOSIGNAL, SOCK_STREAM, each, explain, exported, pack_fds
from ._sock import IN, MSG_DONTWAIT, OUT, SO_TYPE, Socket, failed, fileno, getsockopt, take_errno
from ._truncated import truncated
from .errors import TruncatedError
from .fd import adopt, close_owned
from .message import LOST, Message, lost, put_other, recv_message
from .sendall import Sending

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any, SupportsIndex

    from ._send import Buffer
    from ._sock import FileDescriptorLike
    from .fd import OwnedFd

MSG_WAITFORONE = 0x10000  # Linux's; elsewhere a loop is used
SHOWN = ~MSG_CMSG_CLOEXEC
lib_sendmmsg = getattr(lib, "sendmmsg", None) if LINUX else None
lib_recvmmsg = getattr(lib, "recvmmsg", None) if LINUX else None


def send_messages(
    sock: FileDescriptorLike, messages: Iterable[tuple[Buffer, Iterable[FileDescriptorLike]]], flags: int = 0
) -> int:
    """Send `messages`, each (data, fds), in order; how many went, all but if the socket does not block or an error came.

    At most 1024 go in one call. Each is one message with at most 253 descriptors, which stay the caller's. An error
    is raised only if the first one did not go: call again with the rest to learn of a later one's. A stream keeps
    no bounds between messages, but what is sent of one is sent whole.

    >>> import socket
    >>> a, b = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    >>> send_messages(a, [(b"one", [0]), (b"two", [0, 1])])
    2
    >>> for message in recv_messages(b, 10, 100, 2):
    ...     with message:
    ...         message.data, len(message.fds)
    (b'one', 1)
    (b'two', 2)
    >>> a.close(); b.close()
    """
    fd = sock.fileno() if type(sock) is Socket else fileno(sock, "sendmsg")
    flags = c_int("flags", flags)
    outgoing = [prepared(item, i) for i, item in enumerate(each("messages", messages, "(data, fds) pairs")[: v.MOST])]
    check(sock, fd, outgoing)
    sys.audit("socket.sendmsg", sock, None)
    if not outgoing:
        return 0
    if lib_sendmmsg is None:
        return send_one_by_one(sock, fd, outgoing, flags)
    vector = filled(outgoing)
    deadline = None
    while True:
        sent: int = lib_sendmmsg(fd, vector.vec, len(outgoing), flags | MSG_NOSIGNAL)
        if sent >= 0:
            break
        try:
            deadline = failed(take_errno(), sock, fd, OUT, flags, deadline)
        except OSError as error:
            raise explain(error, fd, outgoing[0][1]) from None
    finish(sock, fd, outgoing[sent - 1][0], vector.ints[((sent - 1) * v.HEADER + v.MSG_LEN) // 4], flags)
    return sent


def prepared(item: Any, i: int) -> tuple[Any, bytes, object]:
    """One message as memory, packed descriptors, and what must live until it is sent."""
    try:
        data, fds = item
    except (TypeError, ValueError):
        raise TypeError(f"messages[{i}] must be (data, fds), not {item!r}") from None
    given = each("fds", fds, "descriptors")
    return exported(data, f"messages[{i}]: data"), pack_fds(given), given


def check(sock: FileDescriptorLike, fd: int, outgoing: list[tuple[Any, bytes, object]]) -> None:
    """ValueError where a kernel would take the descriptors of a message and lose them."""
    if not any(raw for _, raw, _ in outgoing):
        return
    if family(sock, fd) != AF_UNIX:
        raise ValueError("sock is not an AF_UNIX socket: descriptors do not pass over any other")
    for i, (part, raw, _) in enumerate(outgoing):
        if raw and not len(part) and getsockopt(fd, SO_TYPE) == SOCK_STREAM:
            raise ValueError(f"messages[{i}] has no byte: a stream socket loses descriptors sent without data")


def filled(outgoing: list[tuple[Any, bytes, object]]) -> v.Vector:
    """The vector of these messages."""
    vector = v.Vector(len(outgoing), max(LAYOUT.cmsg_space(len(raw)) for _, raw, _ in outgoing), 0, False)
    ints, lens = vector.ints, vector.lens
    for i, (part, raw, _) in enumerate(outgoing):
        vector.point(i, int(ffi.cast("size_t", part)), len(part))
        control = vector.controls + i * vector.control
        lens[i * v.HEADER // LEN + v.CONTROLLEN] = LAYOUT.cmsg_space(len(raw)) if raw else 0
        lens[control // LEN + v.CMSG_LEN] = LAYOUT.cmsg_len(len(raw))
        ints[control // 4 + v.CMSG_LEVEL], ints[control // 4 + v.CMSG_TYPE] = SOL_SOCKET, SCM_RIGHTS
        start = control + LAYOUT.data
        vector.bytes[start : start + len(raw)] = raw
    return vector


def finish(sock: FileDescriptorLike, fd: int, part: Any, sent: int, flags: int) -> None:
    """Send the rest of a message that a stream socket took in part; the descriptors went with its first byte."""
    if 0 < sent < len(part):
        rest = Sending(sock, fd, part, b"", flags, None, [])
        rest.sent = sent
        rest.run()


def send_one_by_one(
    sock: FileDescriptorLike, fd: int, outgoing: list[tuple[Any, bytes, object]], flags: int
) -> int:
    """The same by sendmsg(2)."""
    for sent, (part, raw, _) in enumerate(outgoing):
        try:
            Sending(sock, fd, part, raw, flags, None, []).run()
        except OSError:
            if not sent:
                raise
            return sent
    return len(outgoing)


def recv_messages(
    sock: FileDescriptorLike, n: SupportsIndex, bufsize: SupportsIndex, maxfds: SupportsIndex, flags: int = 0
) -> list[Message]:
    """Receive up to `n` messages (at most 1024), each as by `recv_message`: at least one, and no wait for more than it.

    At the end of a stream the last message is empty. TruncatedError if part of one was lost; the others of the
    batch are in its `messages` (in order; a second truncated one as its TruncatedError), the caller's to close.
    """
    fd = sock.fileno() if type(sock) is Socket else fileno(sock, "recvmsg")
    flags, count = c_int("flags", flags), min(integer("n", n), v.MOST)
    if count < 1:
        raise ValueError(f"n must be at least 1, not {count}")
    size, most = buffer_size(bufsize), most_fds(maxfds)
    if lib_recvmmsg is None:
        return recv_one_by_one(sock, fd, count, size, most, flags)
    arrivals = Arrivals(count, size)
    try:
        got = arrivals.receive(sock, fd, flags)
        found = arrivals.messages(sock, fd, got, most, flags)
    except BaseException:
        arrivals.abandon()
        raise
    return whole(found)


def recv_one_by_one(
    sock: FileDescriptorLike, fd: int, n: int, bufsize: int, maxfds: int, flags: int
) -> list[Message]:
    """The same by recvmsg(2)."""
    found: list[Message | TruncatedError] = []
    waiting = flags
    try:
        while len(found) < n:
            try:
                found.append(recv_message(sock, bufsize, maxfds, waiting))
            except TruncatedError as error:
                found.append(error)
            waiting = flags | MSG_DONTWAIT
            if ends(fd, found[-1]):
                break
    except BlockingIOError:
        if not found:
            raise
    except BaseException:
        for message in found:
            if isinstance(message, Message):
                message.close()
        raise
    return whole(found)


def ends(fd: int, message: Message | TruncatedError) -> bool:
    """Whether this is the end of a stream, after which there are only more of it."""
    if not isinstance(message, Message) or message.data or message.fds:
        return False
    return getsockopt(fd, SO_TYPE) == SOCK_STREAM


def whole(found: list[Message | TruncatedError]) -> list[Message]:
    """The messages, if all are whole; else the first error is raised and has the others."""
    for i, error in enumerate(found):
        if isinstance(error, TruncatedError):
            error.messages = [*found[:i], *found[i + 1 :]]
            raise error
    return found  # type: ignore[return-value]


_pool: list[tuple[tuple[int, int], v.Vector, bytes]] = []
POOLED, KEPT = 1 << 20, 8  # bytes: a larger vector is not kept; nor more of them than this


class Arrivals:
    """The memory of one recv_messages, and the owners of what came in it."""

    def __init__(self, n: int, bufsize: int) -> None:
        self.fds: list[int] | None = None
        self.owned: list[OwnedFd] = []
        self.n, self.size = n, bufsize
        try:
            shape, self.vector, self.pristine = _pool.pop()
        except IndexError:
            shape = None
        if shape != (n, bufsize):
            self.vector, self.pristine = self.new()

    def new(self) -> tuple[v.Vector, bytes]:
        """A vector with every entry ready, and its headers' bytes, by which it is made so again."""
        vector = v.Vector(self.n, CONTROL_ROOM, self.size, True)
        for i in range(self.n):
            vector.point(i, vector.base + vector.datas + i * vector.data, self.size)
            vector.ints[i * v.HEADER // 4 + v.NAMELEN] = NOT_ARRIVED
            vector.lens[i * v.HEADER // LEN + v.CONTROLLEN] = CONTROL_ROOM
        return vector, vector.bytes[0 : self.n * v.HEADER]

    def receive(self, sock: FileDescriptorLike, fd: int, flags: int) -> int:
        """recvmmsg(2), waited for; how many messages came."""
        deadline = None
        asked = flags | MSG_CMSG_CLOEXEC | MSG_WAITFORONE
        while True:
            got: int = lib_recvmmsg(fd, self.vector.vec, self.n, asked, ffi.NULL)  # type: ignore[misc]
            if got >= 0:
                return got
            code = take_errno()
            if code in (EINVAL, EOPNOTSUPP) and asked & MSG_CMSG_CLOEXEC and family(sock, fd) != AF_UNIX:
                asked &= ~MSG_CMSG_CLOEXEC
            else:
                deadline = failed(code, sock, fd, IN, flags, deadline)

    def messages(
        self, sock: FileDescriptorLike, fd: int, got: int, most: int, flags: int
    ) -> list[Message | TruncatedError]:
        """What came, owned; the vector goes back to its pool."""
        entries = [self.entry(i) for i in range(got)]
        self.fds = fds = [one for rights, pidfds, _ in entries for one in rights + pidfds]
        found: list[Message | TruncatedError] = []
        shown = [self.shown(sock, fd, i) for i in range(got)]
        self.keep()
        errors = [self.error(i, entries[i], shown[i], most, flags) for i in range(got)]
        self.owned = owned = adopt(fds)
        start = 0
        for (rights, pidfds, other), (data, msg_flags, address, _), error in zip(entries, shown, errors):
            stop = start + len(rights) + len(pidfds)
            message = Message(data, owned[start:stop], msg_flags, address)
            start = stop
            if error is not None:
                message.close()
                found.append(error)
                continue
            if other is not None:
                put_other(message, other, len(pidfds))
            found.append(message)
            if not data and not rights and ends(fd, message):
                break
        return found

    def entry(self, i: int) -> tuple[list[int], list[int], list[tuple[int, int, bytes]] | None]:
        """The descriptors and pidfds of entry i, and its control messages where there is anything else."""
        vector = self.vector
        control = vector.controls + i * vector.control
        used = vector.lens[i * v.HEADER // LEN + v.CONTROLLEN]
        if not used:
            return [], [], None
        ints, length = vector.ints, vector.lens[control // LEN + v.CMSG_LEN]
        at = control // 4
        if length == ONE_LEN and used == ONE_SPACE and ints[at + v.CMSG_TYPE] == SCM_RIGHTS:
            if ints[at + v.CMSG_LEVEL] == SOL_SOCKET:
                return [ints[at + v.CMSG_DATA]], [], None
        other, all_whole = parsed(vector.bytes[control : control + used])
        if not all_whole:
            warn_malformed(4)
        return (*carried(other), other)

    def shown(self, sock: FileDescriptorLike, fd: int, i: int) -> tuple[bytes, int, object, int]:
        """The data, msg_flags and address of entry i, and the room that was left for control messages."""
        vector, at = self.vector, i * v.HEADER
        start = vector.datas + i * vector.data
        data = vector.bytes[start : start + min(vector.ints[(at + v.MSG_LEN) // 4], self.size)]
        namelen = vector.ints[at // 4 + v.NAMELEN]
        name = vector.names + i * NAME_ROOM
        address = from_sockaddr(sock, fd, vector.bytes[name : name + namelen]) if namelen else None
        left = CONTROL_ROOM - vector.lens[at // LEN + v.CONTROLLEN]
        return data, vector.ints[at // 4 + v.FLAGS] & SHOWN, address, left

    def error(self, i: int, entry: Any, shown: Any, most: int, flags: int) -> TruncatedError | None:
        """The error of a message that lost something, or None."""
        data, msg_flags, _, left = shown
        count = len(entry[0])
        if count > most or (msg_flags & LOST and lost(msg_flags, flags)):
            return truncated(msg_flags, data, count, most, left)
        return None

    def keep(self) -> None:
        """Make the vector as it was, so that it says no more that anything came, and put it into its pool."""
        vector = self.vector
        vector.bytes[0 : len(self.pristine)] = self.pristine
        if len(vector.bytes) <= POOLED and len(_pool) < KEPT:
            _pool.append(((self.n, self.size), vector, self.pristine))

    def abandon(self) -> None:
        """Close what came, wherever it is now."""
        if self.fds is None:
            ints = self.vector.ints
            came = [i for i in range(self.n) if ints[i * v.HEADER // 4 + v.NAMELEN] != NOT_ARRIVED]
            self.fds = [one for i in came for part in self.entry(i)[:2] for one in part]
        close_all(self.fds)
        close_owned(self.owned)

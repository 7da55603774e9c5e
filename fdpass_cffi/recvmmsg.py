"""recv_messages: many messages by one recvmmsg(2); by a loop of recvmsg(2) where the C library has none.

The law is that of `recv_message`: each entry's msg_namelen says whether its descriptors came, until they have their
owners.
"""

from __future__ import annotations

from errno import EINVAL, EOPNOTSUPP

from . import _vector as v
from ._backend import CONSTANTS, LAYOUT, LINUX, ffi, lib
from ._close import close_all
from ._receive import carried, parsed, sender, warn_malformed
from ._scratch import (
    CONTROL_ROOM,
    LEN,
    MSG_CMSG_CLOEXEC,
    NAME_ROOM,
    NOT_ARRIVED,
    ONE_LEN,
    ONE_SPACE,
    SCM_RIGHTS,
    SOL_SOCKET,
)
from ._sock import (
    AF_UNIX,
    IN,
    MSG_DONTWAIT,
    Socket,
    buffer_size,
    c_int,
    failed,
    family,
    fileno,
    integer,
    most_fds,
    ours,
    reread,
    take_errno,
)
from ._truncated import truncated
from .errors import TruncatedError
from .fd import adopt, close_cells, close_owned, owners
from .message import (
    LOST,
    MSG_PEEK,
    MSG_TRUNC,
    NOBODY,
    Message,
    drop_failed,
    ends,
    lost,
    plain_message,
    put_other,
    recv_message,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Optional, SupportsIndex

    from ._sock import FileDescriptorLike
    from .fd import OwnedFd

    Entry = tuple[list[int], list[int], Optional[list[tuple[int, int, bytes]]]]

MSG_WAITFORONE = CONSTANTS.get("MSG_WAITFORONE", 0)  # off Linux a loop is used
SHOWN = ~MSG_CMSG_CLOEXEC
lib_recvmmsg = getattr(lib, "recvmmsg", None) if LINUX else None


def recv_messages(
    sock: FileDescriptorLike, n: SupportsIndex, bufsize: SupportsIndex, maxfds: SupportsIndex, flags: int = 0
) -> list[Message]:
    """Receive up to `n` messages (at most 1024), each as by `recv_message`: at least one, and no wait for more than it.

    At the end of a stream the last message is empty. With MSG_PEEK it is the first message alone. TruncatedError if
    part of one was lost; the others of the batch are in its `messages` (in order; a second truncated one as its
    TruncatedError), the caller's to close. Errors otherwise as `recv_message`; recvmmsg(2), which tells of a reset
    connection before what came over it.

    >>> import socket
    >>> a, b = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    >>> send_messages(a, [(b"one", [0]), (b"too many", [0, 1]), (b"three", [])])
    3
    >>> try:
    ...     recv_messages(b, 10, 100, 1)
    ... except TruncatedError as error:
    ...     print(error.reason, error.data, [message.data for message in error.messages])
    ...     for message in error.messages:
    ...         message.close()
    maxfds b'too many' [b'one', b'three']
    >>> a.close(); b.close()
    """
    fd = sock.fileno() if type(sock) is Socket else fileno(sock, "recvmsg")
    flags, count = c_int("flags", flags), min(integer("n", n), v.MOST)
    if count < 1:
        raise ValueError(f"n must be at least 1, not {count}")
    if flags & MSG_PEEK:
        count = 1
    size, most = buffer_size(bufsize), most_fds(maxfds)
    fd = reread(sock, fd)
    if lib_recvmmsg is None:
        return recv_one_by_one(sock, fd, count, size, most, flags)
    arrivals = Arrivals(count, size, most)
    try:
        got = arrivals.receive(sock, fd, flags)
        found = arrivals.messages(sock, fd, got, most, flags)
    except BaseException:
        arrivals.abandon()
        raise
    return whole(found)


def recv_one_by_one(sock: FileDescriptorLike, fd: int, n: int, bufsize: int, maxfds: int, flags: int) -> list[Message]:
    """The same by recvmsg(2)."""
    found: list[Message | TruncatedError] = []
    waiting = flags
    try:
        try:
            while len(found) < n:
                try:
                    found.append(recv_message(sock, bufsize, maxfds, waiting))
                except TruncatedError as error:
                    found.append(error)
                waiting = flags | MSG_DONTWAIT
                if isinstance(found[-1], Message) and ends(fd, found[-1]):
                    break
        except OSError as error:  # nothing more for now, or an error that must not cost what came before
            if not found or not ours(error):
                raise
    except BaseException:
        for message in found:
            if isinstance(message, Message):
                message.close()
        raise
    return whole(found)


def whole(found: list[Message | TruncatedError]) -> list[Message]:
    """The messages, if all are whole; else the first error is raised and has the others."""
    for i, error in enumerate(found):
        if type(error) is TruncatedError:  # isinstance() would ask each Message for its __class__, by its __getattr__
            error.messages = [*found[:i], *found[i + 1 :]]
            raise error
    return found  # type: ignore[return-value]


_pool: list[tuple[tuple[int, int, int], v.Vector, bytes]] = []
OTHER_ROOM = 1024  # bytes for credentials, a pidfd, timestamps and a security label
GATHERED = 1 << 14  # bytes: slices of so little are cheaper taken from a copy of it than from a cffi buffer


class Arrivals:
    """The memory of one recv_messages, and the owners of what came in it."""

    def __init__(self, n: int, bufsize: int, maxfds: int) -> None:
        self.fds: list[int] | None = None
        self.cells: list[list[int]] | None = None  # the same, as owners share them
        self.owned: list[OwnedFd] = []
        # One descriptor more than asked for has room, so that it can be known that there were more; and a page
        # for each entry would cost more than its system call.
        self.room = min(CONTROL_ROOM, LAYOUT.cmsg_space(4 * min(maxfds + 1, CONTROL_ROOM)) + OTHER_ROOM)
        self.n, self.size, self.shape = n, bufsize, (n, bufsize, self.room)
        try:
            shape, self.vector, self.pristine = _pool.pop()
        except IndexError:
            shape = None
        if shape != self.shape:
            self.vector, self.pristine = self.new()

    def new(self) -> tuple[v.Vector, bytes]:
        """A vector with every entry ready, and its headers' bytes, by which it is made so again."""
        vector = v.Vector(self.n, self.room, self.size, True)
        for i in range(self.n):
            vector.point(i, vector.base + vector.datas + i * vector.data, self.size)
            vector.ints[i * v.HEADER // 4 + v.NAMELEN] = NOT_ARRIVED
            vector.lens[i * v.HEADER // LEN + v.CONTROLLEN] = self.room
        return vector, vector.bytes[0 : self.n * v.HEADER]

    def receive(self, sock: FileDescriptorLike, fd: int, flags: int) -> int:
        """recvmmsg(2), waited for; how many messages came."""
        deadline = None
        asked = flags | MSG_CMSG_CLOEXEC | MSG_WAITFORONE
        if flags & MSG_TRUNC:  # as `wipe` does for a single receive
            start = self.vector.datas
            self.vector.bytes[start:] = bytes(len(self.vector.bytes) - start)
        while True:
            got: int = lib_recvmmsg(fd, self.vector.vec, self.n, asked, ffi.NULL)  # type: ignore[misc]
            if got >= 0:
                return got
            code = take_errno()
            if code in (EINVAL, EOPNOTSUPP) and asked & MSG_CMSG_CLOEXEC and family(sock, fd) != AF_UNIX:
                asked &= ~MSG_CMSG_CLOEXEC
            else:
                deadline = failed(code, sock, fd, IN, flags, deadline)
                fd = reread(sock, fd)

    def messages(
        self, sock: FileDescriptorLike, fd: int, got: int, most: int, flags: int
    ) -> list[Message | TruncatedError]:
        """What came, owned; the vector goes back to its pool."""
        vector = self.vector
        ones = self.one_each(got) if most else None
        entries = [self.entry(i) for i in range(got)] if ones is None else []
        self.fds = fds = ones if ones is not None else [one for part in entries for one in part[0] + part[1]]
        datas = self.datas(got)
        flagged, namelens = vector.header_ints(v.FLAGS, got), vector.header_ints(v.NAMELEN, got)
        if (
            ones is not None and flagged == [MSG_CMSG_CLOEXEC] * got and namelens == [0] * got
        ):  # by far the most frequent
            self.keep()
            self.cells = cells = [[one] for one in fds]  # now these have them
            return [plain_message(data, [owner]) for data, owner in zip(datas, owners(cells))]
        shown = [one & SHOWN for one in flagged]
        addresses = [self.address(sock, fd, i, n) if n else None for i, n in enumerate(namelens)]
        left = [self.room - used for used in vector.header_lens(v.CONTROLLEN, got)]
        self.keep()
        entries = entries or [([one], [], None) for one in fds]
        return self.mixed(sock, fd, entries, datas, shown, addresses, left, most, flags)

    def datas(self, got: int) -> list[bytes]:
        """The bytes of each message."""
        vector, size = self.vector, self.size
        memory, step = vector.bytes, vector.data or 1
        starts = range(vector.datas, vector.datas + got * step, step)
        if got * step <= GATHERED:
            memory, starts = memory[vector.datas : vector.datas + got * step], range(0, got * step, step)
        sizes = vector.header_ints(v.MSG_LEN // 4, got)
        return [memory[at : at + (n if n < size else size)] for at, n in zip(starts, sizes)]

    def one_each(self, got: int) -> list[int] | None:
        """The descriptors, if each entry brought one SCM_RIGHTS item with one descriptor and nothing else."""
        vector = self.vector
        at, step = vector.controls // LEN, vector.control // LEN
        if (
            vector.header_lens(v.CONTROLLEN, got) == [ONE_SPACE] * got
            and v.column(vector.lens, at + v.CMSG_LEN, step, got) == [ONE_LEN] * got
            and vector.control_ints(v.CMSG_TYPE, got) == [SCM_RIGHTS] * got
            and vector.control_ints(v.CMSG_LEVEL, got) == [SOL_SOCKET] * got
        ):
            return vector.control_ints(v.CMSG_DATA, got)
        return None

    def mixed(
        self,
        sock: FileDescriptorLike,
        fd: int,
        entries: list[Entry],
        datas: list[bytes],
        shown: list[int],
        addresses: list[object],
        left: list[int],
        most: int,
        flags: int,
    ) -> list[Message | TruncatedError]:
        """Messages of any kind, and the errors of those that lost something."""
        errors = [
            truncated(one, data, len(rights), most, room)
            if len(rights) > most or (one & LOST and lost(one, flags))
            else None
            for (rights, _, _), data, one, room in zip(entries, datas, shown, left)
        ]
        self.owned = owned = adopt(self.fds or [])
        found: list[Message | TruncatedError] = []
        start = 0
        for (rights, pidfds, other), data, one, address, error in zip(entries, datas, shown, addresses, errors):
            stop = start + len(rights) + len(pidfds)
            message = Message(data, owned[start:stop], one, address)
            start = stop
            if error is not None:
                message.close()
                found.append(error)
                continue
            if other is not None:
                put_other(message, other, len(pidfds))
            found.append(message)
            if not data and not rights and ends(fd, message):
                if message.credentials == NOBODY:
                    message.credentials = None
                break
        return found

    def address(self, sock: FileDescriptorLike, fd: int, i: int, size: int) -> object:
        """The sender of entry i."""
        start = self.vector.names + i * NAME_ROOM
        return sender(sock, fd, self.vector.bytes[start : start + size])

    def entry(self, i: int, warn: bool = True) -> Entry:
        """The descriptors and pidfds of entry i, and its control messages where there is anything else."""
        vector = self.vector
        control = vector.controls + i * vector.control
        used = vector.lens[i * v.HEADER // LEN + v.CONTROLLEN]
        if not used:
            return [], [], None
        other, all_whole = parsed(vector.bytes[control : control + used])
        if warn and not all_whole:
            warn_malformed(4)
        rights, pidfds = carried(other)
        if pidfds and min(pidfds) < 0:
            vector.ints[i * v.HEADER // 4 + v.FLAGS] |= drop_failed(pidfds)
        return rights, pidfds, other

    def keep(self) -> None:
        """Make the vector as it was, so that it says no more that anything came, and put it into its pool."""
        vector = self.vector
        vector.bytes[0 : len(self.pristine)] = self.pristine
        if len(vector.bytes) <= v.POOLED and len(_pool) < v.KEPT:
            _pool.append((self.shape, vector, self.pristine))

    def abandon(self) -> None:
        """Close what came, wherever it is now."""
        if self.cells is not None:
            close_cells(self.cells)
            return
        if self.fds is None:
            ints = self.vector.ints
            came = [i for i in range(self.n) if ints[i * v.HEADER // 4 + v.NAMELEN] != NOT_ARRIVED]
            self.fds = [one for i in came for part in self.entry(i, False)[:2] for one in part]
        close_all(self.fds)
        close_owned(self.owned)

"""Many messages by one syscall: send_messages and recv_messages, over sendmmsg(2) and recvmmsg(2).

Where the C library has none of these, a loop does the same. The law is that of `recv_message`: each entry's
msg_namelen says whether its descriptors came, until they have their owners.
"""

from __future__ import annotations

import sys
from array import array
from errno import EINVAL, EOPNOTSUPP
from functools import partial
from itertools import takewhile

from . import _vector as v
from ._backend import CONSTANTS, LAYOUT, LINUX, WORD, ffi, lib
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
    OUTGOING_DATA,
    SCM_RIGHTS,
    SOL_SOCKET,
)
from ._send import MSG_NOSIGNAL, MSG_OOB, SOCK_STREAM, each, exported, pack_fds
from ._sock import (
    AF_UNIX,
    IN,
    MSG_DONTWAIT,
    SO_TYPE,
    Socket,
    buffer_size,
    c_int,
    failed,
    family,
    fileno,
    getsockopt,
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
from .sendall import Sending, tell

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any, Optional, SupportsIndex

    from typing_extensions import Buffer

    from ._sock import FileDescriptorLike
    from .fd import OwnedFd

    Entry = tuple[list[int], list[int], Optional[list[tuple[int, int, bytes]]]]
    Outgoing = tuple[Any, bytes, list[FileDescriptorLike]]

MSG_WAITFORONE = CONSTANTS.get("MSG_WAITFORONE", 0)  # off Linux a loop is used
SHOWN = ~MSG_CMSG_CLOEXEC
LEN_CODE = "L" if LEN == WORD else "i"
NOT_UNIX = "sock is not an AF_UNIX socket: descriptors do not pass over any other"
lib_sendmmsg = getattr(lib, "sendmmsg", None) if LINUX else None
lib_recvmmsg = getattr(lib, "recvmmsg", None) if LINUX else None


def send_messages(
    sock: FileDescriptorLike, messages: Iterable[tuple[Buffer, Iterable[FileDescriptorLike]]], flags: int = 0
) -> int:
    """Send `messages`, each (data, fds), in order; how many went: all, if the socket blocks and no error came.

    At most 1024 go in one call, and no more are taken from an iterator. Each is one message with at most 253
    descriptors, which stay the caller's. An error is raised if the first one did not go: call again with the rest to
    learn of a later one's. A stream keeps no bounds between messages, but what is sent of one is sent whole, also
    on a non-blocking socket; if it cannot be (the timeout, MSG_DONTWAIT, the peer is gone), that is an error too.
    Whatever is raised has `messages_sent`, how many went whole, and of the next one `bytes_sent` and `fds_sent`.
    Errors otherwise as `sendall_fds`; sendmmsg(2).

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
    >>> a, b = socket.socketpair()
    >>> try:
    ...     send_messages(a, [(b"one", [0]), (bytes(10_000_000), [0])], socket.MSG_DONTWAIT)
    ... except BlockingIOError as error:
    ...     error.messages_sent, 0 < error.bytes_sent < 10_000_000, error.fds_sent
    (1, True, 1)
    >>> a.close(); b.close()
    """
    try:
        go = batch_of(sock, messages, flags)
    except BaseException as error:
        told(error, 0, None)
        raise
    return go()


def batch_of(
    sock: FileDescriptorLike, messages: Iterable[tuple[Buffer, Iterable[FileDescriptorLike]]], flags: int
) -> Callable[[], int]:
    """What sends `messages`, all of which is checked before."""
    fd = sock.fileno() if type(sock) is Socket else fileno(sock, "sendmsg")
    flags = c_int("flags", flags)
    given = each("messages", messages, "(data, fds) pairs", v.MOST)
    sys.audit("socket.sendmsg", sock, None)
    fd = reread(sock, fd)
    quick = uniform(given) if lib_sendmmsg is not None and not flags & MSG_OOB else None
    if quick is not None:
        if family(sock, fd) != AF_UNIX:
            raise ValueError(NOT_UNIX)
        return partial(send_uniform, sock, fd, *quick, given[0][1], flags)
    outgoing = [prepared(item, i) for i, item in enumerate(given)]
    fd = reread(sock, fd)
    check(sock, fd, outgoing, flags)
    if not outgoing:
        return int
    if lib_sendmmsg is None:
        return partial(send_one_by_one, sock, fd, outgoing, flags)
    return partial(dispatch, sock, fd, filled(outgoing), [part for part, _, _ in outgoing], outgoing[0][2], flags)


def send_uniform(
    sock: FileDescriptorLike, fd: int, vector: v.Vector, datas: list[bytes], first: list[FileDescriptorLike], flags: int
) -> int:
    """`dispatch` of what `uniform` made, whose vector goes back to its pool."""
    sent = dispatch(sock, fd, vector, datas, first, flags)
    if len(_one_each) < KEPT and len(vector.texts) <= POOLED:
        _one_each.append(vector)
    return sent


def dispatch(
    sock: FileDescriptorLike, fd: int, vector: v.Vector, parts: list[Any], first: list[FileDescriptorLike], flags: int
) -> int:
    """sendmmsg(2), waited for; how many went. `parts` are the messages' data, `first` the first one's descriptors."""
    waiting = None
    results = [0]  # of sendmmsg(2), since a signal that ends it, having sent some, may raise before `sent` is set
    rest = None
    try:
        while True:
            results.extend(map(lib_sendmmsg, (fd,), (vector.vec,), (len(parts),), (flags | MSG_NOSIGNAL,)))  # type: ignore[arg-type]
            sent = results[-1]
            if sent >= 0:
                break
            code = take_errno()
            if waiting is None:
                waiting = Sending(sock, fd, b"", pack_fds(first), flags)
            waiting.retry(code, waiting.raw)
            fd = reread(sock, fd)
        rest = begun(sock, fd, vector, parts, sent, flags)
        if rest is not None:
            rest.run()
        return sent
    except BaseException as error:
        sent = max(results[-1], 0)
        rest = rest or begun(sock, fd, vector, parts, sent, flags)
        told(error, sent - (rest is not None), rest)
        if rest is not None:
            rest.release()
        parts.clear()  # the traceback knows them, and the caller's memory would stay locked
        raise


def begun(
    sock: FileDescriptorLike, fd: int, vector: v.Vector, parts: list[Any], sent: int, flags: int
) -> Sending | None:
    """The last of `sent` messages, if a stream socket took it in part; its descriptors went with its first byte."""
    if not sent:
        return None
    i, part = sent - 1, parts[sent - 1]
    size = vector.ints[(i * v.HEADER + v.MSG_LEN) // 4]
    if not 0 < size < len(part):
        return None
    sending = Sending(sock, fd, exported(part, "data") if isinstance(part, bytes) else part, b"", flags, sent=size)
    sending.sizes[0] = vector.lens[(vector.controls + i * vector.control) // LEN + v.CMSG_LEN] - LAYOUT.data
    return sending


def told(error: BaseException, whole: int, sending: Sending | None) -> None:
    """Put on an exception how many messages went whole, and how much of the next one, which `sending` sends."""
    if sending is not None and sending.complete():
        whole, sending = whole + 1, None
    tell(error, sending)
    error.messages_sent = whole  # type: ignore[attr-defined]


def uniform(given: list[Any]) -> tuple[v.Vector, list[bytes]] | None:
    """The vector of messages of some bytes and one descriptor as an int each, and the data; None if there are others.

    The fields are set by columns, in C. What is done here for each message is a list comprehension, since PyPy's JIT
    compiles one by itself, and gives up on a caller's loop into which too much was put.
    """
    try:
        fds = [
            fds[0]
            for pair in given
            if type(pair) is tuple or type(pair) is list
            for data, fds in (pair,)
            if type(fds) is list and len(fds) == 1 and type(fds[0]) is int and type(data) is bytes
        ]
        if len(fds) < len(given) or not given or min(fds) < 0:
            return None
        numbers = array("i", fds)
    except (TypeError, ValueError, OverflowError) as error:
        if not ours(error):
            raise
        return None
    datas = [data for data, _ in given]
    sizes = [len(data) for data in datas]
    vector = one_each_vector(len(datas))
    if sizes != vector.sizes:
        if min(sizes) < 1 or max(sizes) > OUTGOING_DATA:
            _one_each.append(vector)
            return None
        vector.lay_out(sizes)
    vector.texts[0 : sum(sizes)] = b"".join(datas)
    v.put_column(vector.ints, vector.controls // 4 + v.CMSG_DATA, vector.control // 4, numbers)
    return vector, datas


_one_each: list[v.Vector] = []  # vectors whose control messages are SCM_RIGHTS with one descriptor each


def one_each_vector(n: int) -> v.Vector:
    """A vector of at least n entries with one descriptor each, from the pool if it has one."""
    try:
        vector = _one_each.pop()
        if vector.n >= n:
            return vector
    except IndexError:
        pass
    vector = v.Vector(n, ONE_SPACE, 0, False)
    at, step = vector.controls // 4, vector.control // 4
    lens_at, lens_step = vector.controls // LEN, vector.control // LEN
    v.put_column(vector.lens, v.CONTROLLEN, v.HEADER // LEN, array(LEN_CODE, [ONE_SPACE]) * n)
    v.put_column(vector.lens, lens_at + v.CMSG_LEN, lens_step, array(LEN_CODE, [ONE_LEN]) * n)
    v.put_column(vector.ints, at + v.CMSG_LEVEL, step, array("i", [SOL_SOCKET]) * n)
    v.put_column(vector.ints, at + v.CMSG_TYPE, step, array("i", [SCM_RIGHTS]) * n)
    return vector


def prepared(item: Any, i: int) -> Outgoing:
    """One message as memory, packed descriptors, and what must live until it is sent."""
    try:
        data, fds = item
    except (TypeError, ValueError) as error:
        if not ours(error):
            raise
        raise TypeError(f"messages[{i}] must be (data, fds), not {item!r}") from None
    given = each(f"messages[{i}]: fds", fds, "descriptors")
    return exported(data, f"messages[{i}]: data"), pack_fds(given, f"messages[{i}]: fds"), given


def check(sock: FileDescriptorLike, fd: int, outgoing: list[Outgoing], flags: int) -> None:
    """ValueError where a kernel would take the descriptors of a message and lose them."""
    if not any(raw for _, raw, _ in outgoing):
        return
    if family(sock, fd) != AF_UNIX:
        raise ValueError(NOT_UNIX)
    urgent = bool(flags & MSG_OOB)  # which carries no descriptors
    for i, (part, raw, _) in enumerate(outgoing):
        if raw and len(part) <= urgent and getsockopt(fd, SO_TYPE) == SOCK_STREAM:
            what = "no byte but the one that MSG_OOB makes urgent" if len(part) else "no byte"
            raise ValueError(f"messages[{i}] has {what}: a stream socket loses descriptors sent without data")


def filled(outgoing: list[Outgoing]) -> v.Vector:
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


def send_one_by_one(sock: FileDescriptorLike, fd: int, outgoing: list[Outgoing], flags: int) -> int:
    """The same by sendmsg(2)."""
    sendings: list[Sending] = []

    def one(item: Outgoing) -> Sending:
        sending = Sending(sock, fd, item[0], item[1], flags)
        sending.at_once = sys.maxsize  # one message is one message
        sending.patient = not sendings
        sendings.append(sending)
        return sending

    try:  # without a loop, whose jump back CPython 3.13 leaves without a handler
        return len(list(takewhile(went, map(one, outgoing))))
    except BaseException as error:
        told(error, len(sendings) - 1 if sendings else 0, sendings[-1] if sendings else None)
        raise


def went(sending: Sending) -> bool:
    """Send one message; False for an error of a later one than the first, which the next call tells."""
    try:
        sending.run()
        return True
    except OSError:
        if sending.started() or sending.patient:
            raise
        return False


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
        except OSError:  # nothing more for now, or an error that must not cost what came before
            if not found:
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
POOLED, KEPT = 1 << 20, 8  # bytes: a larger vector is not kept; nor more of them than this
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
        if len(vector.bytes) <= POOLED and len(_pool) < KEPT:
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

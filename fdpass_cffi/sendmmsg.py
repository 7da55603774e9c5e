"""send_messages: many messages by one sendmmsg(2); by a loop of sendmsg(2) where the C library has none."""

from __future__ import annotations

import sys
from array import array
from functools import partial
from itertools import takewhile

from . import _vector as v
from ._backend import LAYOUT, LINUX, WORD, ffi, lib
from ._scratch import (
    LEN,
    ONE_LEN,
    ONE_SPACE,
    OUTGOING_DATA,
    SCM_RIGHTS,
    SOL_SOCKET,
)
from ._send import MSG_NOSIGNAL, MSG_OOB, NOT_UNIX, SOCK_STREAM, each, exported, pack_fds
from ._sock import (
    AF_UNIX,
    SO_TYPE,
    Socket,
    c_int,
    family,
    fileno,
    getsockopt,
    ours,
    reread,
    take_errno,
)
from .sendall import Sending, tell

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any

    from typing_extensions import Buffer

    from ._sock import FileDescriptorLike

    Outgoing = tuple[Any, bytes, list[FileDescriptorLike]]

LEN_CODE = "L" if LEN == WORD else "i"
lib_sendmmsg = getattr(lib, "sendmmsg", None) if LINUX else None


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
    if len(_one_each) < v.KEPT and len(vector.texts) <= v.POOLED:
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
    except OSError as error:
        if sending.started() or sending.patient or not ours(error):
            raise
        return False

"""The protocol of Channel: bytes and descriptors in, whole frames out, and the reverse.

Everything that decides what is on the wire, and what a peer may send, lives here; adapters only
move bytes and wait. Nothing here touches a socket, and a descriptor may be any object: it is put
in order, never looked at and never closed. The format is frozen; docs/protocol.md defines it.
"""

from __future__ import annotations

from struct import Struct

from .errors import LocalProtocolError, ProtocolError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from typing import Generic, NoReturn, TypeVar, Union

    D = TypeVar("D")
    BytesLike = Union[bytes, bytearray, memoryview]
    Piece = tuple[list[BytesLike], list[D]]
else:  # importing typing would cost more than the rest of this module

    class Generic:
        """Stands in for typing.Generic: a subscript gives the class itself."""

        def __class_getitem__(cls, item):
            return cls

    D = None

HEADER_SIZE = 8
MAX_DATA = 16 << 20
MAX_FDS = 4096
MAX_PACKET = 65536  # no packet is longer, so a SOCK_SEQPACKET receiver with this much room truncates none
PER_MESSAGE = 253  # Linux's SCM_MAX_FD; a sender may use less, and the format does not depend on it

_UINT32 = 0xFFFFFFFF
_SMALL = 4096  # pieces below this are gathered: a peer that trickles must not cost an object per byte
_HEADER = Struct(">II")


def _between(name: str, value: int, low: int, high: int) -> int:
    if not low <= value <= high:
        raise LocalProtocolError(f"{name}: {value} is not between {low} and {high}")
    return value


# Sending


def encode(
    data: BytesLike,
    fds: Iterable[D] = (),
    *,
    max_data: int = MAX_DATA,
    max_fds: int = MAX_FDS,
    per_message: int = PER_MESSAGE,
    packet: int | None = None,
) -> list[Piece[D]]:
    """One frame, as the messages to send in order: a list of (buffers, descriptors).

    Each piece is one `sendmsg`: its descriptors (at most `per_message`) go with its first byte.
    On a stream a piece may go out in parts, the descriptors with the first part only; on
    SOCK_SEQPACKET give `packet`, the largest packet in bytes (8 to 65536), and a piece is a
    packet. Every piece has at least one byte. `data` is referred to, not copied.

    LocalProtocolError (a ValueError) if `data` is longer than `max_data` bytes or there are
    more than `max_fds` descriptors; BufferError if `data` is not contiguous. See sendmsg(2), unix(7).

    >>> encode(b"hello", ["a", "b"])
    [([b'\\x00\\x00\\x00\\x05\\x00\\x00\\x00\\x02', b'hello'], ['a', 'b'])]
    """
    held, payload = list(fds), _flat(data)
    size = len(payload)
    _limits(size, len(held), max_data, max_fds)
    _between("per_message", per_message, 1, _UINT32)
    room = _UINT32 * 2 if packet is None else _between("packet", packet, HEADER_SIZE, MAX_PACKET)
    head = _HEADER.pack(size, len(held))
    if len(held) <= min(per_message, size) and HEADER_SIZE + size <= room:
        return [([head, payload] if size else [head], held)]
    return list(_pieces(head, _body(payload, len(held)), held, per_message, room))


def _flat(data: BytesLike) -> bytes | memoryview:
    """The payload as something whose length is its number of bytes."""
    if type(data) is bytes:
        return data
    view = memoryview(data)
    if not view.c_contiguous:
        raise BufferError("data: the underlying buffer is not C-contiguous")
    return view.cast("B") if view.nbytes else b""


def _limits(size: int, count: int, max_data: int, max_fds: int) -> None:
    if size > _between("max_data", max_data, 0, _UINT32):
        raise LocalProtocolError(f"data: {size} bytes, and the limit is {max_data}")
    if count > _between("max_fds", max_fds, 0, _UINT32):
        raise LocalProtocolError(f"fds: {count} descriptors, and the limit is {max_fds}")


def _body(payload: bytes | memoryview, count: int) -> memoryview:
    """What follows the header: the payload, and zeros until there is a byte for every descriptor."""
    if len(payload) < count:  # fewer bytes than descriptors: the copy costs nothing beside them
        return memoryview(bytes(payload).ljust(count, b"\0"))
    return memoryview(payload)


def _pieces(head: bytes, body: memoryview, fds: list[D], per_message: int, room: int) -> Iterator[Piece[D]]:
    """The first group goes with the whole header, the next ones with one byte each, the last with the rest."""
    groups = [fds[at : at + per_message] for at in range(0, len(fds), per_message)] or [[]]
    total = HEADER_SIZE + len(body)
    start = 0
    for end, group in zip([*range(HEADER_SIZE, HEADER_SIZE + len(groups) - 1), total], groups):
        for at in range(start, end, room):
            yield _buffers(head, body, at, min(at + room, end)), group if at == start else []
        start = end


def _buffers(head: bytes, body: memoryview, start: int, end: int) -> list[BytesLike]:
    """Bytes `start` to `end` of the frame; only its first piece, at 0, has the header, and has it whole."""
    if start:
        return [body[start - HEADER_SIZE : end - HEADER_SIZE]]
    return [head, body[: end - HEADER_SIZE]] if end > HEADER_SIZE else [head]


# Receiving

_INTERRUPTED = (LocalProtocolError, "the decoder was interrupted in the middle of a change")
_DRAINED = (LocalProtocolError, "the decoder has given its descriptors back")


class Decoder(Generic[D]):
    """Frames out of what arrives: `feed` each receive, then `next_frame` until it gives None. One caller at a time.

    Between calls it holds what the last receive brought, and of what came before it a part of one header or
    body: max(8, `max_data`, `max_fds`) bytes at most. A body is collected only after its header was found
    within the limits. Descriptors are held only for a frame of which a byte has come.

    ProtocolError: the peer is at fault. The frames before the fault were handed out; from then on
    every call raises the same. LocalProtocolError: an exception (a signal handler's) struck in
    the middle of a change, so that whose the descriptors are is no longer certain.
    After either, `drain` gives the descriptors that no frame took. See recvmsg(2), unix(7).

    >>> decoder = Decoder()
    >>> decoder.feed(b"\\0\\0\\0\\5" b"\\0\\0\\0\\2" b"hello" b"\\0\\0", ["a", "b"])
    >>> decoder.next_frame()
    (b'hello', ['a', 'b'])
    >>> decoder.next_frame()
    >>> decoder.wanted()  # two bytes of a header are here
    (6, 4096)
    """

    __slots__ = ("_at", "_fault", "_fds", "_head", "_idle", "_missing", "_parts", "_read", "max_data", "max_fds")

    def __init__(self, max_data: int = MAX_DATA, max_fds: int = MAX_FDS) -> None:
        self.max_data = _between("max_data", max_data, 0, _UINT32)
        self.max_fds = _between("max_fds", max_fds, 0, _UINT32)
        self._read = b""  # received, and not yet part of a frame, but for
        self._at = 0  # its first so many bytes
        self._head: tuple[int, int] | None = None  # payload length and descriptor count of a frame that has begun,
        self._parts: list[bytes | bytearray] = []  # what came of its body,
        self._missing = 0  # and how many bytes are still to come
        self._fds: list[D] = []
        self._idle = True  # next_frame gave None, and nothing was fed since
        self._fault: tuple[type[LocalProtocolError | ProtocolError], str] | None = None

    def feed(self, data: BytesLike, fds: Sequence[D] = ()) -> None:
        """Take the bytes of one receive (or of several), all of them, and the descriptors that came with them.

        The descriptors are the decoder's from here on, also when this raises ProtocolError
        or LocalProtocolError; after any other exception they may be, and the caller closes its own
        list and `drain`'s, each descriptor once. `data` is copied unless it is bytes.
        """
        read = data if type(data) is bytes else bytes(memoryview(data))
        before, self._fault = self._fault, self._fault or _INTERRUPTED
        self._fds.extend(fds)
        if before is not None:
            self._check()
        if fds and not read:
            self._fail("descriptors without a byte of data")
        self._read = self._read[self._at :] + read if self._at < len(self._read) else read
        self._at = 0
        self._idle = False
        self._fault = None

    def next_frame(self) -> tuple[bytes, list[D]] | None:
        """The next whole frame, (payload, descriptors), or None: feed more. The descriptors are the caller's.

        ProtocolError if the peer broke the protocol or a limit.
        """
        if self._fault is not None:
            self._check()
        if self._head is not None:
            return self._collect()
        read, at = self._read, self._at
        if len(read) - at < HEADER_SIZE:
            self._wait(self.max_fds if at < len(read) else 0)
            return None
        size, count = _HEADER.unpack_from(read, at)
        if size > self.max_data or count > self.max_fds:
            self._refuse(size, count)
        end = at + HEADER_SIZE + max(size, count)
        if end > len(read):
            self._begin(size, count)
            return None
        if count:
            return self._deal(read[at + HEADER_SIZE : end], size, count, end)
        self._at = end
        return read[at + HEADER_SIZE : end], []

    def __iter__(self) -> Iterator[tuple[bytes, list[D]]]:
        """The whole frames that are here."""
        return iter(self.next_frame, None)

    def wanted(self) -> tuple[int, int]:
        """(bytes that end the header or frame that is arriving, descriptors that may come with them).

        In a frame both are exact. Before or in a header the descriptors are the limit's: the
        count is not known. A receive may ask for more bytes, and then later frames' descriptors may come too.
        LocalProtocolError while frames may be waiting: `next_frame` must have given None.
        """
        self._check_idle()
        if self._head is not None:
            return self._missing, self._head[1] - len(self._fds)
        return HEADER_SIZE - (len(self._read) - self._at), self.max_fds - len(self._fds)

    def eof(self) -> NoReturn:
        """The peer will send nothing more: EOFError if it ended between frames, else ProtocolError.

        LocalProtocolError while frames may be waiting: `next_frame` must have given None.
        """
        self._check_idle()
        if self._head is None and self._at == len(self._read):
            raise EOFError("the peer closed the connection")
        self._fail("the stream ended in the middle of a frame")

    def drain(self) -> list[D]:
        """The descriptors that no frame took, in order, for the caller to close; the decoder takes no more bytes.

        The list is the decoder's own: pop each before closing it, and a clean-up that was
        interrupted can begin again.
        """
        self._fault = self._fault or _DRAINED
        return self._fds

    # What next_frame is made of

    def _check(self) -> None:
        if self._fault is not None:
            raise self._fault[0](self._fault[1])

    def _check_idle(self) -> None:
        self._check()
        if not self._idle:
            raise LocalProtocolError("frames may be waiting: call next_frame() until it gives None")

    def _fail(self, why: str) -> NoReturn:
        self._fault = (ProtocolError, why)
        self._read = b""
        self._parts = []
        raise ProtocolError(why)

    def _refuse(self, size: int, count: int) -> NoReturn:
        if size > self.max_data:
            self._fail(f"a frame of {size} bytes, and the limit is {self.max_data}")
        self._fail(f"a frame of {count} descriptors, and the limit is {self.max_fds}")

    def _wait(self, allowed: int) -> None:
        """Nothing is whole. Descriptors come with a byte of their own frame, so they belong to this one or to none."""
        if len(self._fds) > allowed:
            self._fail(f"descriptors that no frame announced: {len(self._fds)} came, and at most {allowed} may have")
        self._idle = True

    def _begin(self, size: int, count: int) -> None:
        """Start to collect a frame of which only a part is here."""
        self._fault = _INTERRUPTED
        part = self._read[self._at + HEADER_SIZE :]
        self._parts = [part]
        self._missing = max(size, count) - len(part)
        self._head = (size, count)
        self._read = b""
        self._at = 0
        self._fault = None
        self._wait(count)

    def _collect(self) -> tuple[bytes, list[D]] | None:
        """Go on with the frame that has begun; its parts are joined once, at its end."""
        assert self._head is not None
        size, count = self._head
        if self._missing:
            self._keep()
        if self._missing:
            self._wait(count)
            return None
        return self._deal(b"".join(self._parts), size, count, self._at)

    def _keep(self) -> None:
        self._fault = _INTERRUPTED
        part = self._read
        if self._at or len(part) > self._missing:  # PyPy copies also when it cuts nothing off
            part = part[self._at : self._at + self._missing]
        if len(part) >= _SMALL:
            self._parts.append(part)
        elif type(self._parts[-1]) is bytearray:
            self._parts[-1] += part
        else:
            self._parts.append(bytearray(part))
        self._at += len(part)
        self._missing -= len(part)
        self._fault = None

    def _deal(self, body: bytes, size: int, count: int, end: int) -> tuple[bytes, list[D]]:
        """Hand out the frame whose body is whole. Its descriptors came with its bytes, or they never will."""
        if count > len(self._fds):
            self._fail(f"a frame of {count} descriptors, and {len(self._fds)} came")
        if body.count(0, size) < len(body) - size:
            self._fail("padding that is not zero")
        frame = body[:size], self._fds[:count]
        self._fault = _INTERRUPTED
        self._head = None
        self._parts = []
        self._at = end
        del self._fds[:count]
        self._fault = None
        return frame

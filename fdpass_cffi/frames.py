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
    Frame = tuple[bytes, list[D]]
    Parts = Union[tuple[bytes, "Parts"], None]  # the last piece first
    Body = tuple[int, int, int, Parts]  # payload length, descriptor count, bytes still to come, what came
    State = tuple[bytes, int, Union[Body, None], list[D], Union[Frame[D], None]]  # __init__ says what each is
else:  # importing typing would cost more than the rest of this module

    class Generic:
        """Stands in for typing.Generic: a subscript gives the class itself."""

        def __class_getitem__(cls, item: object) -> type:
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
header = _HEADER.pack  # (payload length, descriptor count): what a frame begins with
read_header = _HEADER.unpack_from
LITTLE = 472  # bytes of a frame; a `bytes` of no more is the quickest to make on CPython
PLAIN_HEADERS, _ = LITTLE_HEADERS = [
    [header(size, count) for size in range(LITTLE - HEADER_SIZE + 1)] for count in (0, 1)
]


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

_DRAINED = (LocalProtocolError, "the decoder has given its descriptors back")


class Decoder(Generic[D]):
    """Frames out of what arrives: `feed` each receive, then `next_frame` until it gives None. One caller at a time.

    Between calls it holds what the last receive brought, and of what came before it a part of one header or
    body: max(8, `max_data`, `max_fds`) bytes at most. A body is collected only after its header was found
    within the limits. Descriptors are held only for a frame of which a byte has come.

    Whatever exception strikes in a call (a signal handler's, MemoryError), the call was done or was not:
    all state is one tuple, replaced in one step, and what it refers to is not changed. A frame that was
    on its way out of `next_frame` then is lost; where that matters, use `front` and `take`.

    ProtocolError: the peer is at fault. The frames before the fault were handed out; from then on
    every call raises the same. `drain` gives the descriptors that no frame took. See recvmsg(2), unix(7).

    >>> decoder = Decoder()
    >>> decoder.feed(b"\\0\\0\\0\\5" b"\\0\\0\\0\\2" b"hello" b"\\0\\0", ["a", "b"])
    >>> decoder.next_frame()
    (b'hello', ['a', 'b'])
    >>> decoder.next_frame()
    >>> decoder.wanted()  # two bytes of a header are here
    (6, 4096)
    """

    __slots__ = ("_fault", "_judged", "_state", "max_data", "max_fds")

    def __init__(self, max_data: int = MAX_DATA, max_fds: int = MAX_FDS) -> None:
        self.max_data = _between("max_data", max_data, 0, _UINT32)
        self.max_fds = _between("max_fds", max_fds, 0, _UINT32)
        # What was received and how many bytes of it are used; the body that has begun; descriptors; the frame in front.
        self._state: State[D] = (b"", 0, None, [], None)
        self._judged: State[D] = self._state  # the last state in which no frame was whole
        self._fault: tuple[type[LocalProtocolError | ProtocolError], str] | None = None

    def feed(self, data: BytesLike, fds: Sequence[D] = ()) -> None:
        """Take the bytes of one receive (or of several), all of them, and the descriptors that came with them.

        The descriptors are the decoder's from here on, also when this raises ProtocolError or LocalProtocolError.
        After any other exception it has taken all or nothing: if nothing, `wanted` answers as before, else it
        raises LocalProtocolError until `next_frame` was called. `data` is copied unless it is bytes.
        """
        read = data if type(data) is bytes else bytes(memoryview(data))
        if fds and not read and self._fault is None:
            self._fault = (ProtocolError, "descriptors without a byte of data")
        old, at, body, held, front = self._state
        if self._fault is not None:
            read = b""
        elif at < len(old):
            read = old[at:] + read
        self._state = (read, 0, body, [*held, *fds] if fds else held, front)
        self._check()

    def next_frame(self) -> Frame[D] | None:
        """The next whole frame, (payload, descriptors), or None: feed more. The descriptors are the caller's.

        ProtocolError if the peer broke the protocol or a limit.
        """
        frame = self.front()
        if frame is not None:
            self.take(frame)
        return frame

    def front(self) -> Frame[D] | None:
        """As `next_frame`, but the frame stays the decoder's, and the next one, until it is given to `take`."""
        if self._fault is not None:
            self._check()
        read, at, body, fds, front = self._state
        if front is not None:
            return front
        if body is not None:
            return self._collect(read, at, body)
        if len(read) - at < HEADER_SIZE:
            return self._wait(self.max_fds if at < len(read) else 0)
        size, count = read_header(read, at)
        if size > self.max_data or count > self.max_fds:
            self._refuse(size, count)
        at += HEADER_SIZE
        end = at + (size if size > count else count)
        if end > len(read):
            self._state = (b"", 0, (size, count, end - len(read), (read[at:], None)), fds, None)
            return self._wait(count)
        if count:
            return self._deal(read[at:end], size, count, read, end)
        front = read[at:end], []
        self._state = (read, end, None, fds, front)
        return front

    def take(self, frame: Frame[D]) -> None:
        """The frame that `front` gave is the caller's now. It does no harm to say it again."""
        read, at, body, fds, front = self._state
        if front is frame:
            self._state = (read, at, body, fds, None)

    def __iter__(self) -> Iterator[Frame[D]]:
        """The whole frames that are here."""
        return iter(self.next_frame, None)

    def wanted(self) -> tuple[int, int]:
        """(bytes that end the header or frame that is arriving, descriptors that may come with them).

        In a frame both are exact. Before or in a header the descriptors are the limit's: the
        count is not known. A receive may ask for more bytes, and then later frames' descriptors may come too.
        LocalProtocolError while frames may be waiting: `next_frame` must have given None.
        """
        self._check_judged()
        read, at, body, fds, _ = self._state
        if body is not None:
            return body[2], body[1] - len(fds)
        return HEADER_SIZE - (len(read) - at), self.max_fds - len(fds)

    def idle(self) -> bool:
        """Whether no byte of an unfinished frame is here. LocalProtocolError as `wanted`, which does not tell this."""
        self._check_judged()
        read, at, body, _, _ = self._state
        return body is None and at == len(read)

    def eof(self) -> NoReturn:
        """The peer will send nothing more: EOFError if it ended between frames, else ProtocolError.

        LocalProtocolError while frames may be waiting: `next_frame` must have given None.
        """
        if self.idle():
            raise EOFError("the peer closed the connection")
        self._fail("the stream ended in the middle of a frame")

    def drain(self) -> list[D]:
        """The descriptors that no frame took, in order, for the caller to close; the decoder takes no more bytes.

        The list is the decoder's own: pop each before closing it, and a clean-up that was
        interrupted can begin again.
        """
        self._fault = self._fault or _DRAINED
        _, _, _, held, front = self._state
        if front is not None:
            held = front[1] + held
        self._state = (b"", 0, None, held, None)
        return held

    # What these are made of

    def _check(self) -> None:
        if self._fault is not None:
            raise self._fault[0](self._fault[1])

    def _check_judged(self) -> None:
        self._check()
        if self._judged is not self._state:
            raise LocalProtocolError("frames may be waiting: call next_frame() until it gives None")

    def _fail(self, why: str) -> NoReturn:
        self._fault = (ProtocolError, why)
        self._state = (b"", 0, None, self._state[3], None)
        raise ProtocolError(why)

    def _refuse(self, size: int, count: int) -> NoReturn:
        if size > self.max_data:
            self._fail(f"a frame of {size} bytes, and the limit is {self.max_data}")
        self._fail(f"a frame of {count} descriptors, and the limit is {self.max_fds}")

    def _wait(self, allowed: int) -> Frame[D] | None:
        """Nothing is whole. Descriptors come with a byte of their own frame, so they belong to this one or to none."""
        fds = self._state[3]
        if len(fds) > allowed:
            self._fail(f"descriptors that no frame announced: {len(fds)} came, and at most {allowed} may have")
        self._judged = self._state
        return None

    def _collect(self, read: bytes, at: int, body: Body) -> Frame[D] | None:
        """Go on with the frame that has begun; its pieces are joined once, at its end."""
        size, count, missing, parts = body
        piece = read if at == 0 and len(read) <= missing else read[at : at + missing]  # PyPy copies a whole slice
        if len(piece) == missing:
            return self._deal(_joined(parts, piece), size, count, read, at + missing)
        if piece:
            body = (size, count, missing - len(piece), _added(parts, piece))
            self._state = (b"", 0, body, self._state[3], None)
        return self._wait(count)

    def _deal(self, body: bytes, size: int, count: int, read: bytes, end: int) -> Frame[D]:
        """The frame whose body is whole goes to the front. Its descriptors came with its bytes, or they never will."""
        fds = self._state[3]
        if count > len(fds):
            self._fail(f"a frame of {count} descriptors, and {len(fds)} came")
        if body.count(0, size) < len(body) - size:
            self._fail("padding that is not zero")
        frame = body[:size], fds[:count]
        self._state = (read, end, None, fds[count:], frame)
        return frame


def only_payload(data: bytes, fds: int, max_data: int) -> bytes | None:
    """The payload, if what one receive brought is one whole frame and nothing else; no part of one was here before.

    None if it is not: a Decoder has to tell what it is. `fds` is the number of descriptors that came, which the caller
    has found to be small enough.
    """
    if len(data) < HEADER_SIZE:
        return None
    size, count = read_header(data)
    if count != fds or size > max_data:
        return None
    if count <= size:
        return data[HEADER_SIZE:] if len(data) == HEADER_SIZE + size else None
    end = HEADER_SIZE + size
    return data[HEADER_SIZE:end] if len(data) == HEADER_SIZE + count == end + data.count(0, end) else None


def _added(parts: Parts, piece: bytes) -> Parts:
    """The pieces and one more. Small ones are put together, or a peer that trickles would cost an object for each."""
    while parts is not None and len(parts[0]) <= len(piece) < _SMALL:
        piece = parts[0] + piece
        parts = parts[1]
    return piece, parts


def _joined(parts: Parts, last: bytes) -> bytes:
    pieces = [last]
    while parts is not None:
        pieces.append(parts[0])
        parts = parts[1]
    return b"".join(reversed(pieces))

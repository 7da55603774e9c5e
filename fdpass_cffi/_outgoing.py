"""The other direction of a channel: one frame to the socket, one sendmsg at a time, never waiting by itself.

Law: a frame goes out whole, or not at all, or the channel sends nothing any more: half a frame cannot be taken
back. What has gone is known at any time, whatever exception strikes, because the result of each
sendmsg is kept by `list.extend(map(sendmsg, ...))`, one call of a C function. A small frame needs
none of this: Linux's own kernel takes all of it or nothing, as one sk_buff.
"""

from __future__ import annotations

import sys
from array import array
from errno import EAGAIN, EINTR, EMSGSIZE, ENOMEM, EPIPE, ETOOMANYREFS, EWOULDBLOCK

from ._backend import CONSTANTS, LINUX
from ._scratch import (
    CMSG_DATA,
    CMSG_LEN,
    CONTROLLEN,
    IOV_LEN,
    ONE_LEN,
    ONE_SPACE,
    OUTGOING_DATA,
    keep_outgoing,
    outgoing,
    take_outgoing,
)
from ._send import MSG_NOSIGNAL, explain, gather, lib_sendmsg, pack_fds, put_rights
from ._sock import INT_MAX, Socket, getsockopt, os_error, take_errno
from .errors import raised_in
from .frames import HEADER_SIZE, LITTLE, LITTLE_HEADERS, MAX_PACKET, PER_MESSAGE, PLAIN_HEADERS, encode, header

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket
    from collections.abc import Iterable
    from typing import Any, TypeVar

    from ._sock import FileDescriptorLike
    from .frames import BytesLike

    Piece = tuple[list[BytesLike], list[int]]
    Error = TypeVar("Error", bound=Exception)

WAIT = (EAGAIN, EWOULDBLOCK, ETOOMANYREFS)
SO_SNDBUF = CONSTANTS["SO_SNDBUF"]
SMALL = 2048  # bytes. An sk_buff has room for half of SO_SNDBUF, which is 4608 at the least, but for 64 bytes
PACKET_OVERHEAD = 64  # bytes of SO_SNDBUF that a packet may not use: 32 in Linux's unix_dgram_sendmsg
_audit = sys.audit


class Outgoing:
    """The sending half: its limits, and the frame that was begun last."""

    __slots__ = ("fd", "last", "max_data", "max_fds", "most", "packets", "per_message", "send", "sock")

    def __init__(self, sock: socket.socket, fd: int, packets: bool, max_data: int, max_fds: int) -> None:
        self.sock = sock
        self.fd = fd
        self.packets = packets
        self.max_data = max_data
        self.max_fds = max_fds
        self.per_message = PER_MESSAGE
        self.most = min(SMALL - HEADER_SIZE, max_data) if LINUX else -1
        self.send: Any = Socket.send.__get__(sock)  # of the class itself, in C: then only a handler's error has a frame
        self.last: tuple[list[int], int] | None = None  # what sendmsg returned for the last frame, and its size

    def start(
        self,
        data: BytesLike,
        fds: Iterable[FileDescriptorLike],
        flags: int,
        results: list[int],
        timeout: float | None = None,
    ) -> Sending | None:
        """Send a frame as far as goes at once: None if that is all, else what is left to `advance`.

        `results`, empty, takes what each sendmsg returns; `timeout` is the socket's, for which its own send() waits.

        LocalProtocolError past a limit; OSError (EPIPE) if an earlier frame was cut off.
        """
        if self.last is not None:
            if torn(*self.last):
                why = "the channel is closed for sending: an earlier frame was cut off in its middle"
                raise unsent(OSError(EPIPE, why))
            self.last = None
        if type(fds) is not list and type(fds) is not tuple:
            fds = list(fds)
        if type(data) is bytes and len(data) <= self.most:  # and with at most one descriptor: the most frequent
            size = HEADER_SIZE + len(data)
            if not fds and not timeout:
                frame = (PLAIN_HEADERS[len(data)] if size <= LITTLE else header(len(data), 0)) + data
                try:
                    sent = self.send(frame, flags | MSG_NOSIGNAL)  # half the time of lib_sendmsg
                except OSError as error:
                    if raised_in(error) is not START:  # a signal handler's: the frame may have gone
                        raise
                    sent = -1  # it will be met again
                return None if sent == size else self.rest(frame, -1, sent, results)
            fd: Any = fds[0] if fds else -1
            if not fds or (len(fds) == 1 and type(fd) is int and 0 <= fd <= INT_MAX and data and self.max_fds):
                head = LITTLE_HEADERS[len(fds)][len(data)] if size <= LITTLE else header(len(data), len(fds))
                frame = head + data
                _audit("socket.sendmsg", self.sock, None)
                try:
                    block = take_outgoing()
                except IndexError:
                    block = outgoing()
                block.data[0:size] = frame
                block.sizes[IOV_LEN] = size
                if fds:
                    block.ints[CMSG_DATA] = fd
                else:
                    block.lens[CONTROLLEN] = 0
                sent = lib_sendmsg(self.fd, block.msg, flags | MSG_NOSIGNAL)
                if not fds:
                    block.lens[CONTROLLEN] = ONE_SPACE
                keep_outgoing(block)
                return None if sent == size else self.rest(frame, fd, sent, results)
        try:
            raw = pack_fds(fds) if fds else b""
            return Sending(self, self.encode(data, raw), results, data, raw, fds)
        except OSError as error:
            unsent(error)
            raise

    def rest(self, frame: bytes, fd: int, sent: int, results: list[int]) -> Sending:
        """What is left of a small frame after its first send."""
        if sent > 0:
            results.append(sent)
            return Sending(self, [([memoryview(frame)[sent:]], [])], results)
        return Sending(self, [([frame], [fd] if fd >= 0 else [])], results)

    def encode(self, data: BytesLike, raw: bytes) -> list[Piece]:
        """The messages to send."""
        fds = array("i", raw).tolist() if raw else []
        limits = self.max_data, self.max_fds
        packet = None
        if self.packets:
            room = getsockopt(self.fd, SO_SNDBUF) - PACKET_OVERHEAD
            packet = max(HEADER_SIZE, min(room, MAX_PACKET))
        return encode(data, fds, max_data=limits[0], max_fds=limits[1], per_message=self.per_message, packet=packet)


START = Outgoing.start.__code__


class Sending:
    """One frame on its way."""

    __slots__ = ("data", "given", "out", "pieces", "raw", "results", "size")

    def __init__(
        self,
        out: Outgoing,
        pieces: list[Piece],
        results: list[int],
        data: BytesLike = b"",
        raw: bytes = b"",
        given: object = None,
    ) -> None:
        self.out = out
        self.pieces = pieces
        self.results = results  # of each sendmsg
        self.data = data
        self.raw = raw
        self.given = given  # the files that may be known to nobody else, and would be closed
        self.size = sum(filter((0).__lt__, results)) + sum(len(part) for buffers, _ in pieces for part in buffers)
        out.last = results, self.size

    def sent(self) -> int:
        """The bytes that have gone."""
        return sum(filter((0).__lt__, self.results))

    def advance(self, flags: int) -> int:
        """Send what can go now: 0 if that is all, else the errno to wait for; any other is raised.

        EAGAIN, or ETOOMANYREFS: the user's descriptors in flight are too many, until the receiver takes some.
        """
        while self.pieces:
            buffers, fds = self.pieces[0]
            raw = array("i", fds).tobytes() if fds else b""
            sent = self.push(buffers, raw, flags)
            if sent >= 0:
                rest = left(buffers, sent)
                if rest:
                    self.pieces[0] = rest, []
                else:
                    del self.pieces[0]
                continue
            code = take_errno()
            if code in WAIT:
                return code
            if code != EINTR and not self.smaller(code):
                raise explain(os_error(code, self.out.fd), self.out.fd, raw)
        self.out.last = None
        return 0

    def explained(self, error: OSError) -> OSError:
        """`error` with what it means for the channel: `bytes_sent`, and in words if a part has gone."""
        sent = self.sent()
        if sent and error.errno is not None:
            why = f"{sent} of the {self.size} bytes of a frame had gone: the channel is closed for sending"
            error.strerror = f"{error.strerror}; {why}"
            error.args = (error.errno, error.strerror)
        error.bytes_sent = sent  # type: ignore[attr-defined]
        return error

    def release(self) -> None:
        """Let go of the caller's memory, for as long as an exception's traceback may know this object."""
        self.pieces, self.data, self.given = [], b"", None

    def push(self, buffers: list[BytesLike], raw: bytes, flags: int) -> int:
        """One sendmsg(2); what it returned."""
        try:
            block = take_outgoing()
        except IndexError:
            block = outgoing()
        _audit("socket.sendmsg", self.out.sock, None)
        keep = gather(block, [b"".join(buffers)] if sum(map(len, buffers)) <= OUTGOING_DATA else buffers)
        keep = keep, put_rights(block, raw)
        self.results.extend(map(lib_sendmsg, (self.out.fd,), (block.msg,), (flags | MSG_NOSIGNAL,)))
        if keep != (None, None):
            block.reset()
        else:
            block.lens[CMSG_LEN], block.lens[CONTROLLEN] = ONE_LEN, ONE_SPACE
        keep_outgoing(block)
        return self.results[-1]

    def smaller(self, code: int) -> bool:
        """Whether to try again with less at once, after a sendmsg that took nothing."""
        buffers, fds = self.pieces[0]
        size = sum(map(len, buffers))
        if code == EMSGSIZE and self.out.packets and size > HEADER_SIZE:
            half = max(HEADER_SIZE, size // 2)
            whole = memoryview(b"".join(buffers))
            self.pieces[0:1] = [([whole[:half]], fds), ([whole[half:]], [])]
            return True
        if code == ENOMEM and len(fds) > 1 and self.raw and not self.sent():  # musl takes fewer
            self.out.per_message = len(fds) // 2
            self.pieces = self.out.encode(self.data, self.raw)
            return True
        return False


def unsent(error: Error) -> Error:
    """`error`, which says by `bytes_sent` that nothing has gone."""
    error.bytes_sent = 0  # type: ignore[attr-defined]
    return error


def torn(results: list[int], size: int) -> bool:
    """Whether a part has gone, and not all."""
    return 0 < sum(filter((0).__lt__, results)) < size


def left(buffers: list[BytesLike], sent: int) -> list[BytesLike]:
    """What is left of `buffers` after so many bytes went."""
    rest: list[BytesLike] = []
    for part in buffers:
        if sent < len(part):
            rest.append(memoryview(part)[sent:] if sent else part)
            sent = 0
        else:
            sent -= len(part)
    return rest

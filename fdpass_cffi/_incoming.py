"""One direction of a channel: from the socket into the decoder, one receive at a time, never waiting by itself.

Law: no descriptor is lost to a full table. Linux installs those that fit and discards the rest, and no call tells
cheaply how many would fit. But descriptors that a receive with MSG_PEEK installs are as good as any, and the
originals stay queued. So they are received by peeking; and only if all came, the same bytes are read
once more, without room for descriptors, which takes them off the queue. A full table leaves the
frame unread, whatever other threads do to the table meanwhile. The price is one short read(2) for a receive that may
bring descriptors: one for many small frames at once, none for the rest of a large one.
After a small frame without descriptors the next is expected to be one too, and is peeked at without room for any, by
the socket's own recvmsg, for two thirds of the price. MSG_CTRUNC tells if some are there, before anything is taken.
A peek that fills its buffer may show descriptors that come later, since the kernel looks on for some. The bytes are
then received without room for any, and MSG_CTRUNC tells whether those that were shown came with them.
Elsewhere a peek installs nothing, and what does not fit is lost: TruncatedError.

Law: an exception anywhere leaves the state telling what happened. The calls that take bytes off the queue keep their
result by `list.extend(map(call, ...))`, one call of a C function, or write over UNREAD; `recover` goes on from there.
"""

from __future__ import annotations

import os
from errno import EINTR, EMFILE, ENFILE

from ._backend import LINUX
from ._close import close_all
from ._receive import (
    abandon,
    arrived,
    carried,
    data_room,
    give_back,
    items,
    lib_recvmsg,
    only_item,
    received_data,
)
from ._scratch import (
    CMSG_DATA,
    CONTROL_ROOM,
    CONTROLLEN,
    COUNT,
    DATA,
    FLAGS,
    INCOMING_DATA,
    LOW_FLAGS,
    MSG_CMSG_CLOEXEC,
    NAMELEN,
    NOT_ARRIVED,
    PYPY,
    Block,
    incoming,
    incoming_pool,
    keep_incoming,
    take_incoming,
)
from ._sock import MSG_DONTWAIT, os_error, take_errno
from .errors import LocalProtocolError, ProtocolError, TruncatedError
from .fd import OwnedFd, adopt, adopt_shared, close_owned
from .frames import HEADER_SIZE, LITTLE, PLAIN_HEADERS, Decoder, only_payload, read_header
from .message import LOST, MSG_CTRUNC, MSG_PEEK, MSG_TRUNC, Message, plain_message, recv_message

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, NoReturn, Union

    Frame = tuple[bytes, list[OwnedFd]]
    # How many bytes were peeked, the descriptors that came with them, and the bytes once they are off the queue. Or
    # these are in the data of a block, or in a bytearray, whose beginning is UNREAD until then.
    Record = Union[list[bytes], Block, bytearray]
    Peeked = tuple[int, list[OwnedFd], Record]

LARGE = 1 << 18  # bytes of one receive in the middle of a large frame; about what the kernel's buffer holds
MOST_FDS = 1000  # of one receive: no kernel takes as many in a message
peek_pool: list[Block] = []  # blocks whose iov_len is INCOMING_DATA
NO_FDS: list[int] = []  # which nobody fills
NO_OWNERS: list[OwnedFd] = []
LOOKS = LINUX and not PYPY  # whose recvmsg is slow
PEEKING = MSG_PEEK | MSG_CMSG_CLOEXEC
PEEKING_NOW = PEEKING | MSG_DONTWAIT
UNREAD = 255  # the first byte: no frame that fits into a block begins like this
_read = os.read
# Of a peek, after which all is still there. Unknown is why if the table has had room again when it was asked.
TABLES = {"table-full": EMFILE, "system-table-full": ENFILE, "unknown": EMFILE}


class Incoming:
    """What has been received and not been handed out."""

    __slots__ = (
        "back",
        "between",
        "decoder",
        "fault",
        "fd",
        "given",
        "into",
        "look",
        "max_data",
        "max_fds",
        "memory",
        "most",
        "packets",
        "plain",
        "reading",
        "staged",
    )

    def __init__(self, fd: int, packets: bool, max_data: int, max_fds: int) -> None:
        self.fd = fd
        self.reading = (fd,)  # the first arguments of one read(2)
        self.packets = packets  # SOCK_SEQPACKET
        self.decoder: Decoder[OwnedFd] = Decoder(max_data, max_fds)
        self.max_data = max_data
        self.max_fds = max_fds
        self.between = LINUX  # nothing of a frame is here
        self.given: Frame | None = None  # by the decoder, and not taken yet
        self.fault: OSError | ValueError | None = None
        self.back: list[Message] = []  # whose recv was left by an exception
        self.into: Any  # recv_into of its socket, which Ends knows only when the limits here are right
        self.look: Any  # its recvmsg
        self.plain = False  # the last frame was small and had no descriptors, and so will be the next
        self.most = min(LITTLE, HEADER_SIZE + max_data)  # bytes of such a frame
        self.memory = bytearray(LITTLE)  # where it is read into
        # A receive on its way into the decoder, or a message that needs none.
        self.staged: Peeked | Taken | Message | None = None

    def next(self, flags: int, timeout: float | None) -> Message | None:
        """The next message, which stays here too until it is `taken`, or None: call again.

        `timeout` is the socket's: for a longer one than 0 its own recv_into() would call poll(2) first.

        BlockingIOError if nothing is there (and `flags` has MSG_DONTWAIT); EOFError; ProtocolError; OSError EMFILE or
        ENFILE if there is no room for the descriptors that come next: then they are still queued.
        """
        if self.staged is not None:
            self.recover()
        if self.back:
            return self.back[0]
        if not self.between:
            return self.decoded(flags)
        # A frame that is all there is in the socket, by far the most frequent, spares the decoder, here or in `peeked`.
        if self.plain and not timeout:
            data, _, msg_flags, _ = self.look(LITTLE, 0, MSG_PEEK | MSG_DONTWAIT if flags else MSG_PEEK)
            got = len(data)
            if HEADER_SIZE <= got <= self.most and not msg_flags and data.startswith(PLAIN_HEADERS[got - HEADER_SIZE]):
                memory = self.memory
                memory[0] = UNREAD
                self.staged = got, NO_OWNERS, memory
                read = self.into(memory, got, flags)
                if read == got and memory.startswith(data):
                    message = self.staged = plain_message(data[HEADER_SIZE:], [])
                    return message
                self.staged = got, [], [bytes(memory[:read])]
                self.feed()
                return self.decoded(flags)
            self.plain = False
        return self.peeked(flags, timeout)

    def peeked(self, flags: int, timeout: float | None) -> Message | None:
        """`next`, with room for descriptors."""
        block = None
        eaten: list[bytes] | None = None
        numbers: list[int] | None = None
        fds: list[OwnedFd] = []
        try:
            try:
                block = peek_pool.pop()
            except IndexError:
                block = incoming()
            lens, ints = block.lens, block.ints
            lens[CONTROLLEN] = CONTROL_ROOM
            got = lib_recvmsg(self.fd, block.msg, PEEKING_NOW if flags else PEEKING)
            if got < 0:
                self.failed()
                numbers = []
                peek_pool.append(block)
                return None
            if not lens[CONTROLLEN]:
                numbers = NO_FDS
                lost = block.octets[LOW_FLAGS] & LOST
            elif block.head[:] == block.usual:
                numbers = [ints[CMSG_DATA]]
                lost = 0
            else:
                numbers = only_item(block)
                lost = block.octets[LOW_FLAGS] & LOST
                if numbers is None:
                    numbers, got = arrived(block), 0  # and so for the decoder
            ints[NAMELEN] = NOT_ARRIVED
            if lost or not HEADER_SIZE <= got < INCOMING_DATA or (numbers and len(numbers) > self.max_fds):
                peek_pool.append(block)
                close_all(numbers)
                return self.decoded(flags)
            if numbers:
                fds = adopt_shared(numbers)
            data = block.data
            size, count = read_header(data)
            if timeout or count != len(fds) or not count <= size == got - HEADER_SIZE <= self.max_data:
                peek_pool.append(block)
                eaten = []
                self.staged = got, fds, eaten
            else:
                block.octets[DATA] = UNREAD
                self.staged = got, fds, block
        except BaseException:
            abandon(block, numbers, peek_pool)
            close_owned(fds)
            raise
        if eaten is None:
            read = self.into(data, got, flags)
            if read == got and (not ints[COUNT] if not fds else read_header(data) == (size, count)):
                self.plain = LOOKS and numbers is NO_FDS and got <= LITTLE
                message = self.staged = plain_message(data[HEADER_SIZE:got], fds)
                peek_pool.append(block)
                return message
            self.staged = got, fds, [data[0:read]]
        else:
            eaten.extend(map(_read, self.reading, (got,)))
            payload = only_payload(eaten[0], len(fds), self.max_data)
            if payload is not None:
                return plain_message(payload, fds)
        self.feed()
        return self.decoded(flags)

    def decoded(self, flags: int) -> Message | None:
        """`next` by way of the decoder."""
        frame = self.decoder.front()
        if frame is None:
            self.fill(flags)
            return None
        self.given = frame
        return plain_message(frame[0], frame[1])

    def taken(self, message: Message) -> None:
        """The message that `next` gave is the caller's now."""
        if self.staged is not None:
            self.staged = None
        elif self.back and self.back[0] is message:
            del self.back[0]
        else:
            self.take_frame(message)

    def put_back(self, message: Message) -> None:
        """The message that `next` gave is to be given once more; it may have been taken, or not."""
        if self.staged is message or (isinstance(self.staged, tuple) and self.staged[1] is message.fds):
            return
        if not any(other is message for other in self.back):
            self.back.insert(0, message)
        self.take_frame(message)

    def take_frame(self, message: Message) -> None:
        """The frame of `message` is nobody's business here any more, if it is the last that the decoder gave.

        It may not be: after a recv has given up its turn, a signal handler's may have come to the next frame.
        """
        if self.given is not None and self.given[1] is message.fds:
            self.decoder.take(self.given)
            self.given = None

    def fill(self, flags: int) -> None:
        """Feed one receive to the decoder, whose next_frame must have given None.

        BlockingIOError if nothing is there (and `flags` has MSG_DONTWAIT); EOFError; ProtocolError; OSError EMFILE or
        ENFILE if there is no room for the descriptors that come next: then they are still queued.
        """
        missing, fds = self.decoder.wanted()
        if LINUX and not self.between and self.decoder.idle():
            self.between = True  # the next call of `next` peeks
            return
        if not fds and not self.packets:
            self.take(min(missing, LARGE), flags)
        elif LINUX:
            self.peek(flags)
        else:
            self.take(INCOMING_DATA, flags)

    def failed(self) -> None:
        """Raise what a failed recvmsg means, unless it is to be tried again."""
        code = take_errno()
        if code != EINTR:
            raise os_error(code, self.fd)

    def peek(self, flags: int) -> None:
        """Receive without a risk for the descriptors, as the head of this file says."""
        try:
            message = recv_message(self.fd, INCOMING_DATA, MOST_FDS, flags | MSG_PEEK)
        except TruncatedError as error:
            self.refuse(error, flags)
            return
        if message.pidfd is not None:
            message.pidfd.close()
        if message.flags & MSG_TRUNC:
            close_owned(message.fds)
            self.fail(ProtocolError(f"a packet of more than {INCOMING_DATA} bytes"))
        if not message.data and not message.fds:
            self.decoder.eof()
        if message.fds and len(message.data) == INCOMING_DATA and not self.packets:
            shown: list[OwnedFd] | None = message.fds
            if message.pidfd or message.credentials or message.security or message.ancdata:  # MSG_CTRUNC may mean these
                close_owned(message.fds)
                shown = None  # there was room for them just now
            self.take(INCOMING_DATA, flags, shown)
            return
        eaten: list[bytes] = []
        self.staged = len(message.data), message.fds, eaten
        eaten.extend(map(_read, (self.fd,), (len(message.data) or 1,)))
        self.feed()

    def refuse(self, error: TruncatedError, flags: int) -> None:
        """There is no room for the next descriptors: receive a frame without any that comes before them, or raise."""
        code = TABLES.get(error.reason)
        if code is None:  # more than a message can have
            raise error
        if self.decoder.idle() and not self.packets and bare(error.data[:HEADER_SIZE]):
            self.take(HEADER_SIZE, flags)
            return
        why = f"{os.strerror(code)}: the next descriptors do not fit in the table, and wait in the socket"
        raise OSError(code, why) from None

    def take(self, size: int, flags: int, shown: list[OwnedFd] | None = None) -> None:
        """Receive where no descriptor may come, or where a peek does not install any, or has `shown` which may come."""
        staged = self.staged = Taken(size, shown)
        while True:
            staged.block.lens[CONTROLLEN] = CONTROL_ROOM if shown is None else 0
            arguments = (self.fd,), (staged.block.msg,), (flags | MSG_CMSG_CLOEXEC,)
            staged.got.extend(map(lib_recvmsg, *arguments))
            if staged.got[0] >= 0:
                break
            code = take_errno()
            staged.got.clear()
            if code != EINTR:
                self.staged = None
                close_owned(shown or [])
                give_back(staged.block, incoming_pool)
                raise os_error(code, self.fd)
        self.feed()

    def feed(self) -> None:
        """What is staged, into the decoder."""
        staged = self.staged
        if staged is None or isinstance(staged, Message):
            return
        data, fds = staged.open(self) if isinstance(staged, Taken) else self.eaten(*staged)
        if not data and not fds:
            self.staged = None
            self.decoder.eof()
        self.between = False
        self.decoder.feed(data, fds)
        self.staged = None
        if isinstance(staged, Taken):
            keep_incoming(staged.block)

    def eaten(self, size: int, fds: list[OwnedFd], record: Record) -> tuple[bytes, list[OwnedFd]]:
        """The (data, descriptors) of a receive that was peeked and read."""
        if isinstance(record, list):
            parts = record
        else:
            parts = [bytes(record[0:size]) if isinstance(record, bytearray) else record.data[0:size]]
        data = parts[0]
        while len(data) < size and not self.packets and parts[-1]:
            parts.extend(map(_read, (self.fd,), (size - len(data),)))
            data = b"".join(parts)
        if len(data) != size:
            self.fail(LocalProtocolError("another thread or process has read from the socket of this channel"))
        return data, fds

    def recover(self) -> None:
        """Go on after an exception struck in the middle of a receive, and left it in `staged`."""
        staged = self.staged
        if isinstance(staged, Message):
            if not any(other is staged for other in self.back):
                self.back.append(staged)
            self.staged = None
            return
        if staged is None:
            return
        try:
            self.decoder.wanted()
        except LocalProtocolError:  # it was fed
            self.staged = None
            return
        if staged.happened() if isinstance(staged, Taken) else is_read(staged[2]):
            self.feed()
        else:
            self.discard()

    def discard(self) -> None:
        """Close what is staged."""
        staged, self.staged = self.staged, None
        if isinstance(staged, Taken):
            close_owned(staged.owned())
        elif staged is not None:
            close_owned(staged.fds if isinstance(staged, Message) else staged[1])

    def fail(self, error: OSError | ValueError) -> NoReturn:
        """A fault that the decoder cannot see; it is final."""
        self.fault = error
        raise error

    def close(self) -> None:
        """Close every descriptor that was not handed out, and forget the socket, which is about to be closed.

        A thread that still waits must not go on with the next file of that number.
        """
        self.fd, self.reading = -1, (-1,)
        try:
            self.discard()
        finally:
            close_owned([*(one for message in self.back for one in message.fds), *self.decoder.drain()])


def is_read(record: Record) -> bool:
    """Whether the bytes that were peeked are off the queue."""
    if isinstance(record, list):
        return bool(record)
    return bool((record[0] if isinstance(record, bytearray) else record.octets[DATA]) != UNREAD)


def bare(head: bytes) -> bool:
    """Whether a frame that begins like this has no descriptors."""
    decoder: Decoder[OwnedFd] = Decoder()
    try:
        decoder.feed(head)
        return decoder.next_frame() is not None or decoder.wanted()[1] == 0
    except ProtocolError:  # then it is one whatever follows
        return True


class Taken:
    """A receive whose data and descriptors are in the memory of `block`, if `got` has its result.

    But for descriptors that a peek has `shown`: then there is no room for them, and MSG_CTRUNC says that they came.
    """

    __slots__ = ("block", "count", "fds", "got", "memory", "shown")

    def __init__(self, size: int, shown: list[OwnedFd] | None) -> None:
        try:
            self.block = take_incoming()
        except IndexError:
            self.block = incoming()
        self.memory: Any = data_room(self.block, size)
        self.got: list[int] = []
        self.shown = shown
        self.fds = shown
        self.count = len(shown or ())  # of those that are a frame's

    def happened(self) -> bool:
        """Whether the bytes are off the queue."""
        return bool(self.got) and self.got[0] >= 0

    def open(self, to: Incoming) -> tuple[bytes, list[OwnedFd]]:
        """(data, descriptors)."""
        block = self.block
        data = received_data(block, self.memory, self.got[0])
        fds = self.owned()
        lost = block.ints[FLAGS] & LOST
        if self.shown is not None:
            if lost & MSG_CTRUNC:
                lost ^= MSG_CTRUNC
            else:
                close_owned(fds)
                fds = []
            block.ints[NAMELEN] = NOT_ARRIVED
        if lost:
            to.fail(ProtocolError("descriptors or bytes were lost on receipt: there were too many"))
        return data, fds

    def owned(self) -> list[OwnedFd]:
        """The descriptors that came. A pidfd is the kernel's addition (SO_PASSPIDFD), and no frame's: it is closed."""
        if self.fds is None:
            rights, pidfds = carried(items(self.block)[0]) if self.happened() else ([], [])
            numbers = rights + [number for number in pidfds if number >= 0]  # less than 0: it could not be made
            self.count = len(rights)
            self.fds = adopt(numbers) if numbers else []
            self.block.ints[NAMELEN] = NOT_ARRIVED
        if len(self.fds) > self.count:
            close_owned(self.fds[self.count :])
            del self.fds[self.count :]
        return self.fds

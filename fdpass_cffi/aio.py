"""AF_UNIX sockets and descriptors in asyncio (uvloop too) and trio, by way of anyio: AsyncChannel, serve, the drop-ins.

Law: a call is tried first, and awaited for only on EAGAIN; what has moved bytes or descriptors never awaits
afterwards. So a cancelled receive has taken nothing. Nothing here needs O_NONBLOCK, which all would
see who share the open socket: MSG_DONTWAIT does it. (uvloop sets it all the same on what it waits for.)

anyio is in the extra `async`, version 4.10 or later.
"""

from __future__ import annotations

import logging
import os
import socket
from contextlib import ExitStack, suppress
from errno import ECONNABORTED, EMFILE, ENFILE, ENOBUFS, ENOMEM, ETOOMANYREFS
from itertools import count

import anyio
from anyio.lowlevel import checkpoint

from . import message as _message
from . import msg as _msg
from ._listening import folder_of, listening, locked
from ._send import each, each_fd
from ._sock import MSG_DONTWAIT, fileno, ours
from .channel import MINE, PAUSE, Ends, release
from .frames import MAX_DATA, MAX_FDS, Decoder

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable
    from typing import Any, NoReturn, SupportsIndex, TypeVar

    from anyio.abc import TaskStatus
    from typing_extensions import Buffer, Self

    from ._outgoing import Sending
    from ._send import ControlMessages
    from ._sock import FileDescriptorLike
    from .channel import Path
    from .frames import BytesLike
    from .message import Message

    T = TypeVar("T")

SHORTAGES = (EMFILE, ENFILE, ENOBUFS, ENOMEM)
SHORT_PAUSE = 0.1  # seconds until the next accept when the table is full
TRIES = 1000  # to be the only server that starts in a folder, PAUSE between them
TURN = 128  # operations without a wait, until other tasks get their turn
NOW = float("-inf")  # the deadline of what is cancelled
_log = logging.getLogger(__name__)
_calls = count(1)  # of the drop-ins, in all tasks: who always finds something to do comes to a multiple of TURN


class AsyncChannel(Ends):
    """Channel for asyncio and trio: the same messages, limits, errors and laws, awaited.

    `sock` is a connected AF_UNIX socket, SOCK_STREAM or SOCK_SEQPACKET, as socket.socket, OwnedFd or int, and the
    channel's from now on; its timeout does not count, cancel scopes do. Cancelling a recv, wherever it waits, loses
    nothing: the next one returns the same message. A send cancelled before its first byte never was; one cancelled
    after it has closed the channel for sending, and every further send is a BrokenPipeError which says so. One task
    may send while another receives; a second one that does the same gets anyio.BusyResourceError.

    >>> async def main():
    ...     a, b = AsyncChannel.pair()
    ...     async with a, b:
    ...         await a.send(b"take this", [0])
    ...         with await b.recv() as message:
    ...             return message.data, len(message.fds)
    >>> anyio.run(main)
    (b'take this', 1)
    """

    _unwaited = 0

    @classmethod
    def pair(cls, *, max_data: int = MAX_DATA, max_fds: int = MAX_FDS) -> tuple[Self, Self]:
        """Two channels connected to each other, by socketpair(2)."""
        a, b = socket.socketpair(socket.AF_UNIX)
        return cls(a, max_data=max_data, max_fds=max_fds), cls(b, max_data=max_data, max_fds=max_fds)

    async def send(self, data: BytesLike, fds: Iterable[FileDescriptorLike] = ()) -> None:
        """Send one message, as Channel.send, waiting where the peer does not take it."""
        turn = self._sending
        results: list[int] = []
        try:
            try:
                if turn.setdefault(MINE, results) is not results:
                    raise anyio.BusyResourceError("sending on")
                self._unwaited += 1
                sock = self._sock
                if sock is None or self._unwaited > TURN:
                    sock = await self._turn()
                frame = self._outgoing.start(data, fds, MSG_DONTWAIT, results, sock.gettimeout())
                if frame is not None:
                    try:
                        await self._finish(frame)
                    except OSError as error:
                        raise frame.explained(error) from None
                    finally:
                        frame.release()
                del turn[MINE]
            except BaseException:
                release(turn, results)
                raise
        except BaseException:
            release(turn, results)
            raise

    async def _finish(self, frame: Sending) -> None:
        """Send the rest, awaiting."""
        while code := frame.advance(MSG_DONTWAIT):
            if code == ETOOMANYREFS:  # nothing tells when the receiver has taken some
                await anyio.sleep(PAUSE)
            else:
                await self._ready(anyio.wait_writable)
            self._live()

    async def recv(self) -> Message:
        """The next message, as Channel.recv; cancelling it loses nothing."""
        incoming, turn, message = self._incoming, self._receiving, None
        me: list[int] = []
        try:
            try:
                if turn.setdefault(MINE, me) is not me:
                    raise anyio.BusyResourceError("receiving from")
                self._unwaited += 1
                sock = self._sock
                if sock is None or self._unwaited > TURN:
                    sock = await self._turn()
                timeout = sock.gettimeout()  # for which the socket's own calls would wait
                try:
                    message = incoming.next(MSG_DONTWAIT, timeout)
                except BlockingIOError as error:
                    if not ours(error):
                        raise
                    await self._ready(anyio.wait_readable)
                    self._live()
                if message is None:
                    message = await self._later(timeout)
                if incoming.staged is message:  # `taken`, without a call of it
                    incoming.staged = None
                else:
                    incoming.taken(message)
                del turn[MINE]
                return message
            except BaseException as error:
                self._stopped(error, message)
                release(turn, me)
                raise
        except BaseException:
            release(turn, me)
            raise

    async def _later(self, seconds: float | None) -> Message:
        """The next message, not there at once; `seconds` is the socket's timeout. No loop in recv: see Channel."""
        message = None
        while message is None:
            try:
                message = self._incoming.next(MSG_DONTWAIT, seconds)
                if message is None:
                    self._unwaited += 1  # a peer in a hurry need not let it wait even once
                    if self._unwaited > TURN:
                        await self._turn()
            except BlockingIOError as error:
                if not ours(error):
                    raise
                await self._ready(anyio.wait_readable)
                self._live()
        return message

    async def _turn(self) -> socket.socket:
        """Let other tasks run now and then, also if there is always something to do; before anything is done."""
        self._live()
        self._unwaited = 0
        await checkpoint()
        return self._live()

    async def _ready(self, wait: Callable[[int], Awaitable[None]]) -> None:
        self._unwaited = 0
        try:
            await wait(self._fd)
        except anyio.ClosedResourceError:
            self._refuse()

    def __aiter__(self) -> Self:
        """The messages that come, until the peer closes."""
        return self

    async def __anext__(self) -> Message:
        try:
            return await self.recv()
        except EOFError as error:
            if not ours(error):
                raise
            raise StopAsyncIteration from None

    def close(self) -> None:
        """Close the socket, and every descriptor that was not handed out; a task that waits gets an OSError (EBADF)."""
        self._shut()

    def _shut(self) -> None:
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            with suppress(RuntimeError):  # no event loop runs, and so no task waits
                anyio.notify_closing(fd)
        super()._shut()

    async def aclose(self) -> None:
        """close(), for those who close all things this way."""
        self.close()

    async def __aenter__(self) -> Self:
        self._live()
        return self

    async def __aexit__(self, *exc: object) -> None:
        self.close()


async def connect(path: Path, *, max_data: int = MAX_DATA, max_fds: int = MAX_FDS) -> AsyncChannel:
    """A channel to the server that listens at `path`; see connect(2) for the errors."""
    sock = socket.socket(socket.AF_UNIX)
    try:
        sock.setblocking(False)
        while True:
            try:
                sock.connect(os.fspath(path))
                break
            except BlockingIOError as error:  # its queue is full; nothing tells when it is not
                if not ours(error):
                    raise
                await anyio.sleep(SHORT_PAUSE)
        return AsyncChannel(sock, max_data=max_data, max_fds=max_fds)
    except BaseException:
        sock.close()
        raise


# Servers


async def serve(
    handler: Callable[[AsyncChannel], Awaitable[object]],
    path: Path,
    *,
    max_connections: int = 100,
    max_data: int = MAX_DATA,
    max_fds: int = MAX_FDS,
    task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED,
) -> NoReturn:
    """Listen at `path`, and await `handler(channel)` for each client, all at once; until it is cancelled.

    The socket at `path` is its owner's alone (0600) from the beginning, replaces a stale one, and is removed at the
    end; OSError EADDRINUSE if a server listens there (of several that start at once, all but one are refused) or it is
    no socket. At most `max_connections` (1 or more) handlers run; further clients wait in the listen queue. ValueError
    for this or another limit that cannot be. The channel is closed when its handler ends. A handler's exception is
    logged, and ends nothing else; only what is no Exception (KeyboardInterrupt, SystemExit) ends the server.
    `task_status` is for anyio's TaskGroup.start: it listens when that returns.
    """
    if max_connections < 1:
        raise ValueError(f"max_connections: {max_connections} is less than 1")
    Decoder(max_data, max_fds)  # checks them, before there is a client
    free = anyio.Semaphore(max_connections)

    async def attend(sock: socket.socket) -> None:
        try:
            with sock:
                async with AsyncChannel(sock, max_data=max_data, max_fds=max_fds) as channel:
                    await handler(channel)
        except anyio.get_cancelled_exc_class():
            if anyio.current_effective_deadline() == NOW:
                raise
            _log.warning("a handler of %r was cancelled, and not by the server", path)
        except BaseException as error:  # noqa: BLE001 - whatever a handler raises is its own affair
            others = own_affair(error, path)
            if others is not None:
                raise others from None
        finally:
            free.release()

    with ExitStack() as stack:
        with folder_of(os.fspath(path)) as folder:
            for _ in range(TRIES):  # anybody who can read the folder can keep it locked
                if locked(folder):
                    break
                await anyio.sleep(PAUSE)
            listener = stack.enter_context(listening(os.fspath(path)))
        async with anyio.create_task_group() as clients:
            task_status.started()
            while True:
                await free.acquire()
                clients.start_soon(attend, await accept(listener))
    raise AssertionError("unreachable")


def own_affair(error: BaseException, path: Path) -> BaseException | None:
    """Log what a handler raised; what is left of it for the server. Of a group that may be a cancellation."""
    failed: BaseException | None = error
    others: BaseException | None = None
    split = getattr(error, "split", None)
    if split is not None:
        failed, others = split(Exception)
    elif not isinstance(error, Exception):
        failed, others = None, error
    if failed is not None:
        _log.error("a handler of %r failed", path, exc_info=failed)
    return others


async def accept(listener: socket.socket) -> socket.socket:
    """The next connection, whatever is short just now."""
    while True:
        try:
            return listener.accept()[0]
        except BlockingIOError:
            await anyio.wait_readable(listener)
        except OSError as error:
            if error.errno in SHORTAGES:
                _log.warning("accept: %s", error)
                await anyio.sleep(SHORT_PAUSE)
            elif error.errno != ECONNABORTED:
                raise


# The drop-ins


async def sendmsg(
    sock: FileDescriptorLike,
    buffers: Iterable[Buffer],
    ancdata: ControlMessages = (),
    flags: int = 0,
    address: object = None,
) -> int:
    """`sendmsg` of this package, awaited. Cancelled, nothing was sent."""
    buffers = each("buffers", buffers, "bytes-like objects")
    ancdata = each("ancdata", ancdata, "(cmsg_level, cmsg_type, data)")
    return await _sent(sock, flags, lambda now: _msg.sendmsg(sock, buffers, ancdata, now, address))


async def send_fds(
    sock: FileDescriptorLike,
    buffers: Iterable[Buffer],
    fds: Iterable[FileDescriptorLike],
    flags: int = 0,
    address: object = None,
) -> int:
    """`send_fds` of this package, awaited: the number of bytes sent. Cancelled, nothing was sent."""
    buffers, fds = each("buffers", buffers, "bytes-like objects"), each_fd(fds)
    return await _sent(sock, flags, lambda now: _msg.send_fds(sock, buffers, fds, now, address))


async def recvmsg(
    sock: FileDescriptorLike, bufsize: SupportsIndex, ancbufsize: SupportsIndex = 0, flags: int = 0
) -> tuple[bytes, list[tuple[int, int, bytes]], int, Any]:
    """`recvmsg` of this package, awaited. Cancelled, nothing was received."""
    return await _received(sock, flags, lambda now: _msg.recvmsg(sock, bufsize, ancbufsize, now))


async def recvmsg_into(
    sock: FileDescriptorLike, buffers: Iterable[Buffer], ancbufsize: SupportsIndex = 0, flags: int = 0
) -> tuple[int, list[tuple[int, int, bytes]], int, Any]:
    """`recvmsg_into` of this package, awaited. Cancelled, nothing was received."""
    buffers = each("buffers", buffers, "read-write bytes-like objects")
    return await _received(sock, flags, lambda now: _msg.recvmsg_into(sock, buffers, ancbufsize, now))


async def recv_fds(
    sock: FileDescriptorLike, bufsize: SupportsIndex, maxfds: SupportsIndex, flags: int = 0
) -> tuple[bytes, list[int], int, Any]:
    """`recv_fds` of this package, awaited: (data, fds, msg_flags, address). Cancelled, nothing was received."""
    return await _received(sock, flags, lambda now: _msg.recv_fds(sock, bufsize, maxfds, now))


async def recv_message(
    sock: FileDescriptorLike, bufsize: SupportsIndex, maxfds: SupportsIndex, flags: int = 0
) -> Message:
    """`recv_message` of this package, awaited. Cancelled, nothing was received."""
    return await _received(sock, flags, lambda now: _message.recv_message(sock, bufsize, maxfds, now))


async def _sent(sock: FileDescriptorLike, flags: int, call: Callable[[int], T]) -> T:
    return await _tried(sock, flags, call, anyio.wait_writable)


async def _received(sock: FileDescriptorLike, flags: int, call: Callable[[int], T]) -> T:
    return await _tried(sock, flags, call, anyio.wait_readable)


async def _tried(
    sock: FileDescriptorLike, flags: int, call: Callable[[int], T], wait: Callable[[int], Awaitable[None]]
) -> T:
    """`call` as soon as it does not block; BlockingIOError only if the caller's own flags have MSG_DONTWAIT."""
    if not next(_calls) % TURN:
        await checkpoint()
    while True:
        try:
            return call(flags | MSG_DONTWAIT)
        except BlockingIOError as error:
            if flags & MSG_DONTWAIT or not ours(error):
                raise
            await wait(fileno(sock, "wait"))

"""Channel: whole messages with descriptors over one connected AF_UNIX socket.

Law: a message is handed out whole, once, with all its descriptors, or it is still to be received: whatever stops a
recv (a timeout, a signal handler's exception, a full descriptor table) takes nothing away from the next one.
The protocol is in frames.py; here bytes are moved and waited for.
"""

from __future__ import annotations

import os
import socket
from errno import EBADF, ETIMEDOUT, ETOOMANYREFS
from time import monotonic, sleep

from ._backend import CONSTANTS
from ._close import Unreturned, gettrace
from ._incoming import Incoming
from ._outgoing import Outgoing, unsent
from ._send import NOT_UNIX, SOCK_STREAM
from ._sock import (
    AF_UNIX,
    IN,
    MSG_DONTWAIT,
    OUT,
    SO_TYPE,
    Socket,
    Timeout,
    family,
    fileno,
    getsockopt,
    os_error,
    ours,
    setsockopt,
    wait,
)
from .errors import LocalProtocolError, ProtocolError
from .fd import OwnedFd
from .frames import MAX_DATA, MAX_FDS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import NoReturn, Union

    from typing_extensions import Self

    from ._outgoing import Sending
    from ._sock import FileDescriptorLike
    from .frames import BytesLike
    from .message import Message

    Path = Union[str, bytes, os.PathLike[str], os.PathLike[bytes]]
    Turn = dict[int, list[int]]

SOCK_SEQPACKET = int(socket.SOCK_SEQPACKET)
SO_OOBINLINE = CONSTANTS["SO_OOBINLINE"]
# Whose turn it is to send, or to receive: who finds the list that it has put under this key. dict.setdefault is atomic,
# and, other than a lock's acquire, tells after an exception at any point whether it has happened.
MINE = 0
ELSE = "on this channel, or the caller of this signal handler"
FOREVER = float("inf")
PAUSE = 0.001  # seconds: nothing tells when the receiver has taken descriptors in flight


class Ends:
    """What Channel and AsyncChannel have in common: a socket they own, and its two directions."""

    def __init__(
        self, sock: socket.socket | OwnedFd | int, *, max_data: int = MAX_DATA, max_fds: int = MAX_FDS
    ) -> None:
        self._sock: socket.socket | None = None
        self._fd = -1
        kind = checked(sock)
        fd = fileno(sock, "Channel")
        self._incoming = Incoming(fd, kind == SOCK_SEQPACKET, max_data, max_fds)
        self._receiving: Turn = {}
        self._sending: Turn = {}
        self._sock = sock if isinstance(sock, Socket) else owner(sock).to_socket()
        # A byte of MSG_OOB is one of the stream then. Else receives pass it over, but poll(2) goes on to call the
        # socket readable, and a peer could have every wait spin.
        setsockopt(fd, SO_OOBINLINE, 1)
        self._fd = fd
        self._incoming.into = Socket.recv_into.__get__(self._sock)
        self._incoming.look = Socket.recvmsg.__get__(self._sock)
        self._outgoing = Outgoing(self._sock, fd, kind == SOCK_SEQPACKET, max_data, max_fds)

    def fileno(self) -> int:
        """The descriptor of the socket, which stays the channel's; -1 once it is closed."""
        return self._fd

    @property
    def closed(self) -> bool:
        """Whether close() was called, or the peer broke the protocol."""
        return self._fd < 0

    def _shut(self) -> None:
        sock, self._sock, self._fd = self._sock, None, -1
        if sock is not None:
            self._outgoing.fd = -1  # as in Incoming.close
            try:
                self._incoming.close()
            finally:
                sock.close()

    def _live(self) -> socket.socket:
        if self._sock is None:
            self._refuse()
        return self._sock

    def _refuse(self) -> NoReturn:
        if self._incoming.fault is not None:
            raise unsent(self._incoming.fault)
        raise unsent(OSError(EBADF, f"{os.strerror(EBADF)}: the channel is closed"))

    def _stopped(self, error: BaseException, message: Message | None) -> None:
        """A recv is left by an exception: what it had decoded is for the next one; after a fault nothing is."""
        if message is not None:
            self._incoming.put_back(message)
        if isinstance(error, (ProtocolError, LocalProtocolError)):
            self._incoming.fault = error
            self._shut()
        elif self._sock is None:  # closed by a signal handler, amid this recv
            self._incoming.close()

    def _give_back(self, message: Message) -> list[int]:
        """The message of a recv that an exception struck at its very `return`."""
        self._incoming.back.append(message)
        if self._sock is None:
            self._incoming.close()
        return []

    def __repr__(self) -> str:
        state = "closed" if self.closed else str(self._fd)
        return f"<{type(self).__name__} {state}>"


class Channel(Ends):
    """Whole messages, each of bytes and descriptors, in both directions of a connected AF_UNIX socket.

    `sock` is a socket.socket, OwnedFd or int, SOCK_STREAM or SOCK_SEQPACKET, and the channel's from now on. Its timeout
    is one deadline for each send and each recv. `max_data` (bytes) and `max_fds` bound a message in both directions.
    SO_OOBINLINE is set on it: an urgent byte is one of the stream.

    ValueError for a socket of another family or type, and for a limit below 0 or past what a frame's header can say
    (32 bits); OSError ENOTSOCK for no socket: then it is still the caller's.

    One thread may send while another receives; two that do the same take turns, or get a RuntimeError. After fork(2)
    one process goes on using it and the others close theirs: the stream is one, and whoever reads a part
    of it has it. A child forked while another thread was in a call never gets a turn at the same.

    >>> import os
    >>> a, b = Channel.pair()
    >>> with a, b, open(os.devnull) as file:
    ...     a.send(b"take this", [file])
    ...     with b.recv() as message:
    ...         message.data, message.fds  # doctest: +ELLIPSIS
    (b'take this', [<OwnedFd ... '/dev/null'>])
    """

    @classmethod
    def pair(cls, *, max_data: int = MAX_DATA, max_fds: int = MAX_FDS) -> tuple[Self, Self]:
        """Two channels connected to each other, by socketpair(2)."""
        a, b = socket.socketpair(socket.AF_UNIX)
        return cls(a, max_data=max_data, max_fds=max_fds), cls(b, max_data=max_data, max_fds=max_fds)

    @classmethod
    def connect(
        cls, path: Path, timeout: float | None = None, *, max_data: int = MAX_DATA, max_fds: int = MAX_FDS
    ) -> Self:
        """A channel to the server that listens at `path`, its timeout in seconds; see connect(2) for the errors.

        It waits, at most for the timeout, where the server's queue is full.
        """
        deadline = FOREVER if timeout is None else monotonic() + timeout
        sock = socket.socket(socket.AF_UNIX)
        try:
            sock.setblocking(False)  # a signal that comes amid a blocking one has `socket` return unconnected
            while True:
                try:
                    sock.connect(os.fspath(path))
                    break
                except BlockingIOError as error:  # its queue is full; nothing tells when it is not
                    if timeout == 0 or not ours(error):
                        raise
                    if monotonic() >= deadline:
                        raise Timeout(ETIMEDOUT, "timed out: the server's queue is full") from None
                    sleep(PAUSE)
            sock.settimeout(timeout)
            return cls(sock, max_data=max_data, max_fds=max_fds)
        except BaseException:
            sock.close()
            raise

    def send(self, data: BytesLike, fds: Iterable[FileDescriptorLike] = ()) -> None:
        """Send one message: `data`, bytes-like, and any number of descriptors, which stay the caller's.

        LocalProtocolError (a ValueError) past `max_data` or `max_fds`: nothing was sent. An OSError (TimeoutError
        past the socket's timeout, BlockingIOError if that is 0, BrokenPipeError, ETOOMANYREFS of unix(7)) has
        `bytes_sent`: 0 if nothing went and the channel is as before, else the channel is closed for sending, as
        the message says, and every further send is a BrokenPipeError. Receiving goes on.
        """
        sock, turn = self._sock or self._live(), self._sending
        results: list[int] = []
        try:
            try:
                if turn.setdefault(MINE, results) is not results:
                    raise RuntimeError(f"another thread is sending {ELSE}")
                timeout = sock.gettimeout()
                frame = self._outgoing.start(data, fds, 0 if timeout is None else MSG_DONTWAIT, results, timeout)
                if frame is not None:
                    try:
                        self._finish(frame, timeout)
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

    def _finish(self, frame: Sending, timeout: float | None) -> None:
        """Send the rest, waiting as long as the timeout permits."""
        deadline = None
        while code := frame.advance(0 if timeout is None else MSG_DONTWAIT):
            if timeout == 0:
                raise os_error(code, self._fd)
            if deadline is None:
                deadline = FOREVER if timeout is None else monotonic() + timeout
            self._live()
            if code != ETOOMANYREFS:
                wait(self._fd, OUT, deadline)
            elif monotonic() < deadline:
                sleep(PAUSE)
            else:
                raise Timeout(ETIMEDOUT, "timed out: too many descriptors in flight, and the receiver takes none")

    def recv(self) -> Message:
        """The next message, with its descriptors in `fds`; its other fields are empty.

        EOFError: the peer has closed, after a whole message. ProtocolError: it broke the protocol or a limit, or closed
        in the middle of a message; the channel is then closed, and so are all descriptors it had sent.
        TimeoutError (BlockingIOError if the socket's timeout is 0) and OSError EMFILE, if the descriptors do
        not fit in the table, leave everything as it was: try again. ConnectionResetError: the peer
        closed without receiving all that was sent to it.
        """
        incoming, turn = self._incoming, self._receiving
        _first = message = deadline = None  # the order counts: see Unreturned
        unreturned = _first = Unreturned(self._give_back) if gettrace() is not None else None
        me: list[int] = []  # below `unreturned`, for the same reason
        try:
            try:
                if turn.setdefault(MINE, me) is not me:
                    raise RuntimeError(f"another thread is receiving {ELSE}")
                timeout = (self._sock or self._live()).gettimeout()
                flags = 0 if timeout is None else MSG_DONTWAIT
                try:
                    message = incoming.next(flags, timeout)
                except BlockingIOError as error:
                    if not ours(error):
                        raise
                    deadline = self._wait(None, error)
                if message is None:
                    message = self._later(flags, timeout, deadline)
                if incoming.staged is message:  # `taken`, without a call of it
                    incoming.staged = None
                else:
                    incoming.taken(message)
                del turn[MINE]
                if unreturned is not None:
                    unreturned.hold(message)
                return message
            except BaseException as error:
                if unreturned is not None:
                    unreturned.held = []
                self._stopped(error, message)
                release(turn, me)
                raise
        except BaseException:
            release(turn, me)
            raise

    def _later(self, flags: int, timeout: float | None, deadline: float | None) -> Message:
        """The next message, which was not there at once.

        Not a loop in `recv`: from CPython 3.12 on the jump back of a `while` with a `try` in it is outside every `try`
        around it, and a signal handler's exception raised there would leave recv with its turn not ended.
        """
        message = None
        while message is None:
            try:
                message = self._incoming.next(flags, timeout)
                if message is None and flags:
                    deadline = self._in_time(deadline)
            except BlockingIOError as error:
                if not ours(error):
                    raise
                deadline = self._wait(deadline, error)
        return message

    def _wait(self, deadline: float | None, error: BlockingIOError) -> float:
        """Wait until something is there; the deadline."""
        timeout = self._live().gettimeout()
        if timeout == 0:
            raise error
        if deadline is None:
            deadline = FOREVER if timeout is None else monotonic() + timeout
        wait(self._fd, IN, deadline)
        return deadline

    def _in_time(self, deadline: float | None) -> float:
        """The deadline; TimeoutError if it is over: a peer in a hurry need not let a recv wait even once."""
        if deadline is None:
            return monotonic() + (self._live().gettimeout() or FOREVER)
        if deadline <= monotonic():
            raise Timeout(ETIMEDOUT, "timed out")
        return deadline

    def __iter__(self) -> Self:
        """The messages that come, until the peer closes."""
        return self

    def __next__(self) -> Message:
        try:
            return self.recv()
        except EOFError as error:
            if not ours(error):
                raise
            raise StopIteration from None

    def close(self) -> None:
        """Close the socket, and every descriptor that was received and not handed out. Nothing happens the second time.

        The peer gets what was sent, and then EOFError. A thread that waits in recv or send is not woken.
        """
        self._shut()

    def __enter__(self) -> Self:
        self._live()
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def release(turn: Turn, mine: list[int]) -> None:
    """End a turn, if it is this one's; after the message was given back, which nobody may find half given back.

    What is left by an exception has two handlers that say it, since a signal handler's exception may end the first.
    """
    if turn.get(MINE) is mine:
        del turn[MINE]


def checked(sock: FileDescriptorLike) -> int:
    """The type of a socket that can carry frames and descriptors; ValueError for any other."""
    fd = fileno(sock, "Channel")
    if family(sock, fd) != AF_UNIX:
        raise ValueError(NOT_UNIX)
    kind = getsockopt(fd, SO_TYPE)
    if kind not in (SOCK_STREAM, SOCK_SEQPACKET):
        raise ValueError("sock is neither SOCK_STREAM nor SOCK_SEQPACKET")
    return kind


def owner(sock: OwnedFd | int) -> OwnedFd:
    """The owner of a descriptor."""
    return sock if isinstance(sock, OwnedFd) else OwnedFd(sock)

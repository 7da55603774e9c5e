"""What can go wrong that `socket` has no exception for. Imports nothing of the package."""

from __future__ import annotations

import errno

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import CodeType
    from typing import Any


def raised_in(error: BaseException) -> CodeType | None:
    """The code of the function that an exception was raised in: a signal handler, or who made the failing call."""
    traceback = error.__traceback__
    while traceback is not None and traceback.tb_next is not None:
        traceback = traceback.tb_next
    return None if traceback is None else traceback.tb_frame.f_code


class LocalProtocolError(ValueError):
    """This side asked for something the protocol or a limit forbids; nothing was sent.

    >>> one, two = Channel.pair(max_data=3)
    >>> with one, two:
    ...     try:
    ...         one.send(b"too long")
    ...     except LocalProtocolError as error:
    ...         print(error)
    data: 8 bytes, and the limit is 3
    """


class ProtocolError(OSError):
    """The peer broke the protocol or a limit (errno EPROTO); everything it sent was closed.

    >>> import socket
    >>> sock, peer = socket.socketpair()
    >>> with Channel(sock) as channel, peer:
    ...     peer.send(b"GET / HTTP/1.0")
    ...     try:
    ...         channel.recv()
    ...     except ProtocolError as error:
    ...         print(error.strerror)
    14
    a frame of 1195725856 bytes, and the limit is 16777216
    """

    def __init__(self, message: str) -> None:
        super().__init__(errno.EPROTO, message)

    def __reduce__(self) -> tuple[Any, ...]:
        """Made anew from its text, not from OSError's two arguments, by copy and pickle (a process pool's errors)."""
        return type(self), (self.strerror,), vars(self)


class TruncatedError(OSError):
    """Part of a message was lost on receipt (errno EMSGSIZE); every descriptor that came with it was closed.

    `reason` says why, as far as it can be known:

    - "maxfds": the sender sent `received` descriptors or more, which is more than `maxfds`;
    - "table-full": this process may have `limit` descriptors (the soft RLIMIT_NOFILE) and has `open` (None if
      they could not be counted); with "system-table-full" it is the whole system's table;
    - "control-buffer": the control messages did not fit into the buffer for them;
    - "data": a datagram was longer than bufsize, and its end is gone;
    - "unknown": the kernel says that control data was lost, and not why.

    `data` is what came, bytes which are off the queue (unless the call had MSG_PEEK: then all of the message is
    still there); `received` the number of descriptors that came, and were closed. `flags` are the msg_flags of
    recvmsg(2): with MSG_TRUNC among them, whatever the reason, `data` is not all of a datagram. `messages` are the
    whole messages of the same batch (recv_messages), the caller's to close.

    >>> import os, resource, socket
    >>> a, b = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    >>> def lost(maxfds, bufsize=100):
    ...     sendall_fds(a, b"some data", [0, 1])
    ...     try:
    ...         recv_message(b, bufsize, maxfds)
    ...     except TruncatedError as error:
    ...         return error
    >>> error = lost(maxfds=1)
    >>> error.reason, error.data, error.received, error.maxfds
    ('maxfds', b'some data', 2, 1)
    >>> error = lost(maxfds=2, bufsize=4)
    >>> error.reason, error.data, error.received, error.flags == socket.MSG_TRUNC
    ('data', b'some', 2, True)
    >>> limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    >>> free = os.dup(0); os.close(free)
    >>> resource.setrlimit(resource.RLIMIT_NOFILE, (free, limits[1]))  # no number is free below it
    >>> error = lost(maxfds=2)
    >>> resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    >>> error.reason, error.data, error.received, error.limit == free, error.open >= free
    ('table-full', b'some data', 0, True, True)
    >>> a.close(); b.close()
    """

    def __init__(
        self,
        reason: str,
        explanation: str,
        *,
        data: bytes = b"",
        received: int = 0,
        maxfds: int | None = None,
        limit: int | None = None,
        open: int | None = None,  # noqa: A002 - what it counts
        flags: int = 0,
    ) -> None:
        super().__init__(errno.EMSGSIZE, explanation)
        self.reason = reason
        self.data = data
        self.received = received
        self.maxfds = maxfds
        self.limit = limit
        self.open = open
        self.flags = flags
        self.messages: list[object] = []

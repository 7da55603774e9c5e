"""What can go wrong that `socket` has no exception for. Imports nothing of the package."""

from __future__ import annotations

import errno


class LocalProtocolError(ValueError):
    """This side asked for something the protocol or a limit forbids; nothing was sent."""


class ProtocolError(OSError):
    """The peer broke the protocol or a limit (errno EPROTO); everything it sent was closed."""

    def __init__(self, message: str) -> None:
        super().__init__(errno.EPROTO, message)


class TruncatedError(OSError):
    """Part of a message was lost on receipt (errno EMSGSIZE); every descriptor that came with it was closed.

    `reason` says why, as far as it can be known:

    - "maxfds": the sender sent `received` descriptors, more than `maxfds`;
    - "table-full": this process may have `limit` descriptors (the soft RLIMIT_NOFILE) and has `open` (None if
      they could not be counted); with "system-table-full" it is the whole system's table;
    - "control-buffer": the control messages did not fit into the buffer for them;
    - "data": a datagram was longer than bufsize, and its end is gone;
    - "unknown": the kernel says that control data was lost, and not why.

    `data` is what came, bytes which are off the queue; `received` the number of descriptors that came, and
    were closed. `messages` are the whole messages of the same batch (recv_messages), the caller's to close.
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
    ) -> None:
        super().__init__(errno.EMSGSIZE, explanation)
        self.reason = reason
        self.data = data
        self.received = received
        self.maxfds = maxfds
        self.limit = limit
        self.open = open
        self.messages: list[object] = []

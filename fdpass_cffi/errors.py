"""What can go wrong that `socket` has no exception for. Imports nothing of the package."""

from __future__ import annotations

import errno


class LocalProtocolError(ValueError):
    """This side asked for something the protocol or a limit forbids; nothing was sent."""


class ProtocolError(OSError):
    """The peer broke the protocol or a limit (errno EPROTO); everything it sent was closed."""

    def __init__(self, message: str) -> None:
        super().__init__(errno.EPROTO, message)

"""Closing many descriptors so that nothing can come between taking one off a list and closing it."""

from __future__ import annotations

import os
from collections import deque
from itertools import repeat

_pop = list.pop
_close = os.close


def close_tail(fds: list[int], keep: int) -> None:
    """Close and remove the descriptors of `fds` from its end, until `keep` are left. Never raises OSError.

    Each is popped and closed within one call into C: no signal handler runs in between, so a descriptor is
    in the list or closed. close(2) gives an error, EINTR too, only after the number is free again on Linux.
    """
    while len(fds) > keep:
        try:
            deque(map(_close, map(_pop, repeat(fds, len(fds) - keep))), 0)
        except OSError:
            continue


def close_all(fds: list[int]) -> None:
    """Close every descriptor of `fds` and empty it."""
    close_tail(fds, 0)

"""Why control data was lost on receipt, as far as it can be known."""

from __future__ import annotations

import os
import resource
from errno import EMFILE, ENFILE

from ._backend import CONSTANTS
from ._sock import is_open
from .errors import TruncatedError

MSG_TRUNC, MSG_CTRUNC = CONSTANTS["MSG_TRUNC"], CONSTANTS["MSG_CTRUNC"]
COUNTED = 1 << 16  # beyond this many possible descriptors they are not counted one by one


def truncated(msg_flags: int, data: bytes, count: int, maxfds: int, room_left: int) -> TruncatedError:
    """The error for a message with `count` descriptors that are still open, of which `maxfds` were asked for."""
    reason, limit, opened = "data", None, None
    if count > maxfds:
        reason, why = "maxfds", f"the sender sent {count} descriptors or more, and maxfds is {maxfds}"
    elif msg_flags & MSG_CTRUNC:
        reason, why, limit, opened = _control_lost(room_left)
        why = f"descriptors or other control data were lost: {why}"
    else:
        why = "the datagram is longer than bufsize, and its end is lost"
    if msg_flags & MSG_TRUNC and reason != "data":
        why += "; the data is not all of it either, for the datagram is longer than bufsize"
    return TruncatedError(
        reason, why, data=data, received=count, maxfds=maxfds, limit=limit, open=opened, flags=msg_flags
    )


def refused(small: bool) -> TruncatedError:
    """The error for a recvmsg(2) that failed because of descriptors, on a kernel that discards the message's then.

    `small`: the control buffer was the caller's, and may have been too small.
    """
    reason, why, limit, opened = _control_lost(0 if small else COUNTED)
    return TruncatedError(reason, f"the kernel has discarded descriptors: {why}", limit=limit, open=opened)


def _control_lost(room_left: int) -> tuple[str, str, int | None, int | None]:
    full = _table_full()
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if full == EMFILE:
        opened = open_descriptors(limit)
        count = "" if opened is None else f", {opened} are open"
        return "table-full", f"this process may have no more of them (RLIMIT_NOFILE is {limit}{count})", limit, opened
    if full == ENFILE:
        return "system-table-full", "the system's table of open files is full", limit, None
    if room_left < 64:
        return "control-buffer", "the buffer for control data was too small", None, None
    return "unknown", "the kernel does not say why (a security policy, or a table that was full just then)", limit, None


def _table_full() -> int:
    """EMFILE or ENFILE if no descriptor can be had now, while those that came are still open; else 0."""
    try:
        os.close(os.open("/", os.O_RDONLY | os.O_CLOEXEC))
    except OSError as error:
        return error.errno or 0
    return 0


def open_descriptors(limit: int) -> int | None:
    """How many descriptors this process has open; None if it cannot be counted without one."""
    try:
        size = os.stat("/proc/self/fd").st_size  # since Linux 6.2 their number; 0 before
        if size:
            return size
    except OSError:
        pass
    try:
        return len(os.listdir("/proc/self/fd")) - 1
    except OSError:
        pass
    return sum(map(is_open, range(limit))) if 0 <= limit <= COUNTED else None

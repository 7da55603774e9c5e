"""recvmsg(2) as Linux has it, for a kernel that installs descriptors unseen and does not set close-on-exec.

Law: after it returns, every descriptor that came is close-on-exec and in the caller's control buffer, or it is closed
and MSG_CTRUNC says so. XNU installs all descriptors of a message and then cuts the list to the caller's room:
the kernel is therefore given room for more than any message carries. Between recvmsg(2) and fcntl(2) another
thread may fork and exec; nothing can be done about it there.
"""

from __future__ import annotations

import os

from ._backend import CONSTANTS, LAYOUT, ffi
from ._close import close_all

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

ROOM = 4096  # bytes; 512 descriptors at most, and timestamps
SOL_SOCKET, SCM_RIGHTS, MSG_CTRUNC = CONSTANTS["SOL_SOCKET"], CONSTANTS["SCM_RIGHTS"], CONSTANTS["MSG_CTRUNC"]
INT = 4  # bytes


def recvmsg(call: Callable[[int, Any, int], int], leaks: bool, inherits: bool, fd: int, msg: Any, flags: int) -> int:
    """recvmsg(2), which is `call`, into a struct msghdr whose msg_control is memory for msg_controllen bytes.

    `leaks`: truncation leaves descriptors open, unseen. `inherits`: the kernel does not set close-on-exec.
    """
    control, room = msg.msg_control, msg.msg_controllen
    short = leaks and room < ROOM
    if short:
        memory = ffi.new("unsigned long long[]", ROOM // 8)
        msg.msg_control, msg.msg_controllen = memory, ROOM
    got = call(fd, msg, flags)
    if got < 0 or not msg.msg_controllen:
        msg.msg_control = control
        return got
    came = ffi.buffer(ffi.cast("char *", msg.msg_control), msg.msg_controllen)[:]
    if inherits:
        for one in descriptors(came):
            os.set_inheritable(one, False)
    if short:
        kept, surplus, cut = fitted(came, room)
        ffi.buffer(ffi.cast("char *", control), room)[0 : len(kept)] = kept
        msg.msg_controllen = len(kept)  # before the other: never more than is there
        msg.msg_control = control
        if cut:
            msg.msg_flags |= MSG_CTRUNC
        close_all(surplus)
    return got


def fitted(control: bytes, room: int) -> tuple[bytes, list[int], bool]:
    """The control messages that `room` bytes take, of descriptors the first ones; the other descriptors; if any are."""
    kept, surplus, cut = bytearray(), [], False
    for level, kind, start, stop, _ in LAYOUT.walk(control):
        left = room - len(kept)
        most = max(0, left - LAYOUT.data)
        data = control[start:stop]
        if (level, kind) == (SOL_SOCKET, SCM_RIGHTS):
            surplus += unpacked(data[most // INT * INT :])
            data = data[: most // INT * INT]
        elif most < len(data):
            data = b""
        cut = cut or len(data) < stop - start
        if data:
            kept += LAYOUT.pack([(level, kind, data)])[:left]
    return bytes(kept), surplus, cut


def descriptors(control: bytes) -> list[int]:
    """Those of the SCM_RIGHTS items in a control buffer."""
    found = []
    for level, kind, start, stop, _ in LAYOUT.walk(control):
        if (level, kind) == (SOL_SOCKET, SCM_RIGHTS):
            found += unpacked(control[start:stop])
    return found


def unpacked(data: bytes) -> list[int]:
    """C ints; a part of one at the end does not count."""
    return list(ffi.unpack(ffi.from_buffer("int[]", data), len(data) // INT)) if len(data) >= INT else []

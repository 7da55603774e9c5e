"""The one way in: the loop around recvmsg(2), and what arrived in the control buffer.

Law: until a Block's msg_namelen is set back to NOT_ARRIVED, its memory says which descriptors came, so
that an exception at any point between the syscall and their owner can close them: see `abandon`.
"""

import _struct
from array import array
from errno import EINVAL, EMSGSIZE, EOPNOTSUPP

from ._backend import CONSTANTS, KERNEL, LAYOUT, LINUX, ffi, lib
from ._close import close_all
from ._platform import unix_path
from ._scratch import (
    CMSG_DATA,
    CMSG_LEN,
    CMSG_LEVEL,
    CMSG_TYPE,
    CONTROL,
    CONTROL_ROOM,
    CONTROLLEN,
    DATA,
    INCOMING_DATA,
    IOV_LEN,
    MSG_CMSG_CLOEXEC,
    NAMELEN,
    NOT_ARRIVED,
    SCM_RIGHTS,
    SOL_SOCKET,
    UNREADY,
    Block,
    descriptors,
)
from ._sock import (
    AF_UNIX,
    IN,
    Socket,
    buffer_size,
    c_int,
    control_size,
    failed,
    family,
    most_fds,
    reread,
    socket_family,
    take_errno,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

SCM_PIDFD = CONSTANTS.get("SCM_PIDFD")
MSG_TRUNC = CONSTANTS["MSG_TRUNC"]
# In a struct sockaddr: on Linux two bytes for the family, on the BSDs one for the length and one for the family.
FAMILY, UNIX_FAMILY = (slice(2), _struct.pack("=H", AF_UNIX)) if LINUX else (slice(1, 2), bytes((AF_UNIX,)))
lib_recvmsg = lib.recvmsg
if KERNEL.truncation_leaks or KERNEL.sets_no_cloexec:
    from functools import partial

    from . import _darwin

    lib_recvmsg = partial(_darwin.recvmsg, lib.recvmsg, KERNEL.truncation_leaks, KERNEL.sets_no_cloexec)


def receive(sock: "Any", fd: int, block: Block, room: int, flags: int) -> int:
    """recvmsg(2) with `room` bytes for control data, waiting and retrying as `failed` says; the bytes received.

    Descriptors come with close-on-exec where the kernel can set it.
    """
    if room:
        flags |= MSG_CMSG_CLOEXEC
    block.lens[CONTROLLEN] = room
    got = lib_recvmsg(fd, block.msg, flags)
    return got if got >= 0 else receive_again(sock, fd, block, room, flags)


def receive_again(sock: "Any", fd: int, block: Block, room: int, flags: int) -> int:
    """`receive` from where its first recvmsg, with these `flags`, has failed; callers in a hurry make the first one."""
    deadline = None
    while True:
        code = take_errno()
        if code in (EINVAL, EOPNOTSUPP) and flags & MSG_CMSG_CLOEXEC and family(sock, fd) != AF_UNIX:
            flags &= ~MSG_CMSG_CLOEXEC  # AF_PACKET and MPTCP refuse it, and bring no descriptors
        elif code == EMSGSIZE and KERNEL.loss_is_emsgsize:
            from ._truncated import refused

            raise refused(room < CONTROL_ROOM)
        else:
            deadline = failed(code, sock, fd, IN, flags, deadline)
            fd = reread(sock, fd)
        block.lens[CONTROLLEN] = room
        got = lib_recvmsg(fd, block.msg, flags)
        if got >= 0:
            return got


_allocate = ffi.new_allocator(should_clear_after_alloc=False)  # recvmsg(2) says how much of it was written


def data_room(block: Block, bufsize: "Any") -> "Any":
    """Point the iovec at memory for `bufsize` bytes where the block has too little; None where it has enough."""
    size = buffer_size(bufsize)
    block.sizes[IOV_LEN] = size
    if size <= INCOMING_DATA:
        return None
    memory = _allocate("char[]", size)
    block.iov.iov_base = memory
    return memory


def received_data(block: Block, memory: "Any", got: int) -> bytes:
    """The bytes that came; `got` may be more than there was room for, with MSG_TRUNC in the flags."""
    got = min(got, block.sizes[IOV_LEN])
    if memory is None:
        return block.data[0:got]  # type: ignore[no-any-return]
    block.iov.iov_base = block.start + DATA
    return ffi.buffer(memory, got)[:]  # type: ignore[no-any-return]


def control_room(block: Block, ancbufsize: "Any") -> int:
    """Point msg_control at memory for `ancbufsize` bytes where the block has too little; the number, checked."""
    size = control_size(ancbufsize)
    if size > CONTROL_ROOM:
        block.extra = _allocate("char[]", size)
        block.msg.msg_control = block.extra
    return size


def bring(sock: "Any", fd: int, block: Block, bufsize: "Any", room: int, flags: int) -> bytes:
    """One receive of at most `bufsize` bytes; the rest of what came is in the block."""
    if type(bufsize) is int and 0 <= bufsize <= INCOMING_DATA:
        block.sizes[IOV_LEN] = bufsize
        block.lens[CONTROLLEN] = room
        if flags & MSG_TRUNC:
            wipe(block, sock, fd)
        if room:
            flags |= MSG_CMSG_CLOEXEC
        got = lib_recvmsg(fd, block.msg, flags)
        if got < 0:
            got = receive_again(sock, fd, block, room, flags)
        return block.data[0 : got if got <= bufsize else bufsize]  # type: ignore[no-any-return]
    memory = data_room(block, bufsize)
    fd = reread(sock, fd)
    if flags & MSG_TRUNC:
        wipe(block, sock, fd)
    return received_data(block, memory, receive(sock, fd, block, room, flags))


def bring_rights(
    sock: "Any", fd: int, block: Block, bufsize: "Any", maxfds: "Any", flags: "Any"
) -> "tuple[int, bytes]":
    """`bring` where descriptors are wanted: `flags`, checked, and the data. The block remembers what it was asked for.

    The next call with the same `bufsize` and `maxfds`, and no flags, has nothing to check and nothing to fill in.
    """
    if type(flags) is not int or flags >> 31:
        flags, fd = c_int("flags", flags), reread(sock, fd)
    if type(maxfds) is not int or maxfds < 0:
        maxfds, fd = most_fds(maxfds), reread(sock, fd)
    block.ready, block.most = UNREADY, maxfds
    data = bring(sock, fd, block, bufsize, CONTROL_ROOM, flags)
    if type(bufsize) is int and bufsize <= INCOMING_DATA:
        block.ready = bufsize
    return flags, data


def wipe(block: Block, sock: "Any", fd: int) -> None:
    """Zeros where the data goes, before a call with MSG_TRUNC: TCP counts its bytes then and writes none of them.

    What an earlier call left there would be taken for them; tcp(7).
    """
    if family(sock, fd) != AF_UNIX:
        size = block.sizes[IOV_LEN]
        ffi.memmove(block.iov.iov_base, bytes(size), size)


def only_item(block: Block) -> "list[int] | None":
    """The descriptors, if one whole SCM_RIGHTS item is all that came (by far the most frequent), else None."""
    ints, length = block.ints, block.lens[CMSG_LEN]
    if (
        ints[CMSG_TYPE] == SCM_RIGHTS
        and ints[CMSG_LEVEL] == SOL_SOCKET
        and 0 <= block.lens[CONTROLLEN] - length < LAYOUT.align
    ):
        count = (length - LAYOUT.data) >> 2
        return [ints[CMSG_DATA]] if count == 1 else descriptors(block, count).tolist()
    return None


def disown(block: Block) -> None:
    """What came has its owner: the block knows nothing of it any more, and has its own control memory back."""
    block.ints[NAMELEN] = NOT_ARRIVED
    if block.extra is not None:
        block.msg.msg_control = block.start + CONTROL
        block.extra = None


def sender(sock: "Any", fd: int, raw: bytes) -> object:
    """The address in the struct sockaddr that the kernel wrote, `raw` as long as it said: at least the family."""
    if raw[FAMILY] == UNIX_FAMILY:
        return unix_path(raw, bsd=not LINUX)
    from ._address import from_sockaddr

    return from_sockaddr(sock, fd, raw)


def foresee(sock: "Any") -> None:
    """Import what reads the addresses of a socket of another family than AF_UNIX, before anything is received from it.

    Afterwards the table of descriptors may be full, or the package's folder gone: see unix_path.
    """
    if isinstance(sock, Socket) and socket_family(sock) != AF_UNIX:
        from . import _address  # noqa: F401


def items(block: Block) -> "tuple[list[tuple[int, int, bytes]], bool]":
    """The control messages that arrived, each (cmsg_level, cmsg_type, data), and whether all were whole."""
    return parsed(ffi.buffer(ffi.cast("char *", block.msg.msg_control), block.lens[CONTROLLEN])[:])


def parsed(control: bytes) -> "tuple[list[tuple[int, int, bytes]], bool]":
    """The control messages in a control buffer, and whether all were whole."""
    found, all_whole = [], True
    for level, kind, start, stop, whole in LAYOUT.walk(control):
        found.append((level, kind, control[start:stop]))
        all_whole &= whole
    return found, all_whole


def ints(data: bytes) -> "list[int]":
    """The C ints in the data of a control message; a part of one at the end does not count."""
    return array("i", data[: len(data) & ~3]).tolist()


def carried(ancdata: "list[tuple[int, int, bytes]]") -> "tuple[list[int], list[int]]":
    """Every descriptor in `ancdata`: those of SCM_RIGHTS, and those of SCM_PIDFD."""
    rights: list[int] = []
    pidfds: list[int] = []
    for level, kind, data in ancdata:
        if level == SOL_SOCKET and kind == SCM_RIGHTS:
            rights += ints(data)
        elif level == SOL_SOCKET and kind == SCM_PIDFD:
            pidfds += ints(data)
    return rights, pidfds


def arrived(block: Block) -> "list[int]":
    """Every descriptor that a recvmsg brought into this block and that nobody owns yet."""
    if block.ints[NAMELEN] == NOT_ARRIVED:
        return []
    rights, pidfds = carried(items(block)[0])
    return rights + pidfds


def abandon(block: "Block | None", fds: "list[int] | None", pool: "list[Block]") -> None:
    """Close what arrived: `fds` where it was already taken out of the block, else what the block's memory says.

    The block then goes back to its pool, unless its caller had given it back, which it does once it has `fds`. Most of
    the receives that end here have found nothing (EAGAIN), and a new block would cost more than the next one.
    """
    if fds is not None:
        close_all(fds)
    elif block is not None:
        close_all(arrived(block))
        give_back(block, pool)


def give_back(block: Block, pool: "list[Block]") -> None:
    """Put a block into the pool that it is from; it points at itself again, and at nothing that its call had made."""
    block.iov.iov_base = block.start + DATA
    block.msg.msg_iov, block.msg.msg_iovlen = block.iov, 1
    block.msg.msg_control, block.lens[CONTROLLEN] = block.start + CONTROL, 0
    disown(block)
    pool.append(block)


def ancillary(block: Block, stacklevel: int) -> "list[tuple[int, int, bytes]]":
    """The control messages as `socket` returns them, with its warning."""
    ancdata, whole = items(block)
    if not whole:
        warn_malformed(stacklevel + 1)
    return ancdata


def only_rights(block: Block, most: int, stacklevel: int) -> "tuple[list[int], int, bool]":
    """The descriptors that arrived, how many of them to keep, the first ones, and whether there are more than `most`.

    After them come those not asked for: what the sender sent beyond `most`, and pidfds.
    """
    ancdata = ancillary(block, stacklevel + 1)
    rights, pidfds = carried(ancdata)
    return rights + pidfds, min(len(rights), most), len(rights) > most


def warn_malformed(stacklevel: int) -> None:
    """The warning of `socket` for a control message that claims more than there is."""
    import warnings

    warnings.warn("received malformed or improperly-truncated ancillary data", RuntimeWarning, stacklevel + 1)

"""The drop-ins: what `socket` documents, with its names, arguments, results and errors.

Each differs from `socket` only as its docstring says. `sock` is a socket.socket (its timeout is honoured),
any object with fileno(), or an int. See sendmsg(2), recvmsg(2), cmsg(3), unix(7).

Errors of all that send or receive, but for what a docstring adds: an OSError with the errno of the call, of which
BlockingIOError where a socket does not block, or with MSG_DONTWAIT, and TimeoutError (a socket.timeout too, errno
ETIMEDOUT) past the socket's timeout, one deadline for the whole call; TypeError, ValueError or OverflowError, before
the call, that names the wrong argument; BufferError for a buffer that is not contiguous; NotImplementedError for an
ssl.SSLSocket.
"""

import _socket
import socket
import sys
from errno import EBADF

from ._backend import CONSTANTS, KERNEL, LAYOUT, LINUX, ffi
from ._close import CPYTHON, Unreturned, close_tail, gettrace
from ._receive import (
    abandon,
    ancillary,
    bring,
    bring_rights,
    carried,
    control_room,
    disown,
    foresee,
    give_back,
    lib_recvmsg,
    only_item,
    only_rights,
    receive,
    receive_again,
    sender,
)
from ._scratch import (
    BYTES,
    CMSG_DATA,
    CONTROL_ROOM,
    CONTROLLEN,
    DATA,
    FLAGS,
    IOV_LEN,
    MSG_CMSG_CLOEXEC,
    NAMELEN,
    NONE_SET,
    NOT_ARRIVED,
    ONE_LEN,
    ONE_SPACE,
    SCM_RIGHTS,
    SOL_SOCKET,
    UNREADY,
    WHOLE,
    descriptors,
    incoming,
    incoming_pool,
    into_pool,
    keep_incoming,
    keep_into,
    keep_outgoing,
    keep_rights_in,
    keep_rights_out,
    outgoing,
    rights_in_pool,
    rights_out_pool,
    take_incoming,
    take_into,
    take_outgoing,
    take_rights_in,
    take_rights_out,
)
from ._scratch import (
    CMSG_LEN as CMSG_LEN_AT,
)
from ._send import (
    IN_BLOCK,
    MSG_NOSIGNAL,
    MSG_OOB,
    MSG_ZEROCOPY,
    borrow,
    check_rights,
    copied,
    each,
    each_fd,
    explain,
    exported,
    gather,
    lib_sendmsg,
    pack_fds,
    packed_in,
    put_address,
    put_control,
    put_fds,
    scatter,
    transmit,
    transmit_again,
)
from ._sock import (
    AF_UNIX,
    INT_MAX,
    STANDARD,
    Socket,
    c_int,
    family,
    fileno,
    integer,
    ours,
    reread,
    socket_family,
    timed_out,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any, Optional, SupportsIndex

    from typing_extensions import Buffer

    from ._send import ControlMessages
    from ._sock import FileDescriptorLike

    Ancillary = list[tuple[int, int, bytes]]

MSG_CTRUNC = CONSTANTS["MSG_CTRUNC"]
SHOWN = ~MSG_CMSG_CLOEXEC  # the kernel echoes it
# What _into_one receives into: nothing, where a kernel installs descriptors although there is no room for them.
PLAIN: "Any" = None if KERNEL.truncation_leaks else bytearray
# Where no descriptor can come, CPython's own method does the same on Linux, but for a TimeoutError without an errno:
# 64 KiB empty the first cache of a processor, and each line of Python beside the call costs thrice then. It is taken
# from the class that cannot be changed, since a program may have put recvmsg_into into socket.socket.
native = _socket.socket.recvmsg_into
NATIVE: "Any" = 0 if CPYTHON and LINUX and STANDARD else object()  # what `ancbufsize` and `flags` are then
_audit, from_buffer = sys.audit, ffi.from_buffer


def send_fds(
    sock: "FileDescriptorLike",
    buffers: "Iterable[Buffer]",
    fds: "Iterable[FileDescriptorLike]",
    flags: int = 0,
    address: object = None,
) -> int:
    """Send `buffers`, bytes-like objects, and `fds`, open descriptors, in one sendmsg(2); the number of bytes sent.

    The descriptors stay the caller's; all of them have gone, also if fewer bytes have than there are. Unlike
    `socket.send_fds` it honours `flags` and `address`, takes objects with fileno(), and raises ValueError for
    descriptors that would vanish: over a socket that is not AF_UNIX, or with no byte on a stream.

    OSError, with nothing sent: EBADF for one that is not open, EINVAL for more than the kernel takes in one message
    (253 on Linux), ETOOMANYREFS for too many of this user's on the way (unix(7)), EMSGSIZE past 1024 buffers or
    for too long a datagram. TypeError for a bool among `fds`.

    >>> import os, socket
    >>> a, b = socket.socketpair()
    >>> with open(os.devnull) as file:
    ...     send_fds(a, [b"take this"], [file])
    9
    >>> data, fds, flags, address = recv_fds(b, 100, 1)
    >>> data, os.readlink(f"/proc/self/fd/{fds[0]}")
    (b'take this', '/dev/null')
    >>> os.close(fds[0]); a.close(); b.close()
    """
    _audit("socket.sendmsg", sock, address)
    if type(sock) is Socket:
        fd = sock.fileno()
        domain = socket_family(sock)
    else:
        fd = fileno(sock, "sendmsg")
        domain = family(sock, fd)
    try:
        block = take_rights_out()
    except IndexError:
        block = outgoing()
    raw: Optional[bytes]  # the descriptors, but for `one` alone
    raw = keep = None
    try:
        if type(fds) is list and len(fds) == 1 and type(one := fds[0]) is int and not one >> 31:
            block.ints[CMSG_DATA] = one
        else:
            given = fds if type(fds) is list else each_fd(fds)  # files that may be known to nobody else
            raw, keep = put_fds(block, given)
            fd = reread(sock, fd)  # what an argument does when it is looked at may have closed sock: here and below
        if type(buffers) is list and len(buffers) == 1 and buffers[0] is block.ready and flags is NONE_SET:
            if domain != AF_UNIX:  # the same bytes as the last time: most programs send the one that a stream needs
                check_rights(domain, fd, 1, raw, flags)
            sendmsg_flags = MSG_NOSIGNAL
        else:
            if type(flags) is not int or flags >> 31:
                flags, fd = c_int("flags", flags), reread(sock, fd)
            sendmsg_flags = flags | MSG_NOSIGNAL
            data = None if flags & MSG_ZEROCOPY else copied(block, buffers)
            block.ready = data or UNREADY
            if data is None:
                keep, fd = (keep, borrow(block, buffers)), reread(sock, fd)
            size = block.sizes[IOV_LEN]
            if domain != AF_UNIX or not size or flags & MSG_OOB:
                check_rights(domain, fd, size, raw, flags)
        if address is not None:
            put_address(block, sock, fd, address)
            keep, fd = (keep, address), reread(sock, fd)
        sent = lib_sendmsg(fd, block.msg, sendmsg_flags)
        if sent < 0:
            if raw is IN_BLOCK:
                raw = packed_in(block)
            try:
                sent = transmit_again(sock, fd, block, flags, rights_out_pool)
            except OSError as error:
                if not ours(error):
                    raise
                if raw is None:
                    raw = pack_fds([one])  # pyright: ignore[reportPossiblyUnboundVariable]
                raise explain(error, fd, raw) from None
    except BaseException:
        keep = None  # the traceback knows this frame, and the caller's buffers would stay locked with it
        raise
    if keep is not None:
        block.reset()
    elif raw is not None:
        block.lens[CMSG_LEN_AT], block.lens[CONTROLLEN] = ONE_LEN, ONE_SPACE
    keep_rights_out(block)
    return sent


def sendmsg(
    sock: "FileDescriptorLike",
    buffers: "Iterable[Buffer]",
    ancdata: "ControlMessages" = (),
    flags: int = 0,
    address: object = None,
) -> int:
    """Send `buffers` and the control messages `ancdata`, each (cmsg_level, cmsg_type, bytes-like), in one sendmsg(2).

    The number of bytes sent. As `socket.socket.sendmsg`, but a process whose SIGPIPE has its default action
    does not die of it (BrokenPipeError instead), and MSG_DONTWAIT is honoured on a socket with a timeout. An
    `address` is as the socket's family has it in `socket`; OSError too if a host in it is not found. EMSGSIZE past
    1024 buffers. What MSG_ZEROCOPY lends to the kernel must stay as it is for longer than the call; PyPy cannot
    promise that of bytes objects.

    >>> import socket
    >>> a, b = socket.socketpair()
    >>> sendmsg(a, [b"one", b"two"]), recvmsg(b, 100)
    (6, (b'onetwo', [], 0, None))
    >>> a.close(); b.close()
    """
    fd = sock.fileno() if type(sock) is Socket else fileno(sock, "sendmsg")
    if type(flags) is not int or flags >> 31:
        flags = c_int("flags", flags)
    control = packed(ancdata) if ancdata != () else b""
    return send_control(sock, fd, buffers, control, flags, address)


def send_control(
    sock: "FileDescriptorLike", fd: int, buffers: "Iterable[Buffer]", control: bytes, flags: int, address: object
) -> int:
    """One sendmsg(2) with a packed control buffer."""
    try:
        block = take_outgoing()
    except IndexError:
        block = outgoing()
    keep = (borrow if flags & MSG_ZEROCOPY else gather)(block, buffers), put_control(block, control)
    try:
        if address is not None:
            put_address(block, sock, fd, address)
        _audit("socket.sendmsg", sock, address)
        sent = transmit(sock, reread(sock, fd), block, flags)
    finally:
        del keep  # as in send_fds
    block.reset()
    keep_outgoing(block)
    return sent


def packed(ancdata: "ControlMessages") -> bytes:
    """A control buffer of `ancdata`; TypeError or OverflowError naming the item that is not (int, int, bytes-like)."""
    checked = []
    for i, item in enumerate(each("ancdata", ancdata, "(cmsg_level, cmsg_type, data)")):
        name = f"ancdata[{i}]"
        try:
            level, kind, data = item
        except (TypeError, ValueError):
            raise TypeError(f"{name} must be (cmsg_level, cmsg_type, data), not {item!r}") from None
        raw = ffi.buffer(exported(data, name))[:]
        checked.append((c_int(f"{name}: cmsg_level", level), c_int(f"{name}: cmsg_type", kind), raw))
    return bytes(LAYOUT.pack(merged(checked) if KERNEL.one_rights_item else checked))


def merged(items: "list[tuple[int, int, Any]]") -> "list[tuple[int, int, Any]]":
    """Control messages with all SCM_RIGHTS items in one, where the first was: what arrives on Linux of several."""
    rights = [bytes(data) for level, kind, data in items if (level, kind) == (SOL_SOCKET, SCM_RIGHTS)]
    if len(rights) < 2:
        return items
    at = [item[:2] for item in items].index((SOL_SOCKET, SCM_RIGHTS))
    others = [item for item in items if item[:2] != (SOL_SOCKET, SCM_RIGHTS)]
    return [*others[:at], (SOL_SOCKET, SCM_RIGHTS, b"".join(rights)), *others[at:]]


def recv_fds(
    sock: "FileDescriptorLike", bufsize: "SupportsIndex", maxfds: "SupportsIndex", flags: int = 0
) -> "tuple[bytes, list[int], int, Any]":
    """Receive at most `bufsize` bytes and `maxfds` descriptors: (data, fds, msg_flags, address).

    The descriptors are the caller's, ints, not inheritable. Unlike `socket.recv_fds` it honours `flags`, never
    loses a descriptor to other control messages, and closes what it did not ask for: descriptors beyond `maxfds`
    (MSG_CTRUNC is then set in msg_flags) and pidfds. MSG_CTRUNC is also set if the descriptor table is full;
    `recv_message` raises instead. If it raises, a signal handler's exception too, nothing that came is left open.

    ValueError for a negative `bufsize` or `maxfds`. No data is the end of a stream, or an empty datagram.

    >>> import os, socket
    >>> a, b = socket.socketpair()
    >>> send_fds(a, [b"three"], [0, 1, 2])
    5
    >>> data, fds, flags, address = recv_fds(b, 100, 2)
    >>> data, len(fds), flags == socket.MSG_CTRUNC, os.get_inheritable(fds[0])
    (b'three', 2, True, False)
    >>> os.close(fds[0]); os.close(fds[1]); a.close(); b.close()
    """
    fd = sock.fileno() if type(sock) is Socket else fileno(sock, "recvmsg")
    _first = block = None
    fds: Optional[list[int]] = None
    unreturned = _first = Unreturned(list) if gettrace() is not None else None
    try:
        try:
            block = take_rights_in()
        except IndexError:
            block = incoming()
        if bufsize is block.ready and maxfds is block.most and flags is NONE_SET:  # `bring`, asked as the last time
            block.lens[CONTROLLEN] = CONTROL_ROOM
            got = lib_recvmsg(fd, block.msg, MSG_CMSG_CLOEXEC)
            if got == 1:
                data = BYTES[block.octets[DATA]]
            else:
                if got < 0:
                    got = receive_again(sock, fd, block, CONTROL_ROOM, MSG_CMSG_CLOEXEC)
                data = block.data[0:got]
        else:
            _, data = bring_rights(sock, fd, block, bufsize, maxfds, flags)
        ints, head = block.ints, block.head[WHOLE]
        if head == block.usual and block.most:
            fds, msg_flags, address = [ints[CMSG_DATA]], 0, None
        elif head == block.seen and block.count <= block.most:
            fds, msg_flags, address = block.many.tolist(), 0, None
        else:
            msg_flags = ints[FLAGS] & SHOWN
            fds = only_item(block) if block.lens[CONTROLLEN] else []
            if fds is None or len(fds) > block.most:
                fds, keep, surplus = only_rights(block, block.most, 2)
                close_tail(fds, keep)
                if surplus:
                    msg_flags |= MSG_CTRUNC
            elif len(fds) > 1 and not msg_flags and not ints[NAMELEN]:
                block.seen, block.count, block.many = head, len(fds), descriptors(block, len(fds))
            namelen = ints[NAMELEN]
            address = sender(sock, fd, block.name[0:namelen]) if namelen else None
        ints[NAMELEN] = NOT_ARRIVED
        keep_rights_in(block)
        if unreturned is not None:
            unreturned.hold(fds)
        return data, fds, msg_flags, address
    except BaseException:
        abandon(block, fds, rights_in_pool)
        raise


def recvmsg(
    sock: "FileDescriptorLike", bufsize: "SupportsIndex", ancbufsize: "SupportsIndex" = 0, flags: int = 0
) -> "tuple[bytes, Ancillary, int, Any]":
    """Receive at most `bufsize` bytes and `ancbufsize` bytes of control messages: (data, ancdata, msg_flags, address).

    As `socket.socket.recvmsg`, but descriptors among the control messages are not inheritable, and MSG_DONTWAIT is
    honoured on a socket with a timeout. The caller owns every descriptor in `ancdata`, a list of (cmsg_level,
    cmsg_type, bytes); what finds no room in `ancbufsize`, as CMSG_SPACE counts it, the kernel drops and sets
    MSG_CTRUNC. MSG_CMSG_CLOEXEC never shows in msg_flags.

    ValueError for a negative size. RuntimeWarning for a control message that claims to be longer than there is.

    >>> import socket
    >>> a, b = socket.socketpair()
    >>> sendmsg(a, [b"some bytes"]), recvmsg(b, 4), recvmsg(b, 100, CMSG_SPACE(4))
    (10, (b'some', [], 0, None), (b' bytes', [], 0, None))
    >>> a.close(); b.close()
    """
    fd = sock.fileno() if type(sock) is Socket else fileno(sock, "recvmsg")
    foresee(sock)
    if type(flags) is not int or flags >> 31:
        flags, fd = c_int("flags", flags), reread(sock, fd)
    _first = block = ancdata = None
    unreturned = _first = Unreturned(inside) if ancbufsize and gettrace() is not None else None
    try:
        try:
            block = take_incoming()
        except IndexError:
            block = incoming()
        room = 0 if type(ancbufsize) is int and not ancbufsize else control_room(block, ancbufsize)
        if type(ancbufsize) is not int:
            fd = reread(sock, fd)
        data = bring(sock, fd, block, bufsize, room, flags)
        msg_flags = block.ints[FLAGS] & SHOWN
        ancdata = ancillary(block, 2) if room else []
        namelen = block.ints[NAMELEN]
        address = sender(sock, fd, block.name[0:namelen]) if namelen else None
        disown(block)
        keep_incoming(block)
        if unreturned is not None:
            unreturned.hold(ancdata)
        return data, ancdata, msg_flags, address
    except BaseException:
        if unreturned is not None:
            unreturned.held = []  # what is closed here is not to be closed twice
        abandon(block, None if ancdata is None else inside(ancdata), incoming_pool)
        raise


def recvmsg_into(
    sock: "FileDescriptorLike", buffers: "Iterable[Buffer]", ancbufsize: "SupportsIndex" = 0, flags: int = 0
) -> "tuple[int, Ancillary, int, Any]":
    """As `recvmsg`, scattering the bytes into writable `buffers` without a copy: (nbytes, ancdata, msg_flags, address).

    With MSG_TRUNC in `flags`, nbytes is a datagram's whole length, which may be more than there was room for. TypeError
    for a buffer that cannot be written to, EMSGSIZE past 1024 buffers.

    >>> import socket
    >>> a, b = socket.socketpair()
    >>> head, body = bytearray(4), bytearray(10)
    >>> sendmsg(a, [b"headbody"]), recvmsg_into(b, [head, body]), head, body[:4]
    (8, (8, [], 0, None), bytearray(b'head'), bytearray(b'body'))
    >>> a.close(); b.close()
    """
    if (
        ancbufsize is flags is NATIVE
        and type(buffers) is list
        and len(buffers) == 1
        and type(buffers[0]) is bytearray
        and type(sock) is Socket
    ):
        try:
            return native(sock, buffers)
        except OSError as error:
            if error.errno not in (EBADF, None) or not ours(error):
                raise
            if type(error) is socket.timeout:
                raise timed_out() from None
            # else the way below says that it is closed, or knows its family
    fd = sock.fileno() if type(sock) is Socket else fileno(sock, "recvmsg_into")
    foresee(sock)
    if type(flags) is not int or flags >> 31:
        flags, fd = c_int("flags", flags), reread(sock, fd)
    if type(ancbufsize) is int and not ancbufsize and type(buffers) is list and len(buffers) == 1:
        buffer = buffers[0]
        if type(buffer) is PLAIN:  # no descriptor can come
            return _into_one(sock, fd, buffer, flags)
    _first = block = ancdata = None
    unreturned = _first = Unreturned(inside) if ancbufsize and gettrace() is not None else None
    try:
        try:
            block = take_into()
        except IndexError:
            block = incoming()
        held: Any = scatter(block, buffers)
        room = control_room(block, ancbufsize)
        got = receive(sock, reread(sock, fd), block, room, flags)
        msg_flags = block.ints[FLAGS] & SHOWN
        ancdata = ancillary(block, 2)
        namelen = block.ints[NAMELEN]
        address = sender(sock, fd, block.name[0:namelen]) if namelen else None
        disown(block)
        for view, memory in held[1]:
            view[:] = memory
        held = None
        block.msg.msg_iov, block.msg.msg_iovlen, block.lens[CONTROLLEN] = block.iov, 1, 0
        keep_into(block)
        if unreturned is not None:
            unreturned.hold(ancdata)
        return got, ancdata, msg_flags, address
    except BaseException:
        held = None  # as in send_fds
        if unreturned is not None:
            unreturned.held = []  # what is closed here is not to be closed twice
        abandon(block, None if ancdata is None else inside(ancdata), into_pool)
        raise


def _into_one(sock: "FileDescriptorLike", fd: int, buffer: bytearray, flags: int) -> "tuple[int, Ancillary, int, Any]":
    """recvmsg_into for one bytearray and no control messages, what most programs call."""
    try:
        block = take_into()
    except IndexError:
        block = incoming()
        block.lens[CONTROLLEN] = 0
    block.iov.iov_base = keep = from_buffer(buffer)
    block.sizes[IOV_LEN] = len(buffer)
    got = lib_recvmsg(fd, block.msg, flags)
    if got < 0:
        try:
            got = receive_again(sock, fd, block, 0, flags)
        except BaseException:
            keep = None  # as in send_fds
            give_back(block, into_pool)
            raise
    del keep
    ints = block.ints
    namelen, msg_flags = ints[NAMELEN], ints[FLAGS]
    address = sender(sock, fd, block.name[0:namelen]) if namelen else None
    ints[NAMELEN] = NOT_ARRIVED
    keep_into(block)
    return got, [], msg_flags & SHOWN if flags else msg_flags, address


def inside(ancdata: "Ancillary") -> "list[int]":
    """Every descriptor in received control messages."""
    rights, pidfds = carried(ancdata)
    return rights + pidfds


def CMSG_LEN(length: "SupportsIndex") -> int:  # noqa: N802 - the macro's name
    """The cmsg_len of a control message with `length` bytes of data, without padding; OverflowError; cmsg(3).

    >>> CMSG_LEN(4) - CMSG_LEN(0)
    4
    """
    return _measured("CMSG_LEN", length, LAYOUT.cmsg_len)


def CMSG_SPACE(length: "SupportsIndex") -> int:  # noqa: N802 - the macro's name
    """The bytes that a control message with `length` bytes of data takes up, padding included; OverflowError; cmsg(3).

    >>> CMSG_SPACE(4) >= CMSG_LEN(4)
    True
    """
    return _measured("CMSG_SPACE", length, LAYOUT.cmsg_space)


def _measured(name: str, length: "SupportsIndex", macro: "Callable[[int], int]") -> int:
    number = integer("length", length)
    if not 0 <= number <= INT_MAX - macro(1 if name == "CMSG_SPACE" else 0):  # the limits of `socket`
        raise OverflowError(f"{name}() argument out of range: length is {number}")
    return macro(number)

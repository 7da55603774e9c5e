"""The one way out: buffers, descriptors and ancillary data into a Block, and the loop around sendmsg(2).

Everything is checked before the syscall, and the message names the argument. What the kernel is given
pointers into is returned to the caller, to be kept until the call is over.
"""

import _struct
import os
import socket
import sys
from array import array
from errno import EBADF, EINVAL, EMSGSIZE, ENOMEM
from itertools import islice
from operator import index

from ._backend import CONSTANTS, LAYOUT, LINUX, ffi, lib
from ._scratch import (
    CMSG_DATA,
    CMSG_LEN,
    CONTROL_ROOM,
    CONTROLLEN,
    IOV_LEN,
    NAME_ROOM,
    NAMELEN,
    OUTGOING_DATA,
    PYPY,
    SCM_RIGHTS,
    SOL_SOCKET,
    Block,
    c_ints,
    outgoing_pool,
)
from ._sock import AF_UNIX, INT_MAX, OUT, SO_TYPE, failed, getsockopt, is_open, ours, reread, take_errno

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from typing import Any

    from typing_extensions import Buffer

    from ._sock import FileDescriptorLike

    Shape = tuple[Callable[..., bytes], slice, int, int]
    ControlMessages = Iterable[tuple[int, int, Buffer]]

MSG_NOSIGNAL, MSG_OOB = CONSTANTS["MSG_NOSIGNAL"], CONSTANTS["MSG_OOB"]
MSG_ZEROCOPY = CONSTANTS.get("MSG_ZEROCOPY", 0)
SOCK_STREAM = int(socket.SOCK_STREAM)
NOT_UNIX = "sock is not an AF_UNIX socket: descriptors do not pass over any other"
IOV_MAX = 1024  # on every platform declared here
SCM_MAX_FD = 253  # Linux's, in one message
INT = 4  # bytes
MANY = 512  # the most that any kernel takes
DATA_AT = LAYOUT.data
shapes: "dict[int, Shape]" = {}
_PACKED = (_struct.pack("i", 0), _struct.pack("i", 1))
IN_BLOCK = b"in the block"  # in place of packed descriptors; told by identity
# What packing of ints raises for what is none.
NOT_INTS: "tuple[type[Exception], ...]" = TypeError, OverflowError, _struct.error  # type: ignore[attr-defined,unused-ignore]
LOW_BYTES, HIGH_BYTES = (slice(at, None, 4) for at in ((0, 3) if sys.byteorder == "little" else (3, 0)))
if PYPY:

    def _pack_ints(given: "Sequence[Any]") -> bytes:
        return array("i", given).tobytes()
else:

    def _pack_ints(given: "Sequence[Any]") -> bytes:
        return c_ints(len(given)).pack(*given)


lib_sendmsg = lib.sendmsg


def transmit(sock: object, fd: int, block: Block, flags: int) -> int:
    """sendmsg(2) of a filled block, waiting and retrying as `failed` says; the number of bytes sent.

    If it raises, the block is its caller's no more.
    """
    sent = lib_sendmsg(fd, block.msg, flags | MSG_NOSIGNAL)
    return sent if sent >= 0 else transmit_again(sock, fd, block, flags)


def transmit_again(sock: object, fd: int, block: Block, flags: int, pool: "list[Block]" = outgoing_pool) -> int:
    """`transmit` from where its first sendmsg has failed; callers in a hurry make the first one.

    If it raises, the block is its caller's no more: it goes back to its pool, since a new one costs more than a send.
    """
    deadline = None
    try:
        while True:
            deadline = failed(take_errno(), sock, fd, OUT, flags, deadline)
            fd = reread(sock, fd)
            sent = lib_sendmsg(fd, block.msg, flags | MSG_NOSIGNAL)
            if sent >= 0:
                return sent
    except BaseException:
        block.reset()
        pool.append(block)
        raise


def copied(block: Block, buffers: "Iterable[Buffer]") -> "bytes | None":
    """The bytes object in `buffers`, if it is one and small: the block has a copy of it, cheaper than an export."""
    if (type(buffers) is list or type(buffers) is tuple) and len(buffers) == 1:
        data = buffers[0]
        if type(data) is bytes and len(data) <= OUTGOING_DATA:
            size = len(data)
            block.data[0:size] = data
            block.sizes[IOV_LEN] = size
            return data
    return None


def gather(block: Block, buffers: "Iterable[Buffer]") -> object:
    """Point the iovec at `buffers`; what is returned must live until the call is over, None if nothing must."""
    return None if copied(block, buffers) is not None else borrow(block, buffers)


def borrow(block: Block, buffers: "Iterable[Buffer]") -> object:
    """`gather` without a copy. MSG_ZEROCOPY needs it: the kernel reads the caller's memory after the call is over."""
    return spread(block, [exported(data, "buffers") for data in each_buffer(buffers, "bytes-like objects")])


def each_buffer(buffers: "Iterable[Buffer]", what: str) -> "list[Any]":
    """`buffers` as a list; EMSGSIZE for more than one message takes, before any of them is exported."""
    found = each("buffers", buffers, what)
    if len(found) > IOV_MAX:
        raise OSError(EMSGSIZE, f"{os.strerror(EMSGSIZE)}: {len(found)} buffers, one message takes {IOV_MAX}")
    return found


def each(name: str, given: "Iterable[Any]", what: str, most: "int | None" = None) -> "list[Any]":
    """`given` as a list, of its first `most`; a TypeError that names the argument if it is not iterable."""
    try:
        iterator = iter(given)
    except TypeError:
        raise TypeError(f"{name} must be an iterable of {what}, not {type(given).__name__}") from None
    return list(iterator if most is None else islice(iterator, most))


def each_fd(fds: "Iterable[Any]") -> "list[Any]":
    """Descriptors as a list; those of a bytes object are the C ints in it, as `socket.send_fds` has them."""
    if isinstance(fds, (bytes, bytearray)):
        if len(fds) % INT:
            raise ValueError(f"fds: {len(fds)} bytes are no number of C ints")
        return array("i", bytes(fds)).tolist()
    return each("fds", fds, "descriptors")


def exported(data: "Buffer", name: str, *, writable: bool = False) -> "Any":
    """A char[] over the memory of a bytes-like object, which stays locked as long as the char[] lives.

    TypeError and BufferError (not contiguous) as `socket` raises them.
    """
    if type(data) is not bytes or writable:
        try:
            view = memoryview(data)
        except TypeError:
            raise _no_buffer(data, name, writable) from None
        with view:  # an exception's traceback may know it for long
            if writable and view.readonly:
                raise _no_buffer(data, name, writable)
            if not view.c_contiguous:  # PyPy's from_buffer takes it, and reads the wrong bytes
                raise BufferError(f"{name}: the memoryview is not C-contiguous")
            if PYPY:
                return _address_on_pypy(data, view)
    return ffi.from_buffer("char[]", data)


def _no_buffer(data: object, name: str, writable: bool) -> TypeError:
    kind = "read-write bytes-like" if writable else "bytes-like"
    return TypeError(f"{name}: a {kind} object is required, not '{type(data).__name__}'")


def _address_on_pypy(data: "Buffer", view: memoryview) -> "Any":
    """A char[] over `data`, or over a copy of what PyPy cannot give the address of, as BytesIO.getbuffer()."""
    try:
        return ffi.from_buffer("char[]", data)
    except TypeError:
        return ffi.from_buffer("char[]", view.tobytes())


def spread(block: Block, parts: "Sequence[Any]") -> object:
    """Point the msghdr at `parts` (char[] each); the memory that must live until the call is over."""
    count = len(parts)
    if not count:  # one empty iovec: with none at all, qemu-user does not make the call
        block.sizes[IOV_LEN] = 0
        return parts
    if count == 1:
        block.iov.iov_base = parts[0]
        block.sizes[IOV_LEN] = len(parts[0])
        return parts
    iov = ffi.new("struct iovec[]", count)
    for i, part in enumerate(parts):
        iov[i].iov_base = part
        iov[i].iov_len = len(part)
    block.msg.msg_iov = iov
    block.msg.msg_iovlen = count
    block.sizes[IOV_LEN] = sum(map(len, parts))  # not used by the call: it says whether there is a byte at all
    return parts, iov


def scatter(block: Block, buffers: "Iterable[Buffer]") -> "tuple[object, list[tuple[memoryview, bytearray]]]":
    """Point the iovec at writable `buffers`: what must live until the call is over, and what is to be copied then.

    On PyPy the memory of a slice of a cast memoryview cannot be had: from_buffer gives a copy of it, and
    says so only if it is asked for writable memory. Such a buffer is received into other memory.
    """
    parts: list[Any] = []
    copies: list[tuple[memoryview, bytearray]] = []
    try:
        parts.extend(_writable(data, copies) for data in each_buffer(buffers, "read-write bytes-like objects"))
    except BaseException:
        parts.clear()  # the traceback knows this frame, as in send_fds
        raise
    return spread(block, parts), copies


def _writable(data: "Buffer", copies: "list[tuple[memoryview, bytearray]]") -> "Any":
    """`exported` for writing, or the memory of a new entry of `copies`."""
    part = exported(data, "buffers", writable=True)
    if PYPY:
        try:
            return ffi.from_buffer("char[]", data, require_writable=True)
        except TypeError:
            copy = bytearray(data)
            copies.append((memoryview(data).cast("B"), copy))
            return ffi.from_buffer("char[]", copy)
    return part


def descriptor(given: "FileDescriptorLike", name: str) -> int:
    """The int behind an int, an object with fileno() or one with __index__(), not looked up in the descriptor table."""
    fd: Any = given
    if not isinstance(given, int):
        try:
            fd = index(fd)  # as in packing
        except TypeError as error:  # a transparent proxy of a file may have an __index__ that fails
            if not ours(error):
                raise
            method = getattr(given, "fileno", None) or getattr(given, "__index__", None)
            if method is None:
                raise TypeError(
                    f"{name} must be an int or an object with fileno(), not {type(given).__name__}"
                ) from None
            fd = method()
    if isinstance(fd, bool) or not isinstance(fd, int):
        raise TypeError(f"{name} is not a file descriptor: {given!r}")
    number = int(fd)
    if not -INT_MAX - 1 <= number <= INT_MAX:
        raise OverflowError(f"{name} does not fit a file descriptor: {number}")
    if number < 0:
        raise OSError(EBADF, f"{os.strerror(EBADF)}: {name} is {'closed' if number == -1 and given != -1 else number}")
    return number


def _holds(raw: bytes, low: bytes, value: int) -> bool:
    """Whether 0 or 1 is among packed ints; `low` is their low bytes. A tenth of the cost of a look at every int."""
    at = low.find(value)
    while at >= 0:
        if raw[4 * at : 4 * at + 4] == _PACKED[value]:
            return True
        at = low.find(value, at + 1)
    return False


def pack_fds(given: "Sequence[FileDescriptorLike]", name: str = "fds") -> bytes:
    """Descriptors as C ints, each checked."""
    given = tuple(given)  # which the __index__ of one cannot change
    try:
        raw = _pack_ints(given)
    except NOT_INTS as error:
        if not ours(error):
            raise
        return _pack_ints([descriptor(item, f"{name}[{i}]") for i, item in enumerate(given)])
    refuse(raw, given, name)
    return raw


def refuse(raw: bytes, given: "Sequence[FileDescriptorLike]", name: str = "fds") -> None:
    """Raise for what packs well and is no descriptor: bools, and negative ints, whose high byte is no ASCII."""
    low = raw[LOW_BYTES]
    if (0 in low and _holds(raw, low, 0)) or (1 in low and _holds(raw, low, 1)) or not raw[HIGH_BYTES].isascii():
        for i, item in enumerate(given):
            descriptor(item, f"{name}[{i}]")


if PYPY:
    from __pypy__ import strategy  # type: ignore[import-not-found,unused-ignore] # pyright: ignore[reportMissingImports]

    def written(block: Block, given: "Sequence[Any]") -> bool:
        """Whether all of `given`, which nobody else knows, are ints of C; they are in the control buffer then.

        Negative ones too: the kernel refuses them. A list that PyPy keeps as machine integers cffi writes in one step,
        a third of what a compiled loop takes.
        """
        count = len(given)
        if not 0 < count <= MANY or strategy(given) != "IntegerListStrategy":
            return False
        if block.count != count:
            block.many, block.count = ffi.cast(f"int(*)[{count}]", block.ints + CMSG_DATA), count
        place: Any = block.many
        try:
            place[0] = given
        except OverflowError as error:
            if not ours(error):
                raise
            return False
        return True

    def put_fds(block: Block, given: "Sequence[FileDescriptorLike]") -> "tuple[bytes, object]":
        """`pack_fds` and `put_rights` in one; what both of them give, but IN_BLOCK for the packed descriptors."""
        given = given[:]  # nobody changes it while it is looked at
        if written(block, given):
            size = INT * block.count
            block.lens[CMSG_LEN], block.lens[CONTROLLEN] = LAYOUT.cmsg_len(size), LAYOUT.cmsg_space(size)
            return IN_BLOCK, None
        raw = pack_fds(given)
        return raw, put_rights(block, raw)
else:

    def put_fds(block: Block, given: "Sequence[FileDescriptorLike]") -> "tuple[bytes, object]":
        """`pack_fds` and `put_rights` in one; what both of them give.

        After the 253 calls of close(2) that come before the next message, all that is used here has left the caches: of
        each line, and each function called, that is most of what it costs.
        """
        given = tuple(given)  # as in pack_fds
        shape = shapes.get(len(given)) or shape_for(len(given))
        if shape is not None:
            pack, where, length, space = shape
            try:
                raw = pack(*given)
            except NOT_INTS as error:
                if not ours(error):
                    raise
            else:
                low = raw[LOW_BYTES]
                if 0 in low or 1 in low or not raw[HIGH_BYTES].isascii():
                    refuse(raw, given)
                lens = block.lens
                lens[CMSG_LEN], lens[CONTROLLEN] = length, space
                block.control[where] = raw
                return raw, None
        raw = pack_fds(given)
        return raw, put_rights(block, raw)


def packed_in(block: Block) -> bytes:
    """The descriptors in a block that `put_fds` has filled in, packed."""
    return block.control[DATA_AT : block.lens[CMSG_LEN]]  # type: ignore[no-any-return]


def shape_for(count: int) -> "Shape | None":
    """How `count` descriptors go into a control buffer: packed by what, where to, cmsg_len, msg_controllen.

    None if a message never has so many, or none.
    """
    if not 0 < count <= MANY:
        return None
    size = INT * count
    place = slice(DATA_AT, DATA_AT + size)
    shape = shapes[count] = c_ints(count).pack, place, LAYOUT.cmsg_len(size), LAYOUT.cmsg_space(size)
    return shape


def put_rights(block: Block, raw: bytes) -> object:
    """One SCM_RIGHTS item with the packed descriptors (none: no item); memory to keep if the block has too little."""
    size = len(raw)
    space = LAYOUT.cmsg_space(size)
    if space > CONTROL_ROOM:
        return put_control(block, LAYOUT.pack([(SOL_SOCKET, SCM_RIGHTS, raw)]))
    block.lens[CMSG_LEN] = LAYOUT.cmsg_len(size)
    block.lens[CONTROLLEN] = space if size else 0
    block.control[LAYOUT.data : LAYOUT.data + size] = raw
    return None


def put_control(block: Block, control: "bytes | bytearray") -> object:
    """A packed control buffer; what must live until the call is over."""
    size = len(control)
    block.lens[CONTROLLEN] = size
    if size <= CONTROL_ROOM:
        block.control[0:size] = bytes(control)
        return None
    memory = ffi.new("unsigned long long[]", (size + 7) // 8)
    ffi.buffer(memory)[0:size] = bytes(control)
    block.msg.msg_control = memory
    return memory


def put_address(block: Block, sock: "FileDescriptorLike", fd: int, address: object) -> None:
    """The destination, as the socket's family spells it."""
    from ._address import to_sockaddr

    try:
        raw = to_sockaddr(sock, fd, address)
    except TypeError as error:
        raise TypeError(f"address: {error}") from None
    if len(raw) >= NAME_ROOM:
        raise ValueError("address is too long")
    block.name[0 : len(raw)] = raw
    block.msg.msg_name = ffi.from_buffer(block.name)
    block.ints[NAMELEN] = len(raw)


def check_rights(domain: int, fd: int, size: int, raw: "bytes | None", flags: int) -> None:
    """ValueError where a kernel would take the descriptors and lose them.

    That is: no AF_UNIX socket; on a stream no byte, or none but the one that MSG_OOB makes urgent, which is the last.
    `size` is that of the data, in bytes; `raw` the packed descriptors, None for one.
    """
    if raw == b"":
        return
    if domain != AF_UNIX:
        raise ValueError(NOT_UNIX)
    if not size and getsockopt(fd, SO_TYPE) == SOCK_STREAM:
        raise ValueError("buffers hold no byte: a stream socket loses descriptors sent without data")
    if flags & MSG_OOB and size == 1:
        raise ValueError("flags: the descriptors would be lost on the byte that MSG_OOB makes urgent")


def explain(error: OSError, fd: int, raw: bytes) -> OSError:
    """The same error with what is known about its cause: which descriptor is not open, how many are too many."""
    text, fds = os.strerror(error.errno or 0), array("i", raw)
    if error.errno == EBADF and is_open(fd):
        shut = [f"fds[{i}] is {item}, which is not open" for i, item in enumerate(fds) if not is_open(item)]
        if shut:
            return OSError(EBADF, f"{text}: {shut[0]}")
    if error.errno == EINVAL and LINUX and len(fds) > SCM_MAX_FD:
        most = f"one message takes {SCM_MAX_FD}; sendall_fds sends any number"
        return OSError(EINVAL, f"{text}: {len(fds)} descriptors in fds, {most}")
    if error.errno == ENOMEM and len(fds) > 1:  # musl's sendmsg
        why = f"{len(fds)} descriptors may be too many at once for this C library; sendall_fds sends any number"
        return OSError(ENOMEM, f"{text}: {why}")
    return error

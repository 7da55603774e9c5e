"""Pooled memory for one sendmsg or recvmsg call: struct msghdr, iovec, name, control and small data.

A `Block` belongs to whoever took it from its pool: to one call in one thread, which gives it back, and touches it no
more. One that an exception took from its call may be lost, which costs no more than a new one. list.pop and list.append
are atomic, so threads and signal handlers need no lock, and a forked child has a copy of its own.

Fields are read and written through `ints`, `sizes` and `lens`, views of the whole block by element
size, because that costs a third of a cdata attribute on CPython; on PyPy cdata arrays are the quick ones.
The control buffer comes right after the msghdr, so that `head` has both headers: after a receive of one
descriptor and nothing else, by far the most frequent, `head[:]` is `usual`, and no field need be looked at; nor where
it is `seen`, that of the last message with several.
"""

import sys
from _struct import Struct

from ._backend import CMSGHDR, CONSTANTS, LAYOUT, MSGHDR, WORD, ffi

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Protocol

    class Several(Protocol):
        """The ints in a control message, as they are whenever they are asked for."""

        def tolist(self) -> list[int]: ...


PYPY = sys.implementation.name == "pypy"

CONTROL_ROOM = 4096  # 253 descriptors, credentials, a pidfd, a security label and timestamps fit in half of it
NAME_ROOM = 256
CONTROL = 64  # where each part begins, in bytes
IOVEC = CONTROL + CONTROL_ROOM
NAME = IOVEC + 64
DATA = NAME + NAME_ROOM
COUNT = (
    DATA // 4 + 1
)  # the second four bytes of the data, in ints: in a frame's header, the number of descriptors, big-endian
OUTGOING_DATA, INCOMING_DATA = 4096, 65536
# A kernel writes msg_namelen on every success and never this length (struct sockaddr_storage has 128 bytes): as
# long as the field holds it, no recvmsg has succeeded on this block and no descriptor has come.
NOT_ARRIVED = NAME_ROOM - 1

LEN: int = ffi.sizeof(dict(ffi.typeof(MSGHDR).fields)["msg_controllen"].type)  # that of msg_iovlen and cmsg_len too


def _index(struct: str, field: str, size: int, base: int = 0) -> int:
    offset: int = ffi.offsetof(struct, field)
    return (base + offset) // size


NAMELEN = _index(MSGHDR, "msg_namelen", 4)  # in ints
FLAGS = _index(MSGHDR, "msg_flags", 4)
LOW_FLAGS = FLAGS * 4 + (3 if sys.byteorder == "big" else 0)  # in octets: the flags below 256, as small integers
CONTROLLEN = _index(MSGHDR, "msg_controllen", LEN)  # in lens
IOV_LEN = _index("struct iovec", "iov_len", WORD, IOVEC)  # in sizes
CMSG_LEN = _index(CMSGHDR, "cmsg_len", LEN, CONTROL)  # in lens
CMSG_LEVEL = _index(CMSGHDR, "cmsg_level", 4, CONTROL)  # in ints
CMSG_TYPE = _index(CMSGHDR, "cmsg_type", 4, CONTROL)
del _index
CMSG_DATA = (CONTROL + LAYOUT.data) // 4

# One SCM_RIGHTS item with one descriptor
ONE_LEN, ONE_SPACE = LAYOUT.cmsg_len(4), LAYOUT.cmsg_space(4)
SOL_SOCKET, SCM_RIGHTS = CONSTANTS["SOL_SOCKET"], CONSTANTS["SCM_RIGHTS"]
MSG_CMSG_CLOEXEC = CONSTANTS.get("MSG_CMSG_CLOEXEC", 0)
UNREADY = object()  # is no argument of anybody
WHOLE = slice(None)
NONE_SET = 0  # `flags` told by identity, since what is equal to it need not be an int
# Data of one byte, which most messages with descriptors have; made in a tenth of the time of a comprehension
BYTES: "list[Any]" = memoryview(bytes(range(256))).cast("c").tolist()


class Block:
    """The memory of one call. `msg` points to its struct msghdr; the views cover all of it."""

    __slots__ = (
        "control", "count", "data", "extra", "head", "ints", "iov", "lens", "many", "memory", "most", "msg", "name",
        "octets", "ready", "seen", "sizes", "start", "usual",
    )  # fmt: skip

    def __init__(self, room: int) -> None:
        memory: Any = ffi.new("unsigned long long[]", (DATA + room) // 8)
        self.memory = memory
        self.extra: Any = None  # control memory of a call that needs more than CONTROL_ROOM
        start: Any = ffi.cast("char *", memory)
        self.start = start
        self.msg: Any = ffi.cast(f"{MSGHDR} *", memory)
        self.iov: Any = ffi.cast("struct iovec *", start + IOVEC)
        self.name: Any = ffi.buffer(start + NAME, NAME_ROOM)
        self.control: Any = ffi.buffer(start + CONTROL, CONTROL_ROOM)
        self.head: Any = ffi.buffer(memory, CONTROL + LAYOUT.data)
        self.usual = b""
        # The last `head` that came with several descriptors and nothing else, how many, what gives them; of a send on
        # PyPy, how many were the last, and an array of so many where they go
        self.seen, self.count = b"", 0
        self.many: Several = memoryview(b"")
        # What the block is filled in for already, told by identity: the bytes that send_fds copied last, or the
        # `bufsize` and `maxfds` of the last receive
        self.ready: object = UNREADY
        self.most = 0
        self.data: Any = ffi.buffer(start + DATA, room)
        if PYPY:
            self.octets: Any = ffi.cast("unsigned char *", memory)
            self.ints: Any = ffi.cast("int *", memory)
            self.sizes: Any = ffi.cast("ssize_t *", memory)  # an unsigned one would be read as a big integer
            self.lens: Any = self.sizes if LEN == WORD else self.ints
        else:
            self.octets = view = memoryview(ffi.buffer(memory)).cast("B")
            self.ints = view.cast("i")
            self.sizes = view.cast("L")
            self.lens = self.sizes if LEN == WORD else self.ints
        self.reset()

    def reset(self) -> None:
        """As it is kept in a pool: one iovec over `data`, no name, one SCM_RIGHTS item for one descriptor."""
        msg, iov = self.msg, self.iov
        msg.msg_name, msg.msg_namelen = ffi.NULL, 0
        msg.msg_iov, msg.msg_iovlen = iov, 1
        iov.iov_base = self.start + DATA
        msg.msg_control = self.start + CONTROL
        self.lens[CONTROLLEN] = ONE_SPACE
        self.lens[CMSG_LEN] = ONE_LEN
        self.ints[CMSG_LEVEL], self.ints[CMSG_TYPE] = SOL_SOCKET, SCM_RIGHTS


def outgoing() -> "Block":
    """A block for a send, when the pool is empty."""
    return Block(OUTGOING_DATA)


def incoming() -> "Block":
    """A block for a receive, when the pool is empty: with room for the sender's name."""
    block = Block(INCOMING_DATA)
    block.msg.msg_name = block.start + NAME
    block.ints[FLAGS] = MSG_CMSG_CLOEXEC  # the kernel echoes it
    block.usual = block.head[:]
    block.ints[NAMELEN] = NOT_ARRIVED
    block.sizes[IOV_LEN] = INCOMING_DATA
    return block


outgoing_pool: "list[Block]" = []
incoming_pool: "list[Block]" = []
rights_out_pool: "list[Block]" = []  # of send_fds, which looks at `ready`
rights_in_pool: "list[Block]" = []  # of recv_fds and recv_message, which do so too
into_pool: "list[Block]" = []  # of recvmsg_into, which points their iovec at its caller's memory
# Methods bound once: CPython takes a name that was imported for a module's, and binds the method anew for each call.
take_outgoing, keep_outgoing = outgoing_pool.pop, outgoing_pool.append
take_incoming, keep_incoming = incoming_pool.pop, incoming_pool.append
take_rights_out, keep_rights_out = rights_out_pool.pop, rights_out_pool.append
take_rights_in, keep_rights_in = rights_in_pool.pop, rights_in_pool.append
take_into, keep_into = into_pool.pop, into_pool.append


MOST_STRUCTS = 256
_structs: "dict[int, Struct]" = {}


def c_ints(count: int) -> "Struct":
    """The Struct of `count` C ints, the quickest to and from a list on CPython."""
    found = _structs.get(count)
    if found is None:
        if len(_structs) >= MOST_STRUCTS:
            _structs.clear()
        found = _structs[count] = Struct(f"{count}i")
    return found


if PYPY:

    class Ints:
        """`count` ints in the memory of a block."""

        __slots__ = ("at", "count")

        def __init__(self, at: "Any", count: int) -> None:
            self.at, self.count = at, count

        def tolist(self) -> "list[int]":
            """All of them."""
            return ffi.unpack(self.at, self.count)  # type: ignore[no-any-return]

    def descriptors(block: "Block", count: int) -> "Several":
        """The `count` ints in the data of the first control message."""
        return Ints(block.ints + CMSG_DATA, count)
else:

    def descriptors(block: "Block", count: int) -> "Several":
        """The `count` ints in the data of the first control message."""
        return block.ints[CMSG_DATA : CMSG_DATA + count]  # type: ignore[no-any-return]

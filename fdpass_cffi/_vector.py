"""Memory for sendmmsg(2) and recvmmsg(2): n struct mmsghdr, each with its iovec, name and control buffer.

The fields are reached through views of the whole, as in a Block; `Vector` says where each entry's are.
"""

from __future__ import annotations

from array import array
from itertools import accumulate

from ._backend import CMSGHDR, LAYOUT, MMSGHDR, MSGHDR, WORD, ffi
from ._scratch import LEN, NAME_ROOM, PYPY

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

MOST = 1024  # UIO_MAXIOV: what a kernel takes in one call
POOLED, KEPT = 1 << 20, 8  # bytes: a larger vector is not kept; nor more of them than this
IOVEC = ffi.sizeof("struct iovec")
try:
    HEADER: int = ffi.sizeof(MMSGHDR)
    MSG_LEN: int = ffi.offsetof(MMSGHDR, "msg_len")
except ffi.error:  # an API module built where <sys/socket.h> has no struct mmsghdr
    HEADER = MSG_LEN = 0


def at(struct: str, field: str) -> int:
    offset: int = ffi.offsetof(struct, field)
    return offset


NAMELEN, FLAGS = at(MSGHDR, "msg_namelen") // 4, at(MSGHDR, "msg_flags") // 4  # in ints, from an entry's first
NAME, IOV, CONTROL = (at(MSGHDR, name) // WORD for name in ("msg_name", "msg_iov", "msg_control"))  # in words
IOVLEN, CONTROLLEN = at(MSGHDR, "msg_iovlen") // LEN, at(MSGHDR, "msg_controllen") // LEN  # in lens
CMSG_LEN, CMSG_LEVEL, CMSG_TYPE = (
    at(CMSGHDR, "cmsg_len") // LEN,
    at(CMSGHDR, "cmsg_level") // 4,
    at(CMSGHDR, "cmsg_type") // 4,
)
CMSG_DATA = LAYOUT.data // 4


def padded(size: int) -> int:
    """`size` bytes rounded up so that what follows is aligned."""
    return (size + 15) & ~15


def evenly(first: int, step: int, n: int) -> array[int]:
    """n words: first, first + step, ..."""
    return array("L", range(first, first + n * step, step) if step else [first] * n)


if PYPY:

    def column(view: Any, first: int, step: int, n: int) -> list[int]:
        """The n elements first, first + step, ... of a view."""
        return [view[first + i * step] for i in range(n)]

    def put_column(view: Any, first: int, step: int, values: array[int]) -> None:
        """Set the elements first, first + step, ... of a view."""
        for value in values:
            view[first] = value
            first += step
else:

    def column(view: Any, first: int, step: int, n: int) -> list[int]:
        """The n elements first, first + step, ... of a view."""
        return view[first : first + n * step : step].tolist()  # type: ignore[no-any-return]

    def put_column(view: Any, first: int, step: int, values: array[int]) -> None:
        """Set the elements first, first + step, ... of a view."""
        view[first : first + len(values) * step : step] = values


class Vector:
    """`n` entries with `control` bytes of control buffer and `data` bytes of memory each (or 0: the caller's own).

    `headers` is where the mmsghdrs end; `controls`, `names`, `datas` begin in bytes from the start.
    """

    def __init__(self, n: int, control: int, data: int, named: bool) -> None:
        self.n, self.control, self.data = n, padded(control), padded(data)
        self.iovecs = padded(n * HEADER)
        self.names = padded(self.iovecs + n * IOVEC)
        self.controls = self.names + n * NAME_ROOM * named
        self.datas = self.controls + n * self.control
        size = self.datas + n * self.data
        self.memory: Any = ffi.new("unsigned long long[]", -(-size // 8))
        self.vec: Any = ffi.cast(f"{MMSGHDR} *", self.memory)
        self.bytes: Any = ffi.buffer(self.memory)
        self.base = int(ffi.cast("size_t", self.memory))
        if PYPY:
            self.ints: Any = ffi.cast("int *", self.memory)
            self.words: Any = ffi.cast("size_t *", self.memory)  # pointers
            self.lens: Any = ffi.cast("ssize_t *", self.memory) if LEN == WORD else self.ints  # as in _scratch
        else:
            view = memoryview(self.bytes).cast("B")
            self.ints, self.words = view.cast("i"), view.cast("L")
            self.lens = self.words if LEN == WORD else self.ints
        self.texts: Any = b""  # the memory that `lay_out` has pointed the iovecs at
        self.sizes: list[int] = []  # and what for
        self._link(named)

    def header_ints(self, field: int, n: int) -> list[int]:
        """An int field of the first n mmsghdrs."""
        return column(self.ints, field, HEADER // 4, n)

    def header_lens(self, field: int, n: int) -> list[int]:
        """A length field of the first n mmsghdrs."""
        return column(self.lens, field, HEADER // LEN, n)

    def control_ints(self, field: int, n: int) -> list[int]:
        """An int field of the first control message of each of the first n entries."""
        return column(self.ints, self.controls // 4 + field, self.control // 4, n)

    def _link(self, named: bool) -> None:
        """Point each msghdr at its parts."""
        n, base, step = self.n, self.base, HEADER // WORD
        put_column(self.words, IOV, step, evenly(base + self.iovecs, IOVEC, n))
        put_column(self.lens, IOVLEN, HEADER // LEN, array("L" if LEN == WORD else "i", [1]) * n)
        put_column(self.words, CONTROL, step, evenly(base + self.controls, self.control, n))
        if named:
            put_column(self.words, NAME, step, evenly(base + self.names, NAME_ROOM, n))

    def lay_out(self, sizes: list[int]) -> None:
        """Point the first iovecs at the parts of `texts`, which have these sizes and follow each other."""
        memory = ffi.new("char[]", sum(sizes))
        starts = accumulate(sizes[:-1], initial=int(ffi.cast("size_t", memory)))
        put_column(self.words, self.iovecs // WORD, IOVEC // WORD, array("L", starts))
        put_column(self.words, self.iovecs // WORD + 1, IOVEC // WORD, array("L", sizes))
        self.texts, self.sizes = ffi.buffer(memory), sizes

    def point(self, i: int, address: int, size: int) -> None:
        """Entry i's iovec."""
        word = (self.iovecs + i * IOVEC) // WORD
        self.words[word], self.words[word + 1] = address, size

"""Control messages as bytes: the CMSG macros of <sys/socket.h>, packing and walking.

Pure: a `Layout` is made of numbers alone, so that every platform's is tested on any machine.
See cmsg(3); the macros cannot be called in ABI mode, so they are computed here for both modes.
"""

from _struct import Struct  # `struct` is this under another name, and one more file to be read at import

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator


class Layout:
    """One platform's struct cmsghdr: `header` is its struct format, `align` the unit of CMSG_ALIGN in bytes.

    The format says byte order and sizes: '@Nii' is Linux's own (cmsg_len, cmsg_level, cmsg_type),
    '@Iii' that of Darwin and the BSDs.
    """

    def __init__(self, header: str, align: int) -> None:
        self._header = Struct(header)
        self.align = align
        self.header = self._header.size
        self.data = self.aligned(self.header)

    def aligned(self, length: int) -> int:
        """CMSG_ALIGN: `length` bytes rounded up to the alignment."""
        return (length + self.align - 1) & -self.align

    def cmsg_len(self, length: int) -> int:
        """CMSG_LEN: the cmsg_len of an item with `length` bytes of data."""
        return self.data + length

    def cmsg_space(self, length: int) -> int:
        """CMSG_SPACE: the bytes that an item with `length` bytes of data takes up, padding included."""
        return self.data + self.aligned(length)

    def pack(self, items: "Iterable[tuple[int, int, bytes | bytearray | memoryview]]") -> bytearray:
        """A control buffer of `items`, each (cmsg_level, cmsg_type, data); struct.error if a number does not fit."""
        control = bytearray()
        for level, kind, data in items:
            raw = bytes(data)  # len() of a memoryview counts elements
            start, size = len(control), len(raw)
            control += bytes(self.cmsg_space(size))
            self._header.pack_into(control, start, self.cmsg_len(size), level, kind)
            control[start + self.data : start + self.data + size] = raw
        return control

    def walk(self, control: bytes) -> "Iterator[tuple[int, int, int, int, bool]]":
        """Each item of a received control buffer: (cmsg_level, cmsg_type, start, stop, whole).

        `control` is the msg_controllen bytes that the kernel filled in; start and stop bound the item's
        data in it and are always within it. `whole` is False, and the walk ends, for an item that claims
        to be longer than what is left of the buffer or shorter than its own header.
        """
        at, end = 0, len(control)
        while end - at >= self.header:
            length, level, kind = self._header.unpack_from(control, at)
            start, stop = min(at + self.data, end), min(at + length, end)
            whole = self.header <= length <= end - at
            yield level, kind, start, max(start, stop), whole
            if not whole:
                return
            at += self.aligned(length)

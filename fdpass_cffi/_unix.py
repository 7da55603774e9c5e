"""struct sockaddr_un -> the address that `socket` returns: pure, and apart from the other families.

Law: what receives descriptors imports this at its start. A full table of descriptors, which is met where descriptors
are received, lets no module be opened any more, and what came with the first message would be lost to that.
"""

from __future__ import annotations

from os import fsdecode


def unix_path(raw: bytes, *, bsd: bool) -> str | bytes:
    """The address in a struct sockaddr_un of AF_UNIX: a path as str, on Linux an abstract name as bytes; unix(7)."""
    path = raw[2:]
    if path[:1] == b"\0" and not bsd:
        return path  # an abstract name: every byte counts
    return fsdecode(path.partition(b"\0")[0])

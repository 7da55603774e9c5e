"""What a broker opens for its clients, and how the two talk; no waiting and no sockets in here.

Law: no name leads out of the directory. Each component is opened below the one before it (openat(2)), none of them
through a symbolic link, and `..` is refused before anything is opened. What comes out is a regular file, for reading.

A request is one Channel message: the name's bytes. So is the reply: b"ok" and one descriptor, or a reason and none.
"""

from __future__ import annotations

import os
from errno import EACCES, EINVAL, EISDIR, ELOOP, ENAMETOOLONG, ENOENT, ENOTDIR, errorcode
from stat import S_ISDIR, S_ISLNK, S_ISREG

from .fd import OwnedFd

OK = b"ok"
MAX_NAME = 4096  # bytes; PATH_MAX of Linux
MAX_MESSAGE = MAX_NAME  # bytes, in both directions
MAX_FDS = 1
COMMON = os.O_NOFOLLOW | os.O_CLOEXEC
ENTER = COMMON | os.O_DIRECTORY | getattr(os, "O_PATH", os.O_RDONLY)  # O_PATH: to search it is enough
READ = COMMON | os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY  # O_NONBLOCK: neither a FIFO nor a lease(2) makes it wait


def components(name: bytes) -> list[bytes]:
    """The parts of a name, at least one; OSError for a name that no broker opens. A pure function.

    >>> components(b"./a//b")
    [b'a', b'b']
    >>> components(b"a/../../etc/shadow")
    Traceback (most recent call last):
    ...
    PermissionError: [Errno 13] the name leads out of the directory
    """
    if not name:
        raise OSError(ENOENT, os.strerror(ENOENT))
    if len(name) > MAX_NAME:
        raise OSError(ENAMETOOLONG, os.strerror(ENAMETOOLONG))
    if b"\0" in name:
        raise OSError(EINVAL, "the name has a null byte")
    parts = name.split(b"/")
    if not parts[0] or b".." in parts:
        raise OSError(EACCES, "the name leads out of the directory")
    if parts[-1] in (b"", b"."):
        raise OSError(EISDIR, os.strerror(EISDIR))
    return [part for part in parts if part not in (b"", b".")]


def open_below(folder: int, name: bytes) -> OwnedFd:
    """Open the regular file `name` for reading, below the directory that `folder` is a descriptor of; or OSError.

    A file with a lease that had to be broken first is BlockingIOError.
    """
    parts = components(name)
    inner: OwnedFd | None = None
    try:
        for part in parts[:-1]:
            deeper = _enter(folder if inner is None else inner.fileno(), part)
            if inner is not None:
                inner.close()
            inner = deeper
        return _read(folder if inner is None else inner.fileno(), parts[-1])
    finally:
        if inner is not None:
            inner.close()


def _enter(folder: int, part: bytes) -> OwnedFd:
    """A directory in a directory."""
    try:
        return OwnedFd(os.open(part, ENTER, dir_fd=folder))
    except OSError as error:
        if error.errno == ENOTDIR and S_ISLNK(os.stat(part, dir_fd=folder, follow_symlinks=False).st_mode):
            raise OSError(ELOOP, "symbolic links are not followed") from None
        raise


def _read(folder: int, part: bytes) -> OwnedFd:
    """A file in a directory. It is looked at before too, since opening alone does something to some devices."""
    only_regular(os.stat(part, dir_fd=folder, follow_symlinks=False).st_mode)
    file = OwnedFd(os.open(part, READ, dir_fd=folder))
    try:
        only_regular(os.fstat(file.fileno()).st_mode)
        os.set_blocking(file.fileno(), True)
        return file
    except BaseException:
        file.close()
        raise


def only_regular(mode: int) -> None:
    """OSError unless `mode` (st_mode of stat(2)) is a regular file's. A pure function.

    >>> only_regular(0o100644)
    >>> only_regular(0o010644)
    Traceback (most recent call last):
    ...
    PermissionError: [Errno 13] not a regular file
    """
    if S_ISREG(mode):
        return
    if S_ISLNK(mode):
        raise OSError(ELOOP, "symbolic links are not followed")
    if S_ISDIR(mode):
        raise OSError(EISDIR, os.strerror(EISDIR))
    raise OSError(EACCES, "not a regular file")


def reason(error: OSError) -> bytes:
    """The reply for a name that could not be opened. A pure function.

    >>> reason(OSError(2, "No such file or directory"))
    b'ENOENT: No such file or directory'
    """
    return f"{errorcode.get(error.errno or 0, 'EIO')}: {error.strerror}".encode()[:MAX_MESSAGE]


def plain(raw: bytes) -> str:
    r"""`raw` as text, with everything that a terminal might obey written as an escape. A pure function.

    >>> print(plain(b"a\x1b[2Jb\xff"))
    a\x1b[2Jb\xff
    """
    text = raw.decode(errors="backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)

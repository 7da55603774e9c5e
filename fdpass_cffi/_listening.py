"""A listening AF_UNIX socket at a path of its own: who comes second is refused, what is left of a dead one replaced."""

from __future__ import annotations

import fcntl
import os
import socket
import stat
from contextlib import contextmanager, suppress
from errno import EADDRINUSE, ECONNREFUSED, ENOENT, EWOULDBLOCK

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


@contextmanager
def listening(path: str | bytes) -> Iterator[socket.socket]:
    """A socket that listens at `path` until the end of the block, which removes it, if it is still the same."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.setblocking(False)
        if abstract(path):
            listener.bind(path)
            listener.listen(128)
            yield listener
            return
        made = bound(listener, path)
        try:
            os.chmod(path, 0o600)
            listener.listen(128)  # only now can anybody connect
            yield listener
        finally:
            with suppress(FileNotFoundError):
                if os.path.samestat(made, os.lstat(path)):
                    os.unlink(path)


def abstract(path: str | bytes) -> bool:
    """Whether it is a name that is no file's, and goes with its socket; unix(7)."""
    return path[:1] in ("\0", b"\0")


@contextmanager
def folder_of(path: str | bytes) -> Iterator[int | None]:
    """The folder that servers lock who start in it: a descriptor, or None if it cannot be opened, or there is none.

    A socket that is bound and does not listen yet looks as one whose server is dead.
    """
    try:
        folder = None if abstract(path) else os.open(os.path.dirname(path) or os.curdir, FOLDER)
    except OSError:
        folder = None
    try:
        yield folder
    finally:
        if folder is not None:
            os.close(folder)


def locked(folder: int | None) -> bool:
    """Lock it, flock(2), if nobody else has; True also where there is no lock to be had."""
    if folder is None:
        return True
    try:
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno != EWOULDBLOCK
    return True


def bound(listener: socket.socket, path: str | bytes) -> os.stat_result:
    """Bind to `path`, also where a dead server left its socket; what is there now."""
    try:
        listener.bind(path)
    except OSError as error:
        if error.errno != EADDRINUSE or not remove_stale(path):
            raise
        listener.bind(path)
    return os.lstat(path)


def remove_stale(path: str | bytes) -> bool:
    """Remove a socket at which nobody listens; whether there is nothing now."""
    try:
        found = os.lstat(path)
    except OSError as error:
        return error.errno == ENOENT
    if not stat.S_ISSOCK(found.st_mode):
        return False
    with socket.socket(socket.AF_UNIX) as probe:
        probe.setblocking(False)
        try:
            probe.connect(path)
        except OSError as error:
            if error.errno != ECONNREFUSED:
                return False
        else:
            return False
    with suppress(FileNotFoundError):
        if os.path.samestat(found, os.lstat(path)):
            os.unlink(path)
    return True

"""A listening AF_UNIX socket at a path of its own: who comes second is refused, what is left of a dead one replaced."""

from __future__ import annotations

import fcntl
import os
import socket
import stat
from contextlib import contextmanager, suppress
from errno import EADDRINUSE, ECONNREFUSED, ENOENT, EWOULDBLOCK
from time import sleep

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

TRIES, PAUSE = 100, 0.01  # seconds between the tries for the lock


@contextmanager
def listening(path: str | bytes) -> Iterator[socket.socket]:
    """A socket that listens at `path` until the end of the block, which removes it, if it is still the same."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.setblocking(False)
        if path[:1] in ("\0", b"\0"):  # a name that is no file's, and goes with its socket
            listener.bind(path)
            listener.listen(128)
            yield listener
            return
        made = None
        try:
            with starting(path):
                made = bound(listener, path)
                os.chmod(path, 0o600)
                listener.listen(128)  # only now can anybody connect
            yield listener
        finally:
            with suppress(FileNotFoundError):
                if made is not None and os.path.samestat(made, os.lstat(path)):
                    os.unlink(path)


@contextmanager
def starting(path: str | bytes) -> Iterator[None]:
    """One server at a time in the folder of `path`, as far as the system helps: flock(2).

    A socket that is bound and does not listen yet looks as one whose server is dead. Anybody who can read the folder
    can hold the lock, so after TRIES it is done without, and so it is in a folder that cannot be opened.
    """
    try:
        folder = os.open(os.path.dirname(path) or os.curdir, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        yield
        return
    try:
        for _ in range(TRIES):
            try:
                fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                if error.errno != EWOULDBLOCK:
                    break
                sleep(PAUSE)
            else:
                break
        yield
    finally:
        os.close(folder)


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
    """Remove a socket at which nobody listens any more; whether there is nothing now."""
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

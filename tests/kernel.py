"""What the running kernel offers, each checked once and with the reason of a skip; and a full table of descriptors."""

from __future__ import annotations

import errno
import os
import resource
import socket
from contextlib import contextmanager

import pytest
from support import close

from fdpass_cffi._backend import CONSTANTS, ffi, lib


def takes(option: str, value: int = 1) -> bool:
    """Whether an AF_UNIX socket takes this option, by its C name."""
    if option not in CONSTANTS:
        return False
    with socket.socket(socket.AF_UNIX) as sock:
        try:
            sock.setsockopt(socket.SOL_SOCKET, CONSTANTS[option], value)
        except OSError:
            return False
    return True


def has_peer_pidfd() -> bool:
    a, b = socket.socketpair()
    with a, b:
        try:
            os.close(a.getsockopt(socket.SOL_SOCKET, CONSTANTS["SO_PEERPIDFD"]))
        except (OSError, KeyError):
            return False
    return True


def has_mmsg() -> bool:
    """Whether sendmmsg and recvmmsg are there and implemented: qemu-user may lack them."""
    if not hasattr(lib, "recvmmsg"):
        return False
    lib.recvmmsg(-1, ffi.NULL, 0, 0, ffi.NULL)
    return ffi.errno == errno.EBADF


needs_credentials = pytest.mark.skipif(not takes("SO_PASSCRED"), reason="no SO_PASSCRED: not Linux")
needs_pidfd = pytest.mark.skipif(not takes("SO_PASSPIDFD"), reason="this kernel has no SO_PASSPIDFD (Linux 6.5)")
needs_peer_pidfd = pytest.mark.skipif(not has_peer_pidfd(), reason="this kernel has no SO_PEERPIDFD (Linux 6.5)")
needs_passrights = pytest.mark.skipif(not takes("SO_PASSRIGHTS"), reason="no SO_PASSRIGHTS (Linux 6.16)")
needs_mmsg = pytest.mark.skipif(not has_mmsg(), reason="no sendmmsg and recvmmsg here")
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root may send another's credentials, or change its uid")


@contextmanager
def room_for(count: int):
    """The table has room for `count` descriptors more; all that fill it are closed at the end."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest = os.open(os.devnull, os.O_RDONLY)
    filling = [lowest]
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, lowest + 200), hard))
        while True:
            try:
                filling.append(os.dup(lowest))
            except OSError:
                break
        close(filling[len(filling) - count :])
        del filling[len(filling) - count :]
        yield
    finally:
        close(filling)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))

"""Picks the backend and the platform's layout; whatever differs between backends stays in this file.

`FDPASS_CFFI_BACKEND` (abi or api) forces one and never falls back; unset, the compiled API module is
used if it is there, else ABI. Above this file the same code runs on both.
"""

from __future__ import annotations

import os
import socket
import sys

from . import _platform
from ._cmsg import Layout

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Protocol

    class Lib(Protocol):
        """The calls declared in build_ffi.py; pointers are cffi pointers to structs of the layout in use."""

        def sendmsg(self, fd: int, msg: Any, flags: int, /) -> int: ...
        def recvmsg(self, fd: int, msg: Any, flags: int, /) -> int: ...
        def sendmmsg(self, fd: int, vec: Any, n: int, flags: int, /) -> int: ...
        def recvmmsg(self, fd: int, vec: Any, n: int, flags: int, timeout: Any, /) -> int: ...
        def poll(self, fds: Any, nfds: int, timeout_ms: int, /) -> int: ...
        def getsockopt(self, fd: int, level: int, name: int, value: Any, length: Any, /) -> int: ...
        def setsockopt(self, fd: int, level: int, name: int, value: Any, length: int, /) -> int: ...


SYSTEM = _platform.system(sys.platform)
MACHINE = os.uname().machine
LINUX = SYSTEM == _platform.LINUX
KERNEL = _platform.Kernel(SYSTEM)


def _api() -> tuple[Any, Lib] | None:
    """The compiled module; None if it was not built, ImportError if it is there and does not load."""
    try:
        from ._api import ffi, lib  # type: ignore[import-not-found,unused-ignore]
    except ModuleNotFoundError as error:
        if error.name != f"{__name__.rpartition('.')[0]}._api":
            raise
        return None
    return ffi, lib


def _abi() -> tuple[Any, Lib]:
    """The generated declarations, looked up in the C library that the interpreter runs on."""
    from ._abi import ffi

    lib: Any = ffi.dlopen(None)
    return ffi, lib


def _choose(asked: str | None) -> tuple[str, Any, Lib]:
    if asked not in (None, "", "abi", "api"):
        raise ImportError(f"FDPASS_CFFI_BACKEND is {asked!r}: it must be 'abi' or 'api'")
    if asked != "abi":
        api = _api()
        if api is not None:
            return ("api", *api)
        if asked == "api":
            raise ImportError("FDPASS_CFFI_BACKEND is 'api', but the API module was not built: run build_ffi.py")
    return ("abi", *_abi())


BACKEND, ffi, lib = _choose(os.environ.get("FDPASS_CFFI_BACKEND"))

_PREFIX = "" if BACKEND == "api" else "linux_" if LINUX else "bsd_"
MSGHDR, MMSGHDR, CMSGHDR = f"struct {_PREFIX}msghdr", f"struct {_PREFIX}mmsghdr", f"struct {_PREFIX}cmsghdr"
WORD: int = ffi.sizeof("size_t")


def _layout() -> Layout:
    header = "@Nii" if LINUX else "@Iii"
    if BACKEND == "api":
        align = lib.CMSG_SPACE(1) - lib.CMSG_SPACE(0)  # type: ignore[attr-defined]
        return Layout(header, int(ffi.cast("int", align)))  # PyPy calculates slowly with what was a size_t
    return Layout(header, _platform.cmsg_align(SYSTEM, MACHINE, WORD))


LAYOUT = _layout()
CONSTANTS = _platform.as_told(_platform.constants(SYSTEM, MACHINE), socket)
del _api, _abi, _choose, _layout

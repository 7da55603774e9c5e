"""Picks the backend and the platform's layout; whatever differs between backends stays in this file.

`FDPASS_CFFI_BACKEND` (abi or api) forces one and never falls back; unset, the compiled API module is
used if it is there, else ABI. Above this file the same code runs on both.
"""

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


def _choose(asked: "str | None") -> "tuple[str, Any, Lib]":
    """The backend's name, and its `ffi` and `lib`; ImportError for the compiled module if it does not load."""
    if asked not in (None, "", "abi", "api"):
        raise ImportError(f"FDPASS_CFFI_BACKEND is {asked!r}: it must be 'abi' or 'api'")
    ffi: Any
    lib: Any
    if asked != "abi":
        try:
            from ._api import ffi, lib  # type: ignore[import-not-found,no-redef,unused-ignore]
        except ModuleNotFoundError as error:
            if error.name != f"{__name__.rpartition('.')[0]}._api":
                raise
        else:
            return "api", ffi, lib
        if asked == "api":
            raise ImportError("FDPASS_CFFI_BACKEND is 'api', but the API module was not built: run build_ffi.py")
    from ._abi import ffi

    return "abi", ffi, ffi.dlopen(None)  # the C library that the interpreter runs on


BACKEND, ffi, lib = _choose(os.environ.get("FDPASS_CFFI_BACKEND"))

_PREFIX = "" if BACKEND == "api" else "linux_" if LINUX else "bsd_"
MSGHDR, MMSGHDR, CMSGHDR = f"struct {_PREFIX}msghdr", f"struct {_PREFIX}mmsghdr", f"struct {_PREFIX}cmsghdr"
WORD: int = ffi.sizeof("size_t")
if BACKEND == "api":  # PyPy calculates slowly with what was a size_t
    _ALIGN = int(ffi.cast("int", lib.CMSG_SPACE(1) - lib.CMSG_SPACE(0)))  # type: ignore[attr-defined]
else:
    _ALIGN = _platform.cmsg_align(SYSTEM, MACHINE, WORD)
LAYOUT = Layout("@Nii" if LINUX else "@Iii", _ALIGN)
CONSTANTS = _platform.as_told(_platform.constants(SYSTEM, MACHINE), socket)

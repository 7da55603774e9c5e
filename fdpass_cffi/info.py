"""`fdpass info`: what a report of a problem should tell of the place it happened.

Law: what the kernel can do is found out by doing it, on a socketpair, and never looked up by its version.
"""

from __future__ import annotations

import os
import resource
import socket
import sys
from errno import EMFILE, ENFILE, errorcode
from importlib import import_module

from . import BACKEND, __version__
from ._backend import CMSGHDR, CONSTANTS, LAYOUT, MMSGHDR, MSGHDR, ffi
from .msg import CMSG_LEN, CMSG_SPACE, send_fds

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    Section = dict[str, str]

STRUCTS = {
    "struct msghdr": MSGHDR,
    "struct mmsghdr": MMSGHDR,
    "struct cmsghdr": CMSGHDR,
    "struct iovec": "struct iovec",
    "struct pollfd": "struct pollfd",
}
MOST_TRIED = 4096  # descriptors in one message
LOW_LIMIT = 64  # RLIMIT_NOFILE while descriptors in flight are tried


def run() -> int:
    """Print it all; the exit status."""
    for title, section in sections().items():
        print(f"{title}:")
        for name, value in section.items():
            print(f"  {name:22} {value}")
    return 0


def sections() -> dict[str, Section]:
    """Everything that is printed, in order: title, name, value."""
    return {"software": software(), "layout (offset:size, in bytes)": layout(), "limits": limits(), "kernel": kernel()}


def software() -> Section:
    """Versions of all that takes part."""
    system = os.uname()
    return {
        "fdpass_cffi": f"{__version__}, backend {BACKEND}",
        "interpreter": f"{sys.implementation.name} {' '.join(sys.version.split())}",
        "cffi": cffi_version(),
        "system": f"{system.sysname} {system.release} {system.machine}, {sys.byteorder}-endian",
        "C library": c_library(),
    }


def cffi_version() -> str:
    """That of cffi's compiled half, the one in use; PyPy has it built in."""
    return str(import_module("_cffi_backend").__version__)


def c_library() -> str:
    """Its name and version where it tells them."""
    try:
        return os.confstr("CS_GNU_LIBC_VERSION") or "does not say"
    except (AttributeError, OSError, ValueError):
        return "not glibc"


def layout() -> Section:
    """The structs as this backend declares them, and the CMSG macros."""
    lines = {title: described(name) for title, name in STRUCTS.items()}
    lines["CMSG_ALIGN"] = f"to {LAYOUT.align}"
    for count in (1, 253):
        size = count * ffi.sizeof("int")
        title = f"{count} descriptor{'s' if count > 1 else ''}"
        lines[title] = f"CMSG_LEN {CMSG_LEN(size)}, CMSG_SPACE {CMSG_SPACE(size)}"
    return lines


def described(struct: str) -> str:
    """Size and fields of a struct."""
    try:
        fields = ffi.typeof(struct).fields
    except ffi.error:  # mmsghdr, where the system has none
        return "none"
    parts = [f"{name} {field.offset}:{ffi.sizeof(field.type)}" for name, field in fields]
    return f"{ffi.sizeof(struct)} bytes: {', '.join(parts)}"


def limits() -> Section:
    """How many descriptors: in a message, in this process, on the way."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return {
        "descriptors a message": tried(per_message),
        "RLIMIT_NOFILE": f"soft {number(soft)}, hard {number(hard)}; {count_open()} open now",
        "descriptors in flight": tried(in_flight),
    }


def number(limit: int) -> str:
    """A limit as text."""
    return "unlimited" if limit == resource.RLIM_INFINITY else str(limit)


def count_open() -> str:
    """How many descriptors this process has open."""
    try:
        return str(len(os.listdir("/dev/fd")) - 1)
    except OSError:
        return "unknown number"


def per_message() -> str:
    """The most descriptors that one message takes, and the error that one more gives."""
    most, least_refused, reason = 0, MOST_TRIED + 1, ""
    with Pair() as (a, b):
        while most + 1 < least_refused:
            count = (most + least_refused) // 2
            try:
                send_fds(a, [b"x"], [a] * count)
            except OSError as error:
                least_refused, reason = count, name_of(error)
            else:
                b.recv(1)  # the descriptors are dropped
                most = count
    return f"{most} (one more: {reason})" if reason else f"at least {most}"


def in_flight() -> str:
    """Whether RLIMIT_NOFILE also bounds this user's descriptors that were sent and not received (Linux, unix(7))."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    low = LOW_LIMIT if soft == resource.RLIM_INFINITY else min(soft, LOW_LIMIT)
    with Pair() as (a, _):
        resource.setrlimit(resource.RLIMIT_NOFILE, (low, hard))
        try:
            for _ in range(low + 2):
                send_fds(a, [b"x"], [a], CONSTANTS["MSG_DONTWAIT"])
        except OSError as error:
            if name_of(error) == "ETOOMANYREFS":
                return f"about {number(soft)}, the soft RLIMIT_NOFILE (then ETOOMANYREFS), for all of this user"
            return f"unknown ({name_of(error)})"
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return "not limited for this process"


def kernel() -> Section:
    """What this kernel has, each by trying it."""
    return {
        "SO_PASSCRED": tried(lambda: brings("SO_PASSCRED", "SCM_CREDENTIALS")),
        "SO_PASSPIDFD": tried(lambda: brings("SO_PASSPIDFD", "SCM_PIDFD")),
        "SO_PASSRIGHTS": tried(refuses_rights),
        "MSG_CMSG_CLOEXEC": tried(sets_cloexec),
        "SO_PEERPIDFD": tried(peer_pidfd),
        "pidfd": tried(opens_pidfd),
    }


def tried(attempt: Callable[[], str]) -> str:
    """What an attempt says, or why it failed; with a full table of descriptors nothing is known."""
    try:
        return attempt()
    except KeyError as error:
        return f"no: this platform has no {error.args[0]}"
    except OSError as error:
        answer = "unknown" if error.errno in (EMFILE, ENFILE) else "no"
        return f"{answer}: {name_of(error)}, {error.strerror}"


def opened(data: bytes) -> int:
    """The descriptor in a control message; OSError for the negative errno that Linux puts in place of a pidfd."""
    fd = int.from_bytes(data[:4], sys.byteorder, signed=True)
    if fd < 0:
        raise OSError(-fd, os.strerror(-fd))
    return fd


def brings(option: str, kind: str) -> str:
    """Whether a message received with `option` on brings a control message of this kind."""
    with Pair() as (a, b):
        b.setsockopt(socket.SOL_SOCKET, CONSTANTS[option], 1)
        a.send(b"x")
        for level, type_, data in b.recvmsg(1, 256)[1]:
            if (level, type_) == (socket.SOL_SOCKET, CONSTANTS[kind]):
                if kind == "SCM_PIDFD":
                    os.close(opened(data))
                return "yes"
    return f"no: the option is there, but no {kind} came"


def refuses_rights() -> str:
    """Whether a receiver can refuse descriptors."""
    with Pair() as (a, b):
        b.setsockopt(socket.SOL_SOCKET, CONSTANTS["SO_PASSRIGHTS"], 0)
        try:
            send_fds(a, [b"x"], [a])
        except PermissionError:
            return "yes"
    return "no: the option is there, but the descriptors went"


def sets_cloexec() -> str:
    """Whether the kernel itself sets close-on-exec on what it delivers; by `socket`, which adds nothing to it."""
    with Pair() as (a, b):
        send_fds(a, [b"x"], [a])
        ancdata = b.recvmsg(1, CMSG_SPACE(4), CONSTANTS["MSG_CMSG_CLOEXEC"])[1]
        if not ancdata:
            raise OSError(EMFILE, os.strerror(EMFILE))
        fd = opened(ancdata[0][2])
        set_by_kernel = not os.get_inheritable(fd)
        os.close(fd)
    return "yes" if set_by_kernel else "no: the flag was taken, and ignored"


def peer_pidfd() -> str:
    """Whether a connected socket gives a pidfd of its peer."""
    with Pair() as (a, _):
        os.close(a.getsockopt(socket.SOL_SOCKET, CONSTANTS["SO_PEERPIDFD"]))
    return "yes"


def opens_pidfd() -> str:
    """Whether there is pidfd_open(2), as far as this interpreter has it."""
    if not hasattr(os, "pidfd_open"):
        return "unknown: this interpreter has no os.pidfd_open"
    os.close(os.pidfd_open(os.getpid()))
    return "yes"


def name_of(error: OSError) -> str:
    """EINVAL and the like."""
    return errorcode.get(error.errno or 0, str(error))


class Pair:
    """A socketpair, closed at the end of a `with`; what is still queued in it is dropped with it."""

    def __enter__(self) -> tuple[socket.socket, socket.socket]:
        self.ends = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        return self.ends

    def __exit__(self, *exc: object) -> None:
        for end in self.ends:
            end.close()

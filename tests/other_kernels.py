"""The package as on Darwin, FreeBSD, NetBSD or OpenBSD, on a `lib` that behaves as those kernels are documented to.

Layouts, constants and flags are the platform's own; what it sends and receives is in its struct msghdr and cmsghdr.
The descriptors are real: `Lib` passes them through a real socket of this machine, and adds what differs. That the
real kernels do no more and no less than it is not shown by any of this.
"""

from __future__ import annotations

import array
import errno
import importlib
import importlib.util
import os
import pkgutil
import socket
import struct
import sys
from contextlib import contextmanager
from types import ModuleType

from conftest import PACKAGE
from support import close, fds_in, rights

from fdpass_cffi import _abi, _platform
from fdpass_cffi._backend import CONSTANTS
from fdpass_cffi._cmsg import Layout

DARWIN, FREEBSD, NETBSD, OPENBSD = _platform.DARWIN, _platform.FREEBSD, _platform.NETBSD, _platform.OPENBSD
SYSTEMS = [DARWIN, FREEBSD, NETBSD, OPENBSD]
real_ffi = _abi.ffi
MOST = 253  # descriptors that this machine's kernel passes in a message


class FFI:
    """The generated one, whose dlopen gives another `lib`."""

    def __init__(self, lib):
        object.__setattr__(self, "dlopen", lambda _: lib)

    def __getattr__(self, name):
        return getattr(real_ffi, name)

    def __setattr__(self, name, value):
        setattr(real_ffi, name, value)


def fails(code: int) -> int:
    real_ffi.errno = code
    return -1


@contextmanager
def borrowed(fd: int):
    """A socket object for a descriptor, which stays open."""
    sock = socket.socket(fileno=fd)
    sock.setblocking(os.get_blocking(fd))  # and not by the default timeout
    try:
        yield sock
    finally:
        sock.detach()


class Lib:
    """The calls of a C library on one of those systems; `table` has its constants."""

    def __init__(self, system: str):
        self.system = system
        self.table = _platform.constants(system, os.uname().machine)
        word = real_ffi.sizeof("size_t")
        self.rights = self.table["SOL_SOCKET"], self.table["SCM_RIGHTS"]
        self.layout = Layout("@Iii", _platform.cmsg_align(system, os.uname().machine, word))
        self.poll = real_ffi.dlopen(None).poll
        self.most = 512

    def flags(self, given: int) -> int:
        """This machine's flags for those of the system; close-on-exec is `recvmsg`'s own business."""
        ours = ("MSG_PEEK", "MSG_DONTWAIT", "MSG_WAITALL")
        known = {*ours, "MSG_NOSIGNAL", "MSG_CMSG_CLOEXEC"}
        assert not given & ~sum(self.table.get(name, 0) for name in known), "a flag that the system does not have"
        return sum(CONSTANTS[name] for name in ours if given & self.table[name]) | CONSTANTS["MSG_NOSIGNAL"]

    def sendmsg(self, fd, msg, flags):
        items = self.items(msg)
        if self.system == DARWIN and msg.msg_controllen:
            (level, kind, data), *more = items
            sound = msg.msg_controllen == self.layout.cmsg_len(len(data)) and not more
            if not sound or (level, kind) != self.rights or len(data) > 4 * self.most:
                return fails(errno.EINVAL)
        carried = [array.array("i", data).tolist() for level, kind, data in items if (level, kind) == self.rights]
        if self.system in (NETBSD, OPENBSD):
            del carried[1:]
        passed = [fd for fds in carried for fd in fds]
        data = b"".join(bytes(part) for part in self.parts(msg))
        with borrowed(fd) as sock:
            try:
                return sock.sendmsg([data], rights(passed) if passed else [], self.flags(flags))
            except OSError as error:
                return fails(error.errno)

    def recvmsg(self, fd, msg, flags):
        parts = self.parts(msg)
        with borrowed(fd) as sock:
            try:
                room = socket.CMSG_SPACE(4 * MOST)
                data, ancdata, got_flags, _ = sock.recvmsg(sum(map(len, parts)), room, self.flags(flags))
            except OSError as error:
                return fails(error.errno)
        fds = fds_in(ancdata)
        for one in fds:
            os.set_inheritable(one, not flags & self.table.get("MSG_CMSG_CLOEXEC", 0))
        if got_flags & socket.MSG_CTRUNC:  # the table is full
            close(fds)
            return fails(errno.EMSGSIZE)
        if flags & self.table["MSG_PEEK"]:  # installs nothing
            close(fds)
            fds = []
        rest = data
        for part in parts:
            part[0 : min(len(part), len(rest))] = rest[: len(part)]
            rest = rest[len(part) :]
        shown = self.table["MSG_TRUNC"] if got_flags & socket.MSG_TRUNC else 0
        return len(data) if self.delivered(msg, fds, shown) else fails(errno.EMSGSIZE)

    def delivered(self, msg, fds, shown) -> bool:
        """Write the descriptors into the control buffer, in the way of the system if it is too small."""
        control = bytes(self.layout.pack([(*self.rights, array.array("i", fds).tobytes())])) if fds else b""
        room = msg.msg_controllen
        if len(control) > room:
            shown |= self.table["MSG_CTRUNC"]
            if self.system == DARWIN:
                control = control[:room]  # cmsg_len stays as it was, and all descriptors are open
            else:
                close(fds)
                control = b""
                if self.system == OPENBSD:  # the struct msghdr stays as it was
                    return False
        real_ffi.buffer(real_ffi.cast("char *", msg.msg_control), room)[0 : len(control)] = control
        msg.msg_controllen, msg.msg_namelen, msg.msg_flags = len(control), 0, shown
        return True

    def parts(self, msg):
        iov = real_ffi.cast("struct iovec *", msg.msg_iov)
        parts = [iov[i] for i in range(msg.msg_iovlen)]
        return [real_ffi.buffer(real_ffi.cast("char *", part.iov_base), part.iov_len) for part in parts]

    def items(self, msg):
        control = real_ffi.buffer(real_ffi.cast("char *", msg.msg_control), msg.msg_controllen)[:]
        return [(level, kind, control[at:end]) for level, kind, at, end, _ in self.layout.walk(control)]

    def getsockopt(self, fd, level, option, value, length):
        room = real_ffi.cast("unsigned int *", length)
        raw = self.option(fd, level, option)
        if raw is None:
            return fails(errno.ENOPROTOOPT)
        real_ffi.buffer(real_ffi.cast("char *", value), len(raw))[:] = raw
        assert len(raw) <= room[0]
        room[0] = len(raw)
        return 0

    def option(self, fd, level, option):
        with borrowed(fd) as sock:
            for name in ("SO_TYPE", "SO_DOMAIN"):
                if (level, option) == (self.table["SOL_SOCKET"], self.table.get(name)):
                    return struct.pack("i", sock.getsockopt(socket.SOL_SOCKET, CONSTANTS[name]))
        xucred = struct.pack("IIh2xI15I", 0, os.getuid(), 1, os.getgid(), *[0] * 15)
        pid = struct.pack("i", os.getpid())
        known = {
            DARWIN: {
                ("SOL_LOCAL", "LOCAL_PEERCRED"): xucred,
                ("SOL_LOCAL", "LOCAL_PEERPID"): pid,
            },
            FREEBSD: {("SOL_LOCAL", "LOCAL_PEERCRED"): xucred + bytes(8)},
            OPENBSD: {("SOL_SOCKET", "SO_PEERCRED"): struct.pack("II", os.getuid(), os.getgid()) + pid},
        }
        named = {tuple(map(self.table.get, names)): raw for names, raw in known.get(self.system, {}).items()}
        return named.get((level, option))

    def setsockopt(self, fd, level, option, value, length):
        if (level, option) != (self.table["SOL_SOCKET"], self.table["SO_OOBINLINE"]):
            return fails(errno.ENOPROTOOPT)
        with borrowed(fd) as sock:
            sock.setsockopt(socket.SOL_SOCKET, CONSTANTS["SO_OOBINLINE"], real_ffi.cast("int *", value)[0])
        return 0


def load(system: str):
    """The package, imported anew as if sys.platform were that system's; its `Lib` is `.kernel`."""
    name = f"fdpass_on_{system}"
    if name in sys.modules:
        return sys.modules[name]
    where = {"submodule_search_locations": [str(PACKAGE)]}
    spec = importlib.util.spec_from_file_location(name, PACKAGE / "__init__.py", **where)
    package = sys.modules[name] = importlib.util.module_from_spec(spec)
    package.kernel = Lib(system)
    abi = sys.modules[f"{name}._abi"] = ModuleType(f"{name}._abi")
    abi.ffi = FFI(package.kernel)
    numberless = ModuleType("socket")  # else this machine's numbers would go before the system's
    prefixes = ("MSG_", "SO_", "SOL_", "SCM_", "LOCAL_")
    vars(numberless).update((key, value) for key, value in vars(socket).items() if not key.startswith(prefixes))
    kept = sys.platform, sys.modules["socket"], os.environ.get("FDPASS_CFFI_BACKEND")
    sys.platform, sys.modules["socket"], os.environ["FDPASS_CFFI_BACKEND"] = system, numberless, "abi"
    try:
        spec.loader.exec_module(package)
        for module in pkgutil.iter_modules([str(PACKAGE)]):
            if module.name not in {"__main__", "_abi", "_api", "aio", "cli", "demo", "info"}:
                importlib.import_module(f"{name}.{module.name}")
    except BaseException:
        for key in [key for key in sys.modules if key.split(".")[0] == name]:
            del sys.modules[key]
        raise
    finally:
        sys.platform, sys.modules["socket"] = kept[:2]
        os.environ.pop("FDPASS_CFFI_BACKEND")
        if kept[2] is not None:
            os.environ["FDPASS_CFFI_BACKEND"] = kept[2]
    return package

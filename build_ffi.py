"""All the C of fdpass_cffi, and how to build it.

    python build_ffi.py            write fdpass_cffi/_abi.py and, where a C compiler is, build fdpass_cffi/_api
    python build_ffi.py --check    exit 1 if the committed fdpass_cffi/_abi.py is stale; builds nothing

ABI mode declares each struct layout by hand under a name of its own, because one generated file
serves every platform; the package picks the layout at run time and the tests compare it with the
compiler's. API mode lets the compiler fill the real structs in. Also the wheel's build hook:
HATCH_BUILD_HOOK_ENABLE_CUSTOM=1 pip wheel . compiles the API module into the wheel.

Importing this file does nothing; cffi (and for API mode setuptools) is needed only when it runs.
"""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

try:
    from hatchling.builders.hooks.plugin.interface import BuildHookInterface
except ImportError:  # run as a script: no wheel is being built
    BuildHookInterface = None  # type: ignore[assignment,misc]

ROOT = Path(__file__).resolve().parent
PACKAGE = "fdpass_cffi"

# recvmsg(2), sendmsg(2), sendmmsg(2), recvmmsg(2), poll(2), getsockopt(2). Declared alike for both
# modes; in ABI mode MSGHDR and friends are void, since no one struct is right on every platform.
CALLS = """
ssize_t sendmsg(int fd, const {msghdr} *msg, int flags);
ssize_t recvmsg(int fd, {msghdr} *msg, int flags);
int poll({pollfd} *fds, unsigned long nfds, int timeout_ms);
int getsockopt(int fd, int level, int name, void *value, {socklen} *length);
int setsockopt(int fd, int level, int name, const void *value, unsigned int length);
"""
MMSG_CALLS = """
int sendmmsg(int fd, {mmsghdr} *vec, unsigned int n, int flags);
int recvmmsg(int fd, {mmsghdr} *vec, unsigned int n, int flags, {timespec} *timeout);
"""

# musl pads its int and u32 lengths to these size_t's: the same bytes, if the padding is zero.
LINUX_LAYOUT = """
struct linux_msghdr { void *msg_name; unsigned int msg_namelen; void *msg_iov; size_t msg_iovlen;
                      void *msg_control; size_t msg_controllen; int msg_flags; };
struct linux_mmsghdr { struct linux_msghdr msg_hdr; unsigned int msg_len; };
struct linux_cmsghdr { size_t cmsg_len; int cmsg_level; int cmsg_type; };
"""
# Darwin, FreeBSD, NetBSD and OpenBSD share these fields and differ in CMSG alignment alone.
BSD_LAYOUT = """
struct bsd_msghdr { void *msg_name; unsigned int msg_namelen; void *msg_iov; int msg_iovlen;
                    void *msg_control; unsigned int msg_controllen; int msg_flags; };
struct bsd_mmsghdr { struct bsd_msghdr msg_hdr; unsigned int msg_len; };
struct bsd_cmsghdr { unsigned int cmsg_len; int cmsg_level; int cmsg_type; };
"""
COMMON_LAYOUT = """
struct iovec { void *iov_base; size_t iov_len; };
struct pollfd { int fd; short events; short revents; };
"""

# iovlen and controllen are size_t in glibc, int and socklen_t in musl and the BSDs.
API_LAYOUT = """
typedef int... socklen_t;
typedef int... iovlen_t;
typedef int... controllen_t;
typedef int... cmsglen_t;
struct timespec { ...; };
struct iovec { void *iov_base; size_t iov_len; ...; };
struct pollfd { int fd; short events; short revents; ...; };
struct msghdr { void *msg_name; socklen_t msg_namelen; struct iovec *msg_iov; iovlen_t msg_iovlen;
                void *msg_control; controllen_t msg_controllen; int msg_flags; ...; };
struct cmsghdr { cmsglen_t cmsg_len; int cmsg_level; int cmsg_type; ...; };
struct cmsghdr *CMSG_FIRSTHDR(struct msghdr *msg);
struct cmsghdr *CMSG_NXTHDR(struct msghdr *msg, struct cmsghdr *cmsg);
unsigned char *CMSG_DATA(struct cmsghdr *cmsg);
size_t CMSG_LEN(size_t length);
size_t CMSG_SPACE(size_t length);
"""
API_MMSG_LAYOUT = """
struct mmsghdr { struct msghdr msg_hdr; unsigned int msg_len; ...; };
"""
API_SOURCE = """
#define _GNU_SOURCE 1
#include <poll.h>
#include <sys/socket.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <time.h>
typedef __typeof__(((struct msghdr *)0)->msg_iovlen) iovlen_t;
typedef __typeof__(((struct msghdr *)0)->msg_controllen) controllen_t;
typedef __typeof__(((struct cmsghdr *)0)->cmsg_len) cmsglen_t;
"""
HAVE_MMSG = ("linux", "freebsd", "netbsd", "openbsd")


def abi() -> Any:
    """The FFI of ABI mode: layouts by hand, no compiler; `.emit_python_code()` writes _abi.py."""
    from cffi import FFI

    ffi = FFI()
    any_pointer = dict.fromkeys(("msghdr", "mmsghdr", "pollfd", "socklen", "timespec"), "void")
    ffi.cdef(COMMON_LAYOUT + LINUX_LAYOUT + BSD_LAYOUT)
    ffi.cdef((CALLS + MMSG_CALLS).format(**any_pointer))
    ffi.set_source(f"{PACKAGE}._abi", None)
    return ffi


def api() -> Any:
    """The FFI of API mode: the real <sys/socket.h> and its CMSG macros, for `.compile()`."""
    from cffi import FFI

    ffi = FFI()
    real = {name: f"struct {name}" for name in ("msghdr", "mmsghdr", "pollfd", "timespec")}
    mmsg = sys.platform.startswith(HAVE_MMSG)
    ffi.cdef(API_LAYOUT + (API_MMSG_LAYOUT if mmsg else ""))
    ffi.cdef((CALLS + (MMSG_CALLS if mmsg else "")).format(socklen="socklen_t", **real))
    ffi.set_source(f"{PACKAGE}._api", API_SOURCE)
    return ffi


def emit_abi(path: Path) -> None:
    """Write what _abi.py must be to `path`; quietly, since cffi would name that path."""
    with contextlib.redirect_stdout(io.StringIO()):
        abi().emit_python_code(str(path))


def abi_is_current() -> bool:
    """Whether the committed _abi.py is what abi() generates now."""
    with tempfile.TemporaryDirectory() as folder:
        fresh = Path(folder) / "_abi.py"
        emit_abi(fresh)
        return fresh.read_bytes() == (ROOT / PACKAGE / "_abi.py").read_bytes()


def stable_abi() -> bool:
    """Whether one compiled module serves every later CPython (the limited API; cffi lacks it free-threaded)."""
    return sys.implementation.name == "cpython" and not sysconfig.get_config_var("Py_GIL_DISABLED")


def build_api(into: Path) -> Path:
    """Compile the API module in a temporary folder and move it into the folder `into`; its path."""
    suffix = ".abi3.so" if stable_abi() else sysconfig.get_config_var("EXT_SUFFIX")
    with tempfile.TemporaryDirectory() as folder:
        built = Path(api().compile(tmpdir=folder, target=f"_api{suffix}"))
        return Path(shutil.move(str(built), str(into / built.name)))


def have_compiler() -> bool:
    """Whether the C compiler is there that setuptools will call: $CC, else the one that built this interpreter."""
    command = os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc"
    return shutil.which(command.split()[0]) is not None


def hindrance() -> str:
    """Why no API module can be built here, in words; empty if it can."""
    if not have_compiler():
        return "no C compiler"
    if sysconfig.get_config_var("Py_GIL_DISABLED") and sys.version_info < (3, 14):
        return "cffi compiles nothing for this free-threaded CPython, only from 3.14 on"
    return ""


def platform_tag() -> str:
    """The wheel tag of this machine as pip reads it; sysconfig takes a 32-bit interpreter for the kernel's machine."""
    from packaging.tags import platform_tags

    return next(tag for tag in platform_tags() if not tag.startswith(("manylinux", "musllinux")))


if BuildHookInterface is not None:

    class CustomBuildHook(BuildHookInterface):  # type: ignore[type-arg]
        """hatchling's hook: compiles the API module into the wheel (off unless asked for)."""

        PLUGIN_NAME = "custom"

        def dependencies(self) -> list[str]:
            """What compiling needs."""
            return ["cffi>=1.15; platform_python_implementation != 'PyPy'", "setuptools"]

        def initialize(self, version: str, build_data: dict[str, Any]) -> None:
            """Compile, and say where in the wheel the module goes and whom the wheel fits."""
            if self.target_name != "wheel" or version == "editable":
                return
            why = hindrance()
            if why:
                raise RuntimeError(f"{why}: build without HATCH_BUILD_HOOK_ENABLE_CUSTOM, nothing needs it")
            self._folder = tempfile.TemporaryDirectory()
            module = build_api(Path(self._folder.name))
            build_data["force_include"][str(module)] = f"{PACKAGE}/{module.name}"
            build_data["pure_python"] = False
            build_data["infer_tag"] = not stable_abi()
            if stable_abi():
                build_data["tag"] = f"cp39-abi3-{platform_tag()}"

        def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
            """Remove what initialize made."""
            folder = getattr(self, "_folder", None)
            if folder is not None:
                folder.cleanup()


def main(argv: list[str]) -> int:
    """Run as a script: 0, 1 if _abi.py is stale, 2 for wrong arguments."""
    if argv == ["--check"]:
        current = abi_is_current()
        print(f"{PACKAGE}/_abi.py is {'current' if current else 'stale: run python build_ffi.py'}")
        return 0 if current else 1
    if argv:
        print(__doc__)
        return 2
    emit_abi(ROOT / PACKAGE / "_abi.py")
    print(f"wrote {PACKAGE}/_abi.py")
    why = hindrance()
    print(f"{why}: the API module was not built" if why else f"built {PACKAGE}/{build_api(ROOT / PACKAGE).name}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

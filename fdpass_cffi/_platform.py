"""What differs between platforms: alignment, constants, what a kernel can do, the names of AF_UNIX.

Pure: each function is told what it has to know of the platform (`sys.platform`, the machine of `os.uname()`),
so that all tables are tested on any machine. Numbers come from the headers of each system; the
`socket` module is asked first by `_backend`, since it knows the running system best.
"""

from __future__ import annotations

from os import fsdecode

LINUX, DARWIN, FREEBSD, NETBSD, OPENBSD = "linux", "darwin", "freebsd", "netbsd", "openbsd"
SUPPORTED = (LINUX, DARWIN, FREEBSD, NETBSD, OPENBSD)


def system(platform: str) -> str:
    """The family of `sys.platform` ('freebsd14' is 'freebsd'); ImportError for one not declared here."""
    for name in SUPPORTED:
        if platform.startswith(name):
            return name
    raise ImportError(
        f"fdpass_cffi does not support the platform {platform!r}: the layouts of its struct msghdr and "
        f"cmsghdr are not declared. Supported: {', '.join(SUPPORTED)}"
    )


# Where CMSG_ALIGN does not round to sizeof(size_t): by system and sizeof(size_t), the unit and the machines. From
# <machine/cdefs.h> of NetBSD, whose os.uname() names a port, not a processor (evbarm is 32 or 64 bits wide), and
# <machine/_types.h> of OpenBSD.
_ALIGN = {
    (NETBSD, 8): {16: "aarch64 arm64 evbarm ia64 riscv sparc64"},
    (NETBSD, 4): {
        8: "arm acorn32 cats epoc32 evbarm hpcarm iyonix netwinder shark zaurus "
        "powerpc amigappc bebox evbppc ibmnws macppc mvmeppc ofppc prep rs6000 sandpoint "
        "mips algor arc cobalt emips evbmips ews4800mips hpcmips mipsco newsmips playstation2 pmax sbmips sgimips "
        "hppa sparc"
    },
    (OPENBSD, 8): {16: "sparc64"},
    (OPENBSD, 4): {8: "arm armv7 hppa macppc powerpc socppc", 16: "luna88k"},
}


def cmsg_align(os_name: str, machine: str, word: int) -> int:
    """The unit, in bytes, to which CMSG_ALIGN rounds; `word` is sizeof(size_t)."""
    if os_name == DARWIN:
        return 4
    for unit, machines in _ALIGN.get((os_name, word), {}).items():
        if machine in machines.split():
            return unit
    return word


_BSD = {
    "MSG_OOB": 1, "MSG_PEEK": 2, "MSG_EOR": 8, "MSG_TRUNC": 0x10, "MSG_CTRUNC": 0x20, "MSG_WAITALL": 0x40,
    "MSG_DONTWAIT": 0x80,
    "SOL_SOCKET": 0xFFFF, "SCM_RIGHTS": 1, "SO_OOBINLINE": 0x100, "SO_SNDBUF": 0x1001, "SO_TYPE": 0x1008,
}  # fmt: skip
_LINUX = {
    "MSG_OOB": 1, "MSG_PEEK": 2, "MSG_CTRUNC": 8, "MSG_TRUNC": 0x20, "MSG_DONTWAIT": 0x40, "MSG_EOR": 0x80,
    "MSG_WAITALL": 0x100, "MSG_NOSIGNAL": 0x4000, "MSG_WAITFORONE": 0x10000, "MSG_ZEROCOPY": 0x4000000,
    "MSG_CMSG_CLOEXEC": 0x40000000,
    "SOL_SOCKET": 1, "SOL_ALG": 279, "SCM_RIGHTS": 1, "SCM_CREDENTIALS": 2, "SCM_SECURITY": 3, "SCM_PIDFD": 4,
    "SO_TYPE": 3, "SO_SNDBUF": 7, "SO_OOBINLINE": 10, "SO_PASSCRED": 16, "SO_PEERCRED": 17, "SO_TIMESTAMP": 29,
    "SO_PASSSEC": 34, "SO_PROTOCOL": 38, "SO_DOMAIN": 39, "SO_ZEROCOPY": 60,
    "SO_PASSPIDFD": 76, "SO_PEERPIDFD": 77, "SO_PASSRIGHTS": 83,
}  # fmt: skip
_TABLES = {
    LINUX: _LINUX,
    DARWIN: {**_BSD, "MSG_NOSIGNAL": 0x80000, "SOL_LOCAL": 0, "LOCAL_PEERCRED": 1, "LOCAL_PEERPID": 2},
    FREEBSD: {**_BSD, "MSG_NOSIGNAL": 0x20000, "MSG_CMSG_CLOEXEC": 0x40000, "SO_DOMAIN": 0x1019,
              "SOL_LOCAL": 0, "LOCAL_PEERCRED": 1},
    NETBSD: {**_BSD, "MSG_NOSIGNAL": 0x400, "MSG_CMSG_CLOEXEC": 0x800},
    OPENBSD: {**_BSD, "MSG_NOSIGNAL": 0x400, "MSG_CMSG_CLOEXEC": 0x800, "SO_DOMAIN": 0x1024, "SO_PEERCRED": 0x1022},
}  # fmt: skip
# Linux machines that number socket options in their own way (arch/*/include/uapi/asm/socket.h).
_OLD_UNIX = {
    "SOL_SOCKET": 0xFFFF, "SO_OOBINLINE": 0x100, "SO_SNDBUF": 0x1001,
    "SO_TYPE": 0x1008, "SO_PROTOCOL": 0x1028, "SO_DOMAIN": 0x1029,
}  # fmt: skip
_LINUX_MACHINES = {
    "ppc": {"SO_PASSCRED": 20, "SO_PEERCRED": 21},
    "mips": {**_OLD_UNIX, "SO_PASSCRED": 17, "SO_PEERCRED": 18},
    "alpha": {**_OLD_UNIX, "SO_PASSCRED": 17, "SO_PEERCRED": 18},
    "sparc": {**_OLD_UNIX, "SO_PASSCRED": 2, "SO_PEERCRED": 0x40, "SO_PASSSEC": 31, "SO_ZEROCOPY": 0x3E,
              "SO_PASSPIDFD": 0x55, "SO_PEERPIDFD": 0x56, "SO_PASSRIGHTS": 0x5C},
    "parisc": {**_OLD_UNIX, "SO_PASSCRED": 0x4010, "SO_PEERCRED": 0x4011, "SO_TIMESTAMP": 0x4012, "SO_PASSSEC": 0x401E,
               "SO_ZEROCOPY": 0x4035, "SO_PASSPIDFD": 0x404A, "SO_PEERPIDFD": 0x404B, "SO_PASSRIGHTS": 0x4051},
}  # fmt: skip


def constants(os_name: str, machine: str) -> dict[str, int]:
    """The constants of <sys/socket.h> by their C names; a name the platform lacks is not in it."""
    table = dict(_TABLES[os_name])
    if os_name == LINUX:
        for prefix, own in _LINUX_MACHINES.items():
            if machine.startswith(prefix):
                table.update(own)
    return table


def as_told(table: dict[str, int], module: object) -> dict[str, int]:
    """The table, with the numbers that a module, `socket`, has of its names."""
    return {name: int(getattr(module, name, number)) for name, number in table.items()}


def unix_path(raw: bytes, *, bsd: bool) -> str | bytes:
    """The address in a struct sockaddr_un of AF_UNIX: a path as str, on Linux an abstract name as bytes; unix(7).

    It is here, and not with the other families, since what receives descriptors needs it at its start: a full table of
    descriptors lets no module be opened any more, and what came with the first message would be lost to that.
    """
    path = raw[2:]
    if path[:1] == b"\0" and not bsd:
        return path  # an abstract name: every byte counts
    return fsdecode(path.partition(b"\0")[0])


class Kernel:
    """What a kernel does with descriptors otherwise than Linux (there: all False), by XNU's and the BSDs' sources.

    `one_rights_item`: of several SCM_RIGHTS items in a message one alone arrives, or the message is refused.
    `sets_no_cloexec`: there is no MSG_CMSG_CLOEXEC.
    `truncation_leaks`: descriptors for which the control buffer is too small are installed all the same, unseen.
    `loss_is_emsgsize`: recvmsg(2) fails, where descriptors found no room in the table or (OpenBSD) in the buffer.
    """

    __slots__ = ("loss_is_emsgsize", "one_rights_item", "sets_no_cloexec", "truncation_leaks")

    def __init__(self, os_name: str) -> None:
        self.one_rights_item = os_name in (DARWIN, NETBSD, OPENBSD)
        self.sets_no_cloexec = os_name == DARWIN
        self.truncation_leaks = os_name == DARWIN
        self.loss_is_emsgsize = os_name != LINUX

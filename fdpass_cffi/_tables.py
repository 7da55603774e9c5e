"""What the headers of other systems say, and Linux's own on machines with numbers of their own.

Pure, as `_platform` is, which imports this only where it is needed, so that the usual Linux does not pay for it.
"""

from __future__ import annotations

DARWIN, FREEBSD, NETBSD, OPENBSD = "darwin", "freebsd", "netbsd", "openbsd"

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
    """The unit, in bytes, to which CMSG_ALIGN rounds on another system than Linux; `word` is sizeof(size_t)."""
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
_TABLES = {
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


def constants(os_name: str, machine: str, linux: dict[str, int]) -> dict[str, int]:
    """The constants of <sys/socket.h> by their C names; `linux` has those of the usual Linux."""
    if os_name != "linux":
        return dict(_TABLES[os_name])
    table = dict(linux)
    for prefix, own in _LINUX_MACHINES.items():
        if machine.startswith(prefix):
            table.update(own)
    return table

"""What differs between platforms: alignment, constants, what a kernel can do, the names of AF_UNIX.

Pure: each function is told what it has to know of the platform (`sys.platform`, the machine of `os.uname()`),
so that all tables are tested on any machine. Numbers come from the headers of each system
(those of all but the usual Linux are in _tables.py); the `socket` module is asked first by `_backend`, since it knows
the running system best.
"""

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


def cmsg_align(os_name: str, machine: str, word: int) -> int:
    """The unit, in bytes, to which CMSG_ALIGN rounds; `word` is sizeof(size_t)."""
    if os_name == LINUX:
        return word
    from ._tables import cmsg_align

    return cmsg_align(os_name, machine, word)


_LINUX = {
    "MSG_OOB": 1, "MSG_PEEK": 2, "MSG_CTRUNC": 8, "MSG_TRUNC": 0x20, "MSG_DONTWAIT": 0x40, "MSG_EOR": 0x80,
    "MSG_WAITALL": 0x100, "MSG_NOSIGNAL": 0x4000, "MSG_WAITFORONE": 0x10000, "MSG_ZEROCOPY": 0x4000000,
    "MSG_CMSG_CLOEXEC": 0x40000000,
    "SOL_SOCKET": 1, "SOL_ALG": 279, "SCM_RIGHTS": 1, "SCM_CREDENTIALS": 2, "SCM_SECURITY": 3, "SCM_PIDFD": 4,
    "SO_TYPE": 3, "SO_SNDBUF": 7, "SO_OOBINLINE": 10, "SO_PASSCRED": 16, "SO_PEERCRED": 17, "SO_TIMESTAMP": 29,
    "SO_PASSSEC": 34, "SO_PROTOCOL": 38, "SO_DOMAIN": 39, "SO_ZEROCOPY": 60,
    "SO_PASSPIDFD": 76, "SO_PEERPIDFD": 77, "SO_PASSRIGHTS": 83,
}  # fmt: skip
# Linux machines that number socket options in their own way, by the starts of their names.
_OWN_NUMBERS = ("ppc", "mips", "alpha", "sparc", "parisc")


def constants(os_name: str, machine: str) -> "dict[str, int]":
    """The constants of <sys/socket.h> by their C names; a name the platform lacks is not in it."""
    if os_name == LINUX and not machine.startswith(_OWN_NUMBERS):
        return dict(_LINUX)
    from ._tables import constants

    return constants(os_name, machine, _LINUX)


def as_told(table: "dict[str, int]", module: object) -> "dict[str, int]":
    """The table, with the numbers that a module, `socket`, has of its names."""
    return {name: int(getattr(module, name, number)) for name, number in table.items()}


def unix_path(raw: bytes, *, bsd: bool) -> "str | bytes":
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

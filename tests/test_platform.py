"""The tables of _platform, and the structs declared in build_ffi.py, against figures of platforms that are not here.

The figures were read from each system's headers by C compilers (glibc 2.36, musl, the macOS SDK, FreeBSD 14,
NetBSD 10, OpenBSD 7), those marked "source" from its published headers alone.
"""

from __future__ import annotations

import ast
import re
import runpy
import struct
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import PACKAGE
from test_layouts import holds

from fdpass_cffi import _platform
from fdpass_cffi._abi import ffi
from fdpass_cffi._cmsg import Layout
from fdpass_cffi._platform import DARWIN, FREEBSD, LINUX, NETBSD, OPENBSD, SUPPORTED

# Structs: the size, then offset:size of each field, by family and sizeof(size_t)

FIELDS = {
    "msghdr": ("msg_name", "msg_namelen", "msg_iov", "msg_iovlen", "msg_control", "msg_controllen", "msg_flags"),
    "cmsghdr": ("cmsg_len", "cmsg_level", "cmsg_type"),
}
STRUCTS = {
    ("linux", 8, "msghdr"): "56  0:8 8:4 16:8 24:8 32:8 40:8 48:4",
    ("linux", 4, "msghdr"): "28  0:4 4:4 8:4 12:4 16:4 20:4 24:4",
    ("bsd", 8, "msghdr"): "48  0:8 8:4 16:8 24:4 32:8 40:4 44:4",
    ("bsd", 4, "msghdr"): "28  0:4 4:4 8:4 12:4 16:4 20:4 24:4",
    ("linux", 8, "cmsghdr"): "16  0:8 8:4 12:4",
    ("linux", 4, "cmsghdr"): "12  0:4 4:4 8:4",
    ("bsd", 8, "cmsghdr"): "12  0:4 4:4 8:4",
    ("bsd", 4, "cmsghdr"): "12  0:4 4:4 8:4",
}
# musl, 64-bit: an int with padding where glibc and the kernel have a size_t
MUSL = {
    ("little", "msghdr"): "56  0:8 8:4 16:8 24:4 32:8 40:4 48:4",
    ("big", "msghdr"): "56  0:8 8:4 16:8 28:4 32:8 44:4 48:4",
    ("little", "cmsghdr"): "16  0:4 8:4 12:4",
    ("big", "cmsghdr"): "16  4:4 8:4 12:4",
}


def figures(text: str) -> tuple[int, list[tuple[int, int]]]:
    size, *fields = text.split()
    return int(size), [(int(offset), int(length)) for offset, _, length in (field.partition(":") for field in fields)]


BUILD = runpy.run_path(str(Path(__file__).parent.parent / "build_ffi.py"))
DECLARED = {
    name: [field.strip().rpartition(" ")[::2] for field in body.split(";")[:-1]]
    for name, body in re.findall(r"struct (\w+) \{(.+?)\};", BUILD["LINUX_LAYOUT"] + BUILD["BSD_LAYOUT"], re.DOTALL)
}


def laid_out(family: str, name: str, word: int) -> tuple[int, list[tuple[int, int]]]:
    """Our declaration laid out as compilers do where a pointer and a size_t have `word` bytes."""
    sizes = {"int": 4, "unsigned int": 4, "size_t": word, "void": word}  # the * of a pointer is at its name
    at, widest, fields = 0, 1, []
    for kind, _ in DECLARED[f"{family}_{name}"]:
        at = -(-at // sizes[kind]) * sizes[kind]
        fields.append((at, sizes[kind]))
        at, widest = at + sizes[kind], max(widest, sizes[kind])
    return -(-at // widest) * widest, fields


@pytest.mark.parametrize(("family", "word", "name"), STRUCTS)
def test_declared_structs_have_the_figures(family, word, name):
    """Each struct, laid out for 32 and for 64 bits, has the size and the offsets that compilers report."""
    struct_ = ffi.typeof(f"struct {family}_{name}")
    assert FIELDS[name] == tuple(field for field, _ in struct_.fields)
    expected = figures(STRUCTS[family, word, name])
    assert expected == laid_out(family, name, word)
    if word == ffi.sizeof("size_t"):
        here = [(ffi.offsetof(struct_, field), ffi.sizeof(at.type)) for field, at in struct_.fields]
        assert expected == (ffi.sizeof(struct_), here)


@pytest.mark.parametrize(("byteorder", "name"), MUSL)
def test_linux_structs_hold_musls_numbers(byteorder, name):
    """A length written through our size_t is read by musl from its int, on either byte order."""
    size, fields = figures(MUSL[byteorder, name])
    ours_size, ours = laid_out("linux", name, 8)
    assert size == ours_size
    assert [True] * len(fields) == [holds(our, their, byteorder) for our, their in zip(ours, fields)]


def test_mmsghdr_is_a_msghdr_and_a_count():
    """struct mmsghdr, where there is one: a msghdr, an unsigned int, and padding to a pointer's alignment."""
    for family in ("linux", "bsd"):
        msghdr = ffi.sizeof(f"struct {family}_msghdr")
        word = ffi.sizeof("void *")
        assert msghdr == ffi.offsetof(f"struct {family}_mmsghdr", "msg_len")
        assert -(-(msghdr + 4) // word) * word == ffi.sizeof(f"struct {family}_mmsghdr")


def test_all_declared_structs_have_figures():
    """The figures above speak of all the structs that build_ffi.py lays out by hand for a platform."""
    assert {f"{family}_{name}" for family in ("linux", "bsd") for name in (*FIELDS, "mmsghdr")} == set(DECLARED)


# CMSG macros: sizeof(struct cmsghdr), CMSG_LEN of 0 and 4, CMSG_SPACE of 0, 1, 4, 8 and 12, and the unit

SHORT = (12, 12, 16, 12, 16, 16, 20, 24, 4)
LINUX64 = (16, 16, 20, 16, 24, 24, 24, 32, 8)
BSD8 = (12, 16, 20, 16, 24, 24, 24, 32, 8)
BSD16 = (12, 16, 20, 16, 32, 32, 32, 32, 16)

# By system, os.uname().machine, the format of struct cmsghdr and sizeof(size_t)
MACROS = [
    (LINUX, "x86_64", "<Qii", 8, LINUX64),
    (LINUX, "x86_64", "<Iii", 4, SHORT),  # i386 on a 64-bit kernel, and x32
    (LINUX, "i686", "<Iii", 4, SHORT),
    (LINUX, "aarch64", "<Qii", 8, LINUX64),
    (LINUX, "armv7l", "<Iii", 4, SHORT),
    (LINUX, "s390x", ">Qii", 8, LINUX64),
    (LINUX, "ppc64", ">Qii", 8, LINUX64),
    (LINUX, "ppc64le", "<Qii", 8, LINUX64),
    (LINUX, "ppc", ">Iii", 4, SHORT),
    (LINUX, "riscv64", "<Qii", 8, LINUX64),
    (LINUX, "mips64", "<Qii", 8, LINUX64),
    (LINUX, "mips", ">Iii", 4, SHORT),
    (LINUX, "sparc64", ">Qii", 8, LINUX64),
    (LINUX, "alpha", "<Qii", 8, LINUX64),
    (LINUX, "parisc", ">Iii", 4, SHORT),
    (LINUX, "m68k", ">Iii", 4, SHORT),
    (LINUX, "sh4", "<Iii", 4, SHORT),
    (DARWIN, "x86_64", "<Iii", 8, SHORT),
    (DARWIN, "arm64", "<Iii", 8, SHORT),
    (FREEBSD, "amd64", "<Iii", 8, BSD8),
    (FREEBSD, "arm64", "<Iii", 8, BSD8),
    (FREEBSD, "i386", "<Iii", 4, SHORT),
    (FREEBSD, "arm", "<Iii", 4, SHORT),  # source
    (FREEBSD, "powerpc", ">Iii", 8, BSD8),  # source
    (FREEBSD, "riscv", "<Iii", 8, BSD8),  # source
    (NETBSD, "amd64", "<Iii", 8, BSD8),
    (NETBSD, "evbarm", "<Iii", 8, BSD16),
    (NETBSD, "evbarm", "<Iii", 4, BSD8),  # source
    (NETBSD, "i386", "<Iii", 4, SHORT),
    (NETBSD, "macppc", ">Iii", 4, BSD8),
    (NETBSD, "evbppc", ">Iii", 4, BSD8),
    (NETBSD, "sparc64", ">Iii", 8, BSD16),
    (NETBSD, "sparc", ">Iii", 4, BSD8),  # source
    (NETBSD, "evbmips", "<Iii", 4, BSD8),  # source
    (NETBSD, "evbmips", "<Iii", 8, BSD8),  # source
    (NETBSD, "sgimips", ">Iii", 4, BSD8),  # source
    (NETBSD, "hppa", ">Iii", 4, BSD8),  # source
    (NETBSD, "alpha", "<Iii", 8, BSD8),  # source
    (NETBSD, "riscv", "<Iii", 8, BSD16),  # source
    (OPENBSD, "amd64", "<Iii", 8, BSD8),
    (OPENBSD, "arm64", "<Iii", 8, BSD8),
    (OPENBSD, "i386", "<Iii", 4, SHORT),
    (OPENBSD, "armv7", "<Iii", 4, BSD8),
    (OPENBSD, "sparc64", ">Iii", 8, BSD16),
    (OPENBSD, "macppc", ">Iii", 4, BSD8),  # source
    (OPENBSD, "powerpc64", ">Iii", 8, BSD8),  # source
    (OPENBSD, "riscv64", "<Iii", 8, BSD8),  # source
    (OPENBSD, "octeon", ">Iii", 8, BSD8),  # source
    (OPENBSD, "hppa", ">Iii", 4, BSD8),  # source
    (OPENBSD, "landisk", "<Iii", 4, SHORT),  # source
    (OPENBSD, "luna88k", ">Iii", 4, BSD16),  # source
]


def test_cmsg_macros_have_the_figures():
    """On each platform, and by the name its uname gives the machine, CMSG_LEN and CMSG_SPACE are the headers' own."""
    for system, machine, header, word, expected in MACROS:
        layout = Layout(header, _platform.cmsg_align(system, machine, word))
        lengths = tuple(layout.cmsg_len(n) for n in (0, 4))
        spaces = tuple(layout.cmsg_space(n) for n in (0, 1, 4, 8, 12))
        assert expected == (layout.header, *lengths, *spaces, layout.align), (system, machine, word)


def test_one_descriptor_is_where_the_figures_say():
    """A packed SCM_RIGHTS item has its numbers and its descriptor at the platform's offsets, in its byte order."""
    for system, machine, header, word, expected in MACROS:
        layout = Layout(header, _platform.cmsg_align(system, machine, word))
        level = _platform.constants(system, machine)["SOL_SOCKET"]
        fd = struct.pack(header[0] + "i", 0x01020304)
        control = bytes(layout.pack([(level, 1, fd)]))
        _, fields = figures(STRUCTS["linux" if system == LINUX else "bsd", word, "cmsghdr"])
        byteorder = "little" if header[0] == "<" else "big"
        numbers = [int.from_bytes(control[offset : offset + size], byteorder) for offset, size in fields]
        assert [expected[2], level, 1] == numbers, (system, machine, word)
        assert fd + bytes(expected[5] - expected[2]) == control[expected[1] :], (system, machine, word)


# Constants: every name of the package's tables, and what it is where; None where the platform does not define it

LINUX_FIGURES = {
    "MSG_OOB": 1, "MSG_PEEK": 2, "MSG_TRUNC": 32, "MSG_CTRUNC": 8, "MSG_WAITALL": 0x100, "MSG_DONTWAIT": 0x40,
    "MSG_EOR": 0x80,
    "MSG_NOSIGNAL": 0x4000, "MSG_CMSG_CLOEXEC": 0x40000000, "SCM_RIGHTS": 1, "SCM_CREDENTIALS": 2, "SCM_SECURITY": 3,
    "SCM_PIDFD": 4, "MSG_WAITFORONE": 0x10000, "MSG_ZEROCOPY": 0x4000000, "SOL_ALG": 279, "SOL_LOCAL": None,
    "LOCAL_PEERCRED": None, "LOCAL_PEERPID": None,
}  # fmt: skip
NEW = {"SO_PASSPIDFD": 76, "SO_PEERPIDFD": 77, "SO_PASSRIGHTS": 83}
GENERIC = {
    **LINUX_FIGURES, **NEW, "SOL_SOCKET": 1, "SO_TYPE": 3, "SO_PROTOCOL": 38, "SO_DOMAIN": 39, "SO_PASSCRED": 16,
    "SO_PEERCRED": 17, "SO_PASSSEC": 34, "SO_TIMESTAMP": 29, "SO_ZEROCOPY": 60, "SO_SNDBUF": 7, "SO_OOBINLINE": 10,
}  # fmt: skip
MIPS = {
    **LINUX_FIGURES, **NEW, "SOL_SOCKET": 0xFFFF, "SO_TYPE": 0x1008, "SO_PROTOCOL": 0x1028, "SO_DOMAIN": 0x1029,
    "SO_PASSCRED": 17, "SO_PEERCRED": 18, "SO_PASSSEC": 34, "SO_TIMESTAMP": 29, "SO_ZEROCOPY": 60, "SO_SNDBUF": 0x1001,
    "SO_OOBINLINE": 0x100,
}  # fmt: skip
BSD_FIGURES = {
    "MSG_OOB": 1, "MSG_PEEK": 2, "MSG_TRUNC": 16, "MSG_CTRUNC": 32, "MSG_WAITALL": 0x40, "MSG_DONTWAIT": 0x80,
    "MSG_EOR": 8,
    "SOL_SOCKET": 0xFFFF, "SO_TYPE": 0x1008, "SCM_RIGHTS": 1, "SOL_ALG": None, "SCM_CREDENTIALS": None,
    "SCM_PIDFD": None, "MSG_ZEROCOPY": None, "SO_PASSCRED": None, "SO_PASSPIDFD": None, "SO_PEERPIDFD": None,
    "SO_PASSRIGHTS": None, "SO_PASSSEC": None, "SO_TIMESTAMP": None, "SO_ZEROCOPY": None,
    "SO_SNDBUF": 0x1001, "SO_OOBINLINE": 0x100,
}  # fmt: skip
SPARC = {
    **MIPS, "SO_PASSCRED": 2, "SO_PEERCRED": 0x40, "SO_PASSSEC": 31, "SO_ZEROCOPY": 0x3E,
    "SO_PASSPIDFD": 0x55, "SO_PEERPIDFD": 0x56, "SO_PASSRIGHTS": 0x5C,
}  # fmt: skip
PARISC = {
    **MIPS, "SO_PASSCRED": 0x4010, "SO_PEERCRED": 0x4011, "SO_PASSSEC": 0x401E, "SO_TIMESTAMP": 0x4012,
    "SO_ZEROCOPY": 0x4035, "SO_PASSPIDFD": 0x404A, "SO_PEERPIDFD": 0x404B, "SO_PASSRIGHTS": 0x4051,
}  # fmt: skip
POWERPC = {**GENERIC, "SO_PASSCRED": 20, "SO_PEERCRED": 21}
CONSTANTS = [
    *((LINUX, machine, GENERIC) for machine in ("x86_64", "i686", "aarch64", "armv7l", "s390x", "riscv64", "m68k")),
    *((LINUX, machine, POWERPC) for machine in ("ppc", "ppc64", "ppc64le")),
    *((LINUX, machine, MIPS) for machine in ("mips", "mips64", "alpha")),
    *((LINUX, machine, SPARC) for machine in ("sparc", "sparc64")),
    *((LINUX, machine, PARISC) for machine in ("parisc", "parisc64")),
    (DARWIN, "arm64", {**BSD_FIGURES, "MSG_NOSIGNAL": 0x80000, "MSG_CMSG_CLOEXEC": None, "SO_DOMAIN": None,
                       "SO_PEERCRED": None, "SOL_LOCAL": 0, "LOCAL_PEERCRED": 1, "LOCAL_PEERPID": 2}),
    (FREEBSD, "amd64", {**BSD_FIGURES, "MSG_NOSIGNAL": 0x20000, "MSG_CMSG_CLOEXEC": 0x40000, "SO_DOMAIN": 0x1019,
                        "SO_PEERCRED": None, "SOL_LOCAL": 0, "LOCAL_PEERCRED": 1}),
    (NETBSD, "amd64", {**BSD_FIGURES, "MSG_NOSIGNAL": 0x400, "MSG_CMSG_CLOEXEC": 0x800, "SO_DOMAIN": None,
                       "SO_PEERCRED": None, "LOCAL_PEERCRED": None}),
    (OPENBSD, "amd64", {**BSD_FIGURES, "MSG_NOSIGNAL": 0x400, "MSG_CMSG_CLOEXEC": 0x800, "SO_DOMAIN": 0x1024,
                        "SO_PEERCRED": 0x1022, "LOCAL_PEERCRED": None}),
]  # fmt: skip


@pytest.mark.parametrize(("system", "machine", "expected"), CONSTANTS)
def test_constants_have_the_figures(system, machine, expected):
    """On each platform each constant has its number, and one that the platform lacks is not in the table.

    A constant that is new in the package needs its figures here.
    """
    table = _platform.constants(system, machine)
    assert set() == set(table) - set(expected)
    assert expected == {name: table.get(name) for name in expected}


ROOT = Path(__file__).parent.parent
SOURCES = "fdpass_cffi", "tests", "bench", "examples", "fuzz"
NUMBERED = re.compile(r"_?(SOL|SO|SOCK|MSG|SCM|LOCAL)_[A-Z]+")


def numbers_given(path: Path) -> list[str]:
    """Names of such constants to which a module assigns a number that is written there."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        for target in getattr(node, "targets", [getattr(node, "target", None)]):
            names = [part.id for part in ast.walk(target) if isinstance(part, ast.Name)] if target else []
            value = getattr(node, "value", None)
            elements = getattr(value, "elts", [])
            parts = elements if len(elements) == len(names) else [value] * len(names)
            found += [name for name, part in zip(names, parts) if NUMBERED.match(name) and is_number(part)]
    return found


def is_number(node: ast.AST | None) -> bool:
    """Whether it is an int, or made of nothing but ints."""
    return node is not None and all(
        isinstance(part, (ast.BinOp, ast.UnaryOp, ast.operator, ast.unaryop))
        or (isinstance(part, ast.Constant) and type(part.value) is int)
        for part in ast.walk(node)
    )


def test_numbers_of_sockets_are_in_the_table_alone(tmp_path):
    """No module gives a number to a SOL_, SO_, SOCK_, MSG_ or SCM_ name outside the tables: machines differ in them."""
    bad = tmp_path / "bad.py"
    bad.write_text("SO_TYPE = 3\nA, MSG_PEEK = f(), 1 << 1\nSOL_X: int = -1\nSO_OK = f(1)\nSCM_MAX_FD = CONST['a']\n")
    assert ["SO_TYPE", "MSG_PEEK", "SOL_X"] == numbers_given(bad)
    given = {path.name: numbers_given(path) for path in Path(PACKAGE).glob("*.py")}
    # How many descriptors one message takes on Linux, and the place of a field in the structs of this backend
    expected = {"_send.py": ["SCM_MAX_FD"], "_vector.py": ["MSG_LEN"]}
    assert expected == {name: names for name, names in given.items() if names}


def test_numbers_come_from_socket_where_it_has_them():
    """The table is for the names that it lacks."""
    module = SimpleNamespace(SO_PASSCRED=4711)
    assert {"SO_PASSCRED": 4711, "SCM_RIGHTS": 1} == _platform.as_told({"SO_PASSCRED": 16, "SCM_RIGHTS": 1}, module)


def options_given(path: Path) -> list[int]:
    """The lines of calls of getsockopt and setsockopt whose level or option is a number that is written there."""
    return [
        node.lineno
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call)
        and ast.unparse(node.func).split(".")[-1] in ("getsockopt", "setsockopt")
        and any(is_number(argument) and argument.value for argument in node.args[:2])
    ]


def test_options_have_names(tmp_path):
    """No call of the project gives a socket option or its level as a number."""
    bad = tmp_path / "bad.py"
    bad.write_text("setsockopt(fd, 10, 1)\ns.getsockopt(SOL_SOCKET, 3)\nx.setsockopt(SOL_SOCKET, SO_SNDBUF, 1)\n")
    assert [1, 2] == options_given(bad)
    paths = [path for folder in SOURCES for path in (ROOT / folder).rglob("*.py")]
    assert len(paths) > 80
    assert {} == {path.name: lines for path in paths if (lines := options_given(path))}


def test_every_supported_system_has_figures():
    """No system is called supported whose layout, macros and constants were not compared above."""
    assert set(SUPPORTED) == {system for system, *_ in MACROS} == {system for system, *_ in CONSTANTS}


def test_a_table_is_the_callers_own():
    """`constants` gives a new dict each time, so that changing it (as _backend does) changes no other."""
    _platform.constants(DARWIN, "arm64").clear()
    assert 2 == _platform.constants(DARWIN, "arm64")["MSG_PEEK"]


def indispensable() -> set[str]:
    """The names that the package's modules look up with CONSTANTS[name] while they are imported."""
    found, left = set(), [ast.parse(path.read_text(encoding="utf-8")) for path in Path(PACKAGE).glob("*.py")]
    while left:
        node = left.pop()
        if isinstance(node, ast.Subscript) and isinstance(node.value, ast.Name) and node.value.id == "CONSTANTS":
            found |= {key.value for key in ast.walk(node.slice) if isinstance(key, ast.Constant)}
        if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            left += ast.iter_child_nodes(node)
    return found


@pytest.mark.parametrize("system", SUPPORTED)
def test_no_module_needs_a_constant_that_a_platform_lacks(system):
    """Each name that a module takes from CONSTANTS without a default is in the tables of all platforms."""
    names = indispensable()
    assert {"SOL_SOCKET", "SCM_RIGHTS", "MSG_CTRUNC"} <= names
    assert set() == names - set(_platform.constants(system, "amd64"))


def skips_without_a_reason(path: Path) -> list[int]:
    """The lines of skips that say no reason, or that ask for a processor or the lab themselves."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        text = ast.unparse(node) if isinstance(node, (ast.Call, ast.Attribute)) else ""
        if isinstance(node, ast.Attribute) and text == "pytest.mark.skip":
            found.append(node.lineno)
        elif isinstance(node, ast.Call) and text.startswith("pytest.mark.skipif("):
            condition = ast.unparse(node.args[0])
            if "reason" not in {keyword.arg for keyword in node.keywords} or re.search("machine|byteorder", condition):
                found.append(node.lineno)
        elif isinstance(node, ast.Call) and text.startswith("pytest.skip(") and not (node.args or node.keywords):
            found.append(node.lineno)
    return found


def test_every_skip_has_its_reason(tmp_path):
    """No test is left out without a word, nor for the name of a processor."""
    bad = tmp_path / "bad.py"
    bad.write_text(
        "@pytest.mark.skip\ndef a(): pytest.skip()\n@pytest.mark.skipif(x)\ndef b(): 1\n"
        "@pytest.mark.skipif(os.uname().machine == 's390x', reason='big')\ndef c(): pytest.skip('why')\n"
    )
    assert [1, 2, 3, 5] == sorted(skips_without_a_reason(bad))
    found = {path.name: skips_without_a_reason(path) for path in (ROOT / "tests").glob("*.py")}
    assert {} == {name: lines for name, lines in found.items() if lines}


def test_contributing_lists_what_emulation_leaves_out():
    """The files that leave something out there are in the table of CONTRIBUTING.md; none asks for the lab itself."""
    sources = {path.name: path.read_text(encoding="utf-8") for path in (ROOT / "tests").glob("test_*.py")}
    sources.pop(Path(__file__).name)
    listed = re.findall(r"^\| (test_\w+\.py) \|", (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"), re.MULTILINE)
    leaving_out = re.compile(r"needs_real_kernel|\bEMULATED\b")
    assert sorted(name for name, source in sources.items() if leaving_out.search(source)) == sorted(listed)
    assert [] == [name for name, source in sources.items() if "LAB_" in source]


# Names of platforms


@pytest.mark.parametrize(
    ("platform", "expected"),
    [
        ("linux", LINUX),
        ("linux2", LINUX),
        ("darwin", DARWIN),
        ("freebsd14", FREEBSD),
        ("netbsd10", NETBSD),
        ("openbsd7", OPENBSD),
    ],
)
def test_system_of_sys_platform(platform, expected):
    """sys.platform, with or without the version that the BSDs append, names the family."""
    assert expected == _platform.system(platform)


@pytest.mark.parametrize(
    "platform",
    ["win32", "cygwin", "sunos5", "aix", "dragonfly6", "gnukfreebsd9", "gnu0", "emscripten", "wasi", "ios", ""],
)
def test_an_undeclared_platform_is_refused(platform):
    """Any other is an ImportError with its name and what is supported, never a guess at a layout."""
    with pytest.raises(ImportError, match="does not support the platform") as caught:
        _platform.system(platform)
    assert repr(platform) in str(caught.value)
    assert all(name in str(caught.value) for name in SUPPORTED)


def test_this_machine_is_supported():
    """The platform that runs these tests is one of them."""
    assert _platform.system(sys.platform) in SUPPORTED

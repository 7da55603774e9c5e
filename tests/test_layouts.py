"""Our layouts and our CMSG arithmetic against the compiler's: layouts.c, and the API module's own macros."""

from __future__ import annotations

import os
import random
import shlex
import shutil
import socket
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from conftest import backends, load

SOURCE = Path(__file__).with_name("layouts.c")
LONGEST = 2000
STRUCTS = ("msghdr", "mmsghdr", "cmsghdr", "iovec", "pollfd")


def compiler() -> list[str]:
    """The C compiler's command; skips the test where the machine has none."""
    for command in (os.environ.get("CC"), sysconfig.get_config_var("CC"), "cc", "gcc", "clang"):
        words = shlex.split(command or "")
        if words and shutil.which(words[0]):
            return words
    pytest.skip("no C compiler on this machine to compare with")


class Program:
    """layouts.c, compiled: what the C compiler says."""

    def __init__(self, folder: Path) -> None:
        platform = load("abi")._platform
        names = sorted({name for system in platform.SUPPORTED for name in platform.constants(system, "")})
        wanted = (f'#ifdef {name}\n    {{ "{name}", {name} }},\n#endif\n' for name in names)
        (folder / "constants.h").write_text("".join(wanted))
        self.path = folder / "layouts"
        command = [*compiler(), "-w", "-O1", f"-I{folder}", "-o", str(self.path), str(SOURCE)]
        subprocess.run(command, check=True)
        told: dict[str, list] = {"sizeof": [], "field": [], "CMSG": [], "constant": []}
        for kind, *words in map(str.split, self.run()):
            told[kind].append(words)
        self.sizes = {name: int(size) for name, size in told["sizeof"]}
        self.fields = {name: (int(offset), int(size)) for name, offset, size in told["field"]}
        self.macros = [(int(length), int(space)) for _, length, space in told["CMSG"]]
        self.constants = {name: int(value) for name, value in told["constant"]}

    def run(self, *arguments: str, lines: list[str] | None = None) -> list[str]:
        given = "".join(f"{line}\n" for line in lines or ())
        done = subprocess.run([self.path, *arguments], input=given, stdout=subprocess.PIPE, text=True, check=True)
        return done.stdout.splitlines()

    def walk(self, controls: list[bytes]) -> list[list[tuple]]:
        out = self.run("walk", lines=[control.hex() for control in controls])
        items = [[item.split(",") for item in line.split()] for line in out]
        return [[(*map(int, i[:2]), None if i[2] == "!" else (int(i[2]), int(i[3]))) for i in line] for line in items]

    def build(self, groups: list[list[tuple[int, int, bytes]]]) -> list[bytes]:
        lines = [" ".join(f"{level},{kind},{data.hex()}" for level, kind, data in group) for group in groups]
        return [bytes.fromhex(line) for line in self.run("build", lines=lines)]


class Compiled:
    """The API module: what cffi had the C compiler put into it."""

    def __init__(self) -> None:
        backend = load("api")._backend
        self.ffi, self.lib = backend.ffi, backend.lib
        self.sizes, self.fields = declared(backend)
        self.macros = [(self.lib.CMSG_LEN(length), self.lib.CMSG_SPACE(length)) for length in range(LONGEST + 1)]

    def message(self, control: bytes):
        memory = self.ffi.new("unsigned long long[]", len(control) // 8 + 1)
        self.ffi.memmove(memory, control, len(control))
        start = self.ffi.cast("unsigned char *", memory)
        return memory, start, self.ffi.new("struct msghdr *", {"msg_control": memory, "msg_controllen": len(control)})

    def headers(self, msg):
        header = self.lib.CMSG_FIRSTHDR(msg)
        while header != self.ffi.NULL:
            yield header
            header = self.lib.CMSG_NXTHDR(msg, header)

    def walk_one(self, control: bytes) -> list[tuple]:
        _memory, start, msg = self.message(control)
        found = []
        for header in self.headers(msg):
            at = self.ffi.cast("unsigned char *", header) - start
            level, kind, length = header.cmsg_level, header.cmsg_type, int(header.cmsg_len)
            if not self.ffi.sizeof("struct cmsghdr") <= length <= len(control) - at:
                return [*found, (level, kind, None)]
            begin = self.lib.CMSG_DATA(header) - start
            found.append((level, kind, (begin, max(0, at + length - begin))))
        return found

    def walk(self, controls: list[bytes]) -> list[list[tuple]]:
        return [self.walk_one(control) for control in controls]

    def build_one(self, group: list[tuple[int, int, bytes]]) -> bytes:
        size = sum(self.lib.CMSG_SPACE(len(data)) for _, _, data in group)
        memory, _start, msg = self.message(bytes(size + self.lib.CMSG_SPACE(0) + 1))
        for header, (level, kind, data) in zip(self.headers(msg), group):
            header.cmsg_level, header.cmsg_type, header.cmsg_len = level, kind, self.lib.CMSG_LEN(len(data))
            self.ffi.memmove(self.lib.CMSG_DATA(header), data, len(data))
        return self.ffi.buffer(memory, size)[:]

    def build(self, groups: list[list[tuple[int, int, bytes]]]) -> list[bytes]:
        return [self.build_one(group) for group in groups]


def declared(backend) -> tuple[dict[str, int], dict[str, tuple[int, int]]]:
    """The structs of a backend as cffi lays them out: sizes, and (offset, size) of each field."""
    ffi, sizes, fields = backend.ffi, {"size_t": backend.WORD}, {}
    own = {"msghdr": backend.MSGHDR, "mmsghdr": backend.MMSGHDR, "cmsghdr": backend.CMSGHDR}
    for name in STRUCTS:
        struct = ffi.typeof(own.get(name, f"struct {name}"))
        sizes[name] = ffi.sizeof(struct)
        for field, at in struct.fields:
            fields[f"{name}.{field}"] = at.offset, ffi.sizeof(at.type)
    return sizes, fields


def holds(ours: tuple[int, int], theirs: tuple[int, int], byteorder: str) -> bool:
    """Whether an integer written to `ours` is read back from `theirs`, each (offset, size).

    musl declares an int and padding where the kernel has, and we declare, a size_t: the ends with the low
    bytes must coincide.
    """
    (offset, size), (begin, length) = ours, theirs
    low = offset == begin if byteorder == "little" else offset + size == begin + length
    return low and length <= size


def pytest_generate_tests(metafunc):
    """Every test that asks for `macros` runs against the program and, where it was built, the API module."""
    if "macros" in metafunc.fixturenames:
        built = [name for name in backends(metafunc.config) if name == "api"]
        metafunc.parametrize("macros", ["program", *built], indirect=True, scope="module")


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    return Program(tmp_path_factory.mktemp("layouts"))


@pytest.fixture(scope="module")
def macros(request):
    return request.getfixturevalue("program") if request.param == "program" else Compiled()


def test_structs_have_the_compilers_sizes(fdpass, macros):
    """Every struct that a call reads or writes is as long as the compiler's."""
    sizes, _ = declared(fdpass._backend)
    assert set(macros.sizes) <= set(sizes)
    assert {"size_t", "msghdr", "cmsghdr", "iovec", "pollfd"} <= set(macros.sizes)
    assert macros.sizes == {name: sizes[name] for name in macros.sizes}


def test_fields_are_where_the_compiler_puts_them(fdpass, macros):
    """A number written into a field of ours is what C reads from its field, and no other field is touched."""
    _, fields = declared(fdpass._backend)
    assert {"msghdr.msg_controllen", "cmsghdr.cmsg_len", "iovec.iov_len", "pollfd.revents"} <= set(macros.fields)
    wrong = {name: at for name, at in macros.fields.items() if not holds(fields[name], at, sys.byteorder)}
    assert {} == wrong
    for name, (offset, size) in fields.items():
        for other, (begin, length) in macros.fields.items():
            if other != name and other.split(".")[0] == name.split(".")[0]:
                assert offset + size <= begin or begin + length <= offset, (name, other)


def test_the_three_lengths_are_equally_wide(fdpass):
    """_scratch writes msg_iovlen, msg_controllen and cmsg_len through one view, which needs them to be of one size."""
    _, fields = declared(fdpass._backend)
    width = fields["msghdr.msg_controllen"][1]
    assert (width, width) == (fields["msghdr.msg_iovlen"][1], fields["cmsghdr.cmsg_len"][1])
    assert fdpass._scratch.LEN == width


def test_cmsg_len_and_space_are_the_macros(fdpass, macros):
    """CMSG_LEN and CMSG_SPACE of 0 to 2000 bytes are the compiler's."""
    layout = fdpass._backend.LAYOUT
    assert LONGEST + 1 == len(macros.macros)
    assert macros.macros == [(layout.cmsg_len(n), layout.cmsg_space(n)) for n in range(LONGEST + 1)]


def test_cmsg_len_and_space_are_those_of_socket(fdpass):
    """They are also those of the `socket` module, which calls the macros and is there without a compiler."""
    layout = fdpass._backend.LAYOUT
    expected = [(socket.CMSG_LEN(n), socket.CMSG_SPACE(n)) for n in range(LONGEST + 1)]
    assert expected == [(layout.cmsg_len(n), layout.cmsg_space(n)) for n in range(LONGEST + 1)]


def test_constants_are_those_of_the_headers(fdpass, program):
    """Every constant that the headers define has their number, in CONSTANTS and in the table behind it."""
    backend = fdpass._backend
    ours, table = backend.CONSTANTS, fdpass._platform.constants(backend.SYSTEM, backend.MACHINE)
    assert {"SOL_SOCKET", "SCM_RIGHTS", "MSG_CTRUNC", "MSG_PEEK", "SO_TYPE"} <= set(program.constants)
    assert program.constants == {name: ours[name] for name in program.constants}
    assert program.constants == {name: table[name] for name in program.constants}


def test_constants_are_those_of_socket(fdpass):
    """Every constant in the platform's table that `socket` has too is the same number there."""
    backend = fdpass._backend
    table = fdpass._platform.constants(backend.SYSTEM, backend.MACHINE)
    shared = {name: int(getattr(socket, name)) for name in table if hasattr(socket, name)}
    assert {"SOL_SOCKET", "MSG_CTRUNC", "SO_TYPE"} <= set(shared)
    assert shared == {name: table[name] for name in shared}
    assert set(table) == set(backend.CONSTANTS)


def groups(random_: random.Random, count: int) -> list[list[tuple[int, int, bytes]]]:
    def number() -> int:
        return random_.randint(-(2**31), 2**31 - 1)

    def group(shortest: int) -> list[tuple[int, int, bytes]]:
        size = random_.choice((8, 40))
        return [
            (
                number(),
                number(),
                random_.getrandbits(8 * size).to_bytes(size, "little")[: random_.randint(shortest, size)],
            )
            for _ in range(random_.randint(1, 5))
        ]

    return [group(1) for _ in range(count)]


def test_packed_items_are_what_the_macros_build(fdpass, macros):
    """A control buffer of ours is byte for byte what C builds with CMSG_FIRSTHDR, CMSG_NXTHDR and CMSG_DATA."""
    given = groups(random.Random(1), 300)
    layout = fdpass._backend.LAYOUT
    assert macros.build(given) == [bytes(layout.pack(group)) for group in given]


def test_walking_finds_what_the_macros_find(fdpass, macros):
    """In whole, cut and senseless control buffers the walk yields the items of CMSG_NXTHDR.

    One more at most, the last: glibc leaves out an item whose padding is cut off, musl a bare header at the end.
    """
    layout, random_ = fdpass._backend.LAYOUT, random.Random(2)
    controls = [bytes(layout.pack(group)) for group in groups(random_, 300)]
    controls += [control[: random_.randint(0, len(control))] for control in controls]
    controls += [b"".join(layout.pack([(1, 1, b"")])[: layout.header] for _ in range(n)) for n in range(4)]
    controls += [senseless(layout, random_) for _ in range(300)]
    fewer = 0
    for control, expected in zip(controls, macros.walk(controls)):
        items = list(layout.walk(control))
        found = [(level, kind, (start, stop - start) if whole else None) for level, kind, start, stop, whole in items]
        if expected != found:
            _, _, start, stop, whole = items[-1]
            assert expected == found[:-1], control.hex()
            assert not whole or layout.aligned(stop) > len(control) or start == len(control), control.hex()
            fewer += 1
    assert fewer < len(controls) // 2


def senseless(layout, random_: random.Random) -> bytes:
    """Headers with small wrong lengths, here and there."""
    control = bytearray(random_.randint(0, 12) * layout.align)
    for at in range(0, len(control) - layout.header + 1, layout.align):
        if random_.random() < 0.5:
            layout._header.pack_into(control, at, random_.randint(0, 64), random_.randint(0, 9), random_.randint(0, 9))
    return bytes(control)

"""Imports inside the package go one way, down LEVELS; the modules called pure stay away from ffi and the system."""

from __future__ import annotations

import ast
import copy
from pathlib import Path

import pytest
from conftest import PACKAGE

# From the top: a module may import from any line below its own, never from its own or one above.
# DESIGN: cli -> {channel, aio, systemd, creds} -> {frames, msg} -> {_backend, _cmsg, _sockaddr, fd} -> errors,
# with the parts that msg and _backend are made of in between, and aio over what it shares with channel.
LEVELS = [
    line.split()
    for line in """
    __main__
    cli
    serving
    client demo info
    __init__
    aio
    broker channel creds systemd
    recvmmsg sendmmsg
    afalg sendall _incoming _outgoing
    msg message frames
    _receive _send
    _address _truncated _vector
    _darwin _scratch _sock
    _backend fd
    _abi _api _close _cmsg _sockaddr
    _listening _platform errors
    _tables
    """.splitlines()
    if line.strip()
]
LEVEL = {name: level for level, names in enumerate(LEVELS) for name in names}

# What the pure modules may import when they run: of the standard library these, and of the package these.
PURE = {
    "errors": "errno",
    "_platform": "os ._tables",
    "_tables": "",
    "_cmsg": "_struct",
    "_sockaddr": "operator os socket struct sys ._platform",
    "frames": "struct .errors",
}
# What _sockaddr may take from `socket`: numbers, exceptions, and what only converts.
CONVERTERS = {
    "gaierror",
    "inet_aton",
    "inet_ntoa",
    "inet_ntop",
    "inet_pton",
    "htons",
    "htonl",
    "ntohs",
    "ntohl",
    "error",
}


MODULES = {path.stem: ast.parse(path.read_text(encoding="utf-8")) for path in sorted(Path(PACKAGE).glob("*.py"))}


def imported(tree: ast.AST) -> set[str]:
    """Every module that is imported anywhere in `tree`, in functions too; those of the package begin with a dot."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found.add(str(node.module))
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add("." * node.level + node.module)
        elif isinstance(node, ast.ImportFrom):  # from . import a module, or a name of __init__
            names = {name.name for name in node.names}
            found |= {"." * node.level + (name if name in LEVEL else "__init__") for name in names}
    return found


def when_it_runs(tree: ast.Module) -> ast.Module:
    """The module without what stands under `if TYPE_CHECKING`."""

    class Drop(ast.NodeTransformer):
        def visit_If(self, node: ast.If):
            self.generic_visit(node)
            typing = isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
            return node.orelse if typing else node

    return Drop().visit(tree)


def computed(tree: ast.AST) -> list[str]:
    """What is imported by a call of import_module and the like: the call's arguments as they are written."""
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    calls = [node for node in calls if "import" in getattr(node.func, "attr", getattr(node.func, "id", ""))]
    return [", ".join(map(ast.unparse, node.args)) for node in calls]


def offenders(which, trees: dict[str, ast.Module] = MODULES) -> dict[str, set[str]]:
    """The modules for which `which`, given a module's name and what it imports, is not empty."""
    found = {module: which(module, imported(tree)) for module, tree in trees.items()}
    return {module: names for module, names in found.items() if names}


def test_every_module_has_a_level():
    """Every module is in the table, on one line; a new one has to be put where it belongs."""
    assert {"msg", "_backend", "errors"} <= set(MODULES)
    assert set() == set(MODULES) - set(LEVEL)
    assert sum(map(len, LEVELS)) == len(LEVEL)


def test_imports_go_down():
    """Each import of a module, lazy and typing ones too, is of a module below it: no arrow goes up, nor in a circle."""

    def up(module: str, names: set[str]) -> set[str]:
        return {name for name in names if name[0] == "." and not LEVEL.get(name[1:], -1) > LEVEL.get(module, 99)}

    assert {} == offenders(up)


def test_imports_inside_are_relative():
    """No module names the package, nor goes above it, so that the folder can be vendored under any name."""

    def absolute(_: str, names: set[str]) -> set[str]:
        return {name for name in names if name.partition(".")[0] == "fdpass_cffi" or name.startswith("..")}

    assert {} == offenders(absolute)


def test_imports_by_name_are_known():
    """Nothing is imported by a call but what __init__ imports when it is asked for, and cffi's version."""
    found = {module: computed(tree) for module, tree in MODULES.items() if computed(tree)}
    lazy = "f'.{_MODULE[name]}', __name__"
    assert {"__init__": [lazy], "info": ["'_cffi_backend'"]} == found


def test_what_is_imported_lazily_is_declared(fdpass):
    """The names that the package imports when asked are those it tells type checkers; each is exported, and found."""
    (typing,) = (node for node in MODULES["__init__"].body if isinstance(node, ast.If))
    told = {node.module: {name.name for name in node.names} for node in typing.body if isinstance(node, ast.ImportFrom)}
    assert told == {module: set(names.split()) for module, names in fdpass._WHERE.items()}
    assert [] == [name for name in fdpass.__all__ if not hasattr(fdpass, name)]
    assert set().union(*told.values()) <= set(fdpass.__all__) & set(dir(fdpass))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = fdpass.nothing


def test_only_the_backend_knows_the_declarations():
    """_abi and _api are imported by _backend alone, and of cffi only its compiled half, by _abi alone."""
    assert {"_backend": {"._abi", "._api"}} == offenders(lambda _, names: names & {"._abi", "._api"})
    assert {"_abi": {"_cffi_backend"}} == offenders(lambda _, names: {name for name in names if "cffi" in name})


def test_pure_modules_import_only_this():
    """The modules that are tested with bytes alone import nothing that makes a syscall, nor any module that does."""
    trees = {module: when_it_runs(copy.deepcopy(MODULES[module])) for module in PURE}
    assert {} == offenders(lambda module, names: names - {"__future__", *PURE[module].split()}, trees)


def test_pure_modules_know_no_other_for_typing_either():
    """Not even for a type checker do they name a module of the package that touches the system."""
    trees = {module: MODULES[module] for module in PURE}
    assert {} == offenders(lambda module, names: {n for n in names if n[0] == "."} - set(PURE[module].split()), trees)


def test_the_address_codec_calls_no_socket_function():
    """_sockaddr takes constants and converters from `socket`, and nothing that opens, asks or waits."""
    used = {
        node.attr
        for node in ast.walk(MODULES["_sockaddr"])
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "socket"
    }
    assert "inet_pton" in used
    assert set() == {name for name in used if not name.isupper()} - CONVERTERS


def test_typing_is_not_imported_when_it_runs():
    """typing and dataclasses cost more to import than the package does; they are for type checkers alone."""
    trees = {module: when_it_runs(copy.deepcopy(tree)) for module, tree in MODULES.items()}
    assert {} == offenders(lambda _, names: names & {"typing", "dataclasses", "collections.abc"}, trees)


LIB_CALLS = {"sendmsg": {"_send"}, "recvmsg": {"_receive"}, "sendmmsg": {"sendmmsg"}, "recvmmsg": {"recvmmsg"}}


@pytest.mark.parametrize("call", LIB_CALLS)
def test_one_way_in_and_one_way_out(call):
    """Each of the four calls that move descriptors is taken from lib in one module, which every other goes through."""

    def takes(node: ast.AST) -> bool:
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "getattr":
            return [getattr(node.args[0], "id", ""), getattr(node.args[1], "value", "")] == ["lib", call]
        return isinstance(node, ast.Attribute) and [getattr(node.value, "id", ""), node.attr] == ["lib", call]

    assert LIB_CALLS[call] == {module for module in MODULES if any(map(takes, ast.walk(MODULES[module])))}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("from . import _cmsg, BACKEND", {"._cmsg", ".__init__"}),
        ("from .msg import sendmsg", {".msg"}),
        ("def f():\n    from ..a import b", {"..a"}),
        ("if 1:\n    import os.path as p", {"os.path"}),
        ("from fdpass_cffi.msg import x", {"fdpass_cffi.msg"}),
    ],
)
def test_the_search_finds_every_import(text, expected):
    """The search behind these tests finds each form of an import, wherever it stands."""
    assert expected == imported(ast.parse(text))

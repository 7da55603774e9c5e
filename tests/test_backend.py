"""Which backend is chosen, what its import costs and refuses, and the build script behind both.

A backend is chosen once, when the package is imported: each case runs in a process of its own, most of
them with a copy of the package that has just the modules the case needs.
"""

from __future__ import annotations

import ast
import errno
import os
import re
import runpy
import shutil
import subprocess
import sys
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import pytest
from conftest import PACKAGE

SCRIPT = Path(__file__).parent.parent / "build_ffi.py"
BUILD = runpy.run_path(str(SCRIPT))
PROTOTYPES = re.findall(r"(\w+)\(", BUILD["CALLS"] + BUILD["MMSG_CALLS"])
TELL = "import fdpass_cffi; print(fdpass_cffi.BACKEND)"


def run(*arguments, cwd: Path, **environment: str | None) -> subprocess.CompletedProcess:
    """This interpreter, in the folder `cwd`, with variables set or (None) unset; FDPASS_CFFI_BACKEND is unset."""
    env = {**os.environ, "FDPASS_CFFI_BACKEND": None, "PYTHONDONTWRITEBYTECODE": "1", **environment}
    return subprocess.run(
        [sys.executable, "-W", "error", *map(str, arguments)],
        check=False,
        cwd=cwd,
        env={name: value for name, value in env.items() if value is not None},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
    )


def python(code: str, folder: Path, backend: str | None = None) -> subprocess.CompletedProcess:
    return run("-c", code, cwd=folder, FDPASS_CFFI_BACKEND=backend)


def last_line(done: subprocess.CompletedProcess) -> str:
    """The exception that ended the process, as its traceback's last line says it."""
    assert 1 == done.returncode, done
    assert "" == done.stdout
    return done.stderr.splitlines()[-1]


@pytest.fixture
def pure(tmp_path):
    """A folder with a copy of the package that has no API module."""
    shutil.copytree(PACKAGE, tmp_path / "fdpass_cffi", ignore=shutil.ignore_patterns("__pycache__", "_api.*"))
    return tmp_path


@pytest.fixture
def whole(pure, backend):
    """A folder with a copy of the package whose best backend is the one under test."""
    if backend == "api":
        for path in Path(PACKAGE).glob("_api.*"):
            shutil.copy(path, pure / "fdpass_cffi")
    return pure


# The choice


def test_backend_is_exported(backend, fdpass):
    """BACKEND is in the package's __all__ and says which one it runs on."""
    assert backend == fdpass.BACKEND
    assert "BACKEND" in fdpass.__all__


@pytest.mark.parametrize("asked", [None, ""])
def test_unset_takes_the_best_there_is(backend, whole, asked):
    """With the variable unset or empty, API is used where it was built, else ABI."""
    done = python(TELL, whole, asked)
    assert (0, f"{backend}\n", "") == (done.returncode, done.stdout, done.stderr)


def test_a_named_backend_is_used(backend, whole):
    """Each backend can be asked for by name, ABI also where API is there."""
    for asked in {"abi", backend}:
        done = python(TELL, whole, asked)
        assert (0, f"{asked}\n", "") == (done.returncode, done.stdout, done.stderr)


@pytest.mark.parametrize("asked", ["ABI", "cffi", "api ", "0"])
def test_any_other_name_is_refused(pure, asked):
    """A name that is none is an ImportError with the name and the two that are."""
    expected = f"ImportError: FDPASS_CFFI_BACKEND is {asked!r}: it must be 'abi' or 'api'"
    assert expected == last_line(python(TELL, pure, asked))


def test_a_forced_api_that_was_not_built_is_an_error(pure):
    """A forced backend never falls back, and the error says how to build it."""
    line = last_line(python(TELL, pure, "api"))
    assert line.startswith("ImportError: FDPASS_CFFI_BACKEND is 'api'")
    assert "build_ffi.py" in line


BROKEN = {
    "raises": ("_api.py", b"raise RuntimeError('no good')", "RuntimeError: no good"),
    "misses a module": ("_api.py", b"import no_such_module", "ModuleNotFoundError: No module named 'no_such_module'"),
    "is empty": ("_api.py", b"", "ImportError: cannot import name 'ffi'"),
    "is truncated": (f"_api{EXTENSION_SUFFIXES[0]}", b"\x7fELF", "ImportError: "),
}


@pytest.mark.parametrize("asked", [None, "api"])
@pytest.mark.parametrize("broken", BROKEN)
def test_a_broken_api_module_is_an_error(pure, broken, asked):
    """An API module that is there but does not load raises what it raises, forced or not: ABI does not step in."""
    name, content, expected = BROKEN[broken]
    (pure / "fdpass_cffi" / name).write_bytes(content)
    assert last_line(python(TELL, pure, asked)).startswith(expected)


def test_a_forced_abi_does_not_touch_the_api_module(pure):
    """ABI by name works beside an API module that cannot be loaded."""
    for name, content, _ in BROKEN.values():
        (pure / "fdpass_cffi" / name).write_bytes(content)
    done = python(TELL, pure, "abi")
    assert (0, "abi\n", "") == (done.returncode, done.stdout, done.stderr)


@pytest.mark.parametrize("platform", ["win32", "cygwin", "sunos5", "aix"])
def test_an_unknown_platform_is_refused(pure, platform):
    """On a platform without a declared layout the import is an ImportError that names it and the supported ones."""
    code = f"""
import os, socket, sys
sys.platform = {platform!r}
if sys.platform == "win32":  # which has no such function
    del os.uname
import fdpass_cffi
"""
    line = last_line(python(code, pure))
    assert line.startswith(f"ImportError: fdpass_cffi does not support the platform {platform!r}")
    assert line.endswith("Supported: linux, darwin, freebsd, netbsd, openbsd")


# What comes with it

NEEDLESS = [
    "cffi", "pycparser", "setuptools", "distutils", "typing", "typing_extensions", "importlib.metadata", "dataclasses",
    "inspect", "subprocess", "tempfile", "asyncio", "anyio", "ssl", "ctypes", "json", "argparse", "__future__",
]  # fmt: skip


def test_abi_import_brings_in_nothing_needless(pure):
    """The ABI import needs neither cffi, pycparser nor a build tool, nor what is slow to import."""
    code = f"""
import socket, sys
needless = {NEEDLESS}
for name in needless:  # what the interpreter's own start brought in
    sys.modules.pop(name, None)
import fdpass_cffi
print([name for name in needless if name in sys.modules])
"""
    done = python(code, pure, "abi")
    assert ("[]\n", "") == (done.stdout, done.stderr)


# lib


def test_lib_is_typed_as_it_is_declared():
    """The Protocol that types `lib` has just the functions, and the numbers of arguments, that build_ffi declares."""
    tree = ast.parse((Path(PACKAGE) / "_backend.py").read_text(encoding="utf-8"))
    (protocol,) = (node for node in ast.walk(tree) if isinstance(node, ast.ClassDef) and node.name == "Lib")
    typed = {node.name: len(node.args.posonlyargs) - 1 for node in protocol.body if isinstance(node, ast.FunctionDef)}
    text = BUILD["CALLS"] + BUILD["MMSG_CALLS"]
    assert {name: arguments.count(",") + 1 for name, arguments in re.findall(r"(\w+)\((.*?)\);", text)} == typed


def test_every_call_reaches_the_kernel(fdpass):
    """Each declared function is found in the C library and takes its arguments, and errno comes back through ffi."""
    backend = fdpass._backend
    ffi, lib = backend.ffi, backend.lib
    msg, vec = ffi.new(f"{backend.MSGHDR} *"), ffi.new(f"{backend.MMSGHDR} *")
    byte = ffi.new("char[1]")
    iov = ffi.new("struct iovec *", (byte, 1))
    for header in (msg, vec.msg_hdr):  # qemu-user does not look at the descriptor if there is no room for data
        header.msg_iov, header.msg_iovlen = iov, 1
    value, length = ffi.new("int *"), ffi.new("unsigned int *", 4)
    pollfd = ffi.new("struct pollfd *", (-1, 0, 0))
    arguments = {
        "sendmsg": (-1, msg, 0),
        "recvmsg": (-1, msg, 0),
        "sendmmsg": (-1, vec, 1, 0),
        "recvmmsg": (-1, vec, 1, 0, ffi.NULL),
        "getsockopt": (-1, 1, 1, value, ffi.cast("void *", length)),
        "setsockopt": (-1, 1, 1, value, 4),
    }
    assert set(PROTOTYPES) == {*arguments, "poll"}
    for name, given in arguments.items():
        ffi.errno = 0
        assert (-1, errno.EBADF) == (getattr(lib, name)(*given), ffi.errno), name
    assert 0 == lib.poll(pollfd, 1, 0)


# build_ffi.py


@pytest.fixture
def checkout(pure):
    """A folder with the build script and the package as it is committed."""
    shutil.copy(SCRIPT, pure)
    return pure


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def check(folder: Path) -> tuple[int, str]:
    done = run("build_ffi.py", "--check", cwd=folder)
    assert "" == done.stderr
    return done.returncode, done.stdout


def test_the_committed_declarations_are_current():
    """`build_ffi.py --check` passes: _abi.py is what the script generates today."""
    assert (0, "fdpass_cffi/_abi.py is current\n") == check(SCRIPT.parent)


def test_check_changes_nothing(checkout):
    """--check writes and builds nothing."""
    before = files(checkout)
    check(checkout)
    assert before == files(checkout)


@pytest.mark.parametrize("changed", ["_abi.py", "a declaration"])
def test_check_fails_when_stale(checkout, changed):
    """--check fails when _abi.py was edited, and when a declaration was and _abi.py was not made anew."""
    if changed == "_abi.py":
        with (checkout / "fdpass_cffi" / "_abi.py").open("a") as file:
            file.write("\n")
    else:
        text = SCRIPT.read_text(encoding="utf-8")
        assert 1 == text.count("int msg_iovlen")
        (checkout / "build_ffi.py").write_text(text.replace("int msg_iovlen", "long msg_iovlen"), encoding="utf-8")
    assert (1, "fdpass_cffi/_abi.py is stale: run python build_ffi.py\n") == check(checkout)


def test_importing_the_script_has_no_side_effect(checkout):
    """The import builds, writes and prints nothing, and brings in neither cffi nor a build tool of its own."""
    before = files(checkout)
    code = """
import sys
before = set(sys.modules)
import build_ffi
print(sorted({"cffi", "setuptools", "distutils", "pycparser"} & (set(sys.modules) - before)))
"""
    done = python(code, checkout)
    assert (0, "[]\n", "") == (done.returncode, done.stdout, done.stderr)
    assert before == files(checkout)


def test_the_script_works_without_a_compiler(checkout):
    """Where no compiler is, the script writes _abi.py byte for byte as committed, says so, and succeeds."""
    before = files(checkout)
    (checkout / "fdpass_cffi" / "_abi.py").unlink()
    done = run("build_ffi.py", cwd=checkout, CC="/no/such/compiler")
    expected = "wrote fdpass_cffi/_abi.py\nno C compiler: the API module was not built\n"
    assert (0, expected, "") == (done.returncode, done.stdout, done.stderr)
    assert before == files(checkout)


def test_a_build_that_cannot_compile_says_so(checkout):
    """Told to compile where that cannot be, the build hook says why, and that nothing is lost without it."""
    code = """
import sys, types
names = "hatchling", "hatchling.builders.hooks.plugin.interface"
sys.modules.update((name, types.ModuleType(name)) for name in names)
sys.modules[names[1]].BuildHookInterface = type("BuildHookInterface", (), {"target_name": "wheel"})
import build_ffi
build_ffi.CustomBuildHook().initialize("standard", {})
"""
    done = run("-c", code, cwd=checkout, CC="/no/such/compiler")
    expected = "RuntimeError: no C compiler: build without HATCH_BUILD_HOOK_ENABLE_CUSTOM, nothing needs it"
    assert (1, expected) == (done.returncode, done.stderr.splitlines()[-1])


def test_what_cffi_cannot_compile_for(monkeypatch):
    """cffi refuses the free-threaded CPython 3.13, whatever compiler is there."""
    with monkeypatch.context() as patch:
        patch.setenv("CC", sys.executable)
        patch.setattr(BUILD["sysconfig"], "get_config_var", {"Py_GIL_DISABLED": 1}.get)
        patch.setattr(sys, "version_info", (3, 13, 0))
        why = BUILD["hindrance"]()
    assert "cffi compiles nothing for this free-threaded CPython, only from 3.14 on" == why


def test_the_script_explains_itself(checkout):
    """An argument that it does not know gets the usage and exit status 2, and nothing is written."""
    before = files(checkout)
    done = run("build_ffi.py", "--chekc", cwd=checkout)
    assert 2 == done.returncode
    assert "python build_ffi.py --check" in done.stdout
    assert before == files(checkout)


def interpreters() -> list[str]:
    """This one, and every other of the supported names on PATH that has cffi with its parser."""
    names = [*(f"python3.{minor}" for minor in range(9, 16)), "python3", "pypy3"]
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    probe = "import sys, cffi; cffi.FFI().cdef('int f(int);'); print(sys.version)"
    found = {sys.version: sys.executable}
    for path in filter(None, map(shutil.which, names)):
        done = subprocess.run([path, "-c", probe], check=False, env=env, capture_output=True, text=True)
        if done.returncode == 0:
            found.setdefault(done.stdout.strip(), path)
    return list(found.values())


def test_every_interpreter_generates_the_same(checkout):
    """The file is the same byte for byte under every interpreter and version of cffi that is here."""
    expected = (checkout / "fdpass_cffi" / "_abi.py").read_bytes()
    code = "import build_ffi, pathlib, sys; build_ffi.emit_abi(pathlib.Path(sys.argv[1]))"
    for number, path in enumerate(interpreters()):
        env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH" or path == sys.executable}
        env["PYTHONDONTWRITEBYTECODE"] = "1"
        subprocess.run([path, "-c", code, f"made{number}.py"], cwd=checkout, env=env, check=True)
        assert expected == (checkout / f"made{number}.py").read_bytes(), path

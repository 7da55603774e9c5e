"""README.md does not lie: its Python is run, its table lists what the package exports, its output is real.

Its shell commands, which install things, are run by .ci/run as they are written.
"""

from __future__ import annotations

import doctest
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import PACKAGE

README = (Path(__file__).resolve().parent.parent / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
PYTHON = [text for language, text in BLOCKS if language == "python"]
AWAITED = {
    "AsyncChannel", "connect", "serve", "sendmsg", "recvmsg", "recvmsg_into", "send_fds", "recv_fds", "recv_message",
}  # fmt: skip
SECONDS = 120  # after which a program counts as hung


@pytest.fixture
def run(backend, tmp_path):
    """Run Python code in a process of its own, warnings as errors: what it printed."""

    def run(*arguments):
        path = os.pathsep.join(filter(None, [str(PACKAGE.parent), os.environ.get("PYTHONPATH")]))
        place = {**os.environ, "PYTHONPATH": path, "FDPASS_CFFI_BACKEND": backend, "PYTHONIOENCODING": "utf-8"}
        command = [sys.executable, "-W", "error", *arguments]
        done = subprocess.run(command, cwd=tmp_path, env=place, capture_output=True, timeout=SECONDS, check=False)
        assert (0, b"") == (done.returncode, done.stderr)
        return done.stdout.decode()

    return run


def test_blocks():
    """Every code block is of a kind that is run somewhere."""
    assert {"sh", "python", "text"} == {language for language, _ in BLOCKS}
    assert README.count("\n```") == 2 * len(BLOCKS)


@pytest.mark.parametrize("code", [text for text in PYTHON if not text.startswith(">>>")])
def test_programs(run, code):
    """Each program runs, and each `print` prints what the comment behind it says, numbers aside."""
    output = run("-c", code)
    promised = re.findall(r"print\(.*\)  # (.*)", code)
    assert [] != promised
    for line in promised:
        assert re.search(re.sub(r"\d+", r"\\d+", re.escape(line)), output)


@pytest.mark.parametrize("code", [text for text in PYTHON if text.startswith(">>>")])
def test_sessions(run, code):
    """Each session prints what is written there."""
    script = f"import doctest, sys\n__doc__ = {code!r}\nsys.exit(doctest.testmod().failed)"
    assert "" == run("-c", script)
    assert [] != doctest.DocTestParser().get_examples(code)


def test_demo_output(run, backend):
    """The demo prints what is shown there: the same lines, with other process ids, paths, inodes and versions."""
    (shown,) = [text for language, text in BLOCKS if language == "text"]
    assert general(shown) == general(run("-m", "fdpass_cffi", "demo"))


def general(output: str) -> str:
    """The demo's output without what differs between two runs."""
    output = re.sub(r"/\S*/fdpass-\w+/", "FOLDER/", output)
    output = re.sub(r"(cpython|pypy) [\d.]+", "INTERPRETER", output)
    output = re.sub(r"backend \w+", "BACKEND", output)
    output = re.sub(r"\d+:\d+/\d+|process \d+", "NUMBER", output)
    return re.sub(r" {2,}|\d+  ", "  ", output)


def test_functions(fdpass):
    """The table has every name that the package exports, no other, and the functions' real arguments."""
    section = README.split("## The functions", 1)[1].split("\n## ", 1)[0]
    cells = [re.findall(r"`([^`]+)`", line.split("|")[1]) for line in section.splitlines() if line.startswith("| `")]
    listed = {entry.split("(")[0]: entry for row in cells for entry in row}
    awaited = {name for name in listed if name.startswith("aio.")}
    assert {f"aio.{name}" for name in AWAITED} == awaited
    assert all(callable(getattr(fdpass.aio, name)) for name in AWAITED)
    for name in awaited:
        del listed[name]
    constants = listed.keys() - fdpass.__all__
    assert set(fdpass.__all__) == listed.keys() - constants
    here = {name for name, value in vars(fdpass).items() if name.isupper() and type(value) is int}
    assert here == constants & fdpass._backend.CONSTANTS.keys()
    for name, entry in listed.items():
        if "(" in entry and not isinstance(getattr(fdpass, name), type):
            assert f"{name}({parameters(getattr(fdpass, name))})" == entry


def parameters(function) -> str:
    """A function's parameters as they are called, without their types."""
    code = function.__code__
    names = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
    defaults = function.__defaults__ or ()
    values = dict(zip(names[code.co_argcount - len(defaults) : code.co_argcount], defaults))
    values.update(function.__kwdefaults__ or {})
    parts = [f"{name}={values[name]!r}" if name in values else name for name in names]
    if code.co_kwonlyargcount:
        parts.insert(code.co_argcount, "*")
    return ", ".join(parts)


def test_links():
    """Each file that README.md and CONTRIBUTING.md link to is there."""
    root = Path(__file__).resolve().parent.parent
    for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md"):
        text = (root / name).read_text(encoding="utf-8")
        links = [link for link in re.findall(r"\]\(([^)]+)\)", text) if "://" not in link]
        assert [] == [link for link in links if not (root / link).exists()]


def test_versions(fdpass):
    """The changelog begins with this version, and the limits that README.md names are the package's."""
    changes = (Path(__file__).resolve().parent.parent / "CHANGELOG.md").read_text(encoding="utf-8")
    assert fdpass.__version__ == re.search(r"^## \[([\d.]+)\]", changes, re.MULTILINE)[1]
    assert f"takes {fdpass._send.SCM_MAX_FD} descriptors on Linux" in README

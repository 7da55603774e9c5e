"""CPython's own tests of sendmsg and its kin, run through the package: what passes with `socket` passes here.

The cases run in processes of their own (cpython_suite.py), once with `socket` itself as the standard to compare with,
and once on each backend. The files are those of the running interpreter, or, where it ships none, those of another
interpreter of the same Python version: one named by FDPASS_CPYTHON_TESTS=/path/to/Lib/test, or found on PATH.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import time
from collections import Counter
from pathlib import Path

import pytest
from cpython_suite import FUNCTIONS, METHODS

SCRIPT = Path(__file__).with_name("cpython_suite.py")
VERSION = "{}.{}".format(*sys.version_info)
RUN_SECONDS = 300  # for all cases, of which a sound run takes about 10; what had no turn by then did not pass

# Each kind of case that must have been found, by the class's name, so that a renamed class is not lost unseen.
KINDS = (
    "^SendmsgUDP", "^SendmsgTCP", "^SendmsgUnixStream",
    "^RecvmsgUDP", "^RecvmsgTCP", "^RecvmsgUnixStream",
    "^RecvmsgIntoUDP", "^RecvmsgIntoTCP", "^RecvmsgIntoUnixStream",
    "^CmsgMacro", "^RecvmsgSCMRights", "^RecvmsgIntoSCMRights", "^SendRecvFds",
    "^RecvmsgRFC3542", "^RecvmsgIntoRFC3542",
    "^UDPTimeout", "^InterruptedRecvTimeout", "^InterruptedSendTimeout", "^NonBlocking", "^LinuxKernelCryptoAPI",
)  # fmt: skip

# Cases of CPython's that pin what the package does otherwise on purpose, each with its reason. There are none: no
# case looks at a received descriptor's inheritable flag, asks for MSG_CMSG_CLOEXEC, or receives more than maxfds.
INTENDED: dict[str, str] = {}


class Run:
    """What one run of the cases came to: each case's record by id, and what the script said of itself."""

    def __init__(self, results: Path, output: Path) -> None:
        self.cases: dict[str, dict] = {}
        self.about: dict = {}
        self.finished = False
        self.output = output.read_text("utf-8", "replace") if output.exists() else ""
        for line in results.read_text("utf-8").splitlines() if results.exists() else []:
            record = json.loads(line)
            if "started" in record:
                died = {"outcome": "died", "why": f"(never came back)\n{self.output[-5000:]}", "left": 0, "calls": {}}
                self.cases[record["started"]] = died
            elif "id" in record:
                self.cases[record["id"]] = record
            else:
                self.about = record.get("about", self.about)
                self.finished |= "finished" in record

    def ids(self, outcome: str) -> set[str]:
        return {id for id, case in self.cases.items() if case["outcome"] == outcome}

    def calls(self) -> Counter:
        return sum((Counter(case["calls"]) for case in self.cases.values()), Counter())


def run(folder: Path, work: Path, route: str, **environment: str) -> Run:
    """Run the script until every case had its turn, anew after each case that killed it."""
    results, output = work / "results", work / "output"
    command = [sys.executable, str(SCRIPT), str(results), str(folder), route]
    end = time.monotonic() + RUN_SECONDS
    done, before = Run(results, output), -1
    while not done.finished and len(done.cases) > before and time.monotonic() < end:
        before = len(done.cases)
        with output.open("ab") as out, contextlib.suppress(subprocess.TimeoutExpired):
            subprocess.run(
                command, check=False, cwd=work, env={**os.environ, **environment},
                stdin=subprocess.DEVNULL, stdout=out, stderr=out, timeout=max(1, end - time.monotonic()),
            )  # fmt: skip
        done = Run(results, output)
    assert done.cases, f"no case could be run through {route}:\n{done.output[-5000:]}"
    return done


def is_suite(folder: Path) -> bool:
    """Debian and others leave a Lib/test behind that has no tests in it."""
    return (folder / "test_socket.py").is_file() and (folder / "support").is_dir()


def suites():
    """Folders that may hold the cases for this Python version, the interpreter's own first."""
    named = os.environ.get("FDPASS_CPYTHON_TESTS")
    if named:
        assert is_suite(Path(named)), f"FDPASS_CPYTHON_TESTS names no Lib/test: {named}"
        yield Path(named)
    yield Path(sysconfig.get_path("stdlib"), "test")
    ask = "import sysconfig; print(sysconfig.get_path('stdlib'))"
    for folder in os.get_exec_path():
        python = shutil.which(f"python{VERSION}", path=folder)
        if python:  # PYENV_VERSION, because a pyenv shim refuses a version that is not the chosen one
            environment = {**os.environ, "PYENV_VERSION": VERSION}
            answer = subprocess.run([python, "-c", ask], check=False, capture_output=True, text=True, env=environment)
            yield Path(answer.stdout.strip() or os.devnull, "test")


@pytest.fixture(scope="session")
def folder() -> Path:
    found = next(filter(is_suite, suites()), None)
    if found is None:
        pytest.skip(
            f"this interpreter ships no test.test_socket, and no python{VERSION} on PATH does: "
            "FDPASS_CPYTHON_TESTS=/path/to/Lib/test names one"
        )
    return found


@pytest.fixture(scope="session")  # of the module it would end when pytest puts the tests of a backend together
def theirs(folder, tmp_path_factory) -> Run:
    """The cases through `socket` itself."""
    return run(folder, tmp_path_factory.mktemp("socket"), "socket")


@pytest.fixture(scope="module")
def ours(folder, fdpass, backend, tmp_path_factory) -> Run:
    """The cases through the package on one backend."""
    above = str(Path(fdpass.__file__).parent.parent)
    path = os.pathsep.join(filter(None, [above, os.environ.get("PYTHONPATH")]))
    work = tmp_path_factory.mktemp(backend)
    return run(folder, work, "fdpass_cffi", FDPASS_CFFI_BACKEND=backend, PYTHONPATH=path)


def told(run: Run, ids) -> str:
    """The tracebacks of the named cases."""
    return "\n".join(f"=== {id}\n{run.cases.get(id, {'why': '(not run)'})['why']}" for id in sorted(ids))


def test_the_cases_concern_every_part_of_the_interface(theirs):
    """The classes chosen include each kind that there is, and many of their cases pass with `socket` here."""
    classes = {id.split(".")[-2] for id in theirs.cases}
    assert [] == [kind for kind in KINDS if not any(re.search(kind, name) for name in classes)]
    assert theirs.finished, theirs.output[-5000:]
    assert len(theirs.ids("pass")) >= 150, told(theirs, theirs.ids("fail"))


def test_the_package_answers_every_call(ours, fdpass, backend):
    """The calls went to functions of the package under test, on the backend under test."""
    assert backend == ours.about["backend"]
    assert fdpass.__file__ == ours.about["package"]
    answers = {name: who for name, who in ours.about["answers"].items() if name in METHODS + FUNCTIONS}
    assert {"fdpass_cffi"} == {who.split(".")[0] for who in answers.values()}


def test_what_passes_with_socket_passes_here(theirs, ours):
    """Every case that `socket` passes, the package passes."""
    lost = theirs.ids("pass") - ours.ids("pass")
    assert set(INTENDED) == lost, told(ours, lost)


def test_no_case_kills_or_hangs_the_interpreter(ours):
    """Every case comes back, also those that `socket` fails."""
    assert set() == ours.ids("died"), told(ours, ours.ids("died"))


def test_skips_are_those_of_socket(theirs, ours):
    """The package makes no case skip itself that ran with `socket`, and none run that did not."""
    assert theirs.ids("skip") == ours.ids("skip"), told(ours, ours.ids("skip") ^ theirs.ids("skip"))


def test_every_function_was_reached(theirs, ours):
    """Counters show calls to each function; and case by case, to the same functions as with `socket`."""
    reached = set(ours.calls())
    assert set(METHODS + FUNCTIONS) & set(theirs.calls()) <= reached
    assert {"sendmsg", "recvmsg", "recvmsg_into", *FUNCTIONS} <= reached
    both = theirs.ids("pass") & ours.ids("pass")
    pairs = {id: (set(theirs.cases[id]["calls"]), set(ours.cases[id]["calls"])) for id in both}
    assert {} == {id: (there, here) for id, (there, here) in pairs.items() if there != here}


def test_no_case_leaves_a_descriptor_open_that_socket_closed(theirs, ours):
    """After each case no more descriptors are open than after the same case with `socket`."""
    left = {id: case["left"] for id, case in ours.cases.items() if case["left"] > theirs.cases[id]["left"]}
    assert {} == left

"""Each program in examples/ runs, ends by itself, and shows what it is there to show."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import PACKAGE

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
SECONDS = 300  # after which a program counts as hung


@pytest.fixture
def run(backend, tmp_path):
    """Run an example in a process of its own, warnings as errors: what it printed, and that it left nothing behind."""

    def run(name, *arguments):
        path = os.pathsep.join(filter(None, [str(PACKAGE.parent), os.environ.get("PYTHONPATH")]))
        env = {**os.environ, "PYTHONPATH": path, "FDPASS_CFFI_BACKEND": backend, "TMPDIR": str(tmp_path)}
        command = [sys.executable, "-W", "error", str(EXAMPLES / name), *arguments]
        done = subprocess.run(command, env=env, capture_output=True, timeout=SECONDS, check=False)
        assert (0, b"") == (done.returncode, done.stderr)
        assert [] == os.listdir(tmp_path)
        return done.stdout.decode()

    return run


def test_prefork(run):
    """Each worker, a process of its own, serves every third connection that its parent accepted."""
    lines = run("prefork.py").splitlines()
    assert "9 clients served by 3 workers, 0 of which failed" == lines.pop()
    workers = [line.split(": ")[0] for line in lines]
    assert [f"HELLO {number}" for number in range(9)] == [line.split(": ")[1] for line in lines]
    assert (3, workers[:3] * 3) == (len(set(workers)), workers)


def restarted(output, least):
    """No connection failed, the last version of the server was there at the end, and each one ended well."""
    total, failed, statuses = re.match(r"(\d+) connections, (\d+) failed, servers ended with (.*), {", output).groups()
    assert ("0", "[0, 0, 0, 0]") == (failed, statuses)
    shares = {version: int(count) for version, count in re.findall(r"'(\w+)': (\d+)", output)}
    assert {"4"} <= set(shares) <= {"1", "2", "3", "4"}
    assert 1 < len(shares)
    assert least <= int(total) == sum(shares.values())


def test_hot_restart(run):
    """While a server is replaced three times, none of the connections made meanwhile fails."""
    restarted(run("hot_restart.py", "400"), 400)


@pytest.mark.slow
def test_hot_restart_long(run):
    """The same with at least 5,000 connections."""
    restarted(run("hot_restart.py", "5000"), 5000)


def test_shared_memory(run):
    """The sum that the other process left in the memory is that of the numbers which this one put there."""
    assert "the sum of 0 to 999999 is 499999500000, and 8000000 bytes were not sent\n" == run("shared_memory.py")


def test_privsep(run):
    """The worker reads what it may not open itself, and is refused what is not for it."""
    root = os.getuid() == 0
    uid = 65534 if root else os.getuid()
    lines = [f"worker: uid {uid}, by its name I can open it: {not root}", "worker: secret: here you are"]
    lines += ["worker: it reads: the content of the secret", "worker: /etc/shadow: that is not for you"]
    assert [*lines, "broker: the worker ended with status 0"] == run("privsep.py").splitlines()


@pytest.mark.parametrize("name", sorted(path.name for path in EXAMPLES.glob("*.py")))
def test_examples_are_short(name):
    """An example is less than 80 lines, with a main() that it calls."""
    text = (EXAMPLES / name).read_text(encoding="utf-8")
    assert 80 > len(text.splitlines())
    assert "def main(" in text


def test_each_example_is_run():
    """No example is without a test here."""
    tests = Path(__file__).read_text(encoding="utf-8")
    assert [] == [path.name for path in EXAMPLES.glob("*.py") if f'run("{path.name}"' not in tests]

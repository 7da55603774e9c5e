"""Runs the socket cases of CPython's own `test.test_socket`, once through `socket` and once through the package.

Run as a script, in a process of its own, because it replaces methods of `socket.socket` for good:

    python cpython_suite.py RESULTS FOLDER ROUTE

RESULTS is written, one JSON object a line; FOLDER is a Lib/test; ROUTE is `socket` or a package's name (its backend
is chosen by the environment, as ever). Either way each call goes through the same counting wrapper, so that the two
runs differ in nothing but what answers the call. A case that takes more than FDPASS_CASE_SECONDS (60) ends the process
with each thread's traceback. Cases which RESULTS has already seen start are not run again: after a case killed the
interpreter, the same command runs the rest.
"""

from __future__ import annotations

import faulthandler
import functools
import gc
import importlib
import inspect
import json
import os
import re
import socket
import sys
import threading
import time
import traceback
import types
import unittest
from collections import Counter

METHODS = ("sendmsg", "recvmsg", "recvmsg_into", "sendmsg_afalg")
FUNCTIONS = ("send_fds", "recv_fds", "CMSG_LEN", "CMSG_SPACE")
# recv, send and the like are sendmsg or recvmsg with fewer arguments, so that they are routed too: most of CPython's
# cases on waiting and interruption are about them. These are the classes with such cases.
RELATED = ("recv", "recv_into", "recvfrom", "recvfrom_into", "send", "sendto")
RELATED_CLASSES = re.compile("Timeout|Interrupted|NonBlocking|ConnectionBehaviour|Basic(TCP|UDP|SocketPair)|BufferIO")
CASE_SECONDS = float(os.environ.get("FDPASS_CASE_SECONDS", "60"))


def relatives(package) -> dict:
    """The rest of `socket`'s calls that move data, each by means of the package's recvmsg, recvmsg_into or sendmsg."""

    def recv(sock, bufsize, flags=0):
        return package.recvmsg(sock, bufsize, 0, flags)[0]

    def recvfrom(sock, bufsize, flags=0):
        data, _, _, address = package.recvmsg(sock, bufsize, 0, flags)
        return data, address

    def recvfrom_into(sock, buffer, nbytes=0, flags=0):
        if nbytes < 0:
            raise ValueError("negative buffersize in recvfrom_into")
        whole = memoryview(buffer).cast("B")
        if nbytes > len(whole):
            raise ValueError("nbytes is greater than the length of the buffer")
        count, _, _, address = package.recvmsg_into(sock, [whole[: nbytes or len(whole)]], 0, flags)
        return count, address

    def recv_into(sock, buffer, nbytes=0, flags=0):
        return recvfrom_into(sock, buffer, nbytes, flags)[0]

    def send(sock, data, flags=0):
        return package.sendmsg(sock, [data], (), flags)

    def sendto(sock, data, *flags_and_address):
        *flags, address = flags_and_address
        return package.sendmsg(sock, [data], (), *flags or [0], address)

    return dict(zip(RELATED, (recv, recv_into, recvfrom, recvfrom_into, send, sendto)))


class Counting:
    """Puts a counting wrapper before each routed call; a call from within a call is not the case's own."""

    def __init__(self, nested_allowed: bool) -> None:
        self.counts: Counter[str] = Counter()
        self.nested_allowed = nested_allowed
        self.inside = threading.local()

    def wrap(self, name: str, target):
        @functools.wraps(target)
        def counting(*args, **kwargs):
            if getattr(self.inside, "call", None):
                if not self.nested_allowed:
                    raise RuntimeError(f"{self.inside.call} of the package called socket's {name}")
                return target(*args, **kwargs)
            self.counts[name] += 1
            self.inside.call = name
            try:
                return target(*args, **kwargs)
            finally:
                self.inside.call = None

        return counting


def route(name: str) -> tuple[Counting, dict]:
    """Send the calls to `socket` itself or to the named package; say whose function answers each name."""
    plain = name == "socket"
    package = None if plain else importlib.import_module(name)
    counting = Counting(nested_allowed=plain)
    related = {} if plain else relatives(package)
    answers = {}
    for owner, names in ((socket, FUNCTIONS), (socket.socket, METHODS + RELATED)):
        for n in names:
            if not hasattr(owner, n):
                continue  # as on a platform without it: the cases skip themselves
            target = related.get(n) or getattr(owner if plain else package, n)
            setattr(owner, n, counting.wrap(n, target))
            answers[n] = f"{getattr(target, '__module__', None)}.{target.__name__}"
    package_file = getattr(package, "__file__", None)
    return counting, {"backend": getattr(package, "BACKEND", None), "package": package_file, "answers": answers}


def load(folder: str):
    """test.test_socket out of `folder`, whose parent (another interpreter's library, maybe) stays off sys.path."""
    package = sys.modules["test"] = types.ModuleType("test")
    package.__path__ = [folder]
    if sys.implementation.name != "cpython":
        sys.modules["_testcapi"] = None  # Debian's PyPy has one that cannot be imported
    return importlib.import_module("test.test_socket")


def names_used(code: types.CodeType) -> set[str]:
    inner = [c for c in code.co_consts if isinstance(c, types.CodeType)]
    return set(code.co_names).union(*map(names_used, inner))


def concerns_us(cls: type) -> bool:
    """Whether a class, or one it inherits from, mentions a function of ours anywhere in its code."""
    functions = [inspect.unwrap(f) for c in cls.__mro__ for f in vars(c).values() if callable(f)]
    codes = [getattr(f, "__code__", None) for f in functions]
    used = set().union(*(names_used(c) for c in codes if isinstance(c, types.CodeType)))
    ours = METHODS + FUNCTIONS + (RELATED if RELATED_CLASSES.search(cls.__name__) else ())
    return not used.isdisjoint(ours)


def chosen(module) -> list[type]:
    classes = [c for c in vars(module).values() if isinstance(c, type) and issubclass(c, unittest.TestCase)]
    return [c for c in classes if c.__module__ == module.__name__ and concerns_us(c)]


def open_fds() -> int:
    """How many descriptors are open, or 0 where the system does not tell."""
    for folder in ("/proc/self/fd", "/dev/fd"):
        if os.path.isdir(folder):
            return len(os.listdir(folder))
    return 0


def open_fds_after(before: int) -> int:
    for _ in range(3):
        if open_fds() <= before:
            break
        gc.collect()  # PyPy finalizes late
    return open_fds()


class Results(unittest.TestResult):
    """Writes down how each case ended, which calls it made, and how many descriptors it left open."""

    def __init__(self, out, counting: Counting) -> None:
        super().__init__()
        self.out = out
        self.counting = counting
        self.case: dict = {}

    def write(self, record: dict) -> None:
        self.out.write(json.dumps(record) + "\n")
        self.out.flush()

    def startTest(self, test) -> None:
        super().startTest(test)
        faulthandler.dump_traceback_later(CASE_SECONDS, exit=True)
        self.write({"started": test.id()})
        self.counting.counts.clear()
        self.case = {"id": test.id(), "outcome": "pass", "why": "", "fds": open_fds(), "began": time.monotonic()}

    def stopTest(self, test) -> None:
        super().stopTest(test)
        faulthandler.cancel_dump_traceback_later()
        if not self.case:  # CPython 3.12.1 stops what it skips by class, and never started it
            return
        self.case["left"] = open_fds_after(self.case["fds"]) - self.case.pop("fds")
        self.case["seconds"] = round(time.monotonic() - self.case.pop("began"), 3)
        self.write({**self.case, "calls": dict(self.counting.counts)})
        self.case = {}

    def ended(self, test, outcome: str, why: str) -> None:
        if self.case:
            self.case.update(outcome=outcome, why=why)
        else:  # skipped by 3.12.1 unstarted, or a class or the module could not be set up
            self.write({"id": test.id(), "outcome": outcome, "why": why, "left": 0, "seconds": 0, "calls": {}})

    def failed(self, test, err) -> None:
        self.ended(test, "fail", "".join(traceback.format_exception(*err)))

    def addError(self, test, err) -> None:
        self.failed(test, err)

    def addFailure(self, test, err) -> None:
        self.failed(test, err)

    def addSubTest(self, test, subtest, err) -> None:
        if err is not None:
            self.failed(test, err)

    def addSkip(self, test, reason) -> None:
        self.ended(test, "skip", reason)

    def addUnexpectedSuccess(self, test) -> None:
        self.ended(test, "fail", "passed, and is marked as an expected failure")


def seen(path: str) -> set[str]:
    """The cases that an earlier process of this run started."""
    if not os.path.exists(path):
        return set()
    with open(path, encoding="utf-8") as lines:
        return {record["started"] for record in map(json.loads, lines) if "started" in record}


def main(path: str, folder: str, name: str) -> None:
    done = seen(path)
    counting, about = route(name)
    module = load(folder)
    loader = unittest.TestLoader()
    tests = [test for cls in chosen(module) for test in loader.loadTestsFromTestCase(cls) if test.id() not in done]
    with open(path, "a", encoding="utf-8") as out:
        results = Results(out, counting)
        results.write({"about": {**about, "python": sys.version, "file": module.__file__}})
        unittest.TestSuite(tests).run(results)
        results.write({"finished": True})


if __name__ == "__main__":
    main(*sys.argv[1:])

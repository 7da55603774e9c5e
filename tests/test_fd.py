"""OwnedFd closes its descriptor exactly once, whatever is called, in whichever thread, wherever an exception comes."""

from __future__ import annotations

import copy
import dis
import doctest
import enum
import errno
import gc
import os
import pickle
import signal
import socket
import stat
import sys
import threading
import warnings
import weakref
from contextlib import suppress
from functools import partial
from itertools import count

import pytest
from support import striking

from fdpass_cffi import _close
from fdpass_cffi import fd as module
from fdpass_cffi._close import close_all, close_tail
from fdpass_cffi.fd import AFTER_CALLS, OwnedFd, adopt, close_cells, close_owned

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

WITHOUT_GIL = [] if getattr(sys, "_is_gil_enabled", lambda: True)() else [IndexError]
CPYTHON = sys.implementation.name == "cpython"


def is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


def a_pipe() -> tuple[OwnedFd, OwnedFd]:
    reading, writing = os.pipe()
    return OwnedFd(reading), OwnedFd(writing)


def a_file(tmp_path, content: bytes = b"content\n") -> OwnedFd:
    path = tmp_path / "file"
    path.write_bytes(content)
    return OwnedFd(os.open(path, os.O_RDWR))


@pytest.fixture
def unraisable(monkeypatch):
    """The types of the exceptions that the interpreter dropped, since nobody could catch them."""
    dropped: list[type[BaseException]] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda args: dropped.append(args.exc_type))
    return dropped


# Ownership, one call at a time


def test_examples_in_the_docstrings_run():
    """What the docstrings show is what happens."""
    failed, attempted = doctest.testmod(module)
    assert (0, True) == (failed, attempted > 20)


def test_close_closes_once():
    """close() closes the descriptor, and a second one leaves alone whoever has the number by then."""
    reading, writing = os.pipe()
    owned = OwnedFd(reading)
    owned.close()
    assert not is_open(reading)
    assert reading == os.dup2(writing, reading)
    owned.close()
    del owned
    gc.collect()
    assert is_open(reading)
    os.close(reading)
    os.close(writing)


def test_leaving_the_with_block_closes():
    """The context manager gives itself, and closes on a normal end and on an exception."""
    one, two = a_pipe()
    with one as same:
        assert one is same
        assert not one.closed
    with pytest.raises(ZeroDivisionError), two:
        raise ZeroDivisionError
    assert (True, True) == (one.closed, two.closed)
    with pytest.raises(ValueError, match="closed"), one:
        raise AssertionError("a closed one must not be entered")


def test_detach_gives_the_number_and_the_ownership():
    """After detach() the descriptor is open, and the OwnedFd closes it no more."""
    one, two = a_pipe()
    number = one.fileno()
    assert number == one.detach()
    one.close()
    del one
    gc.collect()
    assert is_open(number)
    os.close(number)
    two.close()


def test_a_fetched_detach_takes_once_too():
    """The function that `detach` is gives the descriptor once, and not what was closed after it was fetched."""
    one, two = a_pipe()
    first, second = one.detach, one.detach
    os.close(first())
    for take in (first, second, first):
        with pytest.raises(ValueError, match="was taken"):
            take()
    late = two.detach
    two.close()
    with pytest.raises(ValueError, match="was closed"):
        late()


USES = {
    "fileno": lambda owned: owned.fileno(),
    "detach": lambda owned: owned.detach(),
    "dup": lambda owned: owned.dup(),
    "to_file": lambda owned: owned.to_file(),
    "to_socket": lambda owned: owned.to_socket(),
    "with": lambda owned: owned.__enter__(),
}


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("state", ["closed", "taken"])
def test_nothing_can_be_done_without_a_descriptor(use, state):
    """Once it was closed or taken every use is a ValueError that says which."""
    one, two = a_pipe()
    two.close()
    if state == "closed":
        one.close()
    else:
        os.close(one.detach())
    with pytest.raises(ValueError, match=f"^the descriptor of this OwnedFd was {state}$"):
        USES[use](one)
    assert (True, f"<OwnedFd {state}>") == (one.closed, repr(one))


def test_dup_makes_an_independent_owner():
    """dup() is the same open file under another number, close-on-exec, and outlives the first."""
    one, two = a_pipe()
    second = one.dup()
    assert os.path.sameopenfile(one.fileno(), second.fileno())
    assert not os.get_inheritable(second.fileno())
    one.close()
    os.write(two.fileno(), b"x")
    assert b"x" == os.read(second.fileno(), 2)
    second.close()
    two.close()


class Number(enum.IntEnum):
    FOUR = 4
    MINUS = -1


@pytest.mark.parametrize(
    ("bad", "error", "says"),
    [
        (True, TypeError, "bool"),
        (False, TypeError, "bool"),
        ("3", TypeError, "str"),
        (3.0, TypeError, "float"),
        (None, TypeError, "NoneType"),
        (-1, ValueError, "-1"),
        (Number.MINUS, ValueError, "negative"),
        (2**31, OverflowError, "2147483648"),
        (2**70, OverflowError, "C int"),
    ],
)
def test_what_cannot_be_a_descriptor_is_refused(bad, error, says, unraisable):
    """The error names the argument and what was wrong with it, and finalizing what was half made is silent."""
    with pytest.raises(error, match=f"fd must .*{says}"):
        OwnedFd(bad)
    gc.collect()
    assert [] == unraisable


def test_any_plain_number_is_taken_over_without_asking_the_system():
    """The constructor makes no syscall: a number that is not open is found out at close()."""
    owned = OwnedFd(2**31 - 1)
    assert (2**31 - 1, False) == (owned.fileno(), owned.closed)
    with pytest.raises(OSError, match="Bad file descriptor"):
        owned.close()
    assert owned.closed
    owned.close()
    four = OwnedFd(Number.FOUR)
    assert int is type(four.detach())


def test_identity_is_what_compares():
    """Two OwnedFds of one number are two; each is found in a set, and can be referred to weakly."""
    one, other = OwnedFd(2**30), OwnedFd(2**30)
    assert one != other
    assert one == one  # noqa: PLR0124
    assert {one, other} == {other, one, one}
    assert one is weakref.ref(one)()
    assert [2**30] * 2 == [one.detach(), other.detach()]


@pytest.mark.parametrize(
    "duplicate",
    [copy.copy, copy.deepcopy, *(lambda o, p=p: pickle.dumps(o, p) for p in range(pickle.HIGHEST_PROTOCOL + 1))],
)
def test_it_is_neither_copied_nor_pickled(duplicate):
    """A copy would be a second owner: TypeError, which names dup()."""
    with OwnedFd(os.dup(0)) as owned:
        with pytest.raises(TypeError, match=r"cannot be copied or pickled.*dup\(\)"):
            duplicate(owned)
        assert not owned.closed


# The last resort


def test_a_forgotten_one_is_closed_with_a_warning():
    """Dropping an open OwnedFd closes it, and the ResourceWarning says what it held and has it as its source."""
    one, two = a_pipe()
    number, other = one.fileno(), two.fileno()
    cycle = [two]
    cycle.append(cycle)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        del one, two, cycle
        for _ in range(3):
            gc.collect()
    assert (False, False) == (is_open(number), is_open(other))
    assert [ResourceWarning] * 2 == [warning.category for warning in caught]
    assert {OwnedFd} == {type(warning.source) for warning in caught}
    assert {f"unclosed <OwnedFd {fd} pipe:" for fd in (number, other)} == {
        str(warning.message).partition("[")[0] for warning in caught
    }


def test_it_is_closed_where_warnings_are_errors(unraisable):
    """An exception from the warning itself does not keep the descriptor open."""
    one, two = a_pipe()
    number = one.fileno()
    two.close()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        del one
        for _ in range(3):
            gc.collect()
    assert not is_open(number)
    assert [ResourceWarning] == unraisable


# to_file


def test_a_file_takes_over():
    """to_file() gives a binary file on the same number, which closes it; the OwnedFd has nothing left."""
    one, two = a_pipe()
    number = one.fileno()
    file = one.to_file()
    assert (number, "rb", True) == (file.fileno(), file.mode, one.closed)
    os.write(two.fileno(), b"line\nrest")
    two.close()
    assert [b"line\n", b"rest"] == file.readlines()
    assert is_open(number)
    file.close()
    assert not is_open(number)


@pytest.mark.parametrize("mode", ["rb", "r", "r+b", "w+", "a", "ab", "wb", "w", "xb", "x"])
@pytest.mark.parametrize("buffering", [-1, 0, 1, 5000])
@pytest.mark.filterwarnings("ignore:line buffering:RuntimeWarning")
def test_files_are_as_open_makes_them(tmp_path, mode, buffering):
    """Type, mode, encoding, buffering and what a write does are those of open() with the descriptor."""
    if buffering == 0 and "b" not in mode:
        mode += "b"
    encoding = None if "b" in mode else "latin-1"
    results = []
    for make in (lambda o: o.to_file(mode, buffering, encoding), lambda o: open(o.detach(), mode, buffering, encoding)):  # noqa: SIM115
        with make(a_file(tmp_path)) as file:
            raw = getattr(file, "buffer", file)
            raw = getattr(raw, "raw", raw)
            facts = [type(file), file.mode, raw.mode, raw.closefd, getattr(file, "encoding", None), file.seekable()]
            facts += [getattr(file, "line_buffering", None), file.readable(), file.writable(), file.tell()]
            if file.writable():
                facts.append(file.write(b"new" if "b" in mode else "n\u00e9w"))
            if file.readable():
                file.seek(0)
                facts.append(file.read())
        results.append([*facts, (tmp_path / "file").read_bytes()])
    assert results[1] == results[0]
    assert any(b"tent" in fact for fact in results[0] if isinstance(fact, bytes))


def test_text_options_reach_the_file(tmp_path):
    """encoding, errors and newline are those asked for."""
    with a_file(tmp_path, b"a\xffb\r\nc\r\n").to_file("r", -1, "ascii", "replace", "\r\n") as file:
        assert ("ascii", "replace") == (file.encoding, file.errors)
        assert ["a\ufffdb\r\n", "c\r\n"] == list(file)


REFUSED = [
    ({"mode": "zz"}, ValueError),
    ({"mode": "rw"}, ValueError),
    ({"mode": 7}, TypeError),
    ({"mode": "rb", "encoding": "utf-8"}, ValueError),
    ({"mode": "rb", "newline": ""}, ValueError),
    ({"mode": "r", "buffering": 0}, ValueError),
    ({"mode": "r", "encoding": "no such encoding"}, LookupError),
    ({"mode": "r", "newline": "x"}, ValueError),
    ({"mode": "r+b"}, OSError),  # a pipe cannot seek
]


@pytest.mark.parametrize(("arguments", "error"), REFUSED)
def test_a_refused_file_leaves_the_owner(arguments, error):
    """Whatever open() does not like, the descriptor is still owned, open and usable."""
    one, two = a_pipe()
    number = one.fileno()
    with pytest.raises(error):
        one.to_file(**arguments)
    gc.collect()
    assert (number, False) == (one.fileno(), one.closed)
    os.write(two.fileno(), b"x")
    with two, one.to_file() as file:
        assert b"x" == file.read(1)
    assert not is_open(number)


def test_a_directory_is_no_file(tmp_path):
    """A directory is EISDIR, and still owned."""
    with OwnedFd(os.open(tmp_path, os.O_RDONLY)) as owned:
        with pytest.raises(IsADirectoryError):
            owned.to_file()
        assert stat.S_ISDIR(os.fstat(owned.fileno()).st_mode)


def test_a_failure_at_the_last_moment_leaves_the_owner():
    """If the step fails that makes a file or socket the owner (an audit hook may object), the descriptor goes back."""
    one, two = a_pipe()
    number = one.fileno()
    with pytest.raises(ZeroDivisionError):
        one._give(lambda cell: map(divmod, cell, (0,)))
    assert (number, True) == (one.fileno(), is_open(number))
    one.close()
    two.close()


# to_socket

KINDS = [
    (socket.AF_UNIX, socket.SOCK_STREAM, 0),
    (socket.AF_UNIX, socket.SOCK_DGRAM, 0),
    (socket.AF_UNIX, socket.SOCK_SEQPACKET, 0),
    (socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP),
    (socket.AF_INET, socket.SOCK_DGRAM, socket.IPPROTO_UDP),
    (socket.AF_INET6, socket.SOCK_STREAM, socket.IPPROTO_TCP),
    (socket.AF_INET6, socket.SOCK_DGRAM, socket.IPPROTO_UDP),
]


@pytest.mark.parametrize("kind", KINDS)
def test_a_socket_takes_over(kind):
    """Family, type and protocol are found out; the number is the same, close() closes it."""
    try:
        made = socket.socket(*kind)
    except OSError as error:
        pytest.skip(f"this system has no such socket: {error}")
    owned = OwnedFd(made.detach())
    number = owned.fileno()
    with owned.to_socket() as sock:
        assert type(sock) is socket.socket
        assert (*kind, number, None) == (sock.family, sock.type, sock.proto, sock.fileno(), sock.gettimeout())
        assert owned.closed
        assert "closed" not in repr(sock)
    assert (-1, False) == (sock.fileno(), is_open(number))


def test_the_socket_works_like_any_other():
    """It sends, receives, makes files and duplicates, as all that socket.socket does depends on how it was made."""
    one, two = socket.socketpair()
    with OwnedFd(one.detach()).to_socket() as mine, two:
        mine.sendall(b"there")
        two.sendall(b"and back\n")
        with mine.makefile("rb") as file, mine.dup() as again:
            assert (b"there", b"and back\n") == (two.recv(9), file.readline())
            mine.close()
            assert mine.fileno() != -1  # the file still uses it
            again.sendall(b"!")
        assert (-1, b"!") == (mine.fileno(), two.recv(9))


@pytest.mark.parametrize("blocking", [True, False])
def test_a_socket_without_default_timeout_leaves_the_open_file_alone(blocking):
    """O_NONBLOCK, which the sender's descriptor shares, stays as it was."""
    one, two = socket.socketpair()
    one.setblocking(blocking)
    with two, one, OwnedFd(os.dup(one.fileno())).to_socket() as sock:
        assert (blocking, None) == (os.get_blocking(one.fileno()), sock.gettimeout())


@pytest.mark.parametrize("blocking", [True, False])
def test_the_default_timeout_is_respected(blocking):
    """With socket.setdefaulttimeout() the socket has that timeout, and the O_NONBLOCK it needs."""
    one, two = socket.socketpair()
    one.setblocking(blocking)
    socket.setdefaulttimeout(7.5)
    try:
        with two, one, OwnedFd(os.dup(one.fileno())).to_socket() as sock:
            assert (False, 7.5) == (os.get_blocking(one.fileno()), sock.gettimeout())
    finally:
        socket.setdefaulttimeout(None)


def test_what_is_no_socket_stays_owned():
    """ENOTSOCK, and the descriptor is still here."""
    one, two = a_pipe()
    with one, two:
        number = one.fileno()
        with pytest.raises(OSError) as caught:
            one.to_socket()
        assert (errno.ENOTSOCK, number) == (caught.value.errno, one.fileno())
        gc.collect()
        assert is_open(number)


# repr


def no_proc(path):
    raise FileNotFoundError(errno.ENOENT, "no /proc here", path)


def held(tmp_path) -> dict[str, int]:
    """What repr must say with /proc, and without it, and a descriptor of the kind."""
    (tmp_path / "file").touch()
    found = {
        "socket:[*] or socket": socket.socket().detach(),
        f"file '{tmp_path}/file' or file": os.open(tmp_path / "file", os.O_RDONLY),
        f"directory '{tmp_path}' or directory": os.open(tmp_path, os.O_RDONLY),
        "character device '/dev/null' or character device": os.open("/dev/null", os.O_RDONLY),
    }
    reading, writing = os.pipe()
    os.close(writing)
    found["pipe:[*] or pipe"] = reading
    if hasattr(os, "memfd_create"):
        found["memfd 'a name' or file"] = os.memfd_create("a name")
    if hasattr(os, "eventfd"):
        found["eventfd or anonymous inode"] = os.eventfd(0)
    if hasattr(os, "pidfd_open"):
        with suppress(OSError):  # an emulator or a sandbox may lack it
            found["pidfd or *"] = os.pidfd_open(os.getpid())
    return found


def says(owned: OwnedFd) -> str:
    """What repr says after the number, an inode's number left out."""
    start, _, rest = repr(owned)[:-1].partition(f"<OwnedFd {owned.fileno()} ")
    assert "" == start
    head, bracket, _ = rest.partition(":[")
    return f"{head}:[*]" if bracket else rest


def test_repr_says_what_is_held(tmp_path, monkeypatch):
    """With /proc the name or the kind of anonymous inode, without it the kind that fstat(2) knows."""
    for expected, fd in held(tmp_path).items():
        with_proc, _, without = expected.partition(" or ")
        with OwnedFd(fd) as owned:
            assert with_proc == says(owned)
            with monkeypatch.context() as patch:
                patch.setattr(os, "readlink", no_proc)
                assert without in {says(owned), "*"}


def test_repr_of_a_file_named_like_a_memfd(monkeypatch):
    """A file in the root whose name begins like a memfd's link is shown as the file that it is."""
    with OwnedFd(os.open(__file__, os.O_RDONLY)) as owned:
        with monkeypatch.context() as patch:
            patch.setattr(os, "readlink", lambda _: "/memfd:name")
            text = repr(owned)
        assert f"<OwnedFd {owned.fileno()} file '/memfd:name'>" == text


def test_repr_of_what_is_not_open():
    """A number that the system does not know is said to be bad, which is no error of repr."""
    owned = OwnedFd(2**31 - 1)
    assert "<OwnedFd 2147483647 (Bad file descriptor)>" == repr(owned)
    owned.detach()


# adopt, close_all, close_owned


@pytest.mark.parametrize("count", [0, 1, 2, 3, 253, 10_000])
def test_adopt_takes_all_in_order(count):
    """Each integer has its OwnedFd at the same place, and the list is empty."""
    numbers = list(range(10**9, 10**9 + count))
    fds = list(numbers)
    owned = adopt(fds)
    assert [] == fds
    assert numbers == [one.fileno() for one in owned]
    assert numbers == [one.detach() for one in owned]


def test_what_was_adopted_is_complete(tmp_path):
    """An adopted OwnedFd has all that a constructed one has."""
    for number in (1, 2):
        owned = adopt([os.open(os.devnull, os.O_RDONLY) for _ in range(number)])
        with owned[0] as first, first.dup().to_file() as file:
            assert b"" == file.read()
            assert "'/dev/null'" in repr(first)
        close_owned(owned)
        assert ["<OwnedFd closed>"] * number == [repr(one) for one in owned]


def test_close_all_closes_what_it_can():
    """A number that is not open stops nothing, and the list is empty afterwards: none is closed twice."""
    fds = [*os.pipe(), *os.pipe()]
    os.close(fds[1])
    given = [fds[0], 2**31 - 2, fds[1], -1, fds[2], fds[3]]
    close_all(given)
    assert [False] * 4 == [is_open(fd) for fd in fds]
    assert [] == given


def test_close_tail_keeps_the_first_ones():
    """What was asked for stays open and in the list; the rest is closed."""
    fds = [*os.pipe(), *os.pipe()]
    kept = list(fds)
    close_tail(kept, 3)
    assert fds[:3] == kept
    assert [True, True, True, False] == [is_open(fd) for fd in fds]
    close_all(kept)


@pytest.mark.parametrize(
    ("where", "many"), [(_close, close_all), (module, lambda fds: close_cells([[fd] for fd in fds]))]
)
@pytest.mark.parametrize("times", [1, 2, 4])
def test_a_handlers_error_amid_closing_is_raised(monkeypatch, where, many, times):
    """Once the rest is closed, and whatever its class: TimeoutError, as many raise, is an OSError like close(2)'s."""
    fds, rings = [*os.pipe(), *os.pipe()], []

    def closing(fd):
        os.close(fd)
        signal.raise_signal(signal.SIGALRM)

    def ring(*_):
        if len(rings) < times:
            rings.append(1)
            raise TimeoutError("time is up")

    monkeypatch.setattr(where, "_close", closing)
    old = signal.signal(signal.SIGALRM, ring)
    try:
        with pytest.raises(TimeoutError, match="time is up"):
            many(list(fds))
    finally:
        signal.signal(signal.SIGALRM, old)
    assert [False] * 4 == list(map(is_open, fds))


def test_close_owned_closes_what_is_left():
    """What was closed or taken before, and what close(2) refuses, is passed over."""
    fds = [*os.pipe(), *os.pipe(), 2**31 - 1]
    owned = adopt(list(fds))
    owned[0].close()
    taken = owned[1].detach()
    close_owned(iter([owned[4], *owned[:4]]))
    assert [False, True, False, False, False] == [is_open(fd) for fd in fds]
    assert [True] * 5 == [one.closed for one in owned]
    os.close(taken)


# Threads


@pytest.fixture
def hasty():
    """Threads take turns as often as the interpreter can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def race(*functions) -> list[object]:
    """What each function gave or raised, all started at once, each in a thread of its own."""
    gate = threading.Barrier(len(functions))
    results: list[object] = [None] * len(functions)

    def run(place, function):
        gate.wait()
        try:
            results[place] = function()
        except Exception as error:  # noqa: BLE001 - it is a result
            results[place] = error

    threads = [threading.Thread(target=run, args=item) for item in enumerate(functions)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def test_threads_close_once(hasty, monkeypatch):
    """Of threads that close, or close many, at once, one reaches close(2)."""
    closed: list[int] = []
    monkeypatch.setattr(module, "_close", closed.append)
    for number in range(150):
        owned = OwnedFd(number)
        assert [None] * 4 == race(owned.close, owned.close, partial(close_owned, [owned]), owned.close)
    assert list(range(150)) == closed


def test_threads_take_once(hasty):
    """Of threads that detach() at once one gets the number, and the others ValueError."""
    for number in range(10**9, 10**9 + 150):
        owned = OwnedFd(number)
        results = race(*[partial(USES["detach"], owned)] * 4)
        assert [number] == [result for result in results if isinstance(result, int)]
        losers = [type(result) for result in results if not isinstance(result, int)]
        assert len(losers) == 3
        assert set(losers) <= {ValueError, *WITHOUT_GIL}


def test_threads_convert_once(hasty):
    """Of threads that make a socket, make a file, and close, one wins, and the descriptor is closed once."""
    for _ in range(150):
        made, other = socket.socketpair()
        owned = OwnedFd(made.detach())
        inode = os.fstat(owned.fileno()).st_ino
        won = [
            result
            for result in race(owned.to_socket, partial(owned.to_file, "rb", 0), owned.to_socket, owned.close)
            if hasattr(result, "fileno")
        ]
        assert len(won) in {0, 1}
        assert [inode] * len(won) == [os.fstat(winner.fileno()).st_ino for winner in won]
        for winner in won:
            winner.close()
        assert (True, b"") == (owned.closed, other.recv(1))
        other.close()


# An exception at any bytecode boundary


class Struck(BaseException):
    """What a signal handler raises."""


class Striker:
    """A trace function that raises `error` at the nth boundary in fd.py or _close.py: a bytecode, or a line on PyPy."""

    def __init__(self, at: int, error: type[BaseException]) -> None:
        self.left = at
        self.error = error
        self.line = 0

    def __call__(self, frame, event, arg):
        if frame.f_code.co_filename not in {module.__file__, _close.__file__}:
            return None
        if event == "call" and CPYTHON:
            frame.f_trace = self  # or 3.13 ignores the next line
            frame.f_trace_lines, frame.f_trace_opcodes = False, True
        elif event in {"opcode", "line"}:
            self.left -= 1
            if self.left == 0:
                self.line = frame.f_lineno
                sys.settrace(None)
                raise self.error
        return self

    def run(self, function: Callable[[], object]) -> None:
        # In a generator, since from 3.11 on an exception that is raised at the end of an `except` clause makes the
        # interpreter forget that the one handled there is done with; a generator's end forgets both.
        inside = (function() for _ in "1")
        before = sys.gettrace()
        if CPYTHON:
            sys._getframe().f_trace_opcodes = True  # 3.12 wants to know before it starts
        sys.settrace(self)
        try:
            next(inside)
        except self.error:
            pass
        finally:
            sys.settrace(before)


def identity(fd: int) -> tuple[int, int]:
    status = os.fstat(fd)
    return status.st_dev, status.st_ino


class Things:
    """What a run begins with: descriptors that have an OwnedFd, and `ints`, which the caller has to close."""

    def __init__(self, tmp_path) -> None:
        self.folder = OwnedFd(os.open(tmp_path, os.O_RDONLY))
        one, two = socket.socketpair()
        self.sock, self.pair = OwnedFd(one.detach()), OwnedFd(two.detach())
        self.pipe, self.end = a_pipe()
        self.ints = [os.dup(thing.fileno()) for thing in (self.pair, self.pipe, self.end)]
        self.identities = {fd: identity(fd) for fd in self.ints}
        self.results: list[object] = []

    def still_mine(self, fd: int) -> bool:
        return is_open(fd) and self.identities[fd] == identity(fd)

    def construct(self):
        for fd in list(self.ints):
            self.results.append(OwnedFd(fd))
            self.ints.remove(fd)

    def use(self):
        with self.sock as sock:
            sock.fileno(), sock.closed, repr(sock)
        repr(sock)

    def close(self):
        self.sock.close()
        self.sock.close()

    def detach(self):
        fd = self.sock.detach()
        self.ints.append(fd)
        self.identities[fd] = identity(fd)
        with suppress(ValueError):
            self.sock.detach()

    def dup(self):
        self.results.append(self.sock.dup())

    def to_file(self):
        self.results.append(self.pipe.to_file("rb", 0))

    def to_text_file(self):
        self.results.append(self.pipe.to_file("r", encoding="utf-8"))

    def to_no_file(self):
        with suppress(IsADirectoryError):
            self.folder.to_file()
        with suppress(LookupError):
            self.pipe.to_file("r", encoding="none such")

    def to_socket(self):
        self.results.append(self.sock.to_socket())

    def to_no_socket(self):
        with suppress(OSError):
            self.pipe.to_socket()

    def adopt_one(self):
        for fds in ([fd] for fd in list(self.ints)):
            self.ints.remove(fds[0])
            try:
                self.results.append(adopt(fds))
            finally:
                self.ints += fds

    def adopt(self):
        self.results.append(adopt(self.ints))

    def close_all(self):
        self.ints.append(2**31 - 2)
        close_all(self.ints)

    def close_owned(self):
        close_owned([OwnedFd(2**31 - 1), self.sock, self.pipe])

    def copy(self):
        with suppress(TypeError):
            copy.copy(self.sock)


SCENARIOS = [name for name in vars(Things) if not name.startswith("_") and name != "still_mine"]


# How many ints a struck call may have closed that the caller still lists: it cannot know. adopt() leaves no such doubt.
MAY_BE_GONE = {"construct": {0, 1}, "close_all": {0, 1}}  # of the latter the number that never was open


def open_numbers() -> set[int]:
    return {fd for fd in range(200) if is_open(fd)}


def sweep(run: Callable[[int], Striker]) -> None:
    """Strike a run at each boundary that it has."""
    for at in count(1):
        if run(at).left > 0:
            break
    assert at > (4 if CPYTHON else 1)


def run_struck(scenario: str, error: type[BaseException], tmp_path, at: int) -> Striker:
    """One run with an exception at the nth boundary; checks that nothing leaked."""
    before = open_numbers()
    things = Things(tmp_path)
    striker = Striker(at, error)
    striker.run(getattr(things, scenario))
    things.ints, given = [fd for fd in things.ints if things.still_mine(fd)], things.ints
    assert len(given) - len(things.ints) in MAY_BE_GONE.get(scenario, {0})
    decoys = [*os.pipe()]
    decoys += [os.dup(decoys[0]) for _ in range(12)]  # they get the numbers that are free now
    expected = [identity(fd) for fd in decoys]
    for fd in things.ints:
        os.close(fd)
    del things
    if not CPYTHON:
        gc.collect()
    assert expected == [identity(fd) if is_open(fd) else "closed by somebody else" for fd in decoys]
    for fd in decoys:
        os.close(fd)
    assert before == open_numbers()
    return striker


@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.parametrize("error", [Struck, KeyboardInterrupt] if CPYTHON else [Struck])
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_an_exception_at_any_boundary_neither_leaks_nor_closes_twice(scenario, error, tmp_path, unraisable):
    """After it each descriptor has one owner, or is closed: none is left open, nobody else's is closed."""
    sweep(partial(run_struck, scenario, error, tmp_path))


@pytest.mark.skipif(not CPYTHON, reason="only CPython finalizes at once, inside the traced region")
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_an_exception_in_the_finalizer_leaks_before_its_try_alone(unraisable):
    """From the `try` of __del__ on, the descriptor is closed whatever is raised; before it nothing can be done."""
    code = OwnedFd.__del__.__code__
    lines = {code.co_firstlineno, *(line for _, line in dis.findlinestarts(code) if line)}
    leaked = []

    def run(at: int) -> Striker:
        holder = [OwnedFd(os.dup(0))]
        fd = holder[0].fileno()
        striker = Striker(at, Struck)
        striker.run(holder.clear)
        if is_open(fd):
            leaked.append(striker.line)
            os.close(fd)
        return striker

    sweep(run)
    assert set(leaked) <= set(sorted(lines)[:3])  # 3.14 covers a `try` from its second bytecode on
    assert len(leaked) <= 2


LOOKS = ("CALL", "RESUME", "JUMP_BACKWARD", "SEND", "YIELD_VALUE", "FOR_ITER", "WITH_EXCEPT_START")


@pytest.mark.skipif(not AFTER_CALLS, reason="close() is one call into C there")
def test_nothing_comes_between_the_integer_and_its_close():
    """From the look at the cell to close(2) there is no instruction at which CPython runs handlers or other threads."""
    code = list(dis.get_instructions(OwnedFd.close))
    names = [instruction.argval if instruction.opname.startswith("LOAD_GLOBAL") else None for instruction in code]
    called = names.index("_close")
    deleted = max(at for at in range(called) if code[at].opname == "DELETE_SUBSCR")
    asked = max(at for at in range(deleted) if code[at].opname.startswith("POP_JUMP"))
    between = [instruction.opname for instruction in code[asked + 1 : called + 1]]
    assert "DELETE_SUBSCR" in between
    assert [] == [name for name in between if name.startswith(LOOKS)]


def test_a_profile_function_s_exception_leaves_nothing_open():
    """What is raised at any event of close(), a call into C too, leaves the descriptor owned or closed."""
    for at in count(1):
        left, owned = at, OwnedFd(os.dup(0))
        fd = owned.fileno()

        def strike(frame, event, arg):
            nonlocal left
            left -= frame.f_code is OwnedFd.close.__code__
            if left == 0:
                sys.setprofile(None)
                raise Struck

        before = sys.getprofile()
        sys.setprofile(strike)
        try:
            owned.close()
        except Struck:
            pass
        finally:
            sys.setprofile(before)
        assert is_open(fd) is not owned.closed
        owned.close()
        if left > 0:
            break
    assert at > 3


def test_real_signals_close_once(unraisable):
    """However a signal handler's exception strikes close(), a second close() is right: it leaks none, closes no two."""

    def close():
        for one in owned:
            one.close()

    times = 0
    with striking(Struck) as struck:
        for _ in range(3000):
            numbers = [os.dup(0) for _ in range(20)]
            owned = [OwnedFd(number) for number in numbers]
            times += struck(close)
            close()  # an OSError, if one had been closed and did not know
            assert [] == [number for number in numbers if is_open(number)]
    assert times > 100


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_real_signals_leak_nothing(unraisable):
    """A signal handler that raises, at a random moment of a round of everything, leaves the table as it was."""

    def one_round():
        fds: list[int] = []
        try:
            fds.extend(map(os.dup, [sock.fileno()] * 3))
            with sock.dup() as one, one.dup().to_socket() as two, OwnedFd.dup(one).to_file("rb", 0) as three:
                close_owned(adopt(fds))
                assert {one.fileno(), two.fileno(), three.fileno()}
        finally:
            close_all(fds)

    one, two = socket.socketpair()
    sock = OwnedFd(one.detach())
    before = open_numbers()
    with striking(Struck) as struck:
        times = sum(struck(one_round, 1e-4) for _ in range(1500))
    for _ in range(3):
        gc.collect()
    assert before == open_numbers()
    assert times > 0
    sock.close()
    two.close()

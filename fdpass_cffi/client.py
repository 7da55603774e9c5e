"""`fdpass cat` and `fdpass exec`: clients of the broker. They need cffi alone.

Law: a command started by exec has 0, 1, 2 and the descriptors that were asked for, from 3 on, and no other.
"""

from __future__ import annotations

import fcntl
import os
import select
import signal
import sys
from errno import EINVAL, ENOENT

from .broker import MAX_FDS, MAX_MESSAGE, OK, plain
from .channel import Channel
from .errors import LocalProtocolError
from .fd import OwnedFd

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

PATIENCE = 60.0  # seconds that the broker may take for an answer
FIRST = 3  # SD_LISTEN_FDS_START of sd_listen_fds(3)
CHUNK = 1 << 16  # bytes
NOT_EXECUTABLE, NOT_FOUND = 126, 127  # as a shell has it
LONGEST_FDNAME = 255
DUPLICATE = getattr(fcntl, "F_DUPFD_CLOEXEC", fcntl.F_DUPFD)  # which PyPy 7.3.11 does not name
MOST_TRIED = 1 << 16  # descriptor numbers, where the system does not list those in use


class Refused(Exception):
    """Why there is no descriptor for a name."""


class Broker:
    """Names in, descriptors out; a context manager.

    A broker ends a connection after some time and some requests: then the name is asked for again, over a new one.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self.channel: Channel | None = None

    def open(self, name: str) -> OwnedFd:
        """The descriptor of `name`; Refused with the reason, the broker's or what is wrong with the connection."""
        again = self.channel is not None
        while True:
            try:
                if self.channel is None:
                    self.channel = Channel.connect(self.path, PATIENCE, max_data=MAX_MESSAGE, max_fds=MAX_FDS)
                return self._ask(self.channel, name)
            except (EOFError, OSError) as error:
                self.close()
                if not again or not isinstance(error, (EOFError, ConnectionError)):
                    raise Refused(f"{self.path}: {explained(error)}") from None
                again = False

    def _ask(self, channel: Channel, name: str) -> OwnedFd:
        """One request and its reply."""
        try:
            channel.send(os.fsencode(name))
        except LocalProtocolError:
            raise Refused("the name is too long") from None
        except ConnectionError:
            pass  # whoever closed may have said why
        with channel.recv() as message:
            if message.data == OK and message.fds:
                return message.fds.pop()
            raise Refused(plain(message.data))

    def close(self) -> None:
        """Close the connection, if there is one."""
        channel, self.channel = self.channel, None
        if channel is not None:
            channel.close()

    def __enter__(self) -> Broker:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def explained(error: EOFError | OSError) -> str:
    """What went wrong with a connection."""
    if isinstance(error, EOFError):
        return "the broker closed the connection"
    return error.strerror or str(error)


# cat


def cat(path: str, names: Sequence[str]) -> int:
    """Copy each file to stdout, one after the other; 1 if any could not be had. BrokenPipeError if nobody reads."""
    if sys.stdout is None:
        complain("cat: there is no stdout")
        return 1
    out = sys.stdout.fileno()
    status = 0
    with Broker(path) as broker:
        for name in names:
            try:
                with broker.open(name) as file:
                    copy(file.fileno(), out)
            except Refused as error:
                complain(f"cat: {plain(os.fsencode(name))}: {error}")
                status = 1
    return status


def copy(source: int, out: int) -> None:
    """All that is left in `source`, to `out`; Refused if it cannot be read."""
    while True:
        try:
            data = os.read(source, CHUNK)
        except OSError as error:
            raise Refused(f"{error.strerror}") from None
        if not data:
            return
        write_all(out, data)


def write_all(out: int, data: bytes) -> None:
    """write(2) until all has gone; OSError if it cannot."""
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(out, view) :]
        except BlockingIOError:  # a pipe or terminal that somebody has set O_NONBLOCK on
            select.select((), (out,), ())


# exec


def execute(path: str, names: Sequence[str], command: Sequence[str]) -> int:
    """Become `command` with the descriptors of `names`; the exit status if that fails. ValueError as `filled`."""
    command = filled(command, len(names))
    fds: list[OwnedFd] = []
    try:
        with Broker(path) as broker:
            if receive(broker, names, fds):
                return 1
        try:
            arrange(fds)
        except OSError as error:
            complain(f"exec: {error.strerror}")
            return 1
        return become(command, environment(names))
    finally:
        for owned in fds:
            owned.close()


def filled(command: Sequence[str], count: int) -> list[str]:
    """The command with its first `{}` replaced by the first descriptor's path, and so on. A pure function.

    ValueError if there are more `{}` than descriptors.

    >>> filled(["diff", "{}", "--to-file={}"], 2)
    ['diff', '/dev/fd/3', '--to-file=/dev/fd/4']
    """
    if sum(argument.count("{}") for argument in command) > count:
        raise ValueError(f"the command has more {{}} than the {count} names")
    number = FIRST
    arguments = []
    for argument in command:
        parts = argument.split("{}")
        text = parts[0]
        for part in parts[1:]:
            text += f"/dev/fd/{number}{part}"
            number += 1
        arguments.append(text)
    return arguments


def receive(broker: Broker, names: Sequence[str], fds: list[OwnedFd]) -> int:
    """Add a descriptor for each name to `fds`; how many there are not, each of which is told."""
    failed = 0
    for name in names:
        try:
            fds.append(broker.open(name))
        except Refused as error:
            complain(f"exec: {plain(os.fsencode(name))}: {error}")
            failed += 1
    return failed


def arrange(fds: list[OwnedFd]) -> None:
    """Have `fds` be 3, 4, ... and inheritable, and nothing else above 2 be inheritable."""
    end = FIRST + len(fds)
    for at, owned in enumerate(fds):  # out of the way first
        fds[at] = OwnedFd(fcntl.fcntl(owned.fileno(), DUPLICATE, end))
        owned.close()
    for number, owned in enumerate(fds, FIRST):
        os.dup2(owned.fileno(), number)
    for number in numbers_in_use():
        if number >= end:
            try:
                os.set_inheritable(number, False)
            except OSError:  # it was the one that listed the others
                continue


def numbers_in_use() -> list[int]:
    """Which descriptors this process may have open."""
    for folder in ("/proc/self/fd", "/dev/fd"):
        try:
            found = sorted(map(int, os.listdir(folder)))
        except (OSError, ValueError):
            continue
        if folder == "/proc/self/fd" or len(found) > FIRST:  # some systems list no more than three there
            return found
    return list(range(FIRST, MOST_TRIED))


def environment(names: Sequence[str]) -> dict[str, str]:
    """The environment as sd_listen_fds(3) wants it."""
    own = {name: value for name, value in os.environ.items() if not name.startswith("LISTEN_")}
    fdnames = ":".join(map(fdname, names))
    return {**own, "LISTEN_FDS": str(len(names)), "LISTEN_PID": str(os.getpid()), "LISTEN_FDNAMES": fdnames}


def fdname(name: str) -> str:
    """A name as LISTEN_FDNAMES can have it. A pure function.

    >>> fdname("a:b/c\\n")
    'a_b/c_'
    """
    kept = (c if " " <= c <= "~" and c != ":" else "_" for c in name[-LONGEST_FDNAME:])
    return "".join(kept)


def become(command: list[str], environ: dict[str, str]) -> int:
    """execvp(3), with the signals as a command expects them; the exit status if it fails."""
    for name in ("SIGPIPE", "SIGXFSZ"):  # which the interpreter ignores
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_DFL)
    try:
        os.execvpe(command[0], command, environ)  # noqa: S606 - the command is the user's
    except OSError as error:
        complain(f"exec: {plain(os.fsencode(command[0]))}: {error.strerror}")
        return NOT_FOUND if error.errno in (ENOENT, EINVAL) else NOT_EXECUTABLE


def complain(text: str) -> None:
    """One whole line to stderr."""
    if sys.stderr is not None:
        sys.stderr.write(f"fdpass: {text}\n")
        sys.stderr.flush()

"""`fdpass demo`: a server process opens files and a client process reads them, over a socket path.

Laws: neither side waits longer than its patience for the other. Whoever is left, the server included,
removes the socket and its folder. A file that cannot be opened is told by its name, and the others arrive.

The protocol is a line of JSON each way: the client sends a list of names, the server answers with a message
and a record for each name, and with the descriptors of those it could open, in the order of the records.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import socket
import stat
import sys
import tempfile
import time

from . import BACKEND, __version__, recv_message, sendall_fds

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import Any, NoReturn

    from . import OwnedFd

PATIENCE = 10.0  # seconds that one side waits for the other
GRACE = 2.0  # seconds for the server to end after the client is done
MOST_PER_MESSAGE = 200  # descriptors; every kernel and C library takes that many in one message
LONGEST_LINE = 16 << 20  # bytes: all that fits on a command line, every byte of it escaped
LONGEST_PATH = 90  # bytes; sun_path has 108 on Linux, 104 on the BSDs
NAME_WIDTH, TEXT_WIDTH = 40, 60  # columns of the table
HEADINGS = ("file", "server fd", "client fd", "device/inode there", "device/inode here", "first line")
SAMPLES = {
    "poem.txt": "The descriptor is passed,\nnot the name and not the bytes.\n",
    "numbers.txt": "1 1 2 3 5 8 13 21 34\n",
    "umlauts.txt": "Grüße aus dem anderen Prozess\n",
}


class DemoError(Exception):
    """Why the exchange went no further."""


class Outcome:
    """What came of it: the table's rows, (name, reason) of each file that is missing, what the server said."""

    def __init__(self) -> None:
        self.rows: list[tuple[str, ...]] = []
        self.missing: list[tuple[str, str]] = []
        self.said: list[str] = []


def run(names: Sequence[str], patience: float = PATIENCE) -> int:
    """The whole demo on `names`, or on three files of its own; prints, and returns the exit status.

    SIGINT is blocked but for the exchange itself, so that it finds everything in place that must be undone.
    """
    interrupts = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        with tempfile.TemporaryDirectory(prefix="fdpass-", dir=short_folder()) as folder:
            path = os.path.join(folder, "socket")
            server = start(path, patience)
            grace = 0.0
            try:
                with socket.socket(socket.AF_UNIX) as connection:
                    signal.pthread_sigmask(signal.SIG_SETMASK, interrupts)
                    status = client(connection, path, server, names or samples(folder), patience)
                grace = GRACE
            finally:
                try:
                    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
                finally:
                    stop(server, grace)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, interrupts)
    return status


def short_folder() -> str | None:
    """Where to make the folder: None, the usual place, unless a socket path there would be too long."""
    return None if len(os.fsencode(tempfile.gettempdir())) <= LONGEST_PATH - 24 else "/tmp"  # noqa: S108 - mkdtemp picks the name


def samples(folder: str) -> list[str]:
    """Three files in `folder`; their names."""
    paths = []
    for name, text in SAMPLES.items():
        paths.append(os.path.join(folder, name))
        with open(paths[-1], "w", encoding="utf-8") as file:
            file.write(text)
    return paths


# The server


def start(path: str, patience: float) -> int:
    """Start the process that serves one client at the socket `path`, and then ends; its id."""
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.flush()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen(1)
        return os.fork() or run_server(listener, os.path.dirname(path), patience)


def run_server(listener: socket.socket, folder: str, patience: float) -> NoReturn:
    """The server process to its end, which closes its sockets; SIGINT stays blocked, it ends when the client does."""
    status = 1
    try:
        listener.settimeout(patience)
        connection = listener.accept()[0]
        listener.close()
        connection.settimeout(patience)
        serve(connection)
        status = 0
    except ConnectionError:
        pass  # the client has gone, and will have said why
    except Exception as error:  # noqa: BLE001 - whatever it is, the user is told
        complain(f"server: {error}")
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os._exit(status)


def serve(connection: socket.socket) -> None:
    """Answer lists of names until the client is done."""
    while (names := receive_line(connection, 0, [])) is not None:
        opened: list[int] = []
        try:
            records = [open_one(name, opened) for name in names]
            message = f"opened {len(opened)} of {len(records)}"
            send_line(connection, {"message": message, "files": records}, opened)
        finally:
            for fd in opened:
                os.close(fd)


def open_one(name: str, opened: list[int]) -> dict[str, Any]:
    """Open one file and add its descriptor to `opened`; the record for the client. Waits for no FIFO's writer."""
    try:
        fd = os.open(name, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
        opened.append(fd)
        return {"fd": fd, "identity": identity(fd)}
    except OSError as error:
        return {"error": error.strerror}
    except ValueError as error:  # a null character in it
        return {"error": str(error)}


# The client


def client(connection: socket.socket, path: str, server: int, names: Sequence[str], patience: float) -> int:
    """Ask the server for `names` and print what came; 1 if anything is missing."""
    interpreter = "{} {}.{}.{}".format(sys.implementation.name, *sys.version_info)
    say(f"client: process {os.getpid()}, {interpreter}, fdpass_cffi {__version__}, backend {BACKEND}")
    say(f"server: process {server}, at {path}")
    if sys.stdout is not None:
        sys.stdout.flush()
    outcome = Outcome()
    failure = None
    try:
        connection.settimeout(patience)
        connection.connect(path)
        exchange(connection, names, outcome)
    except socket.timeout:
        failure = f"the server did not answer within {patience:g} s"
    except ConnectionError:
        failure = "the server ended before it had answered"
    except (DemoError, OSError) as error:
        failure = f"the exchange broke off: {error}"
    show(outcome)
    for name, reason in outcome.missing:
        complain(f"{shown(os.fsencode(name)) or repr(name)}: {reason}")
    if failure:
        complain(failure)
    return 1 if failure or outcome.missing else 0


def exchange(connection: socket.socket, names: Sequence[str], outcome: Outcome) -> None:
    """The client's side of the protocol; fills `outcome` in as it goes."""
    for batch in batches(names):
        fds: list[OwnedFd] = []
        try:
            send_line(connection, batch, ())
            reply = receive_line(connection, len(batch), fds)
            if reply is None:
                raise ConnectionAbortedError
            outcome.said.append(reply["message"])
            take(batch, reply["files"], fds, outcome)
        finally:
            for owned in fds:
                owned.close()


def batches(names: Sequence[str]) -> Iterator[list[str]]:
    """The names in lists short enough for one message and for a small RLIMIT_NOFILE."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    size = MOST_PER_MESSAGE if limit == resource.RLIM_INFINITY else max(1, min(MOST_PER_MESSAGE, limit // 4))
    for start in range(0, len(names), size):
        yield list(names[start : start + size])


def take(names: list[str], records: list[dict[str, Any]], fds: list[OwnedFd], outcome: Outcome) -> None:
    """Deal the descriptors to the names, in order; a descriptor must be of the very file that the server opened."""
    if len(records) != len(names) or len(fds) != sum("fd" in record for record in records):
        raise DemoError(f"{len(fds)} descriptors and {len(records)} records arrived for {len(names)} names")
    left = iter(fds)
    for name, record in zip(names, records):
        if "fd" not in record:
            outcome.missing.append((name, record["error"]))
            continue
        fd = next(left).fileno()
        here, there = identity(fd), record["identity"]
        outcome.rows.append((cell(name), str(record["fd"]), str(fd), there, here, first_line(fd)))
        if here != there:
            outcome.missing.append((name, "another file arrived in its place"))


def identity(fd: int) -> str:
    """Which file this is: the device's major:minor / inode, by fstat(2)."""
    status = os.fstat(fd)
    return f"{os.major(status.st_dev)}:{os.minor(status.st_dev)}/{status.st_ino}"


def first_line(fd: int) -> str:
    """How the file begins, fit for a terminal; what is read is read without waiting."""
    if stat.S_ISDIR(os.fstat(fd).st_mode):
        return "(directory)"
    try:
        start = os.read(fd, 4096)
    except BlockingIOError:
        return "(nothing to read yet)"
    except OSError as error:
        return f"({error.strerror})"
    if not start:
        return "(empty)"
    text = shown(start.split(b"\n", 1)[0])
    return text if len(text) <= TEXT_WIDTH else f"{text[: TEXT_WIDTH - 3]}..."


# Lines of JSON, with descriptors


def send_line(sock: socket.socket, content: object, fds: Sequence[int]) -> None:
    """Send one line, and descriptors with its first byte."""
    sendall_fds(sock, json.dumps(content).encode() + b"\n", fds)


def receive_line(sock: socket.socket, most: int, fds: list[OwnedFd]) -> Any:
    """One line's content, None at the end of the connection; at most `most` descriptors are added to `fds`."""
    line = b""
    while not line.endswith(b"\n"):
        message = recv_message(sock, 65536, most - len(fds))
        fds += message.fds
        line += message.data
        if len(line) > LONGEST_LINE:
            raise DemoError(f"a line is longer than {LONGEST_LINE} bytes")
        if not message.data:
            if line:
                raise DemoError("the connection ended in the middle of a line")
            return None
    return json.loads(line)


# The end, and what the user sees


def stop(server: int, grace: float) -> None:
    """Wait up to `grace` seconds until the server has ended, then end it."""
    deadline = time.monotonic() + grace
    try:
        while time.monotonic() < deadline:
            if os.waitpid(server, os.WNOHANG)[0]:
                server = 0
                return
            time.sleep(0.005)
    except ChildProcessError:  # SIGCHLD is ignored here, and the server has ended
        server = 0
    finally:
        if server:
            os.kill(server, signal.SIGKILL)
            os.waitpid(server, 0)


def show(outcome: Outcome) -> None:
    """What the server said, and the table."""
    for text in outcome.said:
        say(f"server: {text}")
    if not outcome.rows:
        return
    widths = [max(map(len, column)) for column in zip(HEADINGS, *outcome.rows)]
    say("")
    for row in (HEADINGS, *outcome.rows):
        say("  ".join(map(str.ljust, row, widths)).rstrip())


def shown(raw: bytes) -> str:
    """`raw` as text, with everything that is none, or that a terminal might obey, written as an escape."""
    text = raw.decode(errors="backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def cell(name: str) -> str:
    """A file name for the table: its end, if it is long."""
    text = shown(os.fsencode(name))
    return text if len(text) <= NAME_WIDTH else f"...{text[3 - NAME_WIDTH :]}"


def say(text: str) -> None:
    """Print, with escapes for what the terminal's encoding lacks."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    print(text.encode(encoding, "backslashreplace").decode(encoding))


def complain(text: str) -> None:
    """One whole line to stderr (which escapes by itself), after all that was printed so far."""
    if sys.stdout is not None:
        sys.stdout.flush()
    if sys.stderr is not None:
        sys.stderr.write(f"fdpass: demo: {text}\n")

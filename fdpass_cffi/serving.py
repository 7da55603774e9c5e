"""`fdpass serve`: the broker as a process. Needs anyio, as aio.py does.

Laws: a client costs one connection for a bounded time and a bounded number of requests, whatever it does, and the
others are served meanwhile. Only the user ids that were named get anything but a refusal.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
from contextlib import contextmanager
from errno import EACCES
from queue import Full, Queue
from threading import Thread

import anyio

from . import aio
from .broker import MAX_FDS, MAX_MESSAGE, OK, open_below, plain, reason
from .client import write_all
from .creds import peer_credentials
from .errors import ProtocolError
from .fd import OwnedFd

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Collection, Iterator

PREFIX = "fdpass: serve: "
MOST_LINES = 1000  # of the log, that wait to be written
DRAINING = 1.0  # seconds that the last of them may take
_log = logging.getLogger(__name__)


class Limits:
    """What one client may have, and how many clients there may be at once."""

    def __init__(self, seconds: float = 60, requests: int = 1000, clients: int = 100) -> None:
        self.seconds = seconds
        self.requests = requests
        self.clients = clients


class Broker:
    """Answers clients with files below `folder`, a descriptor of a directory."""

    def __init__(self, folder: int, uids: Collection[int], limits: Limits) -> None:
        self.folder = folder
        self.uids = uids
        self.limits = limits

    async def attend(self, channel: aio.AsyncChannel) -> None:
        """One client, from the first request to the last."""
        who = "a client that is gone"
        try:
            peer = peer_credentials(channel)
            who = f"process {peer.pid} of uid {peer.uid}"
            why = ""
            with anyio.move_on_after(self.limits.seconds) as scope:
                if peer.uid in self.uids:
                    why = await self.answers(channel, who)
                else:
                    why = f"uid {peer.uid} is not served here"
                    await channel.send(reason(OSError(EACCES, why)))
            _log.info("%s: %s", who, "its time is over" if scope.cancelled_caught else why)
        except ProtocolError as error:
            _log.info("%s: broke the protocol: %s", who, error.strerror)
        except OSError as error:
            _log.info("%s: %s", who, error)

    async def answers(self, channel: aio.AsyncChannel, who: str) -> str:
        """Answer its requests; why there are no more."""
        for _ in range(self.limits.requests):
            try:
                with await channel.recv() as message:
                    name = message.data
            except EOFError:
                return "done"
            await self.answer(channel, name, who)
        return "has had all its requests"

    async def answer(self, channel: aio.AsyncChannel, name: bytes, who: str) -> None:
        """One reply."""
        try:
            file = open_below(self.folder, name)
        except OSError as error:
            _log.info("%s: %s: %s", who, plain(name[:200]), error.strerror)
            await channel.send(reason(error))
            return
        with file:
            await channel.send(OK, [file])
        _log.info("%s: %s: sent", who, plain(name[:200]))


class Announcement:
    """Is told by aio.serve when it listens."""

    def __init__(self, path: str, mode: int) -> None:
        self.path = path
        self.mode = mode

    def started(self, value: None = None) -> None:
        """Let the others in, if there are any, and say so."""
        if self.mode != 0o600:
            os.chmod(self.path, self.mode)
        _log.info("listening at %s", plain(os.fsencode(self.path)))


def run(path: str, folder: str, uids: Collection[int], limits: Limits, *, verbose: bool = False) -> int:
    """Serve `folder` at the socket `path` until SIGTERM or SIGINT; the exit status.

    With `uids`, users other than this process's own are served; the socket's mode is then 0666 instead of 0600.
    """
    flags = os.O_DIRECTORY | os.O_CLOEXEC | getattr(os, "O_PATH", os.O_RDONLY)
    with logging_to_stderr(logging.INFO if verbose else logging.WARNING):
        try:
            with OwnedFd(os.open(folder, flags)) as opened:
                broker = Broker(opened.fileno(), {os.geteuid(), *uids}, limits)
                anyio.run(until_signal, broker, path, 0o666 if uids else 0o600)
        except Stop as stop:
            _log.error("%s: %s", plain(os.fsencode(path)), stop)
            return 1
    return 0


class Stop(Exception):
    """Why there is no server."""


async def until_signal(broker: Broker, path: str, mode: int) -> None:
    """Run the server until a signal comes; Stop if it could not listen, or cannot go on."""
    failure: OSError | None = None
    with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(cancel_at, signals, tasks.cancel_scope)
            try:
                await aio.serve(
                    broker.attend,
                    path,
                    max_connections=broker.limits.clients,
                    max_data=MAX_MESSAGE,
                    max_fds=MAX_FDS,
                    task_status=Announcement(path, mode),
                )
            except OSError as error:
                failure = error
                tasks.cancel_scope.cancel()
    if failure is not None:
        raise Stop(failure.strerror or str(failure))


async def cancel_at(signals: AsyncIterator[signal.Signals], scope: anyio.CancelScope) -> None:
    """End the server when a signal comes."""
    async for number in signals:
        _log.info("%s: ending", number.name)
        scope.cancel()
        return


@contextmanager
def logging_to_stderr(level: int) -> Iterator[None]:
    """In the block, what this package logs goes to stderr, if there is one."""
    if sys.stderr is None:
        yield
        return
    log = logging.getLogger(__package__)
    lines = Lines(sys.stderr.fileno())
    lines.setFormatter(logging.Formatter(f"{PREFIX}%(message)s"))
    log.addHandler(lines)
    log.setLevel(level)
    log.propagate = False
    try:
        yield
    finally:
        log.removeHandler(lines)
        lines.close()


class Lines(logging.Handler):
    """Writes each record as a line to a descriptor, in a thread: nobody who lets a pipe fill up stops the server.

    A line for which there is no more room is lost, and the next one that has room is preceded by how many were.
    """

    def __init__(self, fd: int) -> None:
        super().__init__()
        self.fd = fd
        self.lost = 0
        self.waiting: Queue[str | None] = Queue(MOST_LINES)
        self.thread: Thread | None = Thread(target=self.write, daemon=True)  # it may be in a write(2) for ever
        self.thread.start()

    def emit(self, record: logging.LogRecord) -> None:
        """Put the record on the queue."""
        try:
            self.put(self.format(record))
        except Full:
            self.lost += 1
        except Exception:  # noqa: BLE001 - as every handler of logging does
            self.handleError(record)

    def put(self, line: str | None, timeout: float = 0) -> None:
        """A line, or None for the end, after the number of those that were lost before it; Full past the timeout."""
        for each in [f"{PREFIX}{self.lost} lines are missing here: nobody read this", line] if self.lost else [line]:
            self.waiting.put(each, timeout > 0, timeout)
            self.lost = 0

    def write(self) -> None:
        """What the thread does."""
        while (line := self.waiting.get()) is not None:
            try:
                write_all(self.fd, f"{line}\n".encode(errors="backslashreplace"))
            except OSError:  # nobody will ever read it
                continue

    def close(self) -> None:
        """Wait a while for all to be written. Nothing happens the second time, at the interpreter's end."""
        thread, self.thread = self.thread, None
        if thread is None:
            return
        try:
            self.put(None, DRAINING)
            thread.join(DRAINING)
        except Full:
            pass
        super().close()

"""`fdpass serve`: the broker as a process. Needs anyio, as aio.py does.

Laws: a client costs one connection for a bounded time and a bounded number of requests, whatever it does, and the
others are served meanwhile. Only the user ids that were named get anything but a refusal.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
from errno import EACCES

import anyio

from . import aio
from .broker import MAX_FDS, MAX_MESSAGE, OK, open_below, plain, reason
from .creds import peer_credentials
from .errors import ProtocolError
from .fd import OwnedFd

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Collection

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
    log_to_stderr(logging.INFO if verbose else logging.WARNING)
    flags = os.O_DIRECTORY | os.O_CLOEXEC | getattr(os, "O_PATH", os.O_RDONLY)
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


def log_to_stderr(level: int) -> None:
    """What this package logs, one line each."""
    if sys.stderr is None:
        return
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("fdpass: serve: %(message)s"))
    log = logging.getLogger(__package__)
    log.addHandler(handler)
    log.setLevel(level)
    log.propagate = False

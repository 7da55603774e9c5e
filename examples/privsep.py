"""Privilege separation with asyncio: a broker opens files, and a worker without privileges reads what it is given.

Whatever goes wrong in the worker, which deals with the content, it has no more than what the broker chose to send.
Run as root, the worker becomes nobody, and cannot open the file by its name.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import socket
import tempfile

from anyio.lowlevel import checkpoint

from fdpass_cffi.aio import AsyncChannel

NOBODY = 65534


async def broker(channel: AsyncChannel, allowed: dict[bytes, str]) -> None:
    """Open what the worker asks for, if it is allowed, until the worker is done."""
    async with channel:
        async for request in channel:
            with request:
                path = allowed.get(request.data)
                if path is None:
                    await channel.send(b"that is not for you")
                    continue
                with open(path, "rb") as file:  # noqa: ASYNC230 - a local file
                    await channel.send(b"here you are", [file])


async def worker(channel: AsyncChannel, path: str) -> None:
    """Read one file that is allowed, and ask for one that is not."""
    await checkpoint()  # everything is imported now: nobody may not be able to read the modules
    drop_privileges()
    print(f"worker: uid {os.getuid()}, by its name I can open it: {os.access(path, os.R_OK)}")
    async with channel:
        for name in (b"secret", b"/etc/shadow"):
            await channel.send(name)
            with await channel.recv() as reply:
                print(f"worker: {name.decode()}: {reply.data.decode()}")
                for owned in reply.fds:
                    with owned.to_file("r") as file:
                        print(f"worker: it reads: {file.read()}")


def drop_privileges() -> None:
    """Become nobody, for good, if this is root."""
    if os.getuid() == 0:
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)


def start(ours: socket.socket, theirs: socket.socket, path: str) -> None:
    """The worker's process."""
    ours.close()
    asyncio.run(worker(AsyncChannel(theirs), path))


def main() -> None:
    """Run the worker in a process of its own, and the broker here."""
    ours, theirs = socket.socketpair(socket.AF_UNIX)
    with tempfile.NamedTemporaryFile("w") as file:  # its mode is 0600
        file.write("the content of the secret")
        file.flush()
        process = multiprocessing.get_context("fork").Process(target=start, args=(ours, theirs, file.name))
        process.start()
        theirs.close()
        asyncio.run(broker(AsyncChannel(ours), {b"secret": file.name}))
        process.join()
        print(f"broker: the worker ended with status {process.exitcode}")


if __name__ == "__main__":
    main()

"""The socket at the path of a server, where several start at once."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import threading

import anyio
import anyio.lowlevel
import pytest


def serving(fdpass, path, begun, done, told):
    """Serve at `path`, connect once all have `begun`, stop when they are `done`; tell the errno, 0 for none."""

    async def main():
        async with anyio.create_task_group() as tasks:
            await tasks.start(fdpass.aio.serve, anyio.sleep, path)
            begun.wait(60)
            with socket.socket(socket.AF_UNIX) as client:
                client.connect(path)
            done.wait(60)
            tasks.cancel_scope.cancel()

    try:
        anyio.run(main)
    except BaseException as error:  # noqa: BLE001 - a group, on some loops
        while isinstance(getattr(error, "exceptions", None), tuple):
            (error,) = error.exceptions
        begun.wait(60)
        done.wait(60)
        told.append(error.errno)
    else:
        told.append(0)


@pytest.mark.parametrize("stale", [False, True], ids=["nothing", "stale"])
def test_of_servers_that_start_at_once_one_listens(fdpass, tmp_path, stale):
    """All others are refused, and the one that listens is found at the path, also where a dead one left a socket."""
    path = str(tmp_path / "s")
    for _ in range(30):
        if stale:
            with socket.socket(socket.AF_UNIX) as dead:
                dead.bind(path)
        begun, done, told = threading.Barrier(3), threading.Barrier(3), []
        threads = [threading.Thread(target=serving, args=(fdpass, path, begun, done, told)) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert [0, errno.EADDRINUSE, errno.EADDRINUSE] == sorted(told)
        assert [] == os.listdir(tmp_path)


def test_a_lock_that_somebody_holds(fdpass, tmp_path, monkeypatch):
    """Who can read the folder can keep no server from starting in it, and nothing else waits meanwhile."""
    monkeypatch.setattr(fdpass.aio, "TRIES", 20)
    turns = []

    async def others():
        while True:
            turns.append(await anyio.lowlevel.checkpoint())

    async def main():
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(others)
            await tasks.start(fdpass.aio.serve, anyio.sleep, str(tmp_path / "s"))
            assert ["s"] == os.listdir(tmp_path)
            tasks.cancel_scope.cancel()

    folder = os.open(tmp_path, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        anyio.run(main)
    finally:
        os.close(folder)
    assert len(turns) > 20


def test_a_folder_that_cannot_be_opened(fdpass, tmp_path, monkeypatch):
    """A server starts where the folder may be written to and not be read."""
    listening, real = fdpass._listening, os.open

    def refuse(path, flags, *rest):
        if flags == listening.FOLDER:
            raise PermissionError(errno.EACCES, "no")
        return real(path, flags, *rest)

    async def main():
        async with anyio.create_task_group() as tasks:
            await tasks.start(fdpass.aio.serve, anyio.sleep, str(tmp_path / "s"))
            assert ["s"] == os.listdir(tmp_path)
            tasks.cancel_scope.cancel()

    monkeypatch.setattr(listening.os, "open", refuse)
    with listening.folder_of(str(tmp_path / "s")) as folder:
        assert folder is None
        assert listening.locked(folder)
    anyio.run(main)

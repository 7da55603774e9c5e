"""The socket at the path of a server, where several start at once."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import threading

import pytest

from fdpass_cffi import _listening
from fdpass_cffi._listening import listening


@pytest.mark.parametrize("stale", [False, True], ids=["nothing", "stale"])
def test_of_servers_that_start_at_once_one_listens(tmp_path, stale):
    """All others are refused, and the one that listens is found at the path, also where a dead one left a socket."""
    path = str(tmp_path / "s")
    for _ in range(60):
        if stale:
            with socket.socket(socket.AF_UNIX) as dead:
                dead.bind(path)
        together, done, told = threading.Barrier(4), threading.Barrier(4), []

        def start(path=path, together=together, done=done, told=told):
            together.wait(60)
            try:
                with listening(path) as listener:
                    told.append(listener.fileno())
                    done.wait(60)  # nobody ends before all have begun
                    with socket.socket(socket.AF_UNIX) as client:
                        client.connect(path)
                        listener.accept()[0].close()
            except OSError as error:
                told.append(error.errno)
                done.wait(60)

        threads = [threading.Thread(target=start) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert [errno.EADDRINUSE] * 3 == sorted(told, key=lambda number: number == errno.EADDRINUSE)[1:]
        assert [] == os.listdir(tmp_path)


def test_a_lock_that_somebody_holds(tmp_path, monkeypatch):
    """Who can read the folder can keep no server from starting in it."""
    monkeypatch.setattr(_listening, "PAUSE", 0)
    folder = os.open(tmp_path, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        with listening(str(tmp_path / "s")) as listener:
            assert str(tmp_path / "s") == listener.getsockname()
    finally:
        os.close(folder)


def test_a_folder_that_cannot_be_opened(tmp_path, monkeypatch):
    """A server starts where the folder may be written to and not be read."""

    def refuse(*_):
        raise PermissionError(errno.EACCES, "no")

    monkeypatch.setattr(_listening.os, "open", refuse)
    with listening(str(tmp_path / "s")) as listener:
        assert str(tmp_path / "s") == listener.getsockname()

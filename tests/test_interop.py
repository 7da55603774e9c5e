"""Other programs at the other end: anyio's streams, Twisted, multiprocessing.reduction."""

from __future__ import annotations

import importlib.util
import os
import socket
import subprocess
import sys
from multiprocessing import reduction
from multiprocessing.connection import Connection

import anyio
import pytest
from support import close, descriptors, identities, identity, needs_trio

BACKENDS = ["asyncio", pytest.param("trio", marks=needs_trio)]


@pytest.mark.parametrize("loop", BACKENDS)
def test_anyio_streams(fdpass, tmp_path, loop):
    """What anyio's UNIXSocketStream sends arrives in our awaited drop-ins, and the reverse."""
    aio, path = fdpass.aio, os.fspath(tmp_path / "s")

    async def main(made):
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(path)
            listener.listen()
            async with await anyio.connect_unix(path) as stream:
                ours = listener.accept()[0]
                with ours:
                    for count in (1, 3):
                        async with anyio.create_task_group() as tasks:
                            tasks.start_soon(stream.send_fds, b"from anyio", made[:count])
                            data, fds, _, _ = await aio.recv_fds(ours, 100, 10)
                        assert (b"from anyio", identities(made[:count])) == (data, identities(fds))
                        close(fds)
                        await stream.send_fds(b"again", made[:count])
                        with await aio.recv_message(ours, 100, 10) as message:
                            assert identities(made[:count]) == identities(owned.fileno() for owned in message.fds)
                        assert 7 == await aio.send_fds(ours, [b"to ", b"anyio"[:4]], made[:count])
                        data, fds = await stream.receive_fds(100, 10)
                        assert (b"to anyi", identities(made[:count])) == (data, identities(fds))
                        close(fds)
                    await stream.send(b"plain")
                    assert b"plain" == (await aio.recvmsg(ours, 100))[0]

    with descriptors(3) as made:
        anyio.run(main, made, backend=loop)


TWISTED = """
import os, sys
from twisted.internet import protocol, reactor
from twisted.internet.interfaces import IFileDescriptorReceiver
from zope.interface import implementer

@implementer(IFileDescriptorReceiver)
class Back(protocol.Protocol):
    def __init__(self):
        self.held = []
    def fileDescriptorReceived(self, fd):
        self.held.append(fd)
    def dataReceived(self, data):
        for fd in self.held:
            self.transport.sendFileDescriptor(fd)
        self.transport.write(data[::-1])
    def connectionLost(self, reason):
        reactor.stop()

factory = protocol.ClientFactory()
factory.protocol = Back
reactor.connectUNIX(sys.argv[1], factory)
reactor.run()
"""


@pytest.mark.skipif(importlib.util.find_spec("twisted") is None, reason="Twisted is not installed")
@pytest.mark.parametrize("loop", BACKENDS)
def test_twisted(fdpass, tmp_path, loop):
    """A Twisted process gets our data and descriptors, and we get what it sends back."""
    aio, path = fdpass.aio, os.fspath(tmp_path / "s")

    async def main(made, listener):
        ours = listener.accept()[0]
        with ours, anyio.fail_after(60):
            assert 5 == await aio.send_fds(ours, [b"hello"], made)
            data, fds = b"", []
            try:
                while len(data) < 5:
                    got, more, _, _ = await aio.recv_fds(ours, 100, 10)
                    data, fds = data + got, fds + more
                assert (b"olleh", identities(made)) == (data, identities(fds))
            finally:
                close(fds)

    with descriptors(2) as made, socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        with subprocess.Popen([sys.executable, "-c", TWISTED, path]) as child:
            anyio.run(main, made, listener, backend=loop)
        assert 0 == child.returncode


@pytest.fixture
def connected():
    """A multiprocessing Connection, and our socket at its other end."""
    a, b = socket.socketpair()
    with b, Connection(a.detach()) as connection:
        yield connection, b


def test_multiprocessing_sends(fdpass, connected):
    """reduction.send_handle is received by recv_fds and recv_message."""
    connection, sock = connected
    sock.send(b"AA")  # CPython 3.14 waits for an acknowledgement of each
    with descriptors(2) as made:
        for fd in made:
            reduction.send_handle(connection, fd, os.getpid())
        data, fds, _, _ = fdpass.recv_fds(sock, 1, 1)
        with fdpass.recv_message(sock, 1, 1) as message:
            assert (b"\1", identity(made[1])) == (message.data, identity(message.fds[0].fileno()))
        assert (b"\1", identities(made[:1])) == (data, identities(fds))
        close(fds)


def test_multiprocessing_receives(fdpass, connected):
    """reduction.recv_handle takes what send_fds, sendall_fds and the awaited send_fds send."""
    connection, sock = connected
    with descriptors(1) as made:

        def check():
            handle = reduction.recv_handle(connection)
            assert identities(made) == identities([handle])
            os.close(handle)

        fdpass.send_fds(sock, [b"\1"], made)
        check()
        fdpass.sendall_fds(sock, b"\1", made)
        check()
        anyio.run(fdpass.aio.send_fds, sock, [b"\1"], made)
        check()

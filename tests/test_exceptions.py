"""What an exception leaves behind: buffers that can be changed again, and a socket that is asked anew who it is."""

from __future__ import annotations

import array
import errno
import gc
import os
import socket
import sys

import pytest
from support import close, descriptors, drain, fds_in, fill, identities, on_alarm, pair, rights

SEQPACKET = socket.SOCK_SEQPACKET
SENDS = {
    "sendmsg": lambda m, sock, data: m.sendmsg(sock, [data]),
    "sendmsg-two": lambda m, sock, data: m.sendmsg(sock, [data, data]),
    "send_fds": lambda m, sock, data: m.send_fds(sock, [data], [0]),
    "sendall_fds": lambda m, sock, data: m.sendall_fds(sock, data, [0]),
    "send_messages": lambda m, sock, data: m.send_messages(sock, [(data, [0])]),
}
RECEIVES = {
    "recvmsg_into": lambda m, sock, data: m.recvmsg_into(sock, [data]),
    "recvmsg_into-fd": lambda m, sock, data: m.recvmsg_into(sock.fileno(), [data], 0, socket.MSG_DONTWAIT),
    "recvmsg_into-control": lambda m, sock, data: m.recvmsg_into(sock, [data, data], 100),
}


@pytest.mark.parametrize("name", [*SENDS, *RECEIVES])
def test_a_buffer_can_grow_while_the_exception_lives(fdpass, name):
    """As with `socket`: who gets a BlockingIOError may go on filling the very buffer at once, and keep the error."""
    with pair(SEQPACKET) as (a, b):
        a.setblocking(False)
        b.setblocking(False)
        if name in SENDS:
            fill(a)
        buffer = bytearray(b"some data")
        with pytest.raises(BlockingIOError) as caught:
            {**SENDS, **RECEIVES}[name](fdpass, a if name in SENDS else b, buffer)
        buffer += b", and more"
        assert errno.EAGAIN == caught.value.errno


def test_a_channels_buffer_can_grow_while_the_exception_lives(fdpass):
    """The same of Channel.send, for a message of which a part has gone."""
    a, b = fdpass.Channel.pair()
    with a, b:
        a._sock.setblocking(False)
        buffer = bytearray(5_000_000)
        with pytest.raises(BlockingIOError) as caught:
            a.send(buffer, [0])
        buffer += b"more"
        assert caught.value.bytes_sent > 0


WAITS = {
    "recvmsg": lambda m, sock: m.recvmsg(sock, 100, 100),
    "recv_fds": lambda m, sock: m.recv_fds(sock, 100, 1),
    "recv_message": lambda m, sock: m.recv_message(sock, 100, 1),
    "recv_messages": lambda m, sock: m.recv_messages(sock, 2, 100, 1),
    "recvmsg_into": lambda m, sock: m.recvmsg_into(sock, [bytearray(100)]),
    "recvmsg_into-control": lambda m, sock: m.recvmsg_into(sock, [bytearray(100)], 100),
    "sendmsg": lambda m, sock: m.sendmsg(sock, [b"mine"]),
    "send_fds": lambda m, sock: m.send_fds(sock, [b"mine"], [0]),
    "sendall_fds": lambda m, sock: m.sendall_fds(sock, b"mine", [0]),
    "send_messages": lambda m, sock: m.send_messages(sock, [(b"mine", [0])]),
}


@pytest.mark.parametrize("timeout", [None, 60], ids=["blocking", "timeout"])
@pytest.mark.parametrize("name", WAITS)
def test_a_number_that_has_become_another_sockets(fdpass, name, timeout):
    """A socket that a signal handler closes amid a call on it is closed for that call: nothing goes by its number."""
    with pair(SEQPACKET) as (a, b), pair(SEQPACKET) as (other, peer), descriptors(1) as sent:
        number = a.fileno()
        a.settimeout(timeout)
        if name.startswith("send"):
            fill(a)
        peer.sendmsg([b"somebody else's"], rights(sent))
        moved = []

        def strike():
            if not moved:
                a.close()
                moved.append(os.dup2(other.fileno(), number))

        try:
            with on_alarm(strike, 0.02, 0.02), pytest.raises(OSError) as caught:
                WAITS[name](fdpass, a)
        finally:
            close(moved)
        assert errno.EBADF == caught.value.errno
        peer.setblocking(False)
        with pytest.raises(BlockingIOError):
            peer.recv(100)
        assert b"somebody else's" == other.recv(100)
        b.setblocking(False)
        drain(b)


def test_descriptors_as_bytes(fdpass):
    """Bytes are taken for the C ints in them, as `socket.send_fds` takes them, and not each byte for a descriptor."""
    with pair() as (a, b), descriptors(2) as sent:
        assert 1 == fdpass.send_fds(a, [b"x"], array.array("i", sent).tobytes())
        _, fds, _, _ = fdpass.recv_fds(b, 10, 10)
        close(fds)
        assert len(sent) == len(fds)
        with pytest.raises(ValueError, match="multiple"):
            fdpass.send_fds(a, [b"x"], b"123")


@pytest.mark.parametrize("name", ["recv_fds", "recvmsg", "Channel"])
def test_a_frame_that_a_handler_keeps(fdpass, name):
    """A handler that keeps the frame it interrupted, and lets go of it later, costs the caller no descriptor then."""
    kept = []
    a, b = socket.socketpair()
    channel = fdpass.Channel(b)
    receives = {
        "recv_fds": lambda: [*fdpass.recv_fds(b, 10, 1)[1]],
        "recvmsg": lambda: fds_in(fdpass.recvmsg(b, 10, 100)[1]),
        "Channel": lambda: [one.detach() for one in channel.recv().fds],
    }
    with a, channel, descriptors(1) as sent:

        def keep():
            kept.append(sys._getframe())
            if len(kept) == 1:
                a.sendmsg([b"\0\0\0\1\0\0\0\1x" if name == "Channel" else b"x"], rights(sent))

        with on_alarm(keep, 0.01):
            fds = receives[name]()
        assert kept
        kept.clear()
        gc.collect()
        assert identities(sent) == identities(fds)
        close(fds)
        if name == "Channel":
            a.close()
            with pytest.raises(EOFError):
                channel.recv()

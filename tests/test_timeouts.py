"""Timeouts and interrupted calls: one deadline, whatever signals come; EAGAIN where nobody wants to wait."""

from __future__ import annotations

import errno
import os
import socket
import sys

import pytest
from support import Alarm, alarm, close, descriptors, drain, fill, identities, on_alarm, pair


def calls(fdpass):
    """Every receiving and every sending call, on a socket alone."""
    receive = {
        "recvmsg": lambda sock: fdpass.recvmsg(sock, 1),
        "recvmsg with ancillary data": lambda sock: fdpass.recvmsg(sock, 1, 100),
        "recvmsg_into": lambda sock: fdpass.recvmsg_into(sock, [bytearray(1)]),
        "recv_fds": lambda sock: fdpass.recv_fds(sock, 1, 1),
        "recv_message": lambda sock: fdpass.recv_message(sock, 1, 1),
        "recv_messages": lambda sock: fdpass.recv_messages(sock, 2, 1, 1),
    }
    send = {
        "sendmsg": lambda sock: fdpass.sendmsg(sock, [b"x"]),
        "send_fds": lambda sock: fdpass.send_fds(sock, [b"x"], [0]),
        "sendall_fds": lambda sock: fdpass.sendall_fds(sock, b"x", [0]),
        "send_messages": lambda sock: fdpass.send_messages(sock, [(b"x", [0])]),
    }
    return receive, send


RECEIVE = ["recvmsg", "recvmsg with ancillary data", "recvmsg_into", "recv_fds", "recv_message", "recv_messages"]
SEND = ["sendmsg", "send_fds", "sendall_fds", "send_messages"]


@pytest.fixture(params=RECEIVE + SEND)
def blocked(request, fdpass):
    """A call that would block, and the socket it would block on."""
    receive, send = calls(fdpass)
    with pair() as (a, b):
        if request.param in SEND:
            fill(a)
        yield {**receive, **send}[request.param], a


@pytest.mark.parametrize("timeout", [0.001, 0.05])
def test_past_the_timeout_there_is_an_error_that_both_names_catch(blocked, timeout):
    """socket.timeout and TimeoutError (two classes on Python 3.9), with errno ETIMEDOUT."""
    call, sock = blocked
    sock.settimeout(timeout)
    for kind in (TimeoutError, socket.timeout):
        with pytest.raises(kind, match="timed out") as caught:
            call(sock)
        assert errno.ETIMEDOUT == caught.value.errno


def test_one_deadline_whatever_signals_come(blocked):
    """A signal every 5 ms does not begin the 0.1 s anew: the call ends by its timeout, not by the alarm at the end."""
    call, sock = blocked
    sock.settimeout(0.1)
    handled = []

    def handler():
        handled.append(1)
        if len(handled) > 2000:
            raise Alarm

    with on_alarm(handler, 0.005, 0.005), pytest.raises(TimeoutError):
        call(sock)
    assert handled


def test_a_handler_that_raises_ends_the_wait(blocked):
    """With a timeout and without one, its exception comes out of the call."""
    call, sock = blocked
    for timeout in (None, 60):
        sock.settimeout(timeout)
        with pytest.raises(Alarm), alarm(0.03):
            call(sock)


def test_where_nobody_waits_there_is_blockingioerror(blocked):
    """A socket that does not block, and an int or another object whose descriptor does not: EAGAIN at once."""
    call, sock = blocked
    sock.settimeout(0)
    for given in (sock, sock.fileno(), Holder(sock)):
        with pytest.raises(BlockingIOError) as caught:
            call(given)
        assert errno.EAGAIN == caught.value.errno


def test_msg_dontwait_does_not_wait(fdpass):
    """Not even on a socket with a timeout, which `socket` would wait for."""
    dontwait = int(socket.MSG_DONTWAIT)
    with pair() as (a, b):
        fill(a)
        for sock in (a, b):
            sock.settimeout(60)
        b.settimeout(60)
        with pair() as (c, d), alarm(20):
            d.settimeout(60)
            for call in (
                lambda: fdpass.recvmsg(d, 1, 100, dontwait),
                lambda: fdpass.recvmsg_into(d, [bytearray(1)], 0, dontwait),
                lambda: fdpass.recv_fds(d, 1, 1, dontwait),
                lambda: fdpass.recv_message(d, 1, 1, dontwait),
                lambda: fdpass.recv_messages(d, 1, 1, 1, dontwait),
                lambda: fdpass.sendmsg(a, [b"x"], [], dontwait),
                lambda: fdpass.send_fds(a, [b"x"], [0], dontwait),
                lambda: fdpass.sendall_fds(a, b"x", [0], dontwait),
                lambda: fdpass.send_messages(a, [(b"x", [0])], dontwait),
            ):
                with pytest.raises(BlockingIOError):
                    call()


@pytest.mark.parametrize("timeout", [None, 60])
@pytest.mark.parametrize("name", RECEIVE)
def test_a_receive_that_waits_gets_what_comes(fdpass, name, timeout):
    """PEP 475: handlers run while it waits, one of them sends, and the message comes out whole."""
    with descriptors(1) as fds, pair() as (a, b):
        b.settimeout(timeout)
        rung = []

        def handler():
            rung.append(1)
            if len(rung) == 3:
                fdpass.send_fds(a, [b"x"], fds)

        with on_alarm(handler, 0.01, 0.01):
            result = calls(fdpass)[0][name](b)
        if name == "recv_fds":
            assert (b"x", identities(fds)) == (result[0], identities(result[1]))
            close(result[1])
        elif name == "recv_message":
            with result:
                assert identities(fds) == identities(one.fileno() for one in result.fds)
        elif name == "recv_messages":
            with result[0]:
                assert b"x" == result[0].data
        elif name == "recvmsg with ancillary data":
            close([int.from_bytes(result[1][0][2][:4], sys.byteorder)])
        assert len(rung) >= 3


@pytest.mark.parametrize("timeout", [None, 60])
@pytest.mark.parametrize("name", SEND)
def test_a_send_that_waits_goes_out_when_there_is_room(fdpass, name, timeout):
    """A handler empties the full socket while the send waits."""
    with pair() as (a, b):
        fill(a)
        a.settimeout(timeout)
        rung = []

        def handler():
            rung.append(1)
            if len(rung) == 3:
                drain(b)

        with on_alarm(handler, 0.01, 0.01):
            calls(fdpass)[1][name](a)
        assert len(rung) >= 3
        drain(b)


def test_what_is_there_is_taken_without_a_wait(fdpass):
    """A timeout of a nanosecond is enough for a message that waits already: the call is tried before the clock is."""
    with pair() as (a, b):
        b.settimeout(1e-9)
        os.write(a.fileno(), b"xyz")
        assert b"x" == fdpass.recvmsg(b, 1)[0]
        assert b"y" == fdpass.recv_fds(b, 1, 1)[0]
        with fdpass.recv_message(b, 1, 1) as message:
            assert b"z" == message.data


class Holder:
    """An object with fileno() and nothing else."""

    def __init__(self, sock):
        self.sock = sock

    def fileno(self):
        return self.sock.fileno()

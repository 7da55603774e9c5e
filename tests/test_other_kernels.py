"""Darwin and the BSDs, as far as can be shown without them: on fake kernels that do what those are documented to do."""

from __future__ import annotations

import array
import errno
import os
import socket

import pytest
from kernel import room_for
from other_kernels import DARWIN, FREEBSD, NETBSD, OPENBSD, SYSTEMS, load
from support import close, descriptors, identities, open_numbers, pair

from fdpass_cffi import _platform

# The same on all four
LEVEL, RIGHTS, CTRUNC = (
    _platform.constants(DARWIN, "arm64")[name] for name in ("SOL_SOCKET", "SCM_RIGHTS", "MSG_CTRUNC")
)


@pytest.fixture(params=SYSTEMS)
def other(request):
    """The package as on each system."""
    return load(request.param)


def item(fds):
    return LEVEL, RIGHTS, array.array("i", fds).tobytes()


def fds_of(ancdata):
    return [fd for level, kind, data in ancdata if (level, kind) == (LEVEL, RIGHTS) for fd in array.array("i", data)]


def inheritable(fds):
    return [os.get_inheritable(fd) for fd in fds]


def test_it_is_another_platform(other):
    """The layout, the constants and the flags are that system's: else the tests below would show nothing."""
    system = other.kernel.system
    assert (system, False, "abi") == (other._backend.SYSTEM, other._backend.LINUX, other.BACKEND)
    assert (0xFFFF, 0x20) == (other._backend.CONSTANTS["SOL_SOCKET"], other._backend.CONSTANTS["MSG_CTRUNC"])
    assert "struct bsd_msghdr" == other._backend.MSGHDR
    assert other.kernel.layout.align == other._backend.LAYOUT.align


@pytest.mark.parametrize(
    ("system", "flags"),
    [
        ("linux", (False, False, False, False)),
        (DARWIN, (True, True, True, True)),
        (FREEBSD, (False, False, False, True)),
        (NETBSD, (True, False, False, True)),
        (OPENBSD, (True, False, False, True)),
    ],
)
def test_flags_say_what_differs(fdpass, system, flags):
    """Each system's flags: one item, no close-on-exec by the kernel, truncation that leaks, EMSGSIZE for a loss."""
    kernel = fdpass._platform.Kernel(system)
    found = kernel.one_rights_item, kernel.sets_no_cloexec, kernel.truncation_leaks, kernel.loss_is_emsgsize
    assert flags == found
    assert ("MSG_CMSG_CLOEXEC" in fdpass._platform.constants(system, "x86_64")) is not kernel.sets_no_cloexec


@pytest.mark.parametrize("count", [0, 1, 2, 253])
def test_the_drop_ins_pass_descriptors(other, count):
    """send_fds and recv_fds, with the descriptors in order and close-on-exec, whoever sets that."""
    with pair() as (a, b), descriptors(count) as sent:
        assert 4 == other.send_fds(a, [b"data"], sent)
        data, fds, flags, address = other.recv_fds(b, 100, 253)
        try:
            assert (b"data", 0, identities(sent)) == (data, flags, identities(fds))
            assert [False] * count == inheritable(fds)
        finally:
            close(fds)
        assert not address


def test_what_was_not_asked_for_is_closed(other):
    """recv_fds keeps maxfds of them and says MSG_CTRUNC by the system's own number."""
    with pair() as (a, b), descriptors(5) as sent:
        other.send_fds(a, [b"data"], sent)
        _, fds, flags, _ = other.recv_fds(b, 100, 2)
        close(fds)
        assert (2, CTRUNC) == (len(fds), flags)


@pytest.mark.parametrize("room", ["none", "less than a header", "a header", "one", "two", "all"])
@pytest.mark.parametrize("into", [False, True])
def test_a_small_control_buffer_leaks_nothing(other, room, into):
    """Whatever has no room in recvmsg's ancbufsize is closed: Darwin's kernel leaves it open, OpenBSD's fails."""
    sizes = {"none": 0, "less than a header": 8, "a header": other.CMSG_LEN(0), "one": other.CMSG_LEN(4)}
    size = {**sizes, "two": other.CMSG_LEN(8), "all": other.CMSG_SPACE(16)}[room]
    with pair() as (a, b), descriptors(4) as sent:
        other.send_fds(a, [b"data"], sent)
        before = open_numbers()
        receive, what = (other.recvmsg_into, [bytearray(100)]) if into else (other.recvmsg, 100)
        if other.kernel.system == OPENBSD and room != "all":
            with pytest.raises(other.TruncatedError) as caught:
                receive(b, what, size)
            assert (errno.EMSGSIZE, "control-buffer") == (caught.value.errno, caught.value.reason)
            assert before == open_numbers()
            return
        _, ancdata, flags, _ = receive(b, what, size)
        fds = fds_of(ancdata)
        close(fds)
        assert before == open_numbers()
        if other.kernel.system == DARWIN:
            assert {"one": 1, "two": 2, "all": 4}.get(room, 0) == len(fds)
        else:
            assert (4 if room == "all" else 0) == len(fds)
        assert (0 if room == "all" else CTRUNC) == flags


@pytest.mark.parametrize("into", [False, True])
def test_an_interrupted_receive_leaves_no_pointer_behind(other, monkeypatch, into):
    """After Ctrl-C in recvmsg(2) a pooled block points at its own memory: what the call made for itself is freed."""

    def interrupt(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(other.kernel, "parts", interrupt)
    with pair() as (_, b), pytest.raises(KeyboardInterrupt):
        other.recvmsg_into(b, [bytearray(10)] * 2) if into else other.recvmsg(b, 10)
    scratch = other._scratch
    blocks = scratch.into_pool if into else scratch.incoming_pool
    assert blocks
    assert all(block.msg.msg_control == block.start + scratch.CONTROL for block in blocks)


def test_a_small_control_buffer_is_cut_as_linux_cuts_it():
    """On Darwin the descriptors that are left are the first ones, close-on-exec."""
    other = load(DARWIN)
    with pair() as (a, b), descriptors(4) as sent:
        other.send_fds(a, [b"data"], sent)
        _, ancdata, _, _ = other.recvmsg(b, 100, other.CMSG_SPACE(8))
        fds = fds_of(ancdata)
        try:
            assert identities(sent[:2]) == identities(fds)
            assert [False, False] == inheritable(fds)
        finally:
            close(fds)


def test_several_items_are_sent_as_one(other):
    """Every descriptor of several SCM_RIGHTS items arrives; those kernels would refuse them or lose all but one."""
    with pair() as (a, b), descriptors(3) as sent:
        other.sendmsg(a, [b"data"], [item(sent[:1]), item(sent[1:])])
        _, ancdata, _, _ = other.recvmsg(b, 100, 1000)
        fds = fds_of(ancdata)
        try:
            assert identities(sent) == identities(fds)
        finally:
            close(fds)


def test_merging_keeps_other_items_in_place(fdpass):
    """Only SCM_RIGHTS items of SOL_SOCKET are put together, where the first was."""
    level, kind = fdpass.msg.SOL_SOCKET, fdpass.msg.SCM_RIGHTS
    items = [(1, 77, b"a"), (level, kind, b"bbbb"), (level + 1, kind, b"c"), (level, kind, b"dddd"), (level, 99, b"e")]
    expected = [(1, 77, b"a"), (level, kind, b"bbbbdddd"), (level + 1, kind, b"c"), (level, 99, b"e")]
    assert expected == fdpass.msg.merged(items)
    assert items[:3] == fdpass.msg.merged(items[:3])


def test_without_merging_the_fake_kernels_lose_or_refuse(monkeypatch):
    """The test above can fail: with the flag off, Darwin refuses two items, and NetBSD delivers the first alone."""
    with pair() as (a, b), descriptors(2) as sent:
        items = [item(sent[:1]), item(sent[1:])]
        darwin, netbsd = load(DARWIN), load(NETBSD)
        for other in (darwin, netbsd):
            monkeypatch.setattr(other._backend.KERNEL, "one_rights_item", False)
        with pytest.raises(OSError) as caught:
            darwin.sendmsg(a, [b"data"], items)
        assert errno.EINVAL == caught.value.errno
        netbsd.sendmsg(a, [b"data"], items)
        fds = fds_of(netbsd.recvmsg(b, 100, 1000)[1])
        close(fds)
        assert 1 == len(fds)


def test_any_number_of_descriptors(other):
    """sendall_fds and recv_message: 300 in two messages, owned."""
    with pair(socket.SOCK_DGRAM) as (a, b), descriptors(300) as sent:
        other.sendall_fds(a, b"data", sent)
        with other.recv_message(b, 100, 253) as first, other.recv_message(b, 100, 253) as second:
            assert (b"d", 253, b"ata", 47) == (first.data, len(first.fds), second.data, len(second.fds))
            fds = [owned.fileno() for owned in first.fds + second.fds]
            assert identities(sent) == identities(fds)
            assert {False} == set(inheritable(fds))


def test_more_than_asked_for_is_an_error(other):
    """recv_message says "maxfds" and leaves nothing open."""
    with pair() as (a, b), descriptors(3) as sent:
        other.send_fds(a, [b"data"], sent)
        before = open_numbers()
        with pytest.raises(other.TruncatedError) as caught:
            other.recv_message(b, 100, 2)
        assert before == open_numbers()
        assert ("maxfds", b"data", 3) == (caught.value.reason, caught.value.data, caught.value.received)


@pytest.mark.parametrize("way", ["recv_message", "recv_fds", "recvmsg", "recv_messages"])
def test_a_full_table_is_an_error_that_says_so(other, way):
    """Those kernels answer EMSGSIZE and discard the descriptors: TruncatedError "table-full", with the limit."""
    calls = {
        "recv_message": lambda sock: other.recv_message(sock, 100, 3),
        "recv_fds": lambda sock: other.recv_fds(sock, 100, 3),
        "recvmsg": lambda sock: other.recvmsg(sock, 100, 1000),
        "recv_messages": lambda sock: other.recv_messages(sock, 2, 100, 3),
    }
    with pair() as (a, b), descriptors(3) as sent:
        other.send_fds(a, [b"data"], sent)
        with room_for(0), pytest.raises(other.TruncatedError) as caught:
            calls[way](b)
        assert (errno.EMSGSIZE, "table-full") == (caught.value.errno, caught.value.reason)
        assert "RLIMIT_NOFILE" in str(caught.value)
        other.send_fds(a, [b"next"], sent)
        with other.recv_message(b, 100, 3) as message:
            assert (b"next", 3) == (message.data, len(message.fds))


def test_batches_by_a_loop(other):
    """recv_messages and send_messages do without recvmmsg and sendmmsg."""
    with pair(socket.SOCK_DGRAM) as (a, b), descriptors(2) as sent:
        assert 2 == other.send_messages(a, [(b"one", sent), (b"two", [])])
        found = other.recv_messages(b, 5, 100, 2)
        try:
            assert [(b"one", 2), (b"two", 0)] == [(one.data, len(one.fds)) for one in found]
            assert [False, False] == inheritable([one.fileno() for one in found[0].fds])
        finally:
            for one in found:
                one.close()


@pytest.mark.parametrize("count", [0, 1, 3, 300])
def test_a_channel(other, count):
    """A frame with its descriptors, by receives that do not peek; close-on-exec."""
    a, b = socket.socketpair()
    with other.Channel(a) as sending, other.Channel(b) as receiving, descriptors(count) as sent:
        sending.send(b"data" * 100, sent)
        with receiving.recv() as message:
            fds = [owned.fileno() for owned in message.fds]
            assert (b"data" * 100, identities(sent)) == (message.data, identities(fds))
            assert [False] * count == inheritable(fds)


def test_who_is_there(other):
    """peer_credentials by LOCAL_PEERCRED or SO_PEERCRED; NetBSD's LOCAL_PEEREID is not declared: ENOPROTOOPT."""
    with pair() as (a, _):
        if other.kernel.system == NETBSD:
            with pytest.raises(OSError) as caught:
                other.peer_credentials(a)
            assert errno.ENOPROTOOPT == caught.value.errno
            return
        pid = 0 if other.kernel.system == FREEBSD else os.getpid()
        assert (pid, os.getuid(), os.getgid()) == other.peer_credentials(a)


def test_what_only_linux_has_is_refused(other):
    """SO_PASSCRED and its like are ENOPROTOOPT, credentials to send ValueError: nothing is ignored."""
    with pair() as (a, b):
        for call in (other.pass_credentials, other.pass_pidfd, other.pass_rights, other.peer_pidfd):
            with pytest.raises(OSError) as caught:
                call(a)
            assert errno.ENOPROTOOPT == caught.value.errno
        with pytest.raises(ValueError, match="SCM_CREDENTIALS"):
            other.sendall_fds(a, b"data", [], credentials=(1, 2, 3))
        b.setblocking(False)
        with pytest.raises(BlockingIOError):
            b.recv(1)


def test_there_is_room_for_all_that_darwin_installs():
    """512 descriptors in one message, which XNU takes, and a timestamp fit in every buffer that it writes them to."""
    other = load(DARWIN)
    layout = other._backend.LAYOUT
    most = layout.cmsg_space(4 * 512) + layout.cmsg_space(16)
    assert most <= other._darwin.ROOM <= other._scratch.CONTROL_ROOM

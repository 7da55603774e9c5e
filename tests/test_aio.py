"""AsyncChannel, serve and the awaited drop-ins, on asyncio, asyncio with uvloop, and trio."""

from __future__ import annotations

import asyncio
import errno
import importlib.util
import logging
import os
import socket
import stat
import uuid
from contextlib import asynccontextmanager, closing, contextmanager, suppress
from functools import partial

import anyio
import pytest
from support import close, descriptors, drain, fill, identities, needs_trio, open_numbers
from test_channel import contents, in_table, limited, out_of_band

LOOPS = [
    pytest.param(("asyncio", {}), id="asyncio"),
    pytest.param(("trio", {}), id="trio", marks=needs_trio),
    pytest.param(
        ("asyncio", {"use_uvloop": True}), id="uvloop",
        marks=pytest.mark.skipif(importlib.util.find_spec("uvloop") is None, reason="uvloop is not installed"),
    ),
]  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def begun():
    """Each loop has run once: uvloop keeps a pipe from its first run."""
    for backend, options in (loop.values[0] for loop in LOOPS if not (loop.marks and loop.marks[0].args[0])):
        anyio.run(anyio.sleep, 0, backend=backend, backend_options=options)


@pytest.fixture(params=LOOPS)
def run(request):
    """Runs a coroutine function, within a minute, on each event loop."""
    backend, options = request.param

    def run(function, *args):
        async def bounded():
            with anyio.fail_after(60):
                return await function(*args)

        return anyio.run(bounded, backend=backend, backend_options=options)

    run.uvloop = options.get("use_uvloop", False)
    return run


KINDS = [pytest.param(socket.SOCK_STREAM, id="stream"), pytest.param(socket.SOCK_SEQPACKET, id="seqpacket")]
both_kinds = pytest.mark.parametrize("kind", KINDS)


@contextmanager
def channels(fdpass, kind=socket.SOCK_STREAM, **limits):
    """Two connected channels, closed at the end."""
    a, b = (fdpass.aio.AsyncChannel(end, **limits) for end in socket.socketpair(socket.AF_UNIX, kind))
    try:
        yield a, b
    finally:
        a.close()
        b.close()


@contextmanager
def behind(fdpass, kind=socket.SOCK_STREAM):
    """A bare socket and the channel at its other end."""
    sock, end = socket.socketpair(socket.AF_UNIX, kind)
    channel = fdpass.aio.AsyncChannel(end)
    with sock:
        try:
            yield sock, channel
        finally:
            channel.close()


async def settled() -> None:
    """Let the other tasks come to where they wait."""
    for _ in range(5):
        await anyio.sleep(0.002)


@both_kinds
@pytest.mark.parametrize("count", [0, 1, 253, 600])
@pytest.mark.parametrize("size", [0, 64, 300_000])
def test_a_message_arrives_whole(fdpass, run, kind, size, count):
    """Any payload with any number of descriptors comes out as it went in."""
    data = os.urandom(size)

    async def main(fds):
        with channels(fdpass, kind) as (a, b):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(a.send, data, fds)
                assert (data, identities(fds)) == contents(await b.recv())

    with descriptors(3) as made:
        run(main, (made * 200)[:count])


@both_kinds
@pytest.mark.parametrize("number", [pytest.param(10, id="few"), pytest.param(1000, id="full", marks=pytest.mark.slow)])
def test_a_thousand_descriptors_in_each_message(fdpass, run, kind, number):
    """Message after message with 1,000 descriptors each, every one the right one."""

    async def main(made):
        expected = identities(made) * 100

        async def send(channel):
            for i in range(number):
                await channel.send(b"%d" % i, made * 100)

        with channels(fdpass, kind) as (a, b):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(send, a)
                for i in range(number):
                    assert (b"%d" % i, expected) == contents(await b.recv())

    with descriptors(10) as made:
        run(main, made)


def test_the_largest_payload(fdpass, run):
    """16 MiB arrive, with back-pressure: the sender waits for the receiver."""
    data = os.urandom(1 << 16) * 256

    async def main(made):
        with channels(fdpass) as (a, b):
            sent = anyio.Event()

            async def send():
                await a.send(data, made)
                sent.set()

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(send)
                await settled()
                assert not sent.is_set()
                assert (data, identities(made)) == contents(await b.recv())

    with descriptors(2) as made:
        run(main, made)


def test_iteration_and_the_end(fdpass, run):
    """`async for` gives the messages until the end; then recv is EOFError."""

    async def main():
        with channels(fdpass) as (a, b):
            for data in (b"1", b"2"):
                await a.send(data)
            a.close()
            assert [b"1", b"2"] == [message.data async for message in b]
            with pytest.raises(EOFError):
                await b.recv()

    run(main)


def test_a_broken_frame(fdpass, run):
    """The end in the middle of a frame is a ProtocolError, and the channel is closed."""

    async def main():
        with behind(fdpass) as (sock, channel):
            sock.send(b"\0\0")
            sock.close()
            for _ in range(2):
                with pytest.raises(fdpass.ProtocolError):
                    await channel.recv()
            assert channel.closed

    run(main)


# Cancellation


@both_kinds
@pytest.mark.parametrize("steps", [2, 3, 8, 20])
def test_a_cancelled_recv_loses_nothing(fdpass, run, kind, steps):
    """However often recv is cancelled while a message comes in pieces, the next recv has it whole."""
    frame = b"\0\0\0\x0c\0\0\0\1twelve bytes"
    cuts = [len(frame) * i // steps for i in range(steps)] + [len(frame)]

    async def main(made):
        with behind(fdpass, kind) as (sock, channel):
            for start, stop in zip(cuts, cuts[1:-1]):
                socket.send_fds(sock, [frame[start:stop]], made if start == 0 else [])
                with anyio.move_on_after(0.005) as scope:
                    await channel.recv()
                assert scope.cancelled_caught
            sock.send(frame[cuts[-2] :])
            assert (b"twelve bytes", identities(made)) == contents(await channel.recv())

    with descriptors(1) as made:
        run(main, made)


def test_a_recv_cancelled_at_every_await(fdpass, run):
    """A recv whose every await is cancelled in turn, the message already there or not, loses nothing."""

    async def main(made):
        with channels(fdpass) as (a, b):
            for i in range(200):
                data = b"%d" % i
                if i % 2:
                    await a.send(data, made)
                message = None
                with anyio.CancelScope() as scope:
                    scope.cancel()
                    message = await b.recv()
                if not i % 2:
                    assert message is None
                    await a.send(data, made)
                assert (data, identities(made)) == contents(message or await b.recv())

    with descriptors(1) as made:
        run(main, made)


def test_a_send_cancelled_before_its_first_byte_never_was(fdpass, run):
    """A send that found no room and was cancelled leaves the channel usable."""

    async def main():
        with behind(fdpass) as (sock, channel):
            with socket.socket(fileno=os.dup(channel.fileno())) as same:
                fill(same)
            with anyio.move_on_after(0.01) as scope:
                await channel.send(b"never")
            assert scope.cancelled_caught
            assert {ord("x")} == set(drain(sock))
            await channel.send(b"hello")
            assert b"\0\0\0\5\0\0\0\0hello" == sock.recv(100)

    run(main)


def test_the_timeout_of_the_socket_does_not_count(fdpass, run):
    """Where a socket would wait for a minute the other tasks run, and a send and a recv can be cancelled."""

    async def main():
        sock, end = socket.socketpair()
        end.settimeout(60)
        with sock, closing(fdpass.aio.AsyncChannel(end)) as channel:
            with anyio.move_on_after(0.01) as scope:
                await channel.recv()
            assert scope.cancelled_caught
            with socket.socket(fileno=os.dup(end.fileno())) as same:
                fill(same)
            with anyio.fail_after(20), anyio.move_on_after(0.01) as scope:
                await channel.send(b"never")
            assert scope.cancelled_caught
            drain(sock)
            sock.send(b"\0\0\0\5\0\0\0\0hello")
            assert b"hello" == (await channel.recv()).data

    run(main)


def test_a_send_cancelled_in_its_middle_closes_for_sending(fdpass, run):
    """After half a frame every further send says so; receiving goes on."""

    async def main():
        with channels(fdpass) as (a, b):
            with anyio.move_on_after(0.02) as scope:
                await a.send(bytes(8 << 20))
            assert scope.cancelled_caught
            with pytest.raises(BrokenPipeError, match="closed for sending"):
                await a.send(b"x")
            await b.send(b"the other way")
            assert b"the other way" == (await a.recv()).data

    run(main)


# Several tasks


def test_two_tasks_receiving_at_once(fdpass, run):
    """The second receiver gets anyio.BusyResourceError, the first its message; likewise senders."""

    async def main():
        got = []

        async def recv(channel):
            got.append((await channel.recv()).data)

        with channels(fdpass) as (a, b):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(recv, b)
                await settled()
                with pytest.raises(anyio.BusyResourceError):
                    await b.recv()
                await a.send(b"x")
            assert [b"x"] == got
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(a.send, bytes(1 << 20))
                await settled()
                with pytest.raises(anyio.BusyResourceError):
                    await a.send(b"x")
                assert 1 << 20 == len((await b.recv()).data)

    run(main)


@pytest.mark.parametrize("direction", ["recv", "send"])
def test_closing_while_a_task_waits(fdpass, run, direction):
    """A task that waits in recv or send gets an OSError (EBADF) when another closes the channel."""

    async def main():
        caught = []

        async def wait(channel):
            try:
                await (channel.recv() if direction == "recv" else channel.send(bytes(8 << 20)))
            except OSError as error:
                caught.append(error.errno)

        with channels(fdpass) as (a, _):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(wait, a)
                await settled()
                a.close()
            with pytest.raises(OSError):
                await a.recv()
        assert [errno.EBADF] == caught

    run(main)


def test_other_tasks_get_their_turn(fdpass, run):
    """A task that always finds something to do does not keep the others from running."""

    async def main():
        done = False

        async def other():
            nonlocal done
            await anyio.lowlevel.checkpoint()
            done = True

        with channels(fdpass) as (a, b):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(other)
                for _ in range(1000):
                    await a.send(b"x")
                    await b.recv()
                assert done

    run(main)


def test_other_tasks_get_their_turn_amid_a_message(fdpass, run):
    """Nor does one that receives a message of which there is always another piece."""

    async def main():
        done = False

        async def other():
            nonlocal done
            done = True

        with behind(fdpass, socket.SOCK_SEQPACKET) as (sock, channel):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
            pieces = 3 * fdpass.aio.TURN  # trio may give the first of the turns to the same task again
            sock.send(pieces.to_bytes(4, "big") + bytes(4))
            for _ in range(pieces):
                sock.send(b"x")
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(other)
                assert b"x" * pieces == (await channel.recv()).data
                assert done

    run(main)


def test_a_byte_out_of_band_lets_nobody_spin(fdpass, run, monkeypatch):
    """With only a byte of MSG_OOB there, recv waits once more for the next one."""
    waits, wait = [], anyio.wait_readable

    async def counted(fd):
        waits.append(1)
        await wait(fd)

    async def main():
        with behind(fdpass) as (sock, channel):
            out_of_band(sock, b"\0", [], socket.MSG_OOB)
            with anyio.move_on_after(0.05):
                await channel.recv()
            sock.send(bytes(7))
            assert b"" == (await channel.recv()).data

    monkeypatch.setattr(anyio, "wait_readable", counted)
    run(main)
    assert 1 == len(waits)


def test_a_full_table(fdpass, run):
    """EMFILE as long as the descriptors do not fit, then the message, whole."""

    async def main(made):
        with channels(fdpass) as (a, b):
            await a.send(b"x", made)
            with limited(1) as taken:
                before = in_table()
                for _ in range(3):
                    with pytest.raises(OSError) as caught:
                        await b.recv()
                    assert errno.EMFILE == caught.value.errno
                    assert before == in_table()
                close([taken.pop(), taken.pop()])
                assert (b"x", identities(made)) == contents(await b.recv())

    with descriptors(3) as made:
        run(main, made)


# Servers


async def echo(channel):
    async for message in channel:
        with message:
            if message.data == b"fail":
                raise ZeroDivisionError
            await channel.send(message.data, message.fds)


@asynccontextmanager
async def serving(fdpass, handler, path, **options):
    async with anyio.create_task_group() as tasks:
        await tasks.start(partial(fdpass.aio.serve, handler, path, **options))
        yield
        tasks.cancel_scope.cancel()


@pytest.mark.parametrize(
    ("clients", "messages"),
    [pytest.param(20, 5, id="few"), pytest.param(200, 100, id="full", marks=pytest.mark.slow)],
)
def test_many_clients_at_once(fdpass, run, tmp_path, clients, messages):
    """Every client gets its own messages and descriptors back."""

    async def client(made, number):
        async with await fdpass.aio.connect(tmp_path / "s") as channel:
            for i in range(messages):
                fds = made[i % 3 : i % 3 + 1 + number % 3]
                await channel.send(b"%d %d" % (number, i), fds)
                assert (b"%d %d" % (number, i), identities(fds)) == contents(await channel.recv())

    async def main(made):
        server = serving(fdpass, echo, tmp_path / "s", max_connections=clients)
        async with server, anyio.create_task_group() as tasks:
            for number in range(clients):
                tasks.start_soon(client, made, number)

    with descriptors(5) as made:
        run(main, made)


def test_the_path_of_a_server(fdpass, run, tmp_path):
    """It is its owner's alone, replaces a stale one, refuses a live one and a file, and is removed at the end."""
    path, file = tmp_path / "s", tmp_path / "file"
    file.write_text("kept")
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(os.fspath(path))

    async def main():
        async with serving(fdpass, echo, path):
            assert 0o600 == stat.S_IMODE(path.stat().st_mode)
            for taken in (path, file):
                with pytest.raises(OSError) as caught:
                    await fdpass.aio.serve(echo, taken)
                assert errno.EADDRINUSE == caught.value.errno
            async with await fdpass.aio.connect(path) as channel:
                await channel.send(b"still there")
                assert b"still there" == (await channel.recv()).data

    run(main)
    assert [file] == list(tmp_path.iterdir())
    assert "kept" == file.read_text()


def test_a_handler_that_fails_is_logged_and_ends_nothing_else(fdpass, run, tmp_path, caplog):
    """The client of a failed handler sees the end; the others go on."""

    async def main():
        async with serving(fdpass, echo, tmp_path / "s"), await fdpass.aio.connect(tmp_path / "s") as other:
            async with await fdpass.aio.connect(tmp_path / "s") as channel:
                await channel.send(b"fail")
                with pytest.raises(EOFError):
                    await channel.recv()
            await other.send(b"x")
            assert b"x" == (await other.recv()).data

    with caplog.at_level(logging.ERROR):
        run(main)
    assert 1 == sum("ZeroDivisionError" in (record.exc_text or "") for record in caplog.records)


def test_a_handler_that_is_cancelled_by_itself_ends_nothing_else(fdpass, tmp_path, caplog):
    """A CancelledError that is asyncio's own, not the server's, costs a handler and no more."""

    async def handler(channel):
        async for message in channel:
            if message.data == b"cancel":
                future = asyncio.get_running_loop().create_future()
                future.cancel()
                await future
            await channel.send(message.data)

    async def main():
        async with serving(fdpass, handler, tmp_path / "s"):
            for data in (b"cancel", b"x"):
                async with await fdpass.aio.connect(tmp_path / "s") as channel:
                    await channel.send(data)
                    with suppress(EOFError):
                        assert b"x" == (await channel.recv()).data
                        assert data == b"x"

    anyio.run(main)
    assert ["was cancelled, and not by the server"] == [record.message[-36:] for record in caplog.records]


def test_a_handler_that_fails_while_the_server_ends(fdpass, run, tmp_path, caplog):
    """What it raises is logged, also out of a group in which other tasks were cancelled, and the end is a clean one."""

    async def fail():
        try:
            await anyio.sleep_forever()
        finally:
            raise ZeroDivisionError

    async def handler(channel):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(fail)
            await channel.recv()

    async def main():
        async with serving(fdpass, handler, tmp_path / "s"), await fdpass.aio.connect(tmp_path / "s"):
            await settled()

    run(main)
    assert [] == list(tmp_path.iterdir())
    assert 1 == sum("ZeroDivisionError" in (record.exc_text or "") for record in caplog.records)


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_what_is_no_exception_of_a_handler_ends_the_server(fdpass, run, tmp_path, error):
    """KeyboardInterrupt and SystemExit come out of serve, and the path is gone."""

    async def handler(channel):
        raise error

    async def main():
        async with serving(fdpass, handler, tmp_path / "s"), await fdpass.aio.connect(tmp_path / "s"):
            await anyio.sleep_forever()

    with pytest.raises(BaseException) as caught:
        run(main)
    raised = caught.value
    while hasattr(raised, "exceptions"):
        raised = raised.exceptions[0]
    assert error is type(raised)
    assert [] == list(tmp_path.iterdir())


def test_no_connections_at_all(fdpass, run, tmp_path):
    """A bound of 0 is refused: nobody would ever be served."""
    with pytest.raises(ValueError, match="max_connections: 0"):
        run(partial(fdpass.aio.serve, echo, tmp_path / "s", max_connections=0))


def test_a_path_that_is_another_servers_by_now(fdpass, run, tmp_path):
    """A server removes the path at its end only if it is still its own."""

    async def main():
        async with serving(fdpass, echo, tmp_path / "s"):
            (tmp_path / "s").rename(tmp_path / "moved")
            (tmp_path / "s").write_text("another's")

    run(main)
    assert "another's" == (tmp_path / "s").read_text()


def test_an_abstract_name(fdpass, run):
    """A server may listen at an abstract name, and is refused one that is taken."""
    name = f"\0fdpass_cffi test {os.getpid()} {uuid.uuid4()}"

    async def main():
        async with serving(fdpass, echo, name), await fdpass.aio.connect(name) as channel:
            await channel.send(b"x")
            assert b"x" == (await channel.recv()).data
            with pytest.raises(OSError) as caught:
                await fdpass.aio.serve(echo, name)
            assert errno.EADDRINUSE == caught.value.errno

    run(main)


def test_the_bound_on_connections(fdpass, run, tmp_path):
    """No more handlers run at once than max_connections; the next client waits until one has ended."""

    async def main():
        async with serving(fdpass, echo, tmp_path / "s", max_connections=1):
            first = await fdpass.aio.connect(tmp_path / "s")
            second = await fdpass.aio.connect(tmp_path / "s")
            async with first, second:
                await first.send(b"1")
                await first.recv()
                await second.send(b"2")
                with anyio.move_on_after(0.05) as scope:
                    await second.recv()
                assert scope.cancelled_caught
                first.close()
                assert b"2" == (await second.recv()).data

    run(main)


# The drop-ins


def test_the_drop_ins_wait(fdpass, run):
    """Each receiving drop-in waits for what is sent later, each sending one for room, without O_NONBLOCK."""
    aio = fdpass.aio
    rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS)

    async def main(made):
        async def later(sock):
            await settled()
            for _ in range(4):
                await aio.send_fds(sock, [b"ab", b"c"], made)
                await settled()

        a, b = socket.socketpair()
        with a, b:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(later, a)
                data, fds, _, _ = await aio.recv_fds(b, 10, 2)
                assert (b"abc", identities(made)) == (data, identities(fds))
                close(fds)
                data, [(*kind, packed)], _, _ = await aio.recvmsg(b, 10, 100)
                assert (b"abc", rights, 8) == (data, tuple(kind), len(packed))
                close(memoryview(packed).cast("i"))
                buffer = bytearray(10)
                got, [(*kind, packed)], _, _ = await aio.recvmsg_into(b, [buffer], 100)
                assert (3, b"abc", 8) == (got, buffer[:3], len(packed))
                close(memoryview(packed).cast("i"))
                assert (b"abc", identities(made)) == contents(await aio.recv_message(b, 10, 2))
            fill(a)
            with anyio.move_on_after(0.02) as scope:
                await aio.sendmsg(a, [b"never"])
            assert scope.cancelled_caught
            with pytest.raises(BlockingIOError):
                await aio.sendmsg(a, [b"never"], (), socket.MSG_DONTWAIT)
            assert os.get_blocking(a.fileno()) or run.uvloop  # which sets it on what it waits for

    with descriptors(2) as made:
        run(main, made)


def test_other_tasks_get_their_turn_amid_drop_ins(fdpass, run):
    """A task that awaits drop-ins which never have to wait does not keep the others from running."""

    async def main():
        done = False

        async def other():
            nonlocal done
            await anyio.lowlevel.checkpoint()
            done = True

        a, b = socket.socketpair()
        with a, b:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(other)
                for _ in range(2 * fdpass.aio.TURN):
                    await fdpass.aio.sendmsg(a, [b"x"])
                    await fdpass.aio.recvmsg(b, 1)
                assert done

    run(main)


def test_a_cancelled_drop_in_received_nothing(fdpass, run):
    """After a cancelled recv_fds the descriptors that come are still there for the next."""

    async def main(made):
        a, b = socket.socketpair()
        with a, b:
            with anyio.move_on_after(0.01) as scope:
                await fdpass.aio.recv_fds(b, 10, 1)
            assert scope.cancelled_caught
            await fdpass.aio.send_fds(a, [b"x"], made)
            assert (b"x", identities(made)) == contents(await fdpass.aio.recv_message(b, 10, 1))

    with descriptors(1) as made:
        before = open_numbers()
        run(main, made)
        assert before == open_numbers()

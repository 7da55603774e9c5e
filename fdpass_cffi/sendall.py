"""sendall_fds: all bytes and any number of descriptors, each exactly once, or an error that says how far it came."""

from __future__ import annotations

import os
import sys
from errno import EAGAIN, EINTR, ENOMEM, EPIPE, ETIMEDOUT, ETOOMANYREFS, EWOULDBLOCK
from select import POLLHUP
from time import monotonic, sleep

from ._backend import LAYOUT, ffi, lib
from ._scratch import SCM_RIGHTS, SOL_SOCKET, Block, keep_outgoing, outgoing, take_outgoing
from ._send import (
    INT,
    MSG_NOSIGNAL,
    MSG_OOB,
    SCM_MAX_FD,
    SOCK_STREAM,
    each_fd,
    explain,
    exported,
    lib_sendmsg,
    pack_fds,
    put_address,
    put_control,
    spread,
)
from ._sock import (
    AF_UNIX,
    MSG_DONTWAIT,
    OUT,
    SO_TYPE,
    Socket,
    Timeout,
    c_int,
    family,
    fileno,
    getsockopt,
    os_error,
    reread,
    take_errno,
    wait,
)
from .message import SCM_CREDENTIALS, UCRED, Credentials

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

    from typing_extensions import Buffer

    from ._sock import FileDescriptorLike

FOREVER = float("inf")
AT_ONCE = (252, 244)  # descriptors that musl's sendmsg has room for: without credentials, and with them


def sendall_fds(
    sock: FileDescriptorLike,
    data: Buffer,
    fds: Iterable[FileDescriptorLike],
    flags: int = 0,
    address: object = None,
    *,
    credentials: Credentials | tuple[int, int, int] | None = None,
) -> None:
    """Send all of `data`, bytes-like, and any number of descriptors with the first of its bytes; each goes out once.

    More than 253 descriptors go in as many messages, each with at least one byte of `data`; the descriptors stay
    the caller's. `credentials`, (pid, uid, gid), goes with each message (SCM_CREDENTIALS, unix(7); one's own, unless
    privileged). A short write is finished, also on a non-blocking socket, and so is a send that must wait for
    the receiver, because too many descriptors of this user are in flight (ETOOMANYREFS).

    ValueError, before anything is sent, for descriptors over a socket that is not AF_UNIX and for too few bytes (with
    MSG_OOB, whose byte carries none, for descriptors that would ride on it). OSError: BlockingIOError if the socket
    is non-blocking and took nothing, TimeoutError past its timeout, one deadline for the whole call. Whatever is
    raised has `bytes_sent` and `fds_sent`, what the kernel had accepted until then.

    >>> import os, socket
    >>> a, b = socket.socketpair()
    >>> sendall_fds(a, b"some bytes", [0] * 300)
    >>> with recv_message(b, 100, 253) as first, recv_message(b, 100, 253) as rest:
    ...     first.data, len(first.fds), rest.data, len(rest.fds)
    (b's', 253, b'ome bytes', 47)
    >>> a.setblocking(False)
    >>> try:
    ...     sendall_fds(a, bytes(10_000_000), [0], socket.MSG_DONTWAIT)
    ... except BlockingIOError as error:
    ...     0 < error.bytes_sent < 10_000_000, error.fds_sent
    (True, 1)
    >>> a.close(); b.close()
    """
    sending = None
    try:
        fd = sock.fileno() if type(sock) is Socket else fileno(sock, "sendmsg")
        given = each_fd(fds)
        raw = pack_fds(given)
        sending = Sending(
            sock, fd, exported(data, "data"), raw, c_int("flags", flags), address, packed_credentials(credentials)
        )
        sending.check()
        sys.audit("socket.sendmsg", sock, address)
        sending.run()
    except BaseException as error:
        tell(error, sending)
        if sending is not None:
            sending.release()
        raise


def tell(error: BaseException, sending: Sending | None) -> None:
    """Put on an exception what the kernel had accepted until then; nothing, if it had not come to sending."""
    sent, passed = sending.accepted() if sending is not None else (0, 0)
    error.bytes_sent, error.fds_sent = sent, passed  # type: ignore[attr-defined]


def packed_credentials(credentials: tuple[int, int, int] | None) -> list[tuple[int, int, bytes]]:
    """The SCM_CREDENTIALS item for (pid, uid, gid), or no item."""
    if credentials is None:
        return []
    if SCM_CREDENTIALS is None:
        raise ValueError("credentials cannot be sent on this platform: it has no SCM_CREDENTIALS")
    try:
        pid, uid, gid = credentials
    except (TypeError, ValueError):
        raise TypeError(f"credentials must be (pid, uid, gid), not {credentials!r}") from None
    checked = [c_int("credentials: pid", pid), _id("uid", uid), _id("gid", gid)]
    return [(SOL_SOCKET, SCM_CREDENTIALS, UCRED.pack(*checked))]


def _id(name: str, value: Any) -> int:
    if not isinstance(value, int) or not 0 <= value <= 0xFFFFFFFF:
        raise ValueError(f"credentials: {name} must be an int from 0 to 2**32 - 1, not {value!r}")
    return value


class Sending:
    """One sendall_fds under way: what has gone, what is left, and until when it may take."""

    def __init__(
        self,
        sock: FileDescriptorLike,
        fd: int,
        part: Any,
        raw: bytes,
        flags: int,
        address: object = None,
        extra: Any = (),
        sent: int = 0,
    ) -> None:
        self.sock, self.fd, self.flags, self.address, self.extra = sock, fd, flags, address, list(extra)
        self.part, self.raw = part, raw
        self.sent = sent  # bytes of `part`
        self.passed = 0  # bytes of `raw`, INT for each descriptor
        self.at_once = SCM_MAX_FD
        self.patient = True  # whether to wait before anything was sent
        self.deadline: float | None = None
        # What each sendmsg(2) returned and the size of its descriptors, since an exception may come before
        # `sent` and `passed` are set. A call that is still to return has a size only.
        self.results, self.sizes = [sent], [0]

    def check(self) -> None:
        """ValueError if what is left cannot be sent whole."""
        count, size = (len(self.raw) - self.passed) // INT, len(self.part) - self.sent
        if not count and not self.extra:
            return
        if family(self.sock, self.fd) != AF_UNIX:
            what = "descriptors" if count else "credentials"
            raise ValueError(f"sock is not an AF_UNIX socket: {what} do not pass over any other")
        messages = -(-count // self.at_once)
        least = messages if messages > 1 else int(self.is_stream())
        what = f"{count} descriptors" if count else "credentials"
        if size < least:
            raise ValueError(f"data: {what} take at least {least} bytes of it, not {size}")
        if self.flags & MSG_OOB and (messages > 1 or size == 1):
            raise ValueError(f"flags: {what} would be lost on the byte that MSG_OOB makes urgent")

    def release(self) -> None:
        """After an exception, whose traceback knows this object: the caller's memory stays locked no longer."""
        self.part = b""

    def is_stream(self) -> bool:
        """Whether the socket keeps no bounds between messages."""
        return getsockopt(self.fd, SO_TYPE) == SOCK_STREAM

    def run(self) -> None:
        """Send message after message until all has gone."""
        while True:
            step = self.at_once * INT
            rights = self.raw[self.passed : self.passed + step]
            last = self.passed + step >= len(self.raw)
            size = len(self.part) - self.sent if last else 1
            sent = self.message(self.sent, size, rights)
            if sent is None:  # too many at once: smaller groups
                continue
            self.sent += sent
            self.passed += len(rights)
            if self.passed >= len(self.raw) and self.sent >= len(self.part):
                return

    def message(self, start: int, size: int, rights: bytes) -> int | None:
        """One sendmsg(2) of some bytes and descriptors, waited for; None if it takes fewer descriptors at once."""
        try:
            block = take_outgoing()
        except IndexError:
            block = outgoing()
        keep = self.fill(block, start, size, rights)
        while True:
            self.fd = reread(self.sock, self.fd)
            self.sizes.append(len(rights))
            self.results.extend(map(lib_sendmsg, (self.fd,), (block.msg,), (self.flags | MSG_NOSIGNAL,)))  # no bytecode
            sent = self.results[-1]
            if sent >= 0:
                break
            code = take_errno()
            self.results.pop()
            self.sizes.pop()
            if code == ENOMEM and self.fewer(len(rights) // INT):
                return None
            try:
                self.retry(code, rights)
            except BaseException:
                keep = None  # as in send_fds
                block.reset()
                keep_outgoing(block)
                raise
        del keep
        block.reset()
        keep_outgoing(block)
        return sent

    def fill(self, block: Block, start: int, size: int, rights: bytes) -> object:
        """The block for one message; what must live until it is sent."""
        part = self.part[start : start + size]
        items = self.extra + ([(SOL_SOCKET, SCM_RIGHTS, rights)] if rights else [])
        keep = spread(block, [part]), put_control(block, LAYOUT.pack(items))
        if self.address is not None:
            put_address(block, self.sock, self.fd, self.address)
        return keep

    def fewer(self, count: int) -> bool:
        """Whether to try again with fewer descriptors at once: musl's sendmsg says ENOMEM where glibc's does not."""
        if count < 2 or self.at_once > SCM_MAX_FD:  # one message, which must not become two
            return False
        self.at_once = next(n for n in (*AT_ONCE, count // 2) if n < count)
        try:
            self.check()
        except ValueError:
            if self.started():
                return False
            raise
        return True

    def started(self) -> bool:
        """Whether something has gone already."""
        return bool(self.sent or self.passed)

    def accepted(self) -> tuple[int, int]:
        """How many bytes and descriptors the kernel has taken."""
        done = [(sent, size) for sent, size in zip(self.results, self.sizes) if sent >= 0]
        return sum([sent for sent, _ in done]), sum([size for _, size in done]) // INT

    def complete(self) -> bool:
        """Whether the kernel has taken all; of several messages, if they are sent as one."""
        return len(self.results) > 1 and 0 <= self.results[-1] and self.accepted()[0] == len(self.part)

    def retry(self, code: int, rights: bytes) -> None:
        """Wait until it makes sense to try again, or raise."""
        if code == EINTR:
            return
        full = code == ETOOMANYREFS
        waiting = (full or code in (EAGAIN, EWOULDBLOCK)) and not self.flags & MSG_DONTWAIT
        waiting = waiting and (self.patient or self.started())
        timeout = self.timeout() if waiting else 0
        if not waiting or (timeout == 0 and not self.started()) or (timeout is None and not full):
            raise explain(os_error(code, self.fd), self.fd, rights)
        if self.deadline is None:
            self.deadline = monotonic() + timeout if timeout else FOREVER
        if not full and self.address is None:
            wait(self.fd, OUT, self.deadline)
        elif monotonic() >= self.deadline:
            why = "too many descriptors in flight, and the receiver takes none" if full else "the receiver takes none"
            raise Timeout(ETIMEDOUT, f"timed out: {why}")
        elif hung_up(self.fd):  # which a kernel that refuses for the number in flight does not say
            raise os_error(EPIPE)

    def timeout(self) -> float | None:
        """Seconds to wait at most; 0 for a socket that does not block, None for one that waits for ever."""
        timeout = self.sock.gettimeout() if isinstance(self.sock, Socket) else None
        if timeout is None and not os.get_blocking(self.fd):
            return 0  # also a socket.socket: who shares the open file may have set O_NONBLOCK
        return timeout


def hung_up(fd: int) -> bool:
    """Wait a moment for what poll(2) cannot tell, that the receiver takes some; whether it is gone."""
    pollfd = ffi.new("struct pollfd *", (fd, 0, 0))
    if lib.poll(pollfd, 1, 1) > 0:
        if pollfd.revents & POLLHUP:
            return True
        sleep(0.001)  # an error that is pending makes poll return at once
    return False

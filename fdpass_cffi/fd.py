"""OwnedFd: one open descriptor, closed exactly once.

Law: at every bytecode boundary, where a signal handler's exception or another thread may come in, each
descriptor has exactly one owner. So every step that makes, moves or closes one is a single call of a C
function: an OwnedFd keeps its integer in a list, its cell, and whoever pops it from there has it, since
list.pop gives it to one caller only (on CPython with or without its GIL, and on PyPy). map() composes such
calls without bytecode between them, and list.extend, next() and deque(maxlen=0) run them. close(), the
most frequent, does without it where nothing comes in between.
"""

from __future__ import annotations

import os
import socket
import sys
import warnings
from collections import deque
from functools import partial
from itertools import chain, repeat
from stat import S_IFBLK, S_IFCHR, S_IFDIR, S_IFIFO, S_IFLNK, S_IFMT, S_IFREG, S_IFSOCK

from ._close import own_error
from .errors import raised_in

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from typing import IO, Any, NoReturn

    from typing_extensions import Self

INT_MAX = 2**31 - 1
KINDS = {
    S_IFSOCK: "socket",
    S_IFIFO: "pipe",
    S_IFREG: "file",
    S_IFDIR: "directory",
    S_IFCHR: "character device",
    S_IFBLK: "block device",
    S_IFLNK: "symbolic link",
}
PYPY = sys.implementation.name == "pypy"
# Whether an interpreter looks for signals, and lets other threads run, after calls and at the ends of loops alone, but
# for a trace or profile function: CPython from 3.11 on, with its GIL. A callback of sys.monitoring, 3.12, is one more,
# but to ask for it would cost more than is saved: what is raised in one, amid close(), may leave a descriptor open.
AFTER_CALLS = sys.implementation.name == "cpython" and sys.version_info >= (3, 11) and "t" not in sys.abiflags
FEW = 4  # OwnedFds: from as many on, a loop in C closes them quicker than each by itself on CPython

gettrace, getprofile = sys.gettrace, sys.getprofile
_new = object.__new__
_pop: Callable[[list[int]], int] = list.pop
_close = os.close


class OwnedFd:
    """One open descriptor, which this object owns: it is closed once, by close(), `with`, or the last resort, __del__.

    OwnedFd(fd) takes over the int `fd`, which nobody else may close from then on. It does not ask the system
    whether `fd` is open. Errors: TypeError if `fd` is no int (a bool is none), ValueError if it is negative,
    OverflowError if it does not fit a C int; the descriptor then stays the caller's.

    >>> import os
    >>> reading, writing = os.pipe()
    >>> with OwnedFd(reading) as r, OwnedFd(writing) as w:
    ...     os.write(w.fileno(), b"hello")
    ...     os.read(r.fileno(), 100)
    5
    b'hello'
    >>> r, r.closed
    (<OwnedFd closed>, True)

    It compares and hashes by identity, and is neither copied nor pickled; dup() makes a second descriptor.
    """

    __slots__ = ("__weakref__", "_cell", "_closed")
    _cell: list[int]  # the integer, or nothing once it was closed or taken
    _closed: bool  # set by close(), to tell the two apart

    def __init__(self, fd: int) -> None:
        if type(fd) is not int or not 0 <= fd <= INT_MAX:
            fd = _checked(fd)
        self._cell = [fd]  # until here __del__ finds no cell, and the descriptor is the caller's

    def fileno(self) -> int:
        """The descriptor, which stays owned: borrow it, do not close it. ValueError once it was closed or taken."""
        try:
            return self._cell[0]
        except IndexError:
            self._refuse()

    @property
    def closed(self) -> bool:
        """Whether there is nothing left to close: it was closed, or taken.

        >>> owned = OwnedFd(os.dup(0))
        >>> owned.closed
        False
        >>> os.close(owned.detach())
        >>> owned, owned.closed
        (<OwnedFd taken>, True)
        """
        return not self._cell

    def close(self) -> None:
        """close(2). Nothing happens if it was closed or taken before, or is being so by another thread.

        An OSError of close(2) is raised, and the descriptor is gone all the same (Linux frees it first).

        >>> owned = OwnedFd(os.dup(0))
        >>> owned.close()
        >>> owned.close()
        >>> owned.fileno()
        Traceback (most recent call last):
        ...
        ValueError: the descriptor of this OwnedFd was closed
        """
        cell = self._cell
        if AFTER_CALLS and gettrace() is getprofile() is None:
            if cell:  # from here to the call no signal handler and no other thread runs
                self._closed = True
                fd = cell[0]
                del cell[0]
                _close(fd)
        elif cell:
            self._closed = True
            try:
                next(map(_close, map(_pop, (cell,))))
            except IndexError as error:  # another thread was first
                if raised_in(error) is not CLOSE:
                    raise

    @property
    def detach(self) -> Callable[[], int]:
        """detach(): the descriptor, which the caller owns from now on. ValueError if it was closed or taken before.

        >>> owned = OwnedFd(os.dup(0))
        >>> os.close(owned.detach())
        >>> owned.detach()
        Traceback (most recent call last):
        ...
        ValueError: the descriptor of this OwnedFd was taken

        It is a property whose value is a C function, since a Python function would lose the int to an
        exception at its `return`. Like any int, it has no owner until the caller has stored it.
        Without a GIL, a thread that another one beats by nanoseconds may see IndexError instead.
        """
        return partial(next, chain(map(_pop, filter(None, (self._cell,))), map(self._refuse, repeat(None))))

    def dup(self) -> OwnedFd:
        """A second descriptor of the same open file, close-on-exec, by dup(2); its OSError is raised.

        >>> with OwnedFd(os.dup(0)) as one, one.dup() as two:
        ...     os.path.sameopenfile(one.fileno(), two.fileno()), os.get_inheritable(two.fileno())
        (True, False)
        """
        return _owner_of(map(os.dup, (self.fileno(),)))

    def to_file(
        self,
        mode: str = "rb",
        buffering: int = -1,
        encoding: str | None = None,
        errors: str | None = None,
        newline: str | None = None,
    ) -> IO[Any]:
        """A file object that owns the descriptor from now on; the arguments are those of open().

        If open() refuses (ValueError, LookupError for an encoding, OSError EISDIR for a directory), the
        descriptor is still owned here. ValueError also if it was closed or taken before. As with
        open(fd), "w" does not truncate, and "x" creates nothing.

        >>> reading, writing = os.pipe()
        >>> with OwnedFd(writing).to_file("w", encoding="utf-8") as file:
        ...     file.write("gr\\u00fc\\u00dfe")
        5
        >>> with OwnedFd(reading).to_file("r", encoding="utf-8") as file:
        ...     file.read() == "gr\\u00fc\\u00dfe"
        True
        """
        # open() closes the descriptor in some of its failures and not in others. So it gets to fail without
        # owning, and what can hardly fail after it makes the lowest layer an owner.
        file: IO[Any] = open(self.fileno(), mode, buffering, encoding, errors, newline, closefd=False)  # noqa: SIM115
        raw: Any = getattr(file, "buffer", file)
        raw = getattr(raw, "raw", raw)
        self._give(lambda cell: map(raw.__init__, cell, (raw.mode,)))
        return file

    def to_socket(self) -> socket.socket:
        """A socket that owns the descriptor from now on, its family, type and protocol asked of the system.

        Its timeout is socket.getdefaulttimeout(); only if there is one, O_NONBLOCK is set, which all who
        share the open socket see. If it is no socket (OSError ENOTSOCK), the descriptor is still owned
        here. ValueError if it was closed or taken before. See socket(7), SO_DOMAIN, SO_TYPE, SO_PROTOCOL.

        >>> import socket
        >>> one, two = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        >>> with one, OwnedFd(two.detach()).to_socket() as sock:
        ...     (sock.family, sock.type) == (socket.AF_UNIX, socket.SOCK_DGRAM)
        True
        """
        fd = self.fileno()
        sock = socket.socket.__new__(socket.socket)
        for name, value in (("_io_refs", 0), ("_closed", False)):  # all that socket.__init__ does in Python,
            setattr(sock, name, value)  # where an exception could leave the descriptor with two owners
        init: Any = super(socket.socket, sock).__init__
        # PyPy's clears O_NONBLOCK
        restore = PYPY and socket.getdefaulttimeout() is None and not os.get_blocking(fd)
        self._give(
            lambda cell: chain(
                map(init, (-1,), (-1,), (-1,), cell),
                map(os.set_blocking, cell if restore else (), (False,)),
            )
        )
        return sock

    def _give(self, steps: Callable[[list[int]], Iterator[object]]) -> None:
        """Run `steps` on the descriptor, which make a C object its owner, and give it up if all went well."""
        try:
            mine = _owner_of(map(_pop, (self._cell,)))  # now no other thread can close it in between
        except IndexError:
            self._refuse()
        try:
            deque(chain(steps(mine._cell), map(_pop, (mine._cell,))), maxlen=0)
        except BaseException:
            self._cell.extend(map(_pop, filter(None, (mine._cell,))))
            raise

    def _refuse(self, _: object = None) -> NoReturn:
        raise ValueError(f"the descriptor of this OwnedFd was {self._state()}")

    def _state(self) -> str:
        return "closed" if getattr(self, "_closed", False) else "taken"

    def __enter__(self) -> Self:
        self.fileno()
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __del__(self, _warn: Callable[..., None] = warnings.warn) -> None:
        """Close what was not closed, with a ResourceWarning.

        The interpreter drops what a signal handler raises in here. Raised at the very first bytecode, before
        the `try`, it leaves the descriptor open: no Python function can close that window.
        """
        try:
            if self._cell:
                _warn(f"unclosed {self!r}", ResourceWarning, source=self)
                self.close()
        except BaseException:  # the warning's, if warnings are errors, or a signal handler's
            if not hasattr(self, "_cell"):
                return  # __init__ refused the integer
            self.close()
            raise

    def __repr__(self) -> str:
        """What is held: `<OwnedFd 5 pipe:[4711]>`, `<OwnedFd 7 file '/etc/hosts'>`; `<OwnedFd closed>`."""
        for fd in self._cell:
            return f"<OwnedFd {fd} {_description(fd)}>"
        return f"<OwnedFd {self._state()}>"

    def _no_copy(self, *args: object) -> NoReturn:
        raise TypeError("an OwnedFd cannot be copied or pickled, since it alone owns its descriptor; use dup()")

    __copy__ = __deepcopy__ = __reduce_ex__ = _no_copy


CLOSE = OwnedFd.close.__code__


def adopt(fds: list[int]) -> list[OwnedFd]:
    """An OwnedFd for each integer of the list `fds`, in order; `fds` is empty afterwards.

    Law: at every bytecode boundary, either `fds` still has all of them, and they are the caller's to close, or
    it has none, and they have their OwnedFds, which an exception closes.

    >>> fds = [os.dup(0), os.dup(0)]
    >>> owned = adopt(fds)
    >>> fds, len(owned)
    ([], 2)
    >>> close_owned(owned)
    """
    cells = [[fd] for fd in fds]
    owners = list(map(_new, repeat(OwnedFd, len(cells))))
    try:
        deque(chain(map(_set_cell, owners, cells), map(_clear, (fds,))), maxlen=0)
        return owners
    except BaseException:
        if not fds:
            close_owned(owners)
        raise


def adopt_shared(fds: list[int]) -> list[OwnedFd]:
    """As `adopt`, but a list of one, by far the most frequent, becomes the cell of its owner, at a fifth of the price.

    The integer is then in the list of both, and whoever pops it first has it: the caller may close_all(fds) if
    an exception strikes, and puts nothing into the list any more.
    """
    if len(fds) != 1:
        return adopt(fds)
    owner = _new(OwnedFd)
    owner._cell = fds
    return [owner]


def owners(cells: list[list[int]]) -> list[OwnedFd]:
    """An OwnedFd for each cell, a list of one integer; the caller may close_cells(cells) if an exception strikes.

    >>> cells = [[os.dup(0)], [os.dup(0)]]
    >>> first, second = owners(cells)
    >>> first.close()
    >>> close_cells(cells)
    >>> second.closed
    True
    """
    made = list(map(_new, repeat(OwnedFd, len(cells))))
    for owner, cell in zip(made, cells):
        owner._cell = cell
    return made


def close_owned(owners: Iterable[OwnedFd]) -> None:
    """close() of many at once, and raise nothing if one cannot be closed; as close_cells.

    >>> pair = adopt(list(os.pipe()))
    >>> close_owned(pair)
    >>> pair
    [<OwnedFd closed>, <OwnedFd closed>]
    """
    cells = []
    for owner in owners:
        if owner._cell:
            owner._closed = True
            cells.append(owner._cell)
    close_cells(cells)


def close_cells(cells: list[list[int]]) -> None:
    """Close what is in these cells; an OSError of close(2) stops nothing, and neither does an empty cell.

    What a signal handler raises is raised, of whatever class it is, once the rest is closed.
    """
    if PYPY:
        for cell in cells:
            try:
                next(map(_close, map(_pop, (cell,))))
            except BaseException:  # IndexError: taken before, or just now by another thread
                if not own_error():
                    close_cells(cells)
                    raise
        return
    closing = map(_close, map(_pop, filter(None, cells)))
    while True:
        try:
            deque(closing, maxlen=0)
            return
        except BaseException:
            if not own_error():
                close_cells(cells)
                raise
            # else go on with the next


def _owner_of(source: Iterator[int]) -> OwnedFd:
    """The owner of the one integer that `source` makes or takes from elsewhere, and which it has in the same step."""
    owner = _new(OwnedFd)
    cell: list[int] = []
    owner._cell = cell
    cell.extend(source)
    return owner


def _checked(fd: object) -> int:
    """`fd` as a plain int, or the error of one that cannot be a descriptor."""
    if not isinstance(fd, int) or isinstance(fd, bool):
        raise TypeError(f"fd must be an int, not {type(fd).__name__}")
    if fd < 0:
        raise ValueError(f"fd must not be negative: {fd}")
    if fd > INT_MAX:
        raise OverflowError(f"fd must fit a C int: {fd}")
    return int(fd)


def _description(fd: int) -> str:
    """What `fd` refers to: proc(5) knows names, fstat(2) the kind at least."""
    try:
        kind = KINDS.get(S_IFMT(os.fstat(fd).st_mode), "anonymous inode")
    except OSError as error:
        return f"({error.strerror})"
    try:
        link = os.readlink(f"/proc/self/fd/{fd}")
    except OSError:
        return kind
    if link.startswith("/memfd:") and link.endswith(" (deleted)"):  # else a file of that name
        return f"memfd {link[len('/memfd:') : -len(' (deleted)')]!r}"
    if link.startswith("anon_inode:"):  # anon_inode:[eventfd], anon_inode:inotify
        return link[len("anon_inode:") :].strip("[]")
    return f"{kind} {link!r}" if link.startswith("/") else link


_set_cell: Any = vars(OwnedFd)["_cell"].__set__
_clear: Callable[[list[int]], None] = list.clear

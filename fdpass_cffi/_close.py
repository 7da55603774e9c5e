"""Closing descriptors that nobody owns: many at once, and those that were about to be returned."""

import os
import sys
from collections import deque
from itertools import repeat

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable

CPYTHON = sys.implementation.name == "cpython"
# Whether a signal handler can run at a `return`: from 3.11 on CPython looks for signals after calls and at the ends of
# loops alone, and only a trace or profile function can raise there.
ALWAYS = CPYTHON and sys.version_info < (3, 11)
# What is not None when it is called where an `Unreturned` is to be made: never if references are not counted.
gettrace: "Callable[[], object]" = object if ALWAYS else sys.gettrace if CPYTHON else type(None)
_pop = list.pop
_close = os.close


def own_error() -> bool:
    """Whether the exception being handled is one of a call into C that the calling function made itself.

    Else a signal handler raised it there, a trace function, or another thread: without an errno, or in a frame of its
    own. That it is asked for here and has no name in the caller is on purpose: an exception at the end of an `except`
    clause would leave a cycle of the name, the traceback and the frame.
    """
    _, error, traceback = sys.exc_info()
    return (
        isinstance(error, (IndexError, OSError, OverflowError))
        and getattr(error, "errno", 0) is not None
        and traceback is not None
        and traceback.tb_next is None
        and traceback.tb_frame is sys._getframe(1)
    )


def close_tail(fds: "list[int]", keep: int) -> None:
    """Close and remove the descriptors of `fds` from its end, until `keep` are left; no OSError of close(2) is raised.

    Each is popped and closed within one call into C: no signal handler runs in between, so a descriptor is
    in the list or closed. close(2) gives an error, EINTR too, only after the number is free again on Linux.
    What a signal handler raises is raised, of whatever class it is, once the rest is closed.
    """
    while len(fds) > keep:
        try:
            deque(map(_close, map(_pop, repeat(fds, len(fds) - keep))), 0)
        except BaseException:
            if not own_error():
                close_tail(fds, keep)
                raise


def close_all(fds: "list[int]") -> None:
    """Close every descriptor of `fds` and empty it."""
    close_tail(fds, 0)


class Unreturned:
    """Closes the descriptors in `held`, which `inside` finds, if its function was left at the very `return` of them.

    A list of ints has no owner, and the `return` of a Python function lies outside every `try` of it. When this object
    goes away with the function's frame, the list that was being returned is known to nobody but this object if and only
    if it never reached the caller. Only CPython counts references, so only there it works.

    Make one where `gettrace()` is not None, known to two local variables of the function: one first assigned
    before the variable for what is returned, and one after it. A frame lets go of its variables in that order, from
    CPython 3.14 on in the reverse one, and this object must outlive the function's own knowledge of the list.
    """

    __slots__ = ("held", "inside")

    def __init__(self, inside: "Callable[[Any], list[int]]") -> None:
        self.inside = inside
        self.held: Any = []

    def hold(self, held: "Any") -> None:
        """This is being returned, by the function that calls; nothing else is left to do in it.

        Not where somebody else knows the function's frame (a debugger, or a traceback of what it called, by f_back):
        then it lives on after a `return` that went well, and when it goes the caller may long have closed these. What
        is left is a thread or a handler that begins to hold it between here and the `return`.
        """
        if sys.getrefcount(sys._getframe(1)) <= UNSHARED:
            self.held = held

    def __del__(self) -> None:
        held = getattr(self, "held", None)
        if held and sys.getrefcount(held) <= ALONE:
            close_all(self.inside(held))


def _counts() -> "tuple[int, int]":
    """How many references __del__ counts to a list that nobody else knows, and `hold` to the frame of its caller.

    They differ between versions.
    """

    def of_list(holder: Unreturned) -> int:
        held = getattr(holder, "held", None)
        return sys.getrefcount(held) if held else 0

    def of_frame() -> int:
        return sys.getrefcount(sys._getframe(1))

    holder = Unreturned(lambda _: [])
    holder.held = [None]
    return of_list(holder), of_frame()


ALONE = UNSHARED = 0
if CPYTHON:
    ALONE, UNSHARED = _counts()
del _counts  # as _index in _scratch: fewer objects, for which an import may have to wait for the collector

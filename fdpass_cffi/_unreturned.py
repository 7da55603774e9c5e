"""Closes descriptors whose function was left by an exception at the very `return` of them.

A list of ints has no owner, and the `return` statement of a Python function lies outside every `try` of
it. When this object goes away with the function's frame, the list that was being returned is known to
nobody but this object if and only if it never reached the caller: then its descriptors are closed.

Only CPython counts references, so only there it works. From 3.11 on an interpreter looks for signals
after calls and at loop ends alone, never at a `return`, and only a trace function can raise there.

Make one where `ALWAYS or gettrace() is not None`, known to two local variables of the function: one first assigned
before the variable for what is returned, and one after it. A frame lets go of its variables in that order, from
CPython 3.14 on in the reverse one, and this object must outlive the function's own knowledge of the list.
"""

from __future__ import annotations

import sys

from ._close import close_all

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable

CPYTHON = sys.implementation.name == "cpython"
ALWAYS = CPYTHON and sys.version_info < (3, 11)
# Where references are not counted, no trace function counts.
gettrace: Callable[[], object] = sys.gettrace if CPYTHON else type(None)


class Unreturned:
    """Holds what is being returned, and `inside`, which finds the descriptors in it."""

    __slots__ = ("held", "inside")

    def __init__(self, inside: Callable[[Any], list[int]]) -> None:
        self.inside = inside
        self.held: list[Any] = []

    def __del__(self) -> None:
        held = getattr(self, "held", None)
        if held and sys.getrefcount(held) <= ALONE:
            close_all(self.inside(held))


def _count(holder: Unreturned) -> int:
    held = getattr(holder, "held", None)
    return sys.getrefcount(held) if held else 0


def _alone() -> int:
    """How many references __del__ counts to a list that nobody else knows: it differs between versions."""
    holder = Unreturned(lambda _: [])
    holder.held = [None]
    return _count(holder)


ALONE = 0
if CPYTHON:
    ALONE = _alone()

"""Numbers given by the caller, checked before any syscall; the messages name the argument."""

from __future__ import annotations

import sys
from operator import index

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import SupportsIndex

INT_MIN, INT_MAX = -0x80000000, 0x7FFFFFFF


def integer(name: str, value: SupportsIndex) -> int:
    """`value` as a plain int (an enum member too); TypeError if it is none."""
    try:
        return int(index(value))
    except TypeError:
        raise TypeError(f"{name} must be an int, not {type(value).__name__}") from None


def c_int(name: str, value: SupportsIndex) -> int:
    """`value` as a C int; OverflowError if it does not fit."""
    number = integer(name, value)
    if not INT_MIN <= number <= INT_MAX:
        raise OverflowError(f"{name} does not fit a C int: {number}")
    return number


def length(name: str, value: SupportsIndex, what: str) -> int:
    """`value` as a number of bytes or things; ValueError (beginning with `what`) if negative."""
    number = integer(name, value)
    if -sys.maxsize - 1 <= number < 0:
        raise ValueError(f"{what}: {name} is {number}")
    if not number <= sys.maxsize - 64 or number < 0:  # no object of the C library or Python can be as large
        raise OverflowError(f"{name} does not fit a C ssize_t: {number}")
    return number


def buffer_size(value: SupportsIndex) -> int:
    return length("bufsize", value, "negative buffer size in recvmsg()")


def most_fds(value: SupportsIndex) -> int:
    return length("maxfds", value, "negative number of descriptors")


def control_size(value: SupportsIndex) -> int:
    """An ancbufsize, in bytes: at most what a socklen_t holds."""
    number = length("ancbufsize", value, "invalid ancillary data buffer length")
    if number > INT_MAX:
        raise ValueError(f"invalid ancillary data buffer length: ancbufsize is {number}")
    return number

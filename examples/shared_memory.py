"""Shared memory: a memfd with an array in it is passed once, and read and written in place by both.

The descriptor is the right to the memory: it has no name, and it is gone with its last user. A few bytes
over the channel then say whose turn it is; the numbers themselves are never sent.
"""

from __future__ import annotations

import mmap
import os
import tempfile

from fdpass_cffi import Channel

COUNT = 1_000_000
ITEM = 8  # bytes in a "q"


def new_memory(size: int) -> int:
    """A descriptor of `size` bytes of memory without a name; a file's where there is no memfd_create(2)."""
    if hasattr(os, "memfd_create"):
        fd = os.memfd_create("numbers", os.MFD_CLOEXEC)
    else:
        with tempfile.TemporaryFile() as file:
            fd = os.dup(file.fileno())
    os.truncate(fd, size)
    return fd


def peer(channel: Channel) -> None:
    """The other process: add up the numbers where they are, and put the sum in place of the first."""
    with channel.recv() as message, mmap.mmap(message.fds[0].fileno(), COUNT * ITEM) as memory:
        with memoryview(memory) as plain, plain.cast("q") as numbers:
            numbers[0] = sum(numbers)
        channel.send(b"done")


def main() -> None:
    """Fill the memory, let the other process work on it, and look."""
    ours, theirs = Channel.pair()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            ours.close()
            peer(theirs)
            status = 0
        finally:
            os._exit(status)
    theirs.close()
    fd = new_memory(COUNT * ITEM)
    with ours, mmap.mmap(fd, COUNT * ITEM) as memory, memoryview(memory) as plain, plain.cast("q") as numbers:
        for i in range(COUNT):
            numbers[i] = i
        ours.send(b"here are the numbers", [fd])
        os.close(fd)
        with ours.recv():
            print(f"the sum of 0 to {COUNT - 1} is {numbers[0]}, and {COUNT * ITEM} bytes were not sent")
    os.waitpid(pid, 0)


if __name__ == "__main__":
    main()

"""Ties the measurement to one CPU: contenders that run on two see two caches, two clocks and two crowds.

Through ctypes, since PyPy has no os.sched_setaffinity.
"""

from __future__ import annotations

import ctypes
import time
from pathlib import Path

WORDS = 16
BITS = 8 * ctypes.sizeof(ctypes.c_ulong)
LOOK_SECONDS = 0.25


def first_of(path: str, key: str) -> str:
    """What stands after `key:` in a file of /proc, or nothing."""
    try:
        lines = Path(path).read_text().splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(key)), "")


def allowed() -> list[int]:
    """The CPUs this process may run on; none if the system does not say."""
    cpus: list[int] = []
    for part in first_of("/proc/self/status", "Cpus_allowed_list").split(","):
        first, _, last = part.partition("-")
        if first:
            cpus += range(int(first), int(last or first) + 1)
    return cpus


def idle_ticks() -> dict[int, int]:
    """How long each CPU has had nothing to do, in ticks; proc_stat(5)."""
    ticks: dict[int, int] = {}
    for line in Path("/proc/stat").read_text().splitlines():
        name, *numbers = line.split()
        if name.startswith("cpu") and name != "cpu":
            ticks[int(name[3:])] = int(numbers[3])
    return ticks


def quietest(cpus: list[int]) -> int:
    """The CPU that others use least at this moment, by a short look; the last one in doubt."""
    before = idle_ticks()
    time.sleep(LOOK_SECONDS)
    after = idle_ticks()
    return max(cpus, key=lambda cpu: (after.get(cpu, 0) - before.get(cpu, 0), cpu))


def pin(cpus: list[int]) -> int | None:
    """Ties this process and its children to the quietest of `cpus`; that CPU, or None if it did not work."""
    usable = [cpu for cpu in cpus if cpu < WORDS * BITS]
    if not usable:
        return None
    cpu = quietest(usable)
    mask = (ctypes.c_ulong * WORDS)()
    mask[cpu // BITS] = 1 << cpu % BITS
    ctypes.CDLL(None).sched_setaffinity(0, ctypes.sizeof(mask), mask)
    return cpu if allowed() == [cpu] else None

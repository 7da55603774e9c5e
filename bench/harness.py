"""How a case is measured: contenders take turns in short batches, and only ratios within one run count.

On a shared machine the clock frequency, the neighbours and the caches change from second to
second. What runs a few milliseconds later on the same CPU meets the same conditions, so the ratio
of two medians holds still where neither median does. Each case runs in fresh processes, because
one process keeps its luck (memory layout, hash seed, what the JIT saw first) for life.
"""

from __future__ import annotations

import gc
import os
import random
import resource
import statistics
import sys
import time
import types
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from types import MappingProxyType
from typing import Any, NamedTuple

from .loading import BACKENDS, NotHere

IS_PYPY = sys.implementation.name == "pypy"
BATCH_NS = 4_000_000
LEAD_IN = 20  # a batch begins with a twentieth of it off the clock
TRIES = 4
AGAIN = " again"

Run = Callable[[int], int]  # run(n): does n operations; returns the nanoseconds that were on the clock
Fact = tuple[str, bool]  # what was observed, and whether it is as it should be


class Case(NamedTuple):
    """One job, done by the reference and by this package on each backend."""

    name: str
    what: str
    reference: str
    build: Callable[[ExitStack, str], Run]  # (cleanup, contender) -> run; raises NotHere
    targets: Mapping[str, float] = MappingProxyType({})  # "<interpreter>-<backend>": the largest ratio to the reference
    operations: int = 1  # in one call of the loop body, for figures per operation
    c: tuple[str, ...] = ()  # arguments for roundtrip.c doing the same
    c_operations: int = 1  # in one of its rounds
    batch: int | None = None  # loops a batch; found out if None
    rounds: int | None = None
    warm_seconds: float | None = None
    processes: int | None = None
    elsewhere: bool = False  # processes of its own do the work, so that it does not matter what disturbs this one
    facts: Callable[[str], list[Fact]] | None = None  # (backend) -> things to hold besides speed


class Settings(NamedTuple):
    """What the command line may change."""

    backends: tuple[str, ...] = BACKENDS
    rounds: int = 200
    warm_seconds: float = 3.5 if IS_PYPY else 0.3


def targets(
    *,
    cpython_abi: float | None = None,
    cpython_api: float | None = None,
    pypy: float | None = None,
    everywhere: float | None = None,
) -> dict[str, float]:
    """The largest allowed ratios; None where nothing is promised."""
    every = {"cpython-abi": cpython_abi, "cpython-api": cpython_api, "pypy-abi": pypy, "pypy-api": pypy}
    chosen = {key: everywhere if value is None else value for key, value in every.items()}
    return {key: value for key, value in chosen.items() if value is not None}


def fresh(function: Callable[..., Any]) -> Any:
    """The function with a code object of its own.

    PyPy compiles and specializes per code object: contenders that shared a loop would also share
    its guards and bridges, and whoever came second would pay for it.
    """
    if not isinstance(function, types.FunctionType):
        return function
    code = function.__code__.replace(co_name=function.__code__.co_name)
    return types.FunctionType(
        code, function.__globals__, function.__name__, function.__defaults__, function.__closure__
    )


def open_fds() -> int:
    """How many descriptors are open in this process."""
    return len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else -1


def line_up(case: Case, backends: tuple[str, ...], stack: ExitStack) -> tuple[dict[str, Run], dict[str, str]]:
    """The contenders that can take part, and why the others cannot.

    The reference takes part twice: how far its two ratios are apart is what this run can tell apart.
    """
    runs: dict[str, Run] = {}
    absent: dict[str, str] = {}
    for name in backends:
        try:
            runs[name] = fresh(case.build(stack, name))
        except NotHere as reason:
            absent[name] = str(reason)
    if runs:
        for name in (case.reference, case.reference + AGAIN):
            runs[name] = fresh(case.build(stack, case.reference))
    return runs, absent


def warm_up(runs: dict[str, Run], seconds: float, batch: int | None) -> None:
    """Lets every contender run in turns until each had its seconds, so that caches and JIT settle."""
    spent = dict.fromkeys(runs, 0.0)
    loops = dict.fromkeys(runs, batch or 1)
    while min(spent.values()) < seconds:
        for name, run in runs.items():
            if spent[name] >= seconds:
                continue
            start = time.perf_counter()
            run(loops[name])
            took = time.perf_counter() - start
            spent[name] += took
            if batch is None and took < 0.02:
                loops[name] *= 2


def find_batch(run: Run) -> int:
    """How many loops take about BATCH_NS on the clock, by the best of three tries."""
    loops = 1
    while True:
        took = min(run(loops) for _ in range(3))
        if took >= BATCH_NS / 2:
            return max(1, round(loops * BATCH_NS / took))
        loops *= 2


def as_it_comes(run: Run, loops: int) -> tuple[int, bool]:
    """Nanoseconds of one batch."""
    return run(loops), False


def undisturbed(run: Run, loops: int) -> tuple[int, bool]:
    """Nanoseconds of one batch, and whether the kernel gave the CPU to someone else during it.

    Such a batch is run again, a few times: what the neighbours cost is not what is measured.
    """
    took = 0
    for _ in range(TRIES):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw
        took = run(loops)
        if resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw == before:
            return took, False
    return took, True


def alternate(
    runs: dict[str, Run], loops: int, rounds: int, timed: Callable[[Run, int], tuple[int, bool]]
) -> tuple[dict[str, list[int]], int]:
    """Nanoseconds of each batch, and how many were disturbed every time.

    The order is drawn by lot in one round and turned around in the next. Each finds its own code and data in the
    caches when the clock starts: the reference, which takes part twice, would else have them there more often.
    """
    disturbed = 0
    samples: dict[str, list[int]] = {name: [] for name in runs}
    order = list(runs)
    for number in range(rounds):
        if number % 2:
            order.reverse()
        else:
            random.shuffle(order)
        for name in order:
            runs[name](loops // LEAD_IN)
            took, was_disturbed = timed(runs[name], loops)
            samples[name].append(took)
            disturbed += was_disturbed
    return samples, disturbed


def measure(case: Case, settings: Settings) -> dict[str, Any]:
    """One case in this process: nanoseconds per operation of every batch of every contender."""
    with ExitStack() as stack:
        runs, absent = line_up(case, settings.backends, stack)
        if not runs:
            return {"absent": absent, "samples": {}, "facts": []}
        warm = settings.warm_seconds if case.warm_seconds is None else case.warm_seconds
        warm_up(runs, warm, case.batch)
        loops = case.batch or find_batch(runs[case.reference])
        before = settle()
        timed = as_it_comes if case.elsewhere else undisturbed
        samples, disturbed = alternate(runs, loops, case.rounds or settings.rounds, timed)
        if settle() > before:
            raise RuntimeError(f"{case.name}: a contender left descriptors open")
        facts = [fact for name in runs if name in BACKENDS and case.facts for fact in case.facts(name)]
    per = loops * case.operations
    return {
        "absent": absent,
        "loops": loops,
        "facts": facts,
        "disturbed": disturbed / sum(map(len, samples.values())),
        "samples": {name: [took / per for took in taken] for name, taken in samples.items()},
    }


def settle() -> int:
    """Collects garbage (PyPy finalizes late) and counts the open descriptors."""
    for _ in range(2):
        gc.collect()
    return open_fds()


def quantile(values: list[float], share: float) -> float:
    """The value below which `share` of the values lie."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def compare(reference: str, processes: list[dict[str, list[float]]]) -> dict[str, dict[str, float]]:
    """Figures of each contender over all processes: times in ns, and ratios to the reference.

    `ratio` is the median over the processes of the ratio of medians, `ratio_min` the same of minima;
    `low` and `high` hold eight tenths of the ratios between batches of one and the same round;
    `off` is how far any one process was from 1, which for the reference again is the noise.
    """
    figures: dict[str, dict[str, float]] = {}
    for name in processes[0]:
        ratios = [statistics.median(p[name]) / statistics.median(p[reference]) for p in processes]
        pairs = [(own / ref) for p in processes for own, ref in zip(p[name], p[reference])]
        figures[name] = {
            "median": statistics.median(statistics.median(p[name]) for p in processes),
            "min": min(min(p[name]) for p in processes),
            "ratio": statistics.median(ratios),
            "ratio_min": statistics.median(min(p[name]) / min(p[reference]) for p in processes),
            "low": quantile(pairs, 0.1),
            "high": quantile(pairs, 0.9),
            "off": max(abs(ratio - 1) for ratio in ratios),
        }
    return figures

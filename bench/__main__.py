"""The command: runs each case in fresh processes, prints the table, compares with the targets."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from statistics import median
from typing import Any

from .cases import CASES, GROUPS, chosen
from .harness import Case, Settings
from .loading import BACKENDS, api_is_built
from .pinning import allowed, pin
from .report import block
from .surroundings import compile_c, describe, run_c

CHILD_SECONDS = 600


def parse(arguments: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("names", nargs="*", help=f"cases or groups: {', '.join([*GROUPS, *CASES])} (default: all)")
    parser.add_argument("--backend", action="append", choices=BACKENDS, help="measure this one only (may be repeated)")
    parser.add_argument("--processes", type=int, default=3, help="fresh processes for each case (default: 3)")
    parser.add_argument("--rounds", type=int, default=Settings().rounds, help="batches of each contender in a process")
    parser.add_argument("--warm", type=float, default=Settings().warm_seconds, help="seconds of warm-up of a contender")
    parser.add_argument("--json", metavar="FILE", help="write everything, each sample included")
    parser.add_argument("--check", action="store_true", help="exit with 1 if a target is missed or nothing ran")
    options = parser.parse_args(arguments)
    if options.processes < 1 or options.rounds < 2:
        parser.error("at least one process and two rounds")
    try:
        options.cases = chosen(options.names)
    except KeyError as unknown:
        parser.error(f"no case or group {unknown}")
    if "api" in (options.backend or ()) and not api_is_built():
        parser.error("the API backend is not built: run `python build_ffi.py`")
    return options


def run_case(
    case: Case, settings: Settings, processes: int, program: str | None, cpus: list[int]
) -> tuple[list[str], dict[str, Any]]:
    """One case in all its processes, the C program before each of them."""
    results, figures = [], []
    task = json.dumps([case.name, settings._asdict()])
    for _ in range(case.processes or processes):
        cpu = pin(cpus)
        c = run_c(program, case.c, case.c_operations)
        figures += [c] if c else []
        command = [sys.executable, "-m", "bench.child", task]
        done = subprocess.run(command, stdout=subprocess.PIPE, timeout=CHILD_SECONDS, check=True)
        results.append({"cpu": cpu, **json.loads(done.stdout)})
        if not results[-1]["samples"]:
            break
    c = (median(one[0] for one in figures), min(one[1] for one in figures)) if figures else None
    return block(case, results, c)


def main(arguments: list[str]) -> int:
    """Runs what was asked for; 1 if --check found something missed, 2 if a case broke."""
    options = parse(arguments)
    backends = tuple(dict.fromkeys(options.backend or BACKENDS))
    settings = Settings(backends, options.rounds, options.warm)
    broken: list[str] = []
    cpus = allowed()
    with tempfile.TemporaryDirectory() as folder:
        program, about_c = compile_c(folder)
        report: dict[str, Any] = {"surroundings": {**describe(arguments), "C": about_c}, "cases": {}}
        for key, value in report["surroundings"].items():
            print(f"{key:12} {value}")
        for case in options.cases:
            try:
                lines, report["cases"][case.name] = run_case(case, settings, options.processes, program, cpus)
            except subprocess.SubprocessError as error:  # what went wrong, the child has already written
                broken.append(case.name)
                lines = [f"{case.name}: broke ({type(error).__name__})"]
            print("", *lines, sep="\n", flush=True)
    report["surroundings"]["load after"] = " ".join(f"{load:.2f}" for load in os.getloadavg())
    print(f"\nload after   {report['surroundings']['load after']}")
    if options.json:
        with open(options.json, "w") as file:
            json.dump(report, file, indent=1)
    status = conclude(report["cases"]) if options.check else 0
    return 2 if broken else status


def conclude(cases: dict[str, dict[str, Any]]) -> int:
    """Prints what was missed; 1 if anything was, or if nothing was measured at all."""
    missed = [f"{name}: {text}" for name, data in cases.items() for text in data["missed"]]
    if not any(data.get("figures") for data in cases.values()):
        missed.append("nothing was measured")
    print(*[f"missed: {text}" for text in missed] or ["every target was met"], sep="\n")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

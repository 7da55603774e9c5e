"""The table: one block a case, one line a contender, each ratio beside what was promised."""

from __future__ import annotations

import sys
from typing import Any

from .harness import AGAIN, Case, compare

WORTH_A_WORD = 0.02  # as a share of the batches

HEAD = f"  {'':22}{'median ns':>11}{'least ns':>11}{'ratio':>8}{'of least':>10}{'8 of 10 within':>17}{'times C':>9}  target"  # noqa: E501 - a table\'s head


def judge(case: Case, name: str, ratio: float, noise: float) -> tuple[str, bool]:
    """What to print as target, and whether the ratio missed it; noise excuses nothing, but is named."""
    target = case.targets.get(f"{sys.implementation.name}-{name}")
    if target is None:
        return "", False
    if ratio <= target:
        return f"{target:.3g} met", False
    return f"{target:.3g} MISSED{', by less than the noise' if ratio <= target * (1 + noise) else ''}", True


def line(name: str, figures: dict[str, float], c: float | None, verdict: str) -> str:
    """One contender."""
    within = f"{figures['low']:.3f}..{figures['high']:.3f}"
    times_c = f"{figures['median'] / c:.2f}" if c else "-"
    ratios = f"{figures['ratio']:>8.3f}{figures['ratio_min']:>10.3f}{within:>17}"
    return f"  {name:22}{figures['median']:>11.1f}{figures['min']:>11.1f}{ratios}{times_c:>9}  {verdict}".rstrip()


def block(case: Case, results: list[dict[str, Any]], c: tuple[float, float] | None) -> tuple[list[str], dict[str, Any]]:
    """One case: its lines, and the same as data for the JSON file."""
    lines = [f"{case.name}: {case.what}"]
    data: dict[str, Any] = {"what": case.what, "reference": case.reference, "missed": [], "processes": results}
    absent = results[0]["absent"]
    if results[0]["samples"]:
        lines.append(HEAD)
        data["figures"] = compare(case.reference, [result["samples"] for result in results])
        noise = data["figures"][case.reference + AGAIN]["off"]
        first = [case.reference, case.reference + AGAIN]
        for name in first + [name for name in data["figures"] if name not in first]:
            figures = data["figures"][name]
            verdict, missed = judge(case, name, figures["ratio"], noise)
            if missed:
                data["missed"].append(f"{name}: {figures['ratio']:.3f}")
            verdict = f"(noise: {noise:.1%})" if name.endswith(AGAIN) else verdict
            lines.append(line(name, figures, c[0] if c else None, verdict))
        if c:
            data["c"] = {"median": c[0], "min": c[1]}
            lines.append(f"  {'C':22}{c[0]:>11.1f}{c[1]:>11.1f}")
        disturbed = max(result["disturbed"] for result in results)
        if disturbed > WORTH_A_WORD:
            lines.append(
                f"  disturbed: other processes ran in the middle of {disturbed:.0%} of the batches, four times over"
            )
    lines += [f"  {name:22}{'-':>11}  {reason}" for name, reason in absent.items()]
    for text, good in results[0]["facts"]:
        lines.append(f"  {'as it should be' if good else 'WRONG'}: {text}")
        if not good:
            data["missed"].append(text)
    return lines, data

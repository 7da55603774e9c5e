"""All cases in the order they are run, and the groups they go by."""

from __future__ import annotations

from . import channels, core, owned
from .harness import Case

GROUPS = {"core": core.CASES, "owned": owned.CASES, "channels": channels.CASES}
CASES: dict[str, Case] = {case.name: case for group in GROUPS.values() for case in group}


def chosen(names: list[str]) -> list[Case]:
    """The cases named, by their own names or their group's; all if none is named. KeyError for an unknown name."""
    picked: dict[str, Case] = {}
    for name in names or list(GROUPS):
        picked.update({case.name: case for case in GROUPS.get(name) or [CASES[name]]})
    return list(picked.values())

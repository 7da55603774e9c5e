"""Measures one case in a process of its own and prints the samples as JSON, for __main__.py to read."""

from __future__ import annotations

import json
import sys

from .cases import CASES
from .harness import Settings, measure

if __name__ == "__main__":
    name, settings = json.loads(sys.argv[1])
    json.dump(measure(CASES[name], Settings(**{**settings, "backends": tuple(settings["backends"])})), sys.stdout)

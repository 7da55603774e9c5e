"""`python -m fdpass_cffi` is the `fdpass` command, also where the package is vendored under another name."""

from __future__ import annotations

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())

"""Pass open file descriptors between processes over AF_UNIX sockets (SCM_RIGHTS)."""

from __future__ import annotations

__version__ = "0.1.0"

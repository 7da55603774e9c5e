"""Pass open file descriptors between processes over AF_UNIX sockets (SCM_RIGHTS)."""

from __future__ import annotations

__version__ = "0.1.0"

from ._backend import BACKEND
from .msg import (
    CMSG_LEN,
    CMSG_SPACE,
    recv_fds,
    recvmsg,
    recvmsg_into,
    send_fds,
    sendmsg,
    sendmsg_afalg,
)

__all__ = [
    "BACKEND",
    "CMSG_LEN",
    "CMSG_SPACE",
    "recv_fds",
    "recvmsg",
    "recvmsg_into",
    "send_fds",
    "sendmsg",
    "sendmsg_afalg",
]

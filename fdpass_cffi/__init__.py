"""Pass open file descriptors between processes over AF_UNIX sockets (SCM_RIGHTS)."""

from __future__ import annotations

__version__ = "0.1.0"

from ._backend import BACKEND
from .errors import LocalProtocolError, ProtocolError, TruncatedError
from .fd import OwnedFd
from .message import Credentials, Message, recv_message
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
from .sendall import sendall_fds

__all__ = [
    "BACKEND",
    "CMSG_LEN",
    "CMSG_SPACE",
    "Credentials",
    "LocalProtocolError",
    "Message",
    "OwnedFd",
    "ProtocolError",
    "TruncatedError",
    "recv_fds",
    "recv_message",
    "recvmsg",
    "recvmsg_into",
    "send_fds",
    "sendall_fds",
    "sendmsg",
    "sendmsg_afalg",
]

"""Pass open file descriptors between processes over AF_UNIX sockets (SCM_RIGHTS)."""

from __future__ import annotations

__version__ = "0.1.0"

from ._backend import BACKEND
from .batch import recv_messages, send_messages
from .creds import pass_credentials, pass_pidfd, pass_rights, peer_credentials, peer_pidfd
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
    "pass_credentials",
    "pass_pidfd",
    "pass_rights",
    "peer_credentials",
    "peer_pidfd",
    "recv_fds",
    "recv_message",
    "recv_messages",
    "recvmsg",
    "recvmsg_into",
    "send_fds",
    "send_messages",
    "sendall_fds",
    "sendmsg",
    "sendmsg_afalg",
]

"""Pass open file descriptors between processes over AF_UNIX sockets (SCM_RIGHTS).

The drop-ins but sendmsg_afalg are imported at once; what goes beyond `socket` when it is first asked for, so that a
program which needs the drop-ins alone pays for no more.
"""

from ._backend import BACKEND, CONSTANTS
from .msg import CMSG_LEN, CMSG_SPACE, recv_fds, recvmsg, recvmsg_into, send_fds, sendmsg

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .afalg import sendmsg_afalg
    from .channel import Channel
    from .creds import pass_credentials, pass_pidfd, pass_rights, peer_credentials, peer_pidfd
    from .errors import LocalProtocolError, ProtocolError, TruncatedError
    from .fd import OwnedFd
    from .message import Credentials, Message, recv_message
    from .recvmmsg import recv_messages
    from .sendall import sendall_fds
    from .sendmmsg import send_messages

    MSG_CMSG_CLOEXEC: int
    SCM_CREDENTIALS: int
    SCM_PIDFD: int
    SCM_RIGHTS: int
    SO_PASSCRED: int
    SO_PASSPIDFD: int
    SO_PASSRIGHTS: int
    SO_PEERPIDFD: int

__version__ = "0.1.0"
__all__ = [
    "BACKEND",
    "CMSG_LEN",
    "CMSG_SPACE",
    "Channel",
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

_WHERE = {
    "afalg": "sendmsg_afalg",
    "channel": "Channel",
    "creds": "pass_credentials pass_pidfd pass_rights peer_credentials peer_pidfd",
    "errors": "LocalProtocolError ProtocolError TruncatedError",
    "fd": "OwnedFd",
    "message": "Credentials Message recv_message",
    "recvmmsg": "recv_messages",
    "sendall": "sendall_fds",
    "sendmmsg": "send_messages",
}
_MODULE = {name: module for module, names in _WHERE.items() for name in names.split()}
# Those of the constants that `socket` lacks on some interpreter, where this platform has them.
globals().update(
    (name, CONSTANTS[name])
    for name in (
        "MSG_CMSG_CLOEXEC",
        "SCM_CREDENTIALS",
        "SCM_PIDFD",
        "SCM_RIGHTS",
        "SO_PASSCRED",
        "SO_PASSPIDFD",
        "SO_PASSRIGHTS",
        "SO_PEERPIDFD",
    )
    if name in CONSTANTS
)


def __getattr__(name: str) -> object:
    """Import what is asked for; PEP 562."""
    if name not in _MODULE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value = globals()[name] = getattr(import_module(f".{_MODULE[name]}", __name__), name)
    return value


def __dir__() -> "list[str]":
    return sorted({*globals(), *_MODULE})

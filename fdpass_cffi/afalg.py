"""sendmsg_afalg: the kernel's ciphers and digests by AF_ALG sockets; <linux/if_alg.h>. Imported when asked for."""

from __future__ import annotations

from errno import EAFNOSUPPORT
from struct import Struct

from ._backend import CONSTANTS, ffi
from ._send import exported
from ._sock import Socket, c_int, family, fileno
from .msg import packed, send_control

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import SupportsIndex

    from typing_extensions import Buffer

    from ._sock import FileDescriptorLike

SOL_ALG = CONSTANTS.get("SOL_ALG", -1)
ALG_SET_IV, ALG_SET_OP, ALG_SET_AEAD_ASSOCLEN = 2, 3, 4
AF_ALG = 38
U32 = Struct("=I")


def sendmsg_afalg(
    sock: FileDescriptorLike,
    msg: Iterable[Buffer] | None = None,
    *,
    op: SupportsIndex,
    iv: Buffer | None = None,
    assoclen: SupportsIndex | None = None,
    flags: int = 0,
) -> int:
    """Set the operation (ALG_OP_ENCRYPT...), the IV and the length of associated data of an AF_ALG socket, and send.

    `msg` is an iterable of bytes-like objects; the number of bytes sent. As `socket.socket.sendmsg_afalg`; Linux,
    see <linux/if_alg.h>. OSError for a socket of another family, TypeError for a negative `op` or `assoclen`.
    """
    fd = sock.fileno() if type(sock) is Socket else fileno(sock, "sendmsg_afalg")
    if family(sock, fd) != AF_ALG:
        raise OSError(EAFNOSUPPORT, "algset is only supported for AF_ALG")
    ancdata = afalg_control(op, iv, assoclen)
    return send_control(sock, fd, () if msg is None else msg, packed(ancdata), c_int("flags", flags), None)


def afalg_control(
    op: SupportsIndex, iv: Buffer | None, assoclen: SupportsIndex | None
) -> list[tuple[int, int, Buffer]]:
    """The control messages of <linux/if_alg.h>: __u32 op; struct af_alg_iv {__u32 ivlen; __u8 iv[]}; __u32 assoclen."""
    operation = c_int("op", op)
    if operation < 0:
        raise TypeError(f"Invalid or missing argument 'op': {operation}")
    ancdata: list[tuple[int, int, Buffer]] = [(SOL_ALG, ALG_SET_OP, U32.pack(operation))]
    if iv is not None:
        vector = bytes(ffi.buffer(exported(iv, "iv")))
        ancdata.append((SOL_ALG, ALG_SET_IV, U32.pack(len(vector)) + vector))
    if assoclen is not None:
        associated = c_int("assoclen", assoclen)
        if associated < 0:
            raise TypeError(f"assoclen must be positive: {associated}")
        ancdata.append((SOL_ALG, ALG_SET_AEAD_ASSOCLEN, U32.pack(associated)))
    return ancdata

"""sendmsg_afalg: byte for byte what <linux/if_alg.h> asks for, and the kernel's own sha256 and AES where it has them."""

from __future__ import annotations

import hashlib
import socket
import struct

import pytest
from support import pair

AF_ALG = 38
SOL_ALG, ALG_SET_KEY, ALG_SET_IV, ALG_SET_OP, ALG_SET_AEAD_ASSOCLEN = 279, 1, 2, 3, 4
DECRYPT, ENCRYPT = 0, 1


def algorithm(kind: str, name: str) -> socket.socket:
    """A bound AF_ALG socket; skips where this kernel has none."""
    try:
        sock = socket.socket(AF_ALG, socket.SOCK_SEQPACKET)
    except OSError as error:
        pytest.skip(f"this kernel has no AF_ALG: {error}")
    try:
        sock.bind((kind, name))
    except OSError as error:
        sock.close()
        pytest.skip(f"this kernel has no {name}: {error}")
    return sock


def test_the_control_messages(fdpass):
    """__u32 op; struct af_alg_iv with its __u32 length before the bytes; __u32 assoclen; in this order."""
    iv = bytes(range(16))
    assert [
        (SOL_ALG, ALG_SET_OP, struct.pack("=I", ENCRYPT)),
        (SOL_ALG, ALG_SET_IV, struct.pack("=I", 16) + iv),
        (SOL_ALG, ALG_SET_AEAD_ASSOCLEN, struct.pack("=I", 20)),
    ] == fdpass.msg.afalg_control(ENCRYPT, bytearray(iv), 20)
    assert [(SOL_ALG, ALG_SET_OP, bytes(4))] == fdpass.msg.afalg_control(DECRYPT, None, None)


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ({"op": -1}, TypeError, "op"),
        ({"op": "x"}, TypeError, "op"),
        ({"op": 1, "assoclen": -1}, TypeError, "assoclen"),
        ({"op": 1, "iv": "text"}, TypeError, "iv"),
        ({"op": 2**31}, OverflowError, "op"),
        ({}, TypeError, "op"),
    ],
)
def test_bad_arguments(fdpass, monkeypatch, arguments, error, text):
    """The errors of `socket`, naming the argument, before anything is sent."""
    with pair() as (a, b):
        monkeypatch.setattr(fdpass.msg, "family", lambda sock, fd: AF_ALG)
        with pytest.raises(error, match=text):
            fdpass.sendmsg_afalg(a, [b"x"], **arguments)
        with pytest.raises(BlockingIOError):
            b.recv(1, socket.MSG_DONTWAIT)


def test_only_for_af_alg(fdpass):
    """Any other socket is refused as `socket` refuses it."""
    with pair() as (a, _), pytest.raises(OSError, match="AF_ALG"):
        fdpass.sendmsg_afalg(a, [b"x"], op=1)


def test_sha256_of_the_kernel(fdpass):
    """A hash over AF_ALG agrees with hashlib's."""
    with algorithm("hash", "sha256") as bound, bound.accept()[0] as op:
        fdpass.sendmsg(op, [b"ab", b"c"])
        assert hashlib.sha256(b"abc").digest() == fdpass.recvmsg(op, 32)[0]


def test_aes_of_the_kernel(fdpass):
    """FIPS 197 and SP 800-38A, F.2.1: AES-128-CBC, there and back."""
    key = bytes.fromhex("2b7e151628aed2a6abf7158809cf4f3c")
    plain = bytes.fromhex("6bc1bee22e409f96e93d7e117393172a")
    secret = bytes.fromhex("7649abac8119b246cee98e9b12e9197d")
    with algorithm("skcipher", "cbc(aes)") as bound:
        bound.setsockopt(SOL_ALG, ALG_SET_KEY, key)
        for operation, given, expected in ((ENCRYPT, plain, secret), (DECRYPT, secret, plain)):
            with bound.accept()[0] as op:
                fdpass.sendmsg_afalg(op, [given], op=operation, iv=bytes(range(16)))
                assert expected == fdpass.recvmsg(op, 16)[0]

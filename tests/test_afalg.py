"""sendmsg_afalg: against the kernel's own ciphers where it has AF_ALG; its control messages byte for byte anywhere."""

from __future__ import annotations

import errno
import hashlib
import os
import socket
import struct

import pytest
from support import pair

from fdpass_cffi._backend import CONSTANTS

AF_ALG, SOL_ALG = 38, CONSTANTS.get("SOL_ALG", -1)
SET_KEY, SET_IV, SET_OP, SET_ASSOCLEN, SET_AUTHSIZE = 1, 2, 3, 4, 5
DECRYPT, ENCRYPT = 0, 1

# FIPS 197, appendix B; NIST SP 800-38A, F.2.1
KEY = bytes.fromhex("2b7e151628aed2a6abf7158809cf4f3c")
IV = bytes(range(16))
PLAIN = bytes.fromhex("6bc1bee22e409f96e93d7e117393172aae2d8a571e03ac9c9eb76fac45af8e51")
CBC = bytes.fromhex("7649abac8119b246cee98e9b12e9197d5086cb9b507219ee95db113a917678b2")


def algorithm(kind: str, name: str) -> socket.socket:
    """A socket bound to an algorithm of the kernel."""
    if not hasattr(socket, "AF_ALG"):
        pytest.skip("this interpreter's socket knows no AF_ALG addresses to bind to")
    try:
        sock = socket.socket(socket.AF_ALG, socket.SOCK_SEQPACKET)
    except OSError as error:
        pytest.skip(f"this kernel has no AF_ALG: {error}")
    try:
        sock.bind((kind, name))
    except OSError as error:
        sock.close()
        pytest.skip(f"this kernel's AF_ALG has no {kind} {name}: {error}")
    return sock


def control(fdpass, *args) -> bytes:
    return fdpass.msg.packed(fdpass.afalg.afalg_control(*args))


def item(kind: int, data: bytes) -> bytes:
    """struct cmsghdr with its data, padded, in this machine's own layout."""
    header = struct.pack("@Nii", socket.CMSG_LEN(len(data)), SOL_ALG, kind)
    header += bytes(socket.CMSG_LEN(0) - len(header))
    return (header + data).ljust(socket.CMSG_SPACE(len(data)), b"\0")


def test_the_control_messages_byte_for_byte(fdpass):
    """ALG_SET_OP, then ALG_SET_IV with its length, then ALG_SET_AEAD_ASSOCLEN, as <linux/if_alg.h> has them."""
    u32 = struct.Struct("=I").pack
    op = item(SET_OP, u32(ENCRYPT))
    assert op == control(fdpass, ENCRYPT, None, None)
    assert item(SET_OP, u32(DECRYPT)) == control(fdpass, DECRYPT, None, None)
    assert op + item(SET_IV, u32(16) + IV) == control(fdpass, ENCRYPT, IV, None)
    assert op + item(SET_IV, u32(3) + b"abc") == control(fdpass, ENCRYPT, memoryview(bytearray(b"abc")), None)
    assert op + item(SET_IV, u32(0)) == control(fdpass, ENCRYPT, b"", None)
    assert op + item(SET_ASSOCLEN, u32(20)) == control(fdpass, ENCRYPT, None, 20)
    assert op + item(SET_IV, u32(16) + IV) + item(SET_ASSOCLEN, u32(0)) == control(fdpass, ENCRYPT, IV, 0)


@pytest.mark.parametrize(
    ("args", "error", "match"),
    [
        ((-1, None, None), TypeError, "op"),
        (("1", None, None), TypeError, "op.*str"),
        ((1 << 31, None, None), OverflowError, "op"),
        ((1, "text", None), TypeError, "iv.*str"),
        ((1, memoryview(bytes(8))[::2], None), BufferError, "iv.*contiguous"),
        ((1, None, -1), TypeError, "assoclen"),
        ((1, None, "1"), TypeError, "assoclen.*str"),
        ((1, None, 1 << 31), OverflowError, "assoclen"),
    ],
)
def test_bad_arguments_are_named(fdpass, args, error, match):
    """A bad op, iv or assoclen is refused by name, with the exception of socket.sendmsg_afalg."""
    with pytest.raises(error, match=match):
        fdpass.afalg.afalg_control(*args)


def test_op_is_required_by_name(fdpass):
    """op has no default, and neither it nor what follows can be positional, as in socket."""
    with pair() as (a, _):
        with pytest.raises(TypeError, match="op"):
            fdpass.sendmsg_afalg(a, [b"x"])
        with pytest.raises(TypeError, match="positional"):
            fdpass.sendmsg_afalg(a, [b"x"], ENCRYPT)


def test_another_family_is_refused_as_socket_refuses_it(fdpass):
    """On any socket but AF_ALG it is socket's OSError, and nothing is sent."""
    with pair() as (a, b):
        with pytest.raises(OSError, match="algset is only supported for AF_ALG") as ours:
            fdpass.sendmsg_afalg(a, [b"x"], op=ENCRYPT)
        with pytest.raises(OSError, match="algset is only supported for AF_ALG") as ours_by_number:
            fdpass.sendmsg_afalg(a.fileno(), [b"x"], op=ENCRYPT)
        with pytest.raises(BlockingIOError):
            b.recv(1, socket.MSG_DONTWAIT)
        if hasattr(a, "sendmsg_afalg"):
            with pytest.raises(OSError, match="algset is only supported for AF_ALG") as theirs:
                a.sendmsg_afalg([b"x"], op=ENCRYPT)
            assert theirs.value.errno in (None, ours.value.errno)
    assert errno.EAFNOSUPPORT == ours.value.errno == ours_by_number.value.errno


def encrypted(module, sock, operation: int, text: bytes, *, parts: int = 1) -> bytes:
    """`text` through a cipher of the kernel, in as many messages."""
    size = len(text) // parts
    for i in range(parts):
        last = i == parts - 1
        buffers = [memoryview(text)[i * size : (i + 1) * size]]
        if i:
            count = module.sendmsg_afalg(sock, buffers, op=operation, flags=0 if last else socket.MSG_MORE)
        else:
            count = module.sendmsg_afalg(sock, buffers, op=operation, iv=IV, flags=0 if last else socket.MSG_MORE)
        assert size == count
    return sock.recv(len(text))


@pytest.mark.parametrize("parts", [1, 2])
def test_aes_cbc_of_the_kernel(fdpass, parts):
    """NIST's vectors come out of the kernel's AES, both ways, at once and in two messages."""
    with algorithm("skcipher", "cbc(aes)") as cipher:
        cipher.setsockopt(SOL_ALG, SET_KEY, KEY)
        for operation, text, expected in ((ENCRYPT, PLAIN, CBC), (DECRYPT, CBC, PLAIN)):
            with cipher.accept()[0] as sock:
                assert expected == encrypted(fdpass, sock, operation, text, parts=parts)


def test_without_data_the_operation_is_set(fdpass):
    """msg=None sends the control messages alone; the data may follow by sendmsg."""
    with algorithm("skcipher", "cbc(aes)") as cipher:
        cipher.setsockopt(SOL_ALG, SET_KEY, KEY)
        with cipher.accept()[0] as sock:
            assert 0 == fdpass.sendmsg_afalg(sock, op=ENCRYPT, iv=IV, flags=socket.MSG_MORE)
            assert len(PLAIN) == fdpass.sendmsg(sock, [PLAIN])
            assert CBC == sock.recv(100)


def test_aead_of_the_kernel_against_socket(fdpass):
    """GCM with associated data: what this library encrypts, socket's sendmsg_afalg decrypts, and it finds a forgery."""
    with algorithm("aead", "gcm(aes)") as cipher:
        cipher.setsockopt(SOL_ALG, SET_KEY, KEY)
        cipher.setsockopt(SOL_ALG, SET_AUTHSIZE, None, 16)
        assoc, iv = b"associated", os.urandom(12)
        with cipher.accept()[0] as sock:
            fdpass.sendmsg_afalg(sock, [assoc, PLAIN], op=ENCRYPT, iv=iv, assoclen=len(assoc))
            sealed = fdpass.recvmsg(sock, len(assoc) + len(PLAIN) + 16)[0][len(assoc) :]
        with cipher.accept()[0] as sock:
            sock.sendmsg_afalg([assoc, sealed], op=DECRYPT, iv=iv, assoclen=len(assoc))
            assert PLAIN == sock.recv(len(assoc) + len(PLAIN))[len(assoc) :]
        with cipher.accept()[0] as sock:
            fdpass.sendmsg_afalg(sock, [b"Associated", sealed], op=DECRYPT, iv=iv, assoclen=len(assoc))
            with pytest.raises(OSError, match="Bad message"):
                fdpass.recvmsg(sock, 100)


@pytest.mark.parametrize("size", [0, 1, 1000, 100_000])
def test_sha256_of_the_kernel(fdpass, size):
    """What sendmsg puts into the kernel's sha256 comes out as hashlib's, through both recvmsg functions."""
    data = os.urandom(size)
    with algorithm("hash", "sha256") as hasher, hasher.accept()[0] as sock:
        for start in range(0, size, 40_000):
            fdpass.sendmsg(sock, [data[start : start + 40_000]], [], socket.MSG_MORE)
        fdpass.sendmsg(sock, [])
        digest = bytearray(32)
        assert 32 == fdpass.recvmsg_into(sock, [digest])[0]
        assert hashlib.sha256(data).digest() == digest
        fdpass.sendmsg(sock, [data[:10]])
        assert hashlib.sha256(data[:10]).digest() == fdpass.recvmsg(sock, 100)[0]

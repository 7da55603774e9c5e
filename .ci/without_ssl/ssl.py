"""Stands in for `ssl` where a lab's Python was built without OpenSSL.

anyio and trio import it whatever they are used for, and without TLS they only name these. What else asks for `ssl`
gets the ImportError that it is prepared for.
"""

import sys
from enum import Enum

if any("pip" in argument.split("/") for argument in sys.orig_argv):  # -m pip, bin/pip, pip/__pip-runner__.py
    raise ImportError("this Python was built without OpenSSL")


class SSLError(OSError): ...


class CertificateError(SSLError): ...


class SSLEOFError(SSLError): ...


class SSLSyscallError(SSLError): ...


class SSLWantReadError(SSLError): ...


class SSLWantWriteError(SSLError): ...


class SSLZeroReturnError(SSLError): ...


class MemoryBIO: ...


class SSLContext: ...


class SSLObject: ...


class SSLSocket: ...


class Purpose(Enum):
    CLIENT_AUTH = 1
    SERVER_AUTH = 2

"""A coverage-guided peer for the decoder: whatever it sends, the laws of docs/protocol.md hold.

Each input is a script: limits, then receives, of noise or of honest frames cut anywhere. A broken law is
an uncaught exception: atheris prints it, keeps the input as crash-*, and exits with a status that is not 0.
"""

from __future__ import annotations

import sys
from pathlib import Path

import atheris

sys.path.insert(0, str(Path(__file__).parent.parent))

with atheris.instrument_imports(include=["fdpass_cffi.frames"]):
    from fdpass_cffi.errors import ProtocolError
    from fdpass_cffi.frames import HEADER_SIZE, Decoder, encode

Receive = tuple[bytes, list[int]]


def script(fuzz: atheris.FuzzedDataProvider) -> list[Receive]:
    """What arrives: each step is noise, an honest frame, or a change to the last receive: cut, merged, less of it."""
    arrived: list[Receive] = []
    number = 0
    while fuzz.remaining_bytes() and len(arrived) < 200:
        step, count = fuzz.ConsumeIntInRange(0, 4), fuzz.ConsumeIntInRange(0, 9)
        data = fuzz.ConsumeBytes(fuzz.ConsumeIntInRange(0, 40))
        fds = list(range(number, number := number + count))
        if step == 0:
            arrived.append((data, fds))
        elif step == 1 and arrived:
            last, taken = arrived.pop()
            at = min(len(data), len(last))
            arrived += [(last[:at], taken), (last[at:], [])]
        elif step == 2 and arrived:  # a receive that merges plain bytes with what follows
            last, taken = arrived.pop()
            arrived.append((last + frame_bytes(data, fds), taken + fds))
        elif step == 3 and arrived:
            last, taken = arrived.pop()
            arrived.append((last[len(data) :], taken[: len(taken) - count]) if data else (last, taken[count:]))
        else:
            pieces = encode(data, fds, per_message=1 + fuzz.ConsumeIntInRange(0, 4))
            arrived += [(b"".join(buffers), group) for buffers, group in pieces]
    return arrived


def frame_bytes(data: bytes, fds: list[int]) -> bytes:
    return b"".join(b"".join(buffers) for buffers, _ in encode(data, fds))


def reference(stream: bytes, max_data: int, max_fds: int) -> list[tuple[bytes, int]]:
    """The frames that the bytes spell, up to the first fault or the end, in the plainest way."""
    found = []
    while len(stream) >= HEADER_SIZE:
        size, count = int.from_bytes(stream[:4], "big"), int.from_bytes(stream[4:8], "big")
        body = stream[8 : 8 + max(size, count)]
        if size > max_data or count > max_fds or len(body) < max(size, count) or any(body[size:]):
            break
        found.append((body[:size], count))
        stream = stream[8 + len(body) :]
    return found


def receive_all(decoder: Decoder[int], arrived: list[Receive]) -> tuple[list[Receive], list[int], bool]:
    """(frames, descriptors fed, whether a fault ended it); what is held stays within the promise."""
    got: list[Receive] = []
    fed: list[int] = []
    for data, fds in arrived:
        fed += fds
        try:
            decoder.feed(data, fds)
            while (frame := decoder.next_frame()) is not None:
                got.append(frame)
        except ProtocolError as fault:
            return got, fed, says_the_same(decoder, fault)
        nbytes, nfds = decoder.wanted()
        most = max(HEADER_SIZE, decoder.max_data, decoder.max_fds)
        assert 1 <= nbytes <= most
        assert 0 <= nfds <= decoder.max_fds
        read, _, body, held, _ = decoder._state
        assert body or nbytes < HEADER_SIZE or not held, "descriptors are kept for no frame"
        assert len(read) + sum(map(len, pieces(body))) <= most + len(data), "more is kept than was promised"
    return got, fed, False


def pieces(body: tuple | None) -> list[bytes]:
    """What came of the body that is being collected."""
    found, parts = [], body and body[3]
    while parts:
        piece, parts = parts
        found.append(piece)
    return found


def says_the_same(decoder: Decoder[int], fault: ProtocolError) -> bool:
    try:
        decoder.next_frame()
    except ProtocolError as again:
        return fault.args == again.args or explode("the fault changed")
    return explode("the decoder went on after a fault")


def explode(why: str) -> bool:
    raise AssertionError(why)


def check_end(decoder: Decoder[int], unfinished: bool) -> None:
    """The end is clean exactly where no byte of a frame is left."""
    try:
        decoder.eof()
    except EOFError:
        assert not unfinished, "a clean end in the middle of a frame"
    except ProtocolError:
        assert unfinished, "a fault at a clean end"


def one_input(data: bytes) -> None:
    fuzz = atheris.FuzzedDataProvider(data)
    max_data, max_fds = fuzz.ConsumeIntInRange(0, 300), fuzz.ConsumeIntInRange(0, 12)
    arrived = script(fuzz)
    decoder: Decoder[int] = Decoder(max_data, max_fds)
    got, fed, fault = receive_all(decoder, arrived)
    stream = b"".join(data for data, _ in arrived)
    spelt = reference(stream, max_data, max_fds)
    assert spelt[: len(got)] == [(payload, len(fds)) for payload, fds in got], "a frame that the bytes do not spell"
    if not fault:
        assert len(spelt) == len(got), "a frame was not found"
        check_end(decoder, sum(HEADER_SIZE + max(len(payload), count) for payload, count in spelt) < len(stream))
    owned = [fd for _, fds in got for fd in fds] + decoder.drain()
    assert fed == owned, "a descriptor was lost, doubled or dealt out of order"


if __name__ == "__main__":
    bounds = ["-max_total_time=60", "-timeout=10", "-max_len=2000"]
    atheris.Setup([sys.argv[0], *bounds, *sys.argv[1:]], one_input)
    atheris.Fuzz()

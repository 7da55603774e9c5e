"""The protocol of Channel, with bytes alone and through the kernel: what goes in comes out, or it is a fault."""

from __future__ import annotations

import os
import random
import re
import socket
import sys
import tempfile
from collections import Counter
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import EXAMPLES

from fdpass_cffi.errors import LocalProtocolError, ProtocolError
from fdpass_cffi.frames import HEADER_SIZE, MAX_DATA, MAX_FDS, MAX_PACKET, Decoder, encode, only_payload

PROTOCOL = Path(__file__).parent.parent / "docs" / "protocol.md"
quick = settings(deadline=None, database=None, max_examples=EXAMPLES)


# The vectors of docs/protocol.md


def vectors(kind: str) -> dict[str, list[list[str]]]:
    blocks = re.findall(rf"^```{kind} (.+)\n((?:.+\n)+)```$", PROTOCOL.read_text(encoding="utf-8"), re.MULTILINE)
    return {name: [line.split() for line in text.splitlines()] for name, text in blocks}


ENCODE, DECODE = vectors("encode"), vectors("decode")


def from_hex(words: list[str]) -> bytes:
    parts = [word.partition("*") for word in words if word != "-"]
    return b"".join(bytes.fromhex(digits) * int(times or 1) for digits, _, times in parts)


def numbers(words: list[str]) -> list[int]:
    ranges = [word.partition("-") for word in words]
    return [number for low, _, high in ranges for number in range(int(low), int(high or low) + 1)]


def bytes_and_fds(words: list[str]) -> tuple[bytes, list[int]]:
    cut = words.index("fds") if "fds" in words else len(words)
    return from_hex(words[:cut]), numbers(words[cut + 1 :])


def limits(lines: list[list[str]]) -> dict[str, int]:
    return {
        key: int(word) for line in lines if line[0] == "limits" for key, word in zip(("max_data", "max_fds"), line[1:])
    }


def test_the_document_has_its_vectors():
    """Every fenced vector is found, so that none is skipped unseen."""
    fences = len(re.findall(r"^```(?:encode|decode) ", PROTOCOL.read_text(encoding="utf-8"), re.MULTILINE))
    assert (16, 26) == (len(ENCODE), len(DECODE))
    assert fences == len(ENCODE) + len(DECODE)


@pytest.mark.parametrize("name", ENCODE)
def test_encode_vector(name):
    """The encoder sends what the document says, message by message, or refuses what it says."""
    lines = ENCODE[name]
    given_ = {line[0]: line[1:] for line in lines}
    options = {key.replace("-", "_"): int(given_[key][0]) for key in ("per-message", "packet") if key in given_}
    options.update(limits(lines))
    data, fds = from_hex(given_["data"]), list(range(int(given_["fds"][0])))
    if "refused" in given_:
        with pytest.raises(LocalProtocolError, match=f"^{given_['refused'][0]}: "):
            encode(data, fds, **options)
        return
    expected = [bytes_and_fds(line[1:]) for line in lines if line[0] == "message"]
    assert expected == [(b"".join(buffers), group) for buffers, group in encode(data, fds, **options)]


@pytest.mark.parametrize("name", DECODE)
def test_decode_vector(name):
    """The decoder gives the document's frames, wants, ends and faults, each when the document says."""
    lines = DECODE[name]
    decoder = Decoder(**limits(lines))
    for (word, *rest), following in zip(lines, [*lines[1:], [""]]):
        if word == "receive":
            with suppress(ProtocolError):  # it is raised again at "fault", and at anything else
                decoder.feed(*bytes_and_fds(rest))
        elif word == "frame":
            assert bytes_and_fds(rest) == decoder.next_frame()
        elif word == "wants":
            assert (None, tuple(map(int, rest))) == (decoder.next_frame(), decoder.wanted())
        elif word == "end":
            assert decoder.next_frame() is None
            with pytest.raises(ProtocolError if following == ["fault"] else EOFError):
                decoder.eof()
        elif word == "fault":
            with pytest.raises(ProtocolError):
                decoder.next_frame()
        if word == "receive" and following[0] not in {"frame", "fault"}:
            assert decoder.next_frame() is None
    held = [numbers(rest) for word, *rest in lines if word == "held"] or [[]]
    assert held[0] == decoder.drain()


# Sending


@st.composite
def messages(draw, most: int = 6) -> list[tuple[bytes, list[int]]]:
    """Payloads and descriptors, small and large, each descriptor a number of its own."""
    sizes = st.one_of(st.integers(0, 20), st.integers(0, 700), st.sampled_from([4088, 4096, 9000]))
    counts = st.one_of(st.just(0), st.integers(0, 6), st.integers(0, 600))
    drawn = draw(st.lists(st.tuples(sizes, counts), max_size=most))
    ends = [sum(count for _, count in drawn[: at + 1]) for at in range(len(drawn))]
    text = random.Random(draw(st.integers(0, 99))).choices(range(256), k=9000)
    return [(bytes(text[:size]), list(range(end - count, end))) for (size, count), end in zip(drawn, ends)]


@quick
@given(messages(), st.sampled_from([1, 2, 7, 64, 253]), st.none() | st.integers(HEADER_SIZE, 700))
def test_encoded_pieces_can_be_sent(frames, per_message, packet):
    """Each piece has a byte, and no more descriptors or bytes than a message or packet takes; all in order, once."""
    for data, fds in frames:
        pieces = encode(data, fds, per_message=per_message, packet=packet)
        sizes = [sum(map(len, buffers)) for buffers, _ in pieces]
        assert 1 <= min(sizes)
        assert max(sizes) <= (packet or max(sizes))
        assert max(len(group) for _, group in pieces) <= per_message
        assert fds == [fd for _, group in pieces for fd in group]
        header = len(data).to_bytes(4, "big") + len(fds).to_bytes(4, "big")
        assert header == b"".join(pieces[0][0])[:HEADER_SIZE]
        assert header + data.ljust(len(fds), b"\0") == b"".join(b"".join(buffers) for buffers, _ in pieces)


def test_the_payload_is_not_copied():
    """Every buffer but the header refers to the caller's memory, whole or in packets."""
    data = bytearray(200_000)
    for packet in (None, 65536):
        pieces = encode(data, range(600), packet=packet)
        views = [view for buffers, _ in pieces for view in buffers if not isinstance(view, bytes)]
        assert {id(data)} == {id(view.obj) for view in views}
        assert len(data) == sum(map(len, views))
        [view.release() for view in views]
    text = b"x" * 99
    assert text is encode(text)[0][0][1]


def test_any_contiguous_buffer_can_be_sent():
    """bytearray, memoryview and items wider than a byte count in bytes; what cannot be sent is an error."""
    items = memoryview(bytes(range(8))).cast("H")
    for data in (bytearray(range(8)), memoryview(bytes(range(8))), items, items.cast("B").cast("H", (2, 2))):
        for packet in (None, 8):
            pieces = encode(data, [1], packet=packet)
            assert b"\0\0\0\x08\0\0\0\x01" + bytes(range(8)) == b"".join(b"".join(buffers) for buffers, _ in pieces)
    assert [([b"\0" * 8], [])] == encode(memoryview(b"").cast("H"))
    with pytest.raises(BufferError, match="data"):
        encode(memoryview(b"abcd")[::2])
    with pytest.raises(TypeError):
        encode("text")


@pytest.mark.parametrize(
    ("name", "value"),
    [("max_data", -1), ("max_fds", 1 << 32), ("per_message", 0), ("packet", 7), ("packet", MAX_PACKET + 1)],
)
def test_a_limit_out_of_range_is_refused_by_name(name, value):
    """A limit that the format or its laws forbid is a ValueError that names it, for both sides."""
    with pytest.raises(LocalProtocolError, match=f"^{name}: {value} "):
        encode(b"", **{name: value})
    if name.startswith("max"):
        with pytest.raises(LocalProtocolError, match=f"^{name}: {value} "):
            Decoder(**{name: value})


# Receiving, by a model of the kernel


class Stream:
    """A Linux stream socket: a receive takes plain bytes before a chunk with descriptors, and stops in or after it."""

    def __init__(self, draw):
        self.draw = draw
        self.queue: list[tuple[bytes, list[int]]] = []

    def send(self, data: bytes, fds: list[int]) -> None:
        """Queue one message, which the kernel may cut into chunks; the descriptors go with the first."""
        while data:
            size = self.draw(st.just(len(data)) | st.integers(1, len(data))) if len(data) > 1 else 1
            self.queue.append((data[:size], fds))
            data, fds = data[size:], []

    def receive(self, size: int) -> tuple[bytes, list[int]]:
        data, fds = b"", []
        while self.queue and len(data) < size and not fds:
            chunk, fds = self.queue.pop(0)
            take = size - len(data)
            data += chunk[:take]
            if chunk[take:]:
                self.queue.insert(0, (chunk[take:], []))
        return data, fds


class Packets(Stream):
    """A SOCK_SEQPACKET socket: a receive is one packet."""

    def send(self, data: bytes, fds: list[int]) -> None:
        self.queue.append((data, fds))

    def receive(self, size: int) -> tuple[bytes, list[int]]:
        return self.queue.pop(0)


def receives(draw, frames, kind) -> list[tuple[bytes, list[int]]]:
    """The frames as they may arrive: sent in groups, cut and merged by the kernel, perhaps read several at a time."""
    kernel = kind(draw)
    per_message = draw(st.sampled_from([1, 5, 253]))
    packet = draw(st.integers(HEADER_SIZE, 900)) if kind is Packets else None
    for data, fds in frames:
        for buffers, group in encode(data, fds, per_message=per_message, packet=packet):
            kernel.send(b"".join(buffers), group)
    arrived = []
    sizes = draw(st.sampled_from([st.just(1), st.integers(1, 12), st.integers(1, 900), st.just(65536)]))
    merged = draw(st.sampled_from([st.just(1), st.integers(1, 4)]))
    size = times = 1
    while kernel.queue:
        if len(arrived) < 30:  # then more of the same, and in the end all that is left
            size, times = draw(sizes), draw(merged)
        elif len(arrived) > 300:
            size = 65536
        taken = [kernel.receive(size) for _ in range(times) if kernel.queue]
        arrived.append((b"".join(data for data, _ in taken), [fd for _, group in taken for fd in group]))
    return arrived


def all_from(decoder: Decoder, arrived) -> list[tuple[bytes, list[int]]]:
    got = []
    for data, fds in arrived:
        decoder.feed(data, fds)
        got.extend(decoder)
    return got


@pytest.mark.parametrize("kind", [Stream, Packets])
@quick
@given(data=st.data())
def test_whatever_the_kernel_does_the_messages_arrive(kind, data):
    """Any messages, in any pieces and groups that a kernel may deliver, decode to the same messages and descriptors."""
    frames = data.draw(messages())
    decoder = Decoder()
    assert frames == all_from(decoder, receives(data.draw, frames, kind))
    with pytest.raises(EOFError):
        decoder.eof()
    assert [] == decoder.drain()


@quick
@given(data=st.data())
def test_the_hints_are_enough(data):
    """Reading what `wanted` says, bytes and descriptors, never lacks room for a descriptor and ends with each frame."""
    frames = data.draw(messages(4))
    stream = Stream(data.draw)
    for payload, fds in frames:
        for buffers, group in encode(payload, fds):
            stream.send(b"".join(buffers), group)
    decoder, got = Decoder(), []
    while stream.queue:
        nbytes, nfds = decoder.wanted()
        assert 1 <= nbytes
        data_, fds = stream.receive(nbytes)
        assert len(fds) <= nfds
        decoder.feed(data_, fds)
        got.extend(decoder)
    assert frames == got


# Receiving from a peer that lies


def reference(stream: bytes, max_data: int, max_fds: int) -> list[tuple[bytes, int]]:
    """The frames of a stream of bytes, up to its first fault or its end, as the document's section 1 reads."""
    found = []
    while len(stream) >= HEADER_SIZE:
        size, count = int.from_bytes(stream[:4], "big"), int.from_bytes(stream[4:8], "big")
        body = stream[8 : 8 + max(size, count)]
        if size > max_data or count > max_fds or len(body) < max(size, count) or any(body[size:]):
            break
        found.append((body[:size], count))
        stream = stream[8 + len(body) :]
    return found


def corrupted(draw, arrived):
    """What arrived, changed: bytes and descriptors lost, added, moved and turned over."""
    arrived = [(bytearray(data), list(fds)) for data, fds in arrived] or [(bytearray(), [])]
    for number in range(draw(st.integers(1, 3))):
        change = draw(st.sampled_from(["turn", "drop", "add", "lose fd", "add fd", "lose read", "early fd"]))
        with_fds = [(data, fds) for data, fds in arrived if fds] if change in {"lose fd", "early fd"} else []
        data, fds = draw(st.sampled_from(with_fds or arrived))
        at = draw(st.integers(0, len(data)))
        if change == "turn" and at < len(data):
            data[at] ^= 1 << draw(st.integers(0, 7))
        elif change == "drop":
            del data[at : at + draw(st.integers(1, 9))]
        elif change == "add":
            data[at:at] = draw(st.binary(max_size=12))
        elif change == "lose fd" and fds:
            del fds[draw(st.integers(0, len(fds) - 1))]
        elif change == "add fd":
            fds.append(-1 - number)
        elif change == "lose read":
            del data[:], fds[:]
        elif change == "early fd" and fds:
            arrived[0][1].append(fds.pop())
    return [(bytes(data), fds) for data, fds in arrived if data or fds]


def pieces(decoder: Decoder) -> list[bytes]:
    """What came of the body that is being collected."""
    body = decoder._state[2]
    found, parts = [], body and body[3]
    while parts:
        piece, parts = parts
        found.append(piece)
    return found


def kept(decoder: Decoder) -> int:
    return len(decoder._state[0]) + sum(map(len, pieces(decoder)))


def until_the_fault(decoder: Decoder, arrived) -> tuple[list, list[int], bool]:
    """(frames, descriptors that went in, whether a fault ended it), while what is held stays within the promise."""
    got, went_in = [], []
    for data, fds in arrived:
        went_in += fds
        try:
            decoder.feed(data, fds)
            while (frame := decoder.next_frame()) is not None:
                got.append(frame)
        except ProtocolError:
            return got, went_in, True
        assert kept(decoder) <= max(decoder.max_data, decoder.max_fds) + len(data)
        _, _, body, held, _ = decoder._state
        assert len(held) <= (decoder.max_fds if body or decoder.wanted()[0] < HEADER_SIZE else 0)
    return got, went_in, False


@settings(quick, max_examples=2 * EXAMPLES)
@given(data=st.data())
def test_a_corrupted_stream_is_a_fault_or_valid_messages(data):
    """Whatever is changed on the way, out come the frames that the bytes spell, or a fault, and every descriptor."""
    kind = data.draw(st.sampled_from([Stream, Packets]))
    arrived = corrupted(data.draw, receives(data.draw, data.draw(messages(4)), kind))
    decoder = Decoder(max_data=data.draw(st.sampled_from([600, 9000])), max_fds=data.draw(st.sampled_from([5, 600])))
    got, went_in, fault = until_the_fault(decoder, arrived)
    spelt = reference(b"".join(data for data, _ in arrived), decoder.max_data, decoder.max_fds)
    assert spelt[: len(got)] == [(payload, len(fds)) for payload, fds in got]
    if not fault:
        assert len(spelt) == len(got)
        rest = sum(len(data) for data, _ in arrived) - sum(HEADER_SIZE + max(len(data), count) for data, count in spelt)
        with pytest.raises(ProtocolError if rest else EOFError):
            decoder.eof()
    assert went_in == [fd for _, fds in got for fd in fds] + decoder.drain()


@quick
@given(st.lists(st.tuples(st.binary(max_size=40), st.integers(0, 3)), max_size=12))
def test_noise_is_a_fault_or_valid_messages(reads):
    """Bytes and descriptors from a peer that speaks something else give no frame that the bytes do not spell."""
    decoder = Decoder(max_data=64, max_fds=4)
    got, went_in, fault = until_the_fault(decoder, [(data, list(range(count))) for data, count in reads])
    spelt = reference(b"".join(data for data, _ in reads), 64, 4)
    assert spelt[: len(got)] == [(payload, len(fds)) for payload, fds in got]
    assert fault or len(spelt) == len(got)
    assert went_in == [fd for _, fds in got for fd in fds] + decoder.drain()


def test_after_a_fault_the_decoder_says_the_same_and_keeps_what_comes():
    """Every call after a fault raises it again; descriptors fed since are in drain() too, and the bytes are gone."""
    decoder = Decoder(max_data=4)
    decoder.feed(b"\0\0\0\5" + bytes(100), ["a"])
    with pytest.raises(ProtocolError, match="5 bytes, and the limit is 4") as first:
        decoder.next_frame()
    assert 0 == kept(decoder)
    calls = [decoder.next_frame, decoder.wanted, decoder.eof, lambda: decoder.feed(b"x" * 100, ["b"])]
    for call in [*calls, lambda: decoder.feed(b"", ["c"]), *calls]:
        with pytest.raises(ProtocolError) as again:
            call()
        assert first.value.args == again.value.args
    assert (0, ["a", "b", "c", "b"]) == (kept(decoder), decoder.drain())


def test_what_was_drained_is_gone():
    """drain() gives a live list: what is popped is not given again, and no frame can take it any more."""
    decoder = Decoder()
    decoder.feed(b"\0\0\0\1\0\0\0\2", ["a", "b"])
    assert "b" == decoder.drain().pop()
    assert ["a"] == decoder.drain()
    for call in (decoder.next_frame, lambda: decoder.feed(b"x")):
        with pytest.raises(LocalProtocolError):
            call()


def test_the_end_is_not_judged_while_frames_wait():
    """eof() and wanted() before next_frame() gave None are this side's mistake, not the peer's, and nothing is lost."""
    decoder = Decoder()
    decoder.feed(bytes(8))
    for call in (decoder.eof, decoder.wanted):
        with pytest.raises(LocalProtocolError, match="next_frame"):
            call()
    assert [(b"", [])] == list(decoder)
    with pytest.raises(EOFError):
        decoder.eof()


def test_a_receive_buffer_may_be_used_again():
    """What was fed from a bytearray or a view stays when the caller overwrites it; text and numbers are refused."""
    decoder, room = Decoder(), bytearray(b"\0\0\0\3\0\0\0\0abc\0\0")
    decoder.feed(memoryview(room)[:9])
    assert decoder.next_frame() is None
    decoder.feed(room[9:])
    room[:] = b"?" * len(room)
    assert (b"abc", []) == decoder.next_frame()
    for wrong in ("text", 5, None):
        with pytest.raises(TypeError):
            decoder.feed(wrong, ["a"])
    assert (None, []) == (decoder.next_frame(), decoder.drain())


# What it costs


def test_a_header_alone_costs_nothing():
    """A peer that announces the limit and sends no more has made the decoder keep no byte of memory for it."""
    decoder = Decoder()
    decoder.feed(MAX_DATA.to_bytes(4, "big") + MAX_FDS.to_bytes(4, "big"))
    assert (None, 0) == (decoder.next_frame(), kept(decoder))


@pytest.mark.parametrize("size", [1, 2, 100, 5000])
def test_a_peer_that_trickles_costs_what_it_sends(size):
    """However small the pieces, they are gathered: a frame is a few objects, not one a piece, and is kept once."""
    data = bytes(range(256)) * 200
    stream = b"".join(b"".join(buffers) for buffers, _ in encode(data))
    decoder, parts = Decoder(), 0
    for at in range(0, len(stream), size):
        decoder.feed(stream[at : at + size])
        frame = decoder.next_frame()
        if at // size % 99 == 0:
            parts = max(parts, len(pieces(decoder)))
        assert kept(decoder) <= len(stream) + size
    assert parts <= 15 + len(data) // 4096
    assert (data, []) == frame


def test_large_pieces_are_kept_as_they_came():
    """The pieces of a large payload are not copied until the frame is whole."""
    decoder, large = Decoder(), [b"x" * 5000, b"y" * 9000, b"z" * 9001]
    decoder.feed((30_000).to_bytes(4, "big") + bytes(5))
    for piece in large:
        assert decoder.next_frame() is None
        decoder.feed(piece)
    assert decoder.next_frame() is None
    assert all(fed is piece for fed, piece in zip(reversed(large), pieces(decoder)))
    decoder.feed(b"w" * 6000, ["a"])
    with pytest.raises(ProtocolError):
        decoder.next_frame()
    assert (0, ["a"]) == (kept(decoder), decoder.drain())


def test_many_frames_in_one_receive_are_not_moved():
    """Frames are cut out of the receive where they lie: taking one does not copy what follows it."""
    read = bytes(8) * 5000
    decoder = Decoder()
    decoder.feed(read)
    for _ in range(4999):
        assert (b"", []) == decoder.next_frame()
        assert read is decoder._state[0]


# An exception at any boundary


class Struck(BaseException):
    """What a signal handler raises."""


def traced(call, visit) -> None:
    """Run `call`; `visit(place)` is called at each bytecode inside frames.py, or line where those are not traced."""

    def trace(frame, event, arg):
        if frame.f_code.co_filename != Decoder.feed.__code__.co_filename:
            return None
        if event == "call" and sys.implementation.name == "cpython":
            frame.f_trace_lines, frame.f_trace_opcodes = False, True
        elif event in {"opcode", "line"}:
            visit((frame.f_code, frame.f_lasti if event == "opcode" else frame.f_lineno))
        return trace

    before = sys.gettrace()
    if sys.implementation.name == "cpython":
        sys._getframe().f_trace_opcodes = True  # CPython 3.12 looks at this only when tracing is switched on
    sys.settrace(trace)
    try:
        call()
    finally:
        sys.settrace(before)


def struck(call, place, times: int) -> bool:
    """Whether `call` was left by an exception, raised where `place` is reached for the nth time."""
    left = [times]

    def visit(where):
        left[0] -= where == place
        if left[0] == 0:
            raise Struck

    try:
        traced(call, visit)
    except Struck:
        return True
    return False


def boundaries(call) -> list:
    """Every (place, nth time) that a new `call()` goes through."""
    seen = Counter()
    for _ in range(3):  # CPython 3.13 does not show all of them the first time
        now = Counter()
        with suppress(ProtocolError):
            traced(call(), lambda place, now=now: now.update([place]))
        seen |= now
    return [(place, times) for place, most in seen.items() for times in range(1, most + 1)]


class Adapter:
    """What an adapter has to do so that an exception at any boundary takes nothing away from the next call."""

    def __init__(self, arrived):
        self.decoder: Decoder[int] = Decoder()
        self.arrived = list(arrived)
        self.got = []
        self.frame = None
        self.feeding = 0

    def resume(self):
        """Go on after an exception: a frame that was got is taken, and what was fed is not fed again."""
        if self.frame is not None:
            self.decoder.take(self.frame)
            self.frame = None
        try:
            self.decoder.wanted()
        except LocalProtocolError:
            del self.arrived[: self.feeding]
        self.feeding = 0

    def run(self):
        while True:
            while (frame := self.decoder.front()) is not None:
                self.frame = frame
                self.got.append(frame)
                self.decoder.take(frame)
                self.frame = None
            if not self.arrived:
                return
            self.feeding = 1
            self.decoder.feed(*self.arrived[0])
            self.feeding = 0
            del self.arrived[0]


SENT = [(b"abc", [0, 1]), (b"", []), (b"x" * 30, [2]), (b"", [3, 4, 5])]
CUTS = [(0, 3, [0, 1]), (3, 24, [2]), (24, 30, []), (30, 40, []), (40, 58, [3, 4, 5]), (58, 99, [])]


def cut_up() -> list[tuple[bytes, list[int]]]:
    """The frames of SENT, in reads that cut each of them."""
    stream = b"".join(b"".join(buffers) for data, fds in SENT for buffers, _ in encode(data, fds))
    return [(stream[start:end], fds) for start, end, fds in CUTS]


def test_an_exception_at_any_boundary_takes_nothing_away():
    """Wherever a call is left, it was done or it was not: gone on with, all frames come, with their own descriptors."""
    found = boundaries(lambda: Adapter(cut_up()).run)
    for at in found:
        adapter = Adapter(cut_up())
        struck(adapter.run, *at)
        adapter.resume()
        adapter.run()
        assert SENT == adapter.got, at
        assert [] == adapter.decoder.drain()
    assert 60 < len(found)


def test_an_exception_at_any_boundary_leaves_every_descriptor_to_drain():
    """Wherever a call is left, the descriptors are in frames, in drain(), or not fed; also after a peer's fault."""
    arrived = [*cut_up()[:3], (b"", [6])]
    found = boundaries(lambda: Adapter(arrived).run)
    for at in found:
        adapter = Adapter(arrived)
        with suppress(ProtocolError):
            struck(adapter.run, *at)
        if adapter.frame is not None:
            adapter.decoder.take(adapter.frame)
        drained = adapter.decoder.drain()
        assert drained is adapter.decoder.drain()
        out = [fd for _, fds in adapter.got for fd in fds] + drained
        perhaps_fed = [fd for _, fds in adapter.arrived for fd in fds]
        assert [0, 1, 2, 6][: len(out)] == out, at
        assert {0, 1, 2, 6} == {*out, *perhaps_fed}, at
    assert 60 < len(found)


def test_what_is_in_front_stays_until_it_is_taken():
    """front() gives the same frame until take(); until then its descriptors are the decoder's, for drain() to give."""
    decoder = Decoder()
    decoder.feed(b"\0\0\0\0\0\0\0\1\0" * 3, ["a", "b", "c"])
    first = decoder.front()
    assert first is decoder.front()
    decoder.take(first)
    decoder.take(first)
    assert (b"", ["b"]) == decoder.next_frame()
    assert (b"", ["c"]) == decoder.front()
    decoder.take(first)
    assert (b"", ["c"]) == decoder.front()
    with pytest.raises(LocalProtocolError):
        decoder.wanted()
    assert ["c"] == decoder.drain()


def test_the_shortcut_takes_only_a_whole_frame():
    """The shortcut gives nothing where a descriptor lacks or is too many, or padding, length or limit is wrong."""
    assert b"a" == only_payload(b"\0\0\0\1\0\0\0\2a\0", 2, 1)
    assert only_payload(b"\0\0\0\1\0\0\0\2a\0", 1, 1) is None
    assert only_payload(b"\0\0\0\1\0\0\0\2a\0", 3, 1) is None
    assert only_payload(b"\0\0\0\1\0\0\0\2a\0", 2, 0) is None
    assert only_payload(b"\0\0\0\1\0\0\0\2aa", 2, 1) is None
    assert only_payload(b"\0\0\0\1\0\0\0\2a", 2, 1) is None
    assert only_payload(b"\0\0\0\1\0\0\0", 0, 1) is None


@quick
@given(st.data())
def test_the_shortcut_says_what_the_decoder_says(data):
    """The shortcut for a receive that is one whole frame gives the decoder's payload, and None for anything else."""
    frame = data.draw(messages(2))
    arrived = [(b"".join(b"".join(buffers) for buffers, _ in encode(*one)), one[1]) for one in frame]
    if data.draw(st.booleans()):
        arrived = corrupted(data.draw, arrived)
    for read, fds in arrived:
        decoder = Decoder(max_data=1000)
        got, _, fault = until_the_fault(decoder, [(read, fds)])
        alone = len(got) == 1 and not fault and decoder.wanted() == (HEADER_SIZE, MAX_FDS)
        assert (got[0] if alone else (None, fds)) == (only_payload(read, len(fds), 1000), fds)


# The kernel itself


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_SEQPACKET])
@pytest.mark.parametrize("seed", range(5))
def test_through_a_real_socket(kind, seed):
    """What this kernel makes of the messages, read in pieces of many sizes, decodes to the same payloads and files."""
    dice = random.Random(seed)
    with ExitStack() as stack:
        files = [stack.enter_context(tempfile.TemporaryFile()) for _ in range(12)]
        inode = {file.fileno(): os.fstat(file.fileno()).st_ino for file in files}
        left, right = map(stack.enter_context, socket.socketpair(socket.AF_UNIX, kind))
        left.setblocking(False)
        right.setblocking(False)
        decoder, sent, got = Decoder(), [], []
        for _ in range(60):
            fds = dice.choices(list(inode), k=dice.choice([0, 0, 1, 3, 40]))
            sent.append((dice.randbytes(dice.choice([0, 1, 60, 5000])), [inode[fd] for fd in fds]))
            packet = dice.choice([8, 100, 4096]) if kind == socket.SOCK_SEQPACKET else None
            for buffers, group in encode(sent[-1][0], fds, per_message=dice.choice([1, 7, 100]), packet=packet):
                piece, rest = b"".join(buffers), group
                while piece:
                    went = send_some(left, piece, rest)
                    piece, rest = piece[went:], [] if went else rest
                    if went == 0 or dice.random() < 0.5:
                        got += read_frames(right, decoder, dice.choice([1, 9, 100, 65536]))
        while len(got) < len(sent):
            got += read_frames(right, decoder, 65536)
        assert sent == got
        assert [] == decoder.drain()


def send_some(sock, data, fds) -> int:
    try:
        return socket.send_fds(sock, [data], fds)
    except BlockingIOError:
        return 0


def read_frames(sock, decoder, size):
    """One receive, if there is one, and the frames it ends, with inodes for descriptors, which are closed."""
    size = 65536 if sock.type == socket.SOCK_SEQPACKET else size
    try:
        data, fds, flags, _ = socket.recv_fds(sock, size, 253)
    except BlockingIOError:
        return []
    decoder.feed(data, fds)
    frames = []
    for payload, fds in decoder:
        frames.append((payload, [os.fstat(fd).st_ino for fd in fds]))
        for fd in fds:
            os.close(fd)
    assert 0 == flags & (socket.MSG_CTRUNC | socket.MSG_TRUNC)
    return frames

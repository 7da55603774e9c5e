"""_cmsg with bytes alone, on every platform's layout: what is packed is found again, and no bytes lead outside."""

from __future__ import annotations

import array
import struct
from itertools import islice

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from support import EXAMPLES

from fdpass_cffi._cmsg import Layout

quick = settings(deadline=None, database=None, max_examples=EXAMPLES)

# Linux 64 and 32 bits, Darwin and 32-bit BSD, 64-bit BSD, NetBSD on arm64 and sparc64, in both byte orders
LAYOUTS = [
    Layout(order + fields, align)
    for order in "<>"
    for fields, align in (("Qii", 8), ("Iii", 4), ("Iii", 8), ("Iii", 16))
]
layouts = st.sampled_from(LAYOUTS)
c_ints = st.integers(-(2**31), 2**31 - 1)
items = st.lists(st.tuples(c_ints, c_ints, st.binary(max_size=70)), max_size=6)


def walked(layout: Layout, control: bytes) -> list[tuple[int, int, bytes, bool]]:
    return [(level, kind, control[start:stop], whole) for level, kind, start, stop, whole in layout.walk(control)]


@st.composite
def buffers(draw) -> tuple[Layout, bytes]:
    """A layout and any bytes, most of them with headers where headers may be, and lengths near what they may be."""
    layout = draw(layouts)
    header = layout._header
    longest = 2 ** (8 * (header.size - 8)) - 1
    lengths = st.one_of(st.integers(0, 80), st.integers(0, longest), st.integers(longest - 40, longest))
    headers = st.builds(header.pack, lengths, c_ints, c_ints)
    parts = draw(st.lists(st.one_of(headers, st.binary(max_size=40), st.just(bytes(layout.align))), max_size=12))
    return layout, b"".join(parts)


@quick
@given(layouts, items)
def test_what_is_packed_is_found_again(layout, given_):
    """Every item of a packed buffer comes out of the walk, in order, whole, with its level, type and data."""
    control = bytes(layout.pack(given_))
    assert [(*item, True) for item in given_] == walked(layout, control)
    assert sum(layout.cmsg_space(len(data)) for _, _, data in given_) == len(control)


@quick
@given(layouts, items)
def test_each_item_is_aligned_and_padded_with_zeros(layout, given_):
    """Each item begins at a multiple of the alignment, its length is its CMSG_LEN, and what is not data is zero."""
    control, at = bytes(layout.pack(given_)), 0
    for level, kind, data in given_:
        head = struct.pack(layout._header.format, layout.data + len(data), level, kind)
        item = (head.ljust(layout.data, b"\0") + data).ljust(layout.cmsg_space(len(data)), b"\0")
        assert item == control[at : at + len(item)]
        at += len(item)
        assert 0 == at % layout.align
    assert len(control) == at


@quick
@given(layouts, items, st.data())
def test_a_cut_item_is_flagged(layout, given_, data):
    """Of a cut buffer every item before the cut is whole; one cut in its data is flagged, with what is left of it.

    One whose header does not fit is not found, and one that lacks nothing but padding is whole.
    """
    control = bytes(layout.pack(given_))
    cut = data.draw(st.integers(0, len(control)), "cut")
    expected, at = [], 0
    for level, kind, payload in given_:
        end = at + layout.data + len(payload)
        if cut >= at + layout.header:
            expected.append((level, kind, control[min(at + layout.data, cut) : min(end, cut)], cut >= end))
        at += layout.cmsg_space(len(payload))
    assert expected == walked(layout, control[:cut])


@quick
@given(buffers())
@example((LAYOUTS[0], b"\xff" * 64))
@example((LAYOUTS[0], bytes(64)))
@example((LAYOUTS[2], struct.pack("<Iii", 12, 1, 1)))
def test_no_bytes_lead_outside_of_the_buffer(case):
    """Whatever the bytes: bounds lie within the buffer and never overlap, and all items but the last are whole."""
    layout, control = case
    found = list(islice(layout.walk(control), len(control) + 1))
    before = 0
    for _, _, start, stop, _ in found:
        assert before <= start <= stop <= len(control)
        before = stop
    assert all(whole for *_, whole in found[:-1])


@quick
@given(buffers())
def test_every_walk_ends(case):
    """Each item takes up at least its header, so that no bytes keep the walk going, not even lengths of zero."""
    layout, control = case
    most = len(control) // layout.header
    assert len(list(islice(layout.walk(control), most + 1))) <= most


@quick
@given(buffers())
def test_an_item_that_cannot_be_is_flagged(case):
    """The walk ends exactly where the bytes do, or at an item that is too long for them or shorter than a header."""
    layout, control = case
    at = 0
    for _, _, _, _, whole in layout.walk(control):
        (length, _, _) = layout._header.unpack_from(control, at)
        assert (layout.header <= length <= len(control) - at) == whole
        if not whole:
            return
        at += layout.aligned(length)
    assert len(control) - at < layout.header


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: f"{layout._header.format}-{layout.align}")
def test_the_macros_for_every_length(layout):
    """CMSG_LEN is the aligned header and the data; CMSG_SPACE is that rounded up, by less than the alignment."""
    for length in range(2001):
        assert -(-layout.header // layout.align) * layout.align + length == layout.cmsg_len(length)
        assert 0 == layout.cmsg_space(length) % layout.align
        assert 0 <= layout.cmsg_space(length) - layout.cmsg_len(length) < layout.align


@quick
@given(st.one_of(st.binary(max_size=200), st.binary(max_size=200).map(bytearray)))
def test_walking_does_not_change_the_buffer(control):
    """The walk reads, whatever kind of bytes it is given."""
    before = bytes(control)
    list(LAYOUTS[0].walk(control))
    assert before == control


@pytest.mark.parametrize(
    "data",
    [bytearray(b"abcd"), memoryview(b"abcd"), memoryview(array.array("B", b"abcd")), memoryview(b"abcd").cast("H")],
)
def test_every_kind_of_bytes_is_packed(data):
    """bytes, a bytearray and a memoryview of any element size give the same item."""
    layout = LAYOUTS[0]
    assert layout.pack([(1, 2, b"abcd"), (3, 4, b"x")]) == layout.pack([(1, 2, data), (3, 4, b"x")])


@pytest.mark.parametrize("item", [(2**31, 1, b""), (1, -(2**31) - 1, b""), (2**64, 1, b"")])
def test_a_number_that_does_not_fit_is_an_error(item):
    """A level or a type that is no C int is struct.error, not another number."""
    with pytest.raises(struct.error):
        LAYOUTS[0].pack([item])


def test_no_items_are_no_bytes():
    """Nothing to pack is an empty buffer, and an empty buffer holds nothing."""
    assert bytearray() == LAYOUTS[0].pack([])
    assert [] == list(LAYOUTS[0].walk(b""))

"""Messages and frames: what was written is read, however it was cut; what is no message is a ``WireError`` and nothing else."""

import os
from multiprocessing import Pipe
from types import UnionType
from typing import Union, get_args, get_origin

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from supervisor.errors import FrameTooLargeError, WireError
from supervisor.wire import messages as wire

UNIONS = {name: getattr(wire, name) for name in ("ToWorker", "FromWorker", "ToTemplate", "FromTemplate")}
LIMIT = 1000

INTEGERS = st.integers(-(2**63), 2**64 - 1)
TEXTS = st.text()  # without half characters, which no JSON of ours has
PLAIN = {
    int: INTEGERS,
    float: st.floats(allow_nan=False),
    str: TEXTS,
    bytes: st.binary(),
    bool: st.booleans(),
    type(None): st.none(),
}


def values(kind):
    """Any value of this type."""
    if kind in PLAIN:
        return PLAIN[kind]
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        return st.one_of([values(argument) for argument in arguments])
    if origin is dict:
        return st.dictionaries(*map(values, arguments), max_size=3)
    if origin is tuple and arguments[-1] is ...:
        return st.lists(values(arguments[0]), max_size=3).map(tuple)
    if origin is tuple:
        return st.tuples(*map(values, arguments))
    return st.builds(kind, **{field.name: values(field.type) for field in msgspec.structs.fields(kind)})


MESSAGES = st.one_of([st.tuples(st.just(union), values(union)) for union in UNIONS.values()])
PAYLOADS = st.lists(st.binary(max_size=200), max_size=8)


@st.composite
def pieces(draw, data):
    """``data`` cut anywhere."""
    cuts = sorted(draw(st.lists(st.integers(0, len(data)), max_size=10)))
    return [data[start:end] for start, end in zip([0, *cuts], [*cuts, len(data)], strict=True)]


def test_every_message_comes_back_as_it_was(examples):
    @examples(100)
    @given(MESSAGES)
    def run(sample):
        union, message = sample
        codec = wire.Codec(union)
        assert codec.decode(codec.encode(message)) == message

    run()


def test_frames_are_read_however_they_were_cut(examples):
    @examples(50)
    @given(st.data(), PAYLOADS)
    def run(data, payloads):
        reader = wire.FrameReader(LIMIT)
        stream = b"".join(map(wire.frame, payloads))
        read = []
        for piece in data.draw(pieces(stream)):
            read += reader.feed(piece)
            assert len(reader._buffer) <= 4 + LIMIT
        assert read == payloads
        assert len(reader._buffer) == 0

    run()


def test_a_long_header_says_the_same_as_a_short_one(examples):
    @examples(30)
    @given(st.data(), st.binary(max_size=200))
    def run(data, payload):
        reader = wire.FrameReader(LIMIT)
        stream = b"\xff\xff\xff\xff" + len(payload).to_bytes(8, "big") + payload
        assert [payload] == [found for piece in data.draw(pieces(stream)) for found in reader.feed(piece)]

    run()


def test_a_frame_over_the_limit_is_refused_by_its_header_alone(examples):
    @examples(30)
    @given(st.integers(0, LIMIT), st.integers(1, 2**62))
    def run(limit, more):
        size = limit + more
        header = size.to_bytes(4, "big") if size < 2**31 else b"\xff\xff\xff\xff" + size.to_bytes(8, "big")
        with pytest.raises(FrameTooLargeError):
            wire.FrameReader(limit).feed(header)

    run()


GARBAGE = st.one_of(
    st.binary(max_size=300),
    st.builds(lambda head, rest: head + rest, st.sampled_from((b"\xff\xff\xff\xff", b"\x00\x00")), st.binary()),
    st.builds(wire.frame, st.binary(max_size=100)),
    st.builds(lambda value: wire.frame(msgspec.msgpack.encode(value)), st.recursive(
        st.none() | st.booleans() | INTEGERS | TEXTS | st.sampled_from(("run", "done", "chunk", "ready", "fork")),
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(("type", "job", "status", "x")), inner),
        max_leaves=8,
    )),
)  # fmt: skip


def test_garbage_is_a_wire_error_or_nothing_yet(examples):
    @examples(60)
    @given(st.data(), st.sampled_from(sorted(UNIONS)), st.lists(GARBAGE, max_size=4))
    def run(data, name, parts):
        reader, codec = wire.FrameReader(LIMIT), wire.Codec(UNIONS[name])
        try:
            for piece in data.draw(pieces(b"".join(parts))):
                for payload in reader.feed(piece):
                    assert len(payload) <= LIMIT
                    message = codec.decode(payload)
                    assert isinstance(message, get_args(UNIONS[name]))
                    assert codec.decode(codec.encode(message)) == message
                assert len(reader._buffer) <= LIMIT + 12
        except WireError:
            pass

    run()


def test_a_connection_reads_what_is_framed_and_the_other_way_round(examples):
    ours, theirs = Pipe()
    with ours, theirs:

        @examples(30)
        @given(PAYLOADS)
        def run(payloads):
            os.write(ours.fileno(), b"".join(map(wire.frame, payloads)))
            assert [theirs.recv_bytes() for _ in payloads] == payloads
            for payload in payloads:
                theirs.send_bytes(payload)
            reader, read = wire.FrameReader(LIMIT), []
            while len(read) < len(payloads):
                read += reader.feed(os.read(ours.fileno(), 64))
            assert read == payloads

        run()

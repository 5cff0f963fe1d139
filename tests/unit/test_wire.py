"""The frames between fronts and workers: what comes out is what went in."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers import wire
from workers.wire import (
    PREFIX,
    Frame,
    FrameReader,
    Kind,
    Result,
    Run,
    WireError,
    WireTensor,
)

SLOT_BYTES = 256

u64 = st.integers(0, 2**64 - 1)
u32 = st.integers(0, 2**32 - 1)
pieces = st.lists(st.binary(max_size=40), max_size=3)
tensors = st.lists(
    st.builds(
        WireTensor,
        index=st.integers(0, 2**16 - 1),
        dims=st.lists(st.integers(-(2**63), 2**63 - 1), max_size=4).map(tuple),
        data=pieces,
        layout=st.sampled_from([0, wire.ROW_OFFSETS]),
    ),
    max_size=4,
)
runs = st.builds(
    Run, id=u64, handle=u64, rows=u32, slot=st.integers(0, 1), tensors=tensors
)
results = st.builds(
    Result,
    id=u64,
    input_ns=u64,
    infer_ns=u64,
    output_ns=u64,
    executions=u32,
    batch_rows=u32,
    tensors=tensors,
)


def slots() -> list[memoryview]:
    return [memoryview(bytearray(SLOT_BYTES)) for _ in range(2)]


def frames_of(stream: bytes) -> list[Frame]:
    return list(FrameReader().feed(stream))


def one_frame(buffers: Sequence[wire.Buffer]) -> Frame:
    (frame,) = frames_of(b"".join(buffers))
    return frame


def joined(given_tensors: list[WireTensor]) -> list[WireTensor]:
    """Return the tensors as they are read: one piece of bytes each."""
    return [replace(t, data=(b"".join(t.data),)) for t in given_tensors]


def plain(frames: Sequence[Frame]) -> list[tuple[int, int, int, int, bytes]]:
    return [(*frame[:4], bytes(frame.body)) for frame in frames]


class TestCodecs:
    @given(runs, st.booleans())
    def test_a_run_comes_out_as_it_went_in(self, run: Run, shared: bool) -> None:
        memory = slots()
        buffers = wire.encode_run(run, memory[run.slot] if shared else None)
        frame = one_frame(buffers)
        assert frame.kind == Kind.RUN
        decoded = wire.decode_run(frame, memory if shared else ())
        assert replace(decoded, tensors=joined(decoded.tensors)) == replace(
            run, tensors=joined(run.tensors)
        )

    @given(results, st.booleans())
    def test_a_result_comes_out_as_it_went_in(
        self, result: Result, shared: bool
    ) -> None:
        memory = slots()[0] if shared else None
        frame = one_frame(wire.encode_result(result, memory))
        assert frame.kind == Kind.RESULT
        decoded = wire.decode_result(frame, memory)
        assert replace(decoded, tensors=joined(decoded.tensors)) == replace(
            result, tensors=joined(result.tensors)
        )

    @given(runs)
    def test_the_arena_is_used_exactly_where_everything_fits(self, run: Run) -> None:
        memory = slots()[0]
        total = sum(-(-t.nbytes() // 16) * 16 for t in run.tensors)
        frame = one_frame(wire.encode_run(run, memory))
        assert bool(frame.flags & wire.IN_ARENA) == (total <= SLOT_BYTES)

    @given(runs)
    def test_inline_data_starts_on_a_boundary(self, run: Run) -> None:
        frame = one_frame(wire.encode_run(run))
        end = len(frame.body)
        for tensor in reversed(wire.decode_run(frame).tensors):
            end -= -(-len(tensor.data[0]) // 16) * 16
            at = frame.body[end : end + len(tensor.data[0])]
            assert end % wire.ALIGNMENT == 0
            assert bytes(at) == bytes(tensor.data[0])

    @given(tensors)
    def test_decoding_copies_nothing(self, some: list[WireTensor]) -> None:
        frame = one_frame(wire.encode_run(Run(1, 2, 3, 0, some)))
        for tensor in wire.decode_run(frame).tensors:
            (data,) = tensor.data
            assert isinstance(data, memoryview)
            assert data.obj is frame.body.obj


class TestBrokenFrames:
    @given(runs, st.booleans())
    def test_a_run_cut_at_any_byte_is_refused(self, run: Run, shared: bool) -> None:
        memory = slots()
        frame = one_frame(wire.encode_run(run, memory[run.slot] if shared else None))
        for cut in range(len(frame.body)):
            with pytest.raises(WireError):
                wire.decode_run(frame._replace(body=frame.body[:cut]), memory)

    @given(results)
    def test_a_result_cut_at_any_byte_is_refused(self, result: Result) -> None:
        frame = one_frame(wire.encode_result(result))
        for cut in range(len(frame.body)):
            with pytest.raises(WireError):
                wire.decode_result(frame._replace(body=frame.body[:cut]))

    @given(runs, st.binary(min_size=1, max_size=40))
    def test_a_frame_longer_than_its_tensors_is_refused(
        self, run: Run, more: bytes
    ) -> None:
        frame = one_frame(wire.encode_run(run))
        longer = frame._replace(body=memoryview(bytes(frame.body) + more))
        with pytest.raises(WireError):
            wire.decode_run(longer)

    @given(st.data(), runs, st.booleans())
    def test_whatever_a_byte_is_changed_to_nothing_else_is_raised(
        self, data: st.DataObject, run: Run, shared: bool
    ) -> None:
        memory = slots()
        stream = bytearray(
            b"".join(wire.encode_run(run, memory[run.slot] if shared else None))
        )
        for _ in range(data.draw(st.integers(1, 4))):
            position = data.draw(st.integers(0, len(stream) - 1))
            stream[position] = data.draw(st.integers(0, 255))
        with contextlib.suppress(WireError):
            for frame in FrameReader(1 << 20).feed(bytes(stream)):
                with contextlib.suppress(WireError):
                    wire.decode_run(frame, memory if shared else ())
                with contextlib.suppress(WireError):
                    wire.decode_result(frame, memory[0] if shared else None)

    @given(
        st.binary(max_size=200),
        st.integers(0, 255),
        st.integers(0, 2**16 - 1),
    )
    def test_noise_is_refused_or_is_a_frame(
        self, body: bytes, flags: int, count: int
    ) -> None:
        frame = Frame(Kind.RUN, flags, count, 1, memoryview(body))
        memory = slots()
        for decode in (
            lambda: wire.decode_run(frame),
            lambda: wire.decode_run(frame, memory),
            lambda: wire.decode_result(frame),
            lambda: wire.decode_result(frame, memory[0]),
        ):
            with contextlib.suppress(WireError):
                decode()

    def test_arena_data_without_an_arena_is_refused(self) -> None:
        run = Run(1, 2, 1, 0, [WireTensor(0, (1,), (b"abcd",))])
        frame = one_frame(wire.encode_run(run, slots()[0]))
        with pytest.raises(WireError, match="arena"):
            wire.decode_run(frame)

    def test_a_slot_beyond_the_arena_is_refused(self) -> None:
        memory = slots()
        run = Run(1, 2, 1, 9, [WireTensor(0, (1,), (b"abcd",))])
        frame = one_frame(wire.encode_run(run, memory[0]))
        with pytest.raises(WireError, match="slot 9"):
            wire.decode_run(frame, memory)

    def test_a_rank_beyond_the_limit_is_refused(self) -> None:
        run = Run(1, 2, 1, 0, [WireTensor(0, (1,) * (wire.MAX_RANK + 1), ())])
        with pytest.raises(WireError, match="shape"):
            wire.decode_run(one_frame(wire.encode_run(run)))

    def test_more_than_a_frame_can_hold_is_refused_when_written(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(wire, "MAX_BODY_BYTES", 1000)
        run = Run(1, 2, 1, 0, [WireTensor(0, (1001,), (bytes(1001),))])
        with pytest.raises(WireError, match="do not fit"):
            wire.encode_run(run)


some_frames = st.lists(
    st.tuples(st.sampled_from(Kind), u64, st.binary(max_size=60), st.integers(0, 255)),
    max_size=6,
)


class TestFrameReader:
    @given(some_frames, st.data())
    def test_any_split_of_the_stream_gives_the_same_frames(
        self, some: list[tuple[Kind, int, bytes, int]], data: st.DataObject
    ) -> None:
        stream = b"".join(wire.encode_frame(*frame) for frame in some)
        cuts = data.draw(st.lists(st.integers(0, len(stream)), max_size=12).map(sorted))
        reader = FrameReader()
        read: list[tuple[int, int, int, int, bytes]] = []
        for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
            read += plain(list(reader.feed(stream[start:end])))
        assert read == [(k, flags, 0, id_, body) for k, id_, body, flags in some]

    @given(some_frames)
    def test_one_byte_at_a_time_gives_each_frame_with_its_last_byte(
        self, some: list[tuple[Kind, int, bytes, int]]
    ) -> None:
        reader = FrameReader()
        for frame in some:
            encoded = wire.encode_frame(*frame)
            for byte in encoded[:-1]:
                assert list(reader.feed(bytes([byte]))) == []
            (read,) = reader.feed(encoded[-1:])
            assert (read.kind, read.id, bytes(read.body), read.flags) == frame

    @given(runs)
    def test_a_run_survives_a_starved_socket(self, run: Run) -> None:
        stream = b"".join(wire.encode_run(run))
        reader = FrameReader()
        read = [frame for byte in stream for frame in reader.feed(bytes([byte]))]
        (whole,) = frames_of(stream)
        assert plain(read) == plain([whole])

    @given(st.integers(1, 2**32 - 1), st.integers(0, 100), st.integers(0, 15))
    def test_a_body_above_the_limit_is_refused_with_its_prefix(
        self, size: int, limit: int, split: int
    ) -> None:
        prefix = PREFIX.pack(size, Kind.CONTROL, 0, 0, 1)
        reader = FrameReader(limit)
        assert list(reader.feed(prefix[:split])) == []
        if size > limit:
            with pytest.raises(WireError, match="exceeds"):
                list(reader.feed(prefix[split:]))
        else:
            assert list(reader.feed(prefix[split:])) == []
            (frame,) = reader.feed(bytes(size))
            assert len(frame.body) == size

    def test_frames_before_the_broken_one_are_given(self) -> None:
        good = wire.encode_frame(Kind.PAUSE, 7)
        frames = FrameReader(10).feed(good + PREFIX.pack(11, 7, 0, 0, 1))
        assert next(frames).id == 7
        with pytest.raises(WireError):
            next(frames)

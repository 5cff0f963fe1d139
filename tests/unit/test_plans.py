"""What is remembered of requests changes nothing but the time they take.

Two inference services get the same messages: one forgets all plans and layouts before
each, so that protobuf reads every message; what both make of it must be the same.
`ADVERSITY_REPEAT` makes it more messages.
"""

from __future__ import annotations

import os
import random
from dataclasses import replace
from typing import Any

import pytest

from featurizer.datatypes import DATATYPES
from gateway.catalogue import BatchPolicy, Catalogue, ModelEntry, State, VersionEntry
from gateway.errors import GatewayError
from gateway.protocol import inference_pb2 as pb
from gateway.serving.admission import Admission
from gateway.serving.dispatch import Dispatcher
from gateway.serving.infer import _MAX_PLANS, InferService, UnaryExchange
from gateway.serving.rows import BatchRows
from gateway.serving.shadow import Shadows
from gateway.serving.sink import MemorySink
from gateway.serving.state import FrontState
from tests.unit.fakes import FakeLoop, make_entry
from workers.spec import ModelSpec, TensorSpec
from workers.wire import WireTensor

REPEAT = int(os.environ.get("ADVERSITY_REPEAT", "1"))
NAME = b"0198f3c2-0000-7000-8000-000000000000"
MAX_ROWS = 8

# -- what is served -------------------------------------------------------------------


def entry(handle: int, *inputs: TensorSpec, rows: int, version: int = 1) -> Any:
    outputs = (TensorSpec("y", "FP32", (3,)), TensorSpec("z", "INT64", ()))
    made = make_entry(handle, version=version, levels=3)
    policy = BatchPolicy(max_rows=rows, max_bytes=1 << 20)
    spec = ModelSpec(inputs, outputs, rows)
    return replace(made, spec=spec, batching=policy, state=State.READY)


def served() -> Catalogue:
    """Return models of one input per datatype, and some of several inputs."""
    models: dict[str, list[VersionEntry]] = {}
    for datatype in DATATYPES:
        spec = TensorSpec("x", datatype, (2,))
        models[datatype.lower()] = [entry(len(models) + 1, spec, rows=MAX_ROWS)]
    several = (
        TensorSpec("x", "INT64", (2,)),
        TensorSpec("v", "FP32", (-1,)),
        TensorSpec("maybe", "FP32", (1,), optional=True),
    )
    models["several"] = [
        entry(101, *several, rows=MAX_ROWS),
        entry(102, *several[:2], rows=MAX_ROWS, version=2),
    ]
    models["whole"] = [entry(103, TensorSpec("x", "FP32", (-1, 2)), rows=0)]
    models["m\u00f6del"] = [entry(104, TensorSpec("x", "FP32", (2,)), rows=MAX_ROWS)]
    return Catalogue(
        revision=1,
        ready=True,
        models={
            name: ModelEntry(name, {version.version: version for version in versions})
            for name, versions in models.items()
        },
    )


CATALOGUE = served()


class NoHeaders:
    """A call that brings no metadata."""

    def metadata(self, key: str) -> str | None:
        """Return a request header."""
        return None


NO_HEADERS = NoHeaders()


class Service:
    """An inference service without workers: requests are admitted, and looked at."""

    def __init__(self, *, forgetful: bool) -> None:
        self.forgetful = forgetful
        self.loop = FakeLoop()
        self.state = FrontState()
        self.state.swap(CATALOGUE)
        self.admission = Admission(1 << 30, 25)
        dispatcher = Dispatcher(
            self.loop,  # type: ignore[arg-type]
            self.loop.now_ns,
            self.admission,
            max_attempts=1,
            pushback_ms=25,
        )
        self.service = InferService(
            self.state,
            dispatcher,
            self.admission,
            now_ns=self.loop.now_ns,
            default_timeout_ns=10**10,
            max_stream_inflight=16,
            max_stream_bytes=1 << 20,
            sink=MemorySink(16),
            shadows=Shadows(
                self.loop,  # type: ignore[arg-type]
                dispatcher,
                self.admission,
                MemorySink(16),
                now_ns=self.loop.now_ns,
                max_bytes=1 << 30,
            ),
        )
        self.remembered = 0

    def serve(self, message: bytes) -> Any:
        """Return all that decides how a request is served, and its reply."""
        if self.forgetful:
            self.service._plans.clear()
            self.service._layouts.clear()
        before = self.service._new_plan
        misses: list[bytes] = []
        self.service._new_plan = (  # type: ignore[method-assign]
            lambda message, *rest: misses.append(message) or before(message, *rest)
        )
        try:
            exchange = self.service.begin(UnaryExchange, message, 0, NO_HEADERS)
        except GatewayError as error:
            return type(error), error.code, error.message
        finally:
            self.service._new_plan = before  # type: ignore[method-assign]
        self.remembered += not misses
        plan = exchange.plan
        seen = (
            plan.queue.entry.handle,
            exchange.rows,
            [(index, dims, bytes(raw)) for index, dims, raw in exchange.inputs],
            exchange.shape_key,
            exchange.nbytes,
            exchange.level,
            exchange.expires_ns,
            reply(exchange),
        )
        exchange.cancel()
        self.loop.turn()
        assert self.admission.inflight_requests == 0
        assert self.admission.inflight_bytes == 0
        return seen


def reply(exchange: UnaryExchange) -> Any:
    """Return the parsed reply that the request would get."""
    spec = exchange.plan.queue.spec
    rows = exchange.rows
    dims = (rows,) if spec.max_batch_rows else ()
    tensors = [
        WireTensor(0, (*dims, 3), (bytes(range(12)) * rows,)),
        WireTensor(1, dims or (1,), (bytes(range(8)) * rows,)),
    ]
    batch = BatchRows(spec, tensors, rows)
    parts, size = exchange.plan.reply(batch, 0, exchange.id_field, NAME)
    message = b"".join(parts)
    assert len(message) == size
    parsed = pb.ModelInferResponse.FromString(message)
    return parsed.SerializeToString(deterministic=True)


# -- what is sent --------------------------------------------------------------------


def varint(value: int, order: random.Random | None = None) -> bytes:
    """Encode a number; now and then in more bytes than it needs."""
    encoded = bytearray()
    while value > 127:
        encoded.append(value & 127 | 128)
        value >>= 7
    encoded.append(value)
    if order is not None and order.random() < 0.1:
        for _ in range(order.randint(1, 4)):
            encoded[-1] |= 128
            encoded.append(0)
    return bytes(encoded)


def written(number: int, value: bytes, order: random.Random | None = None) -> bytes:
    tag = varint(number << 3 | 2, order)
    return tag + varint(len(value), order) + value


def tensor(order: random.Random, datatype: str, count: int) -> bytes:
    """Return raw bytes for so many elements, mostly of the right size."""
    if order.random() < 0.05:
        count += order.choice((-1, 1))
    if datatype == "BYTES":
        words = [order.randbytes(order.randint(0, 3)) for _ in range(max(0, count))]
        if order.random() < 0.8:
            words = [b"w\xc3\xb6rd"[: order.choice((0, 1, 3, 5))] for _ in words]
        return b"".join(len(word).to_bytes(4, "little") + word for word in words)
    size = DATATYPES[datatype].size * max(0, count)
    if datatype == "BOOL" and order.random() < 0.9:
        return bytes(order.choices((0, 1), k=size))
    return order.randbytes(size)


class Form:
    """A client that repeats itself: all but ids and tensor bytes stays."""

    def __init__(self, order: random.Random) -> None:
        name = order.choice([*CATALOGUE.models, "several", "several", "unknown"])
        self.order = order
        self.parts: list[tuple[int, bytes]] = [(1, name.encode())]
        self.id_bytes = order.choice((None, 0, 1, 36, 127, 128, 200))
        self.raws: list[tuple[str, int]] = []
        self.contents = order.random() < 0.1
        self.fields(name)
        if order.random() < 0.15:
            order.shuffle(self.parts)
        if order.random() < 0.1:
            self.parts.append(order.choice(self.parts))
        self.long = order if order.random() < 0.2 else None
        self.unknown = order.random() < 0.1
        self.scrambled = order.random() < 0.1

    def fields(self, name: str) -> None:
        order = self.order
        model = CATALOGUE.models.get(name)
        if order.random() < 0.3:
            self.parts.append((2, order.choice((b"1", b"2", b"", b"x", b"01"))))
        request = pb.ModelInferRequest()
        if order.random() < 0.3:
            request.parameters["priority"].int64_param = order.choice((-1, 0, 1, 2, 9))
        if order.random() < 0.2:
            request.parameters["timeout"].int64_param = order.choice((0, 5, 10**6))
        if order.random() < 0.1:
            request.parameters["mine"].string_param = "any"
        if order.random() < 0.05:
            request.parameters["triton_x"].bool_param = True
        self.inputs(request, name, model)
        if order.random() < 0.2:
            for output in order.sample(["y", "z", "z", "none"], order.randint(1, 3)):
                request.outputs.add(name=output)
        for key in ("parameters", "inputs", "outputs"):
            found = pb.ModelInferRequest()
            found.CopyFrom(request)
            for other in {"parameters", "inputs", "outputs"} - {key}:
                found.ClearField(other)
            self.parts += fields_of(found.SerializeToString())

    def inputs(
        self, request: pb.ModelInferRequest, name: str, model: ModelEntry | None
    ) -> None:
        order = self.order
        rows = order.randint(1, MAX_ROWS + (order.random() < 0.1))
        versions = model.versions if model else {}
        inputs = list(versions[1].spec.inputs) if versions else []  # type: ignore
        order.shuffle(inputs)
        for spec in inputs:
            if order.random() < (0.5 if spec.optional else 0.03):
                continue
            dims = [rows, *spec.dims] if name != "whole" else list(spec.dims)
            dims = [order.randint(0, 3) if size < 0 else size for size in dims]
            sent = request.inputs.add(
                name=spec.name, datatype=spec.datatype, shape=dims
            )
            count = 1
            for size in dims:
                count *= size
            field = DATATYPES[spec.datatype].contents_field
            if self.contents and field and field != "bytes_contents":
                getattr(sent.contents, field).extend([1] * count)
            else:
                self.raws.append((spec.datatype, count))

    def message(self) -> bytes:
        """Return the next request."""
        order, long = self.order, self.long
        parts = list(self.parts)
        if self.id_bytes is not None:
            place = order.randint(0, len(parts)) if self.scrambled else 1
            parts.insert(place, (3, self.identity()))
        raws = [(7, tensor(order, *raw)) for raw in self.raws]
        sent = [written(number, value, long) for number, value in parts + raws]
        if self.unknown:
            extra = order.choice(
                (b"\x7a\x01x", b"\x78\x05", b"\x85\x01abcd", b"\x1d\0\0")
            )
            sent.insert(order.randint(0, len(sent)), extra)
        if self.scrambled:
            order.shuffle(sent)
        return b"".join(sent)

    def identity(self) -> bytes:
        order, size = self.order, self.id_bytes or 0
        kind = order.random()
        if kind < 0.1:
            return order.randbytes(size)
        if kind < 0.2:
            return ("\u00e4" * size).encode()[:size]
        if kind < 0.25:
            size = order.randint(0, 40)
        return bytes(order.choices(b"0123456789abcdef-:/\x1a\x3a", k=size))


def fields_of(message: bytes) -> list[tuple[int, bytes]]:
    """Split a message of length-delimited fields, in the order they are written."""
    found, at = [], 0
    while at < len(message):
        number, at = message[at] >> 3, at + 1
        size = shift = 0
        while True:
            byte = message[at]
            at += 1
            size |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                break
        found.append((number, message[at : at + size]))
        at += size
    return found


def mutated(message: bytes, order: random.Random) -> bytes:
    bent = bytearray(message)
    for _ in range(order.randint(1, 3)):
        if not bent:
            break
        at = order.randrange(len(bent))
        kind = order.randrange(4)
        if kind == 0:
            bent[at] = order.randrange(256)
        elif kind == 1:
            bent[at] ^= 1 << order.randrange(8)
        elif kind == 2:
            del bent[at]
        else:
            bent.insert(at, order.choice((0x0A, 0x1A, 0x3A, 0x00, 0x80, 0x01)))
    return bytes(bent)


@pytest.mark.parametrize("seed", range(12))
def test_what_is_remembered_is_what_protobuf_says(seed: int) -> None:
    order = random.Random(seed)
    clever, oracle = Service(forgetful=False), Service(forgetful=True)
    admitted = 0
    for _ in range(200 * REPEAT):
        form = Form(order)
        for _ in range(5):
            message = form.message()
            expected = oracle.serve(message)
            assert clever.serve(message) == expected, message
            admitted += isinstance(expected[0], int)
            bent = mutated(message, order)
            assert clever.serve(bent) == oracle.serve(bent), bent
    assert admitted > 200
    assert clever.remembered > admitted // 4
    assert oracle.remembered == 0


def test_every_byte_of_a_remembered_request_counts() -> None:
    """Each byte in each of some values: no other request gets this one's plan."""
    request = pb.ModelInferRequest(model_name="fp32", id="client-7")
    request.inputs.add(name="x", datatype="FP32", shape=[1, 2])
    request.raw_input_contents.append(bytes(range(8)))
    message = request.SerializeToString()
    start = message.index(b"\x1a\x08client-7")
    message = message[:start] + message[start + 10 :]
    message = b"\n\x04fp32" + b"\x1a\x08client-7" + message[6:]
    clever, oracle = Service(forgetful=False), Service(forgetful=True)
    for _ in range(3):
        assert clever.serve(message) == oracle.serve(message)
    assert clever.service._layouts, "the shortest way was not taken"
    for at in range(len(message)):
        for value in {0, 1, 0x0A, 0x1A, 0x3A, 0x7F, 0x80, 0xFF, message[at] ^ 1}:
            bent = message[:at] + bytes((value,)) + message[at + 1 :]
            assert clever.serve(bent) == oracle.serve(bent), (at, value)
    assert clever.serve(message) == oracle.serve(message)


def test_what_is_remembered_is_bounded_and_forgotten_with_the_catalogue() -> None:
    clever = Service(forgetful=False)
    for number in range(_MAX_PLANS + 500):
        request = pb.ModelInferRequest(model_name="fp32", id="x" * (number % 1500))
        request.parameters["mine"].string_param = str(number)
        request.inputs.add(name="x", datatype="FP32", shape=[1, 2])
        request.raw_input_contents.append(bytes(8))
        message = request.SerializeToString()
        clever.serve(message)
        clever.serve(message)
    assert 0 < len(clever.service._plans) <= _MAX_PLANS
    assert 0 < len(clever.service._layouts) <= _MAX_PLANS
    moved = dict(CATALOGUE.models)
    moved["fp32"] = ModelEntry("fp32", {})
    clever.state.swap(replace(CATALOGUE, revision=2, models=moved))
    assert isinstance(clever.serve(message)[0], type), "served by a model that is gone"

"""Requests gone wrong: valid ones, changed as bytes and as messages. Seeded, pure."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np

from featurizer.datatypes import DATATYPES
from featurizer.encode import encode_bytes_elements
from gateway.protocol import inference_pb2 as pb
from tests.protocol.served import floats, infer_request, sample

MODELS = {
    "numbers": {1, 2},
    "texts": {1},
    "small": {1},
    "pair": {1},
    "free": {1},
    "fixed": {1},
    "weighted": {1},
}
"""Models that the fuzzed gateway serves, and their versions."""

DIMS = [0, 1, 2, 3, 4, 5, 63, 64, 65, -1, -2, 2**20, 2**31, 2**32, 2**62, 2**63 - 1]
DIMS += [-(2**31), -(2**63)]
NAMES = [
    "x",
    "y",
    "a",
    "b",
    "w",
    "sum",
    "total",
    "",
    "X",
    "x\0",
    "\N{SNOWMAN}",
    "n" * 3000,
]
VERSIONS = ["", "1", "2", "3", "0", "-1", "01", "one", "9" * 30, "1\0", "\u0661"]
PARAMETERS = ["priority", "timeout", "sequence_id", "sequence_start", "sequence_end"]
PARAMETERS += ["triton_enable_empty_final_response", "triton_x", "headers", "own", ""]
FIELDS = [field.name for field in pb.InferTensorContents.DESCRIPTOR.fields]


def valid_requests() -> list[pb.ModelInferRequest]:
    """Return requests that succeed, of every shape there is."""
    rows = np.arange(6, dtype=np.float32).reshape(2, 3)
    requests = [
        floats("numbers", [[1, 2]], id="1"),
        floats("numbers", np.ones((3, 2)), version="1", outputs=["y"]),
        floats("free", np.ones((4, 5)), id="free", own="value", weight=1.5),
        floats("fixed", np.ones((3, 4)), priority=1, timeout=5_000_000),
        floats("weighted", [1, 2, 3], sequence_id=7, sequence_start=True),
        infer_request(
            "pair", {"a": ("FP32", rows), "b": ("FP32", rows)}, outputs=["total", "sum"]
        ),
        infer_request("texts", {"x": ("BYTES", sample("BYTES", (2, 5)))}, id="t"),
        infer_request("small", {"x": ("INT8", sample("INT8", (4, 2)))}),
    ]
    typed = pb.ModelInferRequest(model_name="small", id="typed")
    sent = typed.inputs.add(name="x", datatype="INT8", shape=[1, 2])
    sent.contents.int_contents.extend([-1, 300])
    requests.append(typed)
    typed = pb.ModelInferRequest(model_name="texts")
    sent = typed.inputs.add(name="x", datatype="BYTES", shape=[1, 3])
    sent.contents.bytes_contents.extend([b"a", b"", b"c\0"])
    requests.append(typed)
    return requests


class Mutator:
    """Makes mutated requests, the same ones for the same seed."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self._messages = valid_requests()
        self._raw = [message.SerializeToString() for message in self._messages]
        self._of_bytes = [
            self._flip,
            self._cut,
            self._insert,
            self._splice,
            self._repeat,
        ]
        self._of_message: list[Callable[[Any], None]] = [
            self._shape,
            self._datatype,
            self._names,
            self._inputs,
            self._contents,
            self._raw_entries,
            self._strings,
            self._parameter,
            self._version,
            self._outputs,
        ]

    def next(self) -> bytes:
        """Return the next mutated request."""
        random = self._random
        if random.random() < 0.5:
            raw = bytearray(random.choice(self._raw))
            for _ in range(random.choice((1, 1, 2, 4))):
                raw = random.choice(self._of_bytes)(raw)
            return bytes(raw)
        message = pb.ModelInferRequest()
        message.CopyFrom(random.choice(self._messages))
        for _ in range(random.choice((1, 1, 2, 3))):
            random.choice(self._of_message)(message)
        raw = message.SerializeToString()
        if random.random() < 0.1:
            raw = bytes(random.choice(self._of_bytes)(bytearray(raw)))
        return raw

    # -- as bytes ---------------------------------------------------------------

    def _at(self, raw: bytearray) -> int:
        return self._random.randrange(len(raw) + 1)

    def _flip(self, raw: bytearray) -> bytearray:
        if raw:
            position = self._random.randrange(len(raw))
            raw[position] ^= self._random.choice((1, 2, 4, 8, 16, 32, 64, 128, 255))
        return raw

    def _cut(self, raw: bytearray) -> bytearray:
        start = self._at(raw)
        if self._random.random() < 0.5:
            return raw[:start]
        return raw[:start] + raw[start + self._random.randrange(1, 9) :]

    def _insert(self, raw: bytearray) -> bytearray:
        start = self._at(raw)
        added = self._random.randbytes(self._random.choice((1, 1, 2, 4, 16)))
        return raw[:start] + added + raw[start:]

    def _splice(self, raw: bytearray) -> bytearray:
        other = bytearray(self._random.choice(self._raw))
        return raw[: self._at(raw)] + other[self._at(other) :]

    def _repeat(self, raw: bytearray) -> bytearray:
        start, end = sorted((self._at(raw), self._at(raw)))
        return raw[:end] + raw[start:end] * self._random.choice((1, 2, 50)) + raw[end:]

    # -- as messages ------------------------------------------------------------

    def _input(self, message: Any) -> Any:
        if not message.inputs:
            return message.inputs.add(name="x", datatype="FP32", shape=[1, 2])
        return self._random.choice(message.inputs)

    def _shape(self, message: Any) -> None:
        random, shape = self._random, self._input(message).shape
        kind = random.randrange(4)
        if kind == 0 and shape:
            shape[random.randrange(len(shape))] = random.choice(DIMS)
        elif kind == 1:
            shape.append(random.choice(DIMS))
        elif kind == 2 and shape:
            del shape[random.randrange(len(shape))]
        else:
            shape[:] = random.choices(DIMS, k=random.choice((0, 1, 2, 3, 8, 9, 200)))

    def _datatype(self, message: Any) -> None:
        names = [*DATATYPES, "", "fp32", "TYPE_FP32", "FP8", "FP32\0"]
        self._input(message).datatype = self._random.choice(names)

    def _names(self, message: Any) -> None:
        random = self._random
        if random.random() < 0.3:
            message.model_name = random.choice([*MODELS, *NAMES])
        elif random.random() < 0.3:
            message.id = random.choice([*NAMES, "i" * 100_000])
        else:
            self._input(message).name = random.choice(NAMES)

    def _inputs(self, message: Any) -> None:
        random = self._random
        kind = random.randrange(4)
        if kind == 0 and message.inputs:
            del message.inputs[random.randrange(len(message.inputs))]
        elif kind == 1:
            message.inputs.add().CopyFrom(self._input(message))
        elif kind == 2:
            other = random.choice(self._messages)
            message.inputs.add().CopyFrom(random.choice(other.inputs))
        else:
            parameter = self._input(message).parameters["shared_memory_region"]
            parameter.string_param = "region"

    def _contents(self, message: Any) -> None:
        random, contents = self._random, self._input(message).contents
        contents.SetInParent()
        field = random.choice(FIELDS)
        value: Any = random.choice((0, 1))
        if field == "bytes_contents":
            value = random.choice((b"", b"text", b"\xff", b"\xed\xa0\x80"))
        getattr(contents, field).extend([value] * random.choice((0, 1, 2, 3, 12, 1000)))
        if random.random() < 0.6:
            del message.raw_input_contents[:]

    def _raw_entries(self, message: Any) -> None:
        random, entries = self._random, message.raw_input_contents
        kind = random.randrange(4)
        if kind == 0 and entries:
            del entries[random.randrange(len(entries))]
        elif kind == 1:
            size = random.choice((0, 1, 4, 7, 8, 9, 48, 512, 100_000))
            entries.append(random.randbytes(size))
        elif kind == 2 and entries:
            number = random.randrange(len(entries))
            entries[number] = entries[number][: random.randrange(40)]
        elif entries:
            number = random.randrange(len(entries))
            entries[number] = random.randbytes(len(entries[number]))

    def _strings(self, message: Any) -> None:
        random = self._random
        elements = [random.randbytes(random.randrange(6)) for _ in range(10)]
        raw = bytearray(encode_bytes_elements(elements))
        if random.random() < 0.7:
            raw[random.randrange(len(raw))] = random.choice((0, 1, 127, 128, 255))
        message.raw_input_contents[:] = [bytes(raw)]

    def _parameter(self, message: Any) -> None:
        random = self._random
        parameter = message.parameters[random.choice(PARAMETERS)]
        match random.randrange(6):
            case 0:
                parameter.bool_param = True
            case 1:
                parameter.int64_param = random.choice((-1, 0, 1, 2**40, -(2**63)))
            case 2:
                parameter.string_param = random.choice(("", "1", "x" * 1000))
            case 3:
                parameter.double_param = random.choice((0.0, float("nan"), -1e308))
            case 4:
                parameter.uint64_param = random.choice((0, 1, 2**64 - 1))

    def _version(self, message: Any) -> None:
        message.model_version = self._random.choice(VERSIONS)

    def _outputs(self, message: Any) -> None:
        random = self._random
        for _ in range(random.choice((1, 2, 50))):
            output = message.outputs.add(name=random.choice(NAMES))
            if random.random() < 0.2:
                output.parameters["classification"].int64_param = 2

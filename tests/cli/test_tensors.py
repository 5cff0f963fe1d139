"""JSON to tensors and back, for every datatype."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from featurizer.datatypes import DATATYPES
from featurizer.encode import decode_array
from gateway.call import TensorError, build_request, read_payload, response_values
from gateway.protocol import inference_pb2 as pb

INTEGERS = [name for name in DATATYPES if "INT" in name]


def metadata(*inputs: tuple[str, str, tuple[int, ...]]) -> Any:
    response = pb.ModelMetadataResponse(name="m")
    for name, datatype, shape in inputs:
        response.inputs.add(name=name, datatype=datatype, shape=shape)
    return response


def echoed(datatype: str, shape: tuple[int, ...], value: object) -> Any:
    """Send a value as input and read it back from an equal output."""
    request = build_request(metadata(("x", datatype, shape)), {"x": value})
    (tensor,) = request.inputs
    response = pb.ModelInferResponse(raw_output_contents=request.raw_input_contents)
    response.outputs.add(name="x", datatype=datatype, shape=tensor.shape)
    outputs = response_values(response)["outputs"]
    assert isinstance(outputs, dict)
    json.dumps(outputs, allow_nan=False)
    return outputs["x"]


@pytest.mark.parametrize(
    ("datatype", "value"),
    [
        ("BOOL", [[True, False]]),
        *((name, [[0, 1], [2, 100]]) for name in INTEGERS),
        *((name, [[0.5, -2.0]]) for name in ("FP16", "FP32", "FP64", "BF16")),
        *((name, [["NaN", "-Infinity"]]) for name in ("FP16", "FP32", "FP64", "BF16")),
        ("BYTES", [["é", "\x00"], ["", {"b64": "/w=="}]]),
    ],
)
def test_every_datatype_comes_back_as_it_went(datatype: str, value: object) -> None:
    assert echoed(datatype, (-1, 2), value) == value


@pytest.mark.parametrize("datatype", INTEGERS)
def test_integers_are_exact_to_their_limits(datatype: str) -> None:
    limits = np.iinfo(DATATYPES[datatype].numpy.name)
    value = [int(limits.min), int(limits.max)]
    assert echoed(datatype, (-1,), value) == value
    with pytest.raises(TensorError, match=r"x\[0\]: \d+ is outside"):
        echoed(datatype, (-1,), [int(limits.max) + 1])


def test_floats_print_as_short_as_they_can() -> None:
    assert echoed("FP32", (1,), [0.1]) == [0.1]
    assert echoed("FP16", (1,), [0.1]) == [0.1]


@given(st.floats(width=32, allow_nan=False, allow_infinity=False))
def test_bf16_rounds_to_nearest_even(value: float) -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes")
    model = metadata(("x", "BF16", (1,)))
    with np.errstate(over="ignore"):
        expected = np.array([value], dtype=np.float32).astype(ml_dtypes.bfloat16)
    if np.isinf(expected.astype(np.float32)).any():
        with pytest.raises(TensorError, match="too large for BF16"):
            build_request(model, [value])
        return
    (raw,) = build_request(model, [value]).raw_input_contents
    assert raw == expected.tobytes()


@pytest.mark.parametrize(
    ("shape", "value", "found"),
    [
        ((), 1, ()),
        ((-1, 2), [[1, 2], [3, 4]], (2, 2)),
        ((-1, 4), [], (0, 4)),
        ((-1, -1), [[], []], (2, 0)),
        ((-1, 3, -1), [], (0, 3, 0)),
    ],
)
def test_shapes_are_found(shape: Any, value: object, found: Any) -> None:
    request = build_request(metadata(("x", "FP32", shape)), {"x": value})
    assert tuple(request.inputs[0].shape) == found
    decode_array(request.raw_input_contents[0], "FP32", found)


def test_a_single_input_may_be_bare_and_several_may_not() -> None:
    single = metadata(("x", "INT64", (-1,)))
    assert build_request(single, [1]) == build_request(single, {"x": [1]})
    with pytest.raises(TensorError, match=r"2 inputs: .* x \(INT64 \[-1\]\), y"):
        build_request(metadata(("x", "INT64", (-1,)), ("y", "BYTES", (1,))), [1])


def test_inputs_left_out_are_left_to_the_server() -> None:
    model = metadata(("x", "INT64", (-1,)), ("y", "BYTES", (1,)))
    request = build_request(model, {"y": ["a"]}, version="7")
    assert [tensor.name for tensor in request.inputs] == ["y"]
    assert (request.model_name, request.model_version) == ("m", "7")


@pytest.mark.parametrize(
    ("datatype", "shape", "value", "message"),
    [
        ("FP32", (-1, 2), 1, "x: one element where a list of shape [-1, 2]"),
        ("FP32", (-1, 2), [1, 2], "x[0]: one element where a list of shape [2]"),
        ("FP32", (-1, 2), [[1, 2], [3]], "x[1]: 1 elements where 2 were expected"),
        ("FP32", (-1, -1), [[1], [1, 2]], "x[1]: shape [2] where the ones before"),
        ("FP32", (1,), [[1]], "x[0]: a list where one element was expected"),
        ("FP32", (-1, 2), [[1, "a"]], 'x[0][1]: "a" is not a number'),
        ("FP32", (1,), [True], "x[0]: true is not a number"),
        ("FP32", (2,), [1, 1e39], "x[1]: 1e+39 is too large for FP32"),
        ("FP64", (1,), [10**400], "x[0]: the number is too large for FP64"),
        ("FP16", (), 70000, "x: 70000 is too large for FP16"),
        ("INT64", (1,), [1.5], "x[0]: 1.5 is not a whole number"),
        ("INT64", (1,), [None], "x[0]: null is not a whole number"),
        ("BOOL", (1,), [1], "x[0]: 1 is not true or false"),
        ("BYTES", (1,), [1], "x[0]: 1 is not a string"),
        ("BYTES", (1,), [{"b64": "?"}], 'x[0]: "?" is not base64'),
        ("BYTES", (1,), [{"b64": 1}], "x[0]: 1 is not base64"),
        ("BYTES", (1,), ["\ud800"], "x[0]: 'utf-8' codec can't encode"),
        ("FP8", (1,), [1], "x: unknown datatype FP8"),
    ],
)
def test_what_does_not_fit_is_named(
    datatype: str, shape: Any, value: object, message: str
) -> None:
    with pytest.raises(TensorError) as caught:
        build_request(metadata(("x", datatype, shape)), {"x": value})
    assert str(caught.value).startswith(message)


def test_an_unknown_input_is_named_with_those_there_are() -> None:
    with pytest.raises(TensorError, match=r"no input 'z': .* takes x \(FP32 \[-1\]\)"):
        build_request(metadata(("x", "FP32", (-1,))), {"z": [1]})


def test_answers_that_break_the_protocol_are_refused() -> None:
    response = pb.ModelInferResponse()
    response.outputs.add(name="y", datatype="FP32", shape=[2])
    with pytest.raises(TensorError, match="without raw contents"):
        response_values(response)
    response.raw_output_contents.append(b"1234")
    with pytest.raises(TensorError, match="y: 4 bytes where 8 were expected"):
        response_values(response)
    response.outputs[0].datatype = "FP8"
    with pytest.raises(TensorError, match="y: unknown datatype FP8"):
        response_values(response)


def test_payloads_are_literal_or_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "in.json"
    path.write_text("[1]")
    assert read_payload("[1]") == read_payload(f"@{path}") == [1]
    path.write_bytes(b"\xff")
    for source, message in [
        ("{", "--json is not JSON: .* (a file is @FILE"),
        (f"@{path}", "in.json is not JSON: .*decode"),
        (f"@{tmp_path}/none", "none: No such file"),
        ("[" * 100_000, "nested too deeply"),
    ]:
        with pytest.raises(TensorError, match=message.replace("(", r"\(")):
            read_payload(source)

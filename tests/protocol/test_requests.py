"""Requests are checked by the protocol's rules, in its order."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from featurizer.datatypes import DATATYPES
from featurizer.encode import (
    EncodingError,
    decode_array,
    decode_bytes_elements,
    encode_array,
    encode_bytes_elements,
)
from gateway.errors import InvalidRequest
from gateway.protocol.inference_pb2 import InferParameter, ModelInferRequest
from gateway.serving import requests
from gateway.serving.requests import (
    MAX_STRING_ELEMENTS,
    CheckedInputs,
    check_inputs,
    parse,
    read_parameters,
    requested_outputs,
)
from workers.spec import ModelSpec, TensorSpec
from workers.wire import MAX_RANK

TYPED = [name for name, entry in DATATYPES.items() if entry.contents_field]
UNTYPED = [name for name, entry in DATATYPES.items() if not entry.contents_field]
FIXED_SIZE = [name for name in DATATYPES if name != "BYTES"]


def tensor(
    name: str = "x",
    datatype: str = "FP32",
    dims: tuple[int, ...] = (2,),
    *,
    optional: bool = False,
) -> TensorSpec:
    return TensorSpec(name, datatype, dims, optional)


def spec(
    *inputs: TensorSpec, rows: int = 8, outputs: tuple[str, ...] = ()
) -> ModelSpec:
    return ModelSpec(inputs, tuple(tensor(name) for name in outputs), rows)


def request(*inputs: dict[str, Any], raw: list[bytes] | None = None) -> Any:
    """Build a request to model ``m``; an input's ``contents`` maps field to values."""
    message = ModelInferRequest(model_name="m")
    for given_input in inputs:
        fields = {"name": "x", "datatype": "FP32", **given_input}
        contents = fields.pop("contents", None)
        parameters = fields.pop("parameters", {})
        sent = message.inputs.add(**fields)
        for key, value in parameters.items():
            sent.parameters[key].string_param = value
        if contents is not None:
            sent.contents.SetInParent()
            for field, values in contents.items():
                getattr(sent.contents, field).extend(values)
    message.raw_input_contents.extend(raw or [])
    return message


def refusal(message: ModelInferRequest, model: ModelSpec) -> str:
    """Return why the request is refused."""
    with pytest.raises(InvalidRequest) as caught:
        check_inputs(message, model)
    return caught.value.message


def only(checked: CheckedInputs) -> bytes:
    """Return the raw bytes of the one input."""
    ((index, _, raw),) = checked.tensors
    assert index == 0
    return bytes(raw)


# -- parsing ------------------------------------------------------------------


def test_bytes_that_are_no_message_are_an_invalid_request() -> None:
    with pytest.raises(InvalidRequest, match="not a valid ModelInferRequest"):
        parse(b"\xff\xff\xff")


@given(st.binary(max_size=200))
def test_parsing_any_bytes_gives_a_request_or_an_invalid_request(data: bytes) -> None:
    try:
        message = parse(data)
    except InvalidRequest:
        return
    assert isinstance(message, ModelInferRequest)


def test_names_that_are_not_utf8_are_an_invalid_request() -> None:
    with pytest.raises(InvalidRequest):
        parse(b"\x0a\x02\xff\xfe")


# -- where the data is (section 3, rules 1 to 5) ------------------------------


def test_shared_memory_together_with_contents_is_refused() -> None:
    message = request(
        {
            "shape": [1, 2],
            "contents": {"fp32_contents": [1, 2]},
            "parameters": {"shared_memory_region": "r"},
        }
    )
    assert "unexpected 'contents'" in refusal(message, spec(tensor()))


def test_shared_memory_alone_is_refused_as_unsupported_by_name() -> None:
    message = request({"shape": [1, 2], "parameters": {"shared_memory_region": "r"}})
    text = refusal(message, spec(tensor()))
    assert "shared memory is not supported" in text
    assert "'x'" in text
    assert "'m'" in text


@pytest.mark.parametrize("contents", [{"fp32_contents": [1.0, 2.0]}, {}])
def test_contents_beside_raw_contents_are_refused(contents: dict[str, Any]) -> None:
    message = request({"shape": [1, 2], "contents": contents}, raw=[b"\0" * 8])
    text = refusal(message, spec(tensor()))
    assert "contents field must not be specified when using raw_input_contents" in text
    assert "'x'" in text


def test_contents_on_a_later_input_are_refused_too() -> None:
    message = request(
        {"name": "a", "shape": [1, 2]},
        {"name": "b", "shape": [1, 2], "contents": {"fp32_contents": [1, 2]}},
        raw=[b"\0" * 8],
    )
    assert "'b'" in refusal(message, spec(tensor("a"), tensor("b")))


def test_an_input_without_any_data_is_named() -> None:
    text = refusal(request({"shape": [1, 2]}), spec(tensor()))
    assert text == "unable to find data for input tensor 'x' for model 'm' in request."


def test_raw_entries_belong_to_inputs_in_the_order_of_the_request() -> None:
    model = spec(tensor("a"), tensor("b"))
    first, second = struct.pack("<2f", 1, 2), struct.pack("<2f", 3, 4)
    message = request(
        {"name": "b", "shape": [1, 2]},
        {"name": "a", "shape": [1, 2]},
        raw=[second, first],
    )
    checked = check_inputs(message, model)
    assert [(index, bytes(raw)) for index, _, raw in checked.tensors] == [
        (0, first),
        (1, second),
    ]
    assert checked.nbytes == 16


def test_a_raw_entry_that_no_input_takes_is_refused() -> None:
    message = request({"shape": [1, 2]}, raw=[b"\0" * 8, b"\0" * 8])
    assert "2 raw_input_contents for 1 inputs" in refusal(message, spec(tensor()))


def test_too_few_raw_entries_name_the_input_without() -> None:
    message = request(
        {"name": "a", "shape": [1, 2]}, {"name": "b", "shape": [1, 2]}, raw=[b"\0" * 8]
    )
    text = refusal(message, spec(tensor("a"), tensor("b")))
    assert "unable to find data for input tensor 'b'" in text


# -- typed contents -----------------------------------------------------------


@pytest.mark.parametrize("datatype", TYPED)
def test_typed_contents_become_the_raw_form(datatype: str) -> None:
    entry = DATATYPES[datatype]
    values: list[Any] = [b"a\0b", b""] if datatype == "BYTES" else [0, 1]
    message = request(
        {
            "datatype": datatype,
            "shape": [1, 2],
            "contents": {str(entry.contents_field): values},
        }
    )
    raw = only(check_inputs(message, spec(tensor(datatype=datatype))))
    array = np.empty(2, entry.numpy)
    array[:] = values
    assert raw == encode_array(array, datatype)


@pytest.mark.parametrize("datatype", UNTYPED)
@pytest.mark.parametrize("field", ["fp32_contents", "uint_contents", "bytes_contents"])
def test_half_precision_has_no_typed_contents(datatype: str, field: str) -> None:
    value: Any = b"ab" if field == "bytes_contents" else 1
    message = request(
        {"datatype": datatype, "shape": [1, 1], "contents": {field: [value]}}
    )
    text = refusal(message, spec(tensor(datatype=datatype, dims=(1,))))
    assert "has no typed contents" in text
    assert "'x'" in text


@pytest.mark.parametrize("datatype", TYPED)
def test_typed_contents_in_the_field_of_another_type_are_refused(datatype: str) -> None:
    right = DATATYPES[datatype].contents_field
    fields = {DATATYPES[name].contents_field for name in TYPED} - {right}
    for wrong in sorted(str(field) for field in fields):
        value: Any = b"1" if wrong == "bytes_contents" else 1
        message = request(
            {"datatype": datatype, "shape": [1, 1], "contents": {wrong: [value]}}
        )
        text = refusal(message, spec(tensor(datatype=datatype, dims=(1,))))
        assert f"'{right}' alone" in text
        assert "'x'" in text


def test_two_filled_typed_fields_are_refused() -> None:
    contents = {"fp32_contents": [1, 2], "int_contents": [1, 2]}
    message = request({"shape": [1, 2], "contents": contents})
    assert "alone" in refusal(message, spec(tensor()))


@pytest.mark.parametrize(
    ("datatype", "values", "low_bytes"),
    [
        ("INT8", [-1, 127, 128, 255, 256, -129], [-1, 127, -128, -1, 0, 127]),
        ("INT16", [-1, 32768, 65535, 65536], [-1, -32768, -1, 0]),
        ("UINT8", [255, 256, 0xFFFFFFFF], [255, 0, 255]),
        ("UINT16", [65535, 65536, 0xFFFFFFFF], [65535, 0, 65535]),
        ("INT32", [-(2**31), 2**31 - 1], [-(2**31), 2**31 - 1]),
        ("UINT32", [2**32 - 1], [2**32 - 1]),
        ("INT64", [-(2**63), 2**63 - 1], [-(2**63), 2**63 - 1]),
        ("UINT64", [2**64 - 1], [2**64 - 1]),
    ],
)
def test_small_integers_are_the_low_bytes_of_the_typed_element(
    datatype: str, values: list[int], low_bytes: list[int]
) -> None:
    entry = DATATYPES[datatype]
    message = request(
        {
            "datatype": datatype,
            "shape": [1, len(values)],
            "contents": {str(entry.contents_field): values},
        }
    )
    model = spec(tensor(datatype=datatype, dims=(len(values),)))
    raw = only(check_inputs(message, model))
    assert np.frombuffer(raw, entry.numpy).tolist() == low_bytes


@given(
    st.sampled_from(["INT8", "INT16", "INT32"]),
    st.lists(st.integers(-(2**31), 2**31 - 1), min_size=1, max_size=8),
)
def test_any_int32_element_wraps_as_its_low_bytes(
    datatype: str, values: list[int]
) -> None:
    entry = DATATYPES[datatype]
    message = request(
        {
            "datatype": datatype,
            "shape": [1, len(values)],
            "contents": {"int_contents": values},
        }
    )
    raw = only(
        check_inputs(message, spec(tensor(datatype=datatype, dims=(len(values),))))
    )
    assert raw == b"".join(struct.pack("<i", value)[: entry.size] for value in values)


def test_typed_contents_of_the_wrong_count_are_refused() -> None:
    message = request({"shape": [1, 2], "contents": {"fp32_contents": [1.0]}})
    text = refusal(message, spec(tensor()))
    assert "expected 8 bytes" in text
    assert "'x'" in text


def test_empty_contents_serve_a_tensor_without_elements() -> None:
    message = request({"shape": [1, 0], "contents": {}})
    assert only(check_inputs(message, spec(tensor(dims=(-1,))))) == b""


def test_an_unknown_datatype_with_typed_contents_is_named() -> None:
    message = request(
        {"datatype": "FP8", "shape": [1, 2], "contents": {"fp32_contents": [1, 2]}}
    )
    text = refusal(message, spec(tensor()))
    assert "'FP8'" in text
    assert "'x'" in text


# -- sizes (rule 6) -----------------------------------------------------------


@pytest.mark.parametrize("datatype", FIXED_SIZE)
@pytest.mark.parametrize("excess", [-1, 1])
def test_raw_bytes_must_fill_the_shape_exactly(datatype: str, excess: int) -> None:
    size = 6 * DATATYPES[datatype].size
    message = request(
        {"datatype": datatype, "shape": [3, 2]}, raw=[b"\0" * (size + excess)]
    )
    text = refusal(message, spec(tensor(datatype=datatype)))
    assert f"expected {size} bytes" in text
    assert f"got {size + excess}" in text
    assert "'x'" in text
    assert "'m'" in text


@pytest.mark.parametrize(
    ("elements", "expected"),
    [
        ([], "expected 2 elements for shape [1,2], at least 8 bytes, got 0"),
        ([b"s"], "expected 2 elements for shape [1,2], at least 8 bytes, got 5"),
        ([b"long"], "expected 2 elements for shape [1,2], got 1"),
        ([b"s"] * 3, "more than 2 elements (byte 10 of 15)"),
    ],
)
def test_raw_strings_must_be_as_many_as_the_shape_says(
    elements: list[bytes], expected: str
) -> None:
    raw = encode_bytes_elements(elements)
    message = request({"datatype": "BYTES", "shape": [1, 2]}, raw=[raw])
    text = refusal(message, spec(tensor(datatype="BYTES")))
    assert text == f"input 'x' for model 'm': {expected}"


def test_a_tensor_without_strings_takes_no_bytes() -> None:
    model = spec(tensor(datatype="BYTES", dims=(-1,)))
    fields = {"datatype": "BYTES", "shape": [1, 0]}
    assert only(check_inputs(request(fields, raw=[b""]), model)) == b""
    text = refusal(request(fields, raw=[b"\0" * 4]), model)
    assert "more than 0 elements (byte 0 of 4)" in text


def test_strings_beyond_the_shape_are_not_looked_at() -> None:
    # What follows the one element is no string: decoding it would say so.
    raw = encode_bytes_elements([b"s"]) + b"\xff" * (1 << 20)
    message = request({"datatype": "BYTES", "shape": [1, 1]}, raw=[raw])
    text = refusal(message, spec(tensor(datatype="BYTES", dims=(1,))))
    assert "more than 1 elements (byte 5 of 1048581)" in text


@pytest.mark.parametrize("datatype", TYPED)
def test_typed_contents_are_counted_before_any_is_encoded(
    datatype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def encoded(*_: object) -> bytes:
        raise AssertionError("elements were encoded")

    monkeypatch.setattr(requests, "encode_bytes_elements", encoded)
    monkeypatch.setattr(requests, "encode_typed_values", encoded)
    entry = DATATYPES[datatype]
    values = [b"\xff" if datatype == "BYTES" else 1] * 1000
    contents = {str(entry.contents_field): values}
    message = request({"datatype": datatype, "shape": [1, 2], "contents": contents})
    text = refusal(message, spec(tensor(datatype=datatype)))
    got = 1000 if datatype == "BYTES" else 1000 * entry.size
    assert text.endswith(f"got {got}")
    assert "for shape [1,2]" in text


def test_a_request_may_have_the_most_strings_but_not_one_more() -> None:
    model = spec(
        tensor("a", "BYTES", (-1,)), tensor("b", "BYTES", (-1,)), tensor("n"), rows=8
    )

    def with_strings(count: int) -> Any:
        half = MAX_STRING_ELEMENTS // 2
        return request(
            {"name": "n", "shape": [1, 2]},
            {"name": "a", "datatype": "BYTES", "shape": [1, half]},
            {"name": "b", "datatype": "BYTES", "shape": [1, count - half]},
            raw=[b"\0" * 8, b"\0" * 4 * half, b"\0" * 4 * (count - half)],
        )

    assert check_inputs(with_strings(MAX_STRING_ELEMENTS), model).rows == 1
    text = refusal(with_strings(MAX_STRING_ELEMENTS + 1), model)
    assert "input 'b' for model 'm'" in text
    assert "may have 65536 BYTES elements, got 65537" in text


@pytest.mark.parametrize("value", range(256))
def test_a_bool_is_the_byte_0_or_1(value: int) -> None:
    model = spec(tensor(datatype="BOOL"))
    for raw in (bytes([value, 1]), bytes([0, value])):
        message = request({"datatype": "BOOL", "shape": [1, 2]}, raw=[raw])
        if value in (0, 1):
            assert only(check_inputs(message, model)) == raw
        else:
            text = refusal(message, model)
            assert text == "input 'x' for model 'm': bytes of BOOL must be 0 or 1"


def test_other_bytes_than_0_and_1_are_fine_in_other_datatypes() -> None:
    for datatype in ("INT8", "UINT8"):
        message = request({"datatype": datatype, "shape": [1, 2]}, raw=[b"\x02\xff"])
        assert only(check_inputs(message, spec(tensor(datatype=datatype))))


def test_typed_strings_must_be_as_many_as_the_shape_says() -> None:
    contents = {"bytes_contents": [b"a", b"b", b"c"]}
    message = request({"datatype": "BYTES", "shape": [1, 2], "contents": contents})
    assert "got 3" in refusal(message, spec(tensor(datatype="BYTES")))


def test_a_string_cut_short_is_refused_at_every_byte() -> None:
    raw = encode_bytes_elements([b"one", b"two"])
    for end in range(len(raw)):
        message = request({"datatype": "BYTES", "shape": [1, 2]}, raw=[raw[:end]])
        assert "'x'" in refusal(message, spec(tensor(datatype="BYTES")))


def test_a_string_longer_than_the_message_is_refused() -> None:
    raw = struct.pack("<I", 0xFFFFFFFF)
    message = request({"datatype": "BYTES", "shape": [1, 1]}, raw=[raw])
    text = refusal(message, spec(tensor(datatype="BYTES", dims=(1,))))
    assert "runs past the end" in text


@pytest.mark.parametrize("element", [b"\xff", b"\xc3", b"\xed\xa0\x80", b"ok\x80"])
def test_strings_that_are_not_utf8_are_refused(element: bytes) -> None:
    model = spec(tensor(datatype="BYTES", dims=(1,)))
    raw = request(
        {"datatype": "BYTES", "shape": [1, 1]}, raw=[encode_bytes_elements([element])]
    )
    typed = request(
        {
            "datatype": "BYTES",
            "shape": [1, 1],
            "contents": {"bytes_contents": [element]},
        }
    )
    for message in (raw, typed):
        assert "UTF-8" in refusal(message, model)


def test_nul_inside_a_string_is_kept() -> None:
    raw = encode_bytes_elements([b"a\0b\0", b""])
    message = request({"datatype": "BYTES", "shape": [1, 2]}, raw=[raw])
    assert only(check_inputs(message, spec(tensor(datatype="BYTES")))) == raw


@pytest.mark.parametrize(
    "shape",
    [
        [1, 2**62, 4],
        [1, 2**63 - 1, 2],
        [1, 2**32, 2**32],
        [1, 2**62, 0],
        [1, 0, 2**62],
        [1, 2**21, 2**21],
    ],
)
def test_dimensions_that_overflow_are_refused_although_bytes_fit(
    shape: list[int],
) -> None:
    message = request({"shape": shape}, raw=[b""])
    text = refusal(message, spec(tensor(dims=(-1, -1))))
    assert "too large" in text
    assert "'x'" in text


@pytest.mark.parametrize("dims", [(0,), (0, 3), (3, 0)])
def test_zero_in_a_variable_dimension_is_a_tensor_without_elements(
    dims: tuple[int, ...],
) -> None:
    message = request({"shape": [2, *dims]}, raw=[b""])
    checked = check_inputs(message, spec(tensor(dims=(-1,) * len(dims))))
    assert checked.tensors == [(0, (2, *dims), b"")]
    assert checked.rows == 2


@pytest.mark.parametrize("size", [-1, -(2**63)])
def test_a_negative_dimension_is_refused(size: int) -> None:
    message = request({"shape": [1, size]}, raw=[b""])
    assert "unexpected shape" in refusal(message, spec(tensor(dims=(-1,))))


# -- fit (rule 7) -------------------------------------------------------------


def test_a_missing_input_is_named() -> None:
    message = request({"name": "a", "shape": [1, 2]}, raw=[b"\0" * 8])
    text = refusal(message, spec(tensor("a"), tensor("b")))
    assert text == "expected input 'b' for model 'm' is missing"


def test_an_unknown_input_is_named_with_the_known_ones() -> None:
    message = request(
        {"shape": [1, 2]}, {"name": "z", "shape": [1, 2]}, raw=[b"\0" * 8] * 2
    )
    text = refusal(message, spec(tensor()))
    assert "unexpected inference input 'z' for model 'm'" in text
    assert "'x'" in text


def test_an_input_given_twice_is_refused() -> None:
    message = request({"shape": [1, 2]}, {"shape": [1, 2]}, raw=[b"\0" * 8] * 2)
    assert refusal(message, spec(tensor())) == "input 'x' for model 'm' is given twice"


@pytest.mark.parametrize("datatype", ["FP64", "fp32", "", "TYPE_FP32", "FP8"])
def test_another_datatype_is_refused_by_name(datatype: str) -> None:
    message = request({"datatype": datatype, "shape": [1, 2]}, raw=[b"\0" * 8])
    text = refusal(message, spec(tensor()))
    assert f"data-type '{datatype}', expected 'FP32'" in text
    assert "'x'" in text


@pytest.mark.parametrize("shape", [[], [2], [1, 2, 1], [1, 3], [1, 1]])
def test_another_shape_is_refused_with_both(shape: list[int]) -> None:
    message = request({"shape": shape}, raw=[b"\0" * 8])
    text = refusal(message, spec(tensor()))
    assert "unexpected shape for input 'x' for model 'm'" in text
    assert "expected [-1,2]" in text
    assert f"got [{','.join(map(str, shape))}]" in text


def test_more_dimensions_than_any_tensor_has_are_refused() -> None:
    message = request({"shape": [1] * 100_000}, raw=[b"\0" * 4])
    text = refusal(message, spec(tensor()))
    assert "has 100000 dimensions" in text
    assert len(text) < 200


def test_the_highest_rank_still_passes() -> None:
    dims = (1,) * (MAX_RANK - 1)
    message = request({"shape": [1, *dims]}, raw=[b"\0" * 4])
    assert check_inputs(message, spec(tensor(dims=dims))).rows == 1


@pytest.mark.parametrize("rows", [0, 9, -1, 2**62])
def test_a_batch_outside_the_limit_is_refused(rows: int) -> None:
    message = request({"shape": [rows, 2]}, raw=[b""])
    text = refusal(message, spec(tensor()))
    assert f"batch-size must be between 1 and 8, got {rows} for input 'x'" in text


@pytest.mark.parametrize("rows", [1, 8])
def test_a_batch_at_the_limits_passes(rows: int) -> None:
    message = request({"shape": [rows, 2]}, raw=[b"\0" * 8 * rows])
    assert check_inputs(message, spec(tensor())).rows == rows


def test_inputs_of_different_batch_sizes_are_refused() -> None:
    message = request(
        {"name": "a", "shape": [1, 2]},
        {"name": "b", "shape": [2, 2]},
        raw=[b"\0" * 8, b"\0" * 16],
    )
    text = refusal(message, spec(tensor("a"), tensor("b")))
    assert "'b'" in text
    assert "batch size 2 where another input has 1" in text


def test_a_model_without_batch_dimension_takes_its_exact_shape() -> None:
    model = spec(tensor(dims=(3, 4)), rows=0)
    good = request({"shape": [3, 4]}, raw=[b"\0" * 48])
    assert check_inputs(good, model).rows == 1
    text = refusal(request({"shape": [1, 3, 4]}, raw=[b"\0" * 48]), model)
    assert "expected [3,4], got [1,3,4]" in text


def test_a_scalar_has_the_empty_shape() -> None:
    model = spec(tensor(dims=()), rows=0)
    checked = check_inputs(request({"shape": []}, raw=[b"\0" * 4]), model)
    assert checked.tensors == [(0, (), b"\0" * 4)]


def test_an_optional_input_may_be_absent_but_counts_for_the_batch() -> None:
    model = spec(tensor("a"), tensor("b", optional=True))
    one = {"name": "a", "shape": [1, 2]}
    alone = check_inputs(request(one, raw=[b"\0" * 8]), model)
    both = check_inputs(
        request(one, {"name": "b", "shape": [1, 2]}, raw=[b"\0" * 8] * 2), model
    )
    assert [index for index, _, _ in alone.tensors] == [0]
    assert alone.shape_key != both.shape_key


def test_a_request_without_any_input_is_refused() -> None:
    assert "at least one input" in refusal(request(), spec(tensor(optional=True)))


def test_only_rows_of_equal_inner_shape_may_share_a_batch() -> None:
    model = spec(tensor(dims=(-1,)))

    def key(rows: int, length: int) -> object:
        raw = b"\0" * 4 * rows * length
        return check_inputs(request({"shape": [rows, length]}, raw=[raw]), model)

    assert key(1, 3).shape_key == key(2, 3).shape_key  # type: ignore[attr-defined]
    assert key(1, 3).shape_key != key(1, 4).shape_key  # type: ignore[attr-defined]


# -- requested outputs (rule 8) -----------------------------------------------


def test_no_requested_outputs_means_all() -> None:
    assert requested_outputs(request(), spec(outputs=("p", "q"))) is None


def test_requested_outputs_keep_the_order_of_the_request() -> None:
    message = request()
    message.outputs.add(name="q")
    message.outputs.add(name="p")
    assert requested_outputs(message, spec(outputs=("p", "q"))) == (1, 0)


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["z"], "unexpected inference output 'z' for model 'm'"),
        ([""], "unexpected inference output ''"),
        (["p", "p"], "'p' for model 'm' is requested twice"),
    ],
)
def test_outputs_that_cannot_be_given_are_named(
    names: list[str], expected: str
) -> None:
    message = request()
    for name in names:
        message.outputs.add(name=name)
    with pytest.raises(InvalidRequest, match=expected):
        requested_outputs(message, spec(outputs=("p", "q")))


@pytest.mark.parametrize("parameter", ["classification", "shared_memory_region"])
def test_output_forms_that_are_not_offered_are_refused(parameter: str) -> None:
    message = request()
    message.outputs.add(name="p").parameters[parameter].int64_param = 1
    with pytest.raises(InvalidRequest, match=r"'p' for model 'm'.*not supported"):
        requested_outputs(message, spec(outputs=("p",)))


def test_unknown_output_parameters_are_ignored() -> None:
    message = request()
    message.outputs.add(name="p").parameters["binary_data"].bool_param = True
    assert requested_outputs(message, spec(outputs=("p",))) == (0,)


# -- parameters (section 7) ---------------------------------------------------


def parameters(**given_parameters: InferParameter) -> Any:
    return read_parameters(given_parameters)


def test_without_parameters_nothing_is_set() -> None:
    assert (parameters().priority, parameters().timeout_us) == (0, 0)


@pytest.mark.parametrize("kind", ["int64_param", "uint64_param"])
@pytest.mark.parametrize("name", ["priority", "timeout"])
def test_priority_and_timeout_come_signed_or_unsigned(name: str, kind: str) -> None:
    read = parameters(**{name: InferParameter(**{kind: 3})})
    assert (read.priority or read.timeout_us) == 3


@pytest.mark.parametrize("name", ["priority", "timeout"])
def test_negative_priority_and_timeout_are_refused(name: str) -> None:
    with pytest.raises(InvalidRequest, match=f"'{name}' must not be negative, got -1"):
        parameters(**{name: InferParameter(int64_param=-1)})


def test_the_largest_unsigned_values_are_taken() -> None:
    largest = InferParameter(uint64_param=2**64 - 1)
    read = parameters(priority=largest, timeout=largest)
    assert read.priority == 2**64 - 1
    assert read.timeout_us <= 2**53  # centuries, and no integer overflow anywhere


WRONG_KINDS = {
    "priority": ["bool_param", "string_param", "double_param", ""],
    "timeout": ["bool_param", "string_param", "double_param", ""],
    "sequence_start": ["int64_param", "string_param", ""],
    "sequence_end": ["int64_param", "string_param", ""],
    "triton_enable_empty_final_response": ["int64_param", "string_param", ""],
    "sequence_id": ["bool_param", "double_param", ""],
}
VALUES: dict[str, Any] = {
    "bool_param": True,
    "int64_param": 1,
    "uint64_param": 1,
    "string_param": "1",
    "double_param": 1.0,
}


@pytest.mark.parametrize(
    ("name", "kind"), [(name, k) for name, kinds in WRONG_KINDS.items() for k in kinds]
)
def test_known_parameters_of_the_wrong_kind_are_named(name: str, kind: str) -> None:
    value = InferParameter(**{kind: VALUES[kind]}) if kind else InferParameter()
    with pytest.raises(InvalidRequest, match=f"'{name}' must be"):
        parameters(**{name: value})


@pytest.mark.parametrize("kind", ["int64_param", "uint64_param", "string_param"])
def test_a_sequence_id_is_a_number_or_a_string(kind: str) -> None:
    parameters(
        sequence_id=InferParameter(**{kind: VALUES[kind]}),
        sequence_start=InferParameter(bool_param=True),
        sequence_end=InferParameter(bool_param=False),
    )


@pytest.mark.parametrize(
    "name", ["triton_final_response", "triton_x", "headers", "binary_data_output"]
)
def test_reserved_parameters_are_refused(name: str) -> None:
    with pytest.raises(InvalidRequest, match=f"'{name}' is reserved"):
        parameters(**{name: InferParameter(bool_param=True)})


@pytest.mark.parametrize("kind", sorted(VALUES))
def test_parameters_of_the_users_own_pass_in_any_kind(kind: str) -> None:
    parameters(tenant=InferParameter(**{kind: VALUES[kind]}))


# -- the raw form (sections 5 and 6) ------------------------------------------


@given(st.lists(st.binary(max_size=20), max_size=10))
def test_strings_survive_the_raw_form(elements: list[bytes]) -> None:
    raw = encode_bytes_elements(elements)
    assert decode_bytes_elements(raw) == elements
    assert decode_bytes_elements(memoryview(raw)) == elements
    assert len(raw) == sum(4 + len(element) for element in elements)


@given(st.lists(st.binary(max_size=6), min_size=1, max_size=4))
def test_the_raw_form_of_strings_rejects_truncation_at_every_byte(
    elements: list[bytes],
) -> None:
    raw = encode_bytes_elements(elements)
    boundaries = {0}
    for element in elements:
        boundaries.add(max(boundaries) + 4 + len(element))
    for end in range(len(raw)):
        if end in boundaries:
            assert len(decode_bytes_elements(raw[:end])) < len(elements)
        else:
            with pytest.raises(EncodingError):
                decode_bytes_elements(raw[:end])


@given(st.lists(st.binary(max_size=6), max_size=6), st.integers(0, 8))
def test_no_more_strings_are_decoded_than_asked_for(
    elements: list[bytes], most: int
) -> None:
    raw = encode_bytes_elements(elements)
    if len(elements) <= most:
        assert decode_bytes_elements(raw, most) == elements
        return
    start = len(encode_bytes_elements(elements[:most]))
    for rest in (raw[start:], b"\xff", b"\xff" * 9):  # the last two are no strings
        with pytest.raises(EncodingError, match=f"more than {most} elements"):
            decode_bytes_elements(raw[:start] + rest, most)


@given(st.binary(max_size=40))
def test_any_bytes_are_strings_that_encode_back_or_an_error(raw: bytes) -> None:
    try:
        elements = decode_bytes_elements(raw)
    except EncodingError:
        return
    assert encode_bytes_elements(elements) == raw


@given(st.data(), st.sampled_from(FIXED_SIZE))
def test_arrays_survive_the_raw_form_bit_by_bit(data: Any, datatype: str) -> None:
    dtype = DATATYPES[datatype].numpy
    array = data.draw(
        hnp.arrays(dtype, hnp.array_shapes(min_dims=0, max_dims=4, min_side=0))
    )
    raw = encode_array(array, datatype)
    assert len(raw) == array.size * DATATYPES[datatype].size
    back = decode_array(raw, datatype, array.shape)
    assert back.shape == array.shape
    assert back.tobytes() == array.tobytes()
    with pytest.raises(EncodingError):
        decode_array(raw + b"\0", datatype, array.shape)


@given(st.lists(st.text(max_size=8), max_size=6))
def test_text_and_its_utf8_have_one_raw_form(texts: list[str]) -> None:
    text = np.empty(len(texts), object)
    text[:] = texts
    encoded = np.empty(len(texts), object)
    encoded[:] = [item.encode() for item in texts]
    raw = encode_array(text, "BYTES")
    assert raw == encode_array(encoded, "BYTES")
    assert decode_array(raw, "BYTES", (len(texts),)).tolist() == encoded.tolist()
    with pytest.raises(EncodingError, match="expected"):
        decode_array(raw, "BYTES", (len(texts) + 1,))


def test_the_raw_form_is_row_major_little_endian_whatever_the_memory_is() -> None:
    array = np.arange(6, dtype=">i4").reshape(2, 3)
    expected = struct.pack("<6i", 0, 3, 1, 4, 2, 5)
    assert encode_array(array.T, "INT32") == expected
    assert encode_array(np.asfortranarray(array.T), "INT32") == expected


@given(
    st.lists(st.integers(-2, 5), max_size=4),
    st.integers(0, 100),
    st.sampled_from([0, 8]),
    st.sampled_from([(2,), (-1,), (), (-1, -1), (3, -1)]),
)
def test_what_passes_has_exactly_the_bytes_its_shape_needs(
    shape: list[int], nbytes: int, rows: int, dims: tuple[int, ...]
) -> None:
    message = request({"shape": shape, "datatype": "INT16"}, raw=[b"\0" * nbytes])
    model = spec(tensor("x", "INT16", dims), rows=rows)
    try:
        checked = check_inputs(message, model)
    except InvalidRequest:
        assert "'x'" in refusal(message, model)
        return
    ((_, full, raw),) = checked.tensors
    assert int(np.prod(full)) * 2 == len(raw)
    assert len(full) == len(dims) + (rows > 0)


@pytest.mark.parametrize("field", ["inputs", "parameters"])
def test_too_many_entries_are_refused_before_they_are_looked_at(field: str) -> None:
    request = ModelInferRequest(model_name="m")
    for number in range(4097):
        if field == "inputs":
            request.inputs.add(name=str(number))
        else:
            request.parameters[str(number)].bool_param = True
    with pytest.raises(InvalidRequest, match="more than 4096"):
        requests.parse(request.SerializeToString())

"""Inputs in the event log: which, what is left of them, and that nothing else is."""

from __future__ import annotations

import hashlib
import re
import struct
import urllib.request
import zlib
from collections import Counter
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper
from onnx.numpy_helper import from_array
from pydantic import ValidationError

from featurizer.encode import decode_array, encode_array, encode_bytes_elements
from gateway.commands import log_files
from gateway.commands.log_objects import objects
from gateway.config import Config
from gateway.feedback.block_writer import BlockWriter
from gateway.feedback.blocks import Form, TensorLayout
from gateway.feedback.columns import decode
from gateway.feedback.hash_key import load_key
from gateway.feedback.log import PREDICTIONS
from gateway.feedback.types import Event, Prediction, Stored
from gateway.feedback_config import FeedbackConfig, InputsConfig
from gateway.preflight import faults
from gateway.protocol import inference_pb2 as pb
from gateway.serving.inputs import Recorder, Unfit
from tests.feedback.test_blocks import EPOCH_NS, Chosen
from tests.feedback.test_recording import logged
from tests.gateway_process import wait_for
from tests.onnx_models import FLOAT, build, info
from tests.traffic.served import MODEL, serving
from workers.spec import ModelSpec, TensorSpec

KEY = bytes(range(32))
SPEC = ModelSpec(
    (
        TensorSpec("who", "BYTES", (2,)),
        TensorSpec("what", "FP32", (3,), optional=True),
        TensorSpec("much", "INT64", (-1,), optional=True),
        TensorSpec("image", "UINT8", (2, 2), optional=True),
        TensorSpec("odd[1]", "BF16", (1,), optional=True),
    ),
    (TensorSpec("y", "FP32", ()),),
    64,
)
OUTPUTS = (TensorLayout("y", "FP32", ()),)
MOST = 1 << 18


def recorder(spec: ModelSpec = SPEC, **config: Any) -> Recorder:
    return Recorder(InputsConfig.model_validate(config), spec, KEY)


def hashed(value: bytes) -> bytes:
    return hashlib.blake2b(value, digest_size=16, key=KEY).hexdigest().encode()


def through_a_block(
    recorder: Recorder, rows: int, inputs: list[Any], most: int = MOST
) -> Prediction | None:
    form, data = Form(OUTPUTS, (4 * rows,)), bytes(4 * rows)
    added = recorder.add(form, data, inputs, most)
    if added is None:
        return None
    name, choice = str(uuid4()).encode(), Chosen(1, "champion", 1.0, "none", 0, 0)
    answer = (name, "m", 1, 2, rows, choice, ("", -1, ()), *added, b"")
    (share,) = BlockWriter(1).write(answer, EPOCH_NS)
    (prediction,) = decode(share.block)
    assert [tensor.data for tensor in prediction.outputs] == [data]
    return prediction


FLOATS = st.lists(st.floats(width=32), min_size=3, max_size=3)
TEXTS = st.lists(st.binary(max_size=9), min_size=2, max_size=2)


@given(
    st.lists(st.tuples(TEXTS, FLOATS, st.integers(-(2**63), 2**63 - 1)), min_size=1),
    st.sets(st.sampled_from(["who", "who[0]", "what[2]", "what[0]", "much[0]"])),
    st.sets(st.sampled_from(["who[1]"])),
)
def test_what_is_named_is_gone_and_the_rest_is_as_it_was(
    rows: list[tuple[list[bytes], list[float], int]], redact: set[str], hash_: set[str]
) -> None:
    who = np.array([texts for texts, _, _ in rows], object).reshape(-1, 2)
    what = np.array([floats for _, floats, _ in rows], np.float32)
    much = np.array([[number] for _, _, number in rows], np.int64)
    arrays = {"who": (who, "BYTES"), "what": (what, "FP32"), "much": (much, "INT64")}
    inputs = [
        (place, array.shape, memoryview(encode_array(array, datatype)))
        for place, (array, datatype) in enumerate(arrays.values())
    ]
    made = recorder(redact=sorted(redact), hash=sorted(hash_))
    prediction = through_a_block(made, len(rows), inputs)
    assert prediction is not None
    expected_who = who.copy()
    if "who[0]" in redact:
        expected_who[:, 0] = b""
    if hash_:
        expected_who[:, 1] = [hashed(value) for value in who[:, 1]]
    for column in (0, 2):
        if f"what[{column}]" in redact:
            what[:, column] = np.nan
    if "much[0]" in redact:
        much[:, 0] = 0
    found = {tensor.name: tensor for tensor in prediction.inputs}
    assert list(found) == ["who", "what", "much"]
    assert all(tensor.shape[0] == len(rows) for tensor in found.values())
    if "who" in redact:
        assert found["who"].data == b""
        assert found["who"].shape == who.shape
    else:
        tensor = found["who"]
        given_ = decode_array(tensor.data, "BYTES", tensor.shape)
        assert given_.tolist() == expected_who.tolist()
    if {"what[0]", "what[2]"} & redact:  # NaNs are alike, whatever their bits
        given_ = decode_array(found["what"].data, "FP32", found["what"].shape)
        np.testing.assert_array_equal(given_, what)
    else:
        assert found["what"].data == what.tobytes()
    assert found["much"].data == much.tobytes()


def test_a_whole_tensor_is_hashed_once() -> None:
    raw = encode_bytes_elements([b"a", b"b"])
    made = recorder(hash=["who", "who[1]"])
    prediction = through_a_block(made, 1, [(0, (1, 2), raw)])
    assert prediction is not None
    (who,) = prediction.inputs
    assert who.data == encode_bytes_elements([hashed(b"a"), hashed(b"b")])


def test_what_is_hashed_may_be_redacted_in_part() -> None:
    raw = encode_bytes_elements([b"a", b"b"])
    made = recorder(hash=["who"], redact=["who[1]"])
    prediction = through_a_block(made, 1, [(0, (1, 2), raw)])
    assert prediction is not None
    assert prediction.inputs[0].data == encode_bytes_elements([hashed(b"a"), b""])


def test_a_name_with_brackets_is_a_name_first() -> None:
    made = recorder(redact=["odd[1]"])
    prediction = through_a_block(made, 1, [(4, (1, 1), b"\1\2")])
    assert prediction is not None
    assert prediction.inputs[0].data == b""
    made = recorder(redact=["odd[1][0]"])
    prediction = through_a_block(made, 1, [(4, (1, 1), b"\1\2")])
    assert prediction is not None
    assert prediction.inputs[0].data == struct.pack("<H", 0x7FC0)  # NaN of BF16


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"redact": ["whom"]}, "'whom' is none of its inputs (who, what, much"),
        ({"hash": ["whom[0]"]}, "inputs.hash: 'whom[0]' is none of its inputs"),
        ({"redact": ["who[2]"]}, "'who[2]': it has 2 columns"),
        ({"redact": ["who[-1]"]}, "'who[-1]' is none of"),
        ({"redact": ["image[0]"]}, "only tensors of rows and columns"),
        ({"hash": ["what"]}, "is of FP32, and only BYTES are hashed; redact"),
    ],
)
def test_what_cannot_be_done_is_said(config: dict[str, list[str]], says: str) -> None:
    with pytest.raises(Unfit, match=re.escape(says)):
        recorder(**config)


def test_without_the_column_nothing_is_recorded() -> None:
    made = recorder(redact=["much[1]"])
    wide = (2, (1, 2), struct.pack("<2q", 1, 2))
    prediction = through_a_block(made, 1, [wide])
    assert prediction is not None
    assert prediction.inputs[0].data == struct.pack("<2q", 1, 0)
    assert through_a_block(made, 1, [(2, (1, 1), bytes(8))]) is None


def test_what_is_too_much_is_not_recorded() -> None:
    many = 1025  # rows of two
    raw = encode_bytes_elements([b""] * 2 * many)
    inputs = [(0, (many, 2), raw)]
    assert through_a_block(recorder(hash=["who[0]"]), many, inputs) is None
    assert through_a_block(
        recorder(hash=["who[0]"]), 1024, [(0, (1024, 2), raw[:8192])]
    )
    assert through_a_block(recorder(), many, inputs) is not None
    assert through_a_block(recorder(), many, inputs, 4 * many + len(raw)) is not None
    assert through_a_block(recorder(), many, inputs, 4 * many + len(raw) - 1) is None
    # What is redacted takes no room.
    assert through_a_block(recorder(redact=["who"]), many, inputs, 4 * many) is not None


def test_inputs_are_shown_and_exported(tmp_path: Path) -> None:
    raw = encode_bytes_elements([b"a", b"b"])
    what = struct.pack("<3f", 1, 2, 3)
    inputs = [(0, (1, 2), raw), (1, (1, 3), what)]
    added = recorder(redact=["who"]).add(Form(OUTPUTS, (4,)), bytes(4), inputs, MOST)
    assert added is not None
    name, choice = str(uuid4()).encode(), Chosen(1, "champion", 1.0, "none", 0, 0)
    answer = (name, "m", 1, 2, 1, choice, ("", -1, ()), *added, b"")
    (share,) = BlockWriter(1).write(answer, EPOCH_NS)
    stored = Stored(PREDICTIONS, 0, 0, 1, Event(b"", share.block))
    (shown,) = objects(stored)
    assert shown["inputs"] == {"who": None, "what": [[1.0, 2.0, 3.0]]}
    path = tmp_path / "out.parquet"
    with log_files.writer(path, "parquet", PREDICTIONS) as write:
        assert write(stored) == (1, 0)
    (row,) = pq.read_table(path).to_pylist()
    assert [each["name"] for each in row["inputs"]] == ["who", "what"]
    assert [each["numbers"] for each in row["inputs"]] == [None, [1.0, 2.0, 3.0]]


def test_one_thing_at_a_time() -> None:
    with pytest.raises(ValidationError, match="who: either redact or hash it"):
        InputsConfig(redact=("who",), hash=("who",))


# -- the key -------------------------------------------------------------------------


def _hashing(key: Path | None) -> FeedbackConfig:
    models = {"m": {"inputs": {"hash": ["who"]}}}
    given_ = {"enabled": True, "hash_key_file": key, "models": models}
    return FeedbackConfig.model_validate(given_)


def test_a_key_is_made_once_for_this_gateway_alone(tmp_path: Path) -> None:
    first, second = tmp_path / "a", tmp_path / "b"
    first.mkdir()
    second.mkdir()
    key = load_key(_hashing(None), first)
    assert load_key(_hashing(None), first) == key
    assert load_key(_hashing(None), second) != key
    assert [each.name for each in first.iterdir()] == ["inputs.key"]
    assert (first / "inputs.key").stat().st_mode & 0o777 == 0o600


def test_a_key_of_ones_own_is_checked_at_the_start(tmp_path: Path) -> None:
    path = tmp_path / "key"
    config = Config(feedback=_hashing(path))
    (missing,) = faults(config)
    assert re.match(r"feedback.hash_key_file: .*No such file.*/dev/urandom", missing)
    path.write_bytes(b"short")
    (short,) = faults(config)
    assert "holds 5 bytes" in short
    path.write_bytes(bytes(64))
    assert faults(config) == []
    assert load_key(config.feedback, tmp_path) == load_key(config.feedback, path)


# -- a gateway -----------------------------------------------------------------------

MAIL = "somebody-{}@example.org"
PLACE = "a street and its number {}"
OPEN = "nothing to hide {}"
NUMBER, SECRET_NUMBER = 1234.5625, 98765.4375


def _says(number: float) -> bytes:
    """``who`` STRING [N, 3], ``what`` FLOAT [N, 2] to ``y``: always the number."""
    nodes = [
        helper.make_node("ReduceSum", ["what", "axes"], ["sum"], keepdims=1),
        helper.make_node("Mul", ["sum", "zero"], ["nothing"]),
        helper.make_node("Add", ["nothing", "number"], ["y"]),
    ]
    constants = [
        from_array(np.array([1], np.int64), "axes"),
        from_array(np.array(0, np.float32), "zero"),
        from_array(np.array(number, np.float32), "number"),
    ]
    inputs = [info("who", TensorProto.STRING, ["N", 3]), info("what", FLOAT, ["N", 2])]
    return build(nodes, inputs, [info("y", FLOAT, ["N", 1])], constants)


def _ask(number: int, version: str = "") -> pb.ModelInferRequest:
    request = pb.ModelInferRequest(model_name=MODEL, model_version=version, id="1")
    request.inputs.add(name="what", datatype="FP32", shape=[1, 2])  # not in its order
    request.inputs.add(name="who", datatype="BYTES", shape=[1, 3])
    texts = [text.format(number).encode() for text in (MAIL, PLACE, OPEN)]
    request.raw_input_contents.append(struct.pack("<2f", NUMBER, SECRET_NUMBER))
    request.raw_input_contents.append(encode_bytes_elements(texts))
    return request


def _outcomes(port: int) -> dict[str, float]:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as response:
        text = response.read().decode()
    found = re.findall(r'baton_log_predictions_total{outcome="(\w+)"} (\S+)', text)
    return {outcome: float(count) for outcome, count in found}


def _files(folder: Path) -> bytes:
    return b"".join([each.read_bytes() for each in folder.rglob("*") if each.is_file()])


def test_only_what_may_be_seen_leaves_the_process(tmp_path: Path) -> None:
    inputs = {"sample": 0.3, "hash": ["who[0]"], "redact": ["who[1]", "what[1]"]}
    key = tmp_path / "key"
    key.write_bytes(bytes(range(20)))
    (tmp_path / "models").mkdir()
    feedback = {
        "enabled": True,
        "models": {MODEL: {"inputs": inputs}},
        "hash_key_file": str(key),
    }
    with serving(tmp_path / "models", versions=(), feedback=feedback) as served:
        for version in (1, 2, 3):
            served.take_in(str(version), _says(version))
        served.set({1: 0.8, 2: 0.2}, shadows=[{"version": 3}])
        said = Counter(served.all_said([_ask(number) for number in range(400)]))
        assert set(said) == {1, 2}
        answers = served.streamed([_ask(number, "1") for number in range(400, 500)])
        assert answers == [1] * 100
        assert served.running.stop() == 0
        found = logged(served.state)
        written = _files(served.state / "events") + _files(served.state / "joins")
    assert OPEN.format("").encode() in written  # this would find what is there
    assert struct.pack("<f", NUMBER) in written
    for secret in (MAIL, PLACE):
        assert secret.split("{}")[0].encode() not in written
    assert struct.pack("<f", SECRET_NUMBER) not in written
    by_role = Counter((p.role, bool(p.inputs)) for p in found)
    assert by_role["challenger", True] == said[2]
    assert by_role["shadow", True] > 0
    assert by_role["challenger", False] == by_role["shadow", False] == 0
    assert 60 < by_role["champion", True] < 200  # of some 420, 0.3
    secret = hashlib.blake2b(key.read_bytes(), digest_size=32).digest()
    mails = {
        hashlib.blake2b(MAIL.format(n).encode(), digest_size=16, key=secret).hexdigest()
        for n in range(500)
    }
    for one in found:
        in_sample = zlib.crc32(one.id) < 0.3 * 2**32
        assert bool(one.inputs) is (one.role != "champion" or in_sample)
        if not one.inputs:
            continue
        who, what = one.inputs
        mail, place, open_ = decode_array(who.data, "BYTES", who.shape)[0]
        assert mail.decode() in mails
        assert place == b""
        assert open_.startswith(b"nothing to hide ")
        number, nothing = struct.unpack("<2f", what.data)
        assert number == NUMBER
        assert np.isnan(nothing)


def test_a_slip_of_the_pen_keeps_all_inputs_out(tmp_path: Path) -> None:
    models = {
        MODEL: {"inputs": {"sample": 1, "redact": ["who", "waht"]}},
        "other": {"inputs": {}},
    }
    feedback = {"enabled": True, "models": models}
    with serving(tmp_path, versions=(), feedback=feedback) as served:
        served.take_in("1", _says(1))
        complaint = "'waht' is none of its inputs (who, what)"
        wait_for(lambda: complaint in served.running.log_text())  # before any request
        assert list(served.all_said([_ask(number) for number in range(20)])) == [1] * 20
        port = served.running.config["metrics"]["port"]
        wait_for(lambda: _outcomes(port)["inputs_withheld"] == 20)
        assert _outcomes(port)["inputs"] == 0
        assert served.running.stop() == 0
        assert served.running.log_text().count(complaint) == 1
        found = logged(served.state)
        assert not (served.state / "inputs.key").exists()  # nothing is hashed
    assert len(found) == 20
    assert not any(one.inputs for one in found)


def test_unless_they_are_asked_for_no_inputs_are_recorded(tmp_path: Path) -> None:
    with serving(tmp_path, versions=(), feedback={"enabled": True}) as served:
        served.take_in("1", _says(1))
        served.take_in("2", _says(2))
        served.set({1: 0.5, 2: 0.5})
        list(served.all_said([_ask(number) for number in range(40)]))
        assert served.running.stop() == 0
        found = logged(served.state)
    assert len(found) == 40
    assert not any(one.inputs for one in found)

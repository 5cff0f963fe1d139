"""What `workers.verify` lets through, and by which name it refuses the rest."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from workers import verify
from workers.verify import MAX_OPSETS, ModelRefused, VerifiedModel, verify_model

MAX_BYTES = 1 << 20


def value(name: str) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, [None, 4])


def graph(nodes: list[onnx.NodeProto], **fields: object) -> onnx.GraphProto:
    return helper.make_graph(nodes, "g", [value("x")], [value("y")], **fields)


def model(
    nodes: list[onnx.NodeProto] | None = None,
    opsets: dict[str, int] | None = None,
    initializer: list[TensorProto] | None = None,
    **fields: object,
) -> onnx.ModelProto:
    nodes = nodes or [helper.make_node("Identity", ["x"], ["y"])]
    imports = [helper.make_opsetid(*item) for item in (opsets or {"": 21}).items()]
    return helper.make_model(
        graph(nodes, initializer=initializer or []),
        opset_imports=imports,
        ir_version=10,
        **fields,
    )


def nested(depth: int) -> onnx.ModelProto:
    """A model with a subgraph in a subgraph, and so on; the innermost has `Odd`."""
    node = helper.make_node("Odd", ["x"], ["y"], domain="odd.example")
    for _ in range(depth):
        node = helper.make_node("If", ["c"], ["y"], then_branch=graph([node]))
    return model([node])


def too_deep() -> bytes:
    """Subgraphs beyond what protobuf itself agrees to build."""
    data = b""
    for tag in b"\x32\x2a\x0a" * 100 + b"\x3a":  # g, attribute, node; the graph
        size, length = len(data), b""
        while size > 127:
            length += bytes([size & 127 | 128])
            size >>= 7
        data = bytes([tag]) + length + bytes([size]) + data
    return model().SerializeToString() + data


def external(location: str, **entries: object) -> TensorProto:
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[4])
    tensor.data_location = TensorProto.EXTERNAL
    for key, entry in {"location": location, **entries}.items():
        tensor.external_data.add(key=key, value=str(entry))
    return tensor


def write(folder: Path, content: onnx.ModelProto | bytes) -> Path:
    path = folder / "model.onnx"
    data = content if isinstance(content, bytes) else content.SerializeToString()
    path.write_bytes(data)
    return path


def refusal(path: Path, max_bytes: int = MAX_BYTES) -> str:
    with pytest.raises(ModelRefused) as caught:
        verify_model(path, max_bytes=max_bytes)
    message = str(caught.value)
    assert message.startswith(path.name)
    assert "\n" not in message
    return message


def test_a_sound_model_passes_with_its_opsets(tmp_path: Path) -> None:
    path = write(tmp_path, model(opsets={"ai.onnx": 21, "ai.onnx.ml": 5}))
    expected = VerifiedModel((), {"": 21, "ai.onnx.ml": 5})
    assert verify_model(path, max_bytes=MAX_BYTES) == expected


def test_a_model_may_be_reached_through_a_link(tmp_path: Path) -> None:
    write(tmp_path, model())
    (tmp_path / "link.onnx").symlink_to("model.onnx")
    assert verify_model(tmp_path / "link.onnx", max_bytes=MAX_BYTES).opsets == {"": 21}


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "is empty"),
        (model().SerializeToString()[:-3], "is truncated"),
        (b"version https://git-lfs.github.com/spec/v1\n", "is not an ONNX file"),
        (b"\x08\x0a", "it has no graph"),
        (helper.make_model(graph([])), "it has no nodes"),
        (onnx.ModelProto(graph=graph([])), "it has no ir_version"),
        (too_deep(), "nested too deeply"),
        (model(opsets={"": 27}), "needs opset 27 of domain ai.onnx"),
        (model(opsets={"": 0}), "needs opset 0"),
        (model(opsets={"": 21, "odd.example": 1}), "unknown domain 'odd.example'"),
        (model(opsets={"ai.onnx.ml": 5}), "'Identity' is of domain 'ai.onnx', which"),
        (nested(0), "'Odd' is of domain 'odd.example', which"),
        (nested(3), "'Odd' is of domain 'odd.example', which"),
    ],
)
def test_a_broken_or_foreign_model_is_refused_by_name(
    tmp_path: Path, content: onnx.ModelProto | bytes, reason: str
) -> None:
    assert reason in refusal(write(tmp_path, content))


def test_a_model_without_outputs_is_refused(tmp_path: Path) -> None:
    content = model()
    del content.graph.output[:]
    assert "it has no outputs" in refusal(write(tmp_path, content))


def test_a_missing_file_a_folder_and_a_pipe_are_refused(tmp_path: Path) -> None:
    assert "No such file" in refusal(tmp_path / "absent.onnx")
    assert "cannot be read" in refusal(tmp_path)
    os.mkfifo(tmp_path / "pipe.onnx")
    assert "not a regular file" in refusal(tmp_path / "pipe.onnx")


def test_a_file_beyond_a_limit_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path, model())
    assert "max_model_bytes is 10" in refusal(path, max_bytes=10)
    monkeypatch.setattr(verify, "MAX_FILE_BYTES", 10)
    assert "larger than 2 GiB" in refusal(path)


def function_model(inner_domain: str, imports: dict[str, int]) -> onnx.ModelProto:
    function = helper.make_function(
        "own.example",
        "Twice",
        ["x"],
        ["y"],
        [helper.make_node("Odd", ["x"], ["y"], domain=inner_domain)],
        [helper.make_opsetid(*item) for item in imports.items()],
    )
    node = helper.make_node("Twice", ["x"], ["y"], domain="own.example")
    return model([node], {"": 21, "own.example": 1}, functions=[function])


def test_the_domain_of_a_local_function_is_known(tmp_path: Path) -> None:
    path = write(tmp_path, function_model("", {"": 21}))
    opsets = verify_model(path, max_bytes=MAX_BYTES).opsets
    assert opsets == {"": 21, "own.example": 1}


def test_operators_inside_functions_are_checked(tmp_path: Path) -> None:
    path = write(tmp_path, function_model("odd.example", {"": 21}))
    assert "'Odd' is of domain 'odd.example', which" in refusal(path)
    path = write(tmp_path, function_model("odd.example", {"odd.example": 1}))
    assert "unknown domain 'odd.example'" in refusal(path)
    path = write(tmp_path, function_model("", {"": 99}))
    assert "needs opset 99" in refusal(path)


def test_opset_limits_are_those_of_the_installed_onnx_runtime() -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    quiet = onnxruntime.SessionOptions()
    quiet.log_severity_level = 4
    cpu = ["CPUExecutionProvider"]
    newest = {"": 21, **MAX_OPSETS}
    onnxruntime.InferenceSession(model(opsets=newest).SerializeToString(), quiet, cpu)
    for domain in MAX_OPSETS:
        beyond = model(opsets=newest | {domain: newest[domain] + 1})
        with pytest.raises(Exception, match="till opset"):
            onnxruntime.InferenceSession(beyond.SerializeToString(), quiet, cpu)


def test_external_data_in_the_folder_is_found_once_and_sorted(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    for name in ("w.bin", "sub/v.bin"):
        (tmp_path / name).write_bytes(bytes(32))
    content = model(
        [helper.make_node("Constant", [], ["y"], value=external("./sub/v.bin"))],
        initializer=[external("w.bin", length=16), external("w.bin", offset=16)],
    )
    path = write(tmp_path, content)
    verified = verify_model(path, max_bytes=MAX_BYTES)
    assert verified.external_files == ("sub/v.bin", "w.bin")
    size = path.stat().st_size
    assert verify_model(path, max_bytes=size + 64) == verified
    assert "max_model_bytes" in refusal(path, max_bytes=size + 63)


@pytest.mark.parametrize(
    "location",
    [
        "",
        ".",
        "/etc/hostname",
        "../secret.bin",
        "sub/../../secret.bin",
        "..\\secret.bin",
        "a\nb",
        "a\0b",
        "*/_ORT_MEM_ADDR_/*",
        "n" * 2000,
    ],
)
def test_external_data_outside_the_folder_is_refused(
    tmp_path: Path, location: str
) -> None:
    (tmp_path / "secret.bin").write_bytes(bytes(32))
    (tmp_path / "m").mkdir()
    path = write(tmp_path / "m", model(initializer=[external(location)]))
    assert "is not a relative path below" in refusal(path)


def test_external_data_behind_links_is_refused(tmp_path: Path) -> None:
    (tmp_path / "w.bin").write_bytes(bytes(32))
    folder = tmp_path / "m"
    folder.mkdir()
    (folder / "link.bin").symlink_to(tmp_path / "w.bin")
    (folder / "up").symlink_to(tmp_path)
    (folder / "real.bin").write_bytes(bytes(32))
    (folder / "inside.bin").symlink_to("real.bin")
    for location in ("link.bin", "up/w.bin", "inside.bin"):
        path = write(folder, model(initializer=[external(location)]))
        assert "a link is on the way" in refusal(path)


def test_external_data_that_is_no_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    for location, reason in {
        "absent": "No such file",
        "pipe": "not a regular file",
        "folder": "not a regular file",
    }.items():
        path = write(tmp_path, model(initializer=[external(location)]))
        assert reason in refusal(path)


@pytest.mark.parametrize(
    ("entries", "reason"),
    [
        ({"length": 33}, "has 32 bytes, and tensor 'w' ends at 33"),
        ({"offset": 30, "length": 4}, "ends at 34"),
        ({"offset": 33}, "ends at 33"),
        ({"offset": -1}, "offset '-1' of external data is not a number"),
        ({"length": "9" * 5000}, "is not a number"),
        ({"length": "٣"}, "is not a number"),
    ],
)
def test_external_data_that_ends_too_early_is_refused(
    tmp_path: Path, entries: dict[str, object], reason: str
) -> None:
    (tmp_path / "w.bin").write_bytes(bytes(32))
    path = write(tmp_path, model(initializer=[external("w.bin", **entries)]))
    assert reason in refusal(path)


def test_external_data_is_seen_wherever_a_tensor_can_be(tmp_path: Path) -> None:
    bad = external("../w.bin")
    sparse = onnx.SparseTensorProto(values=bad, dims=[4])
    inner = graph([helper.make_node("Identity", ["x"], ["y"])], initializer=[bad])
    constant = helper.make_node("Constant", [], ["y"], value=bad)
    function = function_model("", {"": 21})
    function.functions[0].node.append(constant)
    for content in (
        model(initializer=[bad]),
        model([constant]),
        model([helper.make_node("Constant", [], ["y"], sparse_value=sparse)]),
        model([helper.make_node("If", ["x"], ["y"], then_branch=inner)]),
        model([helper.make_node("Odd", ["x"], ["y"], values=[bad])]),
        model([helper.make_node("Odd", ["x"], ["y"], bodies=[inner])]),
        function,
    ):
        assert "is not a relative path below" in refusal(write(tmp_path, content))
    content = model()
    content.graph.sparse_initializer.append(sparse)
    assert "is not a relative path below" in refusal(write(tmp_path, content))


def test_a_digest_beside_the_model_must_match(tmp_path: Path) -> None:
    path = write(tmp_path, model())
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    beside = tmp_path / "model.onnx.sha256"
    for line in (f"{digest}  model.onnx\n", f"\\{digest.upper()} *model.onnx", digest):
        beside.write_text(line)
        verify_model(path, max_bytes=MAX_BYTES)
    for line in (f"{'0' * 64}  model.onnx\n", "", "\n"):
        beside.write_text(line)
        assert f"its SHA-256 is {digest}" in refusal(path)


SEED = model(
    [
        helper.make_node("If", ["x"], ["y"], then_branch=nested(1).graph),
        helper.make_node("Constant", [], ["z"], value=external("w.bin", length=4)),
    ],
    {"": 21, "ai.onnx.ml": 3},
    functions=list(function_model("", {"": 21}).functions),
).SerializeToString()


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    data = bytearray(SEED)
    for _ in range(draw(st.integers(0, 8))):
        at = draw(st.integers(0, len(data) - 1))
        data[at] = draw(st.integers(0, 255))
    return bytes(data[: draw(st.integers(0, len(data)))])


@settings(max_examples=400, deadline=None)
@given(data=st.one_of(damaged(), st.binary(max_size=200)))
def test_no_bytes_raise_anything_but_a_refusal(
    tmp_path_factory: pytest.TempPathFactory, data: bytes
) -> None:
    path = write(tmp_path_factory.getbasetemp(), data)
    message = ""
    try:
        verify_model(path, max_bytes=MAX_BYTES)
    except ModelRefused as refused:
        message = str(refused)
    assert "\n" not in message
    assert len(message) < 1000

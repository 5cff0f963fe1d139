"""The generated modules say what the files in ``protos/`` say."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorProto, FileDescriptorSet
from google.protobuf.message import Message
from grpc_tools import protoc

ROOT = Path(__file__).parents[2]
MODULES = {
    "gateway/protocol/model_config.proto": "gateway.protocol.model_config_pb2",
    "gateway/protocol/inference.proto": "gateway.protocol.inference_pb2",
    "gateway/protocol/admin.proto": "gateway.protocol.admin_pb2",
    "gateway/protocol/records.proto": "gateway.protocol.records_pb2",
    "gateway/protocol/outcomes.proto": "gateway.protocol.outcomes_pb2",
    "workers/onnx_subset.proto": "workers.onnx_subset_pb2",
    "tests/conformance/interop.proto": "tests.conformance.interop_pb2",
}
FOLDERS = {"tests/conformance": ROOT / "tests" / "conformance"}
"""Where files are that are not in ``protos/``."""


def without_json_names(message: Message) -> Message:
    """Clear ``json_name``, which protoc writes and generated modules leave out."""
    if "json_name" in message.DESCRIPTOR.fields_by_name:
        message.ClearField("json_name")
    for field, value in message.ListFields():
        if field.message_type is None:
            continue
        for part in value if field.is_repeated else [value]:
            without_json_names(part)
    return message


@pytest.mark.parametrize("name", MODULES)
def test_the_generated_module_is_that_of_its_file(name: str, tmp_path: Path) -> None:
    folder = name.rpartition("/")[0]
    target = tmp_path / "set"
    code = protoc.main(
        [
            "protoc",
            f"-I{folder}={FOLDERS.get(folder, ROOT / 'protos')}",
            f"--descriptor_set_out={target}",
            name,
        ]
    )
    assert code == 0
    (compiled,) = FileDescriptorSet.FromString(target.read_bytes()).file
    generated = FileDescriptorProto()
    importlib.import_module(MODULES[name]).DESCRIPTOR.CopyToProto(generated)
    assert without_json_names(generated) == without_json_names(compiled)


def test_every_file_has_a_module() -> None:
    folders = [ROOT / "protos", *FOLDERS.values()]
    files = {path.name for folder in folders for path in folder.rglob("*.proto")}
    assert files == {name.rpartition("/")[2] for name in MODULES}

"""Triton's model configuration: what is read, what is kept, what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from google.protobuf import json_format, text_format
from hypothesis import given
from hypothesis import strategies as st

from gateway.config import AdmissionConfig, BatchingConfig
from gateway.protocol.model_config_pb2 import ModelConfig
from gateway.registry.config_text import ConfigRefused, parse_json, parse_pbtxt
from gateway.registry.model_config import (
    ModelSettings,
    complete_config,
    derive_settings,
)
from workers.spec import DeclaredTensor, ModelSpec, TensorSpec, Warmup, WarmupInput

BATCHING = BatchingConfig(max_queue_delay_us=70)
ADMISSION = AdmissionConfig(max_queue_requests=900)
TENSORS = """
input [ { name: "x" data_type: TYPE_FP32 dims: [ 4 ] } ]
output [ { name: "y" data_type: TYPE_STRING dims: [ -1 ] } ]
"""


def derive(
    text: str | None, folder: Path = Path("unused")
) -> tuple[ModelSettings, tuple[str, ...]]:
    config = None if text is None else parse_pbtxt(text, "m/config.pbtxt")[0]
    return derive_settings(
        "m", config, folder=folder, batching=BATCHING, admission=ADMISSION
    )


def test_a_model_without_configuration_gets_the_servers_defaults() -> None:
    expected = ModelSettings(
        max_batch_rows=None,
        inputs=(),
        outputs=(),
        warmups=(),
        batching=True,
        max_queue_delay_us=70,
        preferred_batch_rows=(),
        max_queue_requests=900,
        priority_levels=0,
        default_priority=0,
        default_timeout_us=0,
        allow_timeout_override=True,
        worker_share=0,
        device_kind="auto",
        intra_op_threads=0,
    )
    assert derive(None) == (expected, ())
    assert derive('name: "m"') == (expected, ())


def test_a_full_configuration_is_taken_over(tmp_path: Path) -> None:
    (tmp_path / "warmup").mkdir()
    (tmp_path / "warmup" / "x.raw").write_bytes(bytes(16))
    settings, notes = derive(
        """
        name: "m" platform: "onnxruntime_onnx" backend: "onnxruntime"
        max_batch_size: 8
        input { name: "x" data_type: TYPE_FP32 dims: [ 2, 2 ] optional: true
                reshape { shape: [ 4 ] } }
        output { name: "y" data_type: TYPE_STRING dims: [ -1 ] }
        dynamic_batching {
          preferred_batch_size: [ 8, 4 ]
          max_queue_delay_microseconds: 100
          priority_levels: 3 default_priority_level: 2
          default_queue_policy { max_queue_size: 5 default_timeout_microseconds: 6 }
        }
        instance_group [ { count: 2 kind: KIND_CPU }, { kind: KIND_AUTO } ]
        parameters { key: "intra_op_thread_count" value { string_value: "3" } }
        model_warmup { name: "w" batch_size: 8 count: 2 inputs {
          key: "x" value { data_type: TYPE_FP32 dims: [ 2, 2 ]
                           input_data_file: "x.raw" } } }
        """,
        tmp_path,
    )
    path = str((tmp_path / "warmup" / "x.raw").resolve())
    assert notes == ()
    assert settings == ModelSettings(
        max_batch_rows=8,
        inputs=(DeclaredTensor("x", "FP32", (2, 2), True, (4,)),),
        outputs=(DeclaredTensor("y", "BYTES", (-1,)),),
        warmups=(Warmup("w", 8, 2, {"x": WarmupInput("FP32", (2, 2), "file", path)}),),
        batching=True,
        max_queue_delay_us=100,
        preferred_batch_rows=(4, 8),
        max_queue_requests=5,
        priority_levels=3,
        default_priority=2,
        default_timeout_us=6,
        allow_timeout_override=False,
        worker_share=3,
        device_kind="cpu",
        intra_op_threads=3,
    )


@pytest.mark.parametrize(
    ("text", "rows", "batching"),
    [
        (TENSORS, 0, False),
        (TENSORS + "dynamic_batching {}", 0, False),
        (TENSORS + "max_batch_size: 8", 8, False),
        (TENSORS + "max_batch_size: 8 dynamic_batching {}", 8, True),
        ("max_batch_size: 8", 8, False),
        ("dynamic_batching {}", None, True),
        ("instance_group { kind: KIND_GPU }", None, True),
    ],
)
def test_batching_means_what_it_means_to_triton(
    text: str, rows: int | None, batching: bool
) -> None:
    settings, _ = derive(text)
    assert (settings.max_batch_rows, settings.batching) == (rows, batching)


def test_a_declared_dynamic_batching_waits_only_as_long_as_it_says() -> None:
    assert derive("dynamic_batching {}")[0].max_queue_delay_us == 0
    assert derive("max_batch_size: 2")[0].max_queue_delay_us == 70


def test_scalar_rows_can_be_declared_by_a_reshape_to_no_dimensions() -> None:
    text = 'output { name: "y" data_type: TYPE_INT64 dims: [ 1 ] reshape { } }'
    assert derive(text)[0].outputs == (DeclaredTensor("y", "INT64", (1,), False, ()),)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('name: "other"', "its configuration is for model 'other'"),
        ("ensemble_scheduling {}", "ensemble_scheduling is not supported"),
        ('platform: "ensemble"', "ensemble_scheduling is not supported"),
        (
            "sequence_batching { control_input [ { name: 's' control [ { } ] } ] }",
            "sequence_batching is not supported",
        ),
        ("model_transaction_policy { decoupled: true }", "decoupled"),
        ('platform: "tensorrt_plan"', "platform 'tensorrt_plan'"),
        ('backend: "python"', "backend 'python'"),
        ("instance_group { kind: KIND_MODEL }", "KIND_MODEL"),
        ("instance_group { count: -1 }", "instance_group.count"),
        ("instance_group [{ kind: KIND_CPU }, { kind: KIND_GPU }]", "mix kinds"),
        ("input { is_shape_tensor: true }", "is_shape_tensor"),
        ("output { is_shape_tensor: true }", "is_shape_tensor"),
        ("input { allow_ragged_batch: true }", "allow_ragged_batch"),
        ("response_cache { enable: true }", "response_cache"),
        ("max_batch_size: -1", "must not be negative"),
        ("dynamic_batching { preferred_batch_size: 0 }", "preferred_batch_size"),
        (
            "max_batch_size: 2 dynamic_batching { preferred_batch_size: 4 }",
            "preferred_batch_size",
        ),
        ("dynamic_batching { priority_levels: 2 }", "default_priority_level"),
        ("dynamic_batching { default_priority_level: 1 }", "default_priority_level"),
        ("dynamic_batching { priority_levels: 99999999 }", "at most 256"),
        ('input { name: "x" }', "tensor 'x': needs a data_type"),
        ("input { data_type: TYPE_FP32 }", "tensors need names"),
        (TENSORS + 'input { name: "x" data_type: TYPE_FP32 }', "tensors need names"),
        ('input { name: "x" data_type: 2 dims: 0 }', "dims must be positive"),
        (
            'input { name: "x" data_type: 2 dims: -1 reshape { shape: -1 } }',
            "reshape is not supported with variable dims",
        ),
        (
            'input { name: "x" data_type: 2 dims: 4 reshape { shape: 3 } }',
            "number of elements",
        ),
        (
            'parameters { key: "intra_op_thread_count" value { string_value: "x" } }',
            "not a number of threads",
        ),
        ("max_batch_size: 2 model_warmup { batch_size: 3 }", "more than the limit 2"),
        (TENSORS + "model_warmup { batch_size: 3 }", "more than the limit 1"),
        (
            'model_warmup { inputs { key: "x" value { data_type: 2 dims: 1 } } }',
            "one of zero_data",
        ),
    ],
)
def test_what_we_do_not_do_is_refused_by_name(text: str, reason: str) -> None:
    with pytest.raises(ConfigRefused) as caught:
        derive(text)
    assert caught.value.message.startswith("m: ")
    assert reason in caught.value.message


@pytest.mark.parametrize("name", ["../x.raw", "absent", "", ".", "link", "/etc", "\0"])
def test_warm_up_data_stays_in_the_warmup_folder(tmp_path: Path, name: str) -> None:
    (tmp_path / "warmup").mkdir()
    (tmp_path / "x.raw").write_bytes(bytes(4))
    (tmp_path / "warmup" / "link").symlink_to("../x.raw")
    config = ModelConfig()
    value = config.model_warmup.add().inputs["x"]
    value.data_type, value.input_data_file = 11, name
    with pytest.raises(ConfigRefused, match="is no file in the warmup folder"):
        derive_settings(
            "m", config, folder=tmp_path, batching=BATCHING, admission=ADMISSION
        )


def test_what_has_no_effect_is_noted() -> None:
    _, notes = derive(
        TENSORS
        + """
        optimization { execution_accelerators { } graph { level: 1 } cuda { } }
        dynamic_batching { preserve_ordering: true
          default_queue_policy { timeout_action: DELAY } }
        instance_group { gpus: 1 host_policy: "p" }
        parameters { key: "other" value { string_value: "1" } }
        runtime: "r"
        """
    )
    assert [
        note.removeprefix("m: ").removesuffix(" has no effect") for note in notes
    ] == [
        "optimization.execution_accelerators",
        "optimization.graph",
        "optimization.cuda",
        "dynamic_batching (max_batch_size is 0)",
        "preserve_ordering",
        "timeout_action DELAY",
        "instance_group.gpus",
        "instance_group.host_policy",
        "runtime",
        "parameter 'other'",
    ]


def test_every_unknown_field_is_named_and_the_rest_is_read() -> None:
    text = """
    # input { comment: 1 }
    new_field { name: "n" inner [ { a: 1 } ] }
    name: "m { not_a_field: 1 }"
    input [ { name: "x" colour: RED dims: [ 1 ] }, { shade: 'it\\'s' optional: true } ]
    instance_group < rate_limiter { resources [ ] } count: 2 >
    parameters { key: "k" value: { string_value: "v" extra: 1 } }
    new_field { }
    """
    config, notes = parse_pbtxt(text, "m/config.pbtxt")
    assert config.instance_group[0].count == 2
    assert notes == tuple(
        f"m/config.pbtxt: the unknown field {field} is ignored"
        for field in (
            "ModelConfig.new_field",
            "ModelInput.colour",
            "ModelInput.shade",
            "ModelInstanceGroup.rate_limiter",
            "ModelParameter.extra",
        )
    )


def test_every_unknown_field_of_json_is_named_and_the_rest_is_read() -> None:
    value = {
        "maxBatchSize": 4,
        "new_field": {"a": 1},
        "input": [{"name": "x", "data_type": "TYPE_FP32", "colour": 1}],
        "parameters": {"k": {"string_value": "v", "extra": 1}},
        "metric_tags": {"any": "value"},
    }
    config, notes = parse_json(json.dumps(value))
    assert config.max_batch_size == 4
    assert [note.split()[5] for note in notes] == [
        "ModelConfig.new_field",
        "ModelInput.colour",
        "ModelParameter.extra",
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('name: "m"\nmax_batch_size: x', "m/config.pbtxt:2: "),
        ('new: 1\n\nname: "m', "m/config.pbtxt:3: "),
        ("input { data_type: TYPE_NEW }", "m/config.pbtxt:1: "),
        ("dynamic_batching {}\nsequence_batching {}", "m/config.pbtxt:2: "),
        ("a {" * 100_000, "m/config.pbtxt:1: blocks are nested too deeply"),
    ],
)
def test_a_syntax_error_has_file_and_line(text: str, message: str) -> None:
    with pytest.raises(ConfigRefused) as caught:
        parse_pbtxt(text, "m/config.pbtxt")
    assert caught.value.message.startswith(message)


@given(
    text=st.lists(
        st.sampled_from(
            [
                *"{}<>[]:,;#'\"\n\\",
                "name",
                "new",
                "input",
                "dims",
                "1",
                "TYPE_FP32",
                " ",
            ]
        )
    ).map("".join)
    | st.text(max_size=30)
)
def test_no_text_raises_anything_but_a_refusal(text: str) -> None:
    for parse in (parse_json, lambda text: parse_pbtxt(text, "config.pbtxt")):
        message = ""
        try:
            parse(text)
        except ConfigRefused as refused:
            message = refused.message
        assert "\n" not in message


@pytest.mark.parametrize("text", ["[]", "nope", '{"name": 1}', "[" * 100_000, ""])
def test_bad_json_is_refused(text: str) -> None:
    with pytest.raises(ConfigRefused, match="config parameter: "):
        parse_json(text)


SPEC = ModelSpec(
    (TensorSpec("x", "FP32", (2, 2), optional=True, model_dims=(4,)),),
    (TensorSpec("y", "BYTES", ()), TensorSpec("z", "INT64", (1,), model_dims=())),
    16,
)


def test_the_config_in_force_is_complete_without_a_declared_one() -> None:
    config = complete_config("m", derive(None)[0], None, SPEC)
    expected = """
    name: "m" platform: "onnxruntime_onnx" backend: "onnxruntime"
    default_model_filename: "model.onnx"
    version_policy { latest { num_versions: 1 } }
    max_batch_size: 16
    input { name: "x" data_type: TYPE_FP32 dims: [ 2, 2 ] optional: true
            reshape { shape: 4 } }
    output { name: "y" data_type: TYPE_STRING }
    output { name: "z" data_type: TYPE_INT64 dims: 1 reshape { } }
    dynamic_batching {
      max_queue_delay_microseconds: 70
      default_queue_policy { max_queue_size: 900 allow_timeout_override: true }
    }
    model_transaction_policy { }
    """
    assert config == text_format.Parse(expected, ModelConfig())
    assert not config.model_transaction_policy.decoupled


def test_the_config_in_force_loads_to_the_same_settings() -> None:
    settings, _ = derive(None)
    config = complete_config("m", settings, None, SPEC)
    again, _ = parse_json(json_format.MessageToJson(config))
    reread, notes = derive_settings(
        "m", again, folder=Path(), batching=BATCHING, admission=ADMISSION
    )
    assert notes == ()
    assert complete_config("m", reread, again, SPEC) == config


@pytest.mark.parametrize(
    ("text", "rows"), [("max_batch_size: 8", 8), (TENSORS + "dynamic_batching {}", 0)]
)
def test_the_config_in_force_has_dynamic_batching_only_if_we_batch(
    text: str, rows: int
) -> None:
    declared, _ = parse_pbtxt(text + ' instance_group { count: 3 } runtime: "r"', "c")
    spec = ModelSpec(SPEC.inputs, SPEC.outputs, rows)
    config = complete_config("m", derive(text)[0], declared, spec)
    assert not config.HasField("dynamic_batching")
    assert not config.HasField("sequence_batching")
    assert config.max_batch_size == rows
    assert [tensor.name for tensor in config.input] == ["x"]
    assert config.instance_group[0].count == 3
    assert declared.name == ""

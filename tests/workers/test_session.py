"""Opening and running versions, with the real onnxruntime on the CPU."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest

from featurizer.datatypes import DATATYPES
from tests import onnx_models as models
from workers import cuda, session
from workers.arrays import batch_buckets, bucket_for, is_bindable, pad_rows
from workers.failures import OutOfMemory, RunFailed, one_line, run_failed
from workers.session import BoundBucket, LoadedVersion, open_version
from workers.signature import LoadRefused
from workers.spec import (
    DeclaredTensor,
    LoadOrder,
    ModelSpec,
    SessionSettings,
    TensorSpec,
    Warmup,
    WarmupInput,
)

Open = Callable[..., LoadedVersion]


@pytest.fixture
def order(tmp_path: Path) -> Callable[..., LoadOrder]:
    def make(model: bytes, **changes: Any) -> LoadOrder:
        path = tmp_path / "model.onnx"
        path.write_bytes(model)
        return LoadOrder(handle=7, model="m", version=1, path=str(path), **changes)

    return make


@pytest.fixture
def load(order: Callable[..., LoadOrder]) -> Open:
    def make(model: bytes, **changes: Any) -> LoadedVersion:
        return open_version(order(model, **changes))

    return make


def declared(
    name: str, datatype: str, *dims: int, optional: bool = False
) -> DeclaredTensor:
    return DeclaredTensor(name, datatype, dims, optional)


def values(datatype: str) -> np.ndarray:
    dtype = DATATYPES[datatype].numpy
    if datatype == "BYTES":
        texts = [b"", b"a\0b", "é".encode(), b"x" * 300]
        return np.array(texts, dtype=object).reshape(2, 2)
    if datatype == "BOOL":
        return np.array([[True, False], [False, True]])
    if datatype == "BF16":
        return np.array([[0x3F80, 0xC000], [0x0000, 0x7F80]], dtype=dtype)
    if dtype.kind == "f":
        return np.array([[1.5, -2], [np.inf, np.nan]], dtype=dtype)
    limits = np.iinfo(dtype)
    return np.array([[limits.min, limits.max], [0, 1]], dtype=dtype)


class TestRun:
    @pytest.mark.parametrize("datatype", DATATYPES)
    def test_every_datatype_round_trips(self, load: Open, datatype: str) -> None:
        loaded = load(models.identity(datatype))
        assert loaded.spec.inputs == (TensorSpec("x", datatype, (2,)),)
        assert loaded.spec.max_batch_rows == 64
        array = values(datatype)
        (output,) = loaded.run([array], 2)
        assert output.dtype == DATATYPES[datatype].numpy
        if datatype == "BYTES":
            output = np.vectorize(str.encode, otypes=[object])(output)
        np.testing.assert_array_equal(output, array)

    @pytest.mark.parametrize(
        ("inside", "outside"), [("BF16", "FP32"), ("FP32", "BF16")]
    )
    def test_bf16_is_computed_with(self, load: Open, inside: str, outside: str) -> None:
        loaded = load(models.bf16_doubler(inside, outside))
        bits = np.array([[0x3F80, 0xC000, 0x0000, 0x4040]], np.uint16)  # 1 -2 0 3
        floats = np.array([[1, -2, 0, 3]], np.float32)
        (output,) = loaded.run([bits if inside == "BF16" else floats], 1)
        if outside == "BF16":
            output = (output.astype(np.uint32) << 16).view(np.float32)
        np.testing.assert_array_equal(output, floats * 2)

    def test_bf16_survives_a_strided_input(self, load: Open) -> None:
        loaded = load(models.bf16_doubler())
        wide = np.arange(0x3F80, 0x3F88, dtype=np.uint16).reshape(1, 8)
        (output,) = loaded.run([wide[:, ::2]], 1)
        np.testing.assert_array_equal(output, wide[:, ::2] + 0x80)

    def test_batch_rows_equal_single_rows(self, load: Open) -> None:
        loaded = load(models.logistic_regression())
        rows = np.random.default_rng(3).standard_normal((64, 30)).astype(np.float32)
        (together,) = loaded.run([rows], 64)
        for index in range(64):
            (alone,) = loaded.run([rows[index : index + 1]], 1)
            np.testing.assert_allclose(together[index], alone[0], atol=1e-5)

    def test_inputs_and_outputs_keep_the_order_of_the_spec(self, load: Open) -> None:
        outputs = (declared("total", "FP32", 1), declared("sum", "FP32", 3))
        inputs = (declared("b", "FP32", 3), declared("a", "FP32", 3))
        loaded = load(models.two_by_two(), inputs=inputs, outputs=outputs)
        ones = np.ones((2, 3), np.float32)
        total, both = loaded.run([ones, ones * 2], 2)
        assert total.tolist() == [[9], [9]]
        assert both.tolist() == [[3, 3, 3]] * 2

    def test_only_declared_outputs_are_computed(self, load: Open) -> None:
        loaded = load(models.two_by_two(), outputs=(declared("total", "FP32", 1),))
        ones = np.ones((1, 3), np.float32)
        assert [one.tolist() for one in loaded.run([ones, ones], 1)] == [[[6]]]

    def test_an_absent_optional_input_takes_its_default(self, load: Open) -> None:
        inputs = (
            declared("x", "FP32", -1),
            declared("w", "FP32", 1, optional=True),
        )
        loaded = load(models.with_default(), inputs=inputs, max_batch_rows=0)
        x = np.ones(3, np.float32)
        assert loaded.run([x, None], 0)[0].tolist() == [2, 2, 2]
        assert loaded.run([x, np.array([5], np.float32)], 0)[0].tolist() == [5, 5, 5]

    def test_an_input_of_optional_type_may_be_absent(self, load: Open) -> None:
        loaded = load(models.optional_input())
        assert loaded.spec.inputs == (TensorSpec("x", "FP32", (-1,), optional=True),)
        assert loaded.run([None], 0)[0].tolist() is False
        assert loaded.run([np.ones(2, np.float32)], 0)[0].tolist() is True

    def test_text_and_bf16_come_out_of_one_run(self, load: Open) -> None:
        model = models.build(
            [
                models.helper.make_node("Cast", ["x"], ["y"], to=models.CODES["BF16"]),
                models.helper.make_node("Cast", ["x"], ["t"], to=models.CODES["BYTES"]),
            ],
            [models.info("x", models.FLOAT, ["N"])],
            [
                models.info("y", models.CODES["BF16"], ["N"]),
                models.info("t", models.CODES["BYTES"], ["N"]),
            ],
        )
        loaded = load(model)
        bits, text = loaded.run([np.array([1, 2], np.float32)], 2)
        assert bits.tolist() == [0x3F80, 0x4000]
        assert text.tolist() == ["1", "2"]

    def test_reshape_is_applied_both_ways(self, load: Open) -> None:
        tensor = DeclaredTensor("x", "FP32", (3, 4), reshape=(12,))
        output = DeclaredTensor("y", "FP32", (2, 6), reshape=(12,))
        model = models.identity("FP32", ["N", 12])
        loaded = load(model, inputs=(tensor,), outputs=(output,), max_batch_rows=4)
        array = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
        (result,) = loaded.run([array], 2)
        np.testing.assert_array_equal(result, array.reshape(2, 2, 6))

    def test_a_failing_run_is_one_line_without_paths(
        self, load: Open, capfd: pytest.CaptureFixture[str]
    ) -> None:
        loaded = load(models.divides(), max_batch_rows=8)
        with pytest.raises(RunFailed, match="Integer division by zero") as caught:
            loaded.run([np.array([1]), np.array([0])], 1)
        assert "\n" not in str(caught.value)
        assert "ONNXRuntimeError" not in str(caught.value)
        assert loaded.run([np.array([6]), np.array([2])], 1)[0].tolist() == [3]
        assert capfd.readouterr() == ("", "")

    def test_running_out_of_memory_is_told_apart(
        self, load: Open, capfd: pytest.CaptureFixture[str]
    ) -> None:
        loaded = load(models.allocates())
        with pytest.raises(OutOfMemory, match="Failed to allocate") as caught:
            loaded.run([np.array([2**44])], 0)
        assert "onnxruntime_src" not in str(caught.value)
        with pytest.raises(RunFailed) as overflow:  # no machine has 2**62 floats
            loaded.run([np.array([2**62])], 0)
        assert not isinstance(overflow.value, OutOfMemory)
        assert capfd.readouterr() == ("", "")

    def test_wrong_input_type_is_a_failure(self, load: Open) -> None:
        loaded = load(models.logistic_regression())
        with pytest.raises(RunFailed, match=r"expected: \(tensor\(float\)\)"):
            loaded.run([np.zeros((1, 30))], 1)

    def test_text_that_is_not_utf8_is_a_failure(self, load: Open) -> None:
        loaded = load(models.identity("BYTES"))
        with pytest.raises(RunFailed, match="utf-8"):
            loaded.run([np.array([[b"\xff", b""]], dtype=object)], 1)

    def test_a_lost_row_is_a_failure(self, load: Open) -> None:
        loaded = load(models.drops_rows(), max_batch_rows=4)
        rows = np.array([[1, 0], [-1, 0], [2, 0]], np.float32)
        with pytest.raises(RunFailed, match=r"of 3 rows gave outputs 'y' \[2, 2\]"):
            loaded.run([rows], 3)

    def test_close_frees_the_session(self, load: Open) -> None:
        loaded = load(models.logistic_regression())
        alive = weakref.ref(loaded._session)
        loaded.close()
        assert alive() is None


class TestDeriving:
    def test_rows_that_keep_apart_are_batched(self, load: Open) -> None:
        loaded = load(models.two_by_two(), default_max_batch_rows=16)
        assert loaded.spec == ModelSpec(
            (TensorSpec("a", "FP32", (3,)), TensorSpec("b", "FP32", (3,))),
            (TensorSpec("sum", "FP32", (3,)), TensorSpec("total", "FP32", (1,))),
            16,
        )
        assert loaded.report.error == ""
        assert loaded.report.notes == ()
        assert loaded.report.handle == 7
        assert loaded.report.provider == "CPUExecutionProvider"
        assert loaded.report.slowest_run_ns > 0

    @pytest.mark.parametrize(
        ("model", "reason"),
        [
            (models.no_batch_axis(), "first dimension of input 'x' is fixed at 3"),
            (models.mixes_rows(), "output 'y' differs"),
            (models.drops_rows(), "does not keep rows apart"),
            (models.divides(), "Integer division by zero"),
            (models.identity("FP32", []), "no batch dimension"),
        ],
    )
    def test_others_are_not_and_a_note_says_why(
        self, load: Open, model: bytes, reason: str
    ) -> None:
        loaded = load(model)
        assert loaded.spec.max_batch_rows == 0
        (note,) = loaded.report.notes
        assert note.startswith("requests are not batched: ")
        assert reason in note

    def test_without_batching_dims_are_the_full_shape(self, load: Open) -> None:
        assert load(models.mixes_rows()).spec.inputs[0].dims == (-1, 2)
        assert load(models.no_batch_axis()).spec.outputs[0].dims == (3, 4)

    def test_inner_dimensions_are_searched_for(self, load: Open) -> None:
        for window in (1, 5, 20):
            loaded = load(models.variable_inner(window))
            assert loaded.spec.inputs[0].dims == (1, -1)
            assert loaded.spec.max_batch_rows == 64
            assert loaded.report.slowest_run_ns > 0

    def test_a_failing_probe_is_not_a_failing_load(self, load: Open) -> None:
        loaded = load(models.variable_inner(500))
        assert loaded.spec.max_batch_rows == 0
        assert loaded.report.slowest_run_ns == 0
        assert "no run on synthetic data succeeded" in loaded.report.notes[0]

    def test_a_declared_limit_holds(self, load: Open) -> None:
        model = models.logistic_regression()
        assert load(model, max_batch_rows=5).spec.max_batch_rows == 5
        unbatched = load(model, max_batch_rows=0)
        assert unbatched.spec.inputs[0].dims == (-1, 30)
        assert unbatched.report.notes == ()

    def test_batching_can_be_off_by_default(self, load: Open) -> None:
        loaded = load(models.logistic_regression(), default_max_batch_rows=0)
        assert loaded.spec.max_batch_rows == 0

    def test_initialisers_are_not_inputs(self, load: Open) -> None:
        spec = load(models.with_default()).spec
        assert [tensor.name for tensor in spec.inputs] == ["x"]

    def test_an_open_rank_is_taken_from_a_run(self, load: Open) -> None:
        model = models.unknown_rank_out()
        assert load(model).spec.outputs[0].dims == (-1,)
        assert load(model, max_batch_rows=0).spec.outputs[0].dims == (-1, -1)

    def test_a_given_spec_is_final(self, load: Open) -> None:
        spec = load(models.logistic_regression()).spec
        spec = replace(spec, max_batch_rows=4)
        loaded = load(models.logistic_regression(), spec=spec)
        assert loaded.spec == spec
        assert loaded.report.slowest_run_ns > 0


class TestRefusals:
    @pytest.mark.parametrize(
        ("model", "changes", "reason"),
        [
            (b"garbage", {}, "Load model from model.onnx failed:Protobuf parsing"),
            (b"", {}, "."),
            (models.zipmap(), {}, "export the classifier with zipmap off"),
            (
                models.logistic_regression(),
                {"inputs": (declared("X", "FP32", 30),)},
                "no input 'X'; it has 'x'",
            ),
            (
                models.logistic_regression(),
                {"inputs": (declared("x", "FP64", 30),)},
                "input 'x' is declared FP64, in the model it is FP32",
            ),
            (
                models.logistic_regression(),
                {"inputs": (declared("x", "FP32", 31),), "max_batch_rows": 8},
                r"input 'x' is declared with dims \[31\], in the model it has \[30\]",
            ),
            (
                models.logistic_regression(),
                {"inputs": (declared("x", "FP32", -1),), "max_batch_rows": 8},
                "input 'x'",
            ),
            (
                models.logistic_regression(),
                {"outputs": (declared("probabilities", "FP32", 2, 1),)},
                "output 'probabilities'",
            ),
            (
                models.two_by_two(),
                {"inputs": (declared("a", "FP32", 3),)},
                "needs input 'b', which is not declared",
            ),
            (
                models.no_batch_axis(),
                {"max_batch_rows": 4},
                "first dimension of input 'x' is fixed at 3",
            ),
            (
                models.logistic_regression(),
                {"inputs": (declared("x", "FP32", 30, optional=True),)},
                "no default",
            ),
            (
                models.identity("FP32", ["N", 12]),
                {
                    "inputs": (DeclaredTensor("x", "FP32", (3, 5), reshape=(12,)),),
                    "max_batch_rows": 4,
                },
                "different numbers of elements",
            ),
            (
                models.identity("FP32", ["N", 12]),
                {
                    "inputs": (DeclaredTensor("x", "FP32", (-1,), reshape=(12,)),),
                    "max_batch_rows": 4,
                },
                "fixed dimensions",
            ),
        ],
    )
    def test_a_refusal_says_why_in_one_line_and_is_quiet(
        self,
        load: Open,
        capfd: pytest.CaptureFixture[str],
        model: bytes,
        changes: dict[str, Any],
        reason: str,
    ) -> None:
        with pytest.raises(LoadRefused, match=reason) as caught:
            load(model, **changes)
        assert "\n" not in str(caught.value)
        assert "/" not in str(caught.value)
        assert capfd.readouterr() == ("", "")

    def test_a_missing_file_is_refused(self) -> None:
        with pytest.raises(LoadRefused, match="exist"):
            open_version(LoadOrder(1, "m", 1, "/nowhere/model.onnx"))

    def test_bytes_in_with_bf16_out_is_refused(self, load: Open) -> None:
        model = models.build(
            [
                models.helper.make_node("Identity", ["s"], ["t"]),
                models.helper.make_node("Identity", ["x"], ["y"]),
            ],
            [
                models.info("s", models.CODES["BYTES"], ["N"]),
                models.info("x", models.CODES["BF16"], ["N"]),
            ],
            [
                models.info("t", models.CODES["BYTES"], ["N"]),
                models.info("y", models.CODES["BF16"], ["N"]),
            ],
        )
        with pytest.raises(LoadRefused, match="cast the outputs to FP32"):
            load(model)


class TestWarmup:
    def warmup(self, rows: int = 2, count: int = 3, **inputs: WarmupInput) -> Warmup:
        return Warmup("first", rows, count, inputs)

    def test_declared_runs_are_made_and_timed(self, load: Open, tmp_path: Path) -> None:
        raw = tmp_path / "raw"
        raw.write_bytes(np.arange(3, dtype="<f4").tobytes())
        warmup = self.warmup(
            a=WarmupInput("FP32", (3,), "file", str(raw)),
            b=WarmupInput("FP32", (3,), "random"),
        )
        loaded = load(models.two_by_two(), warmups=(warmup,))
        assert loaded.report.slowest_run_ns > 0

    def test_a_failing_declared_run_refuses_the_load(self, load: Open) -> None:
        zero = WarmupInput("INT64", (), "zero")
        with pytest.raises(LoadRefused, match=r"warm-up 'first' failed: .*by zero"):
            load(
                models.divides(),
                max_batch_rows=4,
                warmups=(self.warmup(a=zero, b=zero),),
            )

    @pytest.mark.parametrize(
        ("rows", "inputs", "reason"),
        [
            (2, {"a": WarmupInput("FP32", (3,), "zero")}, "lacks input 'b'"),
            (2, {"c": WarmupInput("FP32", (3,), "zero")}, "unknown input 'c'"),
            (2, {"a": WarmupInput("FP64", (3,), "zero")}, r"FP64\[3\]"),
            (2, {"a": WarmupInput("FP32", (4,), "zero")}, r"takes FP32\[3\]"),
            (65, {"a": WarmupInput("FP32", (3,), "zero")}, "limit of 64"),
            (1, {"a": WarmupInput("FP32", (3,), "file", "/nowhere")}, "nowhere"),
        ],
    )
    def test_a_declared_run_that_does_not_fit_is_refused(
        self, load: Open, rows: int, inputs: dict[str, WarmupInput], reason: str
    ) -> None:
        with pytest.raises(LoadRefused, match=reason):
            load(models.two_by_two(), warmups=(self.warmup(rows, **inputs),))

    def test_zero_and_random_fill_every_datatype(self, load: Open) -> None:
        for datatype in DATATYPES:
            for source in ("zero", "random"):
                filler = WarmupInput(datatype, (2,), source)  # type: ignore[arg-type]
                warmups = (self.warmup(x=filler),)
                assert not load(models.identity(datatype), warmups=warmups).report.notes

    def test_an_optional_input_may_be_left_out(self, load: Open) -> None:
        inputs = (declared("x", "FP32", -1), declared("w", "FP32", 1, optional=True))
        warmup = self.warmup(rows=0, x=WarmupInput("FP32", (5,), "zero"))
        load(models.with_default(), inputs=inputs, max_batch_rows=0, warmups=(warmup,))

    def test_no_memory_for_a_batch_size_refuses_the_load(
        self, load: Open, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        original = LoadedVersion.run

        def run(self: LoadedVersion, arrays: list[Any], rows: int) -> list[Any]:
            if rows > 16:
                raise OutOfMemory("no memory")
            return original(self, arrays, rows)

        monkeypatch.setattr(LoadedVersion, "run", run)
        with pytest.raises(LoadRefused, match="batch of 32 rows runs out of memory"):
            load(models.logistic_regression())

    def test_a_wrong_output_type_refuses_the_load(
        self, load: Open, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        original = LoadedVersion.run

        def run(self: LoadedVersion, arrays: list[Any], rows: int) -> list[Any]:
            return [one.astype(np.float64) for one in original(self, arrays, rows)]

        monkeypatch.setattr(LoadedVersion, "run", run)
        with pytest.raises(LoadRefused, match="came out as float64, not as FP32"):
            load(models.logistic_regression())


class TestCuda:
    SETTINGS = SessionSettings(device="cuda")

    @pytest.mark.skipif(cuda.look_at_driver() is not None, reason="there is a driver")
    def test_without_a_gpu_the_load_is_refused(
        self, load: Open, capfd: pytest.CaptureFixture[str]
    ) -> None:
        with pytest.raises(
            LoadRefused, match="set the model's device to cpu"
        ) as caught:
            load(models.logistic_regression(), settings=self.SETTINGS)
        assert "libcuda.so.1" in str(caught.value) or "no CUDA" in str(caught.value)
        assert capfd.readouterr() == ("", "")

    @pytest.mark.skipif(cuda.look_at_driver() is not None, reason="there is a driver")
    def test_a_silent_fallback_is_refused(
        self,
        load: Open,
        monkeypatch: pytest.MonkeyPatch,
        capfd: pytest.CaptureFixture[str],
    ) -> None:
        monkeypatch.setattr(cuda, "why_unavailable", lambda *_: "")
        with pytest.raises(LoadRefused, match="onnxruntime could not load its CUDA"):
            load(models.logistic_regression(), settings=self.SETTINGS)
        assert capfd.readouterr() == ("", "")

    @pytest.mark.parametrize(
        ("providers", "driver", "device_id", "reason"),
        [
            (["CPUExecutionProvider"], None, 0, "install onnxruntime-gpu"),
            ([cuda.PROVIDER], None, 0, "no NVIDIA driver"),
            ([cuda.PROVIDER], cuda.Driver(0, 13), 0, "shows no GPU"),
            ([cuda.PROVIDER], cuda.Driver(2, 13), 2, "cuda:2"),
            ([cuda.PROVIDER], cuda.Driver(1, 12), 0, "update the driver"),
        ],
    )
    def test_what_is_missing_is_named(
        self,
        providers: list[str],
        driver: cuda.Driver | None,
        device_id: int,
        reason: str,
    ) -> None:
        message = cuda.why_unavailable(providers, driver, device_id, "13.0")
        assert reason in message
        assert message.endswith(cuda.WAY_OUT)

    def test_nothing_speaks_against_a_fitting_gpu(self) -> None:
        fits = cuda.Driver(1, 13)
        assert cuda.why_unavailable([cuda.PROVIDER], fits, 0, "13.0") == ""
        assert cuda.why_unavailable([cuda.PROVIDER], fits, 0, "") == ""

    def test_provider_options(self) -> None:
        assert cuda.provider_options(SessionSettings(device="cuda", device_id=2)) == {
            "device_id": "2",
            "cudnn_conv_algo_search": "HEURISTIC",
            "arena_extend_strategy": "kSameAsRequested",
            "do_copy_in_default_stream": "1",
        }
        full = SessionSettings(device="cuda", gpu_memory_bytes=9, cuda_graphs=True)
        options = cuda.provider_options(full)
        assert options["gpu_mem_limit"] == "9"
        assert options["enable_cuda_graph"] == "1"

    def test_graphs_are_captured_per_bucket_and_nowhere_else(self) -> None:
        def graph_id(settings: SessionSettings, bucket: int | None) -> str:
            options = session._run_options(settings, bucket)
            return str(options.get_run_config_entry("gpu_graph_id"))

        graphs = SessionSettings(device="cuda", cuda_graphs=True)
        assert graph_id(graphs, 8) == "8"
        assert graph_id(graphs, None) == "-1"
        assert graph_id(self.SETTINGS, 8) == "-1"


class TestBuckets:
    def test_sizes_are_powers_of_two_and_the_limit(self) -> None:
        assert batch_buckets(0) == batch_buckets(1) == (1,)
        assert batch_buckets(64) == (1, 2, 4, 8, 16, 32, 64)
        assert batch_buckets(6) == (1, 2, 4, 6)

    def test_rows_go_to_the_next_size_up(self) -> None:
        sizes = batch_buckets(6)
        assert [bucket_for(sizes, rows) for rows in range(1, 8)] == [
            1,
            2,
            4,
            4,
            6,
            6,
            7,
        ]

    def test_padding_repeats_the_last_row(self) -> None:
        array = np.array([[1, 2], [3, 4]])
        assert pad_rows(array, 4).tolist() == [[1, 2], [3, 4], [3, 4], [3, 4]]
        assert pad_rows(array, 2) is array

    def test_only_one_shape_of_plain_memory_is_bindable(self) -> None:
        def spec(datatype: str, *dims: int, optional: bool = False) -> ModelSpec:
            tensor = TensorSpec("x", datatype, dims, optional)
            return ModelSpec((tensor,), (TensorSpec("y", "FP32", (2,)),), 4)

        assert is_bindable(spec("FP32", 3))
        assert not is_bindable(spec("FP32", -1))
        assert not is_bindable(spec("BYTES", 3))
        assert not is_bindable(spec("BF16", 3))
        assert not is_bindable(spec("FP32", 3, optional=True))

    @pytest.mark.parametrize("datatype", sorted(DATATYPES.keys() - {"BYTES", "BF16"}))
    def test_bound_buffers_hold_every_plain_datatype(self, datatype: str) -> None:
        model = ort.InferenceSession(
            models.identity(datatype), providers=["CPUExecutionProvider"]
        )
        tensor = TensorSpec("x", datatype, (1, 2), model_dims=(2,))
        spec = ModelSpec((tensor,), (TensorSpec("y", datatype, (2,)),), 4)
        bucket = BoundBucket(model, spec, (2,), ("cpu", 0), ort.RunOptions())
        first = values(datatype)
        second = first[::-1]
        one = bucket.run([first.reshape(2, 1, 2)])[0].copy()
        (two,) = bucket.run([second.reshape(2, 1, 2)])
        np.testing.assert_array_equal(two, second)
        np.testing.assert_array_equal(one, first)

    def test_a_padded_bound_run_equals_a_plain_one(
        self, order: Callable[..., LoadOrder]
    ) -> None:
        """The path of a GPU, on the CPU: pad, copy in, run, copy out, cut."""
        plan = order(models.two_by_two(), max_batch_rows=8)
        plain = open_version(plan)
        padded = LoadedVersion(plain._session, plain.spec, plan, plan.settings)
        padded._sizes = batch_buckets(8)
        padded._binds = True
        random = np.random.default_rng(5)
        for rows in (1, 2, 3, 5, 8, 3):
            arrays = [random.standard_normal((rows, 3)).astype("<f4") for _ in "ab"]
            expected = plain.run([*arrays], rows)
            for left, right in zip(padded.run([*arrays], rows), expected, strict=True):
                assert left.shape == right.shape
                np.testing.assert_allclose(left, right, atol=1e-6)
        assert sorted(padded._buckets) == [1, 2, 4, 8]
        padded.close()


class TestMessages:
    def test_paths_and_codes_go(self) -> None:
        text = (
            "[ONNXRuntimeError] : 1 : FAIL : Load model from /s/a/model.onnx failed:"
            "/onnxruntime_src/onnxruntime/core/x.cc:3 void* ort::A::B(int, bool) "
            "/s/a/weights.bin\nis missing at /layer/Conv"
        )
        assert one_line(text, "/s/a/model.onnx") == (
            "Load model from model.onnx failed:weights.bin is missing at /layer/Conv"
        )

    def test_memory_errors_are_told_by_class_or_text(self) -> None:
        assert isinstance(run_failed(MemoryError(), "/m"), OutOfMemory)
        assert isinstance(
            run_failed(RuntimeError("CUDA failure 2: out of memory"), "/m"), OutOfMemory
        )
        assert type(run_failed(RuntimeError("no"), "/m")) is RunFailed
        assert str(run_failed(ValueError(), "/m")) == "ValueError"

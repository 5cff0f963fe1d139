"""onnxruntime: opening a model and running it. The only module that imports it.

A process opens one version at a time: creating sessions concurrently is racy in
onnxruntime (issue 27089) and holds the GIL (issue 27063). Runs release the GIL.
"""

from __future__ import annotations

import contextlib
import ctypes
import io
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime as ort

from featurizer.datatypes import DATATYPES
from workers import cuda
from workers.arrays import (
    Array,
    batch_buckets,
    bucket_for,
    decode_elements,
    is_bindable,
    model_shape,
    needs_conversion,
    pad_rows,
)
from workers.failures import RunFailed, one_line, run_failed
from workers.plain import QuickRun, is_plain
from workers.signature import Graph, LoadRefused, Port
from workers.spec import LoadOrder, LoadReport, ModelSpec, SessionSettings, TensorSpec
from workers.warmup import settle, warm_up

_LOG_FATAL = 4
_CPU = "CPUExecutionProvider"


def open_version(order: LoadOrder) -> LoadedVersion:
    """Open, check, probe and warm up a version.

    Args:
        order: The file and how to serve it.

    Returns:
        The version, ready; its first request is as fast as any.

    Raises:
        LoadRefused: It cannot be served as ordered; one line for people.
    """
    session = _create(order.path, order.settings)
    graph = _describe(session)
    # A captured CUDA graph keeps the addresses it was captured with, and the probe's
    # buffers go: probing captures none.
    uncaptured = replace(order.settings, cuda_graphs=False)
    settled = settle(
        order, graph, lambda spec: LoadedVersion(session, spec, order, uncaptured).run
    )
    loaded = LoadedVersion(session, settled.spec, order, order.settings)
    slowest_ns, notes = warm_up(settled, order.warmups, loaded.run)
    loaded.report = replace(
        loaded.report, slowest_run_ns=slowest_ns, notes=settled.notes + notes
    )
    return loaded


class LoadedVersion:
    """A version ready to run.

    Not thread-safe.

    Args:
        session: The ``InferenceSession``; shared between the versions of a probe.
        spec: Its tensors.
        order: Where the model came from.
        settings: How to run it.

    Attributes:
        spec: The tensors of the version.
        report: What came of the load.

    Raises:
        LoadRefused: onnxruntime's Python binding cannot run such a model.
    """

    def __init__(
        self,
        session: ort.InferenceSession,
        spec: ModelSpec,
        order: LoadOrder,
        settings: SessionSettings,
    ) -> None:
        self.spec = spec
        self.report = LoadReport(
            order.handle, spec=spec, provider=session.get_providers()[0]
        )
        self._path = order.path
        self._session = session
        # The binding itself: the public method checks the feed a second time and
        # compares it with a fallback we refuse. 3.4 instead of 4.3 us a run.
        self._run_session = session._sess.run
        self._input_names = [tensor.name for tensor in spec.inputs]
        self._output_names = [tensor.name for tensor in spec.outputs]
        self._leading = spec.max_batch_rows > 0
        self._plain = not any(map(needs_conversion, spec.inputs))
        self._reshapes = any(tensor.model_dims is not None for tensor in spec.outputs)
        self._bf16 = any(tensor.datatype == "BF16" for tensor in spec.outputs)
        if self._bf16 and any(tensor.datatype == "BYTES" for tensor in spec.inputs):
            raise LoadRefused(
                "BYTES inputs together with BF16 outputs cannot be run through "
                "onnxruntime's Python binding; cast the outputs to FP32 in the model"
            )
        self._buckets: dict[int, BoundBucket] = {}
        self._sizes: tuple[int, ...] = ()
        self._settings = settings
        self._binds = False
        self._options = _run_options(settings, bucket=None)
        if settings.device == "cuda":
            if self._leading and order.across_requests:  # else rows may mix
                self._sizes = batch_buckets(spec.max_batch_rows)
            self._binds = is_bindable(spec)

    def run(self, arrays: list[Array | None], rows: int) -> list[Array]:
        """Run one batch.

        Args:
            arrays: One per input of `spec`, in order; ``None`` where an optional one
                is absent. Shape (rows, *dims) where the version batches, else the
                full shape; dtype of the input's datatype (BF16 as uint16 bit
                patterns, BYTES as objects, ``bytes`` in UTF-8 or ``str``).
            rows: Rows of the batch; without meaning where the version has none.

        Returns:
            One per output of `spec`, in order, shaped likewise; BYTES as ``str``
            objects. NaN is an answer like any other.

        Raises:
            RunFailed: The model failed, or does not keep rows apart.
            OutOfMemory: There was not enough memory.
        """
        try:
            if self._sizes:
                outputs = self._run_padded(arrays, rows)
            else:
                outputs = self._run_exact(arrays, rows)
        except RunFailed:
            raise
        except Exception as error:  # the binding raises a dozen unrelated classes
            raise run_failed(error, self._path) from None
        if self._reshapes:
            return [
                array
                if tensor.model_dims is None
                else array.reshape(self._shape(rows) + tensor.dims)
                for tensor, array in zip(self.spec.outputs, outputs, strict=True)
            ]
        return outputs

    def quick(self) -> QuickRun | None:
        """Return the short way for the usual run, where the version allows it."""
        if self._binds or self._sizes or not is_plain(self.spec):
            return None
        run, options = self._run_session, self._options
        name, names = self._input_names[0], self._output_names
        return QuickRun(lambda array: run(names, {name: array}, options)[0], self.spec)

    def close(self) -> None:
        """Free the version's memory; nothing may be called after it."""
        self._buckets.clear()
        del self._session, self._run_session

    def _shape(self, rows: int) -> tuple[int, ...]:
        return (rows,) if self._leading else ()

    def _run_padded(self, arrays: list[Array | None], rows: int) -> list[Array]:
        """Run at the next batch size up, and cut the answer back."""
        size = bucket_for(self._sizes, rows)
        padded = [None if one is None else pad_rows(one, size) for one in arrays]
        return [array[:rows] for array in self._run_exact(padded, size)]

    def _run_exact(self, arrays: list[Array | None], rows: int) -> list[Array]:
        if self._binds:
            return self._bucket(rows).run(arrays)
        options = self._options
        if self._plain:
            feed = dict(zip(self._input_names, arrays, strict=True))
        else:
            feed = self._feed(arrays, self._shape(rows))
        outputs: list[Array]
        if self._bf16:
            values = {name: _ort_value(value) for name, value in feed.items()}
            outputs = [
                _array(value)
                for value in self._session.run_with_ort_values(
                    self._output_names, values, options
                )
            ]
        else:
            outputs = self._run_session(self._output_names, feed, options)
        if self._leading:
            for array in outputs:
                if array.shape[:1] != (rows,):
                    raise self._mixed(outputs, rows)
        return outputs

    def _mixed(self, outputs: list[Array], rows: int) -> RunFailed:
        shapes = ", ".join(
            f"'{name}' {list(array.shape)}"
            for name, array in zip(self._output_names, outputs, strict=True)
        )
        return RunFailed(
            f"a batch of {rows} rows gave outputs {shapes}: the model does not keep "
            "rows apart"
        )

    def _bucket(self, rows: int) -> BoundBucket:
        """Return the buffers for a batch size; made at its first run, in warm-up."""
        key = rows if self._leading else 0
        bucket = self._buckets.get(key)
        if bucket is None:
            options = _run_options(self._settings, bucket=key)
            device = (self._settings.device, self._settings.device_id)
            bucket = BoundBucket(
                self._session, self.spec, self._shape(rows), device, options
            )
            self._buckets[key] = bucket
        return bucket

    def _feed(
        self, arrays: list[Array | None], leading: tuple[int, ...]
    ) -> dict[str, Array | ort.OrtValue]:
        """Turn arrays into what the binding takes, without the absent ones."""
        feed: dict[str, Array | ort.OrtValue] = {}
        for tensor, array in zip(self.spec.inputs, arrays, strict=True):
            if array is None:
                continue
            if tensor.model_dims is not None:
                array = array.reshape(model_shape(tensor, leading))  # noqa: PLW2901
            if tensor.datatype == "BYTES":
                feed[tensor.name] = decode_elements(array)
            elif tensor.datatype == "BF16":
                feed[tensor.name] = _bf16_value(array)
            else:
                feed[tensor.name] = array
        return feed


class BoundBucket:
    """Device buffers of one batch size, allocated and bound once.

    A run copies in, computes and copies out at addresses that stay, as CUDA graphs
    require. On the CPU results are views, which the next run overwrites.

    Args:
        session: The ``InferenceSession``.
        spec: Tensors that `is_bindable`.
        leading: The batch dimension, or nothing.
        device: Device name and index. The CPU will do, which is how this is tested
            where there is no GPU.
        options: ``RunOptions`` of this size's runs.
    """

    def __init__(
        self,
        session: ort.InferenceSession,
        spec: ModelSpec,
        leading: tuple[int, ...],
        device: tuple[str, int],
        options: ort.RunOptions,
    ) -> None:
        self._options = options
        self._run_session = session.run_with_iobinding
        self._binding = session.io_binding()
        self._shapes = [model_shape(tensor, leading) for tensor in spec.inputs]
        self._dtypes = [DATATYPES[tensor.datatype].numpy for tensor in spec.inputs]
        self._inputs = [_allocate(tensor, leading, device) for tensor in spec.inputs]
        self._outputs = [_allocate(tensor, leading, device) for tensor in spec.outputs]
        for tensor, value in zip(spec.inputs, self._inputs, strict=True):
            self._binding.bind_ortvalue_input(tensor.name, value)
        for tensor, value in zip(spec.outputs, self._outputs, strict=True):
            self._binding.bind_ortvalue_output(tensor.name, value)

    def run(self, arrays: Sequence[Array | None]) -> list[Array]:
        """Run `arrays`, one per input and of this batch size exactly."""
        for value, array, shape, dtype in zip(
            self._inputs, arrays, self._shapes, self._dtypes, strict=True
        ):
            assert array is not None, "a bindable version has no optional inputs"
            value.update_inplace(np.ascontiguousarray(array.reshape(shape), dtype))
        self._run_session(self._binding, self._options)
        return [value.numpy() for value in self._outputs]


def _allocate(
    tensor: TensorSpec, leading: tuple[int, ...], device: tuple[str, int]
) -> ort.OrtValue:
    code = DATATYPES[tensor.datatype].onnx_code
    shape = list(model_shape(tensor, leading))
    return ort.OrtValue.ortvalue_from_shape_and_type(shape, code, *device)


def _run_options(settings: SessionSettings, bucket: int | None) -> ort.RunOptions:
    """Make options for the runs of one bucket; ``None`` for unbound runs.

    Source: onnxruntime, "CUDA Execution Provider": ``gpu_graph_id``, -1 for none.
    """
    options = ort.RunOptions()
    options.log_severity_level = _LOG_FATAL
    if settings.device == "cuda":
        captures = settings.cuda_graphs and bucket is not None
        graph_id = str(bucket) if captures else "-1"
        options.add_run_config_entry("gpu_graph_id", graph_id)
    return options


def _create(path: str, settings: SessionSettings) -> ort.InferenceSession:
    """Create the session on the ordered device and no other."""
    ort.set_default_logger_severity(_LOG_FATAL)
    providers: list[str | tuple[str, dict[str, str]]] = [_CPU]
    if settings.device == "cuda":
        require_cuda(settings)
        providers = [(cuda.PROVIDER, cuda.provider_options(settings))]
    try:
        session = ort.InferenceSession(
            path, _session_options(settings), providers=providers, enable_fallback=False
        )
    except Exception as error:  # the binding raises a dozen unrelated classes
        raise LoadRefused(one_line(str(error), path)) from None
    session.disable_fallback()
    if settings.device == "cuda" and session.get_providers()[0] != cuda.PROVIDER:
        folder = Path(ort.__file__).parent / "capi"
        raise LoadRefused(cuda.why_fallen_back(cuda.library_error(folder)))
    return session


def _session_options(settings: SessionSettings) -> ort.SessionOptions:
    """One run at a time, on its own threads, and no spinning beside other workers."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = settings.intra_op_threads
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = _LOG_FATAL
    return options


def require_cuda(settings: SessionSettings) -> None:
    """Make CUDA usable in this process, or raise `LoadRefused` with the way out."""
    reason = cuda.why_unavailable(
        ort.get_available_providers(),
        cuda.look_at_driver(),
        settings.device_id,
        ort.cuda_version or "",
    )
    if reason:
        raise LoadRefused(reason)
    if hasattr(ort, "preload_dlls"):  # finds CUDA and cuDNN installed by pip
        with contextlib.redirect_stdout(io.StringIO()):  # it prints what it lacks
            ort.preload_dlls()


def _describe(session: ort.InferenceSession) -> Graph:
    def port(node: ort.NodeArg, has_default: bool = False) -> Port:
        shape = (dim if isinstance(dim, int) else -1 for dim in node.shape)
        optional = has_default or node.type.startswith("optional(")
        return Port(node.name, node.type, tuple(shape), optional)

    return Graph(
        tuple(port(node) for node in session.get_inputs()),
        tuple(port(node, True) for node in session.get_overridable_initializers()),
        tuple(port(node) for node in session.get_outputs()),
    )


def _bf16_value(array: Array) -> ort.OrtValue:
    bits = np.ascontiguousarray(array)
    code = DATATYPES["BF16"].onnx_code
    return ort.OrtValue.ortvalue_from_numpy_with_onnx_type(bits, code)


def _ort_value(value: Array | ort.OrtValue) -> ort.OrtValue:
    if isinstance(value, ort.OrtValue):
        return value
    return ort.OrtValue.ortvalue_from_numpy(value)


def _array(value: ort.OrtValue) -> Array:
    """Copy a CPU value out; BF16, which NumPy lacks, as bit patterns."""
    if value.element_type() != DATATYPES["BF16"].onnx_code:
        array: Array = value.numpy()
        return array
    raw = ctypes.string_at(value.data_ptr(), value.tensor_size_in_bytes())
    return np.frombuffer(raw, DATATYPES["BF16"].numpy).reshape(value.shape())

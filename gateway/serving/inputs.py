"""What of a request's inputs goes into the event log.

What a model's owner named is taken out, or hashed, here: before anything leaves this
process. If that cannot be done as it was said, a name that is no input's for one,
nothing of the inputs is recorded, so that a slip of the pen costs data and no secrets.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterable
from functools import partial
from math import prod
from typing import NamedTuple
from weakref import WeakKeyDictionary

import numpy as np

from featurizer.datatypes import DATATYPES
from featurizer.encode import decode_bytes_elements, encode_bytes_elements
from gateway.catalogue import Catalogue
from gateway.config import Config
from gateway.feedback.blocks import Choice, Form, Layout, TensorLayout, id_of
from gateway.feedback.hash_key import hashes, load_key
from gateway.feedback.sample import in_share, is_rare
from gateway.feedback_config import FeedbackConfig, InputsConfig
from gateway.logs import get_logger
from gateway.serving.exchange import Inputs
from gateway.serving.queues import VersionQueue
from workers.spec import ModelSpec, TensorSpec
from workers.wire import Buffer

_log = get_logger("inputs")

_HASH_BYTES = 16
_MAX_STRINGS = 2048
"""Elements of one request's BYTES inputs that are hashed, or looked at because some of
them are not to be recorded: each takes a microsecond, on the loop's thread."""
_MAX_LAYOUTS = 64
"""Remembered of a version; more are worked out again."""
_MAX_SAID = 1024
"""Complaints that are remembered, so that each is made once."""
_COLUMN = re.compile(r"(.+)\[(\d+)\]", re.DOTALL)
_BF16_NAN = 0x7FC0


class Unfit(ValueError):
    """The configuration does not fit the model; says how."""


class _Kept(NamedTuple):
    """What is left of a tensor.

    Attributes:
        redacted: Nothing is.
        hashed: Only hashes of its elements.
        columns: Or of these columns: nothing (``False``), hashes (``True``).
    """

    redacted: bool
    hashed: bool
    columns: tuple[tuple[int, bool], ...]


class Recorder:
    """Records inputs of one version.

    Args:
        config: What is wanted.
        spec: Tensors of the version.
        key: For hashes, 32 bytes.

    Raises:
        Unfit: What is wanted cannot be done with these tensors.
    """

    def __init__(self, config: InputsConfig, spec: ModelSpec, key: bytes) -> None:
        self._spec = spec
        self._kept = _kept(config, spec)
        self._hash = partial(hashlib.blake2b, digest_size=_HASH_BYTES, key=key)
        self._layouts: dict[tuple[Layout, tuple[tuple[int, ...], ...]], Layout] = {}

    def add(
        self, form: Form, data: bytes, inputs: Inputs, most: int
    ) -> tuple[Form, bytes] | None:
        """Return a prediction's form and data with its inputs behind the outputs.

        Args:
            form: Of the outputs.
            data: Of the outputs.
            inputs: Of the request, as they came.
            most: Bytes that all may have.

        Returns:
            ``None`` where they would have more, or too many elements had to be looked
            at, or a column that is not to be recorded is not there.
        """
        pieces: list[bytes] = []
        left, strings = most - len(data), 0
        for index, dims, raw in inputs:
            kept = self._kept.get(index)
            if kept is None:
                piece: bytes | None = bytes(raw) if len(raw) <= left else None
            elif kept.redacted:
                piece = b""
            elif len(raw) > left:
                piece = None
            else:
                datatype = self._spec.inputs[index].datatype
                strings += prod(dims) if datatype == "BYTES" else 0
                fits = strings <= _MAX_STRINGS
                piece = self._masked(kept, datatype, dims, raw) if fits else None
            if piece is None or len(piece) > left:
                return None
            left -= len(piece)
            pieces.append(piece)
        sizes = form.sizes + tuple(map(len, pieces))
        layout = self._layout(form.layout, inputs)
        return Form(layout, sizes), b"".join((data, *pieces))

    def _masked(
        self, kept: _Kept, datatype: str, dims: tuple[int, ...], raw: Buffer
    ) -> bytes | None:
        """Return what is left of a tensor; ``None`` if it lacks a named column."""
        width = dims[-1] if dims else 1
        if any(column >= width for column, _ in kept.columns):
            return None
        if datatype != "BYTES":
            array = np.frombuffer(raw, DATATYPES[datatype].numpy).reshape(dims).copy()
            for column, _ in kept.columns:
                array[:, column] = _nothing(datatype)
            return array.tobytes()
        elements = decode_bytes_elements(raw)
        if kept.hashed:
            elements = [self._hashed(element) for element in elements]
        for column, hashed in kept.columns:
            those = elements[column::width]
            elements[column::width] = [
                self._hashed(element) if hashed else b"" for element in those
            ]
        return encode_bytes_elements(elements)

    def _hashed(self, element: bytes) -> bytes:
        return self._hash(element).hexdigest().encode()

    def _layout(self, outputs: Layout, inputs: Inputs) -> Layout:
        shapes = tuple([(index, *dims) for index, dims, _ in inputs])
        layout = self._layouts.get((outputs, shapes))
        if layout is None:
            batched = bool(self._spec.max_batch_rows)
            named = [(self._spec.inputs[index], dims) for index, dims, _ in inputs]
            layout = outputs + tuple(
                [
                    TensorLayout(spec.name, spec.datatype, dims[batched:], True)
                    for spec, dims in named
                ]
            )
            if len(self._layouts) >= _MAX_LAYOUTS:
                self._layouts.clear()
            self._layouts[outputs, shapes] = layout
        return layout


class Recorders:
    """Records inputs of whatever is served, as far as their models say so.

    Args:
        config: Of the event log.
        key: For hashes.
        counts: ``inputs`` counts predictions whose inputs were recorded,
            ``inputs_withheld`` those whose inputs should have been and could not.
    """

    def __init__(
        self, config: FeedbackConfig, key: bytes, counts: Counter[str]
    ) -> None:
        self._models = {name: one.inputs for name, one in config.models.items()}
        self._default = config.default.inputs
        self._key = key
        self._counts = counts
        self._known: WeakKeyDictionary[VersionQueue, Recorder | None]
        self._known = WeakKeyDictionary()
        self._said: set[tuple[str, int, str]] = set()

    def add(  # noqa: PLR0917 - keywords cost time
        self,
        model: str,
        queue: VersionQueue,
        choice: Choice,
        name: bytes,
        inputs: Inputs,
        form: Form,
        data: bytes,
        most: int,
    ) -> tuple[Form, bytes]:
        """Return a prediction's form and data, with its inputs if they are wanted."""
        config = self._models.get(model, self._default)
        if config is None or not (
            is_rare(choice.role, choice.propensity)
            or (config.sample and in_share(id_of(name), config.sample))
        ):
            return form, data
        if queue not in self._known:
            version = queue.entry.version
            self._known[queue] = self.recorder(model, version, queue.spec)
        recorder = self._known[queue]
        added = recorder and recorder.add(form, data, inputs, most)
        self._counts["inputs" if added else "inputs_withheld"] += 1
        return added or (form, data)

    def look_at(self, catalogue: Catalogue, changed: Iterable[str] | None) -> None:
        """Say what cannot be done with versions that are served now.

        Args:
            catalogue: All of them.
            changed: Models that are others in it, or gone; ``None``: perhaps all.
        """
        for name in catalogue.models if changed is None else changed:
            for version, entry in catalogue.ready_versions(name).items():
                if entry.spec is not None:
                    self.recorder(name, version, entry.spec)

    def recorder(self, model: str, version: int, spec: ModelSpec) -> Recorder | None:
        """Return what records inputs of a version; ``None`` for nothing at all.

        If that is because what is wanted cannot be done, it is said, once.
        """
        config = self._models.get(model, self._default)
        if config is None:
            return None
        try:
            return Recorder(config, spec, self._key)
        except Unfit as error:
            complaint = model, version, str(error)
            if complaint not in self._said:
                if len(self._said) >= _MAX_SAID:
                    self._said.clear()
                self._said.add(complaint)
                _log.error(
                    "inputs_not_recorded",
                    model=model,
                    version=version,
                    reason=str(error),
                )
        return None


def recorders(config: Config, counts: Counter[str]) -> Recorders | None:
    """Return what records inputs; ``None`` where no model wants that.

    Raises:
        ValueError: There is no key, and hashes are wanted.
    """
    feedback = config.feedback
    models = [feedback.default, *feedback.models.values()]
    if all(model.inputs is None for model in models):
        return None
    key = load_key(feedback, config.state_dir) if hashes(feedback) else b""
    return Recorders(feedback, key, counts)


def _nothing(datatype: str) -> float:
    """Return what stands in a redacted column."""
    if datatype == "BF16":
        return _BF16_NAN
    return float("nan") if datatype.startswith("FP") else 0


def _kept(config: InputsConfig, spec: ModelSpec) -> dict[int, _Kept]:
    """Return what is left of the tensors of which something is not."""
    places = {tensor.name: index for index, tensor in enumerate(spec.inputs)}
    whole: dict[int, bool] = {}
    columns: dict[int, dict[int, bool]] = {}
    for names, hashed, field in (
        (config.hash, True, "hash"),
        (config.redact, False, "redact"),  # which wins
    ):
        for name in names:
            where = f"inputs.{field}: '{name}'"
            index, column = _place(name, places, where)
            tensor = spec.inputs[index]
            if hashed and tensor.datatype != "BYTES":
                raise Unfit(
                    f"{where} is of {tensor.datatype}, and only BYTES are hashed; "
                    "redact it instead"
                )
            if column is None:
                whole[index] = hashed
            else:
                _check_column(column, tensor, spec, where)
                columns.setdefault(index, {})[column] = hashed
    kept = {}
    for index in {*whole, *columns}:
        hashed = whole.get(index) is True
        those = [
            (column, each)
            for column, each in columns.get(index, {}).items()
            if not (each and hashed)  # it is already
        ]
        kept[index] = _Kept(whole.get(index) is False, hashed, tuple(those))
    return kept


def _place(name: str, places: dict[str, int], where: str) -> tuple[int, int | None]:
    """Return which input a name means, and which column of it, if only one."""
    if name in places:
        return places[name], None
    found = _COLUMN.fullmatch(name)
    if found is None or found[1] not in places:
        raise Unfit(f"{where} is none of its inputs ({', '.join(places)})")
    return places[found[1]], int(found[2])


def _check_column(column: int, tensor: TensorSpec, spec: ModelSpec, where: str) -> None:
    rank = len(tensor.dims) + bool(spec.max_batch_rows)
    if rank != 2:
        raise Unfit(f"{where}: only tensors of rows and columns have columns")
    if 0 <= tensor.dims[-1] <= column:
        raise Unfit(f"{where}: it has {tensor.dims[-1]} columns, the first is 0")

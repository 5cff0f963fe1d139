"""How a server is asked to score rows: over gRPC, or over HTTP/1.1."""

from __future__ import annotations

import http.client
import json
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import grpc
import numpy as np
from numpy.typing import NDArray

from gateway.protocol import inference_pb2 as pb
from loadtest.models import CLASSES, INPUT, OUTPUT
from loadtest.wire import CHANNEL_OPTIONS, SERVICE, BadAnswer, infer_request, tensors

ASK_S = 30.0
"""Longest wait for one answer."""
REQUEST_ID = "request"
HTTP_OK = 200

Rows = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Dialect:
    """A protocol, a path and how rows are written.

    Attributes:
        path: Of the request.
        content_type: Of an HTTP/1.1 request; empty for gRPC.
        encode: Writes a request: model, rows float32 (rows, features).
        decode: Reads an answer: float32 (rows, classes).
        fixed_length: Whether all right answers have one length.
        streaming: Whether requests are messages of one stream.
    """

    path: str
    content_type: str
    encode: Callable[[str, Rows], bytes]
    decode: Callable[[bytes], Rows]
    fixed_length: bool = True
    streaming: bool = False

    def ask(
        self, port: int, bodies: Sequence[bytes], *, timeout_s: float = ASK_S
    ) -> list[bytes]:
        """Send requests all at once and return the answers in their order.

        Raises:
            BadAnswer: If a call fails.
        """
        if self.content_type:
            with ThreadPoolExecutor(len(bodies)) as pool:
                calls = [
                    pool.submit(self._post, port, body, timeout_s) for body in bodies
                ]
                return [call.result() for call in calls]
        address = f"127.0.0.1:{port}"
        with grpc.insecure_channel(address, options=CHANNEL_OPTIONS) as channel:
            try:
                if self.streaming:
                    stream = channel.stream_stream(self.path)
                    return list(stream(iter(bodies), timeout=timeout_s))
                unary = channel.unary_unary(self.path)
                futures = [unary.future(body, timeout=timeout_s) for body in bodies]
                return [future.result() for future in futures]
            except grpc.RpcError as error:
                raise BadAnswer(f"{error.code().name}: {error.details()}") from error

    def _post(self, port: int, body: bytes, timeout_s: float) -> bytes:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout_s)
        try:
            headers = {"content-type": self.content_type}
            connection.request("POST", self.path, body, headers)
            answer = connection.getresponse()
            content: bytes = answer.read()
        except (OSError, http.client.HTTPException) as error:
            raise BadAnswer(f"{type(error).__name__}: {error}") from error
        finally:
            connection.close()
        if answer.status != HTTP_OK:
            raise BadAnswer(f"HTTP {answer.status}: {content[:200]!r}")
        return content


def _grpc_request(model: str, rows: Rows) -> bytes:
    request = infer_request(model, INPUT, rows, request_id=REQUEST_ID)
    body: bytes = request.SerializeToString()
    return body


def scores(answer: pb.ModelInferResponse) -> Rows:
    """Return the scores in an answer, as raw bytes or as typed contents.

    Raises:
        BadAnswer: If there are none.
    """
    if answer.raw_output_contents:
        found = tensors(answer).get(OUTPUT)
        if found is None:
            raise BadAnswer(f"no output {OUTPUT}")
        return found.astype(np.float32, copy=False)
    for output in answer.outputs:
        if output.name == OUTPUT:
            values = np.array(output.contents.fp32_contents, np.float32)
            return values.reshape(tuple(output.shape))
    raise BadAnswer(f"no output {OUTPUT}")


def _grpc_scores(body: bytes) -> Rows:
    return scores(pb.ModelInferResponse.FromString(body))


def _stream_scores(body: bytes) -> Rows:
    answer = pb.ModelStreamInferResponse.FromString(body)
    if answer.error_message:
        raise BadAnswer(answer.error_message)
    return scores(answer.infer_response)


def _json_row(_model: str, rows: Rows) -> bytes:
    return json.dumps({INPUT: rows[0].tolist()}).encode()


def _json_rows(_model: str, rows: Rows) -> bytes:
    return json.dumps({INPUT: rows.tolist()}).encode()


def _json_scores(body: bytes) -> Rows:
    answer = json.loads(body)
    values = answer[OUTPUT] if isinstance(answer, dict) else answer
    return np.array(values, np.float32).reshape(-1, CLASSES)


def _raw_row(_model: str, rows: Rows) -> bytes:
    row: Rows = rows[0]
    return row.tobytes()


def _raw_scores(body: bytes) -> Rows:
    return np.frombuffer(body, np.float32).reshape(-1, CLASSES)


GRPC = Dialect(f"{SERVICE}/ModelInfer", "", _grpc_request, _grpc_scores)
"""The Open Inference Protocol."""
STREAM = Dialect(
    f"{SERVICE}/ModelStreamInfer", "", _grpc_request, _stream_scores, streaming=True
)
"""Its stream, as Triton has it."""
RAW = Dialect("/inference", "application/octet-stream", _raw_row, _raw_scores)
"""Mosec: the bytes of one row."""
JSON_ROW = Dialect(
    "/predict", "application/json", _json_row, _json_scores, fixed_length=False
)
"""LitServe: one row."""
JSON_ROWS = Dialect(
    "/infer", "application/json", _json_rows, _json_scores, fixed_length=False
)
"""BentoML: a list of rows."""

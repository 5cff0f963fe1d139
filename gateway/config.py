"""The configuration: every knob, its effect, unit, default and when to change it.

Sources, strongest first: command-line flags, environment (``BATON_`` and two
underscores between levels, as in ``BATON_GRPC__PORT=9001``), the YAML file, the
defaults here. `gateway.config_file` reads the file and names file and line of
what is wrong with it.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from gateway.feedback_config import FeedbackConfig

Port = Annotated[int, Field(ge=0, le=65535)]
Count = Annotated[int, Field(ge=1)]
Milliseconds = Annotated[int, Field(ge=0)]
Bytes = Annotated[int, Field(ge=1)]

_SECTION = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class TlsConfig(BaseModel):
    """Encryption of the data plane.

    Files are read again when they change, for new connections; what cannot be read
    leaves the last good ones in use.
    """

    model_config = _SECTION

    certificate: Path
    """PEM file with the server's certificate and its chain."""
    key: Path
    """PEM file with its private key."""
    client_ca: Path | None = None
    """PEM file with the authorities of client certificates: clients must have one
    (mTLS). Authorities taken out of it are refused after a restart."""


class GrpcConfig(BaseModel):
    """The data plane: where and how fronts listen."""

    model_config = _SECTION

    host: str = "127.0.0.1"
    """Address to listen on. Use 0.0.0.0 to be reached from other machines."""
    port: Port = 8001
    """First TCP port. 0 takes free ones and prints them."""
    transport: Literal["own", "grpcio"] = "own"
    """``own``: Baton's HTTP/2. ``grpcio``: the same service behind grpc.aio, some
    25 times slower, to compare with; limits that say so are of ``own`` only."""
    tls: TlsConfig | None = None
    """Certificate and key for TLS; without it connections are not encrypted."""
    unix_socket: Path | None = None
    """Also listen on this Unix socket, without TLS and `client_ca`: who may write it
    may call. Its mode is what the umask leaves: with 022 the same user and root may
    (UMask=0007 in systemd: the group as well). Front *i* > 0 adds ``.i`` to the name.
    A socket that nobody listens on is replaced. ``own`` only."""
    fronts: Count = 1
    """Front processes; each uses up to one core."""
    port_mode: Literal["shared", "each"] = "shared"
    """``shared``: all fronts listen on `port` (SO_REUSEPORT). ``each``: front *i*
    listens on `port` + *i*, so that clients see the health of each (choose it
    where a rolling restart must fail no request)."""
    max_message_bytes: Bytes = 64 << 20
    """Largest request message; a larger one gets RESOURCE_EXHAUSTED."""
    max_metadata_bytes: Annotated[int, Field(ge=1024)] = 16 << 10
    """Largest request headers: names, values and 32 bytes for each. A call that brings
    more gets RESOURCE_EXHAUSTED; four times as much ends the connection."""
    max_concurrent_streams: Count = 1024
    """Calls open at a time on one connection."""
    max_stream_inflight: Count = 256
    """Requests of one ModelStreamInfer stream not yet answered; above it the
    stream is not read."""
    max_stream_bytes: Bytes = 4 << 20
    """Answers of one stream that its client has not taken; above it the stream is
    not read."""
    max_connection_age_s: Annotated[int, Field(ge=0)] = 0
    """Age at which a connection is asked to reconnect, so that clients spread
    over new fronts; 0 for never."""
    max_connection_age_grace_s: Annotated[int, Field(ge=1)] = 30
    """Time that calls have to end after their connection's age is reached."""
    min_ping_interval_ms: Milliseconds = 10_000
    """Clients that send keepalive pings more often than this are disconnected."""
    keepalive_s: Annotated[int, Field(ge=0)] = 60
    """A client that has sent nothing for this long is asked whether it is there; 0
    for never. ``own`` only, like all that follow."""
    keepalive_timeout_s: Count = 20
    """Time it has to answer before its connection is closed; also for a TLS handshake,
    and for a new client to say that it speaks HTTP/2."""
    max_connections: Count = 20_000
    """Connections of one front; more are closed as they come."""
    max_connection_bytes: Bytes = 128 << 20
    """Bytes of messages not yet whole that one connection may have here; a call
    that brings more gets RESOURCE_EXHAUSTED."""
    max_buffered_bytes: Bytes = 512 << 20
    """The same over all connections of one front."""
    stream_window_bytes: Annotated[int, Field(ge=65_535, le=(1 << 31) - 1)] = 1 << 20
    """Flow-control window of a stream: what a client may send that is not read."""
    connection_window_bytes: Annotated[int, Field(ge=65_535, le=(1 << 31) - 1)] = (
        16 << 20
    )
    """The same for all streams of a connection together."""
    write_buffer_bytes: Bytes = 1 << 20
    """Answers that wait for a client to read them before its connection is no
    longer read."""
    max_continuation_frames: Annotated[int, Field(ge=0)] = 8
    """CONTINUATION frames of one header block; more end the connection."""
    max_idle_frames: Annotated[int, Field(ge=64)] = 4096
    """Frames that cost work and bring nothing forward (PING, SETTINGS, streams reset
    at once, ...) that a connection may send beyond four for each call answered; a
    twentieth comes back every second. More end it with ENHANCE_YOUR_CALM."""


class WorkersConfig(BaseModel):
    """The processes that run models."""

    model_config = _SECTION

    count: Count = 1
    """Worker processes per device; each loads every model."""
    device: Literal["cpu", "cuda"] = "cpu"
    """``cuda`` demands a working CUDA provider: it never falls back to the CPU."""
    device_ids: tuple[Annotated[int, Field(ge=0)], ...] = (0,)
    """GPUs to use with ``device: cuda``; `count` workers run on each."""
    intra_op_threads: Annotated[int, Field(ge=0)] = 0
    """Threads of one run on the CPU. 0: cores divided by workers, at least 1."""
    gpu_memory_bytes: Annotated[int, Field(ge=0)] = 0
    """Bound of ONNX Runtime's CUDA arena per model and worker; 0 for none."""
    cuda_graphs: bool = False
    """Capture a CUDA graph per batch bucket: fewer launches, fixed shapes only."""
    hang_timeout_ms: Annotated[int, Field(ge=50)] = 2_000
    """A worker is killed when a batch takes longer than this and than four times
    the slowest run seen of its model. Raise it for models that take seconds."""
    load_timeout_s: Count = 300
    """Longest load of one version in one process, warm-up included."""
    restart_backoff_ms: Milliseconds = 100
    """Pause before a dead worker is started again; doubles with every death, is
    capped at `max_restart_backoff_ms`, and starts over after a quiet minute."""
    max_restart_backoff_ms: Milliseconds = 10_000
    """Upper bound of the pause between restarts."""
    shared_memory_min_bytes: Annotated[int, Field(ge=0)] = 131_072
    """Batches of at least this many bytes travel through shared memory instead of
    the socket; 0 turns shared memory off. Below 64 KiB the two cost the same
    (`python -m loadtest hop` measures it)."""
    max_attempts: Count = 2
    """Workers a row may be running on when they die before it fails."""


class BatchingConfig(BaseModel):
    """Defaults for models without a configuration of their own."""

    model_config = _SECTION

    max_batch_rows: Count = 64
    """Largest batch of a model whose batch limit is derived."""
    max_batch_bytes: Bytes = 16 << 20
    """Largest batch in bytes of inputs; one larger request still runs alone."""
    max_queue_delay_us: Annotated[int, Field(ge=0)] = 0
    """How long a batch may wait for company although a worker is free. 0: leave
    at once; under load batches fill while workers are busy."""


class AdmissionConfig(BaseModel):
    """How much work a front takes on before it refuses."""

    model_config = _SECTION

    max_queue_requests: Count = 4096
    """Requests of one model in one front, queued or running; more are refused
    with UNAVAILABLE at once. `max_queue_size` of a model configuration wins."""
    max_inflight_bytes: Bytes = 512 << 20
    """Input bytes held by one front over all models; more are refused with
    RESOURCE_EXHAUSTED at once."""
    default_timeout_ms: Annotated[int, Field(ge=1)] = 30_000
    """Deadline of a request that brings none."""
    pushback_ms: Milliseconds = 25
    """Wait that a refusal asks of the client (`grpc-retry-pushback-ms`)."""


class AdminConfig(BaseModel):
    """The admin plane: who may change models and traffic. Never on the data port."""

    model_config = _SECTION

    unix_socket: Path | None = None
    """Socket of the admin service, for its owner alone; ``admin.sock`` in
    `state_dir` if it is not set. A path has at most 107 bytes."""
    port: Port | None = None
    """Also listen on this TCP port of `host`; 0 takes a free one. Whoever reaches it
    may change everything: there is no authentication yet."""
    host: str = "127.0.0.1"
    """Address of `port`."""


class TrafficConfig(BaseModel):
    """Arms, policies, shadows."""

    model_config = _SECTION

    memory_records: Count = 65_536
    """Decisions that each front remembers, until there is an event log."""
    shadow_workers: Annotated[int, Field(ge=0)] = 1
    """Worker processes for shadows alone, at the lowest priority of the scheduler;
    started with the first shadow. 0: shadows are refused."""


class DrainConfig(BaseModel):
    """How a process goes away."""

    model_config = _SECTION

    pre_drain_ms: Milliseconds = 1_000
    """Time between NOT_SERVING and closing, for clients and load balancers to
    turn away. At least one health period of theirs."""
    timeout_s: Count = 20
    """Longest wait for requests in flight; what is left is then cancelled."""


class MetricsConfig(BaseModel):
    """The Prometheus endpoint."""

    model_config = _SECTION

    host: str = "127.0.0.1"
    """Address to listen on."""
    port: Port = 8002
    """TCP port of ``/metrics``. 0 takes a free one and prints it."""


class LogConfig(BaseModel):
    """Structured logs on standard error; never a line per request."""

    model_config = _SECTION

    level: Literal["debug", "info", "warning", "error"] = "info"
    """Lowest level written."""
    format: Literal["text", "json"] = "text"
    """``json``: one object a line."""


class Config(BaseSettings):
    """Configuration of ``baton serve``."""

    model_config = SettingsConfigDict(
        env_prefix="BATON_",
        env_nested_delimiter="__",
        extra="forbid",
        frozen=True,
        use_attribute_docstrings=True,
    )

    model_repository: Path = Path("models")
    """Folder in Triton's layout: ``<model>/<version>/model.onnx``."""
    load: Literal["all"] | tuple[str, ...] = "all"
    """Models to load at start: ``all``, or a list of names (empty for none)."""
    state_dir: Path = Path(".baton")
    """Folder for what must outlive a process, of this gateway alone (a second one
    refuses to start). ``registry`` holds the models taken in, the decisions with their
    audit log, and what policies learnt: back it up while the gateway is stopped.
    ``artefacts`` are verified copies of model files, and are made again. The socket of
    the admin plane, ``admin.sock``, is here unless `admin.unix_socket` says where.
    ``events`` is the embedded event log, ``log.sock`` how predictions get there."""
    max_model_bytes: Bytes = 8 << 30
    """Largest model, external data included, that is taken in."""
    grpc: GrpcConfig = GrpcConfig()
    workers: WorkersConfig = WorkersConfig()
    batching: BatchingConfig = BatchingConfig()
    admission: AdmissionConfig = AdmissionConfig()
    admin: AdminConfig = AdminConfig()
    traffic: TrafficConfig = TrafficConfig()
    feedback: FeedbackConfig = FeedbackConfig()
    drain: DrainConfig = DrainConfig()
    metrics: MetricsConfig = MetricsConfig()
    log: LogConfig = LogConfig()

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Take flags and environment only; `config_file` adds the file below them."""
        return (init_settings, env_settings)


def worker_count(config: Config) -> int:
    """Return the number of workers over all devices, without the shadows' pool."""
    workers = config.workers
    return workers.count * (len(workers.device_ids) if workers.device == "cuda" else 1)


def intra_op_threads(config: WorkersConfig) -> int:
    """Return the threads of one run on the CPU, at least 1.

    Source: onnxruntime's default is a thread per physical core in every session,
    which oversubscribes as soon as there are two workers.
    """
    if config.intra_op_threads:
        return config.intra_op_threads
    cores = len(os.sched_getaffinity(0))
    return max(1, cores // config.count)


def schema() -> dict[str, Any]:
    """Return the JSON schema of the file."""
    return Config.model_json_schema()

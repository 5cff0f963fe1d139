"""The key with which inputs are hashed before they go into the event log.

Without a key, whoever has the log could hash every mail address or number there may be
and look for it. Equal values have equal hashes as long as the key is the same.
"""

from __future__ import annotations

import hashlib
import os
from contextlib import suppress
from pathlib import Path

from gateway.feedback_config import FeedbackConfig

_NAME = "inputs.key"
"""In `state_dir`, where the configuration names no other file."""
_BYTES = 32
_FEWEST_BYTES = 16


def hashes(config: FeedbackConfig) -> bool:
    """Return whether any input of any model is hashed."""
    found = [config.default.inputs, *(each.inputs for each in config.models.values())]
    return any(inputs is not None and inputs.hash for inputs in found)


def load_key(config: FeedbackConfig, state_dir: Path) -> bytes:
    """Return the key, 32 bytes; one of `state_dir` is made on first use.

    Raises:
        ValueError: The file cannot be used; says which, why and what to do.
    """
    path = config.hash_key_file
    try:
        if path is None:
            path = state_dir / _NAME
            if not path.exists():
                _make(path)
        secret = path.read_bytes()
    except OSError as error:
        raise ValueError(_fault(f"{path}: {error.strerror}")) from None
    if len(secret) < _FEWEST_BYTES:
        raise ValueError(_fault(f"{path} holds {len(secret)} bytes"))
    return hashlib.blake2b(secret, digest_size=_BYTES).digest()


def key_fault(config: FeedbackConfig) -> str:
    """Return why the configured key cannot be used; empty if it can, or none is."""
    if config.hash_key_file is None or not (config.enabled and hashes(config)):
        return ""
    try:
        load_key(config, Path())
    except ValueError as error:
        return str(error)
    return ""


def _fault(why: str) -> str:
    return (
        f"feedback.hash_key_file: {why} (name a file of at least {_FEWEST_BYTES} "
        "random bytes that the gateway may read: head -c 32 /dev/urandom > FILE)"
    )


def _make(path: Path) -> None:
    """Make the file, whole and once, whoever else does so now."""
    made = path.with_name(f"{path.name}.{os.urandom(8).hex()}")
    file = os.open(made, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
    try:
        os.write(file, os.urandom(_BYTES))
        os.fsync(file)
        with suppress(FileExistsError):
            os.link(made, path)
    finally:
        os.close(file)
        made.unlink()

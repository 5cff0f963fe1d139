"""What policies learnt, on disk: a JSON document per model."""

from __future__ import annotations

import os
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from urllib.parse import quote

from gateway.controller.learning import State, state_from
from gateway.logs import get_logger

_log = get_logger("traffic")

_NAME_BYTES = 200
"""Files have longer names of models as a hash: file systems end at 255 bytes."""


class LearntFiles:
    """A folder of what was learnt. Calls block on the disk.

    Args:
        folder: Made with the first file.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def write(self, model: str, body: bytes) -> None:
        """Replace what is kept of a model, in one step.

        Raises:
            OSError: It could not be written; what was kept is as it was.
        """
        file = self._file(model)
        self._folder.mkdir(exist_ok=True)
        new = file.with_suffix(".new")
        new.write_bytes(body)
        os.replace(new, file)

    def read(self, model: str) -> State | None:
        """Return what is kept of a model; ``None`` if nothing is, or none that can be.

        Shares are a safe place to begin from; what cannot be read is set aside.
        """
        file = self._file(model)
        try:
            return state_from(file.read_bytes())
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            _log.error("learnt_unreadable", model=model, reason=str(error)[:200])
            with suppress(OSError):
                os.replace(file, file.with_suffix(".broken"))
            return None

    def _file(self, model: str) -> Path:
        name = quote(model, safe="")
        if len(name) > _NAME_BYTES:
            name = sha256(model.encode()).hexdigest()
        return self._folder / f"{name}.json"

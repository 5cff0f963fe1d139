"""What onnxruntime says when it fails, turned into what a client may read.

Pure: its exceptions are a dozen unrelated classes, so it is told by their text.
"""

from __future__ import annotations

import os
import re

from workers.execute import RunError
from workers.wire import Failure


class RunFailed(RunError):
    """Raised when the model gave no result; one line, without paths."""


class OutOfMemory(RunFailed):
    """Raised when a run found no memory; a smaller batch may do."""

    failure = Failure.OUT_OF_MEMORY


_NO_MEMORY = re.compile(
    r"failed to allocate memory|out of memory|bad_alloc|ALLOC_FAILED|BFCArena", re.I
)
_STATUS = re.compile(r"\[ONNXRuntimeError\] : \d+ : \w+ : ")
# A place in onnxruntime's source and the signature of the function there.
_SOURCE = re.compile(
    r"/onnxruntime_src/\S+ (?:[\w:&*<>~, ]+\([^()]*\)(?: const)?(?: \[with [^]]*\])? )?"
)
_MAX_MESSAGE = 400


def run_failed(error: Exception, path: str) -> RunFailed:
    """Translate what a run raised.

    Args:
        error: Any exception of onnxruntime's binding.
        path: The model's file, which is not to be named.
    """
    message = one_line(str(error), path) or type(error).__name__
    if isinstance(error, MemoryError) or _NO_MEMORY.search(str(error)):
        return OutOfMemory(message)
    return RunFailed(message)


def one_line(message: str, path: str) -> str:
    """Shorten onnxruntime's message to what concerns a user.

    Example:
        >>> one_line("[ONNXRuntimeError] : 2 : INVALID_ARGUMENT : Bad  thing", "/m")
        'Bad thing'
    """
    message = _SOURCE.sub("", _STATUS.sub("", message))
    folder = os.path.dirname(path)
    if folder:
        message = message.replace(folder + os.sep, "")
    return " ".join(message.split())[:_MAX_MESSAGE]

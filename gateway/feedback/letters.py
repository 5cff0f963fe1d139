"""Dead letters as events: what was there, and beside it where and why. Pure."""

from __future__ import annotations

from typing import NamedTuple

from gateway.feedback.log import LABELS, PREDICTIONS
from gateway.feedback.types import DeadLetter, Event

_OURS = "baton_"


class Origin(NamedTuple):
    """Where a dead letter lay, what it was, and what was wrong with it."""

    topic: str
    partition: int
    offset: int
    reason: str
    detail: str
    event: Event


def encode_letter(letter: DeadLetter) -> Event:
    """Return the event for the dead letters' topic, in the partition it came from.

    Key and value are those of the event; its headers are followed by ``baton_topic``,
    ``baton_partition``, ``baton_offset``, ``baton_reason``, ``baton_detail``,
    ``baton_first_ms`` and ``baton_attempts``.
    """
    stored = letter.stored
    said = {
        "topic": stored.topic,
        "partition": stored.partition,
        "offset": stored.offset,
        "reason": letter.reason,
        "detail": letter.detail,
        "first_ms": letter.first_ms,
        "attempts": letter.attempts,
    }
    ours = tuple((_OURS + name, str(value).encode()) for name, value in said.items())
    return stored.event._replace(headers=_theirs(stored.event) + ours)


def origin(letter: Event, partitions: int) -> Origin:
    """Return what a dead letter was.

    Raises:
        ValueError: It does not say so.
    """
    said = {name: value.decode(errors="replace") for name, value in letter.headers}
    topic = said.get(_OURS + "topic", "")
    try:
        partition = int(said[_OURS + "partition"])
        offset = int(said[_OURS + "offset"])
    except (KeyError, ValueError):
        partition = offset = -1
    if topic not in (PREDICTIONS, LABELS) or not 0 <= partition < partitions:
        raise ValueError("this dead letter has no place in baton_... headers")
    return Origin(
        topic,
        partition,
        offset,
        said.get(_OURS + "reason", ""),
        said.get(_OURS + "detail", ""),
        letter._replace(headers=_theirs(letter)),
    )


def _theirs(event: Event) -> tuple[tuple[str, bytes], ...]:
    return tuple(item for item in event.headers if not item[0].startswith(_OURS))

"""Clients' own request ids as the event log has them. Pure.

A label that names a request id lies in the partition of that name, which is seldom the
prediction's. So fronts note there which prediction it is: in blocks that hold names and
no predictions (`Names` in ``protos/records.proto``).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from hashlib import blake2b
from typing import Any, NamedTuple

from google.protobuf.message import DecodeError

from gateway.feedback.blocks import COLUMNS, ID_BYTES, id_of
from gateway.feedback.columns import BadBlock
from gateway.feedback.partition import partitions_of
from gateway.feedback.types import Alias
from gateway.protocol import records_pb2 as pb


class Name(NamedTuple):
    """What a client called a prediction.

    Attributes:
        id: Of the prediction.
        alias: The client's name for it.
    """

    id: bytes
    alias: Alias


class Names(NamedTuple):
    """What a block holds that has names."""

    names: Sequence[Name]


class Share(NamedTuple):
    """The names of a partition.

    Attributes:
        partition: Of the predictions' topic.
        named: How many predictions they are of.
        block: Of them alone.
    """

    partition: int
    named: int
    block: bytes


def digest_of(alias: Alias) -> bytes:
    """Return 16 bytes that stand for an alias.

    Of a thousand million aliases, two have the same with a probability of 1.5e-21.
    """
    return blake2b("/".join(alias).encode(), digest_size=16).digest()


def shared(answers: Sequence[Any], partitions: int) -> list[Share]:
    """Return the blocks of the names that clients gave; most give none.

    Args:
        answers: Members of one `Offered`, then of the next; a shadow's has no name.
        partitions: Of the topic.
    """
    columns = [answers[place::COLUMNS] for place in (0, 1, COLUMNS - 1)]
    named = [one for one in zip(*columns, strict=True) if one[-1]]
    if not named:
        return []
    keys = [b"/%b/%b" % (model.encode(), said) for _, model, said in named]
    shares: defaultdict[int, list[tuple[bytes, str, bytes]]] = defaultdict(list)
    for partition, one in zip(partitions_of(keys, partitions), named, strict=True):
        shares[partition].append(one)
    return [Share(at, len(some), _encode(some)) for at, some in sorted(shares.items())]


def _encode(named: Sequence[tuple[bytes, str, bytes]]) -> bytes:
    ids, models, request_ids = zip(*named, strict=True)
    block = pb.Block()
    names = block.names
    names.ids = id_of(b"".join(ids))
    names.request_ids.extend(request_ids)
    numbers = {model: number for number, model in enumerate(dict.fromkeys(models))}
    names.models.extend(numbers)
    names.model.extend([numbers[model] for model in models])
    return block.SerializeToString()


def decode(value: bytes) -> Names:
    """Return the names that a block holds; none if it is one of predictions.

    Raises:
        BadBlock: It is none; says what is wrong with it.
    """
    try:
        names = pb.Block.FromString(value).names
    except DecodeError as error:
        raise BadBlock(f"this is no block of names: {error}") from None
    ids, models = names.ids, names.models
    count = len(names.request_ids)
    if len(ids) != count * ID_BYTES or len(names.model) != count:
        raise BadBlock(f"{count} request ids have other numbers of ids or models")
    try:
        return Names(
            [
                Name(
                    ids[at * ID_BYTES : (at + 1) * ID_BYTES],
                    Alias("", models[number], request_id),
                )
                for at, (number, request_id) in enumerate(
                    zip(names.model, names.request_ids, strict=True)
                )
            ]
        )
    except IndexError:
        text = f"column model points beyond its {len(models)} values"
        raise BadBlock(text) from None

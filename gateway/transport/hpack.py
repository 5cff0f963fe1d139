"""HPACK (RFC 7541) for a server: decode requests' headers, encode responses'.

Knows no socket and no loop. A gRPC client sends the same ten fields with every call,
nearly all as references to the table, and one literal, its ``grpc-timeout``, that is
new each time and shifts all references by one: there is nothing to cache by the bytes
of a block, so each field must be cheap (`python -m loadtest headers` measures it).
"""

from __future__ import annotations

from functools import lru_cache
from typing import Final

from gateway.transport.hpack_tables import CODE_BITS, EOS, STATIC_TABLE, Header

_Entry = tuple[Header, int]

ENTRY_OVERHEAD: Final = 32
"""Bytes a field counts for beside its name and value (RFC 7541, 4.1)."""
_MAX_CONTINUATIONS: Final = 4
"""Bytes an integer may go on for: values below 2^28 + 255."""


class HpackError(Exception):
    """The block cannot be read: COMPRESSION_ERROR, and the connection must end.

    The decoder's table is no longer that of the peer.
    """


class Decoder:
    """Reads the header blocks of one connection, in order.

    Args:
        max_table_bytes: SETTINGS_HEADER_TABLE_SIZE as announced to the peer. The peer
            starts at 4096, so any other value must be agreed before the first block.
        max_list_bytes: SETTINGS_MAX_HEADER_LIST_SIZE: what the fields of one block may
            come to, each with its name, its value and 32 bytes (RFC 9113, 6.5.2).
    """

    def __init__(
        self, max_table_bytes: int = 4096, max_list_bytes: int = 16384
    ) -> None:
        self._max_table_bytes = max_table_bytes
        self._max_list_bytes = max_list_bytes
        self._limit = max_table_bytes
        self._free = max_table_bytes
        # Index i is _table[128 + i], where the byte that refers to it points. The
        # newest entry is put in front of the others: at most max_table_bytes / 32
        # pointers move, which costs less than arithmetic on every look-up would.
        self._table: list[_Entry] = [*_BLANK, *_STATIC_ENTRIES]
        self.changes = 0
        """Grows whenever the dynamic table changes: insertion, eviction, new limit."""
        self.list_bytes = 0
        """Size of the last header list, counted as `max_list_bytes` is."""

    def decode(self, block: bytes) -> list[Header] | None:
        """Read one whole header block.

        Fields that refer to the table are the table's own tuples.

        Returns:
            The fields in order, or None where they exceed `max_list_bytes`. The block
            has been read all the same, so the next one can be.

        Raises:
            HpackError: The block is malformed.
        """
        headers: list[Header] = []
        append = headers.append
        table = self._table
        room = self._max_list_bytes
        end = len(block)
        position = 0
        try:
            while position < end and 0x20 <= block[position] < 0x40:
                limit, position = _integer(block, position, 0x1F)
                self._resize(limit)
            while position < end:
                byte = block[position]
                if 0x80 < byte < 0xFF:
                    header, size = table[byte]
                    position += 1
                elif byte >= 0x80:
                    index, position = _integer(block, position, 0x7F)
                    header, size = self._entry(index)
                elif byte >= 0x40:
                    header, size, position = self._literal(block, position, 0x3F)
                    self._insert(header, size)
                elif byte < 0x20:
                    header, size, position = self._literal(block, position, 0x0F)
                else:
                    raise HpackError("a table size update after a header field")
                room -= size
                if room >= 0:
                    append(header)
        except IndexError:
            raise HpackError(
                "a block cut short, or an index beyond the table"
            ) from None
        self.list_bytes = self._max_list_bytes - room
        return headers if room >= 0 else None

    def _entry(self, index: int) -> _Entry:
        if not index:
            raise HpackError("index 0 refers to nothing")
        return self._table[0x80 + index]

    def _literal(
        self, block: bytes, position: int, mask: int
    ) -> tuple[Header, int, int]:
        """Read a literal field: it, its size, and where it ends."""
        index = block[position] & mask
        position += 1
        if index == mask:
            index, position = _integer(block, position - 1, mask)
        if index:
            name = self._table[0x80 + index][0][0]
        else:
            name, position = _string(block, position)
        value, position = _string(block, position)
        return (name, value), len(name) + len(value) + ENTRY_OVERHEAD, position

    def _insert(self, header: Header, size: int) -> None:
        """Put an entry in front; one too large for the table empties it (4.4)."""
        table = self._table
        if size <= self._limit or len(table) > _FIRST_DYNAMIC:
            self.changes += 1
        self._free -= size
        while self._free < 0 and len(table) > _FIRST_DYNAMIC:
            self._free += table.pop()[1]
        if self._free < 0:
            self._free += size
        else:
            table.insert(_FIRST_DYNAMIC, (header, size))

    def _resize(self, limit: int) -> None:
        if limit > self._max_table_bytes:
            raise HpackError(
                f"a table of {limit} bytes; at most {self._max_table_bytes} are allowed"
            )
        if limit != self._limit:
            self.changes += 1
        self._free += limit - self._limit
        self._limit = limit
        while self._free < 0:
            self._free += self._table.pop()[1]


def _integer(block: bytes, position: int, mask: int) -> tuple[int, int]:
    """Read an integer with a prefix (RFC 7541, 5.1): it, and where it ends."""
    value = block[position] & mask
    position += 1
    if value < mask:
        return value, position
    for shift in range(0, 7 * _MAX_CONTINUATIONS, 7):
        byte = block[position]
        position += 1
        value += (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
    raise HpackError(f"an integer of more than {1 + _MAX_CONTINUATIONS} bytes")


def _string(block: bytes, position: int) -> tuple[bytes, int]:
    """Read a string (RFC 7541, 5.2): it, and where it ends."""
    byte = block[position]
    length = byte & 0x7F
    position += 1
    if length == 0x7F:
        length, position = _integer(block, position - 1, 0x7F)
    end = position + length
    text = block[position:end]
    if len(text) < length:
        raise HpackError("a string cut short")
    if byte < 0x80:
        return text, end
    return (_huffman_again if length <= _MAX_CACHED else _huffman)(text), end


class _Steps(dict[int, tuple[int, bytes]]):
    """The Huffman code as a machine: (node << 8 | byte) to the next node and text.

    Nodes come multiplied by 256. Steps are worked out when first taken, at most
    256 nodes by 256 bytes of them, once per process: 12 MB if a peer tries them all;
    text takes some hundreds.
    """

    def __init__(self) -> None:
        # A node is two branches: further nodes, or for a leaf the complement of its
        # symbol. Codes are given out in canonical order.
        self._nodes: list[list[int]] = [[0, 0]]
        code = bits = 0
        for symbol in sorted(range(len(CODE_BITS)), key=lambda s: (CODE_BITS[s], s)):
            code <<= CODE_BITS[symbol] - bits
            bits = CODE_BITS[symbol]
            self._grow(code, bits, symbol)
            code += 1
        # Padding is up to seven ones, the beginning of EOS.
        node, self.ends = 0, {0}
        for _ in range(7):
            node = self._nodes[node][1]
            self.ends.add(node << 8)

    def _grow(self, code: int, bits: int, symbol: int) -> None:
        node = 0
        for shift in range(bits - 1, 0, -1):
            branch = code >> shift & 1
            if not self._nodes[node][branch]:
                self._nodes.append([0, 0])
                self._nodes[node][branch] = len(self._nodes) - 1
            node = self._nodes[node][branch]
        self._nodes[node][code & 1] = ~symbol

    def __missing__(self, key: int) -> tuple[int, bytes]:
        node, text = key >> 8, b""
        for shift in range(7, -1, -1):
            node = self._nodes[node][key >> shift & 1]
            if node == ~EOS:
                raise HpackError("EOS inside a Huffman-coded string")
            if node < 0:
                text += bytes((~node,))
                node = 0
        step = self[key] = (node << 8, text)
        return step


_steps = _Steps()


def _huffman(data: bytes) -> bytes:
    node = 0
    decoded = bytearray()
    for byte in data:
        node, text = _steps[node | byte]
        decoded += text
    if node not in _steps.ends:
        raise HpackError("a Huffman-coded string with wrong padding")
    return bytes(decoded)


# nghttp2 sends the path of each call anew, others their timeout: 1024 strings of
# at most 64 bytes make that 0.1 us instead of 3.
_huffman_again = lru_cache(maxsize=1024)(_huffman)
_MAX_CACHED: Final = 64


def _size(header: Header) -> int:
    return len(header[0]) + len(header[1]) + ENTRY_OVERHEAD


_STATIC_ENTRIES: Final = [(header, _size(header)) for header in STATIC_TABLE]
_BLANK: Final = [((b"", b""), 0)] * (0x80 + 1)
_FIRST_DYNAMIC: Final = len(_BLANK) + len(_STATIC_ENTRIES)

_NAME_INDEXES: Final = {
    name: index for index, (name, _) in reversed([*enumerate(STATIC_TABLE, 1)])
}


def encode_indexed(index: int) -> bytes:
    """Encode a field that is in the table (RFC 7541, 6.1)."""
    return _encode_integer(index, 0x80, 0x7F)


def encode_literal(name: bytes, value: bytes) -> bytes:
    """Encode a field without putting it into the table (RFC 7541, 6.2.2).

    The name is an index of the static table where it is there; nothing is
    Huffman-coded: what is sent once costs more to press than to send.
    """
    index = _NAME_INDEXES.get(name, 0)
    field = _encode_integer(index, 0x00, 0x0F)
    if not index:
        field += _encode_integer(len(name), 0x00, 0x7F) + name
    return field + _encode_integer(len(value), 0x00, 0x7F) + value


def _encode_integer(value: int, flags: int, mask: int) -> bytes:
    if value < mask:
        return bytes((flags | value,))
    encoded = bytearray((flags | mask,))
    value -= mask
    while value >= 0x80:
        encoded.append(0x80 | value & 0x7F)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)

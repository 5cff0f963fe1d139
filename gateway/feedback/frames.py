"""What a front and the controller say to each other about blocks. Pure.

The front sends its writer's id (16 bytes), then frames: a header and a block. It gets
sequence numbers back: the event log has that block and all before it, but for those it
refused for good; how many predictions these are comes along.
"""

from __future__ import annotations

import struct

SOCKET = "log.sock"
"""Where in `state_dir` the controller listens."""
WRITER_BYTES = 16
FRAME = struct.Struct("<IQI")
"""Bytes of the block, its sequence number (from 1 on), its partition."""
ACKNOWLEDGED = struct.Struct("<QI")
"""A block's sequence number; predictions refused since the acknowledgement before."""
MAX_BLOCK_BYTES = 16 << 20
"""A longer frame is none: what follows cannot be told apart."""
BLOCK_HEADER = "block"
"""Header of a block's event: writer and sequence number (big-endian), so that one that
the log has twice can be told to be one."""

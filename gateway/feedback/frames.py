"""What a front and the controller say to each other about blocks. Pure.

The front sends its writer's id (16 bytes), then frames: a header and a block. It gets
sequence numbers back: that block, and all before it, are in the event log.
"""

from __future__ import annotations

import struct

SOCKET = "log.sock"
"""Where in `state_dir` the controller listens."""
WRITER_BYTES = 16
FRAME = struct.Struct("<IQI")
"""Bytes of the block, its sequence number (from 1 on), its partition."""
ACKNOWLEDGED = struct.Struct("<Q")
MAX_BLOCK_BYTES = 16 << 20
"""A longer frame is none: what follows cannot be told apart."""
BLOCK_HEADER = "block"
"""Header of a block's event: writer and sequence number (big-endian), so that one that
the log has twice can be told to be one."""

"""Other servers, as their makers publish them, to be measured beside Baton.

Each ``*_server`` module runs under an interpreter of its own, where the peer is
installed; nothing else imports it.
"""

MAX_BATCH = 32
"""Rows of a batch in every peer that batches."""
MAX_WAIT_MS = 2
"""How long such a peer may wait for a batch to fill, where it has such a timer."""

"""Conformance with the client that the protocol's users have: tritonclient."""

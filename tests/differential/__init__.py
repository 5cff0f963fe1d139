"""The same traffic to both transports: whatever a client can see must be the same."""

"""The same traffic to both transports: every answer must be the same."""

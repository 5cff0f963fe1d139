"""Suites that others wrote, run against the transports and the gateway."""

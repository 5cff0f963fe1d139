"""Faults injected into real gateways under load; see docs: reliability, table F."""

"""Calls on every transport: the handlers see and send the same."""

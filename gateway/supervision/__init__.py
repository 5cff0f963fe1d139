"""Supervision: the processes of one gateway, what they are told, what they count."""

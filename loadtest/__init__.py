"""Loads, demonstrates and measures Baton from outside; not part of the wheel."""

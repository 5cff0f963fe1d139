"""``python -m loadtest compare``: Baton and its peers, side by side, per core."""

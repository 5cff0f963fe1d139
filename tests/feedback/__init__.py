"""Ground truth: the event log, labels and the join."""

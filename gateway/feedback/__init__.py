"""Ground truth: the event log that predictions and labels are to go through."""

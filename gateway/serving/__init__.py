"""Serving: from a request's bytes to batches on workers, and back to replies."""

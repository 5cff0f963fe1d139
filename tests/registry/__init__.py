"""The registry of models, the repository it is served from, and its audit log."""

"""Transports: sockets to calls of handlers. They know no model and no worker."""

"""The process that decides: registry, audit, policies, and the admin plane."""

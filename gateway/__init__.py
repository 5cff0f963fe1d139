"""Baton's gateway: the fronts that speak gRPC and the supervisor that runs them."""

"""Generated protobuf modules (`make protos`); the sources are in `protos/`."""

"""``python -m loadtest gpu``: the gateway beside bare ONNX Runtime on a GPU."""

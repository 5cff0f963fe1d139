"""Workers: processes that own the ONNX Runtime sessions of one device.

A worker speaks only the frames of `workers.wire` over Unix sockets; it knows
nothing of gRPC. `workers.session` is the only module that imports onnxruntime.
"""

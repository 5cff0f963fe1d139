"""Featurizer: data types, encodings and (later) transforms, shared by training and serving.

A pure library: it imports neither the gateway nor the workers, so a notebook can
use it alone. `featurizer.datatypes` names the tensor element types of the Open
Inference Protocol; `featurizer.encode` turns tensors into wire bytes and back.
"""

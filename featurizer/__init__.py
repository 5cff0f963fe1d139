"""Featurizer: data types and encodings that training and serving share.

A pure library: it imports neither the gateway nor the workers, so a notebook can
use it alone. `featurizer.datatypes` names the tensor element types of the Open
Inference Protocol; `featurizer.encode` turns tensors into wire bytes and back.
"""

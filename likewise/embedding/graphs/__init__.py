"""Weights to OpenVINO graphs, a file per architecture."""

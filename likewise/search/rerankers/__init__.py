"""Rerankers: a cross-encoder through OpenVINO, or a remote model."""

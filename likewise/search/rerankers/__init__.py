"""What scores how well texts answer a query: a cross-encoder through OpenVINO, or a remote model."""

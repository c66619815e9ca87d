"""Weights to OpenVINO graphs: an `Architecture` is a row, `encoder.build` makes its graph, `compiled` runs it."""

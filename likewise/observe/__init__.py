"""Telemetry of a running process: log lines, metrics and spans, and the id that ties them to a request."""

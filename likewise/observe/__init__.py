"""What a running process says about itself: log lines, metrics and spans, and the id that ties them to a request."""

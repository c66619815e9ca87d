"""What a running process says about itself: log lines, and the id that ties them to a request."""
